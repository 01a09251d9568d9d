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

from pipeline import report, reporting
from pipeline.shipped import load_published
from pipeline.stages import stability
from pipeline.storage import Storage
from pipeline.survey import find_sweep
from pipeline.tables import SCHEMAS, make_frame, write_table
from reports import curves, next_run, prose, text, theme
from reports.axis import make_axis
from reports.page import figures_svg, render

ROOT = Path(__file__).parents[2]
Frames = dict[str, pl.DataFrame]
EVERY = tuple((lam, seed) for lam in LAMS for seed in (0, 1, 2))


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


def charts(page: str) -> dict[str, Any]:
    """The page's figures as its script reads them."""
    found = re.search(r'id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    figures: dict[str, Any] = json.loads(found.group(1))["figures"]
    return figures


class _Text(HTMLParser):
    """Visible text, and the tags left open."""

    VOID = frozenset({"meta", "br", "link", "img"})

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
    lost = words[words.index("Failed and diverged") : words.index("All 15 trials")]
    assert lost.count("λ = ") == 2 and " done " not in lost


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
    found = charts(page)
    dots = found["success-strict-cem"]["spec"]["layer"][-1]["data"]["values"]
    assert len(dots) == 14  # 15 trials, one failed
    assert sorted({dot["state"] for dot in dots}) == ["collapsed", "diverged", "healthy"]
    assert sum(dot["state"] == "collapsed" for dot in dots) == 4
    assert len({line[0] for line in found["train-curve-pred_loss"]["curves"]["lines"]}) == 14
    for name in ("mean_std", "effective_rank", "epps_pulley", "straightness"):
        assert f"latents-{name}" in found


def test_every_figure_has_its_words_its_table_and_its_data(page: str) -> None:
    found = charts(page)
    shown = re.findall(r'<figure class="plot" id="figure-([^"]+)">(.*?)</figure>', page, re.S)
    assert [name for name, _ in shown] == list(found)
    for name, markup in shown:
        title = re.search(r'class="figure-title">(.*?)<', markup)
        caption = re.search(r"<figcaption>\s*<p>(.*?)</p>", markup, re.S)
        assert title and any(sign.isdigit() for sign in title.group(1)), name
        assert caption and re.search(r"\d+\s(seed|run|pair|episode)", caption.group(1)), name
        assert "<table>" in markup and f'data-csv="{name}"' in markup, name
        assert f'data-svg="{name}"' in markup, name
        figure = found[name]
        assert len(figure["columns"]) == len(figure["rows"][0]), name
        titles = axis_titles(figure["spec"])
        assert {"x", "y"} <= set(titles) or name.startswith("seeds"), (name, titles)


def axis_titles(part: Any) -> dict[str, str]:
    """Titles of the x and y channels anywhere in a spec."""
    titles: dict[str, str] = {}
    if isinstance(part, dict):
        for channel, inner in part.items():
            if channel in ("x", "y") and isinstance(inner, dict) and inner.get("title"):
                titles[channel] = inner["title"]
            titles |= axis_titles(inner)
    if isinstance(part, list):
        for inner in part:
            titles |= axis_titles(inner)
    return titles


def test_the_four_questions_are_answered_before_the_first_figure(page: str, tables: Frames) -> None:
    words = visible(page)
    floor = tables["summary"].filter(quantity="floor_random", protocol="strict")["value"][0]
    first = words[: words.index("healthy run")]
    for question in (
        "Which λ? λ = 0.1",
        "How sure?",
        f"Against what? random {floor:.0%}".replace("%", " %"),
        "What next?",
    ):
        assert question in first
    assert page.count("<main") == 1 and page.index("<h1") < page.index("<h2")
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and not any(re.search(r"\s", name) for name in ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


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


def test_a_sweep_that_does_not_plan_answers_with_what_it_found() -> None:
    tables = make_tables(lams=(0.1,))
    tables["planning"] = tables["planning"].clear()
    asked = judged(tables)
    assert "no verdict yet" in visible(render(asked, META))
    tables["cells"] = tables["cells"].filter(pl.col("stage") != "planning")
    words = visible(render(judged(tables), META))
    assert "This sweep plans nothing" in words and "no verdict yet" not in words
    assert "a linear probe of the" in words and "× its control for teleport" in words
    assert "Planning success" not in words and "What to run next" not in words


def test_several_points_without_planning_are_told_apart_by_straightness() -> None:
    tables = make_tables(lams=(0.1, 0.3))
    tables["planning"] = tables["planning"].clear()
    tables["cells"] = tables["cells"].filter(pl.col("stage") != "planning")
    given = judged(tables)
    straight = (
        given["stability"].filter(metric="straightness", layer="projected", runs="all").sort("mean")
    )
    first, last = (f"λ = {lam:g} (mean cosine" for lam in straight["lam"].gather([-1, 0]))
    assert f"straightest at {first}" in visible(render(given, META))
    assert f"least straight at {last}" in visible(render(given, META))


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


def test_points_stand_as_the_sweep_names_them_and_numbers_by_size():
    sizes = [(f"predictor={size}", 0.09) for size in ("base", "small", "tiny")]
    begun = ["predictor=tiny", "predictor=small", "predictor=base"]
    assert [slot.label for slot in make_axis(sizes, begun).slots] == ["tiny", "small", "base"]
    assert [slot.label for slot in make_axis(sizes).slots] == ["base", "small", "tiny"]
    dims = [(f"model.latent_dim={dim}", 0.09) for dim in (128, 16, 64)]
    assert [slot.label for slot in make_axis(dims, ["model.latent_dim=64"]).slots] == [
        "16",
        "64",
        "128",
    ]


def test_thinning_keeps_the_last_point_and_averages_nothing() -> None:
    frame = pl.DataFrame(
        {"trial_id": ["a"] * 1001 + ["b"] * 7, "step": [*range(1, 1002), *range(7)]}
    )
    kept = curves.thin(frame, 200).partition_by("trial_id", as_dict=True)
    steps = kept[("a",)]["step"].to_list()
    assert len(steps) <= 201 and steps[0] == 1 and steps[-1] == 1001
    assert {b - a for a, b in itertools.pairwise(steps[:-1])} == {6}
    assert kept[("b",)]["step"].to_list() == list(range(7))
    assert [curves.point_limit(n) for n in (1, 100, 1000, 5000)] == [200, 200, 20, 20]


def test_packed_curves_hold_what_is_drawn() -> None:
    lines = (
        curves.Curve("λ = 1, seed 0", "aa", "λ = 1", "healthy", (1, 2, 3), (0.5, 0.25, 0.125)),
        curves.Curve("λ = 1, seed 1", "bb", "λ = 1", "diverged", (1, 2), (0.5, 9.0)),
    )
    packed = json.loads(json.dumps(curves.Curves(lines).packed()))
    unpacked = [
        {"step": step, "value": value, "id": run, "trial": trial, "name": name, "state": fate}
        for run, trial, name, fate, series, values in packed["lines"]
        for step, value in zip(packed["steps"][series], values, strict=True)
    ]
    assert unpacked == curves.Curves(lines).values() and len(unpacked) == 5


COMMAND = "python -m pipeline.sweep lambda"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (COMMAND, f"{COMMAND} --grid loss.lam=0.1 --seeds 0-11"),
        (
            f"{COMMAND} --profile small --storage '/my data' --set optim.lr=1e-3 --seeds 0-4 "
            "--grid loss.lam=0,0.1 --only planning --retry=failed --dry-run --env two_room",
            f"{COMMAND} --profile small --storage '/my data' --set optim.lr=1e-3 --env two_room "
            "--grid loss.lam=0.1 --seeds 0-11",
        ),
        (
            f"{COMMAND} --grid=loss.lam=0,1 --seeds=0,1",
            f"{COMMAND} --grid loss.lam=0.1 --seeds 0-11",
        ),
        ("", ""),
        ("python 'unclosed", ""),
    ],
)
def test_next_command_asks_for_one_point_and_keeps_the_rest(command: str, expected: str) -> None:
    more = [*next_run.point_options("loss.lam=0.1"), "--seeds", "0-11"]
    assert next_run.sweep_command(command, more) == expected


