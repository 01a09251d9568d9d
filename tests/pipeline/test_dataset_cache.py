"""The node's cache: one fetch for many, checked, mended, one-line errors."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lewm.data.digest import fingerprint
from lewm.data.write import write_episodes
from pipeline.datasets import cache as module
from pipeline.datasets.cache import local_copy
from tests.lewm.test_episodes import make_episode

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote(tmp_path):
    path = tmp_path / "remote" / "data.h5"
    path.parent.mkdir()
    write_episodes(path, [make_episode(9, 1), make_episode(5, 2)])
    return path


@pytest.fixture
def fetches(monkeypatch):
    """The URIs fetched, in order."""
    made = []
    fetch = module._fetch
    monkeypatch.setattr(module, "_fetch", lambda *a: made.append(a[1]) or fetch(*a))
    return made


def test_plain_paths_are_left_alone(cache):
    assert local_copy("some/where.h5") == Path("some/where.h5")
    assert not cache.exists()


def test_fetched_once_and_checked(remote, cache, fetches):
    uri = f"file://{remote}"
    copy = local_copy(uri)
    assert copy.parent == cache and copy.read_bytes() == remote.read_bytes()
    assert local_copy(uri) == local_copy(uri, fingerprint(remote)) == copy
    assert fetches == [uri]
    assert {path.name for path in cache.iterdir()} == {
        copy.name,
        f"{copy.name}.json",
        f".{copy.name}.lock",
    }


def test_known_to_be_right_needs_no_network(remote, fetches):
    uri, known = f"file://{remote}", fingerprint(remote)
    copy = local_copy(uri, known)
    remote.unlink()
    assert local_copy(uri, known) == copy
    with pytest.raises(ValueError, match="no such file"):
        local_copy(uri)


@pytest.mark.parametrize("harm", ["cut", "other bytes", "no note"])
def test_a_broken_copy_is_fetched_again(remote, fetches, harm):
    uri = f"file://{remote}"
    copy = local_copy(uri)
    if harm == "cut":
        copy.write_bytes(copy.read_bytes()[:-100])
    elif harm == "other bytes":
        write_episodes(copy, [make_episode(9, 1), make_episode(5, 3)])
    else:
        copy.with_name(f"{copy.name}.json").unlink()
    assert local_copy(uri).read_bytes() == remote.read_bytes()
    assert fetches == [uri, uri]


def test_a_touched_copy_is_read_and_kept(remote, fetches):
    uri = f"file://{remote}"
    os.utime(local_copy(uri), (1, 1))
    local_copy(uri)
    assert fetches == [uri]


def test_a_changed_remote_file(remote, fetches):
    uri, known = f"file://{remote}", fingerprint(remote)
    local_copy(uri)
    write_episodes(remote, [make_episode(19, 1), make_episode(5, 3)])
    assert local_copy(uri).read_bytes() == remote.read_bytes()
    assert len(fetches) == 2
    with pytest.raises(ValueError, match=r"has fingerprint .*, expected .*was changed") as caught:
        local_copy(uri, known)
    assert "\n" not in str(caught.value)
    assert local_copy(uri, fingerprint(remote)).read_bytes() == remote.read_bytes()


def test_other_file_systems_through_fsspec(remote, fetches):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/bucket/data.h5", remote.read_bytes())
    assert local_copy("memory://bucket/data.h5").read_bytes() == remote.read_bytes()
    with pytest.raises(ValueError, match="no such file"):
        local_copy("memory://bucket/none.h5")


ASK = """
import sys, time
from pipeline.datasets import cache as module
fetch = module._fetch
def slow(*arguments):
    print("fetched", flush=True)
    time.sleep(float(sys.argv[2]))
    fetch(*arguments)
module._fetch = slow
print(module.local_copy(sys.argv[1]))
"""


def ask(uri, seconds):
    command = [sys.executable, "-c", ASK, uri, str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_many_processes_fetch_once(remote, cache):
    uri = f"file://{remote}"
    asked = [ask(uri, 1) for _ in range(4)]
    said = [process.communicate(timeout=60)[0].split() for process in asked]
    assert sum(words[0] == "fetched" for words in said) == 1
    assert len({words[-1] for words in said}) == 1
    assert Path(said[0][-1]).read_bytes() == remote.read_bytes()


def test_a_killed_fetch_does_not_block_the_next(remote, cache):
    uri = f"file://{remote}"
    first = ask(uri, 600)
    assert first.stdout.readline() == "fetched\n"
    first.kill()
    first.wait()
    assert local_copy(uri).read_bytes() == remote.read_bytes()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///none/data.h5", "no such file"),
        ("what://bucket/data.h5", "cannot be read"),
    ],
)
def test_what_cannot_be_opened_is_one_line(uri, message):
    with pytest.raises(ValueError, match=message) as caught:
        local_copy(uri)
    assert "\n" not in str(caught.value) and uri in str(caught.value)


def test_a_transfer_that_breaks_off_leaves_nothing(remote, cache, monkeypatch):
    monkeypatch.setattr("pipeline.storage.PATIENCE_S", 0.0)

    class Breaking(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise ConnectionResetError("connection reset by peer")
            return super().read(100)

    content, size = remote.read_bytes(), remote.stat().st_size
    for stream in (Breaking(content), io.BytesIO(content[:-1])):
        monkeypatch.setattr(module, "_remote", lambda uri, s=stream: (size, lambda: s))
        with pytest.raises(OSError, match=r"cannot be read: (connection reset|.* bytes came of)"):
            local_copy(f"file://{remote}")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_remote_file_that_is_no_dataset(remote, cache):
    remote.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=f"not HDF5 .*came from file://{remote}"):
        local_copy(f"file://{remote}")
    assert not [path for path in cache.iterdir() if not path.name.startswith(".")]


def test_no_room(remote, monkeypatch):
    usage = shutil.disk_usage(remote.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match="set LEWM_CACHE to another folder"):
        local_copy(f"file://{remote}")
