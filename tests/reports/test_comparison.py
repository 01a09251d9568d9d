import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline import comparison, stats
from pipeline.comparison import Sweep
from pipeline.comparison.differences import OTHER_PAIRS, OTHER_SEEDS, PAIRED_EPISODES, WELCH
from pipeline.stages import stability
from pipeline.stages.stability.episodes import read_episodes
from pipeline.stages.stability.measure import measure, run_values
from pipeline.tables import SCHEMAS
from reports import comparison as page

Frames = dict[str, pl.DataFrame]
POINTS = (0.0, 0.1, 0.3)
WON = pl.col("success")


def sweep(name: str, tables: Frames, meta: Mapping[str, Any] = META, judged: bool = False) -> Sweep:
    """A sweep with one protocol and the fast stages; its runs described, and judged if asked for."""
    strict = {"planning": tables["planning"].filter(protocol="strict")}
    tables = tables | strict | {name: tables[name].clear() for name in ("probing", "surprise")}
    if judged:
        tables |= stability.run(tables)
    else:
        tables["stability"] = measure(tables, run_values(tables), read_episodes(tables))
    return Sweep(name, {**meta, "folder": name}, tables)


def bare(lams: tuple[float, ...] = POINTS, **more: Any) -> Frames:
    return make_tables(lams=lams, failed=(), diverged=(), num_steps=8, **more)


def changed(tables: Frames, how: pl.Expr, name: str = "planning") -> Frames:
    """The tables with some columns of one replaced, floors left alone."""
    own = pl.col("trial_id").is_not_null()
    column = how.meta.output_name()
    return tables | {
        name: tables[name].with_columns(
            pl.when(own).then(how).otherwise(pl.col(column)).alias(column)
        )
    }


@pytest.fixture(scope="module")
def first() -> Sweep:
    return sweep("lambda-two_room-quick", bare(), judged=True)


@pytest.fixture(scope="module")
def second() -> Sweep:
    """Every second pair is lost at λ = 0.1; one further λ, one lacking; another budget."""
    lost = (pl.col("lam") == 0.1) & (pl.col("pair_id") % 2 == 0)
    tables = changed(bare((0.0, 0.1, 1.0)), (WON & ~lost).alias("success"))
    meta = json.loads(json.dumps(META))
    meta["worlds"][0]["protocols"]["strict"]["budget"] = 99
    return sweep("tuned-two_room-quick", tables, meta, judged=True)


@pytest.fixture(scope="module")
def found(first: Sweep, second: Sweep) -> Frames:
    return comparison.compare(first, second)


@pytest.fixture(scope="module")
def told(first: Sweep, second: Sweep, found: Frames) -> page.Told:
    return page.Told(
        names=(first.name, second.name),
        metas=(first.meta, second.meta),
        tables=(first.tables, second.tables),
        points=comparison.common_points(first, second),
        changes=comparison.changes(first, second),
        **found,
    )


def successes(found: Frames, protocol: str = "strict") -> dict[float, dict[str, Any]]:
    rows = found["comparison"].filter(pl.col("metric") == "success", pl.col("protocol") == protocol)
    return {row["lam"]: row for row in rows.iter_rows(named=True)}


def matrix(own: Sweep, lam: float, protocol: str = "strict") -> np.ndarray[Any, Any]:
    rows = own.tables["planning"].filter(
        pl.col("lam") == lam, pl.col("protocol") == protocol, pl.col("trial_id").is_not_null()
    )
    pairs = rows.sort("seed", "pair_id")["success"].to_numpy().astype(float)
    return pairs.reshape(rows["seed"].n_unique(), -1)


def test_common_points_are_paired_on_seeds_and_pairs(
    first: Sweep, second: Sweep, found: Frames
) -> None:
    rows = successes(found)
    assert sorted(rows) == [0.0, 0.1]
    row, differences = rows[0.1], matrix(second, 0.1) - matrix(first, 0.1)
    assert row["paired"] and (row["n"], row["num_pairs"]) == (3, 30)
    assert (row["other"], row["other_kind"]) == (first.name, "sweep")
    direct = stats.paired_two_way(differences, 0.1, bounds=(-1, 1))
    assert direct.interval is not None and row["ci_method"] == PAIRED_EPISODES
    assert row["diff"] == pytest.approx(differences.mean()) and row["diff"] < -0.3
    assert (row["ci_low"], row["ci_high"]) == (direct.interval.low, direct.interval.high)
    assert row["p_value"] == direct.p_value and row["p_equivalence"] == direct.p_equivalence
    assert row["p_adjusted"] == row["p_value"]  # at λ = 0 nothing differs: one test in the family


