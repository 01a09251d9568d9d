"""One trial in this process: marker last, failures recorded, lost ownership commits nothing."""

import json

import pytest
import torch

import lewm.training
from lewm.config import DataConfig
from lewm.data.collect import collect_episode
from lewm.data.write import write_episodes
from lewm.identity import trial_id
from lewm.overrides import make_config
from pipeline.storage import Storage, parse_rows, read_marker
from pipeline.trial import OwnershipLost, TrialTask, run_trial

TINY = {
    "model.image_size": 28,
    "model.patch_size": 14,
    "model.width": 8,
    "model.depth": 1,
    "model.heads": 2,
    "model.mlp": 8,
    "model.latent_dim": 8,
    "model.projector_hidden": 8,
    "model.predictor_depth": 1,
    "model.predictor_heads": 2,
    "model.predictor_head_dim": 4,
    "model.predictor_mlp": 8,
    "loss.num_directions": 8,
    "optim.num_steps": 4,
    "optim.batch_size": 4,
    "optim.precision": "fp32",
    "optim.num_threads": 1,
    "optim.eval_every": 2,
    "optim.num_val_clips": 4,
    "run.checkpoint_every": 2,
    "run.device": "cpu",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.h5"
    write_episodes(path, [collect_episode(DataConfig(), 28, i) for i in range(6)])
    return path


@pytest.fixture
def task(tmp_path, dataset):
    config = make_config(TINY)
    return TrialTask(
        trial_id=trial_id(config),
        config_json=config.model_dump_json(),
        point="loss.lam=0.09",
        storage=str(tmp_path),
        dataset=str(dataset),
        dataset_hash="abc",
        profile="quick",
        git_commit=None,
        tracker=None,
    )


def test_a_trial_ends_in_a_marker_and_is_not_done_twice(task, tmp_path):
    reports = []
    marker = run_trial(task, reports.append)
    assert marker["status"] == "done" and marker["num_steps"] == 4 and marker["attempts"] == 1
    assert [r["step"] for r in reports] == [0, 2, 4]
    rows = parse_rows((tmp_path / task.key / "curve.jsonl").read_bytes())
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / task.key / "config.json").read_text())["seed"] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / task.key).iterdir()}
    assert run_trial(task, reports.append) == marker
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / task.key).iterdir()} == before


def test_an_exception_is_recorded_as_failed_at_once(task, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the weights caught fire\nsecond line")

    monkeypatch.setattr(lewm.training, "train", broken)
    marker = run_trial(task, lambda _: None)
    assert marker["status"] == "failed"
    assert marker["error"] == "RuntimeError: the weights caught fire"
    assert "Traceback" in (tmp_path / task.key / "train.log").read_text()
    monkeypatch.undo()
    again = run_trial(task, lambda _: None)
    assert again["status"] == "done" and again["attempts"] == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError("No space left on device"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_what_another_process_may_do_better_propagates_and_leaves_no_marker(
    task, monkeypatch, error
):
    def broken(*_):
        raise error

    monkeypatch.setattr(lewm.training, "train", broken)
    with pytest.raises(OSError, match=str(error)):
        run_trial(task, lambda _: None)
    storage = Storage(task.storage)
    assert read_marker(storage, task.trial_id) is None
    assert storage.read_json(f"{task.key}/owner.json") is None


def test_who_lost_the_trial_commits_nothing_more(task):
    storage = Storage(task.storage)

    def taken_over(metrics):
        owner = storage.read_json(f"{task.key}/owner.json")
        storage.write_json(f"{task.key}/owner.json", owner | {"token": "another"})

    with pytest.raises(OwnershipLost):
        run_trial(task, taken_over)
    assert read_marker(storage, task.trial_id) is None
    assert storage.read_json(f"{task.key}/owner.json")["token"] == "another"
