"""Pictures of MuJoCo worlds: an OpenGL context made on the first frame, never before.

Stepping needs no OpenGL. The backend is that of `MUJOCO_GL` (`egl` or `osmesa`), else EGL where
it works, else OSMesa. Worlds take `mujoco` from here, as its import can fail where a library is missing.
"""

import atexit
import contextlib
import functools
import importlib
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def without_gl() -> contextlib.AbstractContextManager[None]:
    """What is imported within it loads no OpenGL, whatever `MUJOCO_GL` says; a `Canvas` draws all the same."""
    return _environment(MUJOCO_GL="disabled")


try:
    import mujoco
except ModuleNotFoundError:
    raise
except Exception:  # its import loads what MUJOCO_GL names; only drawing needs that
    with without_gl():
        import mujoco

__all__ = ["Canvas", "Quality", "mujoco", "without_gl"]

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
        backend = _backend_for(world)
        quality = model.vis.quality
        asked = quality.offsamples, quality.shadowsize
        if fast:
            quality.offsamples = 0
        if not shadows:
            quality.shadowsize = 0
        self._gl, self._drawing = _open(backend, model, size)
        quality.offsamples, quality.shadowsize = asked
        self._when_dropped = weakref.finalize(self, _free, self._gl, self._drawing)
        self._when_dropped.atexit = False  # `_close_all`, which runs before EGL itself is shut down
        _canvases.add(self)
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

    def close(self) -> None:
        """Frees the context; happens by itself too, at the latest before the interpreter ends."""
        if self._when_dropped.detach():
            _free(self._gl, self._drawing)


_canvases: weakref.WeakSet[Canvas] = weakref.WeakSet()


def _open(backend: str, model: mujoco.MjModel, size: int) -> tuple[Any, mujoco.MjrContext]:
    """A context of a backend, made current, and MuJoCo's drawing in it."""
    with _environment(MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend):
        context = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
        context.make_current()
        return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)


def _free(context: Any, drawing: mujoco.MjrContext) -> None:
    context.make_current()
    drawing.free()
    context.free()


def _close_all() -> None:
    for canvas in list(_canvases):
        canvas.close()


def _backend_for(world: str) -> str:
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    backend = _backend(chosen)
    if backend is None:
        tried = f"MUJOCO_GL={chosen} does not give" if chosen else "neither egl nor osmesa gives"
        raise ValueError(
            f"{world}: drawing needs OpenGL without a window, and {tried} it here: apt-get install "
            f"-y {PACKAGES}, and set MUJOCO_GL to egl or osmesa (egl draws on a GPU where there is one)"
        )
    return backend


@functools.cache
def _backend(chosen: str) -> str | None:
    """The chosen backend, or else the first, with which MuJoCo can draw; None where there is none."""
    known = BACKENDS if not chosen else (chosen,) if chosen in BACKENDS else ()
    for name in known:
        try:
            _free(*_open(name, mujoco.MjModel.from_xml_string("<mujoco/>"), 8))
        except Exception:  # each backend raises what its library stumbles over
            _forget_pyopengl()
        else:
            atexit.register(_close_all)
            return name
    return None


def _forget_pyopengl() -> None:
    """Lets the next backend import PyOpenGL anew, which keeps to the platform it was imported for."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == "OpenGL" or name.startswith("mujoco.egl"):
            del sys.modules[name]
