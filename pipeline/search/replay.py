"""Six weights against one: searches over several weights replayed on a pool of recorded trials.

A pool is what a random search measured: points and their values. A sampler that searches it gets, for
every point it asks for, the nearest recorded one that it has not had (in the unit cube of the space);
only training is replaced. LeWM's one weight is searched on its recorded curve (`simulation`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.search import next_round
from pipeline.search.settings import Choices, Optuna, Outcome, Overrides, Range
from pipeline.search.simulation import Curve, Plateau, Step, simulate

Array = npt.NDArray[np.float64]
STRATEGIES = ("lewm-bisect", "lewm-grid", "pldm-random", "pldm-tpe")
TARGET = 0.95
"""Share of the best value from which a search counts as having arrived."""
MIN_POOL = 8


@dataclass(frozen=True)
class Pool:
    """Recorded trials of a search over several weights.

    Attributes:
        search: whose space they were drawn from.
        points: their weights.
        values: the success rate of each.
        places: (N points, D weights) in the unit cube of the space, logarithmic where the space is.
    """

    search: Optuna
    points: tuple[Overrides, ...]
    values: Array
    places: Array

    @property
    def best(self) -> float:
        """The best recorded value."""
        return float(self.values.max())


def make_pool(search: Optuna, recorded: Sequence[tuple[Overrides, float]]) -> Pool:
    """A pool of recorded points.

    Raises:
        ValueError: fewer than `MIN_POOL`.
    """
    if len(recorded) < MIN_POOL:
        raise ValueError(f"a pool needs at least {MIN_POOL} finished trials, found {len(recorded)}")
    points = tuple(point for point, _ in recorded)
    values = np.array([value for _, value in recorded], np.float64)
    return Pool(search, points, values, np.stack([_place(search, point) for point in points]))


def _place(search: Optuna, point: Overrides) -> Array:
    return np.array([_share(search.space[key], point[key]) for key in search.keys])


def _share(axis: Range | Choices, value: float) -> float:
    """Where a value lies between the ends of its axis, in [0, 1]."""
    if isinstance(axis, Choices):
        return axis.choices.index(value) / (len(axis.choices) - 1)
    low, high, at = float(axis.low), float(axis.high), float(value)
    if axis.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def replay(pool: Pool, sampler: str, budget: int, key: Sequence[int]) -> list[Step]:
    """One search of the pool, trial by trial, every recorded point at most once.

    Args:
        sampler: `random` draws from the pool; `tpe` and `gp` are asked and get the nearest.
        key: numbers that make this repetition's random stream its own.

    Returns:
        Steps whose `lam` is not a number; `recommended` neither. `truth` is the recorded value of the best
        point so far, which a single run flatters.
    """
    rng = np.random.default_rng(list(key))
    budget = min(budget, len(pool.points))
    if sampler == "random":
        return _steps(pool, rng.permutation(len(pool.points))[:budget].tolist())
    search = _as_sampler(pool.search, sampler, budget, int(rng.integers(2**31)))
    free = list(range(len(pool.points)))
    taken: list[int] = []
    while len(taken) < budget:
        outcomes = [Outcome(pool.points[n], 0, float(pool.values[n])) for n in taken]
        for suggestion in next_round(search, outcomes):
            distances = np.square(pool.places[free] - _place(search, suggestion.overrides)).sum(
                axis=1
            )
            taken.append(free.pop(int(distances.argmin())))
    return _steps(pool, taken)


def _as_sampler(search: Optuna, sampler: str, budget: int, seed: int) -> Optuna:
    """The search with another sampler, budget and seed, and nothing stopped early."""
    changes = {
        "sampler": sampler,
        "budget": budget,
        "seed": seed,
        "early_stopping": None,
        "mode": "max",
    }
    return search.model_copy(update=changes)


def _steps(pool: Pool, taken: Sequence[int]) -> list[Step]:
    values = pool.values[list(taken)]
    best = np.maximum.accumulate(values)
    return [
        Step(math.nan, value, math.nan, truth)
        for value, truth in zip(values.tolist(), best.tolist(), strict=True)
    ]


def run_all(
    curve: Curve,
    pool: Pool,
    budget: int,
    num_repetitions: int,
    seed: int,
    progress: Callable[[str, int], None],
) -> dict[str, list[list[Step]]]:
    """Every strategy as often as asked; the same arguments give the same steps."""
    found: dict[str, list[list[Step]]] = {}
    for number, strategy in enumerate(STRATEGIES):
        method, kind = strategy.split("-")
        found[strategy] = []
        for repetition in range(num_repetitions):
            key = (seed, number, repetition)
            if method == "lewm":
                steps = simulate(kind, curve, pool.search.objective, "max", budget, key)
            else:
                steps = replay(pool, kind, budget, key)
            found[strategy].append(steps)
            progress(strategy, repetition + 1)
    return found


def target(best: float) -> Plateau:
    """Everything within `TARGET` of a best rate; λ plays no part."""
    return Plateau(best, (1 - TARGET) * best, "max", math.nan, math.nan)


def best_values(curve: Curve, pool: Pool) -> Mapping[str, float]:
    """The best mean of LeWM's curve and the best recorded value of the pool."""
    lams = 10 ** np.linspace(curve.logs[0], curve.logs[-1], 1001)
    return {"lewm": float(curve.truth(lams).max()), "pldm": pool.best}
