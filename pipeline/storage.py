"""Where a sweep lives: keys under one root, atomic writes, leases.

Every output is a file named by a key such as `trials/<id>/done.json`. A write is a temporary file in
the same folder, flushed to disk and renamed, so a reader sees the old file or the new one, never half.
"""

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import psutil

LEASE_S = 120.0
"""A lease not renewed for this long is void, wherever its owner ran."""


class Storage:
    """A folder that holds datasets, trials, sweeps and the MLflow database.

    Args:
        root: absolute or relative path, or a `file://` URI.

    Raises:
        ValueError: the path is a URI of another scheme, is no folder, or cannot be written.
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root).removeprefix("file://")
        if "://" in text:
            raise ValueError(f"storage {text!r}: only local or mounted folders are supported")
        self.root = Path(text).expanduser().absolute()

    def check_writable(self) -> None:
        """Creates the root if needed and proves that it takes files."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ValueError(f"storage {self.root} cannot be written: {error.strerror}") from None

    def path(self, key: str) -> Path:
        """The file of a key.

        Raises:
            ValueError: the key would leave the storage.
        """
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(f"key {key!r} escapes the storage {self.root}")
        return self.root / key

    def exists(self, key: str) -> bool:
        """Whether the key has a file or folder."""
        return self.path(key).exists()

    def list(self, prefix: str) -> Iterator[str]:
        """File names directly under a folder key, sorted, temporary ones left out."""
        folder = self.path(prefix)
        if folder.is_dir():
            yield from sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))

    def read_json(self, key: str) -> dict[str, Any] | None:
        """The JSON object of a key, or None if it is missing or torn."""
        try:
            data = json.loads(self.path(key).read_bytes())
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        return data if isinstance(data, dict) else None

    def write_json(self, key: str, data: Any) -> None:
        """Writes JSON atomically."""
        self.write_bytes(key, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())

    def write_bytes(self, key: str, content: bytes) -> None:
        """Writes bytes atomically and durably; a file that already holds them is left alone."""
        target = self.path(key)
        if target.is_file() and target.read_bytes() == content:
            return
        with atomic_file(target) as file:
            file.write(content)

    def put(self, source: Path, key: str) -> None:
        """Copies a local file to a key atomically and durably."""
        with source.open("rb") as read, atomic_file(self.path(key)) as write:
            shutil.copyfileobj(read, write, 1 << 20)

    def fetch(self, key: str, target: Path) -> bool:
        """Copies a key to a local file; False if there is none."""
        source = self.path(key)
        if not source.is_file():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return True


def read_marker(storage: Storage, trial_id: str) -> dict[str, Any] | None:
    """The marker of a trial that ended (`done`, `diverged` or `failed`), or None."""
    return storage.read_json(f"trials/{trial_id}/done.json")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, up to the first torn line; none if there is no file."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
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


class Lease:
    """One live owner of a key: token, host, pid and an expiry that the owner keeps renewing.

    A lease is stale when its process is dead on this host, or when it expired. A writer that lost its
    token (another owner took a stale-looking lease over) must commit nothing: check `held()` first.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage = storage
        self.key = key
        self.token = uuid.uuid4().hex

    def acquire(self) -> dict[str, Any] | None:
        """Takes the lease; returns None on success, else the record of its live owner."""
        while True:
            owner = self.storage.read_json(self.key)
            if owner is not None and owner["token"] == self.token:
                return None
            if owner is not None and not is_stale(owner):
                return owner
            if self._replace(owner):
                return None

    def _replace(self, stale: dict[str, Any] | None) -> bool:
        """Moves the stale record away and links ours in; False if somebody was faster."""
        path = self.storage.path(self.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if stale is None and self.storage.read_json(self.key) is not None:
            return False
        if path.exists():
            aside = path.with_name(f".{path.name}.{self.token}.stale")
            try:
                path.rename(aside)
            except FileNotFoundError:
                return False
            moved = self.storage.read_json(str(aside.relative_to(self.storage.root)))
            if moved and moved.get("token") != (stale or {}).get("token"):
                aside.rename(path)
                return False
            aside.unlink()
        mine = _temp_beside(path)
        mine.write_text(json.dumps(self._record()))
        try:
            os.link(mine, path)
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def _record(self) -> dict[str, Any]:
        process = psutil.Process()
        return {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": process.pid,
            "process_started": process.create_time(),
            "expires": time.time() + LEASE_S,
        }

    def held(self) -> bool:
        """Whether our token is still the one on storage."""
        owner = self.storage.read_json(self.key)
        return owner is not None and owner["token"] == self.token

    def renew(self) -> bool:
        """Moves the expiry; False if the lease was lost."""
        if not self.held():
            return False
        self.storage.write_json(self.key, self._record())
        return True

    def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        if self.held():
            self.storage.path(self.key).unlink(missing_ok=True)


class Heartbeat:
    """Renews a lease from a thread of its own until stopped; also a context manager."""

    def __init__(self, lease: Lease) -> None:
        self._stop = threading.Event()
        self._lease = lease
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._lease.release()

    def _run(self) -> None:
        while not self._stop.wait(LEASE_S / 4):
            try:
                if not self._lease.renew():
                    return
            except OSError:
                continue


def is_stale(owner: dict[str, Any]) -> bool:
    """Whether a lease record names a dead process of this host, or has expired."""
    if owner["host"] == socket.gethostname():
        try:
            process = psutil.Process(owner["pid"])
            same = abs(process.create_time() - owner["process_started"]) < 1.0
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
    return time.time() > float(owner["expires"])
