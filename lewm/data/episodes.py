"""Episode files, read: HDF5 in the published layout, anyone's or ours, and in our packed one.

Published layout (facts §9.1): one dataset per column, first axis = the steps of all episodes one after
another; `ep_len` (E,) and `ep_offset` (E,); `pixels` (N, H, W, 3) uint8; `action` (N, A), where action[t]
leaves frame t and the last action of an episode is NaN; `episode_idx`, `ep_idx` or neither. Names of nested
groups are read with `_` for `/`. How frames are stored decides how fast they are reached: see
`lewm.data.frames`; `lewm.data.repack` rewrites a file.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import h5py
import numpy as np
import numpy.typing as npt

from lewm.config import Config
from lewm.data.frames import PIXELS, PIXELS_XOR, FrameReader

Array = npt.NDArray[Any]

INDEX_COLUMNS = ("episode_idx", "ep_idx")
EPISODE_TABLES = ("ep_len", "ep_offset")
FILLED_IN = (*INDEX_COLUMNS, *EPISODE_TABLES, "step_idx")
STATE_COLUMNS = ("state", "proprio", "qpos", "qvel", "observation")
"""Columns that must be finite throughout; others, such as `reward`, are often NaN at the ends."""
BLOCK_ROWS = 256
"""Frames handed to or asked from HDF5 at once."""


class Source(Protocol):
    """Whatever holds episodes as columns of rows: an `EpisodeFile`, or a reader of another format."""

    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    """Stored columns that are no numbers, and so are not read."""
    num_rows: int
    image_size: int
    ep_len: npt.NDArray[np.int64]
    ep_offset: npt.NDArray[np.int64]

    def read(self, column: str, rows: Array | Sequence[int] | None = None) -> Array:
        """Values of a column at the given rows, in their order; all rows by default."""
        ...


class EpisodeFile:
    """A readable, checked episode file; use as a context manager or keep it open.

    Args:
        path: file in the published layout, ours or foreign.

    Raises:
        ValueError: no such file, truncated, columns missing or misshapen, episodes that do not tile
            the rows, or a NaN among an episode's actions before its last (in other columns it is
            found when they are read).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"dataset {self.path}: no such file")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            reason = str(error).split("(")[-1].rstrip(")")
            raise ValueError(f"dataset {self.path}: truncated or not HDF5 ({reason})") from None
        self._cache: dict[str, Array] = {}
        self._frames: FrameReader | None = None
        try:
            self._datasets, self.left_out = _columns(self._file)
            xored = PIXELS not in self._datasets and PIXELS_XOR in self._datasets
            if xored:
                self._datasets[PIXELS] = self._datasets.pop(PIXELS_XOR)
            self._check()
            self._open_frames(xored)
        except BaseException:
            self._file.close()
            raise

    def _check(self) -> None:
        for name in (*EPISODE_TABLES, PIXELS, "action"):
            if name not in self._datasets:
                known = ", ".join(sorted(self._datasets)) or "none"
                raise self._wrong(f"no column {name!r}; it has {known}")
        self.ep_len = self._whole("ep_len").astype(np.int64)
        self.ep_offset = self._whole("ep_offset").astype(np.int64)
        pixels, action = self._datasets[PIXELS], self._datasets["action"]
        if pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
            raise self._wrong(f"pixels must be (rows, size, size, 3), got {pixels.shape}")
        if pixels.dtype != np.uint8:
            raise self._wrong(f"pixels must be uint8, got {pixels.dtype}")
        if action.ndim != 2 or action.dtype.kind != "f":
            raise self._wrong(f"action must be (rows, A) of floats, got {action.shape}")
        self.num_rows = int(pixels.shape[0])
        self.image_size, self.action_dim = int(pixels.shape[1]), int(action.shape[1])
        starts = np.concatenate(([0], np.cumsum(self.ep_len)))
        if self.ep_len.ndim != 1 or not self.ep_len.size or self.ep_len.min() < 1:
            raise self._wrong("ep_len must be a non-empty list of positive lengths")
        if starts[-1] != self.num_rows or not np.array_equal(starts[:-1], self.ep_offset):
            raise self._wrong(
                f"ep_len and ep_offset do not tile the {self.num_rows} rows of pixels"
            )
        self.columns = tuple(sorted(set(self._datasets) - set(EPISODE_TABLES)))
        for name in self.columns:
            if self._datasets[name].shape[:1] != (self.num_rows,):
                shape = self._datasets[name].shape
                raise self._wrong(f"column {name!r} has shape {shape}, not {self.num_rows} rows")
        self._check_rows(starts)

    def _check_rows(self, starts: Array) -> None:
        for name in set(INDEX_COLUMNS) & set(self.columns):
            index = self._whole(name).reshape(-1)
            within = np.delete(np.diff(index) != 0, starts[1:-1] - 1)
            if within.any() or np.unique(index[starts[:-1]]).size != self.num_episodes:
                raise self._wrong(f"column {name!r} disagrees with ep_len")
        check_finite(self.path, "action", self._whole("action"), self.ep_offset)

    def _open_frames(self, xored: bool) -> None:
        dataset = self._datasets[PIXELS]
        if FrameReader.reads(dataset):
            keys = np.repeat(self.ep_offset, self.ep_len) if xored else None
            self._frames = FrameReader(self.path, dataset, keys)
        elif xored:
            raise self._wrong(f"{PIXELS_XOR} must be one LZ4 chunk per frame")
        else:
            self.keep_decoded(0)

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"dataset {self.path}: {what}")

    @property
    def num_episodes(self) -> int:
        """E, the number of episodes."""
        return int(self.ep_len.size)

    def check_frame_size(self, config: Config) -> None:
        """Refuses frames of another size than the config says.

        Raises:
            ValueError: one line with both sizes and the ways out.
        """
        found, size = self.image_size, config.model.image_size
        if found != config.frame_size:
            raise ValueError(
                f"dataset {self.path} has frames of {found} px, {config.frame_size} are expected: "
                f"--set data.frame_size={found} has them resized to the model's {size} px"
            )

    def rows(self, episode: int) -> npt.NDArray[np.int64]:
        """The row numbers of an episode."""
        start = self.ep_offset[episode]
        return np.arange(start, start + self.ep_len[episode])

    def read(self, column: str, rows: Array | Sequence[int] | None = None) -> Array:
        """Values of a column at the given rows, in their order; all rows by default.

        Numeric columns are held in memory after the first use; of `pixels` only the chunks that hold
        the rows are decoded.

        Args:
            rows: integers of any shape R.

        Returns:
            Array of shape R + the column's row shape.

        Raises:
            ValueError: an unknown column, a row out of range, or stored bytes that do not decode.
        """
        if column != PIXELS:
            values = self._whole(column)
            return values if rows is None else values[self._checked(rows)]
        chosen = np.arange(self.num_rows) if rows is None else self._checked(rows)
        frames = np.empty((*chosen.shape, *self.frame_shape), dtype=np.uint8)
        self.read_frames(chosen, frames)
        return frames

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def read_frames(self, rows: Array, out: npt.NDArray[np.uint8]) -> None:
        """Decodes frames to where they are wanted.

        Args:
            rows: integers of any shape R.
            out: R + (H, W, 3), contiguous.

        Raises:
            ValueError: a row out of range, or stored bytes that do not decode.
        """
        chosen = self._checked(rows).reshape(-1)
        flat = out.reshape(-1, *self.frame_shape)
        try:
            if self._frames is not None:
                self._frames.read(chosen, flat)
            elif chosen.size:
                self._read_chunks(chosen, flat)
        except (OSError, RuntimeError) as error:
            raise self._wrong(f"frames do not decode ({str(error).splitlines()[0]})") from None

    def _checked(self, rows: Array | Sequence[int]) -> Array:
        chosen = np.asarray(rows, dtype=np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.num_rows:
            raise self._wrong(f"rows must be within 0..{self.num_rows - 1}")
        return chosen

    def _read_chunks(self, rows: Array, frames: Array) -> None:
        """Reads through HDF5, runs of adjoining rows, ascending, so that HDF5 decodes each chunk once."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        adjoining = (np.diff(ascending) == 1) & (np.diff(order) == 1)
        starts = np.concatenate(([0], np.flatnonzero(~adjoining) + 1))
        lengths = np.diff(np.append(starts, rows.size)).tolist()
        stored = self._dataset(PIXELS).id
        space = stored.get_space()
        in_memory = {n: h5py.h5s.create_simple((n, *frames.shape[1:])) for n in set(lengths)}
        runs = zip(ascending[starts].tolist(), order[starts].tolist(), lengths, strict=True)
        for row, place, length in runs:
            space.select_hyperslab((row, 0, 0, 0), (length, *frames.shape[1:]))
            stored.read(in_memory[length], space, frames[place : place + length])

    def keep_decoded(self, num_rows: int) -> None:
        """Holds the chunks of about `num_rows` frames decoded between reads, the oldest going first.

        The chunks of the last frame always are; 0 goes back to that.
        """
        if self._frames is not None or self._datasets[PIXELS].chunks is None:
            return
        dataset = self._datasets.pop(PIXELS)
        name, chunk, access = dataset.name.encode(), dataset.chunks, dataset.id.get_access_plist()
        counts = [math.ceil(size / part) for size, part in zip(dataset.shape, chunk, strict=True)]
        # HDF5 evicts on a collision of its hash, which a slot for every chunk rules out
        slots = math.prod(1 << (count - 1).bit_length() for count in counts)
        num_chunks = (math.ceil(num_rows / chunk[0]) + 2) * math.prod(counts[1:])
        slots = slots if num_rows else min(slots, 4096)
        access.set_chunk_cache(slots, num_chunks * math.prod(chunk), 0.0)
        del dataset  # an open one would keep the cache it was opened with
        self._datasets[PIXELS] = h5py.Dataset(h5py.h5d.open(self._file.id, name, access))

    def _dataset(self, column: str) -> Any:
        if column not in self._datasets:
            raise self._wrong(f"no column {column!r}; it has {', '.join(self.columns)}")
        return self._datasets[column]

    def _whole(self, column: str) -> Array:
        if column not in self._cache:
            try:
                values = np.asarray(self._dataset(column)[()])
            except (OSError, RuntimeError) as error:
                first = str(error).splitlines()[0]
                raise self._wrong(f"column {column!r} does not decode ({first})") from None
            if column in STATE_COLUMNS:
                check_finite(self.path, column, values, self.ep_offset)
            values.setflags(write=False)
            self._cache[column] = values
        return self._cache[column]

    def episodes(self) -> Iterator[dict[str, Array]]:
        """Every episode with all its columns, in order."""
        for episode in range(self.num_episodes):
            rows = self.rows(episode)
            yield {name: self.read(name, rows) for name in self.columns}

    def close(self) -> None:
        """Closes the file; columns already read stay usable."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _columns(file: h5py.File) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Every dataset of numbers by its flat name, and the names of the others."""
    found: dict[str, Any] = {}
    others: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            flat = name.replace("/", "_")
            if item.ndim and item.dtype.kind in "biuf":
                found[flat] = item
            else:
                others.append(flat)

    file.visititems(visit)
    return found, tuple(sorted(others))


def check_finite(path: Path, column: str, values: Array, ep_offset: Array) -> None:
    """Refuses a column with a NaN or an infinite number; an episode's last action may have one.

    Raises:
        ValueError: names the episode and the step.
    """
    bad = np.array(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if column == "action":
        bad[np.append(ep_offset[1:], len(values)) - 1] = False
    if bad.any():
        row = int(np.argmax(bad))
        episode = int(np.searchsorted(ep_offset, row, side="right")) - 1
        step = row - int(ep_offset[episode])
        hint = "; only an episode's last may be NaN" if column == "action" else ""
        raise ValueError(
            f"dataset {path}: {column} of episode {episode}, step {step} is not finite{hint}"
        )
