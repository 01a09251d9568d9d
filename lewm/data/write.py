"""Writes episode files: one frame per chunk, LZ4, in the layout asked for (`lewm.data.frames`)."""

import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from lewm.data.digest import ColumnDigest
from lewm.data.episodes import FILLED_IN, Array
from lewm.data.frames import PIXELS, FrameWriter, Layout, xor_pays


def write_episodes(
    path: str | Path, episodes: Iterable[Mapping[str, Array]], layout: Layout = "packed"
) -> str:
    """Writes episodes to a new file, atomically.

    `episode_idx`, `step_idx`, `ep_len` and `ep_offset` are filled in; columns of these names are
    ignored.

    Args:
        episodes: each a mapping of column name to an array with one row per step, `pixels`
            (T, size, size, 3) uint8 and `action` (T, A) among them; all alike in columns and types.
        layout: `packed` XORs frames where that takes less room with the first episode.

    Returns:
        The content hash of the file; the layout has no part in it.

    Raises:
        ValueError: no episodes, or episodes that differ in columns, types or row shapes.
    """
    target = Path(path)
    temp = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with h5py.File(temp, "w") as file:
            digest = _write(file, episodes, layout)
        with temp.open("rb") as written:
            os.fsync(written.fileno())
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)
    return digest


def _write(file: h5py.File, episodes: Iterable[Mapping[str, Array]], layout: Layout) -> str:
    digest = ColumnDigest()
    numeric: dict[str, list[Array]] = {}
    lengths: list[int] = []
    writer: FrameWriter | None = None
    for number, episode in enumerate(episodes):
        columns = {k: np.asarray(v) for k, v in episode.items() if k not in FILLED_IN}
        length = len(columns["action"])
        columns["episode_idx"] = np.full(length, number, dtype=np.int64)
        columns["step_idx"] = np.arange(length, dtype=np.int64)
        frames = columns.pop(PIXELS)
        if numeric and set(columns) != set(numeric):
            raise ValueError(f"episode {number} has other columns than the first")
        if any(len(values) != length for values in (frames, *columns.values())):
            raise ValueError(f"episode {number}: its columns differ in length")
        digest.update(PIXELS, frames)
        for name, values in columns.items():
            digest.update(name, values)
            numeric.setdefault(name, []).append(values)
        if writer is None:
            xored = layout == "packed" and xor_pays(frames)
            writer = FrameWriter(file, frames.shape[1], xored)
        writer.append(frames)
        lengths.append(length)
    if not lengths:
        raise ValueError("no episodes to write")
    offsets = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
    tables: dict[str, Array] = {"ep_len": np.array(lengths, dtype=np.int32), "ep_offset": offsets}
    for name, table in tables.items():
        digest.update(name, table)
        file.create_dataset(name, data=table)
    for name, rows in numeric.items():
        file.create_dataset(name, data=np.concatenate(rows))
    return digest.hexdigest()
