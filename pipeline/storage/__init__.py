"""Where a sweep lives: keys under one root, a folder or a bucket; every write is whole or not there.

Every output is an object named by a key such as `trials/<id>/done.json`. In a folder a write is a
temporary file, flushed to disk and renamed; in a bucket it is one PUT. A reader sees the old content or
the new one, never half. What fails for a passing reason (a full disk, a server that does not answer) is
tried again for `PATIENCE_S` before it becomes an error.
"""

import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeVar

PATIENCE_S = float(os.environ.get("LEWM_STORAGE_PATIENCE_S", "180"))
"""How long a storage that refuses is asked again."""
PERMANENT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")
Version = Any
"""What a backend knows a content by: the next conditional write succeeds only upon it."""


class Backend(Protocol):
    """What a folder and a bucket can both do; keys are relative and checked."""

    def check(self) -> None:
        """Raises OSError or ValueError unless objects can be written, now."""

    def exists(self, key: str) -> bool:
        """Whether the key has an object or anything below it."""

    def size(self, key: str) -> int:
        """Bytes of an object; FileNotFoundError."""

    def names(self, prefix: str) -> list[str]:
        """Names directly under a prefix, temporary ones left out."""

    def read(self, key: str) -> bytes:
        """The whole object; FileNotFoundError."""

    def write(self, key: str, content: bytes) -> None:
        """Replaces the object."""

    def put(self, source: Path, key: str) -> None:
        """Uploads a local file."""

    def fetch(self, key: str, target: Path) -> None:
        """Downloads to a local file; FileNotFoundError."""

    def remove(self, key: str) -> None:
        """Removes an object; FileNotFoundError."""

    def read_version(self, key: str) -> tuple[bytes, Version]:
        """The object and what a conditional write must name; FileNotFoundError."""

    def swap(self, key: str, known: Version | None, content: bytes) -> bool:
        """Replaces the object if it is still the known one (None: if there is none)."""

    def age_s(self, key: str) -> float:
        """Seconds since the object was written, by the storage's own clock; FileNotFoundError."""