def test_the_same_episodes_have_no_interval_that_means_nothing(found: Frames) -> None:
    row = successes(found)[0.0]
    assert row["diff"] == 0 and row["paired"]
    assert (row["ci_low"], row["p_value"], row["ci_method"]) == (
        None,
        None,
        "none: all episodes alike",
    )


@pytest.mark.parametrize(
    ("change", "method", "num_seeds"),
    [
        (lambda t: changed(t, pl.lit("othermanifest").alias("manifest_hash")), OTHER_PAIRS, 3),
        (lambda t: bare(seeds=(7, 8, 9)), OTHER_SEEDS, 3),
        (lambda t: bare(seeds=(2, 8, 9, 11)), OTHER_SEEDS, 3),
        (lambda t: bare(seeds=(1, 2, 8)), PAIRED_EPISODES, 2),
        (lambda t: changed(t, pl.lit(7).alias("eval_seed")), OTHER_PAIRS, 3),
    ],
    ids=["manifest", "seeds", "one seed", "two seeds", "eval seed"],
)
def test_what_does_not_match_is_not_paired(
    first: Sweep, change: Callable[[Frames], Frames], method: str, num_seeds: int
) -> None:
    other = sweep(
        "other", changed(change(bare()), (WON & (pl.col("pair_id") != 3)).alias("success"))
    )
    rows = comparison.compare(first, other)["comparison"].filter(metric="success", lam=0.1)
    for row in rows.iter_rows(named=True):
        assert row["paired"] == (method == PAIRED_EPISODES) and row["n"] == num_seeds
        assert row["ci_method"] == method


def test_other_metrics_are_compared_run_by_run(first: Sweep) -> None:
    shifted = changed(bare(), (pl.col("mean_std") + 0.25).alias("mean_std"), "latents")
    paired = comparison.compare(first, sweep("b", shifted))["comparison"]
    row = paired.filter(metric="mean_std", layer="projected", lam=0.1).row(0, named=True)
    assert row["diff"] == pytest.approx(0.25) and row["paired"] and row["n"] == 3
    other_data = changed(shifted, pl.lit("otherdata").alias("dataset_hash"), "trials")
    second = sweep("b", other_data)
    apart = comparison.compare(first, second)["comparison"]
    row = apart.filter(metric="mean_std", layer="projected", lam=0.1).row(0, named=True)
    runs = [
        own.tables["latents"].filter(layer="projected", lam=0.1)["mean_std"].to_list()
        for own in (first, second)
    ]
    assert row["ci_method"] == WELCH and not row["paired"]
    assert row["p_value"] == stats.unpaired(runs[1], runs[0]).p_value


def test_p_values_are_adjusted_over_the_points(first: Sweep) -> None:
    lost = changed(bare(), (WON & (pl.col("pair_id") % 3 > 0)).alias("success"))
    rows = successes(comparison.compare(first, sweep("b", lost)))
    tested = [row for row in rows.values() if row["p_value"] is not None]
    assert len(tested) == 2
    adjusted = stats.holm([row["p_value"] for row in tested])
    assert [row["p_adjusted"] for row in tested] == adjusted


def test_points_match_by_value_whoever_sweeps_them(first: Sweep) -> None:
    """A sweep that holds λ = 0.1 in its configuration shares that point with one that sweeps λ."""
    tables = bare((0.1,))
    config = pl.lit(json.dumps({"loss": {"lam": 0.1}})).alias("config_json")
    for name in ("trials", "planning", "latents", "curves", "probing", "surprise", "cells"):
        tables = changed(tables, pl.lit("").alias("point"), name)
    fixed = sweep("fixed", changed(tables, config, "trials"))
    matches = comparison.common_points(first, fixed)
    assert [(m.first["point"], m.second["point"]) for m in matches] == [("loss.lam=0.1", "")]
    row = comparison.compare(first, fixed)["comparison"].filter(metric="success").row(0, named=True)
    assert row["paired"] and row["other"] == f"{first.name}: λ = 0.1"


def test_two_sweeps_with_nothing_in_common_say_what_each_has(first: Sweep) -> None:
    other = sweep("other", bare((1.0,)))
    with pytest.raises(
        ValueError, match="no point in common: lambda-two_room-quick has two_room"
    ) as e:
        comparison.compare(first, other)
    assert "loss.lam = 0.0, 0.1, 0.3" in str(
        e.value
    ) and "other has two_room with loss.lam = 1.0" in str(e.value)
    assert "\n" not in str(e.value)


