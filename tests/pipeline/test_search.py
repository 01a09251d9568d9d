"""Searches are pure functions of their outcomes; bisection, sampling and halving keep their laws."""

import math
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from pipeline import record
from pipeline.resolve import extend, resolve
from pipeline.results import final_metrics
from pipeline.search import best, golden_section, next_round, rung_value, survivors, tried, verdict
from pipeline.search import record as search_record
from pipeline.search.checks import objective_stage
from pipeline.search.settings import Bisect, Outcome, Search, load_search, parse_search
from pipeline.spec import Request, check_base
from pipeline.storage import Storage
from pipeline.tables import SCHEMAS, make_frame, read_table, write_table

BISECT = {
    "kind": "bisect", "objective": "success_strict", "budget": 60, "low": 1e-3, "high": 10.0,
}  # fmt: skip
SPACE = {
    "loss.lam": {"low": 1e-3, "high": 10.0, "log": True},
    "model.depth": {"low": 1, "high": 4},
    "optim.precision": {"choices": ["fp32", "bf16"]},
}
OPTUNA = {
    "kind": "optuna", "objective": "success_strict", "budget": 12, "batch": 4, "space": SPACE,
}  # fmt: skip


def bisect(**more):
    return parse_search({**BISECT, **more}, "a test")


def optuna(**more):
    return parse_search({**OPTUNA, **more}, "a test")


def play(search, value, stop_after=None):
    """All outcomes of a search whose trial (overrides, seed) gives `value(overrides, seed)`."""
    outcomes, rounds = [], []
    while suggestions := next_round(search, outcomes):
        rounds.append(suggestions)
        outcomes += [Outcome(s.overrides, s.seed, value(s.overrides, s.seed)) for s in suggestions]
        if stop_after is not None and len(rounds) == stop_after:
            break
    return outcomes, rounds


def hill(peak):
    return lambda point, seed: 1.0 - 0.1 * (math.log10(point["loss.lam"]) - math.log10(peak)) ** 2


def noisy(peak, scale):
    def value(point, seed):
        rng = np.random.default_rng([seed, round(point["loss.lam"] * 1e6)])
        return hill(peak)(point, seed) + scale * float(rng.normal())

    return value


@pytest.mark.parametrize("peak", [0.0011, 0.004, 0.05, 0.3, 2.0, 9.0])
def test_a_noiseless_hill_is_found_within_tolerance_in_the_expected_trials(peak):
    search = bisect()
    outcomes, rounds = play(search, hill(peak))
    num_cuts = math.ceil(math.log(search.tolerance / 4) / math.log(golden_section.SHRINK))
    # two points, a second seed for both as long as nothing is known of the noise, a point per further cut
    assert len(outcomes) == 4 + num_cuts - 1 and len(rounds) == 2 + num_cuts - 1
    found = best(search, outcomes).overrides["loss.lam"]
    assert abs(math.log10(found / peak)) <= search.tolerance
    assert "bracket narrow enough" in verdict(search, outcomes)


def test_a_minimum_is_found_where_less_is_better():
    search = bisect(mode="min", objective="val_pred_loss")
    outcomes, _ = play(search, lambda point, seed: -hill(0.05)(point, seed))
    assert abs(math.log10(best(search, outcomes).overrides["loss.lam"] / 0.05)) <= search.tolerance


@pytest.mark.parametrize("make", [bisect, optuna])
def test_a_round_is_a_function_of_all_outcomes_and_of_nothing_else(make):
    search = make()
    value = noisy(0.05, 0.05)
    outcomes, rounds = play(search, value)
    at = 0
    for suggestions in rounds:
        assert next_round(search, outcomes[:at]) == suggestions  # resumed at any round
        swapped = list(outcomes[:at])
        last = len(rounds[rounds.index(suggestions) - 1]) if at else 0
        swapped[at - last :] = reversed(swapped[at - last :])
        assert next_round(search, swapped) == suggestions
        at += len(suggestions)
    assert len({(repr(sorted(o.overrides.items())), o.seed) for o in outcomes}) == len(outcomes)


