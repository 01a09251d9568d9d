"""Identity of episode files: hashes over their decoded columns, never over how they are stored."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from lewm.data.episodes import BLOCK_ROWS, EPISODE_TABLES, Array, EpisodeFile, Source
from lewm.data.frames import PIXELS

FINGERPRINT_FRAMES = 1000


class ColumnDigest:
    """SHA-256 over decoded columns: their names, types, row shapes and values, never their storage."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[str, Any]] = {}

    def update(self, name: str, values: Array) -> None:
        """Adds the next rows of a column; how rows are divided between calls does not matter."""
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        key = f"{name} {little.dtype.str} {values.shape[1:]}"
        known, digest = self._columns.setdefault(name, (key, hashlib.sha256()))
        if known != key:
            raise ValueError(f"column {name!r} changes from {known!r} to {key!r}")
        digest.update(little.data)

    def hexdigest(self) -> str:
        """Hash over all columns in the order of their names."""
        lines = [f"{key} {digest.hexdigest()}" for key, digest in self._columns.values()]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def content_hash(path: str | Path) -> str:
    """SHA-256 over the decoded arrays of an episode file; chunking and compression do not matter.

    Raises:
        ValueError: the file is broken (see `EpisodeFile`).
    """
    with EpisodeFile(path) as file:
        digest = numeric_digest(file)
        for start in range(0, file.num_rows, BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, file.num_rows))
            digest.update(PIXELS, file.read(PIXELS, rows))
        return digest.hexdigest()


def numeric_digest(source: Source) -> ColumnDigest:
    """The beginning of a content hash: all columns but `pixels`."""
    digest = ColumnDigest()
    for name in (*source.columns, *EPISODE_TABLES):
        if name != PIXELS:
            digest.update(name, source.read(name))
    return digest


def fingerprint(path: str | Path) -> str:
    """Identity of a named foreign file without reading all of it.

    SHA-256 over its size, the metadata of its columns, all numeric columns but `pixels`, and 1,000
    frames at fixed places.

    Raises:
        ValueError: the file is broken (see `EpisodeFile`).
    """
    with EpisodeFile(path) as file:
        return fingerprint_of(file, file.path.stat().st_size)


def fingerprint_of(source: Source, size: int) -> str:
    """`fingerprint` of what is open already and takes `size` bytes."""
    digest = numeric_digest(source)
    count = min(FINGERPRINT_FRAMES, source.num_rows)
    rows = np.linspace(0, source.num_rows - 1, count).astype(np.int64)
    for part in np.array_split(rows, math.ceil(count / BLOCK_ROWS)):
        digest.update(PIXELS, source.read(PIXELS, part))
    text = f"{size} {source.num_rows} {source.ep_len.size} {digest.hexdigest()}"
    return hashlib.sha256(text.encode()).hexdigest()
