"""The invented sweep of `synthetic_sweep` on storage, as a driver would leave it, told to MLflow."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from synthetic_sweep import META, make_tables

from lewm.overrides import make_config
from pipeline.delivery import Delivery
from pipeline.resolve import resolve
from pipeline.results import trial_curve
from pipeline.spec import Request, Spec
from pipeline.stages import stability
from pipeline.storage import Storage
from pipeline.tables import write_table
from pipeline.tracking import CURVE_METRICS, Tracker
from pipeline.trial import TrialTask

COMMIT = "0123456789abcdef0123456789abcdef01234567+"

STARTED, FINISHED = "2026-11-22T21:00:00+00:00", "2026-11-22T21:05:00+00:00"


def invent(root: Path, **choices: Any) -> tuple[Spec, Storage, dict[str, pl.DataFrame]]:
    """A storage with markers, curves, tables and page of an invented λ sweep; `choices` of its tables."""
    tables = make_tables(**choices)
    ended = pl.lit(FINISHED).alias("finished_at")
    tables["trials"] = tables["trials"].with_columns(ended)
    tables |= stability.run(tables)
    spec, storage = resolve(Request("lambda")), Storage(str(root))
    own = {key: curve for (key,), curve in tables["curves"].group_by("trial_id")}
    for row in tables["trials"].iter_rows(named=True):
        if row["status"] == "pending":
            continue
        key = f"trials/{row['trial_id']}"
        times = {
            "started_at": "2026-11-22T21:00:00+00:00",
            "finished_at": "2026-11-22T21:05:00+00:00",
        }
        marker = {k: row[k] for k in ("status", "error", "diverged_step", "num_steps")}
        storage.write_json(f"{key}/done.json", marker | times)
        curve = own.get(row["trial_id"], tables["curves"].clear()).sort("step")
        lines = (json.dumps(r) for r in curve.select("step", *CURVE_METRICS).to_dicts())
        storage.write_bytes(f"{key}/curve.jsonl", "".join(f"{line}\n" for line in lines).encode())
    folder = f"sweeps/{spec.folder}"
    storage.write_json(f"{folder}/sweep.json", META | {"begun_at": "2026-11-22T20:00:00+00:00"})
    storage.write_bytes(f"{folder}/report/index.html", b"<!doctype html><h1>The report</h1>")
    for name, frame in tables.items():
        write_table(storage.at(folder), name, frame)
    return spec, storage, tables


def tasks(storage: Storage, tables: dict[str, pl.DataFrame], tracker: Tracker) -> list[TrialTask]:
    """What the driver would hand to workers, of every trial."""
    return [
        TrialTask(
            trial_id=row["trial_id"],
            config_json=make_config(
                {"loss.lam": row["lam"], "seed": row["seed"], "data.env": row["env"]}
            ).model_dump_json(),
            point=row["point"],
            storage=storage.uri,
            dataset="",
            dataset_hash="3f9a1c0b77de",
            profile=row["profile"],
            git_commit=COMMIT,
            tracker=tracker,
        )
        for row in tables["trials"].iter_rows(named=True)
    ]


def deliver(spec: Spec, storage: Storage, tables: dict[str, pl.DataFrame]) -> Tracker:
    """Everything that the driver tells MLflow at the end of a sweep."""
    delivery = Delivery(spec, storage, COMMIT)
    tracker = delivery.tracker
    assert tracker is not None
    delivery.deliver_curves(tasks(storage, tables, tracker))
    folder = f"sweeps/{spec.folder}"
    delivery.finish(tables, [f"{folder}/report/index.html", f"{folder}/sweep.json"])
    assert not delivery.failed
    return tracker


def num_points(storage: Storage, trial_id: str) -> int:
    """How many values the curve of a trial on storage has."""
    rows = trial_curve(storage, trial_id)
    return sum(row.get(name) is not None for row in rows for name in CURVE_METRICS)