@pytest.mark.parametrize(("make", "small"), [(bisect, 5), (optuna, 6)])
def test_a_raised_budget_goes_on_as_if_it_had_been_so_from_the_start(make, small):
    value = noisy(0.05, 0.2)
    begun, _ = play(make(budget=small), value)
    assert len(begun) == small
    whole, _ = play(make(budget=12), value)
    while suggestions := next_round(make(budget=12), begun):
        begun += [Outcome(s.overrides, s.seed, value(s.overrides, s.seed)) for s in suggestions]
    assert begun == whole


def test_noise_asks_for_seeds_until_a_comparison_is_decided_or_given_up():
    search = bisect(max_seeds=5)
    _, rounds = play(search, noisy(0.05, 0.15), stop_after=4)
    reasons = [s.reason for s in rounds[1]]
    assert [s.seed for s in rounds[1]] == [1, 1]
    assert all("50 % sure which is better, 80 % asked" in reason for reason in reasons)
    quiet = play(search, noisy(0.05, 1e-4))[0]
    loud = play(search, noisy(0.05, 0.3))[0]
    assert len(loud) > len(quiet) and max(o.seed for o in loud) == 4


def test_a_flat_curve_is_said_to_be_flat():
    search = bisect(max_seeds=3)
    outcomes, _ = play(search, lambda point, seed: [0.4, 0.5, 0.6][seed])
    assert "no comparison could be decided" in verdict(search, outcomes) and "flat" in verdict(
        search, outcomes
    )
    assert golden_section.sureness([0.5], [0.9], {1.0: {0: 0.5}, 2.0: {0: 0.9}}) == 0.5


def test_a_cut_is_taken_back_when_later_seeds_no_longer_support_it():
    search = bisect(seeds=2, max_seeds=6)
    first = [s.overrides for s in next_round(search, [])]
    left, right = first[0], first[1]
    lucky = [Outcome(left, 0, 0.50), Outcome(right, 0, 0.60), Outcome(left, 1, 0.51)]
    lucky.append(Outcome(right, 1, 0.61))
    assert all(s.overrides["loss.lam"] > left["loss.lam"] for s in next_round(search, lucky))
    more = [*lucky, Outcome(right, 2, 0.1), Outcome(right, 3, 0.05)]
    assert {s.overrides["loss.lam"] for s in next_round(search, more)} == {left["loss.lam"]}


def test_sureness_is_calibrated_where_nothing_differs():
    rng = np.random.default_rng(0)
    sure = 0
    for _ in range(2000):
        samples = {float(p): dict(enumerate(rng.normal(size=3).tolist())) for p in range(4)}
        values = [[*samples[p].values()] for p in (0.0, 1.0)]
        sure += abs(golden_section.sureness(*values, samples) - 0.5) + 0.5 >= 0.8
    assert 0.35 < sure / 2000 < 0.45  # both sides of an 80 % one-sided rule: 40 %


@pytest.mark.parametrize("make", [bisect, optuna])
def test_lost_trials_count_as_the_worst_and_the_reason_says_so(make):
    search = make()

    def value(point, seed):
        return None if point["loss.lam"] > 0.2 else hill(0.05)(point, seed)

    outcomes, _ = play(search, value)
    assert any(o.value is None for o in outcomes)
    assert best(search, outcomes).overrides["loss.lam"] <= 0.2
    lost = [found for found in tried(search, outcomes) if found.num_lost]
    assert lost and all(found.mean == 0.0 for found in lost if found.num_lost == len(found.values))
    outcomes = [Outcome(o.overrides, o.seed, math.nan) for o in outcomes]
    assert "lost and counted as the worst" in verdict(search, outcomes)


