"""Methods against methods and settings against settings: pairs, seeds, and one Holm family per question."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import make_tables, relabelled, with_methods

from pipeline import stats
from pipeline.stages import stability

STRICT = pl.col("protocol") == "strict"


def success_matrix(tables: dict[str, pl.DataFrame], method: str, point: str) -> np.ndarray:
    rows = tables["planning"].filter(
        STRICT, pl.col("method") == method, pl.col("point") == point, pl.col("planner") == "cem"
    )
    rows = rows.sort("seed", "eval_seed", "pair_id")
    return rows["success"].cast(pl.Float64).to_numpy().reshape(rows["seed"].n_unique(), -1)


def test_methods_meet_at_their_best_points_on_the_same_pairs_without_pairing_seeds() -> None:
    tables = with_methods({"pldm": 0.5, "dino_wm": 0.05})
    rows = stability.run(tables)["comparison"].filter(STRICT, pl.col("other_kind") == "method")
    assert rows.height == 6
    found = {(row["method"], row["other"]): row for row in rows.to_dicts()}
    one, back = found["lewm", "pldm"], found["pldm", "lewm"]
    points = one["point"], back["point"]
    sides = [
        success_matrix(tables, method, point)
        for method, point in zip(("lewm", "pldm"), points, strict=True)
    ]
    wanted = stats.unpaired_two_way(*sides, True, 0.1, bounds=(-1.0, 1.0))
    assert wanted.interval is not None
    assert one["diff"] == pytest.approx(sides[0].mean() - sides[1].mean()) == -back["diff"]
    assert (one["ci_low"], one["ci_high"]) == pytest.approx(
        (wanted.interval.low, wanted.interval.high)
    )
    assert (one["paired"], one["n"], one["num_pairs"]) == (False, 3, 30)
    assert one["p_improvement"] == 1 - back["p_improvement"]
    once = [found[pair] for pair in (("lewm", "pldm"), ("lewm", "dino_wm"), ("pldm", "dino_wm"))]
    adjusted = stats.holm([row["p_value"] for row in once])
    assert [row["p_adjusted"] for row in once] == pytest.approx(adjusted)
    assert one["p_adjusted"] == back["p_adjusted"]


def test_a_method_alone_or_in_another_world_has_no_rival() -> None:
    tables = with_methods({"pldm": 0.5})
    for name in ("trials", "planning", "cells", "curves", "latents"):
        elsewhere = pl.when(pl.col("method") == "pldm").then(pl.lit("push_t"))
        tables[name] = tables[name].with_columns(env=elsewhere.otherwise(pl.col("env")))
    rows = stability.run(tables)["comparison"]
    assert rows.filter(pl.col("other_kind") == "method").is_empty()


def test_planners_on_the_same_networks_are_paired_by_seed() -> None:
    tables = make_tables()
    other = relabelled(tables["planning"], 0, 0.2, planner="icem", eval_point="planning.horizon=3")
    tables["planning"] = pl.concat([tables["planning"], other])
    judged = stability.run(tables)
    rows = judged["comparison"].filter(STRICT, pl.col("other_kind") == "setting")
    row = rows.row(0, named=True)
    assert rows.height == 1 and row["other"] == "cem"
    assert (row["planner"], row["eval_point"]) == ("icem", "planning.horizon=3")
    same = judged["stability"].filter(
        STRICT,
        pl.col("metric") == "success",
        pl.col("runs") == "all",
        pl.col("point") == row["point"],
    )
    means = dict(same.filter(pl.col("method") == "lewm").select("planner", "mean").iter_rows())
    assert means["cem"] == max(
        judged["stability"].filter(
            STRICT,
            pl.col("planner") == "cem",
            pl.col("runs") == "all",
            pl.col("metric") == "success",
        )["mean"]
    )
    assert row["diff"] == pytest.approx(means["icem"] - means["cem"])
    assert row["paired"] and row["diff"] < 0 and row["p_adjusted"] == row["p_value"]
