"""Closed-loop planning success, one row per episode, and its floors."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from lewm.config import PlanningConfig
from lewm.control import Outcomes, run_planner, run_recorded
from lewm.manifest import Manifest
from lewm.planners import make_planner
from pipeline.stages.loaded import LoadedTrial, plan_pairs, planning_settings
from pipeline.tables import STAGE_SCHEMAS, make_frame

FLOORS = ("random", "zero", "oracle")
"""Planners that need no model; they belong to no trial."""


def run(trial: LoadedTrial, config: dict[str, Any]) -> pl.DataFrame:
    """Every pair of one manifest planned with one planner.

    Args:
        config: see `planning_settings`.

    Raises:
        ValueError: no manifest for the protocol and eval seed, or an unknown planner.
    """
    settings, manifest = planning_settings(config), trial.manifest(config)
    outcomes = plan_pairs(trial, config)
    columns = ("planner", "num_samples", "num_iterations", "num_elites", "horizon", "history")
    fixed = {name: getattr(settings, name) for name in columns}
    fixed["history"] = settings.history or manifest.protocol.history
    if settings.planner == "gradient":
        fixed["num_samples"] = settings.gradient_num_starts
        fixed["num_iterations"] = settings.gradient_num_steps
        fixed["num_elites"] = None
    return _frame(manifest, fixed, outcomes)


def run_floor(planner: str, manifest: Manifest, action_block: int = 5) -> pl.DataFrame:
    """What `random`, `zero` or `oracle` (the recorded actions) reach on the same pairs, without a model.

    Planner settings are null in its rows: they mean nothing here.

    Raises:
        ValueError: not a floor.
    """
    if planner not in FLOORS:
        raise ValueError(f"floor must be one of {', '.join(FLOORS)}, got {planner!r}")
    if planner == "oracle":
        return _frame(manifest, {"planner": planner}, run_recorded(manifest))
    settings = PlanningConfig(planner=planner)
    outcomes = run_planner(manifest, make_planner(settings), settings, action_block)
    return _frame(manifest, {"planner": planner}, outcomes)


def _frame(manifest: Manifest, fixed: Mapping[str, Any], outcomes: Outcomes) -> pl.DataFrame:
    rows = [
        {
            **fixed,
            "protocol": manifest.protocol.name,
            "eval_seed": manifest.eval_seed,
            "manifest_hash": manifest.hash,
            "pair_id": pair.pair_id,
            "episode_id": pair.episode_id,
            "start_row": pair.start_row,
            "initial_success": pair.initial_success,
            "success": bool(outcomes.success[i]),
            "steps_to_success": int(outcomes.steps_to_success[i]) if outcomes.success[i] else None,
            "final_distance": float(outcomes.final_distance[i]),
            "plan_s": float(outcomes.plan_s[i]),
        }
        for i, pair in enumerate(manifest.pairs)
    ]
    return make_frame(rows, STAGE_SCHEMAS["planning"])
