"""A trained trial in memory, and the frames and embeddings that stages draw from it.

Randomness comes from fixed integers and the eval seed, never from the training seed, and frames are
encoded in padded batches of one size, so that no row depends on how many there are.

Shapes: N frames, C clips, T time, D latent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lewm.config import Config
from lewm.control import Agent
from lewm.data.clips import Normaliser, prepare_frames, split_episodes
from lewm.data.episodes import EpisodeFile
from lewm.methods import Method
from lewm.protocol import Manifest

Array = npt.NDArray[Any]

LAYERS = {"encoder": "cls", "projected": "z"}
"""Value of the column `layer` → key of `Method.encode`."""

BATCH = 64
"""Frames encoded at a time; the last batch is padded to it."""


@dataclass(frozen=True)
class LoadedTrial:
    """A trained trial in memory, shared by all of its stages.

    Attributes:
        method: on `device`, in evaluation mode.
        normaliser: of actions, fitted on the train split.
        episodes: the data file the trial was trained on.
        manifests: by (protocol, eval_seed); only planning reads them.
    """

    config: Config
    method: Method
    normaliser: Normaliser
    episodes: EpisodeFile
    device: torch.device
    manifests: Mapping[tuple[str, int], Manifest]

    @property
    def agent(self) -> Agent:
        """The trained model as a planner uses it."""
        return Agent(
            self.method,
            self.normaliser,
            self.device,
            self.config.model.image_size,
            self.config.data.render_quality,
        )


def draw_rows(trial: LoadedTrial, part: str, span: int, count: int, stream: int) -> Array:
    """Up to `count` start rows of windows of `span` rows within one episode, uniform, none twice.

    The draw depends on the data and on `stream` only, and its first n rows never on `count`.

    Args:
        part: "train" or "held_out" episodes, split as for training. (With `data.split = "clip"`, the
            publication's split, training has seen clips of the held-out episodes too.)
        span: rows of the window, the start included.
        stream: a fixed integer per use.

    Raises:
        ValueError: no episode of the part is long enough.
    """
    data, file = trial.config.data, trial.episodes
    train, held_out = split_episodes(file.num_episodes, data.holdout_frac, data.split_seed)
    starts = [
        np.arange(
            file.ep_offset[episode], file.ep_offset[episode] + file.ep_len[episode] - span + 1
        )
        for episode in sorted(train if part == "train" else held_out)
    ]
    rows = np.concatenate([np.empty(0, dtype=np.int64), *starts])
    if not len(rows):
        raise ValueError(f"{file.path}: no {part} episode has {span} rows")
    order = np.random.default_rng(np.random.SeedSequence((stream, data.split_seed)))
    return order.permutation(rows)[:count]


def clip_rows(trial: LoadedTrial, starts: Array, num_frames: int) -> Array:
    """(C, T) rows of the frames of clips, `data.action_block` rows apart."""
    return starts[:, None] + trial.config.data.action_block * np.arange(num_frames)


def embed_rows(trial: LoadedTrial, rows: Array) -> dict[str, Tensor]:
    """Embeddings of stored frames by layer: (*rows.shape, D) float32 on the CPU."""
    flat = rows.reshape(-1)
    out = _embed(trial, len(flat), lambda part: trial.episodes.read("pixels", flat[part]))
    return {layer: x.reshape(*rows.shape, -1) for layer, x in out.items()}


def embed_frames(trial: LoadedTrial, frames: Array) -> dict[str, Tensor]:
    """Embeddings of frames (..., H, W, 3) uint8 by layer: (..., D) float32 on the CPU."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    out = _embed(trial, len(flat), lambda part: flat[part])
    return {layer: x.reshape(*frames.shape[:-3], -1) for layer, x in out.items()}


def _embed(trial: LoadedTrial, num: int, read: Callable[[slice], Array]) -> dict[str, Tensor]:
    batches: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    for begin in range(0, num, BATCH):
        frames = torch.from_numpy(read(slice(begin, begin + BATCH)))
        padded = torch.zeros(BATCH, *frames.shape[1:], dtype=torch.uint8)
        padded[: len(frames)] = frames
        images = prepare_frames(padded.to(trial.device).movedim(-1, -3))
        codes = trial.method.encode(images.unsqueeze(1))
        for layer, key in LAYERS.items():
            batches[layer].append(codes[key][: len(frames), 0].float().cpu())
    return {layer: torch.cat(parts) for layer, parts in batches.items()}
