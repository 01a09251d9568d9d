import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import LAMS, make_tables

from pipeline import stats
from pipeline.shipped import load_protocols, load_published
from pipeline.stages import stability
from pipeline.tables import SCHEMAS

Row = dict[str, Any]


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    return make_tables()


@pytest.fixture(scope="module")
def judged(tables: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    return stability.run(tables)


def one(frame: pl.DataFrame, **where: Any) -> Row:
    found = frame.filter(*[pl.col(k).eq_missing(pl.lit(v)) for k, v in where.items()])
    assert found.height == 1, (where, found.height)
    return found.row(0, named=True)


def quantity(judged: dict[str, pl.DataFrame], name: str, **where: Any) -> Row:
    return one(judged["summary"], quantity=name, **where)


def test_tables_have_their_schemas_and_do_not_depend_on_row_order(
    tables: dict[str, pl.DataFrame], judged: dict[str, pl.DataFrame]
) -> None:
    assert set(judged) == {"stability", "comparison", "profiles", "summary"}
    for name, frame in judged.items():
        assert frame.schema == SCHEMAS[name]
        assert frame.height
    shuffled = {
        name: frame.sample(fraction=1.0, shuffle=True, seed=1) for name, frame in tables.items()
    }
    again = stability.run(shuffled)
    for name, frame in judged.items():
        assert again[name].equals(frame), name


def test_success_is_the_mean_over_seeds_with_an_interval_for_new_seeds_and_pairs(
    tables: dict[str, pl.DataFrame], judged: dict[str, pl.DataFrame]
) -> None:
    row = one(
        judged["stability"], metric="success", protocol="strict", lam=0.1, method="lewm", runs="all"
    )
    episodes = tables["planning"].filter(
        (pl.col("protocol") == "strict") & (pl.col("lam") == 0.1) & (pl.col("planner") == "cem")
    )
    rates = episodes.group_by("seed").agg(pl.col("success").mean()).sort("seed")["success"]
    matrix = episodes.sort("seed", "eval_seed", "pair_id")["success"].to_numpy().reshape(3, 30)
    interval = stats.rate_interval(matrix)
    assert interval is not None
    assert row["mean"] == pytest.approx(rates.mean())
    assert (row["ci_low"], row["ci_high"]) == (interval.low, interval.high)
    assert (row["num_seeds"], row["num_episodes"], row["num_eval_seeds"]) == (3, 90, 1)
    assert row["worst"] == rates.min()
    assert row["ci_method"] == "95 % over seeds and pairs"


def test_diverged_run_is_no_success_in_all_runs_only(judged: dict[str, pl.DataFrame]) -> None:
    where = {"metric": "success", "protocol": "strict", "lam": 0.03, "method": "lewm"}
    every = one(judged["stability"], **where, runs="all")
    converged = one(judged["stability"], **where, runs="converged")
    assert (every["num_seeds"], converged["num_seeds"]) == (3, 2)
    assert every["worst"] == 0.0
    assert every["mean"] == pytest.approx(converged["mean"] * 2 / 3)
    assert every["num_diverged"] == converged["num_diverged"] == 1


def test_failed_trial_is_counted_and_never_a_number(judged: dict[str, pl.DataFrame]) -> None:
    every = judged["stability"].filter((pl.col("lam") == 1.0) & (pl.col("metric") == "success"))
    rows = every.filter(pl.col("runs").is_in(["all", "converged"]))
    assert every.filter(pl.col("runs") == "seed=2").is_empty()
    assert rows["num_seeds"].to_list() == [2] * 4
    assert rows["num_failed"].to_list() == [1] * 4


def test_collapse_is_counted_on_every_row_of_its_point(judged: dict[str, pl.DataFrame]) -> None:
    at_zero = judged["stability"].filter((pl.col("lam") == 0.0) & (pl.col("runs") == "all"))
    assert at_zero["num_collapsed"].unique().to_list() == [3]
    where = {"metric": "mean_std", "layer": "projected", "runs": "all"}
    assert one(judged["stability"], lam=0.0, **where)["mean"] < 0.1


def test_every_run_has_its_own_row(judged: dict[str, pl.DataFrame]) -> None:
    where = {"metric": "success", "protocol": "strict", "lam": 0.03}
    lost = one(judged["stability"], **where, runs="seed=2")
    assert (lost["mean"], lost["num_diverged"], lost["ci_low"]) == (0.0, 1, None)
    bad = one(judged["stability"], **where, runs="seed=1")
    assert (bad["num_collapsed"], bad["num_diverged"], bad["num_episodes"]) == (1, 0, 30)
    assert bad["ci_low"] < bad["mean"] < bad["ci_high"] and "one run" in bad["ci_method"]


def test_episodes_all_alike_get_no_interval(tables: dict[str, pl.DataFrame]) -> None:
    never = pl.col("success") & ~pl.col("lam").eq_missing(0.0)
    judged = stability.run({**tables, "planning": tables["planning"].with_columns(success=never)})
    where = {"metric": "success", "protocol": "strict", "lam": 0.0, "method": "lewm"}
    row = one(judged["stability"], **where, runs="all")
    assert row["ci_low"] is None and row["ci_method"] == "none: all episodes alike"


def test_floors_have_wilson_over_pairs_and_null_keys(judged: dict[str, pl.DataFrame]) -> None:
    row = one(judged["stability"], planner="random", protocol="strict")
    interval = stats.wilson(round(row["mean"] * 30), 30)
    assert interval is not None
    assert (row["ci_low"], row["ci_high"]) == (interval.low, interval.high)
    assert row["point"] is None and row["lam"] is None and row["num_seeds"] is None


def test_every_metric_of_every_stage_is_there(judged: dict[str, pl.DataFrame]) -> None:
    metrics = set(judged["stability"]["metric"])
    losses = {"pred_loss", "val_pred_loss", "sigreg_loss"}
    latents = {"effective_rank", "mean_std", "epps_pulley", "isotropy", "straightness"}
    others = {"success", "probe_r", "probe_mse", "surprise_ratio", "surprise_difference"}
    assert losses | latents | others <= metrics
    targets = judged["stability"].filter(pl.col("metric") == "probe_r")["target"].unique().sort()
    assert targets.to_list() == ["agent_position[0]", "agent_position[1]"]


def test_summary_finds_best_point_and_plateau(judged: dict[str, pl.DataFrame]) -> None:
    strict = {"protocol": "strict"}
    assert quantity(judged, "best_point", **strict)["value"] == 0.1
    assert quantity(judged, "plateau_low", **strict)["value"] == 0.1
    assert quantity(judged, "plateau_high", **strict)["value"] == 0.3
    assert quantity(judged, "clears_random", **strict)["value"] == 1.0
    assert 0.4 < quantity(judged, "p_best", **strict)["value"] <= 1.0
    regret = quantity(judged, "regret", **strict)
    assert 0.0 <= regret["value"] <= regret["ci_high"] <= 1.0
    verdict = quantity(judged, "verdict")
    assert verdict["protocol"] == "strict"
    for piece in ("λ = 0.1 probably plans best", "3 seeds", "random actions", "from 0.1 to 0.3"):
        assert piece in verdict["text"]
    certainty = quantity(judged, "certainty")["text"]
    assert "is the best of these points with probability" in certainty
    assert "no result from 1 of 15 trials (1 failed)" in certainty
    assert verdict["text"].count(". ") == 0 and certainty.count(". ") == 0


def test_findings_name_the_collapse_and_the_misleading_loss(
    judged: dict[str, pl.DataFrame],
) -> None:
    latents = quantity(judged, "finding_latents")["text"]
    assert "λ = 0 (3 of 3 seeds) and λ = 0.03 (1 of 2 seeds)" in latents
    assert "belongs to λ = 0, which collapsed" in quantity(judged, "finding_curves")["text"]
    assert "teleport (p < 0.001)" in quantity(judged, "finding_surprise")["text"]


def test_comparison_is_paired_on_seeds_and_pairs(judged: dict[str, pl.DataFrame]) -> None:
    strict = {"metric": "success", "protocol": "strict"}
    worse = one(judged["comparison"], **strict, lam=0.0, other="loss.lam=0.1")
    assert worse["paired"] and worse["n"] == 3 and worse["p_improvement"] == 0.0
    assert worse["ci_high"] < 0 and worse["p_value"] < worse["p_adjusted"] < 0.05
    random = one(judged["comparison"], **strict, lam=0.1, other="random")
    assert random["other_kind"] == "floor" and random["ci_low"] > 0
    lost = one(judged["comparison"], **strict, lam=0.03, other="loss.lam=0.1")
    assert lost["n"] == 3
    control = one(judged["comparison"], lam=0.1, event="teleport")
    assert control["n"] == 64 and control["diff"] > 0 and control["p_value"] < 0.01


def test_profiles_fall_from_one(judged: dict[str, pl.DataFrame]) -> None:
    rows = judged["profiles"].filter((pl.col("lam") == 0.1) & (pl.col("protocol") == "strict"))
    fractions = rows.sort("tau")["fraction"].to_list()
    assert fractions[0] == 1.0 and fractions == sorted(fractions, reverse=True)


def test_one_seed_gives_no_interval_and_says_so() -> None:
    judged = stability.run(make_tables(seeds=(0,), failed=(), diverged=()))
    best = quantity(judged, "best_success", protocol="strict")
    assert best["ci_low"] is None and best["ci_method"] == "none: one seed" and best["n"] == 1
    assert quantity(judged, "p_best", protocol="strict")["value"] is None
    assert "one seed, so no interval" in quantity(judged, "verdict")["text"]
    assert "cannot be told: add seeds" in quantity(judged, "certainty")["text"]
    rows = judged["comparison"].filter(pl.col("metric") == "success")
    assert rows["p_value"].null_count() == rows.height


@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_one_lambda_has_no_plateau_and_no_best(lam: float) -> None:
    judged = stability.run(make_tables(lams=(lam,), failed=(), diverged=()))
    assert quantity(judged, "plateau_low", protocol="strict")["value"] is None
    assert "Only one point was tried" in quantity(judged, "certainty")["text"]
    if lam == 0.0:
        assert "No point plans clearly better" in quantity(judged, "verdict")["text"]


@pytest.mark.parametrize(
    "missing", ["planning", "latents", "probing", "surprise", "curves", "cells"]
)
def test_missing_stage_leaves_the_others(missing: str, tables: dict[str, pl.DataFrame]) -> None:
    judged = stability.run({name: frame for name, frame in tables.items() if name != missing})
    assert judged["stability"].height
    verdict = quantity(judged, "verdict")["text"]
    assert ("no trial has planning results" in verdict) == (missing == "planning")


def test_missing_floors_are_said(tables: dict[str, pl.DataFrame]) -> None:
    planning = tables["planning"].filter(pl.col("trial_id").is_not_null())
    judged = stability.run({**tables, "planning": planning})
    row = quantity(judged, "clears_random", protocol="strict")
    assert row["value"] is None and "no random floor" in row["text"]


@pytest.mark.parametrize("fate", ["failed", "diverged", "pending"])
def test_only_lost_trials(fate: str) -> None:
    every = tuple((lam, seed) for lam in LAMS for seed in (0, 1, 2))
    lost: dict[str, Any] = {"failed": (), "diverged": (), fate: every}
    judged = stability.run(make_tables(**lost))
    assert "no trial has planning results" in quantity(judged, "verdict")["text"]
    if fate != "diverged":
        expected = f"No result from 15 of 15 trials (15 {fate})."
        assert quantity(judged, "certainty")["text"] == expected


def test_diverged_points_beside_a_good_one() -> None:
    lost = tuple((lam, seed) for lam in LAMS[1:] for seed in (0, 1, 2) if lam != 0.1)
    judged = stability.run(make_tables(diverged=lost, failed=()))
    row = one(
        judged["stability"], metric="success", protocol="strict", lam=1.0, method="lewm", runs="all"
    )
    assert row["mean"] == 0.0 and row["num_diverged"] == 3
    gone = one(
        judged["stability"],
        metric="success",
        protocol="strict",
        lam=1.0,
        method="lewm",
        runs="converged",
    )
    assert gone["mean"] is None and gone["ci_method"] == "none: no episodes"
    assert quantity(judged, "plateau_low", protocol="strict")["n"] == 1


def test_no_tables_at_all() -> None:
    judged = stability.run({})
    assert all(frame.is_empty() for frame in judged.values())


def test_swept_evaluation_settings_are_judged_apart(tables: dict[str, pl.DataFrame]) -> None:
    longer = tables["planning"].with_columns(eval_point=pl.lit("planning.horizon=8"))
    both = pl.concat([tables["planning"], longer.filter(pl.col("trial_id").is_not_null())])
    judged = stability.run({**tables, "planning": both})
    best = judged["summary"].filter(
        (pl.col("quantity") == "best_point") & (pl.col("protocol") == "strict")
    )
    assert sorted(best["eval_point"].to_list()) == ["", "planning.horizon=8"]


def test_imports_neither_torch_nor_lewm() -> None:
    """The package's own modules do not; `pipeline.stages` itself is not ours to judge here."""
    folder = Path(stability.__file__).parent
    names = subprocess.run(
        [
            "grep",
            "-hE",
            r"^\s*(import|from) (torch|lewm|ray|mlflow)",
            *map(str, folder.glob("*.py")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert names.stdout == ""


def test_the_verdict_is_as_sure_as_the_numbers() -> None:
    tables = make_tables(seeds=tuple(range(6)), failed=(), diverged=())

    def verdict(better: int) -> str:
        """Success of every run replaced: `better` of 20 pairs at λ = 0.1, 16 elsewhere."""
        reach = pl.when(pl.col("lam") == 0.1).then(better).otherwise(16)
        wins = (pl.col("pair_id") + 7 * pl.col("seed")) % 20 < reach
        planning = tables["planning"].with_columns(
            success=pl.when(pl.col("trial_id").is_null()).then(False).otherwise(wins)
        )
        judged = stability.run({**tables, "planning": planning})
        return str(quantity(judged, "verdict")["text"])

    assert "has the highest mean, though not surely," in verdict(16)
    assert "λ = 0.1 plans best" in verdict(20)


def test_the_collapse_rule_is_tried_on_runs_collapsed_on_purpose(
    judged: dict[str, pl.DataFrame],
) -> None:
    row = quantity(judged, "collapsed_control", protocol="strict")
    assert row["value"] == 1.0 and row["text"].startswith("3 of 3 runs at λ = 0")
    assert row["ci_low"] == pytest.approx(0.025 ** (1 / 3))


def test_what_to_run_next_follows_the_split_of_variance(judged: dict[str, pl.DataFrame]) -> None:
    strict = {"protocol": "strict"}
    names = ("seed", "pair", "residual")
    shares = [quantity(judged, f"variance_{name}", **strict)["value"] for name in names]
    assert sum(shares) == pytest.approx(1)
    assert quantity(judged, "variance_eval_seed", **strict)["value"] is None
    assert quantity(judged, "seeds_to_halve", **strict)["value"] > 3


def test_best_points_are_set_against_published_rates(tables: dict[str, pl.DataFrame]) -> None:
    one_rate = {"method": "lewm", "env": "two_room", "protocol": "paper", "value": 0.87}
    elsewhere = {**one_rate, "env": "push_t", "source": "elsewhere"}
    judged = stability.run(tables, [{**one_rate, "source": "a paper"}, elsewhere])
    row = one(judged["comparison"], other_kind="published")
    best = quantity(judged, "best_success", protocol="paper")
    assert (row["other"], row["point"], row["protocol"]) == ("a paper", best["point"], "paper")
    assert row["diff"] == pytest.approx(best["value"] - 0.87)
    assert 0 < row["p_equivalence"] < 1 and row["margin"] == 0.1


def test_published_rates_ship_with_their_sources() -> None:
    rows = load_published()
    assert {row["env"] for row in rows} == {"two_room", "push_t", "reacher", "cube"}
    assert all(0 <= row["value"] <= 1 and row["source"] for row in rows)
    names = {row["protocol"] for row in rows}
    assert names <= set(load_protocols("two_room"))
