"""Atomic writes and leases."""

import json
import os
import subprocess
import sys
import time

import pytest

from pipeline.storage import Storage, parse_rows
from pipeline.storage.lease import LEASE_S, Heartbeat, Lease, is_stale


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def test_json_round_trip_and_torn_files(storage):
    storage.write_json("a/b.json", {"x": 1})
    assert storage.read_json("a/b.json") == {"x": 1}
    storage.path("a/b.json").write_text('{"x": ')
    assert storage.read_json("a/b.json") is None
    assert storage.read_json("a/none.json") is None


def test_equal_content_is_not_written_again(storage):
    storage.write_json("a.json", {"x": 1})
    before = storage.path("a.json").stat().st_mtime_ns
    storage.write_json("a.json", {"x": 1})
    assert storage.path("a.json").stat().st_mtime_ns == before


def test_a_key_cannot_leave_the_storage(storage):
    with pytest.raises(ValueError, match="escapes"):
        storage.path("../outside")


@pytest.mark.parametrize("uri", ["gs://bucket", "s3://", "s3://key:secret@bucket/x", "http://x"])
def test_other_places_are_refused(uri):
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        Storage(uri)


def test_a_live_owner_keeps_the_lease_and_a_dead_one_loses_it(storage):
    first, second = Lease(storage, "o.json"), Lease(storage, "o.json")
    assert first.acquire() is None
    assert second.acquire()["pid"] == os.getpid()
    first.release()
    assert second.acquire() is None
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pipeline.storage import Storage; from pipeline.storage.lease import Lease\n"
            "s = Storage(sys.argv[1]); Lease(s, 'p.json').acquire()",
            str(storage.root),
        ],
        check=True,
    )
    assert child.returncode == 0 and storage.read_json("p.json") is not None
    third = Lease(storage, "p.json")
    assert third.acquire() is None and third.held()


@pytest.mark.parametrize("skew_s", [-7200.0, 0.0, 7200.0])
def test_a_lease_of_another_machine_is_void_by_its_age_on_storage_whatever_its_clock(
    storage, skew_s
):
    record = {"token": "t", "driver": None, "host": "far", "machine": "far", "pid": 1}
    storage.write_json("o.json", record | {"renewed_at": time.time() + skew_s})
    owner = storage.read_json("o.json")
    assert not is_stale(storage, "o.json", owner)
    assert Lease(storage, "o.json").acquire() == owner
    written = time.time() - LEASE_S - 1
    os.utime(storage.path("o.json"), (written, written))
    assert is_stale(storage, "o.json", owner)
    lease = Lease(storage, "o.json")
    assert lease.acquire() is None and lease.replaced["token"] == "t"


def test_what_a_dead_driver_held_is_taken_over_without_waiting(storage):
    far = {"token": "t", "driver": "old", "host": "far", "machine": "far", "pid": 1}
    storage.write_json("o.json", far)
    assert Lease(storage, "o.json", driver="new").acquire() is not None
    assert Lease(storage, "o.json", driver="new", void=["old"]).acquire() is None


def test_an_owner_that_lost_its_token_cannot_renew(storage):
    lease = Lease(storage, "o.json")
    assert lease.acquire() is None
    storage.write_json("o.json", json.loads(storage.path("o.json").read_text()) | {"token": "new"})
    assert not lease.held() and not lease.renew()
    lease.release()
    assert storage.read_json("o.json")["token"] == "new"


def test_a_lease_taken_in_between_is_not_stolen_and_a_torn_one_is_replaced(storage):
    mine, other = Lease(storage, "o.json"), Lease(storage, "o.json")
    assert other.acquire() is None
    assert not storage.swap("o.json", None, b"{}") and other.held()
    assert not storage.swap("o.json", b"what it never was", b"{}") and other.held()
    storage.path("o.json").write_text('{"token": "x", "ho')
    assert mine.acquire() is None and mine.held()


def test_a_heartbeat_releases_at_its_end(storage):
    lease = Lease(storage, "o.json")
    assert lease.acquire() is None
    with Heartbeat(lease):
        assert lease.held()
    assert storage.read_json("o.json") is None


def test_rows_end_at_the_first_torn_line():
    torn = b'{"step": 0}\n{"step": 1}\n{"st'
    assert [row["step"] for row in parse_rows(torn)] == [0, 1]
    assert parse_rows(b"") == []
