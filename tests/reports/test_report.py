import itertools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import LAMS, META, make_tables

from pipeline import report
from pipeline.stages import stability
from pipeline.storage import Storage
from pipeline.survey import find_sweep
from pipeline.tables import SCHEMAS, write_table
from reports import figures, text
from reports.axis import make_axis
from reports.page import figures_svg, render

ROOT = Path(__file__).parents[2]
Frames = dict[str, pl.DataFrame]


def judged(tables: Frames) -> Frames:
    return tables | stability.run(tables)


def write_sweep(folder: Path, tables: Mapping[str, pl.DataFrame]) -> Path:
    for name, frame in tables.items():
        write_table(folder, name, frame)
    (folder / "sweep.json").write_text(json.dumps(META))
    return folder


@pytest.fixture(scope="module")
def tables() -> Frames:
    return judged(make_tables())


@pytest.fixture(scope="module")
def page(tables: Frames) -> str:
    return render(tables, META)


class _Text(HTMLParser):
    """Visible text, and the tags left open."""

    VOID = frozenset({"meta", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def visible(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.words).split())


def test_page_is_one_small_file_without_network_references(page: str) -> None:
    assert len(page.encode()) < 5_000_000
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"'`<>)]*", page))
    namespaces = {"xlink", "svg", "xmlns/"}
    assert {a for a in addresses if not re.search(r"//www\.w3\.org/", a)} == set()
    assert {a.rsplit("/", 1)[-1] or a.split("/")[-2] + "/" for a in addresses} <= namespaces
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.S)
    assert not re.search(r"<(link|img|iframe|script|image|use)[^>]*(src|href)=", markup)
    assert set(re.findall(r'(?:src|href)="([^#"][^"]*)"', markup)) == set()
    assert "default-src 'none'" in page


def test_page_says_what_the_summary_says(page: str, tables: Frames) -> None:
    words = visible(page)
    for quantity in (
        "verdict",
        "certainty",
        "finding_latents",
        "finding_surprise",
        "trials_missing",
    ):
        text_of = tables["summary"].filter(pl.col("quantity") == quantity)["text"][0]
        assert " ".join(text_of.split()) in words, quantity
    for section in ("Planning success", "Latent health", "Training", "Protocols", "Provenance"):
        assert section in words
    assert META["git_commit"] in words and "3f9a1c0b77de" in words and META["command"] in words


def test_failed_and_diverged_trials_are_listed_and_escaped(page: str) -> None:
    words = visible(page)
    assert "RuntimeError: <a made-up> failure & its message" in words
    assert "RuntimeError: &lt;a made-up&gt; failure &amp; its message" in page
    assert "not finite at step 133" in words
    assert words.index("failed", words.index("Trials point")) < words.index(
        "done", words.index("Trials point")
    )


def test_protocols_show_rules_sizes_and_floors(page: str) -> None:
    words = visible(page)
    for piece in (
        "distance_px = 8.0, cross_room = yes, goal_side = yes",
        "CEM: 100 samples × 6 iterations, 10 elites",
        "30 for each eval seed (42)",
        "floor: the recorded actions",
    ):
        assert piece in words


