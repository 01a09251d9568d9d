"""Each statistic against a simulation with a known truth, and the robust aggregates against rliable's formulas."""

import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, norm, t

from pipeline import stats

ROOT = Path(__file__).parents[2]


def sweep(rng, num_seeds, num_pairs, centre=2.0, of_seeds=0.6, of_pairs=1.5):
    effects = rng.normal(0, of_seeds, (num_seeds, 1)) + rng.normal(0, of_pairs, (1, num_pairs))
    return (rng.random((num_seeds, num_pairs)) < expit(centre + effects)).astype(float)


def truth(centre=2.0, of_seeds=0.6, of_pairs=1.5):
    nodes, weights = np.polynomial.hermite_e.hermegauss(81)
    rates = expit(centre + math.hypot(of_seeds, of_pairs) * nodes)
    return float(np.sum(weights * rates) / np.sum(weights))


@pytest.mark.parametrize(("num_seeds", "num_pairs"), [*product((2, 3, 5, 10), (50,)), (3, 300)])
def test_rate_interval_covers_new_seeds_and_new_pairs(num_seeds, num_pairs):
    rng = np.random.default_rng(0)
    intervals = [stats.rate_interval(sweep(rng, num_seeds, num_pairs)) for _ in range(400)]
    given = [i for i in intervals if i is not None]
    assert len(given) > 390
    assert np.mean([i.low <= truth() <= i.high for i in given]) >= 0.93


def test_neither_t_over_seeds_nor_pooling_covers_new_pairs():
    rng = np.random.default_rng(1)
    over_seeds = pooled = 0
    for _ in range(300):
        found = sweep(rng, 10, 50)
        of_seeds = stats.t_interval(found.mean(axis=1))
        of_all = stats.wilson(int(found.sum()), found.size)
        over_seeds += of_seeds.low <= truth() <= of_seeds.high
        pooled += of_all.low <= truth() <= of_all.high
    assert over_seeds / 300 < 0.9 and pooled / 300 < 0.8


def test_rate_interval_stays_inside_and_says_nothing_without_spread():
    almost = np.ones((3, 50))
    almost[0, 0] = 0
    interval = stats.rate_interval(almost)
    assert 0 < interval.low < almost.mean() < interval.high < 1
    assert stats.rate_interval(np.ones((3, 50))) is None
    assert stats.rate_interval(np.zeros((3, 50))) is None
    assert stats.rate_interval(almost[:1]) is None
    mirrored = stats.rate_interval(1 - almost)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - interval.high, 1 - interval.low))


@pytest.mark.parametrize("num_seeds", [2, 3, 10])
def test_paired_differences_cover_and_their_p_values_are_uniform_enough(num_seeds):
    rng = np.random.default_rng(2)
    covered, rejected = 0, 0
    for _ in range(300):
        pairs = rng.normal(0, 1.5, (1, 100))
        runs = [
            (rng.random((num_seeds, 100)) < expit(2 + rng.normal(0, 0.6, (num_seeds, 1)) + pairs))
            for _ in range(2)
        ]
        found = stats.paired_two_way(runs[0] * 1.0 - runs[1], margin=0.1)
        covered += found.interval.low <= 0 <= found.interval.high
        rejected += found.p_value < 0.05
        assert (found.p_value < 0.05) == (not found.interval.low <= 0 <= found.interval.high)
    assert covered / 300 >= 0.93 and rejected / 300 <= 0.07


def test_two_way_error_with_one_source_is_student_t():
    only_seeds = np.repeat([[0.1], [0.4], [0.2]], 20, axis=1)
    found = stats.paired_two_way(only_seeds)
    plain = stats.paired_t([0.1, 0.4, 0.2])
    assert found.p_value == pytest.approx(plain.p_value, rel=1e-6)
    assert found.interval.low == pytest.approx(plain.interval.low)


