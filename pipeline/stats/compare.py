"""Differences on the same seeds and pairs, against a published value, and many tests at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.stats.intervals import (
    Array,
    Interval,
    TwoWayError,
    clipped,
    t_above,
    t_quantile,
    tail_beyond,
)


@dataclass(frozen=True)
class Comparison:
    """A mean difference with its uncertainty; None where it cannot be told.

    Attributes:
        diff: mean of the differences.
        interval: two-sided, at the confidence asked for.
        p_value: two-sided, of no difference.
        p_equivalence: of |difference| >= margin (two one-sided tests); small means equivalent.
        n: number of independent units behind the interval.
    """

    diff: float
    interval: Interval | None
    p_value: float | None
    p_equivalence: float | None
    n: int


def paired_t(
    differences: Sequence[float] | Array, margin: float | None = None, confidence: float = 0.95
) -> Comparison:
    """Paired t-test (Student 1908): are differences of independent units zero on average?

    Args:
        differences: one number per unit (clip, seed), at least one.
        margin: equivalence margin in the differences' unit; None for no equivalence test.
    """
    sample = np.asarray(differences, np.float64)
    n, diff = len(sample), float(sample.mean())
    error = float(np.std(sample, ddof=1)) / math.sqrt(n) if n >= 2 else 0.0
    if error == 0:
        return Comparison(diff, None, None, None, n)
    return _by_t(diff, error, n - 1, n, margin, confidence)


def _by_t(
    diff: float, error: float, freedom: float, n: int, margin: float | None, confidence: float
) -> Comparison:
    half = t_quantile(0.5 + confidence / 2, freedom) * error
    equivalence = None if margin is None else t_above((margin - abs(diff)) / error, freedom)
    p_value = 2 * t_above(abs(diff) / error, freedom)
    return Comparison(diff, Interval(diff - half, diff + half), p_value, equivalence, n)


def paired_two_way(
    differences_SP: Array,
    margin: float | None = None,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Comparison:
    """Mean difference on the same seeds and start/goal pairs, for new seeds and new pairs (`TwoWayError`).

    Args:
        differences_SP: (S seeds, P pairs), complete.
        margin: equivalence margin (two one-sided tests, Schuirmann 1987); None for no such test.
        bounds: the differences' range, e.g. (-1, 1) for rates; the interval is clipped to it.

    Returns:
        n is the number of seeds; no interval or p-value with fewer than two seeds or pairs, nor where
        nothing varies.
    """
    values = np.asarray(differences_SP, np.float64)
    diff = float(values.mean())
    error = TwoWayError.of(values)
    if error is None:
        return Comparison(diff, None, None, None, len(values))
    half = error.half_width((1 - confidence) / 2)
    equivalence = None if margin is None else error.upper_tail(margin - abs(diff))
    p_value = min(1.0, 2 * error.upper_tail(abs(diff)))
    interval = clipped(diff - half, diff + half, bounds)
    return Comparison(diff, interval, p_value, equivalence, len(values))


def unpaired(
    x: Sequence[float] | Array,
    y: Sequence[float] | Array,
    margin: float | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Mean of x less mean of y, independent samples of unequal spread (Welch 1947, Biometrika 34).

    Args:
        x, y: one number per unit (seed), at least one each.
        margin: equivalence margin (two one-sided tests); None for no such test.

    Returns:
        n is the smaller of both numbers of units; no interval or p-value where one side has a single
        unit, nor where nothing varies.
    """
    sides = [np.asarray(side, np.float64) for side in (x, y)]
    diff, n = float(sides[0].mean() - sides[1].mean()), min(map(len, sides))
    parts = [float(np.var(side, ddof=1)) / len(side) if n >= 2 else 0.0 for side in sides]
    if sum(parts) < 1e-18:
        return Comparison(diff, None, None, None, n)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True)
    )
    return _by_t(diff, math.sqrt(sum(parts)), freedom, n, margin, confidence)


def unpaired_two_way(
    x_SP: Array,
    y_SP: Array,
    same_pairs: bool,
    margin: float | None = None,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Comparison:
    """Mean of x less mean of y, other seeds on each side, for new seeds and new pairs.

    As `TwoWayError`: the squared half-width is the sum of the squared t half-widths of what varies, here
    the seed means of either side and the pair means of either side, or of their differences where both
    sides were planned on the same pairs.

    Args:
        x_SP, y_SP: (S seeds, P pairs), complete; as many pairs on both sides if `same_pairs`.
        margin: equivalence margin (two one-sided tests); None for no such test.
        bounds: the differences' range, e.g. (-1, 1) for rates; the interval is clipped to it.

    Returns:
        n is the smaller number of seeds; no interval or p-value where one side has fewer than two seeds
        or pairs, nor where nothing varies.
    """
    sides = [np.asarray(side, np.float64) for side in (x_SP, y_SP)]
    diff, n = float(sides[0].mean() - sides[1].mean()), min(map(len, sides))
    if min(size for side in sides for size in side.shape) < 2:
        return Comparison(diff, None, None, None, n)
    pairs = [side.mean(axis=0) for side in sides]
    varying = [side.mean(axis=1) for side in sides]
    varying += [pairs[0] - pairs[1]] if same_pairs else pairs
    parts = [(float(np.var(means, ddof=1)) / len(means), len(means) - 1) for means in varying]
    if sum(part for part, _ in parts) < 1e-18:
        return Comparison(diff, None, None, None, n)

    def half_width(tail: float) -> float:
        squares = (part * t_quantile(tail, freedom) ** 2 for part, freedom in parts)
        return math.sqrt(sum(squares))

    half = half_width((1 - confidence) / 2)
    equivalence = None if margin is None else tail_beyond(margin - abs(diff), half_width)
    p_value = min(1.0, 2 * tail_beyond(abs(diff), half_width))
    interval = clipped(diff - half, diff + half, bounds)
    return Comparison(diff, interval, p_value, equivalence, n)


def against_value(
    successes_SP: Array, value: float, margin: float, confidence: float = 0.95
) -> Comparison:
    """A success rate against a published one: difference, and whether it lies within the margin (TOST).

    The published value counts as exact: where its own spread is known, widen the margin by it.

    Args:
        successes_SP: (S seeds, P pairs), 0 or 1.
        value: the published rate.
        margin: stated beforehand; smaller differences count as practically none.
    """
    differences = np.asarray(successes_SP, np.float64) - value
    return paired_two_way(differences, margin, confidence, (-value, 1 - value))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
