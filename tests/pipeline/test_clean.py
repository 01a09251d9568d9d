"""Garbage goes, and nothing else: what a sweep reads, and what somebody works on, stays."""

import os
import time

import polars as pl
import pytest

from pipeline import clean, tables
from pipeline.storage import Storage
from pipeline.storage.lease import Lease

SCHEMA = {"a": pl.Int64()}
OLD_S = 2 * clean.DAY_S


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def sweep(storage, name, *trial_ids):
    rows = [{"trial_id": trial_id} for trial_id in trial_ids]
    storage.write_json(f"sweeps/{name}/sweep.json", {"trials": rows})


def trial(storage, trial_id, status="done"):
    for name in ("checkpoint.pt", "checkpoint.prev.pt", "curve.jsonl"):
        storage.write_bytes(f"trials/{trial_id}/{name}", b"1234")
    if status:
        storage.write_json(f"trials/{trial_id}/done.json", {"status": status})


def part(storage, key, monkeypatch, version=tables.SCHEMA_VERSION):
    with monkeypatch.context() as patch:
        patch.setattr(tables, "SCHEMA_VERSION", version)
        data = tables.encode(pl.DataFrame({"a": [1]}), SCHEMA)
    storage.write_bytes(f"{key}.parquet", data)
    storage.write_json(f"{key}.json", {"status": "done"})


def temporary(storage, key, age_s=OLD_S):
    path = storage.path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"torn")
    os.utime(path, (time.time() - age_s,) * 2)


def found(storage, **options):
    return {piece.key for piece in clean.Cleaner(storage, **options).find()}


def everything(storage):
    return {str(p.relative_to(storage.root)) for p in storage.root.rglob("*") if p.is_file()}


def test_previous_checkpoints_go_where_they_can_never_be_needed(storage):
    for status in ("done", "diverged", "failed", None):
        trial(storage, f"t-{status}", status)
    sweep(storage, "s", *storage.list("trials"))
    previous = {f"trials/t-{status}/checkpoint.prev.pt" for status in ("done", "diverged")}
    assert found(storage) == previous
    before = everything(storage)
    cleaner = clean.Cleaner(storage)
    assert cleaner.remove(cleaner.find()) == 8
    assert everything(storage) == before - previous
    assert found(storage) == set()


def test_cells_of_other_schema_versions(storage, monkeypatch):
    trial(storage, "t1", None)
    part(storage, "trials/t1/cells/latents-1", monkeypatch)
    part(storage, "trials/t1/cells/latents-0", monkeypatch, version=1)
    part(storage, "baselines/b/planning-0", monkeypatch, version=1)
    storage.write_bytes("trials/t1/cells/latents-2.parquet", b"torn: done again, not garbage")
    old = {"trials/t1/cells/latents-0", "baselines/b/planning-0"}
    assert found(storage) == {f"{key}.{ext}" for key in old for ext in ("parquet", "json")}


def test_what_somebody_owns_is_left_alone(storage, monkeypatch):
    for name in ("t1", "t2"):
        trial(storage, name)
        temporary(storage, f"trials/{name}/.checkpoint.pt.0123abcd.tmp")
        part(storage, f"trials/{name}/cells/latents-0", monkeypatch, version=1)
    sweep(storage, "busy", "t1")
    sweep(storage, "idle", "t2")
    driver = Lease(storage, "sweeps/busy/owner.json")
    driver.acquire()
    assert {key.split("/")[1] for key in found(storage)} == {"t2"}
    mine = Lease(storage, "trials/t2/owner.json")
    mine.acquire()
    assert found(storage) == {"trials/t2/.checkpoint.pt.0123abcd.tmp"}
    with pytest.raises(ValueError, match="wait until no driver runs, now busy"):
        clean.Cleaner(storage, unnamed_trials=True)
    mine.release()
    driver.release()
    assert {key.split("/")[1] for key in found(storage)} == {"t1", "t2"}


def test_a_trial_taken_between_looking_and_removing_is_spared(storage):
    trial(storage, "t1")
    cleaner = clean.Cleaner(storage)
    pieces = cleaner.find()
    assert pieces
    Lease(storage, "trials/t1/owner.json").acquire()
    assert cleaner.remove(pieces) == 0
    assert storage.exists("trials/t1/checkpoint.prev.pt")


def test_parts_of_datasets(storage):
    for name in ("whole", "begun", "given-up", "busy"):
        storage.write_bytes(f"datasets/{name}.parts/0.h5", b"part")
    for name in ("whole.h5", "whole.json"):
        storage.write_bytes(f"datasets/{name}", b"{}")
    for name in ("given-up", "busy"):
        temporary(storage, f"datasets/{name}.parts/0.h5")
    Lease(storage, "datasets/busy.owner.json").acquire()
    assert found(storage) == {"datasets/whole.parts/0.h5", "datasets/given-up.parts/0.h5"}
    cleaner = clean.Cleaner(storage)
    cleaner.remove(cleaner.find())
    assert not storage.path("datasets/whole.parts").exists()
    assert storage.exists("datasets/whole.h5") and storage.exists("datasets/begun.parts/0.h5")


def test_temporary_files_of_dead_writers(storage):
    temporary(storage, "trials/t1/.done.json.0123abcd.tmp")
    temporary(storage, "trials/t1/.done.json.0123abce.tmp", age_s=60)
    temporary(storage, "trials/t1/.mine")
    temporary(storage, "photos/.holiday.jpg.0123abcd.tmp")  # in the folder, but none of ours
    assert found(storage) == {"trials/t1/.done.json.0123abcd.tmp"}


def test_whole_trials_go_only_when_asked(storage):
    trial(storage, "named")
    trial(storage, "unnamed")
    trial(storage, "owned")
    sweep(storage, "s", "named")
    Lease(storage, "trials/owned/owner.json").acquire()
    assert not any("curve" in key for key in found(storage))
    cleaner = clean.Cleaner(storage, unnamed_trials=True)
    pieces = cleaner.find()
    keys = [piece.key for piece in pieces if piece.reason == clean.TRIAL]
    assert keys[0] == "trials/unnamed/done.json" and len(keys) == 4
    cleaner.remove(pieces)
    assert storage.list("trials") == ["named", "owned"]
    assert storage.exists("trials/named/checkpoint.pt")
    storage.write_bytes("sweeps/torn/sweep.json", b"{")
    with pytest.raises(ValueError, match="is torn"):
        clean.Cleaner(storage)


def test_one_sweep_only(storage):
    trial(storage, "t1")
    trial(storage, "t2")
    sweep(storage, "lambda-two_room-quick", "t1")
    sweep(storage, "other", "t2")
    only = found(storage, sweep="lambda-two_room-quick")
    assert only == {"trials/t1/checkpoint.prev.pt"}


def test_the_command_line(storage, capsys):
    trial(storage, "t1")
    sweep(storage, "s", "t1")
    root = ["--storage", str(storage.root)]
    before = everything(storage)
    assert clean.main([*root, "--dry-run"]) == 0
    assert "would remove 1 previous checkpoints, 0.0 MB: trials/t1/" in capsys.readouterr().out
    assert everything(storage) == before
    assert clean.main(["s", *root]) == 0
    assert "are free now" in capsys.readouterr().out
    assert len(everything(storage)) == len(before) - 1
    assert clean.main(root) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert clean.main(["s", "--unnamed-trials", *root]) == 2
    assert clean.main(["nosuch", *root]) == 2