def test_losing_is_worse_than_anything_seen_where_the_objective_is_no_rate():
    search = bisect(objective="val_pred_loss", mode="min")
    points = [s.overrides for s in next_round(search, [])]
    outcomes = [Outcome(points[0], 0, 0.3), Outcome(points[1], 0, None)]
    values = [found.mean for found in tried(search, outcomes)]
    assert values[1] > values[0]


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.ci), "random"])
def test_samplers_stay_in_the_space_and_are_rebuilt_to_the_same_suggestions(sampler):
    small = {"sampler": sampler, "batch": 2, "budget": 4}
    search = optuna(**small)
    outcomes, _ = play(search, noisy(0.05, 0.05))
    for point in (o.overrides for o in outcomes):
        assert 1e-3 <= point["loss.lam"] <= 10 and point["model.depth"] in (1, 2, 3, 4)
        assert isinstance(point["model.depth"], int) and point["optim.precision"] in (
            "fp32",
            "bf16",
        )
        assert point["loss.lam"] == golden_section.rounded(point["loss.lam"])
    assert play(search, noisy(0.05, 0.05))[0] == outcomes
    assert next_round(optuna(**small, seed=1), outcomes[:2]) != next_round(search, outcomes[:2])


def test_a_point_that_comes_again_gets_the_next_seed():
    few = optuna(space={"model.depth": {"low": 1, "high": 2}}, budget=12)
    outcomes, _ = play(few, lambda point, seed: float(point["model.depth"]))
    trials = [(o.overrides["model.depth"], o.seed) for o in outcomes]
    assert len(set(trials)) == 12 and {depth for depth, _ in trials} <= {1, 2}


HALVING = {"metric": "val_pred_ratio", "mode": "min", "rungs": [500, 1000], "keep": 0.5}


def test_halving_keeps_the_best_share_and_loses_the_unknown_first():
    rule = parse_search({"early_stopping": HALVING}, "a test").early_stopping
    values = {"d": 0.1, "a": 0.2, "c": 0.2, "b": None, "e": math.nan}
    kept, stopped = survivors(rule, 500, values)
    assert kept == ["d", "a", "c"] and sorted(stopped) == ["b", "e"]
    assert "step 500" in stopped["b"] and "cannot be told" in stopped["b"]
    assert survivors(rule, 500, dict(reversed(values.items()))) == (kept, stopped)
    most = survivors(rule.model_copy(update={"mode": "max"}), 500, values)[0]
    assert most[0] == "a"
    assert survivors(rule, 500, {"a": None}) == (["a"], {})
    for n in range(1, 9):
        kept, stopped = survivors(rule, 500, {str(i): float(i) for i in range(n)})
        assert len(kept) == math.ceil(n / 2) and not set(kept) & set(stopped)


def test_the_ratio_of_a_collapsed_encoder_is_not_a_small_number():
    rule = parse_search({"early_stopping": HALVING}, "a test").early_stopping
    assert rung_value(rule, {"val_pred_loss": 0.02, "mean_std": 0.5}) == pytest.approx(0.08)
    assert rung_value(rule, {"val_pred_loss": 0.0, "mean_std": 0.0}) is None
    assert rung_value(rule, {"val_pred_loss": math.nan, "mean_std": 1.0}) is None
    assert rung_value(rule, {"loss": 1.0}) is None


@pytest.mark.parametrize("sweep", ["lambda_bisect", "lambda_optuna"])
@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_shipped_searches_resolve_to_their_first_round(sweep, profile):
    spec = resolve(Request(sweep, profile=profile))
    assert spec.search.is_adaptive and len(spec.trials) == len(next_round(spec.search, []))
    assert {t.config.seed for t in spec.trials} == {0}


def test_a_sweep_is_extended_by_suggestions_and_kept_on_storage(tmp_path):
    spec, storage = resolve(Request("lambda_bisect")), Storage(tmp_path)
    first = next_round(spec.search, [])
    known = search_record.add_round([], spec.trials, first)
    outcomes = search_record.outcomes_of(known, {t.trial_id: 0.5 for t in spec.trials})
    second = next_round(spec.search, outcomes)
    longer, trials = extend(spec, second)
    assert [t.config.seed for t in trials] == [1, 1]
    assert [t.point for t in trials] == [t.point for t in spec.trials]
    assert longer.trials == (*spec.trials, *trials) and extend(longer, second)[0] == longer
    known = search_record.add_round(known, trials, second)
    search_record.write_suggestions(storage, spec.folder, known)
    assert search_record.read_suggestions(storage, spec.folder) == known
    assert [(row["round"], row["order"]) for row in known] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    record.write(longer, storage, "command", None)
    again = record.load(storage, spec.folder)
    assert again == longer and isinstance(again.search, Bisect)
    assert record.merge(spec, storage).search == spec.search
    assert set(record.merge(spec, storage).trials) == set(longer.trials)


