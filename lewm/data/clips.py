"""Clips for training: a few frames at a stride with the blocks of actions between them.

A clip that starts at row s holds frames s, s + k, s + 2k ... and the actions of rows s .. s + T k - 1
in T blocks of k = `data.action_block` (paper App. D; facts §3). Actions are z-scored per dimension
and environment step before blocks are formed; a missing last action becomes 0 afterwards.

Shapes: B batch, T frames of a clip, H W image, A action block (k times the environment's action).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lewm.config import Config
from lewm.data.episodes import EpisodeFile
from lewm.data.frames import PIXELS
from lewm.methods import Batch

Array = npt.NDArray[Any]
Part = Literal["train", "val"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LOAD_ROWS = 2048
"""Frames decoded at once when a part is loaded into memory."""
BLOCK_ROWS = 100
"""Rows of a block with `data.shuffle = "block"`: a chunk of the published files."""
MIXED_BLOCKS = 32
"""Blocks whose clips are mixed with each other: over 2,000 clips from all over the file."""


def split_episodes(
    num_episodes: int, holdout_frac: float, split_seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(train, held-out) episode numbers, ascending; the training seed has no part in it.

    Raises:
        ValueError: fewer than two episodes, so that one part would be empty.
    """
    if num_episodes < 2:
        raise ValueError(f"a split into train and held-out needs 2 episodes, got {num_episodes}")
    count = min(max(round(num_episodes * holdout_frac), 1), num_episodes - 1)
    order = np.random.default_rng(split_seed).permutation(num_episodes)
    return np.sort(order[count:]), np.sort(order[:count])


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Per-dimension z-score of environment actions.

    Attributes:
        mean: (A,) float32, in the environment's action unit.
        std: (A,) float32, positive.
    """

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, actions: Array) -> Self:
        """Fitted to actions (N, A); rows with a NaN are left out.

        Raises:
            ValueError: no complete row, or a dimension that never varies.
        """
        rows = np.asarray(actions, dtype=np.float64)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            raise ValueError("no finite actions to fit the normaliser to")
        std = rows.std(axis=0)
        if not (std > 0).all():
            raise ValueError(f"action dimension {int(np.argmin(std))} is constant over all rows")
        return cls(rows.mean(axis=0).astype(np.float32), std.astype(np.float32))

    def apply(self, actions: Array) -> npt.NDArray[np.float32]:
        """Z-scores of actions (..., A)."""
        return ((np.asarray(actions, dtype=np.float32) - self.mean) / self.std).astype(np.float32)

    def invert(self, scores: Array) -> npt.NDArray[np.float32]:
        """Actions (..., A) in the environment's unit from z-scores."""
        return (np.asarray(scores, dtype=np.float32) * self.std + self.mean).astype(np.float32)

    def to_dict(self) -> dict[str, list[float]]:
        """JSON data."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Self:
        """The inverse of `to_dict`, exactly."""
        return cls(np.array(data["mean"], np.float32), np.array(data["std"], np.float32))


class ClipData:
    """The clips of one part of an episode file.

    With `data.split = "episode"` whole episodes are held out; with `"clip"` (the publication's) clips
    are, so that the parts overlap. The normaliser is fitted to the train episodes' actions (with a
    clip split: to all).

    Frames that are not in memory are read for each `get`. With `data.shuffle = "block"` the chunks they
    come from stay decoded: up to twice `MIXED_BLOCKS` blocks (1 GB at 224 px).

    Args:
        file: stays open as long as this lives, unless its frames are in memory.
        part: `train` or `val`.

    Raises:
        ValueError: frames of another size than the config says, or no episode as long as a clip.
    """

    normaliser: Normaliser
    fitted_rows: npt.NDArray[np.bool_]
    """Rows of the file (N,) that the normaliser is fitted to."""
    image_size: int
    """Pixels per side that the model sees."""
    in_memory: bool
    """Whether the part's frames are held decoded; they are if they fit `run.pixels_in_memory_gb`."""
    proprio: Tensor | None
    """Of every row of the file (N, Q), if batches shall have it."""

    def __init__(self, file: EpisodeFile, config: Config, part: Part) -> None:
        file.check_frame_size(config)
        self.image_size = config.model.image_size
        self._file = file
        self.proprio: Tensor | None = None
        self._codes: npt.NDArray[np.float16] | None = None
        self.num_frames = config.model.history + 1
        self.block = config.data.action_block
        self.starts = self._find_starts(config, part)
        if not len(self.starts):
            raise ValueError(
                f"dataset {file.path}: no {part} episode has the {self.span} steps of a clip"
            )
        scores = self.normaliser.apply(file.read("action"))
        self._actions = torch.from_numpy(np.nan_to_num(scores, copy=False, nan=0.0))
        self._shuffle = config.data.shuffle
        self._load_frames(config.run.pixels_in_memory_gb)
        if self._shuffle == "block" and not self.in_memory and part == "train":
            file.keep_decoded(2 * MIXED_BLOCKS * BLOCK_ROWS)

    @property
    def span(self) -> int:
        """Rows that a clip covers."""
        return self.num_frames * self.block

    @property
    def action_width(self) -> int:
        """A, the width of an action block."""
        return self.block * self._file.action_dim

    def __len__(self) -> int:
        return len(self.starts)

    def _find_starts(self, config: Config, part: Part) -> npt.NDArray[np.int64]:
        file, data = self._file, config.data
        every = np.arange(file.num_episodes)
        if data.split == "episode":
            train, held_out = split_episodes(file.num_episodes, data.holdout_frac, data.split_seed)
            self._fit(train)
            return self._clips_of(train if part == "train" else held_out)
        self._fit(every)
        starts = self._clips_of(every)
        train, held_out = split_episodes(len(starts), data.holdout_frac, data.split_seed)
        return starts[train if part == "train" else held_out]

    def _fit(self, episodes: Array) -> None:
        file = self._file
        self.fitted_rows = np.repeat(np.isin(np.arange(file.num_episodes), episodes), file.ep_len)
        self.normaliser = Normaliser.fit(file.read("action")[self.fitted_rows])

    def _clips_of(self, episodes: Array) -> npt.NDArray[np.int64]:
        """First rows of every clip of the episodes, ascending."""
        spare = self._file.ep_len[episodes] - self.span + 1
        parts = [
            np.arange(first, first + count)
            for first, count in zip(self._file.ep_offset[episodes], spare, strict=True)
            if count > 0
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _load_frames(self, limit_gb: float) -> None:
        file = self._file
        used = np.zeros(file.num_rows, dtype=bool)
        for frame in range(self.num_frames):
            used[self.starts + frame * self.block] = True
        rows = np.flatnonzero(used)
        size = file.image_size
        self.in_memory = rows.size * 3 * size * size <= limit_gb * 1e9
        if not self.in_memory:
            return
        self._place = np.full(file.num_rows, -1, dtype=np.int64)
        self._place[rows] = np.arange(rows.size)
        self._frames_NCHW = torch.empty((rows.size, 3, size, size), dtype=torch.uint8)
        for first in range(0, rows.size, LOAD_ROWS):
            frames = file.read(PIXELS, rows[first : first + LOAD_ROWS])
            self._frames_NCHW[first : first + LOAD_ROWS] = torch.from_numpy(frames).movedim(-1, 1)

    def order(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """The order of an epoch: every clip once.

        With `data.shuffle = "full"` each order is equally likely. With `"block"` the blocks of
        `BLOCK_ROWS` rows are shuffled, and then the clips within every `MIXED_BLOCKS` of them: a batch
        comes from few places of the file, so that each of its chunks is decoded about once per epoch.
        """
        if self._shuffle == "full":
            return rng.permutation(len(self))
        firsts = np.flatnonzero(np.diff(self.starts // BLOCK_ROWS, prepend=-1))
        blocks = np.split(np.arange(len(self)), firsts[1:])
        chosen = rng.permutation(len(blocks))
        return np.concatenate(
            [
                rng.permutation(np.concatenate([blocks[i] for i in chosen[at : at + MIXED_BLOCKS]]))
                for at in range(0, len(chosen), MIXED_BLOCKS)
            ]
        )

    def rows(self, indices: Array) -> npt.NDArray[np.int64]:
        """File rows (B, T) of the frames of the clips."""
        steps = np.arange(self.num_frames) * self.block
        return self.starts[np.asarray(indices, dtype=np.int64)][:, None] + steps

    def get(self, indices: Array) -> tuple[Tensor, Tensor]:
        """Clips by number.

        Args:
            indices: (B,) integers in 0 .. len - 1.

        Returns:
            Frames (B, T, 3, H, W) uint8, not necessarily contiguous (see `prepare_frames`), and
            z-scored actions (B, T, A) float32 without NaN.
        """
        rows_BT = self.rows(indices)
        return self._frames(rows_BT, self.make_buffer(len(rows_BT))), self._action_blocks(rows_BT)

    def use_codes(self, codes: npt.NDArray[np.float16]) -> None:
        """From now on batches have these codes (N, P, C) of the file's rows, and no frames."""
        self._codes = codes
        if self.in_memory:
            self.in_memory = False
            del self._frames_NCHW

    def make_buffer(self, num_clips: int, pinned: bool = False) -> Tensor:
        """Memory for the frames of that many clips, to be filled again and again."""
        size = self._file.image_size
        frame = (3, size, size) if self.in_memory else (size, size, 3)
        shape = (0,) if self._codes is not None else (num_clips, self.num_frames, *frame)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)

    def load(self, indices: Array, buffer: Tensor) -> Batch:
        """Clips by number as a batch, frames still uint8, with whatever else was asked for.

        Args:
            buffer: of `make_buffer` for as many clips or more; the frames are a view of it.
        """
        rows_BT = self.rows(indices)
        proprio = None if self.proprio is None else self.proprio[torch.from_numpy(rows_BT)]
        if self._codes is None:
            frames = self._frames(rows_BT, buffer[: len(rows_BT)])
            return Batch(frames, self._action_blocks(rows_BT), proprio)
        codes = torch.from_numpy(self._codes[rows_BT])
        none = torch.empty((*rows_BT.shape, 3, 0, 0), dtype=torch.uint8)
        return Batch(none, self._action_blocks(rows_BT), proprio, codes)

    def _frames(self, rows_BT: Array, buffer: Tensor) -> Tensor:
        if self.in_memory:
            places = torch.from_numpy(self._place[rows_BT].reshape(-1))
            torch.index_select(self._frames_NCHW, 0, places, out=buffer.flatten(0, 1))
            return buffer
        self._file.read_frames(rows_BT, buffer.numpy())
        return buffer.movedim(-1, -3)

    def _action_blocks(self, rows_BT: Array) -> Tensor:
        action_rows = torch.from_numpy(rows_BT[:, :1] + np.arange(self.span))
        return self._actions[action_rows].reshape(*rows_BT.shape, self.action_width)


def prepare_frames(frames: Tensor, size: int | None = None) -> Tensor:
    """Float32 model input from uint8 frames: /255, then ImageNet mean and std, then another size.

    On the frames' device, which does faster what would hold up their loading.

    Args:
        frames: (N, ..., 3, H, W), contiguous or not.
        size: pixels per side of what is returned (see `resize`); None: as they are.

    Returns:
        (N, ..., 3, size, size), contiguous.
    """
    mean, std = _imagenet(frames.device)
    prepared = torch.div(frames.contiguous(), 255.0).sub_(mean).div_(std)
    if size is None or frames.shape[-1] in (0, size):
        return prepared
    return resize(prepared.flatten(0, -4), size).reshape(*frames.shape[:-2], size, size)


def resize(images_NCHW: Tensor, size: int) -> Tensor:
    """Float images at another size, bilinear with antialiasing."""
    return F.interpolate(images_NCHW, (size, size), mode="bilinear", antialias=True)


@lru_cache
@torch.inference_mode(False)
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and std (3, 1, 1), made once: an accelerator waits for what comes from a list."""
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device).reshape(2, 3, 1, 1)
    return mean, std
