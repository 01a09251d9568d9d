"""MLflow on a real SQLite database: one run per trial, no step twice, whatever was repeated."""

import base64
import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

sys.path.append(str(Path(__file__).parents[1]))

from delivered_sweep import COMMIT, deliver, invent, tasks

from pipeline import overview
from pipeline.delivery import Delivery
from pipeline.results import final_metrics
from pipeline.storage import Storage
from pipeline.tracking import (
    LONGEST_TAG,
    CurveLogger,
    Tracker,
    finish_sweep,
    finish_trial,
    is_charted,
    last_steps,
    log_curve,
    open_sweep,
    open_trial,
    trial_runs,
)
from pipeline.trial import mlflow_params, run_name

ROWS = [{"step": step, "loss": 1.0 / (step + 1), "lr": 0.1} for step in range(1200)]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def tracker(database, tmp_path_factory):
    return open_sweep(database, tmp_path_factory.mktemp("artifacts").as_uri(), "demo", {"a": "b"})


def steps(tracker, run_id):
    return [m.step for m in tracker.client.get_metric_history(run_id, "train/loss")]


def run_of(tracker, run_id):
    return tracker.client.get_run(run_id)


def test_a_sweep_is_opened_once(tracker):
    again = open_sweep(tracker.uri, "file:///nowhere", "demo", {})
    assert again == tracker


CHARTED = [*range(500), *range(500, 1200, 10)]


def test_repeated_delivery_logs_every_charted_step_once_and_the_last_of_one_that_ended(tracker):
    run_id = open_trial(tracker, "t1", "lam=0.1 seed=0", {"lam": 0.1}, {})
    log_curve(tracker, run_id, ROWS[:700], last_steps(run_of(tracker, run_id)))
    assert open_trial(tracker, "t1", "lam=0.1 seed=0", {"lam": 0.1}, {}) == run_id
    for _ in range(2):
        log_curve(tracker, run_id, ROWS, last_steps(run_of(tracker, run_id)))
    assert steps(tracker, run_id) == CHARTED
    for _ in range(2):
        log_curve(tracker, run_id, ROWS, last_steps(run_of(tracker, run_id)), ended=True)
    assert steps(tracker, run_id) == [*CHARTED, 1198, 1199]
    run = run_of(tracker, run_id)
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_id
    assert run.data.params == {"lam": "0.1"}


def test_the_thread_delivers_and_a_second_one_continues(tracker):
    for upto, status in ((400, None), (1200, "done")):
        logger = CurveLogger(tracker, "t2", "lam=0 seed=0", {"lam": 0.0}, {"k": "v"})
        logger.add(ROWS[:100])
        logger.add(ROWS[100:upto])
        logger.close(status)
        assert logger.error is None
        run = trial_runs(tracker)["t2"]
        assert run.info.status == ("RUNNING" if status is None else "FINISHED")
    assert run.data.tags["lewm.status"] == "done"
    assert steps(tracker, run.info.run_id) == CHARTED


def test_a_long_curve_is_thinned_ever_more():
    assert [sum(map(is_charted, range(n))) for n in (500, 5000, 50_000)] == [500, 950, 1400]
    assert all(is_charted(step) for step in (0, 499, 500, 510, 4990, 5000, 5100, 50_000))
    assert not any(is_charted(step) for step in (501, 5010, 50_100))


def test_finishing_twice_changes_nothing(tracker):
    run_id = open_trial(tracker, "t3", "lam=1 seed=0", {}, {})
    for _ in range(2):
        finish_trial(tracker, run_of(tracker, run_id), "done", {"final/success": 0.5}, {})
    history = tracker.client.get_metric_history(run_id, "final/success")
    assert [m.value for m in history] == [0.5]
    assert run_of(tracker, run_id).info.status == "FINISHED"


def test_a_failed_trial_is_a_failed_run_until_it_is_tried_again(tracker):
    run_id = open_trial(tracker, "t4", "lam=9 seed=0", {}, {})
    error = {"lewm.error": "ValueError: no", "mlflow.note.content": "failed: ValueError: no"}
    finish_trial(tracker, run_of(tracker, run_id), "failed", {}, error)
    assert run_of(tracker, run_id).info.status == "FAILED"
    assert open_trial(tracker, "t4", "lam=9 seed=0", {}, {"lewm.status": "running"}) == run_id
    assert run_of(tracker, run_id).info.status == "RUNNING"
    finish_trial(tracker, run_of(tracker, run_id), "done", {}, dict.fromkeys(error))
    run = run_of(tracker, run_id)
    assert run.info.status == "FINISHED" and run.data.tags["lewm.status"] == "done"
    assert not error.keys() & run.data.tags.keys()