def test_searches_survive_json_and_old_sweeps_are_grids():
    for search in (bisect(), optuna(), Search()):
        stored = search.model_dump(mode="json", exclude_none=True)
        assert load_search(stored) == search
    assert load_search(None) == Search()
    assert not any(key.startswith("search") for key in resolve(Request("lambda")).base)


def test_only_the_budget_of_a_begun_search_may_change(tmp_path):
    def base(**more):
        path = tmp_path / "mine.toml"
        lines = [f"{key} = {value!r}" for key, value in {**BISECT, **more}.items()]
        path.write_text("\n".join(['name = "mine"', "[search]", *lines]))
        return resolve(Request(str(path))).base

    check_base(base(), base(budget=100), "mine")
    with pytest.raises(ValueError, match=r"search\.high = 10\.0, now 20\.0"):
        check_base(base(), base(high=20.0), "mine")


def test_real_rows_say_what_was_best_so_far_and_simulated_ones_outlive_them(tmp_path):
    spec, sweep = resolve(Request("lambda_bisect")), Storage(tmp_path)
    known = search_record.add_round([], spec.trials, next_round(spec.search, []))
    values = {t.trial_id: v for t, v in zip(spec.trials, (0.4, 0.7), strict=True)}
    rows = search_record.search_rows(spec, known, values)
    assert [row["best_so_far"] for row in rows] == [0.4, 0.7]
    assert rows[1]["strategy"] == "bisect" and rows[1]["objective"] == "success_strict"
    assert search_record.search_rows(spec, known, {known[1]["trial_id"]: 0.7}) == []
    simulated = make_frame([{"strategy": "grid", "repetition": 0}], SCHEMAS["search"])
    write_table(sweep, "search", simulated)
    write_table(sweep, "summary", make_frame([{"quantity": "search_floor"}], SCHEMAS["summary"]))
    fresh = {n: pl.DataFrame(schema=SCHEMAS[n]) for n in ("profiles", "summary")}
    told = search_record.search_summary(spec, known, values)
    for _ in range(2):  # written twice, nothing doubled
        for name, frame in search_record.with_search(fresh, sweep, rows, told).items():
            write_table(sweep, name, frame)
    assert read_table(sweep, "search")["repetition"].to_list().count(None) == 2
    assert read_table(sweep, "search").height == 3
    quantities = read_table(sweep, "summary")["quantity"].to_list()
    assert sorted(quantities) == ["search_floor", "search_verdict"]


def test_objectives_are_named_as_the_final_metrics_are():
    assert objective_stage("val_pred_loss") is None
    rows = {
        "curves": [{"step": 1, "loss": 1.0, "val_pred_loss": 0.1}],
        "latents": [{"layer": "projected", "effective_rank": 3.0, "copy_error": 2.0, "pred_error": 1.0}],
        "planning": [
            {"protocol": "strict", "eval_point": "planning.planner=icem", "success": True}
        ],
        "probing": [{"layer": "projected", "probe": "mlp", "target": "agent", "r": 0.5}],
        "surprise": [{"event": "teleport", "surprise": 2.0, "surprise_control": 1.0}],
    }  # fmt: skip
    tables = {
        name: make_frame([{"trial_id": "t", **row} for row in found], SCHEMAS[name])
        for name, found in rows.items()
    }
    stages = {objective_stage(name.removeprefix("final/")) for name in final_metrics(tables, "t")}
    assert stages == {None, "latents", "planning", "probing", "surprise"}
    name = next(n for n in final_metrics(tables, "t") if "success" in n)
    assert name == "final/success_strict_planning.planner_icem"