def test_next_run_is_the_table_s_number_of_seeds(page: str, tables: Frames) -> None:
    needed = tables["summary"].filter(
        pl.col("quantity") == "seeds_to_halve", pl.col("protocol") == "strict"
    )["value"][0]
    command = f"{COMMAND} --grid loss.lam=0.1 --seeds 0-{needed - 1:.0f}"
    assert command in visible(page)
    assert f"{COMMAND} --retry failed" in visible(page)


def test_methods_and_citation_tell_the_facts(page: str) -> None:
    words = visible(page)
    text_ = words[words.index("We trained lewm in Two-Room") : words.index("Provenance sweep")]
    for fact in ("λ = 0, λ = 0.03", "3 training seeds each", "812,354 parameters", "30 start/goal"):
        assert fact in text_
    for fact in ("95 % over seeds and pairs", "Holm", "strict protocol", "1 diverged and 1 failed"):
        assert fact in text_
    cff = (ROOT / "CITATION.cff").read_text()
    for fact in (*prose.SOFTWARE.values(), prose.PAPER):
        assert fact in cff
    families = re.findall(r"family-names: \"?([^\n\"]+)", cff)
    assert families == [name.partition(",")[0] for name in prose.PAPER_AUTHORS]
    assert prose.PAPER.rsplit("/", 1)[-1] in prose.citation({})


def test_published_values_are_lines(tables: Frames) -> None:
    row = {"method": "lewm", "env": "two_room", "profile": "quick", "point": "loss.lam=0.1"}
    row |= {"lam": 0.1, "metric": "success", "protocol": "strict", "planner": "cem"}
    row |= {"eval_point": "", "other": "Maes 2026", "other_kind": "published", "margin": 0.1}
    mean = tables["stability"].filter(
        pl.col("runs") == "all", **{k: row[k] for k in ("metric", "protocol", "point", "planner")}
    )["mean"][0]
    row |= {"diff": mean - 0.87, "p_equivalence": 0.2, "paired": False}
    told = pl.concat([tables["comparison"], make_frame([row], SCHEMAS["comparison"])])
    page = render({**tables, "comparison": told}, META)
    assert "Maes 2026 87 %" in json.dumps(charts(page)["success-strict-cem"], ensure_ascii=False)
    assert "Dotted: Maes 2026 87 %" in visible(page)


