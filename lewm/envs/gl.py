"""Pictures of MuJoCo worlds: an OpenGL context made on the first frame, never before.

Stepping needs no OpenGL. The backend is that of `MUJOCO_GL` (`egl` or `osmesa`), else EGL where
it works, else OSMesa.
"""

import importlib
import os
import weakref
from typing import Any, Literal

import mujoco
import numpy as np
import numpy.typing as npt

BACKENDS = ("egl", "osmesa")
PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6"
Quality = Literal["exact", "fast"]


class Canvas:
    """Draws one camera's view of a model, square, at one size.

    Args:
        world: name for error messages.
        camera: name or number of the model's camera.
        size: pixels per side.
        fast: without antialiasing, which the model asks for.
        shadows: False leaves them out; they are most of the time of software rendering.

    Raises:
        ValueError: there is no OpenGL on this machine (one line with what to install).
    """

    def __init__(
        self,
        world: str,
        model: mujoco.MjModel,
        camera: str | int,
        size: int,
        fast: bool = False,
        shadows: bool = True,
    ) -> None:
        self._size = size
        self._model = model
        quality = model.vis.quality
        asked = quality.offsamples, quality.shadowsize
        if fast:
            quality.offsamples = 0
        if not shadows:
            quality.shadowsize = 0
        self._gl = _context(world, size)
        self._gl.make_current()
        self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        quality.offsamples, quality.shadowsize = asked
        self.close = weakref.finalize(self, _free, self._gl, self._drawing)
        """Frees the context; happens by itself too, at the latest before the interpreter ends."""
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawing)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if not shadows:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(camera).id

    def draw(self, data: mujoco.MjData) -> npt.NDArray[np.uint8]:
        """The frame (size, size, 3) of a state whose positions are computed (`mj_forward`)."""
        self._gl.make_current()
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, every, self._scene
        )
        view = mujoco.MjrRect(0, 0, self._size, self._size)
        mujoco.mjr_render(view, self._scene, self._drawing)
        frame = np.empty((self._size, self._size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, view, self._drawing)
        return frame[::-1].copy()


def _free(context: Any, drawing: mujoco.MjrContext) -> None:
    context.make_current()
    drawing.free()
    context.free()


def _context(world: str, size: int) -> Any:
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    known = (chosen,) if chosen in BACKENDS else () if chosen else BACKENDS
    for name in known:
        try:
            os.environ["PYOPENGL_PLATFORM"] = name
            return importlib.import_module(f"mujoco.{name}").GLContext(size, size)
        except Exception:  # each backend raises what its library stumbles over
            continue
    tried = f"MUJOCO_GL={chosen}" if chosen else "neither MUJOCO_GL=egl nor osmesa"
    raise ValueError(
        f"{world}: drawing needs OpenGL, and {tried} works here: apt-get install -y {PACKAGES}, and "
        "set MUJOCO_GL to egl or osmesa (egl draws on a GPU where there is one)"
    )
