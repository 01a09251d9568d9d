"""Batches on their device in the order asked for, read ahead by threads where an accelerator would wait."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lewm.data.clips import ClipData, prepare_frames
from lewm.methods import Batch


def load_batches(
    data: ClipData,
    clips: Iterable[npt.NDArray[np.int64]],
    device: torch.device,
    num_threads: int = 0,
) -> Iterator[Batch]:
    """Batches of the clips of each number list, ready for a method.

    Frames are decoded into memory that is used again, page-locked where the device is an accelerator, and
    travel as uint8: the device normalises and, if need be, resizes them.

    Args:
        clips: the clip numbers of each batch; the first is the longest.
        num_threads: that many threads read that many batches ahead; 0 reads when asked.
    """
    loader = _Loader(data, device, ahead=num_threads > 0)
    if not num_threads:
        yield from map(loader.prepare, map(loader.load, clips))
        return
    waiting: deque[Future[Batch]] = deque()
    rest = iter(clips)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for indices in islice(rest, num_threads):
                waiting.append(pool.submit(loader.load, indices))
            while waiting:
                batch = waiting.popleft().result()
                for indices in islice(rest, 1):
                    waiting.append(pool.submit(loader.load, indices))
                yield loader.prepare(batch)
        finally:
            for future in waiting:
                future.cancel()


class _Loader:
    """Loads batches in any thread, each thread into a buffer of its own."""

    def __init__(self, data: ClipData, device: torch.device, ahead: bool) -> None:
        self._data = data
        self._device = device
        self._ahead = ahead
        self._own = threading.local()

    def load(self, indices: npt.NDArray[np.int64]) -> Batch:
        """A batch on the device, frames still uint8; ahead of its use it no longer needs the buffer."""
        if not hasattr(self._own, "buffer"):
            pinned = self._device.type == "cuda"
            self._own.buffer = self._data.make_buffer(len(indices), pinned)
        batch = self._data.load(indices, self._own.buffer)
        return Batch(
            batch.frames_BTCHW.to(self._device, copy=self._ahead),
            batch.actions_BTA.to(self._device),
            self._moved(batch.proprio_BTQ),
            self._moved(batch.codes_BTPC),
        )

    def _moved(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.to(self._device)

    def prepare(self, batch: Batch) -> Batch:
        """The batch with frames as the model sees them."""
        return replace(
            batch, frames_BTCHW=prepare_frames(batch.frames_BTCHW, self._data.image_size)
        )