def test_every_seed_is_a_dot_and_a_line(page: str) -> None:
    found = re.search(r'id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    specs = json.loads(found.group(1))["specs"]
    dots = specs["success-strict-cem"]["spec"]["layer"][-1]["data"]["values"]
    assert len(dots) == 14  # 15 trials, one failed
    assert sorted({dot["state"] for dot in dots}) == ["collapsed", "diverged", "healthy"]
    assert sum(dot["state"] == "collapsed" for dot in dots) == 4
    lines = {row["id"] for row in specs["train-curve-pred_loss"]["spec"]["data"]["values"]}
    assert len(lines) == 14
    for name in ("mean_std", "effective_rank", "epps_pulley", "straightness"):
        assert f"latents-{name}" in specs


def test_same_tables_same_bytes(page: str, tables: Frames) -> None:
    assert render({name: frame.clone() for name, frame in tables.items()}, META) == page
    first, second = figures_svg(tables, META), figures_svg(tables, META)
    assert first == second and all(svg.startswith("<svg") for svg in first.values())


@pytest.mark.parametrize("missing", sorted(stability.INPUTS))
def test_missing_stage_says_so(missing: str) -> None:
    given = make_tables()
    given[missing] = pl.DataFrame(schema=dict(SCHEMAS[missing]))
    words = visible(render(judged(given), META))
    said = {
        "planning": "No planning results yet.",
        "latents": "No latents measured yet.",
        "curves": "No training curves yet.",
        "probing": "No probes fitted yet.",
        "surprise": "No surprise measured yet.",
    }
    assert said.get(missing, "Planning success") in words


@pytest.mark.parametrize("fate", ["failed", "diverged", "pending"])
def test_only_lost_trials_still_make_a_page(fate: str) -> None:
    every = tuple((lam, seed) for lam in LAMS for seed in (0, 1, 2))
    lost: dict[str, Any] = {"failed": (), "diverged": (), fate: every}
    words = visible(render(judged(make_tables(**lost)), META))
    assert "no trial has planning results" in words
    if fate != "diverged":
        assert f"15 of 15 trials (15 {fate})" in words


def test_one_seed_one_lambda_and_bare_meta() -> None:
    given = judged(make_tables(lams=(0.1,), seeds=(0,), failed=(), diverged=()))
    words = visible(render(given, {}))
    assert "one seed, so no interval" in words
    assert "Only one point was tried" in words
    assert "no interval: one seed" in words


@pytest.mark.parametrize("versions", ["torch 2.13.0", '{"torch": "2.13.0"}', {"torch": "2.13.0"}])
def test_versions_may_be_text_or_a_table(versions: Any) -> None:
    given = judged(
        make_tables(lams=(0.1,), seeds=(0,), failed=(), diverged=(), pending=((0.1, 0),))
    )
    assert "torch 2.13.0" in visible(render(given, {**META, "versions": versions}))


def test_no_trials_at_all() -> None:
    empty = {name: pl.DataFrame(schema=dict(schema)) for name, schema in SCHEMAS.items()}
    assert "no trials yet" in visible(render(empty, META))


def test_zero_has_its_own_slot_beside_the_log_axis() -> None:
    axis = make_axis([(f"loss.lam={lam}", lam) for lam in (1.0, 0.0, 0.1, 0.01)])
    places = [slot.at for slot in axis.slots]
    assert [slot.label for slot in axis.slots] == ["0", "0.01", "0.1", "1"]
    assert places[1:] == pytest.approx([-2.0, -1.0, 0.0])
    assert axis.break_at is not None and places[0] < axis.break_at < places[1]
    other = make_axis([("model.depth=2", 0.09), ("model.depth=4", 0.09)])
    assert [slot.at for slot in other.slots] == [0.0, 1.0] and other.break_at is None


def test_thinning_keeps_the_last_point_and_averages_nothing() -> None:
    rows = [{"step": step} for step in range(1, 1002)]
    kept = figures.thin(rows, 200)
    assert len(kept) <= 201 and kept[-1] == rows[-1] and kept[0] == rows[0]
    assert {b["step"] - a["step"] for a, b in itertools.pairwise(kept[:-1])} == {6}
    assert figures.thin(rows[:50], 200) == rows[:50] and figures.thin([]) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.00012, "0.00012"),
        (-0.5, "−0.5"),
        (2.5e-7, "2.5 × 10⁻⁷"),
        (18034478, "18,034,478"),
    ],
)
def test_numbers_for_readers(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


def test_command_builds_the_page_without_heavy_imports(tmp_path: Path, tables: Frames) -> None:
    folder = write_sweep(tmp_path / "sweeps" / "lambda-two_room-quick", tables)
    code = (
        "import sys; from pipeline.report import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'ray', 'mlflow'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "lambda", "--storage", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = folder / "report" / "index.html"
    assert done.stdout.strip() == f"report: {page}"
    assert page.read_text() == render(tables, META)
    names = {path.stem for path in (folder / "report" / "figures").glob("*.svg")}
    assert {"success-strict-cem", "success-paper-cem", "latents-mean_std"} <= names
    before = {path: path.stat().st_mtime_ns for path in (folder / "report").rglob("*.*")}
    (folder / "report" / "figures" / "stale.svg").write_text("")
    assert report.main(["lambda-two_room-quick", "--storage", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "report").rglob("*.*")} == before


def test_report_judges_where_the_sweep_has_not(tmp_path: Path, tables: Frames) -> None:
    raw = {name: frame for name, frame in tables.items() if name not in stability.OUTPUTS}
    page = report.make_report(write_sweep(tmp_path / "sweeps" / "lambda-two_room-quick", raw))
    assert Path(page).read_text() == render(tables, META)


def test_sweeps_are_found_by_the_start_of_their_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (
        "lambda-two_room-quick",
        "lambda-two_room-paper",
        "lambda2-two_room-quick",
        "smoke-a-b",
    )
    for name in names:
        (tmp_path / "sweeps" / name).mkdir(parents=True)
    assert find_sweep("smoke", Storage(tmp_path)) == "smoke-a-b"
    assert find_sweep("lambda2", Storage(tmp_path)) == "lambda2-two_room-quick"
    assert find_sweep("lambda-two_room-p", Storage(tmp_path)) == "lambda-two_room-paper"
    assert report.main(["lambda", "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "lambda-two_room-paper, lambda-two_room-quick" in said and "lambda2" not in said
    assert report.main(["smok3", "--storage", str(tmp_path)]) == 2
    assert "did you mean 'smoke-a-b'?" in capsys.readouterr().err
    assert report.main(["x", "--storage", str(tmp_path / "none")]) == 2
    assert "there is none in" in capsys.readouterr().err


def test_torn_table_is_one_line(
    tmp_path: Path, tables: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "sweeps" / "lambda-two_room-quick", tables)
    path = folder / "tables" / "planning.parquet"
    path.write_bytes(path.read_bytes()[:500])
    assert report.main(["lambda", "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "planning.parquet" in said
