"""The report's section on how points were chosen and what a search costs."""

import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline.search import record as search_record
from pipeline.search import replay
from pipeline.search.simulation import STRATEGIES, cost, find_plateau, make_curve
from pipeline.search.simulation import simulate as play
from pipeline.search.simulation_rows import Question, search_rows, share_rows, summary_rows
from pipeline.stages import stability
from pipeline.tables import SCHEMAS, make_frame, sort_rows
from reports import search as section
from reports.page import figures_svg, render

PLACE = {"method": "lewm", "env": "two_room", "profile": "quick"}
VALUES = {0.03: [0.5, 0.6], 0.1: [0.85, 0.9], 0.3: [0.8, 0.85], 1.0: [0.4, 0.5]}


@pytest.fixture(scope="module")
def plain():
    made = make_tables()
    return made | stability.run(made)


def added(tables, name, rows):
    frame = pl.concat([tables[name], make_frame(rows, SCHEMAS[name])])
    return {**tables, name: sort_rows(frame)}


@pytest.fixture(scope="module")
def simulated(plain):
    question = Question("success_strict", "max", 0.05, 6, 5, 0)
    curve = make_curve(VALUES, True)
    plateau = find_plateau(curve, "max", 0.05)
    steps = {
        s: [play(s, curve, "success_strict", "max", 6, (0, n, r)) for r in range(5)]
        for n, s in enumerate(("grid", "bisect"))
    }
    costs = [cost(s, found, plateau, 6) for s, found in steps.items()]
    place = {**PLACE, "metric": "success_strict"}
    tables = added(plain, "search", search_rows(place, steps, plateau))
    tables = added(tables, "profiles", share_rows(place, costs))
    return added(tables, "summary", summary_rows(place, question, VALUES, plateau, costs))


def words(page):
    return " ".join(
        re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", page, flags=re.S).split()
    )


def test_a_grid_without_a_simulation_says_how_to_make_one(plain):
    shown = words(render(plain, META))
    assert "Every point of the sweep's grid" in shown and "python -m pipeline.simulate" in shown
    assert "search-cost" not in figures_svg(plain, META)


def test_simulated_searches_are_drawn_with_their_numbers(simulated):
    page = render(simulated, META)
    shown = words(page)
    assert "Trials until four of five searches stay on the plateau" in shown
    assert "5 simulated searches per strategy" in shown and "within 0.05 of the best" in shown
    found = re.search(r'id="charts">(.*?)</script>', page, re.S)
    values = json.loads(found.group(1))["figures"]["search-cost"]["spec"]["data"]["values"]
    shares = simulated["profiles"].filter(pl.col("metric") == search_record.SHARE)
    assert len(values) == shares.height == 12
    assert sorted(v["share"] for v in values) == sorted(shares["fraction"].to_list())
    assert "search-cost" in figures_svg(simulated, META)
    assert set(section.OVER_LAM) == set(STRATEGIES)
    assert set(section.SIX_OR_ONE) == set(replay.STRATEGIES)


def test_suggestions_of_a_real_search_stand_in_order_with_their_reasons(plain):
    rows = [
        {**PLACE, "point": "loss.lam=0.1", "lam": 0.1, "strategy": "bisect", "order": order}
        | {"objective": "success_strict", "best_so_far": 0.5 + order / 10, "reason": reason}
        for order, reason in enumerate(("first of all", "a <second> one"))
    ]
    verdict = {**PLACE, "quantity": "search_verdict", "text": "loss.lam=0.1 is best", "n": 2}
    tables = added(added(plain, "search", rows), "summary", [verdict])
    page = render(tables, META)
    shown = words(page)
    assert "Loss.lam=0.1 is best" in shown and "a &lt;second&gt; one" in page
    assert shown.index("first of all") < shown.index("second")
    assert "λ = 0.1 0.6" in shown