def test_equivalence_against_a_published_value_keeps_its_error_rate():
    """At the margin itself the test must say "equivalent" in no more than 5 of 100 sweeps."""
    rng = np.random.default_rng(3)
    at_margin = [stats.against_value(sweep(rng, 5, 100), truth() - 0.1, 0.1) for _ in range(200)]
    assert np.mean([one.p_equivalence < 0.05 for one in at_margin]) <= 0.06
    near = [stats.against_value(sweep(rng, 30, 300), truth(), 0.1) for _ in range(50)]
    assert np.mean([one.p_equivalence < 0.05 for one in near]) > 0.9


@pytest.mark.parametrize(("successes", "n"), product((0, 1, 3), (3, 10)))
def test_exact_interval_is_clopper_pearson(successes, n):
    found = binomtest(successes, n).proportion_ci(method="exact")
    interval = stats.exact(successes, n)
    assert (interval.low, interval.high) == pytest.approx((found.low, found.high))
    assert stats.exact(0, 0) is None


def test_exact_never_covers_too_little_where_wilson_does():
    def coverage(interval, share, n):
        found = [interval(k, n) for k in range(n + 1)]
        chances = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
        return sum(p for p, i in zip(chances, found) if i.low <= share <= i.high)

    designs = list(product(np.linspace(0.02, 0.98, 49), (2, 3, 5, 10)))
    assert min(coverage(stats.exact, share, n) for share, n in designs) >= 0.95
    assert min(coverage(stats.wilson, share, n) for share, n in designs) < 0.92


@pytest.mark.parametrize("num_evals", [1, 3])
def test_components_are_recovered(num_evals):
    rng = np.random.default_rng(4)
    found = []
    for _ in range(300):
        seeds = rng.normal(0, 0.3, (8, 1, 1))
        evals = rng.normal(0, 0.2 * (num_evals > 1), (1, num_evals, 1))
        pairs = rng.normal(0, 0.4, (1, num_evals, 30))
        noise = rng.normal(0, 0.5, (8, num_evals, 30))
        found.append(stats.components(seeds + evals + pairs + noise))
    assert np.mean([one.seed for one in found]) == pytest.approx(0.09, rel=0.15)
    assert np.mean([one.pair for one in found]) == pytest.approx(0.16, rel=0.1)
    assert np.mean([one.residual for one in found]) == pytest.approx(0.25, rel=0.05)
    if num_evals == 1:
        assert found[0].eval_seed is None and found[0].seed_by_eval is None
    else:
        assert np.mean([one.eval_seed for one in found]) == pytest.approx(0.04, rel=0.35)
        assert np.mean([one.seed_by_eval for one in found]) < 0.005


def test_components_need_two_seeds_and_two_pairs():
    assert stats.components(np.ones((1, 1, 20))) is None
    assert stats.components(np.ones((3, 1, 1))) is None


def test_needed_seeds_do_halve_the_half_width():
    """What the page sends people to run: simulated, with the interval that the page then prints."""
    rng = np.random.default_rng(5)
    parts = stats.Components(seed=0.01, eval_seed=None, pair=0.02, seed_by_eval=None, residual=0.1)
    now = stats.half_width(parts, 3, 1, 100)
    needed = stats.needed_seeds(parts, now / 2, 3, 1, 100)

    def widths(num_seeds):
        found = []
        for _ in range(250):
            values = rng.normal(0, 0.1, (num_seeds, 1)) + rng.normal(0, 0.02**0.5, (1, 100))
            values = values + rng.normal(0, 0.1**0.5, (num_seeds, 100))
            interval = stats.paired_two_way(values).interval
            found.append((interval.high - interval.low) / 2)
        return float(np.sqrt(np.mean(np.square(found))))

    assert widths(3) == pytest.approx(now, rel=0.1)
    assert widths(needed) <= 1.1 * now / 2
    assert widths(needed - 1) > 0.85 * now / 2


