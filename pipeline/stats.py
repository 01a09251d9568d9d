"""Intervals, robust means, tests and the λ plateau: arrays in, numbers out.

The unit of replication is a training seed: episodes of one trained model are not independent, so an
interval over pooled episodes is too narrow for a statement about the method. Where a statement cannot
be made (one seed, no spread) the functions answer None, never a number that looks like one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats as distributions

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A mean paired difference with its uncertainty; None where it cannot be told.

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


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Score interval of a proportion of independent trials (Wilson 1927, JASA 22).

    Over episodes pooled from several trained models it is only a first check: their common model makes
    them dependent.

    Args:
        successes: 0 <= successes <= n.
        n: independent trials; with 0 the answer is None.

    Raises:
        ValueError: successes outside 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..{n}, got {successes}")
    if n == 0:
        return None
    z = float(distributions.norm.ppf(0.5 + confidence / 2))
    rate, scale = successes / n, 1 + z**2 / n
    centre = (rate + z**2 / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def t_interval(
    values: Sequence[float] | Array,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval | None:
    """Student-t interval of the mean over seeds (Student 1908); t and not 1.96, for seeds are few.

    Args:
        values: one number per seed.
        bounds: the quantity's range, e.g. (0, 1) for a rate; the interval is clipped to it.

    Returns:
        None with fewer than two seeds, and where all seeds agree exactly: a sample without spread says
        nothing about the spread.
    """
    sample = np.asarray(values, np.float64)
    if len(sample) < 2 or np.ptp(sample) == 0:
        return None
    error = float(np.std(sample, ddof=1)) / math.sqrt(len(sample))
    return _around(float(sample.mean()), error, len(sample) - 1, confidence, bounds)


def _around(
    centre: float,
    error: float,
    freedom: float,
    confidence: float,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    half = float(distributions.t.ppf(0.5 + confidence / 2, freedom)) * error
    low, high = bounds or (-math.inf, math.inf)
    return Interval(min(max(centre - half, low), high), max(min(centre + half, high), low))


def std(values: Sequence[float] | Array) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) >= 2 else None


def iqr(values: Sequence[float] | Array) -> float | None:
    """Distance between the quartiles (linear interpolation); None for fewer than two values."""
    if len(values) < 2:
        return None
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low)


def iqm(values: Sequence[float] | Array) -> float:
    """Interquartile mean: the mean without the lowest and highest quarter (Agarwal et al. 2021).

    As there, floor(n / 4) values are cut at each end: with fewer than four it is the plain mean.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def optimality_gap(values: Sequence[float] | Array, target: float = 1.0) -> float:
    """Mean shortfall below `target`; values above it count as it (Agarwal et al. 2021)."""
    return float(target - np.minimum(np.asarray(values, np.float64), target).mean())


