"""A run that is killed and started again ends in the same bits as one left alone."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lewm.checkpoint import load_checkpoint, load_method, read_checkpoint
from lewm.data.write import write_episodes
from lewm.training import train
from tests.lewm.test_train import make_episodes, read_curve, tiny

torch.set_num_threads(1)

SETTINGS = {"model__dropout": 0.1, "run__checkpoint_every": 3, "optim__eval_every": 4}


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Equal to the bit, through nested dicts and lists of tensors and plain data."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and left.shape == right.shape, where
        same = (left == right) | (left.isnan() & right.isnan())
        assert same.all(), where
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(pair[0], pair[1], f"{where}[{index}]")
    else:
        assert left == right, where


def assert_same_end(left: Path, right: Path) -> None:
    """Weights, optimiser, generators and curve."""
    ours, theirs = (read_checkpoint(folder / "checkpoint.pt") for folder in (left, right))
    assert_same(ours, theirs)
    assert read_curve(left) == read_curve(right)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_episodes(path, make_episodes(6, 26))
    return path


class Killed(BaseException):
    pass


def train_and_die(run_dir: Path, dataset: Path, at: int, **changes: object) -> None:
    def report(step: int, _: dict[str, float]) -> None:
        if step >= at:
            raise Killed

    with pytest.raises(Killed):
        train(tiny(**SETTINGS, **changes), run_dir, dataset, report)


RESNET = {"model__encoder": "resnet18", "model__resnet_channels": 4}
"""Its batch norms have buffers that every batch changes and no validation may."""


DECODER = {"loss__reconstruction": 1.0, "decoder__width": 16, "decoder__depth": 1}


@pytest.mark.parametrize("encoder", [{}, RESNET, DECODER])
def test_resuming_in_mid_epoch_is_exact(
    encoder: dict[str, object], dataset: Path, tmp_path: Path
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(tiny(**SETTINGS, **encoder), unbroken, dataset)
    for at in (3, 9):
        train_and_die(broken, dataset, at, **encoder)
        assert read_checkpoint(broken / "checkpoint.pt")["step"] == at
    torch.manual_seed(12345)
    assert train(tiny(**SETTINGS, **encoder), broken, dataset).step == 12
    assert_same_end(unbroken, broken)


def test_another_seed_is_another_run(dataset: Path, tmp_path: Path) -> None:
    curves: list[list[float]] = []
    for seed in (0, 0, 1):
        run_dir = tmp_path / str(len(curves))
        train(tiny(seed=seed, optim__num_steps=4), run_dir, dataset)
        curves.append([row["loss"] for row in read_curve(run_dir)[:-1]])
    assert curves[0] == curves[1] != curves[2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    for at in range(middle, middle + 512):  # a sector; one byte may lie between two tensors
        data[at] ^= 0xFF
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_torn_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], None], dataset: Path, tmp_path: Path
) -> None:
    train_and_die(tmp_path, dataset, 6)
    damage(tmp_path / "checkpoint.pt")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt: broken.*trying an older one"):
        state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 3
    with pytest.raises(ValueError, match=r"checkpoint\.pt: broken or cut off") as caught:
        load_method(tmp_path / "checkpoint.pt")
    assert "\n" not in str(caught.value)


def test_a_kill_between_the_renames_leaves_the_one_before(dataset: Path, tmp_path: Path) -> None:
    train_and_die(tmp_path, dataset, 6)
    (tmp_path / "checkpoint.pt").replace(tmp_path / "checkpoint.prev.pt")
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 6


def test_without_a_whole_checkpoint_training_begins_again(dataset: Path, tmp_path: Path) -> None:
    train_and_die(tmp_path, dataset, 3)
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        empty(tmp_path / name)
    with pytest.warns(UserWarning, match="broken"):
        assert train(tiny(**SETTINGS), tmp_path, dataset).step == 12


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this program"):
        load_method(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no such file"):
        load_method(tmp_path / "none.pt")


@pytest.mark.parametrize("changes", [{}, {"optim__lr": 1e30, "optim__warmup_frac": 0.5}])
def test_reading_what_was_measured_later_changes_no_bit(
    changes: dict[str, float], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the large learning rate the loss is not finite some steps before that is read."""
    settings = {**SETTINGS, **changes, "optim__eval_every": 7, "run__checkpoint_every": 7}
    ends = [train(tiny(**settings), tmp_path / "at_once", dataset)]
    monkeypatch.setattr("lewm.training._reads_every", lambda device: 5)
    ends.append(train(tiny(**settings), tmp_path / "later", dataset))
    assert ends[0] == ends[1] and (ends[0].status == "diverged") == bool(changes)
    states = [read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("at_once", "later")]
    if changes:  # batches seen in vain move a generator and batch norms' statistics, no weight
        assert ends[0].step % 5
        for state in states:
            del state["rng"]
            state["method"] = {k: v for k, v in state["method"].items() if "net.1." not in k}
    assert_same(*states)
    assert read_curve(tmp_path / "at_once") == read_curve(tmp_path / "later")


@pytest.mark.ci
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_loss_trains_as_the_plain_one_and_resumes_exactly(
    dataset: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "model__dropout": 0.0}
    train(tiny(**settings), tmp_path / "plain", dataset)
    train(tiny(**settings, optim__compile="default"), tmp_path / "compiled", dataset)
    curves = [
        np.array([row["loss"] for row in read_curve(tmp_path / name)[:-1]])
        for name in ("plain", "compiled")
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)
    dropout = {"optim__compile": "default"}
    train(tiny(**SETTINGS, **dropout), tmp_path / "whole", dataset)
    train_and_die(tmp_path / "broken", dataset, 6, **dropout)
    train(tiny(**SETTINGS, **dropout), tmp_path / "broken", dataset)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


SIGKILLED = """
import io, os, signal, sys
from pathlib import Path
import torch
import lewm.training
from tests.lewm.test_resume import SETTINGS
from tests.lewm.test_train import tiny

run_dir, dataset, moment, at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
make_update, save, saves = lewm.training._Updates.make, torch.save, []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying_update(updates, step, batch):
    make_update(updates, step, batch)
    if step == at:
        die()

def dying_save(state, file):
    saves.append(state)
    if len(saves) < at:
        return save(state, file)
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()

if moment == "step":
    lewm.training._Updates.make = dying_update
elif moment == "save":
    torch.save = dying_save
lewm.training.train(tiny(**SETTINGS), run_dir, dataset)
"""


def run_process(run_dir: Path, dataset: Path, moment: str = "never", at: int = -1) -> int:
    """Trains in a process of its own that SIGKILLs itself in the middle of a step or of a save."""
    root = Path(__file__).parents[2]
    arguments = [str(run_dir), str(dataset), moment, str(at)]
    return subprocess.run(
        [sys.executable, "-c", SIGKILLED, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ).returncode


@pytest.mark.ci
def test_sigkill_at_drawn_steps_and_during_a_save(dataset: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run_process(unbroken, dataset) == 0
    drawn = sorted(np.random.default_rng().choice(11, size=3, replace=False).tolist())
    for step in drawn:
        assert run_process(broken, dataset, "step", step) == -signal.SIGKILL
    assert run_process(broken, dataset, "save", 1) == -signal.SIGKILL
    assert (broken / "checkpoint.pt.tmp").exists()
    state = load_checkpoint(broken)
    assert state is not None
    assert state["step"] == 3 * (drawn[-1] // 3), drawn
    assert run_process(broken, dataset) == 0
    assert_same_end(unbroken, broken)
