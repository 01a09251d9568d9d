import numpy as np
import pytest
from scipy.stats import ttest_ind

from pipeline import stats


def test_unpaired_is_welchs_test() -> None:
    x, y = [0.2, 0.5, 0.4, 0.9], [0.1, 0.15, 0.12]
    found = stats.unpaired(x, y, margin=0.5)
    other = ttest_ind(x, y, equal_var=False)
    assert found.p_value == pytest.approx(other.pvalue)
    assert found.interval is not None
    assert tuple(other.confidence_interval()) == pytest.approx(
        (found.interval.low, found.interval.high)
    )
    assert found.n == 3 and found.diff == pytest.approx(np.mean(x) - np.mean(y))
    assert found.p_equivalence is not None and 0.05 < found.p_equivalence < 0.5


@pytest.mark.parametrize(("x", "y"), [([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_nothing_is_told_of_one_seed_or_without_spread(x: list[float], y: list[float]) -> None:
    found = stats.unpaired(x, y, margin=0.1)
    assert (found.interval, found.p_value, found.p_equivalence) == (None, None, None)
    matrices = [np.repeat(np.array(side)[:, None], 4, axis=1) for side in (x, y)]
    two_way = stats.unpaired_two_way(*matrices, same_pairs=True, margin=0.1)
    assert two_way.interval is None and two_way.diff == pytest.approx(found.diff)


@pytest.mark.parametrize(("spread", "sizes"), [(1.0, (3, 3)), (5.0, (3, 5)), (0.3, (5, 3))])
def test_welch_covers(spread: float, sizes: tuple[int, int]) -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        found = stats.unpaired(rng.normal(1, 1, sizes[0]), rng.normal(0, spread, sizes[1]))
        assert found.interval is not None
        hits += found.interval.low <= 1 <= found.interval.high
    assert hits / 200 > 0.92


@pytest.mark.parametrize("same_pairs", [True, False])
def test_two_way_covers_new_seeds_and_new_pairs(same_pairs: bool) -> None:
    """Seeds and pairs both vary on the logit scale; the true difference is zero."""
    rng, hits, told = np.random.default_rng(2), 0, 0
    for _ in range(80):
        hardness = rng.normal(0, 1.5, (2, 40))
        rates = [
            1
            / (1 + np.exp(-(0.5 + rng.normal(0, 0.6, (3, 1)) + hardness[side * (not same_pairs)])))
            for side in (0, 1)
        ]
        episodes = [(rng.random(rate.shape) < rate).astype(float) for rate in rates]
        found = stats.unpaired_two_way(*episodes, same_pairs=same_pairs, bounds=(-1, 1))
        if found.interval is not None:
            told += 1
            hits += found.interval.low <= 0 <= found.interval.high
    assert told > 70 and hits / told >= 0.93


def test_two_way_knows_that_pairs_are_shared() -> None:
    """Hard and easy pairs cancel where both sides have the same ones."""
    rng = np.random.default_rng(3)
    rate = 1 / (1 + np.exp(-rng.normal(0, 3, 60)))
    sides = [(rng.random((8, 60)) < rate).astype(float) for _ in range(2)]
    shared, apart = (stats.unpaired_two_way(*sides, same_pairs=same) for same in (True, False))
    assert shared.interval is not None and apart.interval is not None
    assert shared.interval.high - shared.interval.low < 0.6 * (
        apart.interval.high - apart.interval.low
    )


def test_p_value_meets_the_interval() -> None:
    rng = np.random.default_rng(4)
    x, y = (rng.random((4, 30)) < rate for rate in (0.8, 0.3))
    found = stats.unpaired_two_way(x.astype(float), y.astype(float), False, margin=0.1)
    at_p = stats.unpaired_two_way(
        x.astype(float), y.astype(float), False, confidence=1 - (found.p_value or 0)
    )
    assert at_p.interval is not None and at_p.interval.low == pytest.approx(0, abs=1e-6)
    assert found.p_equivalence is not None and found.p_equivalence > 0.9
