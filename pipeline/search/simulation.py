"""Searches on a recorded response curve: how many trials each strategy needs to land on the plateau.

The curve is what a finished λ sweep measured: its means over seeds, interpolated over log λ, and its
spread between seeds. The strategies are the real ones; only training is replaced by a draw.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.search import Adaptive, best, next_round
from pipeline.search.golden_section import rounded
from pipeline.search.settings import Bisect, Mode, Optuna, Outcome, Suggestion, parse_search
from pipeline.stats import wilson

Array = npt.NDArray[np.float64]
KEY = "loss.lam"
STRATEGIES = ("grid", "random", "bisect", "tpe")
GRID_SEEDS = 3
"""A grid repeats each of its λ with so many seeds, as the λ sweep does."""
OWN_WEIGHT = 0.5
"""Share of a λ's own variance in its noise; the rest is the variance pooled over all λ."""


@dataclass(frozen=True)
class Curve:
    """A response curve with the noise between seeds.

    Attributes:
        logs: log10 λ of the recorded points, ascending.
        means: over seeds.
        stds: between seeds, drawn towards the pooled one.
        residuals: of all runs, standardised: what seed noise looks like, rare failures included.
        is_rate: values are clipped to [0, 1].
    """

    logs: Array
    means: Array
    stds: Array
    residuals: Array
    is_rate: bool

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest recorded λ."""
        return rounded(10 ** self.logs[0]), rounded(10 ** self.logs[-1])

    @cached_property
    def _interpolated(self) -> Callable[[Array], Array]:
        from scipy.interpolate import PchipInterpolator  # half a second to import

        interpolated: Callable[[Array], Array] = PchipInterpolator(self.logs, self.means)
        return interpolated

    def outcomes(self, lams: Sequence[float] | Array) -> Array:
        """Every value that a seed could give: one row per λ, all equally likely."""
        at = np.clip(np.log10(lams), self.logs[0], self.logs[-1])
        means = self._interpolated(at)
        stds = np.interp(at, self.logs, self.stds)
        values = means[:, None] + stds[:, None] * self.residuals[None, :]
        return np.clip(values, 0.0, 1.0) if self.is_rate else values

    def truth(self, lams: Sequence[float] | Array) -> Array:
        """The mean over seeds at each λ, clipping included."""
        return self.outcomes(lams).mean(axis=1)


def make_curve(values: Mapping[float, Sequence[float]], is_rate: bool) -> Curve:
    """The curve of recorded values, by λ one per seed.

    Raises:
        ValueError: fewer than three λ above 0, or never two seeds.
    """
    lams = sorted(lam for lam, found in values.items() if lam > 0 and found)
    if len(lams) < 3:
        raise ValueError(f"a response curve needs at least 3 λ above 0, this sweep has {len(lams)}")
    groups = [np.asarray(values[lam], np.float64) for lam in lams]
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        raise ValueError("seed noise needs at least two seeds at some λ, this sweep has one each")
    squares = np.array([float(((group - group.mean()) ** 2).sum()) for group in groups])
    pooled = squares.sum() / freedom
    own = [s / (len(g) - 1) if len(g) > 1 else pooled for s, g in zip(squares, groups, strict=True)]
    stds = np.sqrt(OWN_WEIGHT * np.array(own) + (1 - OWN_WEIGHT) * pooled)
    residuals = np.concatenate(
        [(g - g.mean()) / std for g, std in zip(groups, stds, strict=True) if len(g) > 1 and std]
        or [np.zeros(1)]
    )
    scale = float(residuals.std()) or 1.0
    means = np.array([float(group.mean()) for group in groups])
    return Curve(np.log10(lams), means, stds, residuals / scale, is_rate)


@dataclass(frozen=True)
class Plateau:
    """Every λ whose true mean is within the margin of the best."""

    best: float
    margin: float
    mode: Mode
    low: float
    high: float

    @property
    def floor(self) -> float:
        """The mean that a λ on it has at least (with mode min: at most)."""
        return self.best - self.margin if self.mode == "max" else self.best + self.margin

    def holds(self, mean: float) -> bool:
        """Whether a true mean is on it."""
        beyond = self.floor - mean if self.mode == "max" else mean - self.floor
        return beyond <= 1e-9


def find_plateau(curve: Curve, mode: Mode, margin: float) -> Plateau:
    """The plateau of a curve, looked for at 1,001 λ evenly spaced in log λ."""
    lams = 10 ** np.linspace(curve.logs[0], curve.logs[-1], 1001)
    truth = curve.truth(lams)
    peak = float(truth.max() if mode == "max" else truth.min())
    inside = lams[np.abs(truth - peak) <= margin + 1e-9]
    return Plateau(peak, margin, mode, float(inside.min()), float(inside.max()))


@dataclass(frozen=True)
class Step:
    """One simulated trial, and what the search would recommend after it."""

    lam: float
    value: float
    recommended: float
    truth: float


def make_search(
    strategy: str, curve: Curve, objective: str, mode: Mode, budget: int, seed: int
) -> Adaptive:
    """The real search that a strategy is; a grid only borrows the rule that picks its best point."""
    low, high = curve.span
    table: dict[str, Any] = {"objective": objective, "mode": mode, "budget": budget}
    if strategy == "bisect":
        table |= {"kind": "bisect", "key": KEY, "low": low, "high": high}
    else:
        space = {KEY: {"low": low, "high": high, "log": True}}
        sampler = "tpe" if strategy == "tpe" else "random"
        table |= {"kind": "optuna", "sampler": sampler, "space": space, "seed": seed}
    search = parse_search(table, f"simulated {strategy}")
    assert isinstance(search, Bisect | Optuna)
    return search


def grid_trials(curve: Curve, budget: int, rng: np.random.Generator) -> list[Suggestion]:
    """The grid that the budget allows: λ evenly spaced in log λ, one seed of all after the other.

    Within a seed the order is drawn: a grid has none of its own, and neither end may have it easier.
    """
    num_points = max(budget // GRID_SEEDS, 2)
    lams = 10 ** np.linspace(curve.logs[0], curve.logs[-1], num_points)
    points = [{KEY: rounded(lam)} for lam in lams.tolist()]
    every = [
        Suggestion(points[place], seed, "the next of the grid")
        for seed in range(GRID_SEEDS)
        for place in rng.permutation(num_points)
    ]
    return every[:budget]


def simulate(
    strategy: str, curve: Curve, objective: str, mode: Mode, budget: int, key: Sequence[int]
) -> list[Step]:
    """One simulated search, trial by trial; it may end before the budget.

    Args:
        key: numbers that make this repetition's random stream its own.
    """
    rng = np.random.default_rng(list(key))
    search = make_search(strategy, curve, objective, mode, budget, int(rng.integers(2**31)))
    outcomes: list[Outcome] = []
    steps: list[Step] = []
    while len(outcomes) < budget:
        if strategy == "grid":
            suggestions = [] if outcomes else grid_trials(curve, budget, rng)
        else:
            suggestions = next_round(search, outcomes)
        if not suggestions:
            break
        for suggestion in suggestions:
            lam = suggestion.overrides[KEY]
            value = float(rng.choice(curve.outcomes([lam])[0]))
            outcomes.append(Outcome(suggestion.overrides, suggestion.seed, value))
            found = best(search, outcomes)
            assert found is not None
            taken = found.overrides[KEY]
            steps.append(Step(lam, value, taken, float(curve.truth([taken])[0])))
    return steps


@dataclass(frozen=True)
class Cost:
    """What a strategy costs over all repetitions.

    Attributes:
        shares: inside the plateau after 1, 2, ... trials, with 95 % Wilson intervals.
        needed: per repetition the trials after which its recommendation stays inside; None: never.
    """

    strategy: str
    shares: tuple[tuple[float, float, float], ...]
    needed: tuple[int | None, ...]

    @property
    def median(self) -> int | None:
        """Trials after which at least half of the searches stay inside; None: never within the budget."""
        return self.within(0.5)

    def within(self, share: float) -> int | None:
        """Trials after which at least this share of the searches stays inside."""
        ordered = sorted(n for n in self.needed if n is not None)
        place = math.ceil(share * len(self.needed))
        return ordered[place - 1] if place <= len(ordered) else None

    @property
    def num_never(self) -> int:
        """Searches whose recommendation is outside when the budget ends."""
        return sum(n is None for n in self.needed)


def cost(
    strategy: str, repetitions: Sequence[Sequence[Step]], plateau: Plateau, budget: int
) -> Cost:
    """Counts over repetitions; a search that ended early keeps its recommendation."""
    inside = np.array(
        [
            [plateau.holds(steps[min(k, len(steps) - 1)].truth) for k in range(budget)]
            for steps in repetitions
        ]
    )
    shares = []
    for column in inside.T:
        interval = wilson(int(column.sum()), len(column))
        assert interval is not None
        shares.append((float(column.mean()), interval.low, interval.high))
    needed = [_settled(row.tolist()) for row in inside]
    return Cost(strategy, tuple(shares), tuple(needed))


def _settled(inside: Sequence[bool]) -> int | None:
    if not inside[-1]:
        return None
    outside = [k for k, flag in enumerate(inside) if not flag]
    return outside[-1] + 2 if outside else 1


def run_all(
    curve: Curve,
    objective: str,
    mode: Mode,
    budget: int,
    num_repetitions: int,
    seed: int,
    progress: Callable[[str, int], None],
) -> dict[str, list[list[Step]]]:
    """Every strategy as often as asked; the same arguments give the same steps."""
    found: dict[str, list[list[Step]]] = {}
    for number, strategy in enumerate(STRATEGIES):
        found[strategy] = []
        for repetition in range(num_repetitions):
            key = (seed, number, repetition)
            found[strategy].append(simulate(strategy, curve, objective, mode, budget, key))
            progress(strategy, repetition + 1)
    return found
