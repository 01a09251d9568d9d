"""Confidence intervals of rates and means."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betainccinv, betaincinv, expit, logit, ndtri, stdtr, stdtrit

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


def t_quantile(share: float, freedom: float) -> float:
    """Where Student's t leaves `share` below it; as `scipy.stats.t.ppf`, whose import takes a second."""
    return float(stdtrit(freedom, share))


def t_above(t: float, freedom: float) -> float:
    """The share of Student's t above `t`."""
    return float(stdtr(freedom, -t))


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Score interval of a proportion of independent trials (Wilson 1927, JASA 22).

    Right for the pairs of one trained model and for floors. Never over episodes pooled from several
    models: their common model makes them dependent. Over a handful of seeds take `exact`.

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
    z = float(ndtri(0.5 + confidence / 2))
    rate, scale = successes / n, 1 + z**2 / n
    centre = (rate + z**2 / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def exact(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Exact interval of a proportion (Clopper & Pearson 1934, Biometrika 26).

    Never covers too little, however few the trials: for shares of seeds, where Wilson's interval can cover
    90 % only.

    Args:
        successes: 0 <= successes <= n.
        n: independent trials; with 0 the answer is None.
    """
    if n == 0:
        return None
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betainccinv(successes + 1, n - successes, tail)) if successes < n else 1.0
    return Interval(low, high)


def t_interval(
    values: Sequence[float] | Array,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval | None:
    """Student-t interval of the mean over seeds (Student 1908); t and not 1.96, for seeds are few.

    It speaks of new seeds on the same clips, frames or pairs, not of new ones.

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
    half = t_quantile(0.5 + confidence / 2, len(sample) - 1) * error
    return clipped(float(sample.mean()) - half, float(sample.mean()) + half, bounds)


def clipped(low: float, high: float, bounds: tuple[float, float] | None) -> Interval:
    """The interval cut to the quantity's range."""
    least, most = bounds or (-math.inf, math.inf)
    return Interval(min(max(low, least), most), max(min(high, most), least))


@dataclass(frozen=True)
class TwoWayError:
    """Uncertainty of a grand mean over seeds and pairs, for new seeds *and* new pairs.

    The squared half-width is the sum of the squared t half-widths of seed means and of pair means, each
    with its own degrees of freedom (Graybill & Wang 1980, JASA 75: modified large-sample interval of a sum
    of variances), the two variances being those of two-way clustering without their common part taken off
    (Cameron, Gelbach & Miller 2011, JBES 29): conservative, and no wider than few seeds make it.
    """

    of_seeds: float
    of_pairs: float
    num_seeds: int
    num_pairs: int

    @classmethod
    def of(cls, values_SP: Array) -> "TwoWayError | None":
        """From (S seeds, P pairs); None where one of both is single or nothing varies."""
        num_seeds, num_pairs = values_SP.shape
        if min(num_seeds, num_pairs) < 2:
            return None
        of_seeds = float(np.var(values_SP.mean(axis=1), ddof=1)) / num_seeds
        of_pairs = float(np.var(values_SP.mean(axis=0), ddof=1)) / num_pairs
        if of_seeds + of_pairs < 1e-18:
            return None
        return cls(of_seeds, of_pairs, num_seeds, num_pairs)

    def half_width(self, upper_tail: float) -> float:
        """Of the interval that leaves `upper_tail` above it."""
        t_seeds = t_quantile(upper_tail, self.num_seeds - 1)
        t_pairs = t_quantile(upper_tail, self.num_pairs - 1)
        return math.sqrt(t_seeds**2 * self.of_seeds + t_pairs**2 * self.of_pairs)

    def upper_tail(self, distance: float) -> float:
        """One-sided p-value of a distance from the mean: where the interval's end would just reach it."""
        return tail_beyond(distance, self.half_width)


def tail_beyond(distance: float, half_width: Callable[[float], float]) -> float:
    """The upper tail whose half-width is the distance: the interval read backwards, at least 1e-12.

    Args:
        half_width: of the interval that leaves a given tail above it; falls with the tail.
    """
    if distance <= 0:
        return 1 - tail_beyond(-distance, half_width) if distance < 0 else 0.5
    low, high = math.log(1e-12), math.log(0.5)
    if half_width(math.exp(low)) <= distance:
        return math.exp(low)
    from scipy.optimize import brentq  # a quarter of a second to import

    root = brentq(lambda log: half_width(math.exp(log)) - distance, low, high, xtol=1e-10)
    return math.exp(float(root))


def rate_interval(successes_SP: Array, confidence: float = 0.95) -> Interval | None:
    """Interval of a method's success rate, for new seeds and new start/goal pairs.

    `TwoWayError` on the logit scale (delta method), so that it stays inside (0, 1) and is longer towards
    the middle, as skewed rates are. A t interval over seeds alone speaks of the pairs at hand only: with
    ten seeds and 50 pairs it covers the rate on new pairs in no more than about 80 of 100 sweeps.

    Args:
        successes_SP: (S seeds, P pairs), 0 or 1, every seed on the same pairs.

    Returns:
        None with fewer than two seeds or pairs, and where every pair of every seed ends alike.
    """
    error = TwoWayError.of(np.asarray(successes_SP, np.float64))
    if error is None:
        return None
    rate = float(np.mean(successes_SP))
    half = error.half_width((1 - confidence) / 2) / (rate * (1 - rate))
    return Interval(float(expit(logit(rate) - half)), float(expit(logit(rate) + half)))
