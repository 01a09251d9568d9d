"""Pictures of planned episodes: where each started, what it was to reach, how it went."""

import io
from typing import Any

import polars as pl
from PIL import Image

from lewm.envs.frame_cache import FrameCache
from lewm.manifest import Pair
from pipeline.stages.loaded import Array, LoadedTrial, plan_pairs, planning_settings
from pipeline.tables import STAGE_SCHEMAS, make_frame


def run(trial: LoadedTrial, config: dict[str, Any]) -> pl.DataFrame:
    """Frames of the first pairs of one manifest: start, goal, and what was reached block by block.

    Args:
        config: a planning cell's config, and `num_examples`: how many pairs.

    Raises:
        ValueError: no manifest for the protocol and eval seed, or an unknown planner.
    """
    settings, manifest = planning_settings(config), trial.manifest(config)
    pairs = manifest.pairs[: config["num_examples"]]
    outcomes, block = plan_pairs(trial, config, len(pairs)), trial.config.data.action_block
    env = trial.agent.world(manifest.protocol)
    frames = FrameCache(env)
    rows = []
    for pair, path, success, steps in zip(
        pairs, outcomes.paths, outcomes.success, outcomes.steps_to_success, strict=True
    ):
        last = -(-int(steps) // block) if success else len(path) - 1
        fixed = {
            "planner": settings.planner,
            "protocol": manifest.protocol.name,
            "eval_seed": manifest.eval_seed,
            "pair_id": pair.pair_id,
            "episode_id": pair.episode_id,
            "success": bool(success),
        }
        for frame, kind, png in _pictures(frames, pair, path[: last + 1], block):
            rows.append({**fixed, "frame": frame, "kind": kind, "png": png})
    env.close()
    return make_frame(rows, STAGE_SCHEMAS["examples"])


def _pictures(
    frames: FrameCache, pair: Pair, path: Array, block: int
) -> list[tuple[int, str, bytes]]:
    """(environment step, kind, PNG) of the start, the goal, and each block boundary after the start."""
    pictures = [
        (0, "start", _png(frames.draw(pair.start_state))),
        (0, "goal", _png(frames.draw(pair.goal_state))),
    ]
    for number, state in enumerate(path[1:], start=1):
        pictures.append((number * block, "reached", _png(frames.draw(state))))
    return pictures


def _png(frame: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
