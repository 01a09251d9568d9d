import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pipeline import stats


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (44, 50, 0.7620, 0.9438),  # house-style: 0.76-0.94
        (440, 500, 0.8486, 0.9056),  # house-style: 0.85-0.91
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(successes: int, n: int, low: float, high: float) -> None:
    interval = stats.wilson(successes, n)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_needs_trials_and_sane_counts() -> None:
    assert stats.wilson(0, 0) is None
    with pytest.raises(ValueError, match="successes must be in"):
        stats.wilson(3, 2)


def test_t_interval_against_tables() -> None:
    interval = stats.t_interval([1.0, 2.0, 3.0])
    assert interval is not None
    half = 4.302653 / math.sqrt(3)  # t table, 2 degrees of freedom, two-sided 95 %
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_t_interval_is_clipped_and_refuses_to_invent() -> None:
    clipped = stats.t_interval([0.9, 1.0, 0.8], bounds=(0.0, 1.0))
    assert clipped is not None and clipped.high == 1.0
    assert clipped.low == pytest.approx(0.9 - 4.302653 * 0.1 / math.sqrt(3), abs=1e-5)
    assert stats.t_interval([0.5]) is None
    assert stats.t_interval([]) is None
    assert stats.t_interval([0.0, 0.0, 0.0]) is None


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_t_interval_covers_at_its_rate(num_seeds: int) -> None:
    rng = np.random.default_rng(0)
    intervals = [stats.t_interval(rng.normal(2.0, 3.0, num_seeds)) for _ in range(4000)]
    covered = np.mean([i is not None and i.low <= 2.0 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_paired_t_equals_scipy_and_holds_its_level() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (2, 30))
    result = stats.paired_t(x - y)
    expected = scipy_stats.ttest_rel(x, y)
    interval = expected.confidence_interval()
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.interval is not None
    assert (result.interval.low, result.interval.high) == pytest.approx(
        (interval.low, interval.high)
    )
    false = [stats.paired_t(rng.normal(0, 1, 10)).p_value or 0.0 for _ in range(3000)]
    assert np.mean(np.array(false) < 0.05) == pytest.approx(0.05, abs=0.015)


def test_paired_tests_say_nothing_without_spread() -> None:
    assert stats.paired_t([0.3]) == stats.Comparison(0.3, None, None, None, 1)
    assert stats.paired_t([0.3, 0.3]).p_value is None
    assert stats.paired_two_way(np.ones((1, 20))).interval is None
    assert stats.paired_two_way(np.ones((3, 20))).p_value is None


def test_equivalence_is_small_only_inside_the_margin() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.01, (5, 50))
    inside = stats.paired_two_way(noise, margin=0.1).p_equivalence
    outside = stats.paired_two_way(noise + 0.2, margin=0.1).p_equivalence
    assert inside is not None and inside < 0.01
    assert outside is not None and outside > 0.99


def test_spread_and_robust_means() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 100.0, -50.0, 5.0, 6.0]
    assert stats.iqm(values) == pytest.approx(scipy_stats.trim_mean(values, 0.25))
    assert stats.iqm([1.0, 2.0, 6.0]) == 3.0
    assert stats.std([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert stats.iqr([0.0, 1.0, 2.0, 3.0, 4.0]) == 2.0
    assert stats.std([1.0]) is None and stats.iqr([1.0]) is None
    assert stats.optimality_gap([0.5, 1.5]) == pytest.approx(0.25)


def test_probability_of_improvement_is_mann_whitney() -> None:
    x, y = [0.9, 0.8, 0.5], [0.5, 0.1]
    u = scipy_stats.mannwhitneyu(x, y).statistic
    assert stats.probability_of_improvement(x, y) == pytest.approx(u / 6)
    assert stats.probability_of_improvement([1.0], [1.0]) == 0.5


def test_holm_against_published_example() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_holm_keeps_the_family_error() -> None:
    rng = np.random.default_rng(5)
    errors = np.mean([min(stats.holm(list(rng.uniform(size=6)))) < 0.05 for _ in range(4000)])
    assert errors < 0.06


def test_probability_best_shares_ties() -> None:
    draws = np.array([[0.5, 0.7, 0.2], [0.5, 0.6, 0.2], [0.1, 0.2, 0.2]])
    shares = stats.probability_best(draws)
    assert shares == pytest.approx([(0.5 + 1 + 1 / 3) / 3, (0.5 + 1 / 3) / 3, 1 / 9])


def test_plateau_is_the_widest_range_near_the_best() -> None:
    lams, means = [0.0, 0.03, 0.1, 0.3, 1.0], [0.95, 0.4, 0.9, 0.83, 0.5]
    found = stats.plateau(lams, means, margin=0.1)
    assert found == stats.Plateau(0.1, 0.3, 2, False, False)
    assert stats.plateau(lams[::-1], means[::-1], margin=0.1) == found
    assert stats.plateau([0.0], [1.0], margin=0.1) is None
    assert stats.plateau([0.0, 0.2], [1.0, 0.2], margin=0.1) == stats.Plateau(
        0.2, 0.2, 1, True, True
    )


def test_plateau_with_a_gap_takes_the_wider_part() -> None:
    found = stats.plateau([0.01, 0.02, 0.1, 1.0], [0.9, 0.3, 0.85, 0.84], margin=0.1)
    assert found is not None and (found.low, found.high) == (0.1, 1.0)
