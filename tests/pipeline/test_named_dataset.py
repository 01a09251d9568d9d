"""`--dataset FILE`: what does not fit is refused in one line, before anything is written or started."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from lewm.config import DataConfig
from lewm.data.collect import collect_episode
from lewm.data.digest import fingerprint
from lewm.data.write import write_episodes
from pipeline.resolve import resolve
from pipeline.spec import Request, check_base
from pipeline.sweep import main

PUBLISHED = Path(__file__).parent.parent / "goldens" / "datasets" / "published_tworoom.h5"


def sweep(path, storage, *more):
    return main(["smoke", "--dataset", str(path), "--storage", str(storage), *more])


def check_refused(capsys, expected):
    message = capsys.readouterr().err
    assert expected in message and message.strip().count("\n") == 0, message


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.h5"
    write_episodes(path, [collect_episode(DataConfig(), 64, i) for i in range(2)])
    return path


def test_frames_of_another_size(tmp_path, capsys):
    assert sweep(PUBLISHED, tmp_path / "runs") == 2
    check_refused(
        capsys, "frames of 224 px, 64 are expected: --set data.frame_size=224 has them resized"
    )
    assert not (tmp_path / "runs" / "sweeps").exists()


def test_a_truncated_file(tmp_path, small, capsys):
    cut = tmp_path / "cut.h5"
    cut.write_bytes(small.read_bytes()[: small.stat().st_size // 2])
    assert sweep(cut, tmp_path / "runs") == 2
    check_refused(capsys, "cut.h5")


def test_missing_columns_and_other_action_dimensions(tmp_path, small, capsys):
    lacking, wide = tmp_path / "lacking.h5", tmp_path / "wide.h5"
    for target in (lacking, wide):
        shutil.copy(small, target)
    with h5py.File(lacking, "a") as file:
        del file["action"]
    assert sweep(lacking, tmp_path / "runs") == 2
    check_refused(capsys, "action")
    with h5py.File(wide, "a") as file:
        rows = len(file["action"])
        del file["action"]
        file["action"] = np.zeros((rows, 5), np.float32)
    assert sweep(wide, tmp_path / "runs") == 2
    check_refused(capsys, "5-d actions")


def test_a_changed_file_is_another_base_of_the_same_sweep(tmp_path, small):
    request = Request("smoke", dataset=str(small))
    was = resolve(request, fingerprint(small))
    write_episodes(small, [collect_episode(DataConfig(), 64, i) for i in range(3)])
    now = resolve(request, fingerprint(small))
    assert now.folder == was.folder
    with pytest.raises(ValueError, match=r"data\.dataset"):
        check_base(was.base, now.base, was.folder)


def test_the_path_is_no_identity(tmp_path, small):
    moved = tmp_path / "elsewhere" / "small.h5"
    moved.parent.mkdir()
    shutil.copy(small, moved)
    ids = [
        [t.trial_id for t in resolve(Request("smoke", dataset=str(p)), fingerprint(p)).trials]
        for p in (small, moved)
    ]
    assert ids[0] == ids[1]


def test_an_unknown_policy_names_the_nearest(tmp_path, capsys):
    args = ["smoke", "--set", "data.policy=expret", "--storage", str(tmp_path / "runs")]
    assert main(args) == 2
    check_refused(capsys, "expert")
    assert not (tmp_path / "runs" / "sweeps").exists()
