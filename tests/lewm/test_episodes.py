"""Episode files: published ones open, ours round-trip, broken ones are refused in one line."""

import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from lewm.data.digest import content_hash, fingerprint
from lewm.data.episodes import EpisodeFile
from lewm.data.frames import FrameReader
from lewm.data.write import write_episodes

PUBLISHED = Path(__file__).parents[1] / "goldens" / "datasets"
FILES = {
    "published_tworoom": ([46, 45], 2, {"state", "goal_state", "proprio"}),
    "published_pusht": ([60, 45], 2, {"state", "proprio", "episode_idx"}),
    "published_reacher": ([51, 45], 2, {"qpos", "qvel", "finger_pos", "ep_idx"}),
    "library_cube": ([24], 5, {"qpos", "privileged_block_0_pos", "proprio_joint_pos"}),
}
"""Episode lengths, action width and some columns of the goldens."""


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


@pytest.mark.parametrize("name", FILES)
def test_published_files_open_as_they_are(name):
    lengths, action_dim, columns = FILES[name]
    path = PUBLISHED / f"{name}.h5"
    with EpisodeFile(path) as file, h5py.File(path) as raw:
        assert file.ep_len.tolist() == lengths and file.num_rows == sum(lengths)
        assert (file.image_size, file.action_dim) == (224, action_dim)
        assert columns | {"pixels", "action", "step_idx"} <= set(file.columns)
        whole = raw["pixels"][()]
        last = file.num_rows - 1
        for rows in ([[3, last], [0, 3]], [last, 5, 6, 7, 2, 1], np.arange(last + 1), []):
            rows = np.array(rows, dtype=np.int64)
            np.testing.assert_array_equal(file.read("pixels", rows), whole[rows])
        missing = np.isnan(file.read("action")).any(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(missing), np.cumsum(lengths) - 1)
        np.testing.assert_array_equal(file.read("action"), raw["action"][()])
        nested = name == "library_cube"
        flat, stored = ("proprio_joint_pos", "proprio/joint_pos") if nested else ("reward",) * 2
        np.testing.assert_array_equal(file.read(flat), raw[stored][()])


def test_round_trip(ours, episodes):
    with EpisodeFile(ours) as file:
        assert file.ep_len.tolist() == [7, 3, 12]
        for number, back in enumerate(file.episodes()):
            for name, values in episodes[number].items():
                np.testing.assert_array_equal(back[name], values)
            assert (back["episode_idx"] == number).all()
            assert back["step_idx"].tolist() == list(range(len(values)))


def test_any_reader_of_the_published_layout_reads_ours(ours, episodes):
    with h5py.File(ours) as file:
        assert file["pixels"].chunks == (1, 16, 16, 3)
        np.testing.assert_array_equal(
            file["pixels"][()], np.concatenate([e["pixels"] for e in episodes])
        )
        assert file["ep_len"].dtype == np.int32 and file["ep_offset"].dtype == np.int64


def still_scenes():
    """Episodes in which little moves before a busy background: XOR pays."""
    rng = np.random.default_rng(0)
    for length in (7, 3, 12):
        episode = make_episode(length)
        episode["pixels"] = np.tile(rng.integers(0, 256, (1, 16, 16, 3), "u1"), (length, 1, 1, 1))
        episode["pixels"][:, 4, 4] = np.arange(length)[:, None]
        yield episode


def test_what_stands_still_is_stored_as_a_difference(tmp_path):
    whole = np.concatenate([e["pixels"] for e in still_scenes()])
    packed, published = tmp_path / "packed.h5", tmp_path / "published.h5"
    hashes = {write_episodes(packed, still_scenes())}
    hashes |= {write_episodes(published, still_scenes(), "published")}
    assert hashes == {content_hash(packed)} == {content_hash(published)}
    assert packed.stat().st_size < 0.8 * published.stat().st_size
    with h5py.File(packed) as file, h5py.File(published) as plain:
        assert "pixels" not in file and "pixels_xor" not in plain
        np.testing.assert_array_equal(plain["pixels"][()], whole)
    with EpisodeFile(packed) as file:
        assert file.columns == ("action", "episode_idx", "pixels", "proprio", "step_idx")
        for rows in ([], [21, 0, 7, 7, 8], np.array([[3, 2], [9, 10]]), np.arange(22)):
            rows = np.array(rows, dtype=np.int64)
            np.testing.assert_array_equal(file.read("pixels", rows), whole[rows])


def test_one_reader_serves_many_threads(ours, episodes):
    whole = np.concatenate([e["pixels"] for e in episodes])
    orders = [np.random.default_rng(seed).integers(0, 22, 400) for seed in range(8)]
    with EpisodeFile(ours) as file, ThreadPoolExecutor(8) as pool:
        for rows, frames in zip(
            orders, pool.map(lambda r: file.read("pixels", r), orders), strict=True
        ):
            np.testing.assert_array_equal(frames, whole[rows])


