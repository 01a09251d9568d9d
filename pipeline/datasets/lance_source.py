"""Lance copies of the published datasets, read as episodes; needs the extra `lewm-sweep[lance]`.

One row per step with int32 `episode_idx` and `step_idx`, frames as JPEG in the binary column `pixels`,
all else as float32 lists (facts §9.2). JPEG is not exact and slow to read at random, so nothing trains
on it: `pipeline.collect --repack` makes an HDF5 file of it once.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from lewm.data.episodes import STATE_COLUMNS, check_finite
from lewm.data.frames import PIXELS

Array = npt.NDArray[Any]


def is_lance(path: Path) -> bool:
    """Whether a path is meant as a Lance dataset: a folder, or a name that ends in `.lance`."""
    return path.is_dir() or path.suffix == ".lance"


class LanceSource:
    """A Lance dataset as a `lewm.data.episodes.Source`, its rows ordered by episode and step.

    Args:
        path: the `.lance` folder.

    Raises:
        ValueError: Lance is not installed (names the extra), no such dataset, columns missing or of
            unknown types, steps missing, or a NaN among an episode's actions before its last.
    """

    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    ep_len: npt.NDArray[np.int64]
    ep_offset: npt.NDArray[np.int64]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = self._open()
        schema = self._table.schema
        numbers = [field.name for field in schema if _is_number(field.type)]
        images = [field.name for field in schema if pa.types.is_binary(field.type)]
        images += [field.name for field in schema if pa.types.is_large_binary(field.type)]
        for name in ("episode_idx", "step_idx", "action", PIXELS):
            if name not in (images if name == PIXELS else numbers):
                kind = "images" if name == PIXELS else "numbers"
                raise self._wrong(f"no column {name!r} of {kind}; it has {', '.join(schema.names)}")
        self.columns = tuple(sorted({*numbers, PIXELS}))
        self.left_out = tuple(sorted(set(schema.names) - set(self.columns)))
        self.num_rows = int(self._table.count_rows())
        if not self.num_rows:
            raise self._wrong("it has no rows")
        self._cache: dict[str, Array] = {}
        self._find_episodes()
        first = self._table.take([int(self._order[0])], columns=[PIXELS])[PIXELS][0].as_py()
        height, width, _ = self._decode(first, 0).shape
        if height != width:
            raise self._wrong(f"frames must be square, got {width}x{height}")
        self.image_size = height

    def _open(self) -> Any:
        try:
            import lance
        except ImportError:
            raise ValueError(
                f"dataset {self.path} needs Lance, which is not installed: "
                "pip install 'lewm-sweep[lance]'"
            ) from None
        try:
            return lance.dataset(str(self.path))
        except (ValueError, OSError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise self._wrong(f"not a Lance dataset ({reason})") from None

    def _find_episodes(self) -> None:
        episode, step = (self._stored(name) for name in ("episode_idx", "step_idx"))
        self._order = np.lexsort((step, episode))
        episode, step = episode[self._order], step[self._order]
        starts = np.flatnonzero(np.diff(episode, prepend=episode[0] - 1))
        self.ep_offset = starts.astype(np.int64)
        self.ep_len = np.diff(np.append(starts, self.num_rows)).astype(np.int64)
        expected = np.arange(self.num_rows) - np.repeat(starts, self.ep_len)
        odd = np.flatnonzero(step != expected)
        if odd.size:
            where = f"episode {episode[odd[0]]}, step {expected[odd[0]]}"
            raise self._wrong(f"{where} is missing or there twice")
        check_finite(self.path, "action", self.read("action"), self.ep_offset)

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"dataset {self.path}: {what}")

    def read(self, column: str, rows: Array | Sequence[int] | None = None) -> Array:
        """See `Source.read`; rows (R,) only. Lists of floats become (R, k), scalars (R,)."""
        if column == PIXELS:
            return self._frames(np.arange(self.num_rows) if rows is None else np.asarray(rows))
        if column not in self._cache:
            if column in ("ep_len", "ep_offset"):
                table = self.ep_len.astype(np.int32) if column == "ep_len" else self.ep_offset
                self._cache[column] = table
            else:
                values = self._stored(column)[self._order]
                if column in STATE_COLUMNS:
                    check_finite(self.path, column, values, self.ep_offset)
                self._cache[column] = values
        values = self._cache[column]
        return values if rows is None else values[np.asarray(rows)]

    def _stored(self, column: str) -> Array:
        """A whole column of numbers, in the order of the table."""
        values = self._table.to_table(columns=[column])[column].combine_chunks()
        if values.null_count:
            raise self._wrong(f"column {column!r} has {values.null_count} empty values")
        if pa.types.is_fixed_size_list(values.type):
            flat = values.flatten().to_numpy(zero_copy_only=False)
            return flat.reshape(self.num_rows, values.type.list_size)
        return np.asarray(values.to_numpy(zero_copy_only=False))

    def _frames(self, rows: Array) -> npt.NDArray[np.uint8]:
        """The frames (R, H, W, 3) of rows."""
        stored = self._table.take(self._order[rows].tolist(), columns=[PIXELS])[PIXELS]
        frames = np.empty((rows.size, self.image_size, self.image_size, 3), np.uint8)
        for place, row in enumerate(rows.tolist()):
            frame = self._decode(stored[place].as_py(), row)
            if frame.shape != frames.shape[1:]:
                raise self._wrong(
                    f"row {row} has a frame of {frame.shape[1]}x{frame.shape[0]} px, the first is "
                    f"{self.image_size}x{self.image_size}"
                )
            frames[place] = frame
        return frames

    def _decode(self, jpeg: bytes | None, row: int) -> npt.NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(jpeg or b"")) as image:
                return np.asarray(image.convert("RGB"))
        except OSError:
            raise self._wrong(f"row {row}: its frame is not an image") from None

    def close(self) -> None:
        """Nothing stays open."""


def _is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a number or a fixed-size list of them."""
    inner = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(inner) for test in tests)
