"""Rewrites episodes once, in the layout asked for, so that any clip is quick to reach (`lewm.data.frames`).

Frames first go into part files, each compared with the source frame by frame, so that a killed job goes
on after the last of them. Then their compressed chunks are moved, as they are, into the new file: its
bytes are the same however often the job was killed. A part is removed once it is moved, so the disk
never holds two copies; a job killed while moving makes the missing parts again.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from lewm.data.digest import numeric_digest
from lewm.data.episodes import BLOCK_ROWS, EPISODE_TABLES, EpisodeFile, Source
from lewm.data.frames import (
    PIXELS,
    PIXELS_XOR,
    FrameReader,
    Frames,
    FrameWriter,
    Layout,
    frames_of,
    stored_form,
    xor_pays,
)

PART_ROWS = 5_000
"""Frames of a part file: what a kill can lose."""

Rows = npt.NDArray[np.int64]


def repack(
    source: Source, folder: Path, advance: Callable[[int], None], layout: Layout = "packed"
) -> tuple[Path, str]:
    """Writes all columns of `source` to a new file of ours, verified frame by frame.

    Args:
        folder: for the unfinished job, of this source and layout alone.
        advance: told how many more frames are verified; may raise to stop: the next call goes on.
        layout: `packed` XORs frames where that takes less room with the first episode.

    Returns:
        The finished file, alone in `folder`, for the caller to move to its place; and its content hash,
        computed on the source.

    Raises:
        ValueError: the source is broken, or what was written does not read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):
        torn.unlink()
    first = source.read(PIXELS, np.arange(min(int(source.ep_len[0]), BLOCK_ROWS)))
    xored = layout == "packed" and xor_pays(first)
    digest = numeric_digest(source)
    numbers = digest.hexdigest()
    files = []
    for rows in _blocks(np.arange(source.num_rows), PART_ROWS):
        files.append(folder / f"{rows[0]:09d}.h5")
        _ensure_part(source, files[-1], rows, xored)
        for block in _blocks(rows, BLOCK_ROWS):
            digest.update(PIXELS, source.read(PIXELS, block))
        advance(rows.size)
    whole = folder / "whole.h5"
    moved = _assemble(source, whole, files, xored)
    with EpisodeFile(whole) as written:
        if numeric_digest(written).hexdigest() != numbers or _stored_hash(whole) != moved:
            raise ValueError(f"{whole}: what was written does not read back; is the disk sound?")
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    return whole, digest.hexdigest()


def _blocks(rows: Rows, size: int) -> list[Rows]:
    return np.split(rows, range(size, rows.size, size))


def _ensure_part(source: Source, file: Path, rows: Rows, xored: bool) -> None:
    if file.exists() and _first_wrong(source, file, rows, xored) is None:
        return
    temp = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    with h5py.File(temp, "w") as part:
        writer = FrameWriter(part, source.image_size, xored)
        for frames, key in _pieces(source, rows):
            writer.append(frames, key)
    temp.replace(file)
    wrong = _first_wrong(source, file, rows, xored)
    if wrong is not None:
        raise ValueError(f"{file}: frame {wrong} does not read back as it is in the source")


def _pieces(source: Source, rows: Rows) -> Iterator[tuple[Frames, Frames | None]]:
    """Frames of one episode each, and its first frame if that is not among them."""
    episodes = np.searchsorted(source.ep_offset, rows, side="right") - 1
    ends = np.flatnonzero(np.diff(episodes)) + 1
    for run in np.split(np.arange(rows.size), ends):
        first = int(source.ep_offset[episodes[run[0]]])
        for block in _blocks(rows[run], BLOCK_ROWS):
            key = None if block[0] == first else source.read(PIXELS, [first])[0]
            yield source.read(PIXELS, block), key


def _first_wrong(source: Source, file: Path, rows: Rows, xored: bool) -> int | None:
    """The first row whose frame the part does not hold as the source does; None if it holds all."""
    row = 0
    try:
        with h5py.File(file) as opened:
            part = frames_of(opened)
            reader = FrameReader(file, part, None)
            if len(part) != rows.size or part.name != f"/{PIXELS_XOR if xored else PIXELS}":
                return int(rows[0])
        for frames, key in _pieces(source, rows):
            found = np.empty(frames[0].size, dtype=np.uint8)
            for frame in stored_form(frames, key, xored).reshape(len(frames), -1):
                reader.read_stored(row, found)
                if not np.array_equal(found, frame):
                    return int(rows[row])
                row += 1
    except (OSError, KeyError):
        return int(rows[row])
    return None


def _assemble(source: Source, whole: Path, files: Sequence[Path], xored: bool) -> str:
    """Moves the parts into one file with all columns; returns the hash of the stored chunks."""
    digest = hashlib.sha256()
    with h5py.File(whole, "w") as new:
        writer = FrameWriter(new, source.image_size, xored)
        for file in files:
            with h5py.File(file) as opened:
                part = frames_of(opened)
                for row in range(len(part)):
                    chunk = part.id.read_direct_chunk((row, 0, 0, 0))[1]
                    writer.append_chunks([chunk])
                    digest.update(chunk)
            file.unlink()
        for name in (*source.columns, *EPISODE_TABLES):
            if name != PIXELS:
                new.create_dataset(name, data=source.read(name))
    return digest.hexdigest()


def _stored_hash(whole: Path) -> str:
    digest = hashlib.sha256()
    with h5py.File(whole) as file:
        pixels = frames_of(file)
        for row in range(len(pixels)):
            digest.update(pixels.id.read_direct_chunk((row, 0, 0, 0))[1])
    return digest.hexdigest()
