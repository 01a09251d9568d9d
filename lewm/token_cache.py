"""DINOv2's tokens of a data file, made once and read through a memory map.

A file `<key>.npy` holds float16 (rows, P, W), the very values that `DINOv2.encode` gives, so that training
has the same bits with it and without. The key is a hash of all that the bits depend on: the data's content,
the weights, the size of the frames, and what computes. The folder is not cleared by us.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lewm.config import Config
from lewm.data.clips import prepare_frames
from lewm.data.digest import content_hash
from lewm.data.episodes import EpisodeFile
from lewm.data.frames import PIXELS
from lewm.dinov2 import DINOv2
from lewm.identity import digest

VARIABLE, DEFAULT = "LEWM_DINOV2_CACHE", "~/.cache/lewm/dinov2"
FORMAT = 1
READ_ROWS = 256
"""Frames decoded at a time."""

Codes = npt.NDArray[np.float16]


def keep_tokens(file: EpisodeFile, config: Config, encoder: DINOv2, weights: str) -> Codes | None:
    """The patch tokens of every frame of a file, read-only; made and kept first if they are not there yet.

    However many processes ask at once, one of them makes them and the others wait. A folder that cannot
    be written is a warning: the tokens are then made anew for every batch.

    Args:
        weights: SHA-256 of the encoder's weights.

    Returns:
        Memory map (rows, P, W), or None where it would take more than `run.dino_cache_gb`.
    """
    side = config.model.image_size // encoder.patch
    shape = (file.num_rows, side * side, encoder.cls_token.shape[-1])
    if 2 * np.prod(shape, dtype=np.int64) > config.run.dino_cache_gb * 1e9:
        return None
    given = config.run.dino_cache or os.environ.get(VARIABLE) or DEFAULT
    path = Path(given).expanduser() / f"{_key(file, config, encoder, weights)}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            found = _open(path, shape)
            size = config.model.image_size
            return found if found is not None else _make(path, shape, file, encoder, size)
    except OSError as error:
        warnings.warn(f"DINOv2's tokens are not kept in {path.parent}: {error}", stacklevel=2)
        return None


def _key(file: EpisodeFile, config: Config, encoder: DINOv2, weights: str) -> str:
    device = encoder.cls_token.device
    made_by = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = {
        "format": FORMAT,
        "data": content_hash(file.path),
        "weights": weights,
        "image_size": config.model.image_size,
        "device": made_by,
        "num_threads": config.optim.num_threads,
        "torch": str(torch.__version__),
    }
    return digest(parts, 24)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process has it; where there are no such locks, whoever renames last wins."""
    with path.open("w") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open(path: Path, shape: tuple[int, ...]) -> Codes | None:
    """The kept tokens, or None where there are none that can be read."""
    if not path.is_file():
        return None
    try:
        found: Any = np.load(path, mmap_mode="r")
    except ValueError:
        return None
    return found if found.shape == shape and found.dtype == np.float16 else None


def _make(
    path: Path, shape: tuple[int, ...], file: EpisodeFile, encoder: DINOv2, size: int
) -> Codes:
    temporary = path.with_name(f"{path.name}.tmp")
    codes = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
    device = encoder.cls_token.device
    for begin in range(0, shape[0], READ_ROWS):
        rows = np.arange(begin, min(begin + READ_ROWS, shape[0]))
        frames = torch.from_numpy(file.read(PIXELS, rows)).to(device).movedim(-1, -3)
        tokens = encoder.encode(prepare_frames(frames, size))[:, 1:]
        codes[rows] = tokens.half().cpu().numpy()
    codes.flush()
    del codes
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)
    made = _open(path, shape)
    assert made is not None
    return made
