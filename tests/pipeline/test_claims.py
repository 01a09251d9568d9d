"""Published claims: read with their sources, judged by stated rules, never beyond what a profile allows."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline import report, tables
from pipeline.claims import VERDICTS, Evidence, Question, judge_all, load_claims, summarise
from pipeline.claims.read import Side
from pipeline.claims.rules import above, flat, near, permitted, within
from pipeline.shipped import load_programme, load_published, package_folder
from pipeline.stages import stability
from pipeline.stages.stability.ratios import time_ratios
from pipeline.stats.intervals import Interval
from pipeline.tables import SCHEMAS, make_frame
from reports import reproduction

PROGRAMME = {
    *("lambda", "seeds", "predictor_size", "reconstruction", "encoder", "dropout", "planners"),
    *("embedding_dim", "projections", "knots", "probing", "surprise", "straightening"),
    *("planning_time", "environments", "pldm"),
}
Frames = dict[str, pl.DataFrame]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_claims()


@pytest.fixture(scope="module")
def frames() -> Frames:
    """LeWM over three λ; PLDM a method that never arrives; at profile quick, in Two-Room."""
    made = make_tables(lams=(0.0, 0.1, 0.3), failed=(), diverged=(), num_steps=8)
    for name in ("trials", "planning", "latents"):
        own = made[name].filter(pl.col("lam") == 0.1)
        other = own.with_columns(
            method=pl.lit("pldm"),
            lam=pl.lit(None, pl.Float64),
            point=pl.lit(""),
            trial_id="pldm" + pl.col("trial_id"),
        )
        if name == "planning":
            other = other.with_columns(success=pl.col("pair_id") % 15 == pl.col("seed") % 3)
        made[name] = pl.concat([made[name], other])
    return made | stability.run(made)


def of(frames: Frames, name: str = "lambda", profile: str = "quick") -> Evidence:
    """The frames as a sweep of some name and profile."""
    moved = {
        table: frame.with_columns(profile=pl.lit(profile))
        for table, frame in frames.items()
        if "profile" in frame.columns
    }
    return Evidence(name, f"{name}-two_room-{profile}", profile, f"pipeline.sweep {name}", moved)


def ask(**fields: Any) -> Question:
    blank = {"id": "x", "statement": "S.", "source": "T", "version": "v3", "kind": "order"}
    own = {"sweeps": ("lambda",), "env": None, "protocol": "paper", "metric": "success"}
    return Question(**{**blank, **own, "margin": 0.1, **fields})


def verdict(question: Question, *evidence: Evidence) -> dict[str, Any]:
    return judge_all([question], evidence).row(0, named=True)


def test_every_published_number_has_a_source_and_a_sweep_of_the_programme(
    questions: list[Question],
) -> None:
    assert set(load_programme()) == PROGRAMME
    assert len(questions) > 250
    for question in questions:
        assert question.source.strip() and question.statement[0].isupper()
        assert set(question.sweeps) <= PROGRAMME
        assert question.version or question.reevaluation
        assert question.kind != "absolute" or question.published is not None
    untested = {question.id for question in questions if not question.sweeps}
    assert untested == {"other-baselines", "dino_wm-library"}
    assert {q.sweeps[0] for q in questions if q.sweeps} == PROGRAMME
    assert all(row["source"] and 0 <= row["value"] <= 1 for row in load_published())


def test_published_rates_beside_reports_agree_with_the_claims(questions: list[Question]) -> None:
    claimed = {
        (q.high.method, q.env, q.protocol, q.published)
        for q in questions
        if q.kind == "absolute" and q.metric == "success"
    }
    for row in load_published():
        assert (row["method"], row["env"], row["protocol"], row["value"]) in claimed


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.1, 0.3), "reproduced"), ((-0.3, -0.1), "not reproduced"), ((-0.1, 0.1), "undecided"), (None, "undecided")],
)  # fmt: skip
def test_an_order_is_decided_by_an_interval_on_one_side(ends: Any, expected: str) -> None:
    interval = ends and Interval(*ends)
    assert above(interval) == expected


def test_a_number_is_decided_by_an_interval_inside_or_outside_the_margin() -> None:
    assert within(Interval(-0.05, 0.08), -0.1, 0.1) == "reproduced"
    assert (
        within(Interval(0.02, 0.08), -0.1, 0.1) == "reproduced"
    )  # a difference that does not matter
    assert within(Interval(0.12, 0.3), -0.1, 0.1) == "not reproduced"
    assert within(Interval(-0.05, 0.3), -0.1, 0.1) == "undecided"
    assert flat([Interval(-0.1, 0.0), Interval(-0.09, 0.02)], 0.1) == "reproduced"
    assert flat([Interval(-0.1, 0.0), Interval(-0.4, -0.2)], 0.1) == "not reproduced"
    assert flat([Interval(-0.1, 0.0), Interval(-0.4, 0.2)], 0.1) == "undecided"
    assert flat([], 0.1) == flat([None], 0.1) == "undecided"
    low, high = near(48, 0.25)
    assert within(Interval(40, 55), low, high) == "reproduced"
    assert within(Interval(90, 95), low, high) == "not reproduced"


def test_only_profile_paper_may_decide_numbers() -> None:
    for profile in ("tiny", "short", "quick", "small"):
        assert not permitted("absolute", profile) and not permitted("ratio", profile)
        assert permitted("order", profile) and permitted("plateau", profile)
    assert permitted("absolute", "paper") and not permitted("order", "quick", ("paper",))


def test_an_absolute_number_is_judged_at_paper_and_only_shown_below(frames: Frames) -> None:
    near_ours = ask(kind="absolute", env="two_room", high=Side("lewm", ("0.1",)), published=0.88)
    at_quick = verdict(near_ours, of(frames))
    assert at_quick["verdict"] == "not tested at this scale" and at_quick["ours"] > 0.5
    assert at_quick["same_protocol"] is False and at_quick["ci_low"] is not None
    wide = replace(near_ours, margin=0.4)
    at_paper = verdict(wide, of(frames, profile="paper"))
    assert at_paper["verdict"] == "reproduced" and at_paper["same_protocol"]
    assert at_paper["n"] == 3 and at_paper["num_episodes"] == 90
    far = verdict(replace(near_ours, published=0.1), of(frames, profile="paper"))
    assert far["verdict"] == "not reproduced"
    assert verdict(replace(near_ours, margin=0.01), of(frames, profile="paper"))["verdict"] in (
        "undecided",
        "not reproduced",
    )


def test_quick_tiny_and_small_never_decide_a_published_number(
    questions: list[Question], frames: Frames
) -> None:
    for profile in ("tiny", "quick", "small"):
        evidence = [of(frames, name, profile) for name in PROGRAMME]
        found = judge_all(questions, evidence)
        numbers = found.filter(pl.col("kind").is_in(["absolute", "ratio"]))
        assert set(numbers["verdict"]) <= {"not tested at this scale", "not run"}
        assert "reproduced" in set(found["verdict"])  # of directions it says so
        assert set(found["verdict"]) <= set(VERDICTS)


def test_orders_of_points_methods_and_floors(frames: Frames) -> None:
    collapse = ask(high=Side(None, ("best",)), low=Side(None, ("0.0",)))
    found = verdict(collapse, of(frames))
    assert found["verdict"] == "reproduced" and found["point"] == "loss.lam=0.1"
    assert found["ci_low"] > 0 and found["n"] == 3 and "published on push_t" in found["text"]
    turned = ask(high=Side(None, ("0.0",)), low=Side(None, ("largest",)))
    assert verdict(turned, of(frames))["verdict"] == "not reproduced"
    rivals = ask(env="two_room", high=Side("lewm"), low=Side("pldm"))
    assert verdict(rivals, of(frames))["verdict"] == "reproduced"
    floor = ask(high=Side("lewm"), low=Side("random"))
    assert verdict(floor, of(frames))["verdict"] == "reproduced"
    same = ask(high=Side(None, ("0.1",)), low=Side(None, ("0.1",)))
    assert verdict(same, of(frames))["verdict"] == "undecided"
    assert "the same point" in verdict(same, of(frames))["text"]


def test_a_difference_is_the_paired_difference_of_the_episodes(frames: Frames) -> None:
    found = verdict(ask(high=Side("lewm", ("0.1",)), low=Side("lewm", ("0.0",))), of(frames))
    rates = (
        frames["planning"]
        .filter(pl.col("method") == "lewm", pl.col("protocol") == "paper")
        .group_by("lam")
        .agg(pl.col("success").mean())
    )
    rate = dict(rates.iter_rows())
    assert found["ours"] == pytest.approx(rate[0.1] - rate[0.0])
    level = ask(kind="direction", high=Side("lewm", ("0.1",)), level=0.2)
    assert verdict(level, of(frames))["ours"] == pytest.approx(rate[0.1])


def test_other_metrics_are_compared_seed_by_seed(frames: Frames) -> None:
    wide = ask(metric="mean_std", high=Side(None, ("best",)), low=Side(None, ("0.0",)))
    found = verdict(wide, of(frames))
    seeds = frames["latents"].filter(pl.col("layer") == "projected", pl.col("method") == "lewm")
    means = dict(seeds.group_by("lam").agg(pl.col("mean_std").mean()).iter_rows())
    assert found["ours"] == pytest.approx(means[0.1] - means[0.0]) and found["n"] == 3
    assert found["unit"] is None and found["num_episodes"] is None


def test_the_best_point_against_a_control_is_the_best_of_the_others(frames: Frames) -> None:
    won = pl.when(pl.col("lam") == 0.0).then(True).otherwise(pl.col("success"))
    planning = frames["planning"].with_columns(success=won)
    changed = frames | {"planning": planning}
    for metric in ("success", "mean_std"):
        question = ask(metric=metric, high=Side(None, ("best",)), low=Side(None, ("0.0",)))
        found = verdict(question, of(changed | stability.run(changed)))
        assert found["point"] == "loss.lam=0.1"
        if metric == "success":  # λ = 0 wins here
            assert found["ours"] < 0 and found["verdict"] != "reproduced"
        else:
            assert found["verdict"] == "reproduced"


def test_one_seed_decides_nothing_and_says_so(frames: Frames) -> None:
    alone = {
        k: v.filter(pl.col("seed").fill_null(0) == 0)
        for k, v in frames.items()
        if "seed" in v.columns
    }
    found = verdict(ask(high=Side(None, ("0.1",)), low=Side(None, ("0.0",))), of(alone | stability.run(alone)))  # fmt: skip
    assert found["verdict"] == "undecided" and "no interval" in found["text"]


def test_what_is_missing_is_not_run_and_says_what(frames: Frames) -> None:
    question = ask(high=Side("lewm"), low=Side("dino_wm"))
    assert "no trials of dino_wm" in verdict(question, of(frames))["text"]
    lost = frames["trials"].filter(method="pldm")
    lost = lost.with_columns(
        method=pl.lit("dino_wm"), status=pl.lit("unavailable"), error=pl.lit("no weights")
    )
    with_lost = frames | {"trials": pl.concat([frames["trials"], lost])}
    found = verdict(question, of(with_lost))
    assert found["verdict"] == "not run" and found["text"] == "no weights"
    nobody = verdict(question, of(frames, name="seeds"))
    assert nobody["verdict"] == "not run" and nobody["folder"] is None and nobody["ours"] is None
    elsewhere = verdict(replace(question, env="cube"), of(frames))
    assert elsewhere["verdict"] == "not tested at this scale" and "cube" in elsewhere["text"]
    other = verdict(ask(protocol="moderate", high=Side("lewm"), low=Side("pldm")), of(frames))
    assert other["verdict"] == "not run" and "protocol moderate" in other["text"]


def test_the_largest_profile_with_an_answer_is_taken(frames: Frames) -> None:
    question = ask(high=Side("lewm"), low=Side("pldm"))
    both = [of(frames), of(frames, profile="paper")]
    assert verdict(question, *both)["profile"] == "paper"
    hour = verdict(question, of(frames), of(frames, profile="hour"))
    assert hour["profile"] == "hour" and hour["command"].endswith(" --profile hour")
    assert "--profile" not in verdict(question, of(frames))["command"]
    assert (
        "published ones" in hour["text"]
        and "published ones" not in verdict(question, *both)["text"]
    )
    empty = {k: v.clear() for k, v in frames.items()}
    assert verdict(question, of(empty, profile="paper"), of(frames))["profile"] == "quick"


def timed(frames: Frames, methods: dict[str, tuple[float, ...]]) -> Frames:
    """The frames with planning times, judged as the report judges them."""
    rows = [
        {
            **{"method": method, "env": "push_t", "setting": "samples", "repetition": number},
            **{"num_samples": 300, "num_iterations": 30, "num_samples_run": 16},
            **{"num_iterations_run": 1, "flops": 1.0, "device": "cpu", "plan_s": seconds},
            "random_weights": method == "dino_wm",
        }
        for method, times in methods.items()
        for number, seconds in enumerate(times)
    ]
    timing = make_frame(rows, SCHEMAS["timing"])
    summary = make_frame(time_ratios(timing), SCHEMAS["summary"])
    return frames | {"timing": timing, "summary": pl.concat([frames["summary"], summary])}


def test_ratios_of_planning_time(frames: Frames) -> None:
    ratio = ask(
        kind="ratio", metric="plan_s", high=Side("dino_wm"), low=Side("lewm"), published=48.0, margin=0.25
    )  # fmt: skip
    untimed = frames
    frames = timed(frames, {"lewm": (1.0, 1.02, 0.98), "dino_wm": (47.0, 48.0, 49.0)})
    assert verdict(ratio, of(frames))["verdict"] == "not tested at this scale"
    at_paper = verdict(ratio, of(frames, profile="paper"))
    assert at_paper["verdict"] == "reproduced" and "random weights" in at_paper["text"]
    assert at_paper["ours"] == pytest.approx(48, rel=0.02) and at_paper["unit"] == "factor"
    assert at_paper["ci_low"] < 48 < at_paper["ci_high"]
    far = verdict(replace(ratio, published=4.0), of(frames, profile="paper"))
    assert far["verdict"] == "not reproduced"
    faster = replace(ratio, kind="direction", published=None)
    assert verdict(faster, of(frames))["verdict"] == "reproduced"
    lonely = timed(untimed, {"lewm": (1.0, 1.1)})
    assert verdict(ratio, of(lonely, profile="paper"))["verdict"] == "not run"


def test_a_plateau_is_wide_only_if_its_uncertain_ends_say_so(frames: Frames) -> None:
    question = ask(kind="plateau", factor=10.0)

    def ends(low: tuple[float, float, float], high: tuple[float, float, float]) -> Evidence:
        rows = [
            {"method": "lewm", "env": "two_room", "protocol": "paper", "quantity": f"plateau_{name}",
             "value": v, "ci_low": a, "ci_high": b, "n": 3, "text": "t"}
            for name, (v, a, b) in (("low", low), ("high", high))
        ]  # fmt: skip
        return of(frames | {"summary": make_frame(rows, SCHEMAS["summary"])})

    assert verdict(question, ends((0.01, 0.01, 0.02), (1, 0.5, 2)))["verdict"] == "reproduced"
    assert verdict(question, ends((0.1, 0.1, 0.2), (0.3, 0.2, 0.5)))["verdict"] == "not reproduced"
    found = verdict(question, ends((0.01, 0.01, 0.2), (1, 0.5, 2)))
    assert found["verdict"] == "undecided" and found["ours"] == pytest.approx(100)


def test_a_flat_axis_is_read_off_the_comparisons_with_the_best_point(frames: Frames) -> None:
    flat_axis = ask(kind="plateau", axis="loss.lam", high=Side("lewm"))
    found = verdict(flat_axis, of(frames))
    assert found["verdict"] == "not reproduced" and found["ours"] < -0.5  # λ = 0 is on this axis
    high = replace(flat_axis, least=184.0)
    assert verdict(high, of(frames))["verdict"] == "not tested at this scale"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('kind = "orders"', "unknown 'orders' (did you mean 'order'?)"),
        ('kind = "absolute"', "needs rows of numbers"),
        ('kind = "order"\nmetrik = "success"', "unknown key 'metrik' (did you mean 'metric'?)"),
        ('kind = "absolute"\nrows = [{ method = "lewm", value = "96" }]', "value must be a number"),
        ('kind = "absolute"\nprobes = { lewm = [1, 2] }', "six numbers"),
    ],
)
def test_a_bad_claim_is_one_line_that_names_it(text: str, words: str, tmp_path: Path) -> None:
    head = '[[claim]]\nid = "one"\nstatement = "S"\nsource = "T"\nversion = "v3"\nsweep = "seeds"\n'
    (tmp_path / "p.toml").write_text(head + text)
    with pytest.raises(ValueError) as caught:
        load_claims(tmp_path / "p.toml")
    assert words in str(caught.value) and "'one'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_claim_without_a_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[[claim]]\nid = "one"\nstatement = "S"\nsource = ""\n')
    with pytest.raises(ValueError, match="source must be a text"):
        load_claims(tmp_path / "p.toml")


@pytest.fixture
def storage(frames: Frames, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "sweeps" / "lambda-two_room-quick"
    folder.mkdir(parents=True)
    for name, frame in frames.items():
        tables.write_table(folder, name, frame)
    meta = {**META, "command": "pipeline.sweep <lambda> & more", "folder": folder.name}
    (folder / "sweep.json").write_text(json.dumps(meta))
    return tmp_path / "runs"


def test_the_page_has_every_claim_and_its_numbers_are_cells(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--paper", "--storage", str(storage), "--format", "html,md"]) == 0
    folder = storage / "reproduction"
    claims, summary = (tables.read_table(folder, name) for name in ("claims", "summary"))
    assert claims.height == len(load_claims())
    for path in ("report/index.html", "report/tables.md"):
        page = (folder / path).read_text()
        told = summary.filter(quantity="verdict")["text"][0]
        assert told in page.replace("\\", "")
        for one in claims.unique("sweep").drop_nulls("sweep").iter_rows(named=True):
            assert f"weep {one['sweep']}" in page.replace("\\", "")
    html = (folder / "report/index.html").read_text()
    assert "pipeline.sweep &lt;lambda&gt; &amp; more" in html and "<lambda>" not in html
    assert html.count("<tr>") > claims.height and "://" not in html.replace("http://www.w3.org", "")
    assert "report:" in capsys.readouterr().out
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert report.main(["--paper", "--storage", str(storage), "--format", "html,md"]) == 0
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_counts_add_up(frames: Frames, questions: list[Question]) -> None:
    found = judge_all(questions, [of(frames)])
    told = reproduction.Told(found, summarise(found), {}, [])
    assert sum(count for _, count, _ in told.counts()) == found.height == len(questions)
    assert {kind: n for kind, n, _ in told.counts()} == {
        name: found.filter(verdict=name).height for name in VERDICTS
    }
    assert "only directions are judged" in told.said("certainty")
    nothing = judge_all(questions, [])
    assert set(nothing["verdict"]) == {"not run"}
    assert "No sweep" in summarise(nothing).filter(quantity="certainty")["text"][0]


@pytest.mark.parametrize("words", [["lambda", "--paper"], []])
def test_a_sweep_or_all_claims(words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert report.main([*words, "--storage", str(tmp_path)]) == 2
    assert "--paper" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_published_file_is_package_data() -> None:
    assert (package_folder() / "published.toml").is_file()
