"""Searches over several weights replayed on a recorded pool, beside those over λ."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline import simulate
from pipeline.search.replay import Pool, best_values, make_pool, replay, run_all, target
from pipeline.search.replay_rows import costs
from pipeline.search.settings import Optuna, parse_search
from pipeline.search.simulation import make_curve
from pipeline.stages import stability
from pipeline.storage import Storage
from pipeline.tables import read_table, write_table
from reports.page import figures_svg, render

WEIGHTS = ("pldm.covariance", "pldm.variance")
TABLE = {
    "kind": "optuna",
    "sampler": "random",
    "objective": "success_strict",
    "mode": "max",
    "budget": 40,
    "space": {name: {"low": 0.1, "high": 100.0, "log": True} for name in WEIGHTS},
}


def make_search() -> Optuna:
    search = parse_search(TABLE, "a test")
    assert isinstance(search, Optuna)
    return search


def hill(point: dict[str, Any]) -> float:
    """Success falls with the distance in decades from (1, 10)."""
    far = math.log10(point[WEIGHTS[0]]) ** 2 + (math.log10(point[WEIGHTS[1]]) - 1) ** 2
    return 0.9 * math.exp(-far)


def drawn(number: int = 60) -> Pool:
    rng = np.random.default_rng(0)
    points = [{name: float(10 ** rng.uniform(-1, 2)) for name in WEIGHTS} for _ in range(number)]
    return make_pool(make_search(), [(point, hill(point)) for point in points])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_replay_takes_every_recorded_trial_once_and_keeps_the_best(sampler: str) -> None:
    pool = drawn(24)
    steps = replay(pool, sampler, 100, (1, 2))
    assert sorted(step.value for step in steps) == sorted(pool.values.tolist())
    assert [step.truth for step in steps] == [
        max(step.value for step in steps[: n + 1]) for n in range(len(steps))
    ]
    again = replay(pool, sampler, 100, (1, 2))
    assert [step.value for step in again] == [step.value for step in steps]
    assert [s.value for s in replay(pool, sampler, 100, (1, 3))] != [s.value for s in steps]


def test_tpe_finds_the_top_of_a_smooth_hill_sooner_than_chance() -> None:
    pool = drawn()
    first = {
        sampler: [
            int(
                np.argmax([step.truth == pool.best for step in replay(pool, sampler, 60, (7, rep))])
            )
            for rep in range(10)
        ]
        for sampler in ("random", "tpe")
    }
    assert np.mean(first["tpe"]) < 0.7 * np.mean(first["random"])


def test_costs_are_counted_to_the_best_of_both_and_to_each_methods_own() -> None:
    lams = [0.01, 0.1, 1.0, 10.0]
    curve = make_curve({lam: (0.95 - 0.1 * n, 0.93 - 0.1 * n) for n, lam in enumerate(lams)}, True)
    pool = drawn()
    assert (
        best_values(curve, pool)["pldm"]
        == pool.values.max()
        < 0.95 * best_values(curve, pool)["lewm"]
    )
    steps = run_all(curve, pool, 20, 6, 0, lambda strategy, done: None)
    found = costs(curve, pool, steps, 20)
    both, own = ({c.strategy: c for c in found[name]} for name in ("both", "own"))
    assert both["pldm-tpe"].median is None and both["pldm-tpe"].num_never == 6
    assert both["lewm-grid"] == own["lewm-grid"] and own["lewm-grid"].median is not None
    assert own["pldm-tpe"].num_never < 6
    assert target(0.8).holds(0.76) and not target(0.8).holds(0.75)


def stored_sweep(runs: Path, name: str, tables: dict[str, pl.DataFrame], search: Any) -> Storage:
    folder = Storage(str(runs)).at(f"sweeps/{name}")
    for table, frame in tables.items():
        write_table(folder, table, frame)
    folder.write_json("sweep.json", {**META, "name": name, "search": search})
    return folder


def as_random_search(tables: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The synthetic sweep as if each of its runs were a PLDM configuration of its own."""
    rng = np.random.default_rng(3)
    ids = tables["trials"]["trial_id"].to_list()
    points = {
        i: " ".join(f"{name}={10 ** rng.uniform(-1, 2):.3g}" for name in WEIGHTS) for i in ids
    }
    changed = {}
    for name, frame in tables.items():
        if "trial_id" in frame.columns:
            owned = pl.col("trial_id").is_not_null()
            method = pl.when(pl.col("method").is_not_null()).then(pl.lit("pldm"))
            frame = frame.with_columns(
                point=pl.when(owned).then(pl.col("trial_id").replace_strict(points, default=None)),
                lam=pl.lit(None, pl.Float64),
                seed=pl.when(owned).then(pl.lit(0, pl.Int64)),
                method=method,
            )
        changed[name] = frame
    return changed


def test_the_command_writes_rows_that_the_page_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = make_tables()
    stored_sweep(tmp_path, "lambda", tables, None)
    pool = as_random_search(tables)
    own = stored_sweep(tmp_path, "pldm", pool | stability.run(pool), TABLE)
    command = ["pldm", "--storage", str(tmp_path), "--against", "lambda", "--repetitions", "5"]
    assert simulate.main([*command, "--budget", "8"]) == 0
    assert "Median trials to 95 % of the best of both methods" in capsys.readouterr().out
    profiles = read_table(own, "profiles").filter(pl.col("metric") == "search_incumbent")
    assert profiles.height == 4 * 8 and set(profiles["method"]) == {"pldm"}
    grown = profiles.sort("point", "tau")["fraction"].to_numpy().reshape(4, 8)
    assert (np.diff(grown[[2, 3]]) >= 0).all()
    simulate.main([*command, "--budget", "8"])
    assert (
        read_table(own, "profiles").height
        == profiles.height
        + read_table(own, "profiles").filter(pl.col("metric") != "search_incumbent").height
    )
    names = json.loads((tmp_path / "sweeps/pldm/sweep.json").read_text())
    frames = {
        name: read_table(own, name)
        for name in (*tables, "stability", "comparison", "profiles", "summary")
    }
    page = render(frames, names)
    assert "PLDM, TPE" in page and "trials to its own best" in page
    assert {"six-or-one", "search-cost"} <= set(figures_svg(frames, names))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lambda", "--against", "lambda"], "has not searched several weights"),
        (
            ["pldm", "--against", "lambda", "--objective", "probe_r", "--margin", "1"],
            "a success rate",
        ),
        (["pldm", "--against", "push"], "only the same can be set side by side"),
    ],
)
def test_sweeps_that_do_not_fit_are_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = make_tables()
    stored_sweep(tmp_path, "lambda", tables, None)
    stored_sweep(tmp_path, "pldm", as_random_search(tables), TABLE)
    moved = {
        name: frame.with_columns(env=pl.lit("push_t")) if "env" in frame.columns else frame
        for name, frame in tables.items()
    }
    stored_sweep(tmp_path, "push", moved, None)
    assert simulate.main([*arguments, "--storage", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
