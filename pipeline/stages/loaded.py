"""A trained trial in memory, and the frames, embeddings and episodes that stages draw from it.

Randomness comes from fixed integers and the eval seed, never from the training seed, and frames are
encoded in padded batches of one size, so that no row depends on how many there are.

Shapes: N frames, C clips, T time, D latent, A action block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lewm.agent import Agent
from lewm.config import Config, PlanningConfig
from lewm.control import Outcomes, run_planner
from lewm.data.clips import Normaliser, prepare_frames, split_episodes
from lewm.data.episodes import EpisodeFile
from lewm.manifest import Manifest
from lewm.methods import Method
from lewm.planners import make_planner

Array = npt.NDArray[Any]

NOT_IN_CELL = ("protocols", "eval_seeds", "num_pairs")
"""Fields of `PlanningConfig` that span cells: a cell has `protocol` and `eval_seed`, and its manifest."""

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
        data: the data file the trial was trained on; None for a released checkpoint without one.
        manifests: by (protocol, eval_seed); only planning reads them.
        planned: what became of a manifest's pairs under a planner's settings, as far as played.
    """

    config: Config
    method: Method
    normaliser: Normaliser
    data: EpisodeFile | None
    device: torch.device
    manifests: Mapping[tuple[str, int], Manifest]
    planned: dict[tuple[str, int, PlanningConfig], Outcomes] = field(default_factory=dict)

    @property
    def episodes(self) -> EpisodeFile:
        """The data file.

        Raises:
            ValueError: there is none, or its frames are not of the training's size.
        """
        if self.data is None:
            raise ValueError(
                "this stage reads the training file, and none is known: give --dataset"
            )
        self.data.check_frame_size(self.config)
        return self.data

    def manifest(self, config: Mapping[str, Any]) -> Manifest:
        """The pairs of a planning cell.

        Raises:
            ValueError: none are loaded for its protocol and eval seed.
        """
        key = (config["protocol"], config["eval_seed"])
        if key not in self.manifests:
            raise ValueError(f"no manifest for protocol {key[0]!r} and eval seed {key[1]}")
        return self.manifests[key]

    @property
    def agent(self) -> Agent:
        """The trained model as a planner uses it."""
        return Agent(
            self.method,
            self.normaliser,
            self.device,
            self.config.model.image_size,
            self.config.frame_size,
            self.config.data.render_quality,
        )


def planning_settings(config: Mapping[str, Any]) -> PlanningConfig:
    """The planner's settings of a planning cell.

    Args:
        config: `protocol`, `eval_seed`, and the fields of `PlanningConfig` but `NOT_IN_CELL`.
    """
    known = set(PlanningConfig.model_fields) - set(NOT_IN_CELL)
    return PlanningConfig(**{name: config[name] for name in known if name in config})


def plan_pairs(trial: LoadedTrial, config: Mapping[str, Any], count: int | None = None) -> Outcomes:
    """What becomes of the pairs of a planning cell, played once however many stages ask.

    Args:
        config: see `planning_settings`.
        count: only the first so many pairs; they end as in a play of all, for an episode's plan
            depends neither on how many others there are nor on their order.

    Raises:
        ValueError: no manifest for the protocol and eval seed, or an unknown planner.
    """
    settings, manifest = planning_settings(config), trial.manifest(config)
    key = (config["protocol"], config["eval_seed"], settings)
    if key in trial.planned:
        return trial.planned[key].first(count)
    if count is not None:
        manifest = replace(manifest, pairs=manifest.pairs[:count])
    block = trial.config.data.action_block
    outcomes = run_planner(manifest, make_planner(settings), settings, block, trial.agent)
    if count is None:
        trial.planned[key] = outcomes
    return outcomes


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


def embed_rows(trial: LoadedTrial, rows: Array, pooled: bool = False) -> dict[str, Tensor]:
    """Embeddings of stored frames by layer: (*rows.shape, D) float32 on the CPU.

    Args:
        pooled: whether "projected" is what the method's `pooled` makes of it.
    """
    flat = rows.reshape(-1)

    def read(part: slice) -> tuple[Array, Array | None]:
        file = trial.episodes
        columns = [file.read(name, flat[part]) for name in trial.method.proprio]
        felt = [values.reshape(len(values), -1) for values in columns]
        frames = file.read("pixels", flat[part])
        return frames, np.concatenate(felt, axis=1) if felt else None

    out = _embed(trial, len(flat), read, pooled)
    return {layer: x.reshape(*rows.shape, -1) for layer, x in out.items()}


def embed_frames(trial: LoadedTrial, frames: Array, felt: Array | None = None) -> dict[str, Tensor]:
    """Embeddings of frames (..., H, W, 3) uint8 by layer: (..., D) float32 on the CPU.

    Args:
        felt: proprioception (..., Q), for a method that reads it.
    """
    flat = frames.reshape(-1, *frames.shape[-3:])
    flat_felt = None if felt is None else felt.reshape(len(flat), -1)
    out = _embed(
        trial, len(flat), lambda part: (flat[part], None if flat_felt is None else flat_felt[part])
    )
    return {layer: x.reshape(*frames.shape[:-3], -1) for layer, x in out.items()}


def clip_actions(trial: LoadedTrial, rows: Array) -> Tensor:
    """(C, T, A) z-scored action blocks that leave the frames of clips, rows (C, T)."""
    block = trial.config.data.action_block
    steps = trial.episodes.read("action", (rows[:, :, None] + np.arange(block)).reshape(-1))
    return torch.from_numpy(trial.normaliser.apply(steps)).reshape(*rows.shape, -1)


def predict(trial: LoadedTrial, z_CTD: Tensor, actions_CTA: Tensor) -> Tensor:
    """(C, T, D) embeddings predicted for the frames after each, teacher forced, in padded batches."""
    out = []
    for begin in range(0, len(z_CTD), BATCH):
        z, actions = (x[begin : begin + BATCH] for x in (z_CTD, actions_CTA))
        missing = (0, 0, 0, 0, 0, BATCH - len(z))
        padded = [F.pad(x, missing).to(trial.device) for x in (z, actions)]
        out.append(trial.method.predict(*padded)[: len(z)].float().cpu())
    return torch.cat(out)


def _embed(
    trial: LoadedTrial,
    num: int,
    read: Callable[[slice], tuple[Array, Array | None]],
    pooled: bool = False,
) -> dict[str, Tensor]:
    batches: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    for begin in range(0, num, BATCH):
        seen, felt = read(slice(begin, begin + BATCH))
        frames, body = torch.from_numpy(seen), []
        padded = torch.zeros(BATCH, *frames.shape[1:], dtype=torch.uint8)
        padded[: len(frames)] = frames
        size = trial.config.model.image_size
        images = prepare_frames(padded.to(trial.device).movedim(-1, -3), size)
        if felt is not None:
            missing = (0, 0, 0, BATCH - len(felt))
            body = [F.pad(torch.from_numpy(felt).float(), missing).to(trial.device).unsqueeze(1)]
        codes = trial.method.encode(images.unsqueeze(1), *body)
        if pooled:
            codes["z"] = trial.method.pooled(codes["z"])
        for layer, key in LAYERS.items():
            batches[layer].append(codes[key][: len(frames), 0].float().cpu())
    return {layer: torch.cat(parts) for layer, parts in batches.items()}
