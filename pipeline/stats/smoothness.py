"""How smoothly a training curve falls."""

from collections.abc import Sequence

import numpy as np

from pipeline.stats.intervals import Array

WINDOW = 100
SIGMAS = 6.0
FACTOR = 1.5
BLOCKS = 20


def bursts_per_1000(values: Sequence[float] | Array) -> float | None:
    """How often, in 1,000 steps, a positive curve (a loss, a gradient norm) bursts upwards.

    A burst is a run of steps above both 1.5 times the median of the 100 steps before and six robust
    standard deviations (1.4826 × median absolute deviation) of their logarithm. A spike of any length
    shorter than half a window counts once.

    Args:
        values: one per recorded step; what is not finite and positive is left out.

    Returns:
        None for fewer than 200 values: the first 100 have no steps before them to be judged by.
    """
    curve = np.asarray(values, np.float64)
    curve = np.log(curve[np.isfinite(curve) & (curve > 0)])
    if len(curve) < 2 * WINDOW:
        return None
    before = np.lib.stride_tricks.sliding_window_view(curve, WINDOW)[:-1]
    middle = np.median(before, axis=1)
    spread = 1.4826 * np.median(np.abs(before - middle[:, None]), axis=1)
    high = curve[WINDOW:] > middle + np.maximum(SIGMAS * spread, np.log(FACTOR))
    bursts = int(high[0]) + int(np.sum(high[1:] & ~high[:-1]))
    return 1000 * bursts / len(high)


def falling_share(values: Sequence[float] | Array) -> float | None:
    """Share of falls from one twentieth of the curve to the next, by their medians; 1 is monotone.

    Args:
        values: one per recorded step; what is not finite is left out.

    Returns:
        None for fewer than 40 values.
    """
    curve = np.asarray(values, np.float64)
    curve = curve[np.isfinite(curve)]
    if len(curve) < 2 * BLOCKS:
        return None
    medians = np.array([np.median(block) for block in np.array_split(curve, BLOCKS)])
    return float(np.mean(np.diff(medians) < 0))