def probability_of_improvement(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float:
    """P(X > Y) + P(X = Y) / 2 over all cross pairs of seeds (Mann-Whitney; Agarwal et al. 2021)."""
    difference = np.subtract.outer(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return float((np.sign(difference) + 1).mean() / 2)


def paired_t(
    differences: Sequence[float] | Array, margin: float | None = None, confidence: float = 0.95
) -> Comparison:
    """Paired t-test: are differences of independent units zero on average?

    Args:
        differences: one number per unit (clip, seed), at least one.
        margin: equivalence margin in the differences' unit; None for no equivalence test.
    """
    sample = np.asarray(differences, np.float64)
    n = len(sample)
    error = float(np.std(sample, ddof=1)) / math.sqrt(n) if n >= 2 else 0.0
    return _compare(float(sample.mean()), error, n - 1, n, margin, confidence)


def paired_two_way(
    differences_SP: Array,
    margin: float | None = None,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Comparison:
    """Mean difference on the same seeds and the same start/goal pairs, for new seeds *and* new pairs.

    The variance of the grand mean is the sum of the variance over seed means and over pair means (two-way
    clustering without subtracting their common part: conservative), against Student's t with the smaller
    count less one degrees of freedom, both after Cameron, Gelbach & Miller 2011 (JBES 29). With few seeds
    this is wide, as it should be.

    Args:
        differences_SP: (S seeds, P pairs), complete.
        margin: equivalence margin; None for no equivalence test.
        bounds: the differences' range, e.g. (-1, 1) for rates; the interval is clipped to it.

    Returns:
        n is the number of seeds; no interval or p-value with fewer than two seeds or pairs.
    """
    num_seeds, num_pairs = differences_SP.shape
    diff = float(differences_SP.mean())
    if min(num_seeds, num_pairs) < 2:
        return Comparison(diff, None, None, None, num_seeds)
    of_seeds = float(np.var(differences_SP.mean(axis=1), ddof=1)) / num_seeds
    of_pairs = float(np.var(differences_SP.mean(axis=0), ddof=1)) / num_pairs
    error = math.sqrt(of_seeds + of_pairs)
    freedom = min(num_seeds, num_pairs) - 1
    return _compare(diff, error, freedom, num_seeds, margin, confidence, bounds)


def _compare(
    diff: float,
    error: float,
    freedom: float,
    n: int,
    margin: float | None,
    confidence: float,
    bounds: tuple[float, float] | None = None,
) -> Comparison:
    if error == 0:
        return Comparison(diff, None, None, None, n)
    p_value = 2 * float(distributions.t.sf(abs(diff) / error, freedom))
    equivalence = None
    if margin is not None:
        equivalence = float(distributions.t.sf((margin - abs(diff)) / error, freedom))
    interval = _around(diff, error, freedom, confidence, bounds)
    return Comparison(diff, interval, p_value, equivalence, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def probability_best(
    groups: Sequence[Sequence[float]], rng: np.random.Generator, num_draws: int = 10_000
) -> Array:
    """How often each group's mean is the highest when its seeds are resampled; ties share.

    A bootstrap over seeds (Efron 1979), each group on its own. With fewer than about five seeds it
    understates the doubt; with one seed per group it is 0 or 1 and says nothing.

    Args:
        groups: per point, one number per seed; at least one group and one seed each.
    """
    means = np.stack(
        [
            np.asarray(group, np.float64)[
                rng.integers(0, len(group), (num_draws, len(group)))
            ].mean(axis=1)
            for group in groups
        ]
    )
    best = np.isclose(means, means.max(axis=0), rtol=0, atol=1e-12)
    share: Array = (best / best.sum(axis=0)).mean(axis=1)
    return share


@dataclass(frozen=True)
class Plateau:
    """The range of tested λ whose mean lies within the margin of the best, ends included."""

    low: float
    high: float
    num_points: int
    reaches_low_end: bool
    """The smallest tested λ > 0 belongs to it: the plateau may extend below."""
    reaches_high_end: bool


def plateau(lams: Sequence[float], means: Sequence[float], margin: float) -> Plateau | None:
    """The widest contiguous range of tested λ > 0, in log λ, within `margin` of the best mean.

    λ = 0 has no logarithm and is left out. Between tested values nothing is claimed.

    Args:
        lams: distinct, any order.
        means: mean score at each, higher is better.
        margin: in the score's unit.

    Returns:
        None without any λ > 0. Of equally wide ranges the one with the better mean.
    """
    points = sorted((lam, mean) for lam, mean in zip(lams, means, strict=True) if lam > 0)
    if not points:
        return None
    floor = max(mean for _, mean in points) - margin - 1e-12
    ranges: list[list[int]] = []
    for index, (_, mean) in enumerate(points):
        if mean < floor:
            continue
        if ranges and ranges[-1][-1] == index - 1:
            ranges[-1].append(index)
        else:
            ranges.append([index])

    def rank(members: list[int]) -> tuple[float, float]:
        width = math.log(points[members[-1]][0] / points[members[0]][0])
        return width, max(points[index][1] for index in members)

    widest = max(ranges, key=rank)
    return Plateau(
        low=points[widest[0]][0],
        high=points[widest[-1]][0],
        num_points=len(widest),
        reaches_low_end=widest[0] == 0,
        reaches_high_end=widest[-1] == len(points) - 1,
    )