def test_decoding_does_not_hold_the_interpreter_lock(tmp_path, monkeypatch):
    """Threads switch here only where the lock is given up, and reading the bytes does not."""
    frame = np.random.default_rng(0).integers(0, 3, (1, 2048, 2048, 3), "u1")
    write_episodes(tmp_path / "large.h5", [{"pixels": frame, "action": np.zeros((1, 2), "f4")}])
    chunks, ticks, stop = {}, [0], threading.Event()

    def tick():
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0)

    def from_memory(file, size, offset):
        return chunks[offset]

    with h5py.File(tmp_path / "large.h5") as file:
        info = file["pixels"].id.get_chunk_info(0)
        chunks[info.byte_offset] = file["pixels"].id.read_direct_chunk((0, 0, 0, 0))[1]
        reader = FrameReader(tmp_path / "large.h5", file["pixels"], None)
    monkeypatch.setattr("lewm.data.frames.os.pread", from_memory)
    interval, out = sys.getswitchinterval(), np.empty(frame.size, "u1")
    thread = threading.Thread(target=tick)
    try:
        sys.setswitchinterval(100)
        thread.start()
        before = ticks[0]
        for _ in range(5):
            reader.read_stored(0, out)
        during = ticks[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    np.testing.assert_array_equal(out, frame.reshape(-1))
    assert during > 0


@pytest.mark.parametrize("harm", ["noise", "cut", "another size", "missing"])
def test_frames_that_do_not_decode_are_refused(ours, harm):
    def change(file):
        pixels = file["pixels"].id
        chunk = pixels.read_direct_chunk((8, 0, 0, 0))[1]
        bad = {
            "noise": b"\xff" * 40,
            "cut": chunk[:-3],
            "another size": b"\0" * 7 + b"\x10" + chunk[8:],
            "missing": chunk,
        }
        if harm == "missing":
            file["pixels"].resize(8, axis=0)
            file["pixels"].resize(22, axis=0)
        else:
            pixels.write_direct_chunk((8, 0, 0, 0), bad[harm])

    with EpisodeFile(edited(ours, change)) as file:
        file.read("pixels", [7])
        with pytest.raises(ValueError, match=r"ours\.h5: frames do not decode \(.*row 8") as caught:
            file.read("pixels", [7, 8])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [[5, 0, 21, 5], [[0, 1], [20, 2]], [], list(range(22))])
def test_rows_come_in_the_asked_order(ours, episodes, rows):
    whole = np.concatenate([e["pixels"] for e in episodes])
    with EpisodeFile(ours) as file:
        asked = np.array(rows, dtype=np.int64)
        np.testing.assert_array_equal(file.read("pixels", asked), whole[asked])


CHUNKS = [(1, 16, 16, 3), (10, 16, 16, 3), (3, 8, 5, 1), (7, 16, 16, 2), (22, 16, 16, 3), None]


@pytest.mark.parametrize("kept", [0, 8, 1000])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_any_chunk_shape(ours, episodes, chunks, kept):
    whole = np.concatenate([e["pixels"] for e in episodes])

    def change(file):
        del file["pixels"]
        packed = {} if chunks is None else hdf5plugin.Blosc()
        file.create_dataset("pixels", data=whole, chunks=chunks, **packed)

    rng = np.random.default_rng(0)
    with EpisodeFile(edited(ours, change)) as file:
        file.keep_decoded(kept)
        for _ in range(5):
            rows = rng.integers(0, 22, (6, 4))
            np.testing.assert_array_equal(file.read("pixels", rows), whole[rows])


def test_kept_chunks_are_decoded_once(tmp_path):
    """What HDF5 keeps decoded is not read again: the file may change underneath."""
    pixels = np.zeros((40, 16, 16, 3), np.uint8)
    action = np.zeros((40, 2), np.float32)
    path = tmp_path / "x.h5"
    write_episodes(path, [{"pixels": pixels, "action": action}])
    with h5py.File(path, "r+") as file:
        del file["pixels"]
        made = file.create_dataset("pixels", data=pixels, chunks=(10, 16, 16, 3), shuffle=True)
        places = [made.id.get_chunk_info(i) for i in range(4)]
    for kept, expected in ((0, 1), (40, 0)):
        path.write_bytes(path.read_bytes())
        with EpisodeFile(path) as file:
            file.keep_decoded(kept)
            assert not file.read("pixels", np.arange(40)).any()
            with path.open("r+b") as raw:
                raw.seek(places[0].byte_offset)
                raw.write(b"\x01" * places[0].size)
            assert file.read("pixels", [0]).max() == expected
            with path.open("r+b") as raw:
                raw.seek(places[0].byte_offset)
                raw.write(b"\x00" * places[0].size)


def test_columns_that_are_no_numbers_are_left_out(ours):
    def change(file):
        file.create_dataset("notes/text", data=["a"] * 22, dtype=h5py.string_dtype())
        file.create_dataset("version", data=3)

    with EpisodeFile(edited(ours, change)) as file:
        assert file.left_out == ("notes_text", "version")
        assert "notes_text" not in file.columns


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


def test_a_state_that_is_not_finite_is_refused_when_it_is_read(ours):
    def change(file):
        file["proprio"][21] = np.inf
        file.create_dataset("reward", data=np.full(22, np.nan))

    with EpisodeFile(edited(ours, change)) as file:
        assert np.isnan(file.read("reward")).all()
        with pytest.raises(ValueError, match="proprio of episode 2, step 11 is not finite"):
            file.read("proprio", [0])


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
