"""Success episode by episode: what intervals, differences and the split of variance are made from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Matrix = npt.NDArray[np.float64]
Pair = tuple[int, int]
"""(eval_seed, pair_id)"""
GROUP = ("method", "env", "profile", "protocol", "planner", "eval_point")


@dataclass
class Episodes:
    """The planned episodes of one planning setting (`GROUP`).

    Attributes:
        runs: success per (point, seed) and pair, of runs that did not diverge.
        lost: (point, seed) of diverged runs: no success on any pair.
        lams: λ per point.
    """

    runs: dict[tuple[str, int], dict[Pair, float]] = field(default_factory=dict)
    lost: set[tuple[str, int]] = field(default_factory=set)
    lams: dict[str, float | None] = field(default_factory=dict)

    def pairs(self, point: str | None = None) -> list[Pair]:
        """The pairs that all runs (of a point) have in common."""
        found = [set(run) for (own, _), run in self.runs.items() if point in (None, own)]
        return sorted(set.intersection(*found)) if found else []

    def seeds(self, point: str, with_lost: bool = True) -> list[int]:
        """The training seeds of a point."""
        keys = [*self.runs, *(self.lost if with_lost else ())]
        return sorted(seed for own, seed in keys if own == point)

    def vector(self, point: str, seed: int, pairs: Sequence[Pair]) -> Matrix:
        """Success of a run on these pairs."""
        if (point, seed) in self.lost:
            return np.zeros(len(pairs))
        run = self.runs[point, seed]
        return np.array([run[pair] for pair in pairs])

    def matrix(self, point: str, pairs: Sequence[Pair], with_lost: bool = True) -> Matrix:
        """(S seeds, P pairs) of a point."""
        seeds = self.seeds(point, with_lost)
        rows = [self.vector(point, seed, pairs) for seed in seeds]
        return np.stack(rows) if rows else np.zeros((0, len(pairs)))

    def blocks(self, point: str) -> Matrix | None:
        """(S seeds, E evaluation seeds, P pairs) of a point; None where these are not balanced."""
        pairs = self.pairs(point)
        evals = sorted({eval_seed for eval_seed, _ in pairs})
        sizes = {sum(own == e for own, _ in pairs) for e in evals}
        if len(sizes) != 1:
            return None
        values = self.matrix(point, pairs)
        return values.reshape(len(values), len(evals), sizes.pop())


def read_episodes(tables: Mapping[str, pl.DataFrame]) -> dict[tuple[Any, ...], Episodes]:
    """The episodes of every planning setting; key as `GROUP`."""
    diverged = tables["trials"].filter(pl.col("status") == "diverged")
    lost = set(diverged["trial_id"].to_list())
    planned = tables["planning"].filter(pl.col("trial_id").is_not_null())
    found: dict[tuple[Any, ...], Episodes] = {}
    for key, frame in planned.group_by(*GROUP, maintain_order=True):
        episodes = found.setdefault(key, Episodes())
        for trial_id, point, lam, seed, pair, success in _rows(frame):
            episodes.lams[point] = lam
            if trial_id not in lost:
                episodes.runs.setdefault((point, seed), {})[pair] = success
        same = [pl.col(name) == value for name, value in zip(GROUP[:3], key)]
        for row in diverged.filter(*same).iter_rows(named=True):
            episodes.lams[row["point"]] = row["lam"]
            episodes.lost.add((row["point"], row["seed"]))
    return found


def _rows(
    frame: pl.DataFrame,
) -> Iterator[tuple[str, str, float | None, int, Pair, float]]:
    columns = ("trial_id", "point", "lam", "seed", "eval_seed", "pair_id", "success")
    for trial_id, point, lam, seed, eval_seed, pair_id, success in frame.select(
        columns
    ).iter_rows():
        yield trial_id, point, lam, seed, (eval_seed, pair_id), float(success)