def test_sentences_say_what_the_numbers_say(first: Sweep, second: Sweep, found: Frames) -> None:
    text = dict(found["summary"].select("quantity", "text").iter_rows())
    row = successes(found)[0.1]
    size = f"{100 * row['diff']:+.0f}".replace("-", "−")
    worse = f"plans worse at λ = 0.1 ({size} points, 95 % interval −"
    assert worse in text["verdict"] and "at 2 common points" in text["verdict"]
    assert text["verdict"].endswith("ends every episode alike at λ = 0.")
    assert text["points_common"].startswith("2 points in common")
    assert text["points_only_first"] == f"only in {first.name}: λ = 0.3 (lewm in two_room)"
    assert text["points_only_second"] == f"only in {second.name}: λ = 1 (lewm in two_room)"
    assert text["pairing"] == "2 of 2 differences in success paired on seeds and pairs"
    assert {frame.schema == SCHEMAS[name] for name, frame in found.items()} == {True}


def test_unfinished_and_single_seeded_sweeps_say_so(first: Sweep) -> None:
    pending = sweep("b", bare(pending=((0.1, 0), (0.1, 1), (0.1, 2))), judged=True)
    found = comparison.compare(first, pending)
    assert sorted(successes(found)) == [0.0, 0.3]
    text = dict(found["summary"].select("quantity", "text").iter_rows())
    assert "no result from 3 of 9 trials (3 pending)" in text["missing_second"]
    alone = sweep("c", changed(bare(seeds=(0,)), (WON & (pl.col("pair_id") > 4)).alias("success")))
    found = comparison.compare(first, alone)
    assert found["comparison"].filter(metric="success")["ci_low"].null_count() == 3
    text = dict(found["summary"].select("quantity", "text").iter_rows())
    assert "neither better nor worse beyond doubt" in text["verdict"]
    nothing = sweep("d", bare(pending=tuple((lam, s) for lam in POINTS for s in (0, 1, 2))))
    found = comparison.compare(first, nothing)
    text = dict(found["summary"].select("quantity", "text").iter_rows())
    assert found["comparison"].is_empty() and "no verdict yet" in text["verdict"]


def test_changes_are_found_in_grid_protocols_settings_and_code(first: Sweep, second: Sweep) -> None:
    found = {(c.area, c.name): (c.first, c.second) for c in comparison.changes(first, second)}
    assert found == {
        ("grid", "loss.lam"): ("0.0, 0.1, 0.3", "0.0, 0.1, 1.0"),
        ("protocols", "two_room: strict.budget"): (50, 99),
    }
    trials = [{"config": {"seed": s, "optim": {"lr": 0.01}, "loss": {"lam": s}}} for s in (0, 1)]
    meta = {**META, "trials": trials, "versions": {**META["versions"], "torch": "2.12.0"}}
    slower = [{"config": {"seed": 0, "optim": {"lr": 0.001}, "loss": {"lam": 5}}}]
    other = sweep("b", bare(), {**META, "trials": slower, "base": {"recipe": 2}})
    found = {
        c.name: (c.first, c.second) for c in comparison.changes(sweep("a", bare(), meta), other)
    }
    assert found["optim.lr"] == (0.01, 0.001) and found["recipe"] == (None, 2)
    assert found["version of torch"] == ("2.12.0", "2.13.0") and "loss.lam" not in found


@pytest.fixture(scope="module")
def html(told: page.Told) -> str:
    return page.render(told)


def test_the_page_tells_it_without_scripts_or_network(
    told: page.Told, found: Frames, html: str
) -> None:
    assert "<script" not in html and not re.search(r'(src|href)="(?!data:)', html)
    assert set(re.findall(r"https?://[\w.]+", html)) <= {"http://www.w3.org"}
    words = " ".join(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", html, flags=re.S).split())
    for text in found["summary"]["text"].drop_nulls():
        assert text.rstrip(".") in words or text[:1].upper() + text[1:] in words
    row = successes(found)[0.1]
    assert f"{100 * row['diff']:+.0f}".replace("-", "−") in words
    assert "95 % over seeds and pairs, paired on both" in words and "strict.budget" in words
    assert html.count("<svg") == 2 and "var(--ink)" in html
    assert all("var(" not in svg for svg in page.figures_svg(told).values())
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert html == page.render(told)


def test_the_page_escapes_what_users_wrote(told: page.Told) -> None:
    nasty = page.Told(**{**told.__dict__, "names": ("<b>a</b>", "b&c")})
    html = page.render(nasty)
    assert "<b>a" not in html and "&lt;b&gt;a" in html


def test_a_page_without_results_still_says_what_is_missing(first: Sweep) -> None:
    other = sweep(
        "b", bare(pending=tuple((lam, s) for lam in POINTS for s in (0, 1, 2))), judged=True
    )
    told = page.Told(
        names=(first.name, other.name),
        metas=(first.meta, other.meta),
        tables=(first.tables, other.tables),
        points=comparison.common_points(first, other),
        changes=[],
        **comparison.compare(first, other),
    )
    html = page.render(told)
    assert "no result from 9 of 9 trials" in html and "no verdict yet" in html
    assert page.figures_svg(told) == {}
    assert "Not complete" in page.paper(told).notes[-1]
