"""Frames of an episode file, one per chunk: LZ4, written once with care, read past HDF5.

A chunk is what HDF5's LZ4 filter (32004) writes, so any reader of the published layout with `hdf5plugin`
reads it; ours asks the file system for the chunk's bytes and decodes them itself, straight to where the frame
is wanted, many times faster and without holding the interpreter lock. Two layouts share this:

- `published`: the dataset `pixels`, each frame as it is.
- `packed`: where that takes less room, the dataset `pixels_xor` instead, each frame but an episode's first
  XORed with that first one. What stands still becomes zeros: Reacher's frames take a third. Under its own name
  no reader can mistake it for frames.
"""

import os
import struct
from pathlib import Path
from typing import Any, Literal, get_args

import cramjam
import h5py
import hdf5plugin
import lz4.block
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Frames = npt.NDArray[np.uint8]
Layout = Literal["packed", "published"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
PIXELS = "pixels"
PIXELS_XOR = "pixels_xor"
LEVEL = 5
"""Of LZ4-HC: a quarter to a third smaller than LZ4's default, decoded as fast."""
PAYS = 0.9
"""XOR is used where it leaves at most this share of the bytes."""
TRIED_FRAMES = 32

_HEADER = struct.Struct(">QII")
"""Bytes of the frame, of its one block, and of that block as stored."""


def xor_pays(frames_THWC: Frames) -> bool:
    """Whether an episode's frames take clearly less room XORed with its first."""
    rows = np.unique(np.linspace(0, len(frames_THWC) - 1, TRIED_FRAMES).astype(np.int64))[1:]
    tried, first = frames_THWC[rows], frames_THWC[0]
    plain, xored = (sum(map(len, map(_encode, version))) for version in (tried, tried ^ first))
    return xored < PAYS * plain


def _encode(frame_HWC: Frames) -> bytes:
    """The chunk of one frame, as HDF5's LZ4 filter stores it."""
    raw = np.ascontiguousarray(frame_HWC).reshape(-1)
    packed: bytes = lz4.block.compress(
        raw.data, mode="high_compression", compression=LEVEL, store_size=False
    )
    if len(packed) >= raw.size:  # the filter takes a block of full size as not compressed
        packed = raw.tobytes()
    return _HEADER.pack(raw.size, raw.size, len(packed)) + packed


def stored_form(frames_THWC: Frames, key_HWC: Frames | None, xored: bool) -> Frames:
    """What is stored of consecutive frames of an episode: themselves, or their difference from its first.

    Args:
        key_HWC: the episode's first frame; None if `frames_THWC` begin the episode.
    """
    if not xored:
        return frames_THWC
    if key_HWC is not None:
        return frames_THWC ^ key_HWC
    return np.concatenate([frames_THWC[:1], frames_THWC[1:] ^ frames_THWC[0]])


def frames_of(file: h5py.File) -> h5py.Dataset:
    """The dataset with a file's frames, whatever its layout.

    Raises:
        KeyError: there is none.
    """
    return file[PIXELS if PIXELS in file else PIXELS_XOR]


class FrameWriter:
    """Appends frames to a new file.

    Args:
        file: has no frames yet.
        xored: whether in the dataset `pixels_xor`.
    """

    def __init__(self, file: h5py.File, image_size: int, xored: bool) -> None:
        frame = (image_size, image_size, 3)
        self._xored = xored
        self._dataset = file.create_dataset(
            PIXELS_XOR if xored else PIXELS,
            shape=(0, *frame),
            maxshape=(None, *frame),
            chunks=(1, *frame),
            dtype=np.uint8,
            **hdf5plugin.LZ4(),
        )

    def append(self, frames_THWC: Frames, key_HWC: Frames | None = None) -> None:
        """Adds consecutive frames of an episode (see `stored_form`)."""
        stored = stored_form(frames_THWC, key_HWC, self._xored)
        self.append_chunks([_encode(frame) for frame in stored])

    def append_chunks(self, chunks: list[bytes]) -> None:
        """Adds frames that are encoded already."""
        begin = len(self._dataset)
        self._dataset.resize(begin + len(chunks), axis=0)
        for row, chunk in enumerate(chunks, start=begin):
            self._dataset.id.write_direct_chunk((row, 0, 0, 0), chunk, 0)


class FrameReader:
    """Reads frames of a file in any order; one reader serves many threads at once.

    Args:
        dataset: one that `reads` accepts; it may be closed afterwards.
        keys: (N,) for XORed frames, the row that each is the difference from, and itself for a key.
    """

    def __init__(
        self, path: Path, dataset: h5py.Dataset, keys: npt.NDArray[np.int64] | None
    ) -> None:
        self._places = np.zeros((dataset.shape[0], 2), dtype=np.int64)

        def note(chunk: Any) -> None:
            self._places[chunk.chunk_offset[0]] = chunk.byte_offset, chunk.size

        dataset.id.chunk_iter(note)
        self._frame_bytes = int(np.prod(dataset.shape[1:]))
        self._keys = keys
        self._file = path.open("rb", buffering=0)

    @staticmethod
    def reads(dataset: h5py.Dataset) -> bool:
        """Whether frames are stored as here: one per chunk, through HDF5's LZ4 filter alone."""
        filters = dataset.id.get_create_plist()
        return bool(
            dataset.chunks == (1, *dataset.shape[1:])
            and filters.get_nfilters() == 1
            and filters.get_filter(0)[0] == hdf5plugin.LZ4.filter_id
        )

    def read(self, rows: npt.NDArray[np.int64], out_NHWC: Frames) -> None:
        """Decodes the frames of some rows, in their order, into `out_NHWC`, contiguous.

        Raises:
            OSError: stored bytes that do not decode.
        """
        keys = rows if self._keys is None else self._keys[rows]
        known, key = -1, np.empty(self._frame_bytes, dtype=np.uint8)
        out = out_NHWC.reshape(len(rows), self._frame_bytes)
        for target, row, key_row in zip(out, rows.tolist(), keys.tolist(), strict=True):
            self.read_stored(row, target)
            if row == key_row:
                continue
            if key_row != known:
                known = key_row
                self.read_stored(key_row, key)
            np.bitwise_xor(target, key, out=target)

    def read_stored(self, row: int, out: Frames) -> None:
        """Decodes what is stored of a row's frame into `out`, flat and contiguous.

        Raises:
            OSError: stored bytes that do not decode.
        """
        offset, size = self._places[row].tolist()
        chunk = memoryview(os.pread(self._file.fileno(), size, offset))
        header = _HEADER.unpack_from(chunk) if size >= _HEADER.size else ()
        body = chunk[_HEADER.size :]
        if header != (self._frame_bytes, self._frame_bytes, len(body)):
            raise OSError(f"the chunk of row {row} is not one whole frame")
        if len(body) == self._frame_bytes:
            out[:] = np.frombuffer(body, dtype=np.uint8)
            return
        try:
            size = cramjam.lz4.decompress_block_into(body, out.data, output_len=self._frame_bytes)
        except cramjam.DecompressionError as error:
            raise OSError(f"the chunk of row {row}: {error}") from None
        if size != self._frame_bytes:
            raise OSError(f"the chunk of row {row} decodes to another size")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
