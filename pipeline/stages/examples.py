"""Pictures of planned episodes: where each started, what it was to reach, how it went."""

import io
from dataclasses import replace
from typing import Any

import polars as pl
from PIL import Image

from lewm.control import run_planner
from lewm.envs import Env
from lewm.manifest import Pair
from lewm.planners import make_planner
from pipeline.stages.loaded import Array, LoadedTrial, planning_settings
from pipeline.tables import STAGE_SCHEMAS, make_frame


def run(trial: LoadedTrial, config: dict[str, Any]) -> pl.DataFrame:
    """Frames of the first pairs of one manifest: start, goal, and what was reached block by block.

    The pairs are planned as the planning stage plans them, with the same result: an episode's plan
    depends neither on how many others there are nor on their order.

    Args:
        config: a planning cell's config, and `num_examples`: how many pairs.

    Raises:
        ValueError: no manifest for the protocol and eval seed, or an unknown planner.
    """
    settings = planning_settings(config)
    whole = trial.manifest(config)
    manifest = replace(whole, pairs=whole.pairs[: config["num_examples"]])
    block = trial.config.data.action_block
    outcomes = run_planner(manifest, make_planner(settings), settings, block, trial.agent)
    painter = manifest.protocol.make_env(
        trial.agent.image_size, render_quality=trial.agent.render_quality
    )
    rows = []
    for pair, path, success, steps in zip(
        manifest.pairs, outcomes.paths, outcomes.success, outcomes.steps_to_success, strict=True
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
        for frame, kind, png in _pictures(painter, pair, path[: last + 1], block):
            rows.append({**fixed, "frame": frame, "kind": kind, "png": png})
    painter.close()
    return make_frame(rows, STAGE_SCHEMAS["examples"])


def _pictures(painter: Env, pair: Pair, path: Array, block: int) -> list[tuple[int, str, bytes]]:
    """(environment step, kind, PNG) of the start, the goal, and each block boundary after the start."""
    pictures = [
        (0, "start", _png(painter.render_state(pair.start_state))),
        (0, "goal", _png(painter.render_state(pair.goal_state))),
    ]
    for number, state in enumerate(path[1:], start=1):
        pictures.append((number * block, "reached", _png(painter.render_state(state))))
    return pictures


def _png(frame: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
