"""Seconds per plan: operations counted, methods in turn, ratios with intervals, made once."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from lewm.config import Config
from lewm.overrides import make_config
from pipeline import driver, plan_times
from pipeline.options import Options
from pipeline.resolve import resolve
from pipeline.spec import Request
from pipeline.stages import stability, timing
from pipeline.stages.stability.ratios import time_ratios
from pipeline.storage import Storage
from pipeline.tables import SCHEMAS, make_frame, read_table
from reports.page import render

TINY = {
    "data.env": "push_t",
    "run.device": "cpu",
    "model.image_size": 28,
    "model.patch_size": 14,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.mlp": 32,
    "model.latent_dim": 8,
    "model.projector_hidden": 16,
    "model.predictor_depth": 1,
    "model.predictor_heads": 2,
    "model.predictor_head_dim": 4,
    "model.predictor_mlp": 16,
    "planning.num_samples": 8,
    "planning.num_elites": 4,
    "planning.num_iterations": 3,
    "timing.repetitions": 2,
}


def case(method: str, **more: Any) -> timing.Case:
    config: Config = make_config({**TINY, "method": method, **more})
    keys = {
        "method": method,
        "env": "push_t",
        "profile": "tiny",
        "planner": "cem",
        "eval_point": "",
    }
    return timing.Case(keys, config)


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return timing.run([case("lewm"), case("pldm"), case("random_encoder")], nothing)


def test_methods_take_turns_within_a_repetition(frame: pl.DataFrame) -> None:
    own = frame.filter(pl.col("setting") == "samples")
    assert own["repetition"].to_list() == [0, 0, 0, 1, 1, 1]
    assert own["method"].to_list() == ["lewm", "pldm", "random_encoder"] * 2
    assert (own["plan_s"] == own["measured_s"]).all() and (own["plan_s"] > 0).all()


def test_the_same_network_takes_the_same_operations(frame: pl.DataFrame) -> None:
    assert frame.filter(pl.col("setting") == "samples")["flops"].n_unique() == 1


def test_operations_are_those_of_the_matrix_products() -> None:
    linear = case("linear_dynamics", **{"timing.settings": ["samples"]})
    with torch.no_grad():
        rows = timing.run([linear], nothing).to_dicts()
    inputs, latent, tokens = 8 + 10 + 1, 8, 4 + 1
    per_step = 2 * inputs * latent
    search = 8 * 3 * 5 * per_step
    patches = 2 * 4 * (3 * 14 * 14) * 16
    attention = 2 * tokens * 16 * 16 * 2 + 2 * 16 * 16 * 2 + 2 * 2 * tokens * 16
    mlp = 2 * 2 * 16 * 32
    projector = 2 * 16 * 16 + 2 * 16 * 8
    assert rows[0]["flops"] == search + 2 * (patches + attention + mlp + projector)


def test_equal_operations_buy_fewer_samples_of_a_dearer_method() -> None:
    dear = case("pldm", **{"model.predictor_mlp": 4096})
    rows = timing.run([case("lewm"), dear], nothing)
    equal = rows.filter(pl.col("setting") == "flops", pl.col("repetition") == 0)
    cheap, bought = equal.to_dicts()
    assert (cheap["num_samples"], cheap["num_iterations"]) == (8, 3)
    assert 2 <= bought["num_samples"] * bought["num_iterations"] < 24
    asked = rows.filter(pl.col("setting") == "samples", pl.col("method") == "pldm")["flops"][0]
    assert bought["flops"] <= cheap["flops"] < asked or bought["num_samples"] == 2


def test_what_is_not_run_is_scaled() -> None:
    part = case(
        "lewm", **{"timing.samples": 4, "timing.iterations": 1, "timing.settings": ["samples"]}
    )
    row = timing.run([part], nothing).to_dicts()[0]
    assert (row["num_samples_run"], row["num_iterations_run"]) == (4, 1)
    assert (row["num_samples"], row["num_iterations"]) == (8, 3)
    assert row["plan_s"] > row["measured_s"]


def test_the_ratio_is_that_of_repetitions_side_by_side() -> None:
    seconds = {"lewm": (1.0, 2.0, 4.0), "dino_wm": (10.0, 22.0, 40.0)}
    rows = [
        {
            **case(method).keys,
            "metric": "plan_s",
            "setting": "samples",
            "repetition": number,
            "num_samples": 300,
            "num_iterations": 30,
            "num_samples_run": 300,
            "num_iterations_run": 30,
            "device": "a processor",
            "flops": 2e12 if method == "dino_wm" else 1e12,
            "plan_s": value,
        }
        for method, values in seconds.items()
        for number, value in enumerate(values)
    ]
    told = time_ratios(make_frame(rows, SCHEMAS["timing"]))
    found = {(row["method"], row["quantity"]): row for row in told}
    ratio = found["dino_wm", "time_ratio"]
    assert ratio["value"] == pytest.approx((10 * 11 * 10) ** (1 / 3))
    assert ratio["ci_low"] < ratio["value"] < ratio["ci_high"] and ratio["ci_high"] < 12.5
    assert found["lewm", "plan_seconds"]["value"] == pytest.approx(2.0)
    assert found["dino_wm", "flops_ratio"]["value"] == 2.0
    assert ("lewm", "time_ratio") not in found


def write_toml(folder: Path) -> Path:
    settings = "\n".join(
        f'"{key}" = {json.dumps(value)}' for key, value in TINY.items() if key != "data.env"
    )
    path = folder / "plan_time.toml"
    path.write_text(
        'name = "plan_time"\nquestion = "How long?"\nmethod = ["lewm", "pldm"]\nenv = "push_t"\n'
        f'stages = ["timing"]\n[set]\n{settings}\n'
    )
    return path


def test_a_sweep_of_plan_times_trains_nothing_and_is_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = resolve(Request(str(write_toml(tmp_path))))
    assert spec.trials == () and spec.times and spec.stages == ()
    storage = Storage(tmp_path / "runs")
    options = Options("a command", None)
    assert driver.run(spec, storage, options) == 0
    folder = storage.at(f"sweeps/{spec.folder}")
    rows = read_table(folder, "timing")
    assert rows.height == 2 * 2 * 2 and set(rows["metric"]) == {"plan_s"}
    page = (tmp_path / "runs/sweeps" / spec.folder / "report/index.html").read_text()
    assert "Time per plan" in page and "PLDM" in page
    assert "plans timed" in capsys.readouterr().out
    monkeypatch.setattr(timing, "run", lambda *given: pytest.fail("timed again"))
    assert driver.run(spec, storage, options) == 0
    assert "nothing was missing" in capsys.readouterr().out
    key = plan_times.part_key(spec)
    storage.write_bytes(key, storage.read_bytes(key)[:-9])
    assert not plan_times.has_times(spec, storage)


def test_a_timing_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    spec = resolve(Request(str(write_toml(tmp_path))))
    storage = Storage(tmp_path / "runs")
    plan_times.time_plans(spec, storage, lambda: True)
    assert not storage.exists(plan_times.part_key(spec))


def test_the_page_draws_every_repetition(frame: pl.DataFrame) -> None:
    tables = stability.run({"timing": frame}) | {"timing": frame}
    empty = {name: pl.DataFrame(schema=dict(SCHEMAS[name])) for name in SCHEMAS}
    page = render({**empty, **tables}, {"name": "planning_time"})
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S).group(1))["figures"]  # type: ignore[union-attr]
    marks = charts["timing-samples-CEM"]["spec"]["layer"][-1]["data"]["values"]
    assert len(marks) == 6
    assert "has no trials yet" not in page
