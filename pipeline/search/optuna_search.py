"""Optuna's samplers through Ray's `OptunaSearch`, rebuilt from the outcomes for every round.

The study holds one told value per distinct point, the mean over its seeds. The first round knows nothing
and needs no sampler: it is drawn from the space itself, so that a plan can be shown without Ray.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.search.golden_section import rounded
from pipeline.search.settings import (
    Choices,
    Optuna,
    Outcome,
    Overrides,
    Range,
    Suggestion,
    canonical,
)

METRIC = "objective"
Told = Sequence[tuple[Overrides, float]]


def suggest(search: Optuna, told: Told, outcomes: Sequence[Outcome]) -> list[Suggestion]:
    """The next round: `batch` points, each with the first seed that it has not had.

    Args:
        told: the distinct points so far with their mean values, in a canonical order.
        outcomes: all so far, for the seeds.
    """
    points = _sampled(search, told) if told else _drawn(search)
    tried = {(canonical(o.overrides), o.seed) for o in outcomes}
    suggestions = []
    for number, point in enumerate(points):
        seed = 0
        while (canonical(point), seed) in tried:
            seed += 1
        tried.add((canonical(point), seed))
        why = f"{_why(search, told)}; suggestion {number + 1} of {search.batch}"
        suggestions.append(Suggestion(point, seed, why + (f", seed {seed} of it" if seed else "")))
    return suggestions


def _why(search: Optuna, told: Told) -> str:
    if not told:
        how = "at random" if search.sampler == "random" else "spread evenly at random"
        return f"nothing is known yet: drawn {how} from the space"
    if search.sampler == "random":
        return f"drawn at random, whatever the {len(told)} points so far gave"
    pick = max if search.mode == "max" else min
    point, value = pick(told, key=lambda pair: pair[1])
    best = ", ".join(f"{key} = {point[key]}" for key in sorted(point))
    return f"{search.sampler.upper()} on {len(told)} points, best so far {value:.3g} at {best}"


def _drawn(search: Optuna) -> list[Overrides]:
    """Points of the first round: one per stratum of every axis (Latin hypercube), or plainly random."""
    rng = np.random.default_rng([search.seed, 0])
    points: list[Overrides] = [{} for _ in range(search.batch)]
    for key in search.keys:
        shares = rng.random(search.batch)
        if search.sampler != "random":
            shares = (rng.permutation(search.batch) + shares) / search.batch
        for point, share in zip(points, shares.tolist(), strict=True):
            point[key] = _at(search.space[key], share)
    return points


def _at(axis: Range | Choices, share: float) -> Any:
    """The value at a share in [0, 1) of an axis."""
    if isinstance(axis, Choices):
        return axis.choices[int(share * len(axis.choices))]
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    value = low + share * (high - low)
    return _tidy(axis, math.exp(value) if axis.log else value)


def _tidy(axis: Range | Choices, value: Any) -> Any:
    """A value of the axis, short enough to be read in a trial's name."""
    if isinstance(axis, Choices):
        return value
    if axis.is_whole:
        return round(value)
    return float(min(max(rounded(value), axis.low), axis.high))


def _sampled(search: Optuna, told: Told) -> list[Overrides]:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([search.seed, len(told)]).generate_state(1)[0])
    samplers: Any = optuna.samplers
    sampler = {
        "tpe": lambda: samplers.TPESampler(seed=seed, n_startup_trials=search.batch),
        "gp": lambda: samplers.GPSampler(seed=seed, n_startup_trials=search.batch),
        "random": lambda: samplers.RandomSampler(seed=seed),
    }[search.sampler]()
    searcher = OptunaSearch(
        {key: _distribution(axis) for key, axis in sorted(search.space.items())},
        metric=METRIC,
        mode=search.mode,
        sampler=sampler,
        points_to_evaluate=[point for point, _ in told],
        evaluated_rewards=[value for _, value in told],
    )
    suggested = [searcher.suggest(str(number)) for number in range(search.batch)]
    return [
        {key: _tidy(search.space[key], point[key]) for key in search.keys} for point in suggested
    ]


def _distribution(axis: Range | Choices) -> Any:
    from optuna import distributions

    if isinstance(axis, Choices):
        return distributions.CategoricalDistribution(axis.choices)
    if axis.is_whole:
        return distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
