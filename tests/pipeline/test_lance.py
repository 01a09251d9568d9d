"""Lance copies: repacked to HDF5 with the numbers as they are and the JPEG frames decoded."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lewm.data.digest import content_hash
from lewm.data.episodes import EpisodeFile
from pipeline.collect import main
from pipeline.datasets.lance_source import LanceSource
from tests.lewm.test_episodes import PUBLISHED

lance = pytest.importorskip("lance")

ROWS = 105


def jpeg(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def columns():
    """The published Push-T golden as its Lance copy stores it."""
    with EpisodeFile(PUBLISHED / "published_pusht.h5") as file:
        made = {
            name: pa.FixedSizeListArray.from_arrays(
                pa.array(file.read(name).astype(np.float32).reshape(-1)), width
            )
            for name, width in (("action", 2), ("state", 7), ("proprio", 4), ("reward", 1))
        }
        for name in ("episode_idx", "step_idx"):
            made[name] = pa.array(file.read(name).astype(np.int32))
        frames = [jpeg(frame) for frame in file.read("pixels")]
        return made | {
            "pixels": pa.array(frames, pa.binary()),
            "text": pa.array(["push"] * ROWS),
        }


def write(path, columns, order=None):
    table = pa.table(columns)
    lance.write_dataset(table if order is None else table.take(order), str(path))
    return path


@pytest.fixture(scope="module")
def copy(columns, tmp_path_factory):
    return write(tmp_path_factory.mktemp("lance") / "pusht.lance", columns)


def test_repacked(copy, columns, tmp_path, capsys):
    assert main(["--repack", str(copy), "--storage", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "decoded from JPEG" in said and "left out      text" in said
    path = tmp_path / "datasets" / "pusht-repacked.h5"
    sheet = json.loads(path.with_suffix(".json").read_text())
    assert sheet["content_hash"] == content_hash(path) and "JPEG" in sheet["frames"]
    with EpisodeFile(path) as new, EpisodeFile(PUBLISHED / "published_pusht.h5") as old:
        assert new.ep_len.tolist() == old.ep_len.tolist() and new.action_dim == 2
        for name in ("action", "state", "proprio"):
            expected = old.read(name).astype(np.float32)
            np.testing.assert_array_equal(new.read(name), expected)
        stored = columns["pixels"][77].as_py()
        np.testing.assert_array_equal(
            new.read("pixels", [77])[0], np.asarray(Image.open(io.BytesIO(stored)))
        )
        apart = new.read("pixels").astype(int) - old.read("pixels")
        assert 0 < np.abs(apart).mean() < 1.0
    assert main(["--repack", str(copy), "--storage", str(tmp_path)]) == 0
    assert "there already" in capsys.readouterr().out


def test_rows_are_ordered_by_episode_and_step(copy, columns, tmp_path):
    mixed = write(tmp_path / "x.lance", columns, np.random.default_rng(0).permutation(ROWS))
    straight, ordered = LanceSource(copy), LanceSource(mixed)
    assert ordered.ep_len.tolist() == [60, 45] and ordered.ep_offset.tolist() == [0, 60]
    rows = np.array([104, 3, 61])
    for name in straight.columns:
        np.testing.assert_array_equal(ordered.read(name), straight.read(name))
        np.testing.assert_array_equal(ordered.read(name, rows), straight.read(name)[rows])


def nan_inside(columns):
    values = np.array(columns["action"].flatten())
    values[2 * 70] = np.nan
    return {"action": pa.FixedSizeListArray.from_arrays(pa.array(values), 2)}


def another_size(columns):
    frames = columns["pixels"].to_pylist()
    frames[9] = jpeg(np.zeros((64, 64, 3), np.uint8))
    return {"pixels": pa.array(frames, pa.binary())}


def no_image(columns):
    frames = columns["pixels"].to_pylist()
    frames[9] = b"not an image"
    return {"pixels": pa.array(frames, pa.binary())}


def step_missing(columns):
    steps = columns["step_idx"].to_numpy().copy()
    steps[62:] += 1
    return {"step_idx": pa.array(steps)}


BROKEN = {
    "action of episode 1, step 10 is not finite": nan_inside,
    "row 9 has a frame of 64x64 px, the first is 224x224": another_size,
    "row 9: its frame is not an image": no_image,
    "episode 1, step 2 is missing or there twice": step_missing,
    "no column 'pixels' of images": lambda columns: {"pixels": columns["step_idx"]},
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_copies_are_refused_in_one_line(message, columns, tmp_path, capsys):
    path = write(tmp_path / "bad.lance", columns | BROKEN[message](columns))
    assert main(["--repack", str(path), "--storage", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and error.count("error") == 1
    assert message in error and "bad.lance" in error
    assert not list(tmp_path.glob("datasets/*.h5"))


def test_no_such_copy(tmp_path, capsys):
    assert main(["--repack", str(tmp_path / "none.lance"), "--storage", str(tmp_path)]) == 2
    assert "not a Lance dataset" in capsys.readouterr().err


def test_without_the_package_the_extra_is_named(copy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lance", None)
    assert main(["--repack", str(copy), "--storage", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'lewm-sweep[lance]'" in error and error.count("\n") == 1
