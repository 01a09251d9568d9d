"""Methods and planners side by side, as the page shows them."""

import json
import re
import sys
from pathlib import Path

import polars as pl

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables, relabelled, with_methods

from pipeline.stages import stability
from reports.page import figures_svg, render


def test_methods_stand_side_by_side_with_every_seed_and_every_difference() -> None:
    tables = with_methods({"pldm": 0.6, "dino_wm": 0.05})
    tables |= stability.run(tables)
    page = render(tables, META)
    figures = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S).group(1))["figures"]  # type: ignore[union-attr]
    names = [name for name in figures if name.startswith("methods-success")]
    assert len(names) == tables["planning"]["protocol"].n_unique()
    layers = figures[names[0]]["spec"]["layer"]
    runs = next(layer for layer in layers if layer["mark"].get("style") == "run")["data"]["values"]
    assert {row["name"] for row in runs} == {"LeWM", "PLDM", "DINO-WM"}
    strict = (pl.col("protocol") == "strict") & (pl.col("other_kind") == "method")
    row = (
        tables["comparison"]
        .filter(strict, pl.col("method") == "lewm", pl.col("other") == "pldm")
        .row(0, named=True)
    )
    words = re.sub(r"<[^>]+>", " ", page)
    assert f"{100 * row['diff']:+.0f} points" in words.replace("\xa0", " ")
    assert page.count('id="side-by-side"') == 1
    assert names[0] in figures_svg(tables, META)


def test_one_method_has_no_such_section() -> None:
    tables = make_tables()
    assert 'id="side-by-side"' not in render(tables | stability.run(tables), META)


def test_planners_stand_side_by_side_on_the_same_networks() -> None:
    tables = make_tables()
    other = relabelled(tables["planning"], 0, 0.7, planner="icem", eval_point="planning.horizon=3")
    tables["planning"] = pl.concat([tables["planning"], other])
    page = render(tables | stability.run(tables), META)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page).replace("\xa0", " "))
    assert "CEM has the highest mean; 1 of 1 others is clearly below it" in words
    assert "iCEM, horizon = 3" in words


def test_planners_that_are_level_are_said_to_be() -> None:
    tables = make_tables()
    other = relabelled(tables["planning"], 0, 0.0, planner="icem")
    tables["planning"] = pl.concat([tables["planning"], other])
    words = re.sub(r"<[^>]+>", " ", render(tables | stability.run(tables), META))
    assert "All planners have the same mean" in words
