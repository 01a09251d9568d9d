"""Repacking: every frame and column as in the source, the same bytes however often it was broken off."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from lewm.data import repack as module
from lewm.data.digest import content_hash
from lewm.data.episodes import EpisodeFile
from lewm.data.frames import frames_of
from lewm.data.repack import repack
from lewm.data.write import write_episodes
from tests.lewm.test_episodes import FILES, PUBLISHED, make_episode


@pytest.fixture
def source(tmp_path):
    """90 rows in three episodes, ten frames per chunk."""
    path = tmp_path / "source.h5"
    write_episodes(path, [make_episode(30, seed) for seed in range(3)])
    with h5py.File(path, "r+") as file:
        pixels = file["pixels"][()]
        del file["pixels"]
        file.create_dataset("pixels", data=pixels, chunks=(10, 16, 16, 3), compression="gzip")
        file.create_dataset("privileged/block_pos", data=np.arange(90.0))
    with EpisodeFile(path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 20)
    monkeypatch.setattr(module, "BLOCK_ROWS", 8)


def file_hash(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_published_files(name, tmp_path):
    path = PUBLISHED / f"{name}.h5"
    before = file_hash(path), path.stat().st_mtime_ns
    with EpisodeFile(path) as source:
        told = []
        whole, digest = repack(source, tmp_path / "work", told.append)
        assert sum(told) == source.num_rows and len(told) == -(-source.num_rows // 20)
        assert digest == content_hash(path) == content_hash(whole)
        with EpisodeFile(whole) as new:
            assert new.columns == source.columns
            for column in new.columns:
                np.testing.assert_array_equal(new.read(column), source.read(column))
    with h5py.File(whole) as raw:
        assert frames_of(raw).chunks == (1, 224, 224, 3)
    assert list((tmp_path / "work").iterdir()) == [whole]
    assert before == (file_hash(path), path.stat().st_mtime_ns)


class Killed(BaseException):
    pass


def kill_after(count):
    def advance(_):
        nonlocal count
        count -= 1
        if count < 0:
            raise Killed

    return advance


def test_goes_on_with_the_same_bytes(source, tmp_path, monkeypatch):
    unbroken, digest = repack(source, tmp_path / "unbroken", lambda _: None)
    folder = tmp_path / "broken"
    for count in (0, 2):
        with pytest.raises(Killed):
            repack(source, folder, kill_after(count))
    assert sorted(path.name for path in folder.iterdir()) == [f"0000000{n}0.h5" for n in "024"]
    (folder / ".000000060.h5.1234.tmp").write_bytes(b"torn")
    made = []
    write = module.FrameWriter
    monkeypatch.setattr(
        module,
        "FrameWriter",
        lambda f, *rest: made.append(Path(f.filename).name[:11]) or write(f, *rest),
    )
    whole, again = repack(source, folder, lambda _: None)
    assert made == [".000000060.", ".000000080.", "whole.h5"]
    assert again == digest and file_hash(whole) == file_hash(unbroken)
    assert list(folder.iterdir()) == [whole]


def test_killed_while_the_parts_are_moved(source, tmp_path, monkeypatch):
    unbroken, _ = repack(source, tmp_path / "unbroken", lambda _: None)
    unlink, count = Path.unlink, 0

    def dying(self, **options):
        nonlocal count
        unlink(self, **options)
        count += self.parent.name == "broken" and self.name.startswith("0")
        if count == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", dying)
        repack(source, tmp_path / "broken", lambda _: None)
    whole, _ = repack(source, tmp_path / "broken", lambda _: None)
    assert file_hash(whole) == file_hash(unbroken)


@pytest.mark.parametrize("harm", ["another frame", "cut", "bytes"])
def test_a_part_that_went_bad_is_made_again(source, tmp_path, harm):
    unbroken, _ = repack(source, tmp_path / "unbroken", lambda _: None)
    folder = tmp_path / "broken"
    with pytest.raises(Killed):
        repack(source, folder, kill_after(3))
    part = folder / "000000020.h5"
    if harm == "cut":
        part.write_bytes(part.read_bytes()[:-1000])
    else:
        with h5py.File(part, "r+") as file:
            if harm == "another frame":
                file["pixels"][7] ^= 1
            else:
                file["pixels"].id.write_direct_chunk((7, 0, 0, 0), b"\xff" * 50)
    whole, _ = repack(source, folder, lambda _: None)
    assert file_hash(whole) == file_hash(unbroken)


def test_what_does_not_read_back_is_refused(source, tmp_path, monkeypatch):
    class Faulty(module.FrameWriter):
        def append(self, frames, key=None):
            if len(self._dataset) == 8:
                frames = frames.copy()
                frames[5, 0, 0, 0] ^= 1
            super().append(frames, key)

    monkeypatch.setattr(module, "FrameWriter", Faulty)
    with pytest.raises(ValueError, match="frame 13 does not read back") as caught:
        repack(source, tmp_path / "work", lambda _: None)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["published_reacher", "published_tworoom"])
def test_there_and_back(name, tmp_path):
    """To the packed layout, cut where episodes are not, and back to the published one."""
    path = PUBLISHED / f"{name}.h5"
    with EpisodeFile(path) as source:
        packed, digest = repack(source, tmp_path / "packed", lambda _: None)
    with EpisodeFile(packed) as source:
        back, again = repack(source, tmp_path / "back", lambda _: None, "published")
    assert digest == again == content_hash(path)
    with h5py.File(back) as new, h5py.File(path) as old, h5py.File(packed) as between:
        np.testing.assert_array_equal(new["pixels"][()], old["pixels"][()])
        assert ("pixels" in between) == (name == "published_tworoom")
        assert "pixels_xor" not in new


def test_what_is_moved_wrongly_is_refused(source, tmp_path, monkeypatch):
    assemble = module._assemble

    def faulty(source, whole, files, xored):
        moved = assemble(source, whole, files, xored)
        with h5py.File(whole, "r+") as file:
            file["pixels"][50] ^= 1
        return moved

    monkeypatch.setattr(module, "_assemble", faulty)
    with pytest.raises(ValueError, match="does not read back"):
        repack(source, tmp_path / "work", lambda _: None)


def test_a_broken_source_is_the_error(source, tmp_path):
    with h5py.File(tmp_path / "bad.h5", "w") as bad:
        for name in source.columns:
            if name != "pixels":
                bad[name] = source.read(name)
        for name in ("ep_len", "ep_offset"):
            bad[name] = source.read(name)
        pixels = bad.create_dataset(
            "pixels", (90, 16, 16, 3), "u1", chunks=(10, 16, 16, 3), compression="gzip"
        )
        pixels[:] = 1
        pixels.id.write_direct_chunk((30, 0, 0, 0), b"\xff" * 50)
    with (
        EpisodeFile(tmp_path / "bad.h5") as source,
        pytest.raises(ValueError, match=r"bad\.h5: frames do not decode") as caught,
    ):
        repack(source, tmp_path / "work", lambda _: None)
    assert "\n" not in str(caught.value)
