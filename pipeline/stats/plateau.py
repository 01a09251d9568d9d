"""The λ plateau, the best point and what is lost if it is not the best."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from pipeline.stats.intervals import Array, Interval


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


def draw_means(
    groups: Sequence[tuple[Sequence[float], int]], rng: np.random.Generator, num_draws: int = 4000
) -> Array | None:
    """Draws of what each point's mean success over new seeds may be, given its seeds: (points, draws).

    Student's t with the point's seeds less one degrees of freedom about its mean, on the logit scale
    (delta method): the posterior of a mean under the reference prior (Gelman et al. 2013, BDA, 3.2). A
    bootstrap over seeds, the usual way, is far too sure with few of them. The spread of a point is at least
    that of its episodes, so seeds that happen to agree do not make it certain.

    Args:
        groups: per point (success rate of each seed, episodes of a seed).

    Returns:
        None where a point has fewer than two seeds.
    """
    if not groups or min(len(rates) for rates, _ in groups) < 2:
        return None
    rows = []
    for rates, num_episodes in groups:
        n = len(rates)
        total = n * max(num_episodes, 1)
        rate = (float(np.mean(rates)) * total + 1) / (total + 2)
        variance = max(float(np.var(rates, ddof=1)) / n, rate * (1 - rate) / total)
        error = math.sqrt(variance) / (rate * (1 - rate))
        rows.append(expit(logit(rate) + error * rng.standard_t(n - 1, num_draws)))
    return np.stack(rows)


def probability_best(draws: Array) -> Array:
    """Per point the share of draws in which it is the highest; ties share."""
    best = np.isclose(draws, draws.max(axis=0), rtol=0, atol=1e-12)
    share: Array = (best / best.sum(axis=0)).mean(axis=1)
    return share


def regret(draws: Array, chosen: int) -> tuple[float, Interval]:
    """What choosing this point loses against the best one: mean over draws, and 0 to the 95 % quantile."""
    lost = draws.max(axis=0) - draws[chosen]
    return float(lost.mean()), Interval(0.0, float(np.quantile(lost, 0.95)))


def within_margin(draws: Array, margin: float) -> Array:
    """Per point the share of draws in which it lies within `margin` of the best one."""
    share: Array = (draws >= draws.max(axis=0) - margin).mean(axis=1)
    return share


def plateau_ends(
    lams: Sequence[float], draws: Array, margin: float, confidence: float = 0.95
) -> tuple[Interval, Interval] | None:
    """Where the plateau's lower and upper end lie over the draws, among the tested λ > 0.

    Args:
        lams: distinct, in the order of the draws' rows.

    Returns:
        None without any λ > 0.
    """
    order = [index for index in np.argsort(lams) if lams[index] > 0]
    if not order:
        return None
    tested, values = np.asarray(lams, np.float64)[order], draws[order]
    near = values >= values.max(axis=0) - margin - 1e-12
    widest, ends = np.full(draws.shape[1], -1.0), np.zeros((draws.shape[1], 2))
    for first, last in itertools.combinations_with_replacement(range(len(order)), 2):
        width = math.log(tested[last] / tested[first])
        rank = width + 1e-9 * values[first : last + 1].max(axis=0)  # as `plateau` breaks ties
        wins = near[first : last + 1].all(axis=0) & (rank > widest)
        widest = np.where(wins, rank, widest)
        ends[wins] = tested[first], tested[last]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(ends, tails, axis=0, method="nearest").T
    return Interval(*map(float, low)), Interval(*map(float, high))


def outer_slopes(
    lams: Sequence[float], means: Sequence[float], found: Plateau
) -> tuple[float | None, float | None]:
    """Success lost per decade of λ from each end of the plateau to the next tested λ > 0 outside.

    Returns:
        Below and above the plateau; None where it reaches the end of what was tested.
    """
    points = sorted((lam, mean) for lam, mean in zip(lams, means, strict=True) if lam > 0)
    tested = [lam for lam, _ in points]
    low, high = tested.index(found.low), tested.index(found.high)

    def slope(inside: int, outside: int) -> float | None:
        if not 0 <= outside < len(points):
            return None
        decades = abs(math.log10(tested[inside] / tested[outside]))
        return (points[inside][1] - points[outside][1]) / decades

    return slope(low, low - 1), slope(high, high + 1)