def picture(pair: int, success: bool, seed: int = 0, kind: str = "start") -> dict[str, Any]:
    trial = {"method": "lewm", "env": "two_room", "profile": "quick", "point": "loss.lam=0.1"}
    place = {"lam": 0.1, "seed": seed, "planner": "cem", "protocol": "strict", "eval_seed": 42}
    own = {"trial_id": f"{seed}", "pair_id": pair, "episode_id": pair, "frame": 0, "kind": kind}
    return {**trial, **place, **own, "success": success, "png": b"picture"}


@pytest.mark.parametrize("elsewhere", [True, False])
def test_examples_show_a_failure_where_one_is_stored(tables: Frames, elsewhere: bool) -> None:
    rows = [picture(pair, True, 0, kind) for pair in (0, 1) for kind in ("start", "goal")] + [
        picture(0, not elsewhere, 1, kind) for kind in ("start", "goal")
    ]
    stored = make_frame(rows, SCHEMAS["examples"])
    words = visible(render({**tables, "examples": stored}, META))
    assert "λ = 0.1, seed 0, strict protocol" in words and "✓ pair 1: goal reached" in words
    if elsewhere:
        assert "✕ λ = 0.1, seed 1, strict protocol, pair 0: goal not reached" in words
    else:
        assert "No stored episode failed." in words


def test_page_and_charts_have_the_same_colours() -> None:
    css = (ROOT / "reports" / "templates" / "report.css").read_text()
    for dark in (False, True):
        named = theme.colours([], dark)
        for name in ("paper", "ink", "muted", "rule", "accent", "warn"):
            assert f"--{name}: {named[name]};" in css, name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": (0,)}, "One training seed at the best point"),
        ({"lams": (0.1,)}, "One point was tried"),
        ({"lams": (0.0,), "seeds": (0,)}, "One point was tried"),
        ({"failed": EVERY}, "Every trial failed"),
        ({"failed": (), "diverged": EVERY}, "Every trial diverged"),
        ({"failed": (), "diverged": (), "pending": EVERY}, "No trial has planning results"),
    ],
)
def test_little_data_is_said_and_gets_no_interval(given: dict[str, Any], said: str) -> None:
    lost = {"failed": (), "diverged": ()} | given
    page = render(judged(make_tables(**lost)), META)
    words = visible(page)
    assert "What this cannot tell:" in words and said in words
    assert not re.search(r"\b(nan|None|inf)\b", words)
    if len(given.get("seeds", (0, 1, 2))) == 1 or said.startswith("Every"):
        spans = sum(
            len(layer["data"]["values"])
            for figure in charts(page).values()
            for layer in figure["spec"]["layer"]
            if layer["mark"].get("style") == "interval"
        )
        assert spans == 0


def test_missing_stages_are_limits_not_blanks() -> None:
    given = make_tables()
    for name in ("latents", "probing"):
        given[name] = given[name].clear()
    words = visible(render(judged(given), META))
    assert "whether a latent space has collapsed cannot be told" in words
    assert "what the latent space holds cannot be told" in words


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


@pytest.mark.ci
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
    assert done.stdout.splitlines()[0] == f"report: {page}"
    assert page.read_text() == render(tables, META)
    names = {path.stem for path in (folder / "report" / "figures").glob("*.svg")}
    assert {"success-strict-cem", "success-paper-cem", "latents-mean_std"} <= names
    before = {path: path.stat().st_mtime_ns for path in (folder / "report").rglob("*.*")}
    (folder / "report" / "figures" / "stale.svg").write_text("")
    assert report.main(["lambda-two_room-quick", "--storage", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "report").rglob("*.*")} == before


def test_report_judges_where_the_sweep_has_not(tmp_path: Path, tables: Frames) -> None:
    raw = {name: frame for name, frame in tables.items() if name not in stability.OUTPUTS}
    page = reporting.make_report(write_sweep(tmp_path / "sweeps" / "lambda-two_room-quick", raw))
    assert Path(page).read_text() == render(raw | stability.run(raw, load_published()), META)


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


def test_further_loss_terms_are_drawn_run_by_run(tables: Frames) -> None:
    keys = [name for name in SCHEMAS["loss_terms"] if name not in ("term", "value")]
    shared = tables["curves"].select(keys)
    terms = [
        shared.with_columns(term=pl.lit(term), value=pl.col("step").cast(pl.Float64) + offset)
        for offset, term in ((1.0, "variance"), (2.0, "time_similarity"))
    ]
    frame = pl.concat(terms).select(list(SCHEMAS["loss_terms"]))
    figures = charts(render(tables | {"loss_terms": frame}, META))
    assert {"train-term-variance", "train-term-time_similarity"} <= set(figures)
    assert len(figures["train-term-variance"]["rows"]) == frame["trial_id"].n_unique()
    assert not any("-term-" in name for name in charts(render(tables, META)))