@pytest.mark.parametrize(
    ("status", "word"), [("stopped", "KILLED"), ("diverged", "FAILED"), ("failed", "FAILED")]
)
def test_ends_are_told_in_words_of_mlflow(tracker, status, word):
    run_id = open_trial(tracker, status, "lam=1 seed=1", {}, {})
    finish_trial(tracker, run_of(tracker, run_id), status, {}, {}, ended_ms=1_900_000_000_000)
    info = run_of(tracker, run_id).info
    assert (info.status, info.end_time) == (word, 1_900_000_000_000)


def test_the_parent_carries_files_and_ends(tracker, tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<p>report</p>")
    tags = {"mlflow.note.content": "stable"}
    finish_sweep(tracker, {None: [page], "tables": [page]}, {"sweep/best_lam": 0.1}, tags)
    run = run_of(tracker, tracker.parent_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"sweep/best_lam": 0.1}
    files = {f.path for f in tracker.client.list_artifacts(tracker.parent_id)}
    assert files == {"index.html", "tables"}


def test_a_dead_server_does_not_stop_training(tmp_path, tracker):
    broken = replace(tracker, uri=f"sqlite:///{tmp_path / 'none' / 'missing.db'}")
    logger = CurveLogger(broken, "t5", "lam=0 seed=0", {}, {})
    logger.add(ROWS[:10])
    logger.close("done", timeout_s=20)
    assert logger.error is not None


@pytest.fixture(scope="module")
def delivered(database, tracker, tmp_path_factory):
    """The parent run after a first invocation that left trials out, and the sweep made whole since."""
    root = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database)
        own = deliver(*invent(root, pending=((0.3, 0), (0.3, 1))))
        unfinished = own.client.get_run(own.parent_id)
        spec, storage, tables = invent(root)
        assert deliver(spec, storage, tables) == own
    return own, unfinished, tables, spec


def test_the_parent_says_what_is_missing(delivered):
    _, unfinished, _, _ = delivered
    tags = unfinished.data.tags
    assert tags["lewm.status"] == "incomplete"
    assert tags["lewm.missing"] == "no result from 3 of 15 trials (1 failed, 2 pending)"
    assert tags["lewm.missing"] in tags["mlflow.note.content"]
    assert unfinished.data.metrics["sweep/trials_missing"] == 3


def test_the_parent_holds_the_findings(delivered):
    own, unfinished, tables, _ = delivered
    run = own.client.get_run(own.parent_id)
    strict = tables["summary"].filter(
        (tables["summary"]["protocol"] == "strict")
        & (tables["summary"]["quantity"] != "p_best_other")
    )
    rows = {row["quantity"]: row for row in strict.to_dicts() if row["quantity"] != "p_near_best"}
    metrics = run.data.metrics
    assert metrics["sweep/best_lam"] == rows["best_point"]["lam"]
    assert metrics["sweep/best_success_low"] == rows["best_success"]["ci_low"]
    for name in ("best_success", "worst_seed", "p_best", "plateau_low", "plateau_high"):
        assert metrics[f"sweep/{name}"] == rows[name]["value"]
    note = run.data.tags["mlflow.note.content"]
    assert rows["verdict"]["text"] in note and "| λ = 0.03 |" in note
    assert f"runs/{own.parent_id}/artifacts/index.html" in note.splitlines()[0]
    assert run.data.params["optim.lr"] == "0.001" and "seed" not in run.data.params
    assert unfinished.info.run_id == run.info.run_id
    files = {f.path for f in own.client.list_artifacts(own.parent_id, "tables")}
    assert {"tables/summary.parquet", "tables/planning.parquet"} <= files


def test_children_have_what_tells_them_apart_and_no_more(delivered):
    own, _, tables, _ = delivered
    runs = trial_runs(own)
    assert len(runs) == tables["trials"].height
    for row in tables["trials"].iter_rows(named=True):
        run = runs[row["trial_id"]]
        assert run.info.run_name == f"lam={row['lam']} seed={row['seed']}"
        assert run.data.params.keys() == {"method", "env", "profile", "lam", "seed"}
        assert run.data.metrics["lam"] == row["lam"]
        assert run.data.tags["lewm.status"] == row["status"]
        assert run.info.end_time - run.info.start_time == 300_000
        finals = final_metrics(tables, row["trial_id"])
        told = {k: v for k, v in run.data.metrics.items() if k.startswith("final/")}
        assert told.items() <= finals.items()
        repeated = {f"final/{name}" for name in ("loss", "pred_loss", "sigreg_loss", "mean_std")}
        assert finals.keys() - told.keys() == repeated & finals.keys()
    ends = {run.data.tags["lewm.status"]: run for run in runs.values()}
    assert ends["failed"].data.tags["lewm.error"] in ends["failed"].data.tags["mlflow.note.content"]
    assert "step 133" in ends["diverged"].data.tags["mlflow.note.content"]


