"""Episode files: published ones open, ours round-trip, broken ones are refused in one line."""

import shutil
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from lewm.data.episodes import EpisodeFile, content_hash, fingerprint, write_episodes

PUBLISHED = Path(__file__).parents[1] / "goldens" / "datasets" / "published_tworoom.h5"


def make_episode(length, seed=0, size=16):
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    action[-1] = np.nan
    return {
        "pixels": rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8),
        "action": action,
        "proprio": rng.normal(size=(length, 2)),
    }


@pytest.fixture
def episodes():
    return [make_episode(length, seed) for seed, length in enumerate((7, 3, 12))]


@pytest.fixture
def ours(tmp_path, episodes):
    write_episodes(tmp_path / "ours.h5", episodes)
    return tmp_path / "ours.h5"


def edited(path, change):
    """The file after `change(h5py file)`."""
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(name, values):
    def change(file):
        del file[name]
        if values is not None:
            file.create_dataset(name, data=values)

    return change


def test_published_file_opens():
    with EpisodeFile(PUBLISHED) as file:
        assert (file.num_episodes, file.num_rows, file.image_size, file.action_dim) == (
            2,
            91,
            224,
            2,
        )
        assert file.ep_len.tolist() == [46, 45] and file.ep_offset.tolist() == [0, 46]
        assert {"state", "proprio", "pixels", "action"} <= set(file.columns)
        rows = np.array([[3, 88], [0, 3]])
        frames = file.read("pixels", rows)
        assert frames.shape == (2, 2, 224, 224, 3)
        with h5py.File(PUBLISHED) as raw:
            for place, row in np.ndenumerate(rows):
                np.testing.assert_array_equal(frames[place], raw["pixels"][row])
        assert np.isnan(file.read("action", file.rows(1)[-1:])).all()


def test_round_trip(ours, episodes):
    with EpisodeFile(ours) as file:
        assert file.ep_len.tolist() == [7, 3, 12]
        for number, back in enumerate(file.episodes()):
            for name, values in episodes[number].items():
                np.testing.assert_array_equal(back[name], values)
            assert (back["episode_idx"] == number).all()
            assert back["step_idx"].tolist() == list(range(len(values)))


def test_storage_is_one_frame_per_chunk_with_blosc(ours):
    with h5py.File(ours) as file:
        assert file["pixels"].chunks == (1, 16, 16, 3)
        filters = file["pixels"].id.get_create_plist().get_filter(0)
        assert filters[0] == hdf5plugin.Blosc().filter_id
        assert file["ep_len"].dtype == np.int32 and file["ep_offset"].dtype == np.int64


@pytest.mark.parametrize("rows", [[5, 0, 21, 5], [[0, 1], [20, 2]], [], list(range(22))])
def test_rows_come_in_the_asked_order(ours, episodes, rows):
    whole = np.concatenate([e["pixels"] for e in episodes])
    with EpisodeFile(ours) as file:
        asked = np.array(rows, dtype=np.int64)
        np.testing.assert_array_equal(file.read("pixels", asked), whole[asked])


def test_nested_names_and_index_columns(ours):
    def change(file):
        file.create_dataset("privileged/block_0_pos", data=np.zeros((22, 3)))
        file.move("episode_idx", "ep_idx")

    with EpisodeFile(edited(ours, change)) as file:
        assert "privileged_block_0_pos" in file.columns
        assert file.read("privileged_block_0_pos", [0, 4]).shape == (2, 3)
    edited(ours, lambda file: replace("ep_idx", None)(file))
    assert EpisodeFile(ours).num_episodes == 3


def test_content_hash_ignores_storage_and_sees_content(ours, tmp_path, episodes):
    told = write_episodes(tmp_path / "again.h5", episodes)
    assert told == content_hash(ours) == content_hash(tmp_path / "again.h5")
    pixels = np.concatenate([e["pixels"] for e in episodes])
    assert content_hash(edited(ours, replace("pixels", pixels))) == told
    pixels[17, 3, 3, 0] ^= 1
    assert content_hash(edited(ours, replace("pixels", pixels))) != told


def test_fingerprint_sees_numbers_frames_and_size(ours, tmp_path):
    first = fingerprint(ours)
    copy = tmp_path / "copy.h5"
    shutil.copy(ours, copy)
    assert fingerprint(copy) == first

    def touch(name, value):
        def change(file):
            file[name][4] = value

        return change

    assert fingerprint(edited(copy, touch("proprio", 0.5))) != first
    shutil.copy(ours, copy)
    assert fingerprint(edited(copy, touch("pixels", 7))) != first


def test_writing_is_atomic(tmp_path, episodes):
    def failing():
        yield episodes[0]
        raise RuntimeError("simulator gone")

    target = tmp_path / "x.h5"
    with pytest.raises(RuntimeError, match="simulator gone"):
        write_episodes(target, failing())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no episodes"):
        write_episodes(target, [])
    odd = [episodes[0], {k: v for k, v in episodes[1].items() if k != "proprio"}]
    with pytest.raises(ValueError, match="other columns"):
        write_episodes(target, odd)
    assert not list(tmp_path.iterdir())


def nan_inside(file):
    file["action"][8] = np.nan


def wrong_index(file):
    file["episode_idx"][6] = 1


BROKEN = {
    "no column 'action'": replace("action", None),
    "no column 'ep_len'": replace("ep_len", None),
    r"pixels must be \(rows, size, size, 3\)": replace("pixels", np.zeros((22, 16, 8, 3), "u1")),
    "pixels must be uint8": replace("pixels", np.zeros((22, 16, 16, 3), "f4")),
    r"action must be \(rows, A\)": replace("action", np.zeros(22, "f4")),
    "do not tile the 22 rows": replace("ep_len", np.array([7, 3, 11])),
    "column 'proprio' has shape": replace("proprio", np.zeros((21, 2))),
    "action of episode 1, step 1 is not finite": nan_inside,
    "column 'episode_idx' disagrees": wrong_index,
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files_are_refused_in_one_line(ours, message):
    with pytest.raises(ValueError, match=message) as caught:
        EpisodeFile(edited(ours, BROKEN[message]))
    assert "\n" not in str(caught.value) and "ours.h5" in str(caught.value)


def test_truncated_and_missing_files(ours, tmp_path):
    ours.write_bytes(ours.read_bytes()[: ours.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"ours\.h5: truncated or not HDF5") as caught:
        EpisodeFile(ours)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        EpisodeFile(tmp_path / "none.h5")


def test_bad_requests(ours):
    with EpisodeFile(ours) as file:
        with pytest.raises(ValueError, match="no column 'qpos'; it has action, "):
            file.read("qpos")
        with pytest.raises(ValueError, match=r"within 0\.\.21"):
            file.read("pixels", [22])
