"""Rewrites episodes once so that any clip is quick to reach: one frame per chunk, Blosc-LZ4.

Frames first go into part files, each compared with the source frame by frame, so that a killed job goes
on after the last of them. Then their compressed chunks are moved, as they are, into the new file: its
bytes are the same however often the job was killed. A part is removed once it is moved, so the disk
never holds two copies; a job killed while moving makes the missing parts again.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from lewm.data.episodes import (
    BLOCK_ROWS,
    EPISODE_TABLES,
    PIXELS,
    EpisodeFile,
    Source,
    make_pixels,
    numeric_digest,
    write_episodes,
)

PART_ROWS = 5_000
"""Frames of a part file: what a kill can lose."""

Rows = npt.NDArray[np.int64]


def repack(source: Source, folder: Path, advance: Callable[[int], None]) -> tuple[Path, str]:
    """Writes all columns of `source` to a new file of ours, verified frame by frame.

    Args:
        folder: for the unfinished job, of this source alone.
        advance: told how many more frames are verified; may raise to stop: the next call goes on.

    Returns:
        The finished file, alone in `folder`, for the caller to move to its place; and its content hash,
        computed on the source.

    Raises:
        ValueError: the source is broken, or what was written does not read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):
        torn.unlink()
    digest = numeric_digest(source)
    numbers = digest.hexdigest()
    files = []
    for rows in _blocks(np.arange(source.num_rows), PART_ROWS):
        files.append(folder / f"{rows[0]:09d}.h5")
        _ensure_part(source, files[-1], rows)
        for block in _blocks(rows, BLOCK_ROWS):
            digest.update(PIXELS, source.read(PIXELS, block))
        advance(rows.size)
    whole = folder / "whole.h5"
    moved = _assemble(source, whole, files)
    with EpisodeFile(whole) as written:
        if numeric_digest(written).hexdigest() != numbers or _stored_hash(whole) != moved:
            raise ValueError(f"{whole}: what was written does not read back; is the disk sound?")
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    return whole, digest.hexdigest()


def _blocks(rows: Rows, size: int) -> list[Rows]:
    return np.split(rows, range(size, rows.size, size))


def _ensure_part(source: Source, file: Path, rows: Rows) -> None:
    if file.exists() and _first_wrong(source, file, rows) is None:
        return
    blocks = _blocks(rows, BLOCK_ROWS)
    # an episode file wants actions; a part's are never read
    write_episodes(
        file,
        (
            {PIXELS: source.read(PIXELS, block), "action": np.zeros((block.size, 1), np.float32)}
            for block in blocks
        ),
    )
    wrong = _first_wrong(source, file, rows)
    if wrong is not None:
        raise ValueError(f"{file}: frame {wrong} does not read back as it is in the source")


def _first_wrong(source: Source, file: Path, rows: Rows) -> int | None:
    """The first row whose frame the part does not hold as the source does; None if it holds all."""
    try:
        with EpisodeFile(file) as part:
            for block in _blocks(rows, BLOCK_ROWS):
                theirs = source.read(PIXELS, block)
                same = (part.read(PIXELS, block - rows[0]) == theirs).all(axis=(1, 2, 3))
                if not same.all():
                    return int(block[np.argmin(same)])
    except ValueError:
        return int(rows[0])
    return None


def _assemble(source: Source, whole: Path, files: Sequence[Path]) -> str:
    """Moves the parts into one file with all columns; returns the hash of the stored chunks."""
    digest = hashlib.sha256()
    with h5py.File(whole, "w") as new:
        pixels = make_pixels(new, source.num_rows, source.image_size).id
        row = 0
        for file in files:
            with h5py.File(file) as part:
                for place in range(len(part[PIXELS])):
                    mask, stored = part[PIXELS].id.read_direct_chunk((place, 0, 0, 0))
                    pixels.write_direct_chunk((row, 0, 0, 0), stored, mask)
                    digest.update(stored)
                    row += 1
            file.unlink()
        for name in (*source.columns, *EPISODE_TABLES):
            if name != PIXELS:
                new.create_dataset(name, data=source.read(name))
    return digest.hexdigest()


def _stored_hash(whole: Path) -> str:
    digest = hashlib.sha256()
    with h5py.File(whole) as file:
        pixels = file[PIXELS]
        for row in range(len(pixels)):
            digest.update(pixels.id.read_direct_chunk((row, 0, 0, 0))[1])
    return digest.hexdigest()
