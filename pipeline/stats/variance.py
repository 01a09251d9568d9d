"""Where the spread of success comes from, and what to run to see more sharply."""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.stats.intervals import Array, t_quantile

MOST = 500
"""Seeds or pairs beyond which nobody is sent."""


@dataclass(frozen=True)
class Components:
    """Variances of one episode's outcome by source; each estimate is at least 0.

    Attributes:
        seed: training seeds.
        eval_seed: evaluation seeds; None with a single one, whose part is then in `pair`.
        pair: start/goal pairs of an evaluation seed.
        seed_by_eval: training seeds differ more on some evaluation seeds than on others; None as above.
        residual: a seed's luck on a pair.
    """

    seed: float
    eval_seed: float | None
    pair: float
    seed_by_eval: float | None
    residual: float


def components(values_SEP: Array) -> Components | None:
    """Variance components of a balanced design: seeds crossed with pairs nested in evaluation seeds.

    Analysis of variance, mean squares against their expectations (Searle, Casella & McCulloch 1992, ch.
    4); negative estimates become 0.

    Args:
        values_SEP: (S training seeds, E evaluation seeds, P pairs of each), complete.

    Returns:
        None with fewer than two seeds or pairs.
    """
    values = np.asarray(values_SEP, np.float64)
    num_seeds, num_evals, num_pairs = values.shape
    if min(num_seeds, num_pairs) < 2:
        return None
    grand = values.mean()
    seeds_S, evals_E = values.mean(axis=(1, 2)), values.mean(axis=(0, 2))
    cells_SE, pairs_EP = values.mean(axis=2), values.mean(axis=0)
    of_pairs = num_seeds * float(np.square(pairs_EP - evals_E[:, None]).sum())
    of_pairs /= num_evals * (num_pairs - 1)
    within = values - cells_SE[:, :, None] - pairs_EP[None] + evals_E[None, :, None]
    residual = float(np.square(within).sum()) / (num_evals * (num_seeds - 1) * (num_pairs - 1))
    of_seeds = num_evals * num_pairs * float(np.square(seeds_S - grand).sum()) / (num_seeds - 1)
    pair = max(0.0, (of_pairs - residual) / num_seeds)
    if num_evals < 2:
        seed = max(0.0, (of_seeds - residual) / num_pairs)
        return Components(seed, None, pair, None, residual)
    cross = cells_SE - seeds_S[:, None] - evals_E[None] + grand
    of_cross = num_pairs * float(np.square(cross).sum()) / ((num_seeds - 1) * (num_evals - 1))
    of_evals = num_seeds * num_pairs * float(np.square(evals_E - grand).sum()) / (num_evals - 1)
    return Components(
        seed=max(0.0, (of_seeds - of_cross) / (num_evals * num_pairs)),
        eval_seed=max(0.0, (of_evals - of_pairs - of_cross + residual) / (num_seeds * num_pairs)),
        pair=pair,
        seed_by_eval=max(0.0, (of_cross - residual) / num_pairs),
        residual=residual,
    )


def half_width(
    parts: Components, num_seeds: int, num_evals: int, num_pairs: int, confidence: float = 0.95
) -> float:
    """Half-width that `TwoWayError` is expected to have for a mean over such a design."""
    every = num_evals * num_pairs
    noise = (parts.seed_by_eval or 0.0) / (num_seeds * num_evals) + parts.residual / (
        num_seeds * every
    )
    of_seeds = parts.seed / num_seeds + noise
    of_pairs = (parts.eval_seed or 0.0) / num_evals + parts.pair / every + noise
    t_seeds, t_pairs = (t_quantile(0.5 + confidence / 2, n - 1) for n in (num_seeds, every))
    return math.sqrt(t_seeds**2 * of_seeds + t_pairs**2 * of_pairs)


def needed_seeds(
    parts: Components, wanted: float, num_seeds: int, num_evals: int, num_pairs: int
) -> int | None:
    """The fewest seeds, from `num_seeds` on, whose expected half-width is at most `wanted`; None if over `MOST`."""
    for n in range(num_seeds, MOST + 1):
        if half_width(parts, n, num_evals, num_pairs) <= wanted:
            return n
    return None


def needed_pairs(
    parts: Components, wanted: float, num_seeds: int, num_evals: int, num_pairs: int
) -> int | None:
    """The fewest pairs per evaluation seed, in steps of ten; None if over `MOST`: seeds are the limit then."""
    for n in range(num_pairs, MOST + 1, 10):
        if half_width(parts, num_seeds, num_evals, n) <= wanted:
            return n
    return None
