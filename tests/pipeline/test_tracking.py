"""MLflow on a real SQLite database: one run per trial, no step twice, whatever was repeated."""

import pytest

from pipeline.tracking import (
    CurveLogger,
    finish_sweep,
    finish_trial,
    last_steps,
    log_curve,
    open_sweep,
    open_trial,
)

ROWS = [{"step": step, "loss": 1.0 / (step + 1), "lr": 0.1} for step in range(1200)]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    root = tmp_path_factory.mktemp("mlflow")
    return open_sweep(
        f"sqlite:///{root / 'mlflow.db'}", (root / "artifacts").as_uri(), "demo", {"a": "b"}
    )


def steps(tracker, run_id):
    return [m.step for m in tracker.client.get_metric_history(run_id, "train/loss")]


def test_a_sweep_is_opened_once(tracker):
    again = open_sweep(tracker.uri, "file:///nowhere", "demo", {})
    assert again == tracker


def test_repeated_delivery_logs_every_step_once(tracker):
    run_id = open_trial(tracker, "t1", "lam=0.1 seed=0", {"lam": 0.1}, {})
    log_curve(tracker, run_id, ROWS[:700], last_steps(tracker, run_id))
    assert open_trial(tracker, "t1", "lam=0.1 seed=0", {"lam": 0.1}, {}) == run_id
    log_curve(tracker, run_id, ROWS, last_steps(tracker, run_id))
    log_curve(tracker, run_id, ROWS, last_steps(tracker, run_id))
    assert steps(tracker, run_id) == list(range(1200))
    run = tracker.client.get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_id
    assert run.data.params == {"lam": "0.1"}


def test_the_thread_delivers_and_a_second_one_continues(tracker):
    for upto in (400, 1200):
        logger = CurveLogger(tracker, "t2", "lam=0 seed=0", {"lam": 0.0}, {"k": "v"})
        logger.add(ROWS[:100])
        logger.add(ROWS[100:upto])
        logger.close()
        assert logger.error is None
    run_id = open_trial(tracker, "t2", "x", {}, {})
    assert steps(tracker, run_id) == list(range(1200))


def test_finishing_twice_changes_nothing(tracker):
    run_id = open_trial(tracker, "t3", "lam=1 seed=0", {}, {})
    for _ in range(2):
        finish_trial(tracker, run_id, "done", {"final/success": 0.5}, {"lewm.status": "done"})
    history = tracker.client.get_metric_history(run_id, "final/success")
    assert [m.value for m in history] == [0.5]
    assert tracker.client.get_run(run_id).info.status == "FINISHED"


def test_a_failed_trial_is_a_failed_run(tracker):
    run_id = open_trial(tracker, "t4", "lam=9 seed=0", {}, {})
    finish_trial(tracker, run_id, "failed", {}, {})
    assert tracker.client.get_run(run_id).info.status == "FAILED"


def test_the_parent_carries_files_and_ends(tracker, tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<p>report</p>")
    finish_sweep(tracker, [page], {"mlflow.note.content": "stable"}, "FINISHED")
    run = tracker.client.get_run(tracker.parent_id)
    assert run.info.status == "FINISHED"
    assert [f.path for f in tracker.client.list_artifacts(tracker.parent_id)] == ["index.html"]


def test_a_dead_server_does_not_stop_training(tmp_path, tracker):
    from dataclasses import replace

    broken = replace(tracker, uri=f"sqlite:///{tmp_path / 'none' / 'missing.db'}")
    logger = CurveLogger(broken, "t5", "lam=0 seed=0", {}, {})
    logger.add(ROWS[:10])
    logger.close(timeout_s=20)
    assert logger.error is not None
