"""Golden section over the logarithm of one field, by noisy comparisons: seeds are the replicates.

A bracket holds two inner points; the worse one becomes its end, and one inner point is used again (Kiefer
1953). Which is worse is a question about means over seeds: while it is not decided, the point with
fewer seeds gets one more. Every call judges the whole way again with all that is known now, so a cut
that later seeds no longer support is taken back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.search.settings import Bisect, Suggestion

SHRINK = (math.sqrt(5) - 1) / 2
"""The bracket keeps this share of its width at each cut."""
PRIOR_FREEDOM = 2
"""Degrees of freedom that the spread pooled over all points lends to each point's own."""

Samples = Mapping[float, Mapping[int, float]]
"""Per point its values by seed."""


@dataclass(frozen=True)
class Cut:
    """A comparison of two inner points that moved an end of the bracket."""

    winner: float
    loser: float
    sureness: float
    decided: bool


@dataclass(frozen=True)
class Way:
    """Where the search stands: its bracket, the cuts that led there, and what to train next.

    No suggestion: the bracket is narrow enough.
    """

    low: float
    high: float
    cuts: tuple[Cut, ...]
    suggestions: tuple[Suggestion, ...]

    @property
    def decades(self) -> float:
        """Width of the bracket."""
        return math.log10(self.high / self.low)


def rounded(value: float) -> float:
    """Three significant digits: what a point is named by."""
    return float(f"{value:.3g}")


def follow(search: Bisect, samples: Samples) -> Way:
    """Cuts the bracket as far as the samples decide, higher being better.

    Args:
        samples: by point as `rounded` gives it; others are used for the pooled spread only.
    """
    ends = [math.log10(search.low), math.log10(search.high)]
    width = ends[1] - ends[0]
    inner = [ends[1] - SHRINK * width, ends[0] + SHRINK * width]
    cuts: list[Cut] = []
    while ends[1] - ends[0] > search.tolerance:
        points = [rounded(10**place) for place in inner]
        values = [[*samples.get(point, {}).values()] for point in points]
        place = (rounded(10 ** ends[0]), rounded(10 ** ends[1]), tuple(cuts))
        if min(map(len, values)) < search.seeds:
            return Way(*place, _first_seeds(search, samples, points, cuts, place[:2]))
        first_is_better = sureness(values[0], values[1], samples)
        sure = abs(first_is_better - 0.5) + 0.5
        decided = sure >= search.confidence
        if not decided and min(map(len, values)) < search.max_seeds:
            return Way(*place, _one_more(search, samples, points, sure))
        means = [float(np.mean(found)) for found in values]
        keep = 0 if means[0] >= means[1] else 1
        cuts.append(Cut(points[keep], points[1 - keep], sure, decided))
        ends[1 - keep] = inner[1 - keep]
        kept, new = inner[keep], ends[0] + ends[1] - inner[keep]
        inner = [min(kept, new), max(kept, new)]
    return Way(rounded(10 ** ends[0]), rounded(10 ** ends[1]), tuple(cuts), ())


def sureness(first: Sequence[float], second: Sequence[float], samples: Samples) -> float:
    """How sure it is that the first point's mean is above the second's: one-sided Welch t.

    With one to four seeds a point's own variance says little, so it is drawn towards the one pooled over
    all points (moderated t, Smyth 2004), which also serves points with a single seed.

    Returns:
        In [0, 1]; 0.5 while no point has two seeds, or where all is equal.
    """
    groups = [np.asarray([*found.values()]) for found in samples.values()]
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return 0.5
    pooled = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / freedom
    lent = min(PRIOR_FREEDOM, freedom)
    errors, own = [], []
    for values in (np.asarray(first), np.asarray(second)):
        own.append(lent + len(values) - 1)
        squares = float(((values - values.mean()) ** 2).sum())
        errors.append((lent * pooled + squares) / own[-1] / len(values))
    diff = float(np.mean(first) - np.mean(second))
    if sum(errors) == 0:
        return 0.5 + 0.5 * float(np.sign(diff))
    welch = sum(errors) ** 2 / sum(e**2 / f for e, f in zip(errors, own, strict=True))
    from scipy.special import stdtr  # a sweep that does not search shall not wait for its import

    return float(stdtr(welch, diff / math.sqrt(sum(errors))))


def _first_seeds(
    search: Bisect,
    samples: Samples,
    points: Sequence[float],
    cuts: Sequence[Cut],
    bracket: tuple[float, float],
) -> tuple[Suggestion, ...]:
    span = f"{bracket[0]:g} to {bracket[1]:g} ({math.log10(bracket[1] / bracket[0]):.2f} decades)"
    if cuts:
        why = f"{_judgement(search, cuts[-1], samples)}; the bracket is now {span}"
    else:
        why = f"golden section of {name(search)} from {span}"
    return tuple(
        Suggestion(
            {search.key: point},
            seed,
            f"{why}; inner point {point:g}, seed {seed} of {search.seeds}",
        )
        for seed in range(search.seeds)
        for point in points
        if seed not in samples.get(point, {})
    )


def _judgement(search: Bisect, cut: Cut, samples: Samples) -> str:
    told = [f"{_mean(samples, cut.winner)} against {_mean(samples, cut.loser)}"]
    if cut.decided:
        return f"{cut.winner:g} beats {cut.loser:g} ({told[0]}, {100 * cut.sureness:.0f} % sure)"
    return (
        f"{cut.winner:g} and {cut.loser:g} cannot be told apart ({told[0]}, {100 * cut.sureness:.0f} % "
        "sure), so the higher mean decides"
    )


def _one_more(
    search: Bisect, samples: Samples, points: Sequence[float], sure: float
) -> tuple[Suggestion, ...]:
    fewest = min(len(samples[point]) for point in points)
    told = " against ".join(f"{_mean(samples, point)} at {point:g}" for point in points)
    why = (
        f"{told}: {100 * sure:.0f} % sure which is better, {100 * search.confidence:.0f} % asked; "
        f"seed {fewest}, of {search.max_seeds} at most"
    )
    return tuple(
        Suggestion({search.key: point}, next(s for s in range(fewest + 1) if s not in samples[point]), why)
        for point in points
        if len(samples[point]) == fewest
    )  # fmt: skip


def _mean(samples: Samples, point: float) -> str:
    values = [*samples[point].values()]
    return f"{np.mean(values):.3g} (n = {len(values)})"


def name(search: Bisect) -> str:
    """The searched field for readers."""
    return "λ" if search.key == "loss.lam" else search.key
