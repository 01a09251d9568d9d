"""Frames of states, each drawn once per process: trials of a sweep start alike, aim alike and are surprised alike."""

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from lewm.envs.base import Env

KEPT_BYTES = 256 * 2**20
Frame = npt.NDArray[np.uint8]


class _Frames:
    """The frames used last, up to so many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[tuple[object, ...], Frame] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> Frame | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: tuple[object, ...], frame: Frame) -> None:
        self._kept[key] = frame
        self._size += frame.nbytes
        while self._size > self._limit:
            self._size -= self._kept.popitem(last=False)[1].nbytes


_FRAMES = _Frames(KEPT_BYTES)


class FrameCache:
    """Draws with a world's `render_state`, but no frame that this process has drawn and still keeps.

    Use it in one thread: a renderer belongs to the thread of its first frame.

    Args:
        env: its name, image size and render quality, with the state, decide a frame.
    """

    def __init__(self, env: Env) -> None:
        self.env = env

    def draw(self, state: npt.NDArray[Any], **options: Any) -> Frame:
        """The read-only frame (H, W, 3) of a state, with the options of a violation."""
        env = self.env
        look = (env.name, env.image_size, env.render_quality, repr(sorted(options.items())))
        key = (*look, np.ascontiguousarray(state, np.float64).tobytes())
        frame = _FRAMES.get(key)
        if frame is None:
            frame = env.render_state(state, **options)
            frame.flags.writeable = False
            _FRAMES.put(key, frame)
        return frame
