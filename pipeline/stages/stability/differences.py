"""Differences of success as fields of a `comparison` row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import stats
from pipeline.stages.stability.episodes import Matrix
from pipeline.stages.stability.measure import TWO_WAY

Row = dict[str, Any]
MARGIN = 0.1
"""Success rates closer than this count as practically equal (plateau, equivalence)."""
OTHER_SEEDS = "95 % t over seeds of either side and over pairs, which are the same"


def paired(differences: Sequence[Matrix]) -> Row:
    """Differences per seed over the same pairs; nothing to compare without a seed in common."""
    if not differences:
        return {"paired": False, "n": 0}
    found = stats.paired_two_way(np.array(differences), MARGIN, bounds=(-1.0, 1.0))
    return {"paired": True, **_design(found, len(differences[0]), TWO_WAY)}


def unpaired(own_SP: Matrix, other_SP: Matrix) -> Row:
    """Success of separately trained networks on the same pairs."""
    found = stats.unpaired_two_way(own_SP, other_SP, True, MARGIN, bounds=(-1.0, 1.0))
    return {"paired": False, **_design(found, own_SP.shape[1], OTHER_SEEDS)}


def _design(found: stats.Comparison, num_pairs: int, name: str) -> Row:
    method = method_of(found, name)
    return {"margin": MARGIN, "num_pairs": num_pairs, "ci_method": method, **fields_of(found)}


def method_of(found: stats.Comparison, name: str) -> str:
    """How its interval was made; why there is none."""
    return name if found.interval else "none: one seed, or nothing varies"


def fields_of(found: stats.Comparison) -> Row:
    """The numbers of a comparison by column."""
    interval = found.interval
    return {
        "diff": found.diff,
        "ci_low": interval.low if interval else None,
        "ci_high": interval.high if interval else None,
        "p_value": found.p_value,
        "p_equivalence": found.p_equivalence,
        "n": found.n,
    }
