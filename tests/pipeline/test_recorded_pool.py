"""The recorded pool of docs/tuning: what docs/tuning.md tells of it can be made again."""

import shutil
from pathlib import Path

import polars as pl

from lewm.config import LatentsConfig
from pipeline import simulate
from pipeline.stages.latents import is_collapsed
from pipeline.tables import read_table

POOL = Path(__file__).parents[2] / "docs/tuning"


def test_searches_are_replayed_on_it(tmp_path: Path) -> None:
    shutil.copytree(POOL, tmp_path / "pool")
    words = ["pldm", "--against", "lambda", "--storage", str(tmp_path / "pool")]
    assert simulate.main([*words, "--repetitions", "10"]) == 0
    told = read_table(tmp_path / "pool/sweeps/pldm-two_room-short", "summary")
    found = {
        row["point"]: row
        for row in told.iter_rows(named=True)
        if row["quantity"] == "search_trials"
    }
    assert found["search=lewm-grid"]["value"] is None
    assert found["search=pldm-random"]["value"] <= 12


def test_the_collapse_rule_tells_runs_that_plan_from_those_that_learnt_nothing() -> None:
    frames = []
    for name in ("lambda", "pldm"):
        folder = POOL / f"sweeps/{name}-two_room-short"
        latents = read_table(folder, "latents").filter(pl.col("layer") == "projected")
        strict = read_table(folder, "planning").filter(pl.col("protocol") == "strict", pl.col("trial_id").is_not_null())  # fmt: skip
        rates = strict.group_by("trial_id").agg(pl.col("success").mean())
        frames.append(latents.join(rates, on="trial_id"))
    runs = pl.concat(frames)
    assert runs.height == 94
    settings = LatentsConfig()
    flagged = [is_collapsed(x, settings) for x in runs["mean_std"]]
    assert flagged == runs["collapsed"].to_list()
    collapsed, others = runs.filter(pl.Series(flagged)), runs.filter(~pl.Series(flagged))
    assert collapsed.height == 6 and (collapsed["lam"] <= 0.01).all()
    assert (collapsed["pred_error"] > 0.9 * collapsed["copy_error"]).all()
    assert (others["pred_error"] < 0.3 * others["copy_error"]).all()
    assert collapsed["success"].max() < 0.15