def test_no_number_of_seeds_or_pairs_helps_where_the_other_is_the_limit():
    of_pairs = stats.Components(0.0, None, 0.2, None, 0.01)
    assert (
        stats.needed_seeds(of_pairs, 0.5 * stats.half_width(of_pairs, 3, 1, 50), 3, 1, 50) is None
    )
    of_seeds = stats.Components(0.1, None, 0.0, None, 0.01)
    assert (
        stats.needed_pairs(of_seeds, 0.5 * stats.half_width(of_seeds, 3, 1, 50), 3, 1, 50) is None
    )


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_probability_best_is_calibrated(num_seeds):
    """Of the points that it is surest of, at least as many are the best as it says."""
    rng = np.random.default_rng(6)
    said, were = [], []
    for _ in range(400):
        centres = rng.normal(1.5, 0.8, 4)
        runs = [sweep(rng, num_seeds, 50, centre, 0.5, 0.01).mean(axis=1) for centre in centres]
        draws = stats.draw_means([(list(rates), 50) for rates in runs], rng, 400)
        best = int(np.argmax([rates.mean() for rates in runs]))
        said.append(stats.probability_best(draws)[best])
        were.append(best == int(np.argmax(centres)))
    said, were = np.array(said), np.array(were)
    assert said.mean() <= were.mean() + 0.04, "surer than it is right"
    sure = said >= np.quantile(said, 2 / 3)
    assert were[sure].mean() >= said[sure].mean() - 0.05


def test_draws_need_two_seeds_and_are_reproducible():
    assert stats.draw_means([([0.5], 50), ([0.1, 0.2], 50)], np.random.default_rng(0)) is None
    groups = [([0.9, 0.8], 50), ([0.5, 0.6], 50), ([0.9, 0.8], 50)]
    first, second = (stats.draw_means(groups, np.random.default_rng(0)) for _ in range(2))
    assert np.array_equal(first, second)
    share = stats.probability_best(first)
    assert share.sum() == pytest.approx(1) and share[0] == pytest.approx(share[2], abs=0.06)


def test_regret_and_margin_follow_the_draws():
    draws = np.array([[0.9, 0.8, 0.7, 0.9], [0.5, 0.85, 0.9, 0.4]])
    mean, interval = stats.regret(draws, 0)
    assert mean == pytest.approx((0 + 0.05 + 0.2 + 0) / 4) and interval.low == 0.0
    assert stats.within_margin(draws, 0.1) == pytest.approx([0.75, 0.5])


def test_plateau_ends_follow_the_draws_and_slopes_are_per_decade():
    lams = [0.01, 0.1, 1.0]
    draws = np.array([[0.2, 0.9], [0.9, 0.9], [0.85, 0.3]])
    low, high = stats.plateau_ends(lams, draws, 0.1)
    assert (low.low, low.high, high.low, high.high) == (0.01, 0.1, 0.1, 1.0)
    rng = np.random.default_rng(1)
    many = [0.0, 3.0, 0.01, 0.1, 1.0, 0.3]
    values = rng.uniform(0, 1, (6, 300))
    one_by_one = [stats.plateau(many, column, 0.4) for column in values.T]
    low, high = stats.plateau_ends(many, values, 0.4, confidence=0.5)
    for end, name in ((low, "low"), (high, "high")):
        ends = [getattr(one, name) for one in one_by_one]
        assert (end.low, end.high) == tuple(np.quantile(ends, [0.25, 0.75], method="nearest"))
    assert stats.plateau_ends([0.0], values[:1], 0.4) is None
    found = stats.plateau(lams, [0.2, 0.9, 0.85], 0.1)
    below, above = stats.outer_slopes(lams, [0.2, 0.9, 0.85], found)
    assert below == pytest.approx(0.7) and above is None


def test_bursts_are_counted_once_each_and_never_in_smooth_noise():
    rng = np.random.default_rng(7)
    smooth = np.exp(-np.arange(3000) / 600) + 0.05
    noisy = smooth * np.exp(rng.normal(0, 0.1, 3000))
    assert stats.bursts_per_1000(noisy) == 0.0
    for start in (500, 1500, 2500):
        noisy[start : start + 5] *= 4
    assert stats.bursts_per_1000(noisy) == pytest.approx(1000 * 3 / 2900)
    assert stats.bursts_per_1000(noisy * 1e-6) == stats.bursts_per_1000(noisy)
    assert stats.bursts_per_1000(noisy[:150]) is None


