import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline import report, reporting, tables
from pipeline.shipped import load_published
from pipeline.stages import stability
from pipeline.storage import Storage

ROOT = Path(__file__).parents[2]
Frames = dict[str, pl.DataFrame]
A, B = "lambda-two_room-quick", "other-two_room-quick"


def write(
    storage: Path, name: str, found: Mapping[str, pl.DataFrame], meta: Mapping[str, Any] = META
) -> Path:
    folder = storage / "sweeps" / name
    folder.mkdir(parents=True)
    for table, frame in found.items():
        tables.write_table(folder, table, frame)
    (folder / "sweep.json").write_text(json.dumps({**meta, "folder": name}))
    return folder


def small(lams: tuple[float, ...] = (0.1, 0.3), **more: Any) -> Frames:
    made = make_tables(lams=lams, seeds=(0, 1), failed=(), diverged=(), num_steps=8, **more)
    made["planning"] = made["planning"].filter(protocol="strict")
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with two sweeps, one of them unfinished; copied by those who write."""
    storage = tmp_path_factory.mktemp("storage")
    first = small()
    write(storage, A, first | stability.run(first, load_published()))
    second = small(pending=((0.3, 1),))
    second["planning"] = second["planning"].with_columns(success=pl.col("pair_id") % 2 == 0)
    write(storage, B, second | stability.run(second, load_published()))
    return storage


@pytest.fixture
def storage(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "runs"))


def run(storage: Path, *words: str) -> int:
    return report.main([*words, "--storage", str(storage)])


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def alone(storage: Path, *commands: list[str]) -> str:
    """What the commands print, in a process that may not import torch, Ray or MLflow."""
    code = (
        "import sys, json; from pipeline.report import main; "
        "codes = [main(words) for words in json.loads(sys.argv[1])]; "
        "heavy = {'torch', 'ray', 'mlflow'} & set(sys.modules); assert not heavy, heavy; "
        "sys.exit(max(codes))"
    )
    words = json.dumps([[*command, "--storage", str(storage)] for command in commands])
    command = [sys.executable, "-c", code, words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_pictures(figures: Path, said: str) -> None:
    pictures = sorted(figures.glob("*.png"))
    assert len(pictures) >= 2
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.with_suffix(".svg").exists()
    for kind in ("SVG", "PNG"):
        assert f"figures: {figures} ({len(pictures)} {kind})" in said


def test_all_of_it_from_parquet_alone(storage: Path) -> None:
    said = alone(storage, ["lambda", "--format", "md,latex"], ["lambda", "other"])
    sweep, both = (
        storage / "sweeps" / A / "report",
        storage / "comparisons" / f"{A}--{B}" / "report",
    )
    assert {"tables.md", "tables.tex"} == {p.name for p in sweep.iterdir()}
    assert {"index.html", "figures"} == {p.name for p in both.iterdir()}
    for line in (f"tables: {sweep}/tables.md", f"report: {both}/index.html", r"   (\input it; "):
        assert line in said
    assert f"figures: {both}/figures (2 SVG)" in said
    found = tables.scan(both.parent, "comparison").collect()
    assert set(found["other_kind"]) == {"sweep"} and set(found["other"]) == {A}


@pytest.mark.ci
def test_every_format_of_both_reports(storage: Path) -> None:
    every = ["--format", "html,md,latex,png"]
    said = alone(storage, ["lambda", *every], ["lambda", "other", *every])
    for folder in (storage / "sweeps" / A, storage / "comparisons" / f"{A}--{B}"):
        made = {p.name for p in (folder / "report").iterdir()}
        assert made == {"index.html", "tables.md", "tables.tex", "figures"}
        check_pictures(folder / "report" / "figures", said)


@pytest.mark.ci
def test_the_report_of_a_hundred_trials_takes_less_than_twenty_seconds(tmp_path: Path) -> None:
    made = make_tables(seeds=tuple(range(20)), num_steps=2000, num_pairs=50)
    write(tmp_path, A, made | stability.run(made))
    begin = time.process_time()
    assert run(tmp_path, "lambda") == 0
    assert time.process_time() - begin < 20


def test_only_what_was_asked_for_is_written(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(storage, "lambda", "--format", "md, latex") == 0
    made = storage / "sweeps" / A / "report"
    assert {p.name for p in made.rglob("*")} == {"tables.md", "tables.tex"}
    said = capsys.readouterr().out
    assert f"tables: {made}/tables.md" in said and "report:" not in said
    before = everything(storage)
    assert run(storage, "lambda", "--format", "md,latex") == 0 and everything(storage) == before


def test_an_unfinished_sweep_ends_in_the_command_that_goes_on(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(storage, "other", "--format", "md") == 0
    words, command = capsys.readouterr().out.splitlines()[-2:]
    assert words.startswith("next: ") and "no result from 1 of 4 trials (1 pending)" in words
    assert command.strip() == META["command"]
    failed = small()
    failed["trials"] = failed["trials"].with_columns(status=pl.lit("failed"))
    write(storage, "broken", failed | stability.run(failed))
    assert run(storage, "broken", "--format", "md") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.strip() == f"{META['command']} --retry failed"
    assert run(storage, "lambda", "--format", "md") == 0
    assert "--grid loss.lam=" in capsys.readouterr().out.splitlines()[-1]


def test_out_copies_the_report(storage: Path, tmp_path: Path) -> None:
    out = tmp_path / "here"
    assert run(storage, "lambda", "--format", "md,latex", "--out", str(out)) == 0
    made = storage / "sweeps" / A / "report"
    assert everything(out) == everything(made) and len(everything(out)) == 2


def test_sweeps_of_other_storages_are_named_by_their_path(storage: Path, tmp_path: Path) -> None:
    far = tmp_path / "far" / "sweeps"
    shutil.copytree(storage / "sweeps" / B, far / B)
    assert run(storage, A, f"{far}/{B}", "--format", "md") == 0
    assert (storage / "comparisons" / f"{A}--{B}" / "report" / "tables.md").exists()
    assert report.main([f"{far}/{B}", f"{storage}/sweeps/{A}", "--format", "md"]) == 0
    assert (far.parent / "comparisons" / f"{B}--{A}" / "report" / "tables.md").exists()


def test_a_comparison_says_what_is_missing(storage: Path) -> None:
    assert run(storage, "lambda", "other", "--format", "md") == 0
    text = (storage / "comparisons" / f"{A}--{B}" / "report" / "tables.md").read_text()
    assert f"Not complete: {B}, lewm in two_room: no result from 1 of 4 trials (1 pending)" in text


def test_two_sweeps_with_nothing_in_common_write_nothing(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(storage, "far-two_room-quick", small((1.0,)))
    before = everything(storage)
    assert run(storage, "lambda", "far") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "no point in common" in said.err and not said.out
    assert everything(storage) == before and not (storage / "comparisons").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["lambda", "--format", "latx"],
            "'latx' is no format (did you mean 'latex'?); known: html, md",
        ),
        (["lambda", "--format", "markdown"], "(did you mean 'md'?)"),
        (["lambda", "--format", ""], "'' is no format; known: html, md, latex, png"),
        (["lambda", "lambda"], "is given twice"),
        (["lambda", "othr"], f"no sweep 'othr' (did you mean '{B}'?)"),
        (["./nowhere/lambda"], "holds neither sweep.json nor tables/"),
        (["lambda", "--storage", "gs://x"], "a folder or s3://bucket/prefix, not gs://"),
    ],
)
def test_bad_input_is_one_line(
    built: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    before = everything(built)
    where = [] if "--storage" in words else ["--storage", str(built)]
    assert report.main([*words, *where]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert everything(built) == before


def at_version(folder: Path, version: int, *names: str, without: tuple[str, ...] = ()) -> None:
    """Writes tables of a sweep again as another version wrote them."""
    for name in names:
        frame = tables.read_table(folder, name)
        frame = frame.drop(column for column in without if column in frame.columns)
        content = tables.encode(frame, dict(frame.schema), version=version)
        Storage(folder).write_bytes(tables.table_key(name), content)


def test_tables_of_an_older_version_are_read_and_judged_again(storage: Path) -> None:
    folder = storage / "sweeps" / A
    assert run(storage, "lambda", "--format", "md") == 0
    today = everything(folder)
    lacking = ("pred_error", "copy_error", "num_pairs", "ci_method")
    for name in ("examples",):
        (folder / "tables" / f"{name}.parquet").unlink()
    at_version(folder, 1, *stability.INPUTS, "comparison", without=lacking)
    at_version(folder, 1, "stability", "profiles")
    searched = {"quantity": "search_verdict", "text": "Found.", "method": "lewm"}
    stale = [{"quantity": "verdict", "text": "An old verdict."}, searched]
    frame = tables.make_frame(stale, tables.SCHEMAS["summary"])
    content = tables.encode(frame, tables.SCHEMAS["summary"], version=1)
    Storage(folder).write_bytes("tables/summary.parquet", content)
    assert run(storage, "lambda", "--format", "md") == 0
    again = everything(folder)
    assert again["report/tables.md"] == today["report/tables.md"]
    assert again["tables/stability.parquet"] == today["tables/stability.parquet"]
    quantities = tables.scan(folder, "summary").select("quantity", "text").collect()
    assert "An old verdict." not in quantities["text"].to_list()
    assert quantities.filter(quantity="search_verdict")["text"].to_list() == ["Found."]
    assert (
        again["tables/latents.parquet"] != today["tables/latents.parquet"]
    )  # inputs stay as they are


def test_the_description_of_an_older_sweep_is_understood(storage: Path) -> None:
    folder = storage / "sweeps" / A
    world = META["worlds"][0]
    planning = world["variants"][0]["config"]["planning"]
    old = {key: value for key, value in META.items() if key != "worlds"}
    old |= {"env": "two_room", "protocols": world["protocols"], "planning": planning}
    old["trials"] = [{"config": {"method": "lewm", "latents": {"collapse_std": 0.2}}}]
    (folder / "sweep.json").write_text(json.dumps(old))
    found = reporting.read_meta(Storage(folder))["worlds"]
    assert [(w["method"], w["env"], w["protocols"]) for w in found] == [
        ("lewm", "two_room", world["protocols"])
    ]
    settings = found[0]["variants"][0]["config"]
    assert settings["planning"] == planning and settings["latents"] == {"collapse_std": 0.2}
    (folder / "sweep.json").write_text("{torn")
    assert reporting.read_meta(Storage(folder)) == {"folder": A, "name": A}


@pytest.mark.parametrize("name", ["planning", "summary"])
def test_a_newer_version_is_one_line_and_nothing_is_written(
    storage: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    at_version(storage / "sweeps" / A, 99, name)
    before = everything(storage)
    for words in (["lambda"], ["other", "lambda"]):
        assert run(storage, *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "newer version" in error and f"{name}.parquet" in error
    assert everything(storage) == before


def test_a_torn_judgement_is_made_again_a_torn_input_is_told(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = storage / "sweeps" / A / "tables"
    whole = (folder / "summary.parquet").read_bytes()
    (folder / "summary.parquet").write_bytes(whole[:200])
    assert run(storage, "lambda", "--format", "md") == 0
    assert (folder / "summary.parquet").read_bytes() == whole
    torn = (folder / "planning.parquet").read_bytes()[:500]
    (folder / "planning.parquet").write_bytes(torn)
    assert run(storage, "lambda", "--format", "md") == 2
    assert "planning.parquet is not a whole Parquet file" in capsys.readouterr().err


def test_a_sweep_without_any_table_has_a_page_and_gets_no_tables(storage: Path) -> None:
    folder = write(storage, "begun", {})
    assert run(storage, "begun", "--format", "md") == 0
    assert "no trials yet" in (folder / "report" / "tables.md").read_text()
    assert not (folder / "tables").exists()


def test_pictures_of_an_earlier_report_do_not_stay_beside_newer_ones(storage: Path) -> None:
    folder = Storage(storage / "sweeps" / A)
    reporting._write(folder, reporting._pictures({"a": SVG % "red", "b": SVG % "red"}, True))
    assert sorted(folder.list("report/figures")) == ["a.png", "a.svg", "b.png", "b.svg"]
    reporting._write(folder, reporting._pictures({"a": SVG % "red", "c": SVG % "blue"}, False))
    assert sorted(folder.list("report/figures")) == ["a.png", "a.svg", "c.svg"]
    reporting._write(folder, reporting._pictures({"a": SVG % "blue"}, False))
    assert folder.list("report/figures") == ["a.svg"]


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9" '
    'fill="%s"/></svg>'
)
