"""Violation of expectation: is the model surprised by what cannot happen? (paper App. F.3)

Shapes: C clips, T time, D latent.
"""

from typing import Any

import numpy as np
import polars as pl
import torch

from lewm.config import SurpriseConfig
from lewm.control import felt
from lewm.envs import Env, make_env
from lewm.envs.frame_cache import FrameCache
from pipeline.stages.loaded import (
    Array,
    LoadedTrial,
    clip_actions,
    clip_rows,
    draw_rows,
    embed_frames,
    predict,
)
from pipeline.tables import STAGE_SCHEMAS, make_frame

STREAM = 303


@torch.inference_mode()
def run(trial: LoadedTrial, config: dict[str, Any]) -> pl.DataFrame:
    """One row per clip of a held-out episode and event of the environment's `violations`.

    Clips are re-rendered from their stored states. At frame `event_frame` the event strikes;
    `surprise` is the mean squared error between the embedding predicted there, teacher forced from
    the unperturbed frames before, and that of the perturbed frame; `surprise_control` is the same
    for the unperturbed frame. `event_step` counts environment steps from the clip's start.

    Args:
        config: fields of `SurpriseConfig`.
    """
    settings = SurpriseConfig(**config)
    event, block = settings.event_frame, trial.config.data.action_block
    data = trial.config.data
    env = make_env(data.env, image_size=trial.config.frame_size, render_quality=data.render_quality)
    starts = draw_rows(trial, "held_out", event * block + 1, settings.num_clips, STREAM)
    num_past = min(trial.config.model.history, event)
    rows = clip_rows(trial, starts, event + 1)[:, event - num_past :]
    states = _states(env, trial, rows)
    frames = FrameCache(env)
    usual = np.stack([[frames.draw(state) for state in clip] for clip in states])
    codes = embed_frames(trial, usual, _felt(env, trial, states))["projected"]
    predicted = predict(trial, codes[:, :-1], clip_actions(trial, rows[:, :-1]))[:, -1]
    control = (predicted - codes[:, -1]).double().square().mean(-1)
    episode_ids = np.searchsorted(trial.episodes.ep_offset, starts, side="right") - 1
    table = []
    for number, (name, (kind, _)) in enumerate(sorted(env.violations().items())):
        struck, after = _violate(frames, name, number, starts, states)
        body = _felt(env, trial, [[state] for state in after])
        observed = embed_frames(trial, struck, body)["projected"]
        surprise = (predicted - observed).double().square().mean(-1)
        for index, start in enumerate(starts.tolist()):
            table.append(
                {
                    "episode_id": int(episode_ids[index]),
                    "start_row": start,
                    "event": name,
                    "kind": kind,
                    "event_step": event * block,
                    "surprise": float(surprise[index]),
                    "surprise_control": float(control[index]),
                }
            )
    return make_frame(table, STAGE_SCHEMAS["surprise"])


def _states(env: Env, trial: LoadedTrial, rows: Array) -> list[list[Array]]:
    """States of the clips' frames, (C, T) nested lists."""
    file = trial.episodes
    columns = {n: file.read(n, rows.reshape(-1)) for n in file.columns if n != "pixels"}
    flat = [env.state_from_columns(columns, row) for row in range(rows.size)]
    width = rows.shape[1]
    return [flat[begin : begin + width] for begin in range(0, len(flat), width)]


def _felt(env: Env, trial: LoadedTrial, states: list[list[Array]]) -> Array | None:
    """Proprioception (C, T, Q) of states, for a method that reads it."""
    names = tuple(trial.method.proprio)
    if not names:
        return None
    return np.stack([[felt(env, state, names) for state in clip] for clip in states])


def _violate(
    cache: FrameCache, name: str, number: int, starts: Array, states: list[list[Array]]
) -> tuple[Array, list[Array]]:
    """(C, H, W, 3) frames with the event, and the states; a clip's draw depends on its start row only."""
    apply = cache.env.violations()[name][1]
    frames, after = [], []
    for start, clip in zip(starts.tolist(), states, strict=True):
        rng = np.random.default_rng(np.random.SeedSequence((STREAM, number, start)))
        state, options = apply(clip[-1], rng)
        frames.append(cache.draw(state, **options))
        after.append(state)
    return np.stack(frames), after
