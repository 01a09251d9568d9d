"""What decides which trials to run: further points from all outcomes so far, and who stops early.

Everything here is a pure function. A round's suggestions depend on the outcomes of the rounds before it
and on nothing else, so worker count, order of arrival, interruption and resumption change nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.search import golden_section, optuna_search
from pipeline.search.settings import (
    VAL_PRED_RATIO,
    Bisect,
    EarlyStopping,
    Optuna,
    Outcome,
    Overrides,
    Search,
    Suggestion,
    canonical,
)

Adaptive = Bisect | Optuna


@dataclass(frozen=True)
class Found:
    """A point tried: its values by seed, lost trials filled in with the worst."""

    overrides: Overrides
    values: dict[int, float]
    num_lost: int

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean([self.values[seed] for seed in sorted(self.values)]))


def next_round(search: Search, outcomes: Sequence[Outcome]) -> list[Suggestion]:
    """The trials of the next round; none when the search is over.

    Args:
        outcomes: one for every suggestion so far, in the order of the suggestions; within a round the
            order does not matter.
    """
    if isinstance(search, Bisect):
        suggestions = list(_way(search, outcomes).suggestions)
    elif isinstance(search, Optuna):
        suggestions = _optuna_round(search, outcomes)
    else:
        return []
    return suggestions[: max(search.budget - len(outcomes), 0)]


def _optuna_round(search: Optuna, outcomes: Sequence[Outcome]) -> list[Suggestion]:
    """The rest of a round that the budget had cut, else a whole new one."""
    whole = len(outcomes) - len(outcomes) % search.batch
    known = [
        outcome
        for first in range(0, whole, search.batch)
        for outcome in sorted(outcomes[first : first + search.batch], key=_rank)
    ]
    told = [(found.overrides, found.mean) for found in tried(search, known)]
    begun = {_rank(outcome) for outcome in outcomes[whole:]}
    return [s for s in optuna_search.suggest(search, told, known) if _rank(s) not in begun]


def _rank(trial: Outcome | Suggestion) -> tuple[str, int]:
    return canonical(trial.overrides), trial.seed


def _way(search: Bisect, outcomes: Sequence[Outcome]) -> golden_section.Way:
    sign = 1.0 if search.mode == "max" else -1.0
    samples = {
        found.overrides[search.key]: {s: sign * v for s, v in sorted(found.values.items())}
        for found in sorted(tried(search, outcomes), key=lambda found: found.overrides[search.key])
    }
    return golden_section.follow(search, samples)


def tried(search: Adaptive, outcomes: Sequence[Outcome]) -> list[Found]:
    """The distinct points in the order they were first suggested; lost trials count as the worst."""
    known = [o.value for o in outcomes if _finite(o.value)]
    worst = _worst(search, [value for value in known if value is not None])
    points: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        points.setdefault(canonical(outcome.overrides), []).append(outcome)
    return [
        Found(
            own[0].overrides,
            {o.seed: o.value if o.value is not None and _finite(o.value) else worst for o in own},
            sum(not _finite(o.value) for o in own),
        )
        for own in points.values()
    ]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _worst(search: Adaptive, values: Sequence[float]) -> float:
    """What a lost trial counts as: no success, or below everything seen by the whole range seen."""
    if search.is_rate:
        return 0.0 if search.mode == "max" else 1.0
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    span = high - low or abs(high) or 1.0
    return low - span if search.mode == "max" else high + span


def best(search: Adaptive, outcomes: Sequence[Outcome]) -> Found | None:
    """The point that the search would have you take now; None before any outcome.

    A bisection stands by the winner of its last comparison, which has the seeds; others by the best mean,
    of equals the one with more seeds, then the one tried first.
    """
    points = tried(search, outcomes)
    if isinstance(search, Bisect):
        cuts = _way(search, outcomes).cuts
        if cuts:
            return next(p for p in points if p.overrides[search.key] == cuts[-1].winner)
    return best_mean(points, search.mode)


def best_mean(points: Sequence[Found], mode: str) -> Found | None:
    """The point with the best mean; of equals the one with more seeds, then the first."""
    sign = 1 if mode == "max" else -1
    return max(points, key=lambda p: (sign * p.mean, len(p.values)), default=None)


def verdict(search: Adaptive, outcomes: Sequence[Outcome]) -> str:
    """One line: the best point, its number of seeds and spread, and why the search ended."""
    found = best(search, outcomes)
    if found is None:
        return "nothing has been tried yet"
    values = [found.values[seed] for seed in sorted(found.values)]
    spread = f"seeds from {min(values):.3g} to {max(values):.3g}" if len(values) > 1 else "one seed"
    lost = f", {found.num_lost} of them lost and counted as the worst" if found.num_lost else ""
    line = (
        f"{canonical(found.overrides)} is best: {search.objective} {found.mean:.3g} "
        f"(n = {len(values)}, {spread}{lost})"
    )
    return f"{line}; {_end(search, outcomes)}"


def _end(search: Adaptive, outcomes: Sequence[Outcome]) -> str:
    spent = f"{len(outcomes)} of {search.budget} trials"
    if isinstance(search, Optuna):
        return f"ended by the budget after {spent}; the best of many is flattered by the choice"
    way = _way(search, outcomes)
    ended = "ended by the budget" if way.suggestions else "ended with the bracket narrow enough"
    text = f"{ended} after {spent}: {way.low:g} to {way.high:g}, {way.decades:.2f} decades"
    blind = sum(not cut.decided for cut in way.cuts)
    if way.cuts and blind == len(way.cuts):
        return (
            f"{text}; no comparison could be decided ({blind} tried): as far as these seeds tell the "
            "curve is flat, and this point is no better than the others"
        )
    return f"{text}; comparisons decided: {len(way.cuts) - blind}, not to be told apart: {blind}"


def rung_value(rule: EarlyStopping, row: Mapping[str, Any]) -> float | None:
    """The rule's metric in the row of a curve at a rung; None where it cannot be told."""
    if rule.metric != VAL_PRED_RATIO:
        value = row.get(rule.metric)
    else:
        loss, std = row.get("val_pred_loss"), row.get("mean_std")
        value = None if loss is None or not std else loss / std**2
    return float(value) if value is not None and math.isfinite(value) else None


def survivors(
    rule: EarlyStopping, rung: int, values: Mapping[str, float | None]
) -> tuple[list[str], dict[str, str]]:
    """Who goes on from a rung: the best share, rounded up; of equals the smaller trial id.

    Args:
        rung: optimiser steps.
        values: the metric of every trial that reached the rung; none or NaN is worse than any number.

    Returns:
        The trials that go on, best first, and for each that stops the reason.
    """
    sign = 1.0 if rule.mode == "min" else -1.0

    def rank(trial_id: str) -> tuple[bool, float, str]:
        value = values[trial_id]
        known = value is not None and not math.isnan(value)
        return not known, sign * value if known and value is not None else 0.0, trial_id

    order = sorted(values, key=rank)
    num_kept = math.ceil(round(rule.keep * len(order), 9))
    kept = order[:num_kept]
    reasons = {}
    for place, trial_id in enumerate(order[num_kept:], num_kept + 1):
        shown = "cannot be told" if rank(trial_id)[0] else f"{values[trial_id]:.4g}"
        reasons[trial_id] = (
            f"stopped at step {rung}: {rule.metric} {shown}, rank {place} of {len(order)}, "
            f"{num_kept} go on"
        )
    return kept, reasons
