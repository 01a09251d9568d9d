"""Who works on what: leases on storage, kept by a heartbeat.

A lease is void when its process is dead on this machine, when it was not renewed for `LEASE_S` by the
storage's own clock (the clocks of the machines have no say), or when it was taken on behalf of a driver
that is known to be gone. Whoever lost a lease must commit nothing: check `held()` before each commit.
"""

import functools
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import psutil

from pipeline.storage import Storage, parse_json

LEASE_S = 60.0
"""A lease not renewed for this long is void, wherever its owner ran."""
Record = dict[str, Any]


class Lease:
    """One live owner of a key.

    Args:
        driver: token of the driver for which this process works, if it is not the driver itself.
        void: tokens of drivers known to be gone, or whose processes this one replaces: what they
            hold is taken over without waiting.
    """

    def __init__(
        self, storage: Storage, key: str, driver: str | None = None, void: Collection[str] = ()
    ) -> None:
        self.storage = storage
        self.key = key
        self.token = uuid.uuid4().hex
        self.replaced: Record | None = None
        self._driver = driver
        self._void = frozenset(void)

    def acquire(self) -> Record | None:
        """Takes the lease; returns None on success, else the record of its live owner.

        `replaced` is then the record of the dead owner that it was taken from, if there was one.
        """
        while True:
            found = self.storage.read_version(self.key)
            owner = None if found is None else parse_json(found[0])
            if owner is not None and owner["token"] == self.token:
                return None
            if owner is not None and not self._is_void(owner):
                return owner
            if self.storage.swap(self.key, None if found is None else found[1], self._content()):
                self.replaced = owner
                return None

    def _is_void(self, owner: Record) -> bool:
        return owner.get("driver") in self._void or is_stale(self.storage, self.key, owner)

    def _content(self) -> bytes:
        record = {"token": self.token, "driver": self._driver, "renewed_at": time.time()}
        return json.dumps(record | _this_process()).encode()

    def held(self) -> bool:
        """Whether our token is still the one on storage."""
        owner = self.storage.read_json(self.key)
        return owner is not None and owner["token"] == self.token

    def renew(self) -> bool:
        """Proves that the owner lives; False if the lease was lost."""
        found = self.storage.read_version(self.key)
        if found is None or (parse_json(found[0]) or {}).get("token") != self.token:
            return False
        if self.storage.is_local:  # a swap would leave the key without a file for a moment
            self.storage.write_bytes(self.key, self._content())
            return True
        return self.storage.swap(self.key, found[1], self._content()) or self.held()

    def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        if self.held():
            self.storage.remove(self.key)


@functools.cache
def _this_process() -> Record:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": process.pid,
        "process_started": process.create_time(),
    }


def machine() -> str:
    """What tells this machine and its process numbers from any other: boot and PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def is_stale(storage: Storage, key: str, owner: Record) -> bool:
    """Whether the owner of a lease died on this machine, or has not renewed it for `LEASE_S`."""
    if owner["machine"] == machine():
        try:
            process = psutil.Process(owner["pid"])
            same = abs(process.create_time() - owner["process_started"]) < 1.0
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
    try:
        return storage.age_s(key) > LEASE_S
    except FileNotFoundError:
        return True


class Heartbeat:
    """Renews a lease from a thread of its own until the block ends, then gives it back.

    Args:
        lost: called once, from that thread, if somebody else took the lease.
    """

    def __init__(self, lease: Lease, lost: Callable[[], None] | None = None) -> None:
        self._stop = threading.Event()
        self._lease = lease
        self._lost = lost
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._lease.release()

    def _run(self) -> None:
        while not self._stop.wait(LEASE_S / 4):
            try:
                held = self._lease.renew()
            except OSError:
                continue
            if not held:
                if self._lost is not None and not self._stop.is_set():
                    self._lost()
                return