def test_nothing_is_told_twice(delivered):
    own, _, tables, _ = delivered
    run_id = trial_runs(own)[tables["trials"]["trial_id"][0]].info.run_id
    for name in ("final/success_strict", "lam"):
        assert len(own.client.get_metric_history(run_id, name)) == 1
    told = [m.step for m in own.client.get_metric_history(run_id, "train/pred_loss")]
    assert told == list(range(1, 41))


def test_the_saved_views_hold_columns_and_charts(delivered):
    own, _, _, spec = delivered
    tags = own.client.get_experiment(own.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    for name in ("trials", "points"):
        view = json.loads(tags[f"mlflow.sharedViewState.{spec.folder}.{name}"])
        packed = base64.b64decode(view["state"].removeprefix("deflate;"))
        state = json.loads(zlib.decompress(packed))
        assert {"params.`lam`", "metrics.`final/success_strict`"} <= set(state["selectedColumns"])
        assert spec.folder in state["searchFilter"]
        assert ("groupBy" in state) == (name == "points")
        assert state["compareRunCharts"][0]["selectedParams"] == ["lam"]


def test_an_interrupted_sweep_leaves_no_run_open(delivered, database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    spec = replace(delivered[-1], folder="broken-off")
    delivery = Delivery(spec, Storage(str(tmp_path)), COMMIT)
    own = delivery.tracker
    open_trial(own, "under way", "lam=1 seed=0", {}, {})
    delivery.interrupt()
    parent, child = own.client.get_run(own.parent_id), trial_runs(own)["under way"]
    assert {parent.info.status, child.info.status} == {"KILLED"}
    assert {parent.data.tags["lewm.status"], child.data.tags["lewm.status"]} == {"interrupted"}
    assert Delivery(spec, Storage(str(tmp_path)), COMMIT).tracker == own
    assert own.client.get_run(own.parent_id).info.status == "RUNNING"


def test_passwords_stay_out_and_a_dead_server_is_one_warning(
    delivered, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@127.0.0.1:9")
    _, _, tables, spec = delivered
    storage = Storage(str(tmp_path))
    command = {"command": "python -m pipeline.sweep lambda --dataset s3://me:hunter22@there/x"}
    storage.write_json(f"sweeps/{spec.folder}/sweep.json", command)
    delivery = Delivery(spec, storage, COMMIT)
    assert delivery.deliver_curves([]) == {}
    delivery.finish(tables, [])
    delivery.interrupt()
    assert delivery.failed
    told = capsys.readouterr().err
    assert told.count("warning: MLflow cannot be reached") == 1 and "hunter22" not in told
    assert "hunter22" not in delivery.command and "s3://me:***@there" in delivery.command


def test_a_note_of_many_points_keeps_the_best(delivered):
    tables = delivered[2]
    one = tables["stability"].filter(tables["stability"]["metric"] == "success")
    many = pl.concat(one.with_columns(point=pl.lit(f"loss.lam={k}")) for k in range(99))
    note = overview.note({**tables, "stability": many}, "?", {}, "")
    assert len(note) < LONGEST_TAG
    assert note.count("\n| ") == 1 + overview.MOST_ROWS
    assert f"the best {overview.MOST_ROWS} of" in note


def test_names_and_params_tell_what_varies(delivered, tmp_path):
    tracker = Tracker("sqlite://", "1", "p", "lambda-two_room-quick")
    task = tasks(Storage(str(tmp_path)), delivered[2], tracker)[0]
    assert run_name(task) == "lam=0.0 seed=0"
    several = replace(task, tracker=replace(tracker, sweep="lambda-multi-quick"))
    assert run_name(several) == "two_room lam=0.0 seed=0"
    swept = replace(task, point="loss.lam=0.0 optim.lr=0.001")
    assert mlflow_params(swept)["optim.lr"] == "0.001"
    assert run_name(replace(task, point="")) == "seed=0"
