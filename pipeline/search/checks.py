"""What a search is refused for, beyond its own table: settings that it cannot have in this sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from lewm.config import Config
from pipeline.search.settings import (
    CURVE_METRICS,
    VAL_PRED_RATIO,
    Bisect,
    EarlyStopping,
    Optuna,
    Search,
)
from pipeline.shipped import choice

LATENT_METRICS = (
    "effective_rank", "mean_std", "epps_pulley", "straightness", "collapsed", "copy_ratio",
)  # fmt: skip
MEASURED_SELDOM = ("val_pred_loss", "mean_std", VAL_PRED_RATIO)
"""Metrics that a curve has only every `optim.eval_every` steps."""


def check_alone(
    search: Search,
    grid: Mapping[str, Any],
    names_seeds: bool,
    methods: Sequence[str],
    envs: Sequence[str],
    where: str,
) -> None:
    """Refuses what has no meaning where trials are chosen one round after another.

    Raises:
        ValueError: the sweep has a grid, seeds or several worlds beside an adaptive search.
    """
    chooses = f"{where}: a search of kind {search.kind}"
    if grid:
        raise ValueError(
            f"{chooses} chooses its own points: take out [grid] and --grid, or set "
            'search.kind = "grid"'
        )
    if names_seeds:
        bisect = isinstance(search, Bisect)
        how = "search.seeds and search.max_seeds say how many" if bisect else "0 first"
        raise ValueError(f"{chooses} chooses its own seeds ({how}): take out seeds and --seeds")
    if len(methods) * len(envs) > 1:
        raise ValueError(
            f"{chooses} is over one method in one environment, got {', '.join(methods)} and "
            f"{', '.join(envs)}: name one, e.g. --env {envs[0]}"
        )


def check_rungs(rule: EarlyStopping, config: Config, where: str) -> None:
    """Refuses rungs at which a trial has no measurement, or is over already.

    Raises:
        ValueError: names the rung.
    """
    optim = config.optim
    for rung in rule.rungs:
        if optim.num_steps is not None and rung >= optim.num_steps:
            raise ValueError(
                f"{where}: search.early_stopping.rungs: {rung} is not below optim.num_steps = "
                f"{optim.num_steps}"
            )
        if rule.metric in MEASURED_SELDOM and rung % optim.eval_every:
            raise ValueError(
                f"{where}: search.early_stopping.rungs: {rule.metric} is measured every "
                f"{optim.eval_every} steps (optim.eval_every), so not at {rung}"
            )


def objective_stage(objective: str) -> str | None:
    """The stage whose cells yield a final metric; None if training alone does.

    Raises:
        ValueError: no stage has a metric of that name.
    """
    families = {"success_": "planning", "r_": "probing", "surprise_ratio_": "surprise"}
    for prefix, stage in families.items():
        if objective.startswith(prefix) and objective != prefix:
            return stage
    known = [*CURVE_METRICS, *(f"latents_{name}" for name in LATENT_METRICS)]
    choice(objective, [*known, *(f"{prefix}<name>" for prefix in families)], "search.objective")
    return None if objective in CURVE_METRICS else "latents"


def check_objective(
    search: Search, stages: Sequence[str], successes: Sequence[str], where: str
) -> None:
    """Refuses an adaptive search whose objective no stage of the sweep produces.

    Args:
        stages: of the sweep.
        successes: names of its success rates, one per protocol and planning setting.

    Raises:
        ValueError: says which stage is missing, or the nearest name.
    """
    assert isinstance(search, Bisect | Optuna)
    objective = search.objective
    try:
        stage = objective_stage(objective)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if stage is not None and stage not in stages:
        raise ValueError(
            f"{where}: search.objective {objective!r} comes from the stage {stage!r}, which this sweep "
            f"does not run: add it to stages ({', '.join(stages) or 'none'})"
        )
    if stage == "planning":
        choice(objective, successes, f"{where}: search.objective")
    if stage == "probing" and objective.split("_")[1] not in ("linear", "mlp"):
        raise ValueError(
            f"{where}: search.objective {objective!r} is not r_linear_<target> or r_mlp_<target>"
        )
