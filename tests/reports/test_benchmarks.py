"""Benchmark records: condensed from pytest-benchmark's output, compared with the last one, drawn as a page."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import main
from reports.benchmarks import ratios, render
from tests.benchmarks import record as module
from tests.benchmarks.record import changes, condense, table

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "tests" / "benchmarks" / "records").glob("*.json"))


def timed(group: str, name: str, median: float, units: float = 1) -> dict[str, Any]:
    stats = {"median": median, "q1": 0.9 * median, "q3": 1.2 * median, "rounds": 5}
    extra = {"units": units, "unit": "frames", "bytes_per_frame": 2900.0}
    return {"group": group, "name": name, "stats": stats, "extra_info": extra}


@pytest.fixture
def raw() -> dict[str, Any]:
    tests = [
        timed("clips", "bench_ours[push_t]", 0.004, 256),
        timed("clips", "bench_rival[lance-push_t]", 0.08, 256),
        timed("clips", "bench_floor[push_t]", 0.001, 256),
        timed("clips", "bench_quick_ours[normalised-push_t]", 0.005, 256),
        timed("starts", "bench_first_step_ours", 8.0),
    ]
    tests[-2]["extra_info"]["variant"] = "normalised"
    tests[-1]["extra_info"] |= {"units": 2, "target_s": 4.1}
    machine = {"cpu": "Some <CPU>", "cores": 2, "threads": 1, "gpu": None}
    machine |= {"python": "3.11.7", "torch": "2.13.0", "short": True}
    commit = {"id": "f11f74d123", "dirty": False}
    return {
        "benchmarks": tests,
        "machine_info": machine,
        "commit_info": commit,
        "datetime": "2026-11-24T01:00:00",
    }


def test_ours_is_so_many_times_as_fast(raw: dict[str, Any]) -> None:
    record = condense(raw)
    assert ratios(record) == pytest.approx({("clips", "rival lance"): 20, ("clips", "floor"): 0.25})
    speeds = {(row["group"], row["side"]): row["per_second"] for row in record["rows"]}
    assert speeds["clips", "ours"] == pytest.approx(64_000) and speeds["starts", "ours"] == 0.25


def test_what_changed_by_more_than_a_fifth_is_told(
    raw: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    module.RECORDS.mkdir()
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(raw))
    assert module.main([str(path), "--save"]) == 0
    assert [kept.name for kept in module.RECORDS.iterdir()] == ["some-cpu-2-cores.json"]
    slower = copy.deepcopy(raw)
    slower["benchmarks"][0]["stats"]["median"] *= 1.3
    slower["benchmarks"][2]["stats"]["median"] *= 1.1
    slower["benchmarks"][4]["stats"]["median"] *= 1.1
    assert changes(condense(slower), condense(raw)) == ["clips: ours / rival lance 20.00 -> 15.38"]
    path.write_text(json.dumps(slower))
    capsys.readouterr()
    assert module.main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "1 ratios changed by more than 20%" in said and "CHANGED clips" in said
    assert "| clips | rival lance | 3,200 frames |" in said
    assert "MISSED starts: 4.40 s, target 4.10 s" in said and "not measured" not in said
    del slower["benchmarks"][1]
    path.write_text(json.dumps(slower))
    assert module.main([str(path)]) == 0
    assert "1 kept ratios are not measured here (no rival lance)" in capsys.readouterr().out


def test_the_page(raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = render([condense(raw)])
    assert "20.00 × as fast as the rival, lance; at 25 % of the floor&#39;s speed." in page
    assert "Some &lt;CPU&gt;, 2 cores" in page and "short run" in page
    assert "<script" not in page and page == render([condense(raw)])
    for bad in ("{}", "not JSON", "[1]"):
        (tmp_path / "bad.json").write_text(bad)
        assert main(["--benchmarks", str(tmp_path / "bad.json"), "--out", str(tmp_path)]) == 2
        assert "not a record of `make bench`" in capsys.readouterr().err
    assert main(["--benchmarks", str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "benchmarks.html").exists()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_kept_records_are_whole(path: Path) -> None:
    record = json.loads(path.read_text())
    assert not record["machine"]["short"] and not record["dirty"]
    sides = {row["side"].split()[0] for row in record["rows"]}
    assert sides == {"ours", "rival", "floor"}
    assert render([record]).count("<h3>") == len({row["group"] for row in record["rows"]})
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert table(record) in page, "run: python -m tests.benchmarks.record --doc"