BAD = {
    "kind": ("kind = 'bisekt'", "did you mean 'bisect'"),
    "key": ("kind = 'bisect'\nobjectiv = 'loss'", "did you mean 'objective'"),
    "missing": ("kind = 'bisect'\nbudget = 3", "search.objective is missing"),
    "objective": ("objective = 'val_pred_los'", "did you mean 'val_pred_loss'"),
    "protocol": ("objective = 'success_strit'", "did you mean 'success_strict'"),
    "stage": ("objective = 'surprise_ratio_teleport'", "add it to stages"),
    "probe": ("objective = 'r_deep_agent'", "r_linear_<target>"),
    "bracket": ("low = 20.0", "low must be below high"),
    "zero": ("low = 0.0", "search.low"),
    "field": ("key = 'loss.lamb'", "did you mean 'loss.lam'"),
    "not training": ("key = 'planning.gradient_lr'", "changes no training"),
    "range of the field": ("key = 'model.dropout'", "model.dropout"),
    "seeds": ("seeds = 9", "above max_seeds"),
    "stopping": ("early_stopping = {metric = 'loss', rungs = [5]}", "grid or optuna"),
    "mode": ("mode = 'maximum'", "search.mode"),
}


def write_bad(folder, lines):
    base = {**BISECT, "low": 1e-3}
    named = {line.split(" =")[0] for line in lines.split("\n")}
    shown = [f"{k} = {v!r}" for k, v in base.items() if k not in named and "kind" not in named]
    path = folder / "mine.toml"
    head = ['name = "mine"', 'stages = ["planning", "probing"]', "[search]"]
    path.write_text("\n".join([*head, *shown, lines, ""]))
    return str(path)


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_bad_search_is_one_line(case, tmp_path, capsys):
    from pipeline.sweep import main

    lines, expected = BAD[case]
    args = [write_bad(tmp_path, lines), "--dry-run", "--storage", str(tmp_path / "runs")]
    assert main(args) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1, message


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--grid", "loss.lam=0.1,1"], "take out [grid] and --grid"),
        (["--grid", "optim.lr=1e-3"], "take out [grid] and --grid"),
        (["--seeds", "0-2"], "take out seeds and --seeds"),
        (["--env", "two_room,cube"], "one method in one environment"),
        (["--set", "loss.lam=1"], "its range is in [search]"),
    ],
)
def test_what_an_adaptive_search_decides_cannot_be_given(args, expected, capsys):
    from pipeline.sweep import main

    assert main(["lambda_bisect", "--dry-run", *args]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1, message


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"metric": "val_pred_ration"}, "did you mean 'val_pred_ratio'"),
        ({"rungs": [300]}, "not at 300"),
        ({"rungs": [2000]}, "not below optim.num_steps"),
        ({"rungs": [1000, 500]}, "must ascend"),
        ({"keep": 1.0}, "search.early_stopping.keep"),
        ({"kep": 0.5}, "did you mean 'keep'"),
    ],
)
def test_a_bad_stopping_rule_is_one_line(rule, expected, tmp_path, capsys):
    from pipeline.sweep import main

    table = ", ".join(f"{key} = {value!r}" for key, value in {**HALVING, **rule}.items())
    path = tmp_path / "mine.toml"
    path.write_text(f'name = "mine"\n[search]\nearly_stopping = {{{table}}}\n')
    assert main([str(path), "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1, message


def test_the_plan_of_a_search_needs_neither_torch_nor_ray(tmp_path):
    code = (
        "import sys; from pipeline.sweep import main\n"
        "assert main(['lambda_optuna', '--dry-run', '--storage', sys.argv[1]]) == 0\n"
        "bad = {'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules); assert not bad, bad"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_objective_of_an_unmeasured_target_is_named():
    search = bisect(objective="r_mlp_agent")
    with pytest.raises(ValueError, match="r_mlp_block"):
        search_record.read_objective(search, {"final/r_mlp_block": 0.5}, "t")
    assert search_record.read_objective(search, {"final/r_mlp_agent": 0.5}, "t") == 0.5