def test_falling_share_is_one_for_a_falling_curve_and_half_for_noise():
    rng = np.random.default_rng(8)
    assert stats.falling_share(np.linspace(1, 0, 400)) == 1.0
    assert stats.falling_share(np.linspace(0, 1, 400)) == 0.0
    shares = [stats.falling_share(rng.normal(size=400)) for _ in range(100)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert stats.falling_share([1.0] * 10) is None


def test_bootstrap_interval_is_the_percentile_one():
    rng = np.random.default_rng(9)
    values = rng.normal(0, 1, 400)
    found = stats.stratified_bootstrap([values], lambda x: float(x[0].mean()), rng, 4000)
    half = norm.ppf(0.975) * values.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.01
    )
    assert stats.stratified_bootstrap([[0.5], [0.2]], lambda x: 0.0, rng) is None


@pytest.mark.parametrize(("num_runs", "expected"), [(2, 0.5), (3, 0.77), (5, 0.84), (10, 0.89)])
def test_why_a_seed_bootstrap_carries_no_headline(num_runs, expected):
    rng = np.random.default_rng(10)
    hits = 0
    for _ in range(150):
        runs = rng.normal(0, 1, num_runs)
        found = stats.stratified_bootstrap([runs], lambda x: float(x[0].mean()), rng, 200)
        hits += found.low <= 0 <= found.high
    assert hits / 150 == pytest.approx(expected, abs=0.1)


def test_half_width_with_seeds_only_is_student_t():
    parts = stats.Components(0.04, None, 0.0, None, 0.0)
    assert stats.half_width(parts, 4, 1, 50) == pytest.approx(t.ppf(0.975, 3) * 0.2 / 2)


RLIABLE = """
import json, sys
import numpy as np
from rliable import library, metrics
x, y = np.array(json.load(open(sys.argv[1]))["x"]), np.array(json.load(open(sys.argv[1]))["y"])
taus = np.linspace(0, 1, 21)
def aggregates(scores):
    return np.array([metrics.aggregate_iqm(scores), metrics.aggregate_optimality_gap(scores)])
ends = library.get_interval_estimates({"x": x}, aggregates, reps=20000)[1]["x"]
profile = library.create_performance_profile({"x": x}, taus, reps=20)[0]["x"]
print(json.dumps({
    "iqm": metrics.aggregate_iqm(x), "gap": metrics.aggregate_optimality_gap(x),
    "improvement": metrics.probability_of_improvement(x, y),
    "profile": profile.tolist(), "ends": ends.tolist(),
}))
"""


@pytest.mark.interop
def test_aggregates_agree_with_rliable(tmp_path):
    """$RLIABLE_PYTHON: a Python that has rliable (and pandas < 3, which its arch needs)."""
    import json
    import os

    python = os.environ.get("RLIABLE_PYTHON", sys.executable)
    rng = np.random.default_rng(11)
    x, y = rng.beta(4, 2, (7, 3)), rng.beta(3, 2, (5, 3))
    given = tmp_path / "scores.json"
    given.write_text(json.dumps({"x": x.tolist(), "y": y.tolist()}))
    done = subprocess.run([python, "-c", RLIABLE, given], capture_output=True, text=True)
    if "No module named 'rliable'" in done.stderr:
        pytest.skip("set RLIABLE_PYTHON to a Python with rliable and 'pandas<3'")
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert stats.iqm(x.ravel()) == pytest.approx(theirs["iqm"], abs=1e-12)
    assert stats.optimality_gap(x.ravel()) == pytest.approx(theirs["gap"], abs=1e-12)
    improvement = np.mean([stats.probability_of_improvement(x[:, k], y[:, k]) for k in range(3)])
    assert improvement == pytest.approx(theirs["improvement"], abs=1e-12)
    taus = np.linspace(0, 1, 21)
    assert stats.performance_profile(x.ravel(), taus) == pytest.approx(theirs["profile"], abs=1e-12)
    for statistic, ends in ((stats.iqm, 0), (stats.optimality_gap, 1)):
        ours = stats.stratified_bootstrap(
            list(x.T), lambda runs, s=statistic: s(np.concatenate(runs)), rng, 20000
        )
        low, high = theirs["ends"][0][ends], theirs["ends"][1][ends]
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.005)
