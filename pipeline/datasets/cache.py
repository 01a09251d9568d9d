"""Datasets under remote URIs, fetched once per node and shared by its trials.

A copy lives in `$LEWM_CACHE` (default `~/.cache/lewm/datasets`; on a cluster a folder on the node's own
disk) as `<hash of the URI>-<name>` with a note of where it came from and what it was found to hold.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from pipeline.storage import Storage, atomic_file, patiently

DEFAULT = "~/.cache/lewm/datasets"
PIECE = 8 << 20
QUIET_S = 5.0
"""Nothing is shown of a wait or a copy shorter than this."""


def is_remote(uri: str) -> bool:
    """Whether `local_copy` would fetch it."""
    return "://" in uri


def absolute(uri: str) -> str:
    """A path made absolute; a remote URI as it is."""
    return uri if is_remote(uri) else str(Path(uri).absolute())


def local_copy(uri: str, expected: str | None = None) -> Path:
    """A dataset as a file of this node; a plain path is returned as it is, unchecked.

    However many processes ask at once, one of them fetches; the others wait for it. A copy that is
    broken, or whose size is no longer that of the remote file, is fetched again.

    Args:
        uri: a path, or `file://`, `s3://`, `gs://` or whatever else pyarrow or fsspec opens.
        expected: `lewm.data.episodes.fingerprint` of the file that is meant.

    Raises:
        ValueError: no such file, nothing installed that opens the URI, no room, or not the file that
            is expected.
        OSError: the other side does not answer or breaks off; trying again may help.
    """
    if not is_remote(uri):
        return Path(uri)
    cache = Storage(os.environ.get("LEWM_CACHE") or DEFAULT)
    cache.check_writable()
    last = re.sub(r"[^\w.+-]", "_", uri.rsplit("/", 1)[-1])
    name = f"{hashlib.sha256(uri.encode()).hexdigest()[:12]}-{last}"
    if expected is not None and _is_noted(cache, name, expected):
        return cache.path(name)
    return patiently("fetching", lambda: _copied(cache, name, uri, expected))


def _copied(cache: Storage, name: str, uri: str, expected: str | None) -> Path:
    """The copy, fetched if the one that is there is not good."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    size, read = _remote(uri)
    with _alone(cache.path(f".{name}.lock"), uri, console):
        if not _holds(cache, name, size, expected):
            _fetch(cache.path(name), uri, size, read, console)
            _note(cache, name, uri, expected)
    return cache.path(name)


def _remote(uri: str) -> tuple[int | None, Callable[[], Any]]:
    """Size of a remote file, if its server tells, and what opens it."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FileType

    try:
        try:
            system, path = FileSystem.from_uri(uri)
        except (ArrowException, ValueError):
            return _with_fsspec(uri)
        info = system.get_file_info(path)
        if info.type != FileType.File:
            raise ValueError(f"dataset {uri}: no such file")
        return info.size, lambda: system.open_input_stream(path)
    except OSError as error:
        raise _unreachable(uri, error) from None


def _with_fsspec(uri: str) -> tuple[int | None, Callable[[], Any]]:
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(uri)
        size = system.info(path).get("size")
    except FileNotFoundError:
        raise ValueError(f"dataset {uri}: no such file") from None
    except (ImportError, ValueError, OSError) as error:
        raise _unreachable(uri, error) from None
    return size, lambda: system.open(path, "rb")


def _unreachable(uri: str, error: Exception) -> Exception:
    kind = OSError if isinstance(error, OSError) else ValueError
    return kind(f"dataset {uri} cannot be read: {(str(error).splitlines() or ['?'])[0]}")


@contextmanager
def _alone(lock: Path, uri: str, console: Console) -> Iterator[None]:
    """Waits for its turn among the processes of this node; a killed one gives its turn up."""
    began, told = time.monotonic(), False
    with lock.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
            if not told and time.monotonic() - began > QUIET_S:
                console.print(f"waiting for another process to fetch {uri}", markup=False)
                told = True
        yield


def _holds(cache: Storage, name: str, size: int | None, expected: str | None) -> bool:
    """Whether the copy is whole, of the remote size and, where known, what is expected."""
    copy = cache.path(name)
    if not copy.is_file() or size not in (None, copy.stat().st_size):
        return False
    if _is_noted(cache, name, expected):
        return True

    from lewm.data.digest import fingerprint

    note = cache.read_json(f"{name}.json") or {}
    try:
        return fingerprint(copy) == (expected or note.get("fingerprint"))
    except ValueError:
        return False


def _is_noted(cache: Storage, name: str, expected: str | None) -> bool:
    """Whether the copy is untouched since it was checked, and is what is expected."""
    copy, note = cache.path(name), cache.read_json(f"{name}.json") or {}
    return (
        copy.is_file()
        and note.get("file") == _state(copy)
        and expected in (None, note.get("fingerprint"))
    )


def _fetch(
    copy: Path, uri: str, size: int | None, read: Callable[[], Any], console: Console
) -> None:
    for left in copy.parent.glob(f".{copy.name}.*.tmp"):  # of a process that was killed
        left.unlink()
    free = shutil.disk_usage(copy.parent).free
    if size is not None and size > free:
        raise ValueError(
            f"dataset {uri} has {size / 1e9:.1f} GB, {copy.parent} has room for {free / 1e9:.1f}: "
            "set LEWM_CACHE to another folder"
        )
    try:
        with read() as source, atomic_file(copy) as target:
            fetched = _copy(source, target, uri, size, console)
            if size not in (None, fetched):
                raise OSError(f"{fetched} bytes came of {size}")
    except OSError as error:
        raise _unreachable(uri, error) from None


def _copy(source: Any, target: BinaryIO, uri: str, size: int | None, console: Console) -> int:
    began = told = time.monotonic()
    done = 0
    while piece := source.read(PIECE):
        target.write(piece)
        done += len(piece)
        now = time.monotonic()
        if now - told > QUIET_S:
            told = now
            rate = done / (now - began)
            left = f", {(size - done) / rate:.0f} s to go" if size else ""
            console.print(
                f"fetching {uri}: {done / 1e9:.2f} GB at {rate / 1e6:.0f} MB/s{left}", markup=False
            )
    return done


def _note(cache: Storage, name: str, uri: str, expected: str | None) -> None:
    """Checks a fresh copy and writes down what it holds; a wrong one does not stay."""

    from lewm.data.digest import fingerprint

    copy = cache.path(name)
    try:
        found = fingerprint(copy)
    except ValueError as error:
        copy.unlink()
        raise ValueError(f"{error}; it came from {uri}") from None
    if expected not in (None, found):
        copy.unlink()
        raise ValueError(
            f"dataset {uri} has fingerprint {found[:12]}, expected {str(expected)[:12]}: the remote "
            "file was changed"
        )
    cache.write_json(f"{name}.json", {"uri": uri, "fingerprint": found, "file": _state(copy)})


def _state(copy: Path) -> dict[str, int]:
    state = copy.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