class Storage:
    """A folder or bucket that holds datasets, trials and sweeps.

    Args:
        uri: a path, absolute or relative, a `file://` URI, or `s3://bucket/prefix`. Endpoint and
            credentials of S3 come from the usual AWS variables and files.

    Raises:
        ValueError: a URI of another scheme, without a bucket, or without what opens it installed.
    """

    def __init__(self, uri: "str | Path | Storage") -> None:
        self.uri: str
        text = (uri.uri if isinstance(uri, Storage) else str(uri)).removeprefix("file://")
        scheme, separator, rest = text.partition("://")
        self._backend: Backend
        if separator and scheme != "s3":
            raise ValueError(f"storage {text!r}: a folder or s3://bucket/prefix, not {scheme}://")
        if separator:
            from pipeline.storage.bucket import open_bucket

            bucket, _, prefix = rest.partition("/")
            if not bucket or "@" in bucket:
                raise ValueError(f"storage {text!r} names no bucket: s3://bucket/prefix")
            self._backend = open_bucket(bucket, prefix.strip("/"))
            self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        else:
            folder = Path(text).expanduser().absolute()
            self._backend = _Folder(folder)
            self.uri = str(folder)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine (or one that is mounted here)."""
        return isinstance(self._backend, _Folder)

    @property
    def root(self) -> Path:
        """The folder.

        Raises:
            ValueError: it is a bucket.
        """
        if not isinstance(self._backend, _Folder):
            raise ValueError(f"storage {self.uri} is no folder")
        return self._backend.root

    def path(self, key: str) -> Path:
        """The file of a key in a folder.

        Raises:
            ValueError: it is a bucket, or the key would leave the storage.
        """
        return self.root / _checked(key)

    def where(self, key: str = "") -> str:
        """Path or URI of a key, for people and for `datasets.cache.local_copy`."""
        return f"{self.uri}/{_checked(key)}".rstrip("/")

    def at(self, prefix: str) -> "Storage":
        """The storage whose root is a folder of this one."""
        return Storage(self.where(prefix))

    def check_writable(self) -> None:
        """Proves at once that it takes objects; creates a folder that is missing.

        Raises:
            ValueError: it does not; says why.
        """
        try:
            self._backend.check()
        except OSError as error:
            raise ValueError(f"storage {self.uri} cannot be written: {_reason(error)}") from None

    def exists(self, key: str) -> bool:
        """Whether the key has an object or a folder."""
        return self._patiently(lambda: self._backend.exists(_checked(key)))

    def size(self, key: str) -> int:
        """Bytes of an object; 0 if there is none."""
        try:
            return self._patiently(lambda: self._backend.size(_checked(key)))
        except FileNotFoundError:
            return 0

    def age_s(self, key: str) -> float:
        """Seconds since an object was written, by the storage's clock and nobody else's.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._patiently(lambda: self._backend.age_s(_checked(key)))

    def list(self, prefix: str) -> list[str]:
        """Names directly under a folder key, sorted, temporary ones left out."""
        return sorted(self._patiently(lambda: self._backend.names(_checked(prefix))))

    def read_bytes(self, key: str) -> bytes:
        """The object of a key.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._patiently(lambda: self._backend.read(_checked(key)))

    def read_json(self, key: str) -> dict[str, Any] | None:
        """The JSON object of a key, or None if it is missing or torn."""
        try:
            return parse_json(self.read_bytes(key))
        except FileNotFoundError:
            return None

    def write_json(self, key: str, data: Any) -> None:
        """Writes JSON atomically."""
        self.write_bytes(key, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())

    def write_bytes(self, key: str, content: bytes) -> None:
        """Writes atomically and durably; a file that already holds the same is left alone."""
        self._patiently(lambda: self._backend.write(_checked(key), content))

    def put(self, source: Path, key: str) -> None:
        """Copies a local file to a key atomically and durably."""
        self._patiently(lambda: self._backend.put(source, _checked(key)))

    def fetch(self, key: str, target: Path) -> bool:
        """Copies a key to a local file; False if there is none."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._patiently(lambda: self._backend.fetch(_checked(key), target))
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def reading(self, *keys: str) -> Iterator[Path]:
        """A folder in which the objects of these keys lie under their last names; not to be changed.

        In a folder the keys must share theirs; objects that are missing are not there either.
        """
        if self.is_local:
            yield self.path(keys[0]).parent
            return
        with tempfile.TemporaryDirectory(prefix="lewm-") as folder:
            for key in keys:
                self.fetch(key, Path(folder) / PurePosixPath(key).name)
            yield Path(folder)

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A path to write one file to; it appears under the key when the block ends well."""
        if self.is_local:
            target = self.path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            temp = _temp_beside(target)
            try:
                yield temp
                temp.replace(target)
            finally:
                temp.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="lewm-") as folder:
            file = Path(folder) / PurePosixPath(key).name
            yield file
            self.put(file, key)

    def remove(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        try:
            self._patiently(lambda: self._backend.remove(_checked(key)))
        except FileNotFoundError:
            return

    def read_version(self, key: str) -> tuple[bytes, Version] | None:
        """An object with what `swap` must be told of it; None if there is none."""
        try:
            return self._patiently(lambda: self._backend.read_version(_checked(key)))
        except FileNotFoundError:
            return None

    def swap(self, key: str, known: Version | None, content: bytes) -> bool:
        """Writes only if the object is still the known one (None: only if there is none)."""
        return self._patiently(lambda: self._backend.swap(_checked(key), known, content))

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(f"storage {self.uri}", call)


def patiently(what: str, call: Callable[[], T]) -> T:
    """Repeats a call that fails for a passing reason, for up to `PATIENCE_S`.

    Raises:
        OSError: it failed for so long, or for a reason that does not pass (`PERMANENT`).
    """
    end, pause, told = time.monotonic() + PATIENCE_S, 0.2, False
    while True:
        try:
            return call()
        except PERMANENT:
            raise
        except OSError as error:
            reason = _reason(error)
            if time.monotonic() + pause > end:
                raise OSError(error.errno, f"{what}: {reason}") from error
            if not told:
                line = f"{what}: {reason}; trying again for up to {PATIENCE_S:.0f} s"
                print(f"warning: {line}", file=sys.stderr)
                told = True
        time.sleep(pause)
        pause = min(pause * 2, 5.0)


class _Folder:
    """A local or mounted folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()

    def exists(self, key: str) -> bool:
        return (self.root / key).exists()

    def size(self, key: str) -> int:
        return (self.root / key).stat().st_size

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        return [path.name for path in folder.iterdir() if not path.name.startswith(".")]

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        target = self.root / key
        if target.is_file() and target.read_bytes() == content:
            return
        with atomic_file(target) as file:
            file.write(content)

    def put(self, source: Path, key: str) -> None:
        with source.open("rb") as read, atomic_file(self.root / key) as write:
            shutil.copyfileobj(read, write, 1 << 20)

    def fetch(self, key: str, target: Path) -> None:
        shutil.copyfile(self.root / key, target)

    def remove(self, key: str) -> None:
        (self.root / key).unlink()

    def read_version(self, key: str) -> tuple[bytes, Version]:
        content = self.read(key)
        return content, content

    def swap(self, key: str, known: Version | None, content: bytes) -> bool:
        """Moves the known file aside and links ours in; whoever was faster wins."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if known is not None:
            aside = _temp_beside(path)
            try:
                path.rename(aside)
            except FileNotFoundError:
                return False
            if aside.read_bytes() != known:
                aside.rename(path)
                return False
            aside.unlink()
        mine = _temp_beside(path)
        mine.write_bytes(content)
        try:
            os.link(mine, path)
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def age_s(self, key: str) -> float:
        path = self.root / key
        written = path.stat().st_mtime
        probe = _temp_beside(path)
        probe.write_bytes(b"")
        try:
            return probe.stat().st_mtime - written
        finally:
            probe.unlink()


def _checked(key: str) -> str:
    """The key, if it stays inside the storage."""
    parts = PurePosixPath(key).parts
    if key.startswith("/") or ".." in parts:
        raise ValueError(f"key {key!r} escapes the storage")
    return key


def _reason(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    return text.strip().splitlines()[0]


def parse_json(content: bytes) -> dict[str, Any] | None:
    """The JSON object that some bytes are, or None."""
    try:
        data = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return data if isinstance(data, dict) else None


def read_marker(storage: Storage, trial_id: str) -> dict[str, Any] | None:
    """The marker of a trial that ended (`done`, `diverged` or `failed`), or None."""
    return storage.read_json(f"trials/{trial_id}/done.json")


def parse_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows of JSON lines, up to the first torn one."""
    rows: list[dict[str, Any]] = []
    for line in content.decode("utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name when the block ends well: flushed, whole, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = _temp_beside(target)
    try:
        with temp.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)


def _temp_beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
