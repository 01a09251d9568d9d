"""One contract for folders and buckets; S3 over its real protocol, served on loopback."""

import re
import threading
import time

import pytest

from pipeline import storage as module
from pipeline.storage import Storage
from pipeline.storage.lease import Heartbeat, Lease
from pipeline.tables import BrokenTable, read_table

moto = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        boto3.client("s3").create_bucket(Bucket="lewm")
        yield
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path, endpoint):
    if request.param == "folder":
        return Storage(tmp_path / "runs")
    return Storage(f"s3://lewm/{request.node.name}/runs/")


def test_objects(storage, tmp_path):
    storage.check_writable()
    assert storage.list("") == [] and not storage.exists("a")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/b")
    storage.write_bytes("a/b", b"one")
    storage.write_json("a/c.json", {"x": 1})
    storage.write_bytes("a/d/e", b"")
    assert storage.list("a") == ["b", "c.json", "d"] and storage.list("") == ["a"]
    assert storage.exists("a/d") and storage.exists("a/b") and not storage.exists("a/x")
    assert storage.read_json("a/c.json") == {"x": 1} and storage.read_json("a/b") is None
    assert (storage.size("a/b"), storage.size("nothing")) == (3, 0)
    assert 0 <= storage.age_s("a/b") < 30
    assert storage.at("a").read_bytes("b") == b"one"
    assert Storage(storage.uri).where("a/b") == storage.where("a/b")
    storage.remove("a/b")
    storage.remove("a/b")
    assert storage.list("a") == ["c.json", "d"]
    with pytest.raises(ValueError, match="escapes"):
        storage.write_bytes("a/../../b", b"")


def test_files_go_in_and_out_whole(storage, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 5000)
    storage.put(source, "x/file")
    assert storage.fetch("x/file", tmp_path / "out" / "copy")
    assert (tmp_path / "out" / "copy").read_bytes() == source.read_bytes()
    assert not storage.fetch("x/none", tmp_path / "none")
    with storage.reading("x/file", "x/none") as folder:
        assert (folder / "file").read_bytes() == source.read_bytes()
        assert not (folder / "none").exists()
    with storage.writing("y/made") as path:
        path.write_bytes(b"made")
    with pytest.raises(RuntimeError), storage.writing("y/broken") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert storage.list("y") == ["made"] and storage.read_bytes("y/made") == b"made"


def test_only_one_of_many_takes_a_lease_and_only_a_void_one_changes_hands(storage):
    leases = [Lease(storage, "owner.json") for _ in range(8)]
    taken = []
    threads = [
        threading.Thread(target=lambda lease=lease: taken.append(lease.acquire() is None))
        for lease in leases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
    (winner,) = (lease for lease in leases if lease.held())
    assert winner.renew() and winner.renew()
    heir = Lease(storage, "owner.json", void=["gone"])
    assert heir.acquire()["token"] == winner.token
    record = storage.read_json("owner.json")
    storage.write_json("owner.json", record | {"driver": "gone"})
    assert heir.acquire() is None and heir.replaced["token"] == winner.token
    assert not winner.renew() and not winner.held()
    with Heartbeat(heir):
        assert heir.held()
    assert not storage.exists("owner.json")


def test_a_conditional_write_knows_what_it_replaces(storage):
    assert storage.swap("k", None, b"1")
    assert not storage.swap("k", None, b"2")
    content, version = storage.read_version("k")
    assert content == b"1" and storage.swap("k", version, b"2")
    assert not storage.swap("k", version, b"3") and storage.read_bytes("k") == b"2"
    assert storage.read_version("none") is None


def test_tables_are_read_and_a_torn_one_is_told(storage):
    assert read_table(storage, "trials").is_empty()
    storage.write_bytes("tables/trials.parquet", b"PAR1 torn")
    with pytest.raises(BrokenTable, match=r"trials\.parquet"):
        read_table(storage, "trials")


def test_a_bucket_that_is_not_there_or_lets_nobody_in_is_one_line(endpoint, monkeypatch):
    with pytest.raises(ValueError, match="s3://nothing-here/x cannot be written") as error:
        Storage("s3://nothing-here/x").check_writable()
    assert "\n" not in str(error.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(ValueError, match="no credentials for S3: set AWS_ACCESS_KEY_ID"):
        Storage("s3://lewm/other-credentials").check_writable()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_storage_that_refuses_is_asked_again_and_not_for_ever(storage, monkeypatch, capsys):
    storage.write_bytes("k", b"kept")
    real, refusals = storage._backend.read, [OSError(28, "No space left on device")] * 3

    def refusing(key):
        if refusals:
            raise refusals.pop()
        return real(key)

    monkeypatch.setattr(storage._backend, "read", refusing)
    began = time.monotonic()
    assert storage.read_bytes("k") == b"kept" and time.monotonic() - began > 0.5
    assert capsys.readouterr().err.count("No space left on device; trying again") == 1
    refusals += [OSError(5, "Input/output error")] * 99
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    with pytest.raises(OSError, match=re.escape(f"storage {storage.uri}: Input/output error")):
        storage.read_bytes("k")
