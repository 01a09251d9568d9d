"""What MLflow is told of a sweep. Nothing here can stop one: what cannot be delivered waits on storage."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from pipeline import overview, record
from pipeline.redact import redact
from pipeline.results import final_metrics, trial_curve
from pipeline.search.record import read_stopped
from pipeline.spec import Spec
from pipeline.storage import Storage, read_marker
from pipeline.tables import table_key
from pipeline.tracking import (
    LONGEST_TAG,
    Tracker,
    create_trial,
    finish_sweep,
    finish_trial,
    last_steps,
    log_curve,
    open_sweep,
    save_view,
    stop_sweep,
    tracking_uri,
    trial_runs,
)
from pipeline.trial import TrialTask, mlflow_params, mlflow_tags, run_name

T = TypeVar("T")
REPEATED = ("loss", "pred_loss", "sigreg_loss", "mean_std")
"""Final metrics that a run has already, as the last value of its curve."""
CONNECTIONS = 8
"""Trials told of at once to a tracking server."""
LARGEST_TABLE = 20_000_000
"""Bytes; a larger table stays on storage only."""


class Delivery:
    """The sweep's side of MLflow; opened from a thread, because importing MLflow takes seconds."""

    def __init__(self, spec: Spec, storage: Storage, commit: str | None) -> None:
        self._spec = spec
        self._storage = storage
        self._commit = commit or "unknown"
        self._run_ids: dict[str, str] = {}
        self.failed = False
        pool = ThreadPoolExecutor(1)
        self._opening: Future[Tracker] = pool.submit(self._open)
        pool.shutdown(wait=False)

    @property
    def command(self) -> str:
        """The command that began the sweep, without secrets."""
        stored = self._storage.read_json(f"sweeps/{self._spec.folder}/sweep.json") or {}
        return redact(str(stored.get("command", "")))

    def _open(self) -> Tracker:
        spec = self._spec
        tags = {
            "lewm.question": spec.question,
            "lewm.git_commit": self._commit,
            "lewm.env": ",".join(spec.envs),
            "lewm.profile": spec.profile,
            "lewm.status": "running",
            "mlflow.source.name": self.command,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": self._commit.rstrip("+"),
        }
        base = {
            key: ", ".join(map(str, value)) if isinstance(value, list) else value
            for key, value in spec.base.items()
            if value not in ({}, [], None)
        }
        methods = ",".join(dict.fromkeys(world.method for world in spec.worlds))
        params = {"method": methods, "env": tags["lewm.env"], "profile": spec.profile, **base}
        uri = tracking_uri(self._storage)
        return open_sweep(uri, _artifacts(self._storage, uri), spec.folder, tags, params)

    @property
    def tracker(self) -> Tracker | None:
        """The open parent run, or None where MLflow cannot be reached."""
        return self._try(self._opening.result)

    @property
    def page(self) -> str:
        """Where a server shows the parent run, without the server's name; empty if none is reached."""
        tracker = self.tracker
        return "" if tracker is None else tracker.page(f"runs/{tracker.parent_id}")

    def _try(self, call: Callable[[], T]) -> T | None:
        """MLflow raises errors of many libraries; none of them may cost a sweep its results."""
        if self.failed:
            return None
        try:
            return call()
        except Exception as error:
            self.failed = True
            reason = redact((str(error).strip().splitlines() or [type(error).__name__])[0])
            print(
                f"warning: MLflow cannot be reached ({reason}); curves stay on storage, and the same "
                "command delivers them later",
                file=sys.stderr,
            )
            return None

    def deliver_curves(self, tasks: Sequence[TrialTask]) -> dict[str, str]:
        """One run per ended trial with its whole curve, whoever trained it; run ids by trial."""
        tracker = self.tracker
        if tracker is not None:
            self._try(lambda: self._deliver_curves(tracker, tasks))
        return self._run_ids

    def _deliver_curves(self, tracker: Tracker, tasks: Sequence[TrialTask]) -> None:
        begun_at = record.begun_at(self._storage, f"sweeps/{self._spec.folder}")
        stopped = read_stopped(self._storage, self._spec.folder)
        runs = trial_runs(tracker)

        def deliver(task: TrialTask) -> None:
            stop = stopped.get(task.trial_id)
            marker = read_marker(self._storage, task.trial_id) or stop
            if marker is None:
                return
            reused = str(marker.get("finished_at") or begun_at) < begun_at
            tags = mlflow_tags(task) | ({"lewm.reused": "true"} if reused else {})
            tags["lewm.status"] = "stopped" if stop else str(marker["status"])
            run = create_trial(
                tracker,
                task.trial_id,
                run_name(task),
                mlflow_params(task),
                tags,
                known=runs.get(task.trial_id),
                begun_ms=_milliseconds(marker.get("started_at")),
            )
            curve = trial_curve(self._storage, task.trial_id)
            log_curve(tracker, run.info.run_id, curve, last_steps(run), ended=True)
            self._run_ids[task.trial_id] = str(run.info.run_id)

        _for_each(tracker, deliver, tasks)

    def finish(self, tables: Mapping[str, pl.DataFrame], keys: Sequence[str]) -> None:
        """Final metrics and end states of all runs; the sweep's findings and files on the parent.

        Args:
            keys: where the sweep's page and description lie on storage; its tables go with them.
        """
        tracker = self.tracker
        if tracker is not None:
            self._try(lambda: self._finish(tracker, tables, keys))

    def _finish(
        self, tracker: Tracker, tables: Mapping[str, pl.DataFrame], keys: Sequence[str]
    ) -> None:
        self._finish_trials(tracker, tables)
        folder = self._spec.folder
        links = self._links(tracker, tables)
        lacking = overview.missing(tables)
        text = overview.note(tables, self._spec.question, links, self.command)
        tags = {
            "mlflow.note.content": text[:LONGEST_TAG],
            "lewm.status": "incomplete" if lacking else "complete",
            "lewm.missing": "; ".join(lacking) or None,
        }
        with ExitStack() as open_files:

            def local(key: str) -> Path:
                place = open_files.enter_context(self._storage.reading(key))
                return place / key.rsplit("/", 1)[-1]

            paths = [local(f"sweeps/{folder}/{table_key(name)}") for name in sorted(tables)]
            files = {
                None: [local(key) for key in keys],
                "tables": [p for p in paths if p.is_file() and p.stat().st_size <= LARGEST_TABLE],
            }
            finish_sweep(tracker, files, overview.sweep_metrics(tables), tags)

    def _finish_trials(self, tracker: Tracker, tables: Mapping[str, pl.DataFrame]) -> None:
        runs = trial_runs(tracker)
        own = _by_trial(tables)
        rows: list[dict[str, Any]] = tables["trials"].to_dicts()

        def finish(row: dict[str, Any]) -> None:
            trial_id = row["trial_id"]
            finals = final_metrics(own(trial_id), trial_id)
            for name in REPEATED:
                finals.pop(f"final/{name}", None)
            finals |= _lam_metrics(row["lam"])
            error = row["error"]
            tags = {
                "lewm.error": None if error is None else redact(error),
                "mlflow.note.content": overview.trial_note(row),
            }
            ended_ms = _milliseconds(row["finished_at"])
            finish_trial(tracker, runs[trial_id], row["status"], finals, tags, ended_ms)

        _for_each(tracker, finish, [row for row in rows if row["trial_id"] in self._run_ids])

    def _links(self, tracker: Tracker, tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        """Addresses of the report and of two views of the runs, which are saved with them."""
        folder = self._spec.folder
        flat = overview.runs_view(tables, folder, grouped=False)
        grouped = overview.runs_view(tables, folder, grouped=True)
        trials = save_view(tracker, f"{folder}.trials", f"{folder}: trials", flat)
        points = save_view(tracker, f"{folder}.points", f"{folder}: points", grouped)
        return {
            "Report": tracker.page(f"runs/{tracker.parent_id}/artifacts/index.html"),
            "Trials": trials,
            "Points": points,
            "Charts": f"{trials}&compareRunsMode=CHART",
        }

    def interrupt(self) -> None:
        """Says on the parent run that the sweep was stopped before its end, and closes open runs."""
        tracker = self.tracker
        if tracker is not None:
            self._try(lambda: stop_sweep(tracker))


def _artifacts(storage: Storage, uri: str) -> str | None:
    """Where runs keep their files: on storage, else beside the database file, else where the server says."""
    if storage.is_local:
        return storage.path("mlartifacts").as_uri()
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    return None


def _for_each(tracker: Tracker, call: Callable[[T], None], items: Sequence[T]) -> None:
    """Calls for every trial: a server answers several at once, a database file is written one by one."""
    if tracker.uri.startswith("sqlite:"):
        for item in items:
            call(item)
    else:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(call, items))


def _by_trial(
    tables: Mapping[str, pl.DataFrame],
) -> Callable[[str], dict[str, pl.DataFrame]]:
    """A look-up of one trial's rows in each per-trial table, made once for all trials."""
    names = ("curves", "latents", "planning", "probing", "surprise")
    parts = {name: tables[name].partition_by("trial_id", as_dict=True) for name in names}
    none = {name: tables[name].clear() for name in names}
    return lambda trial_id: {name: parts[name].get((trial_id,), none[name]) for name in names}


def _lam_metrics(lam: float | None) -> dict[str, float]:
    """λ as numbers: MLflow sorts params as text, and its charts have no logarithmic axis for them."""
    if lam is None:
        return {}
    return {"lam": lam} | ({"log10_lam": math.log10(lam)} if lam > 0 else {})


def _milliseconds(moment: str | None) -> int | None:
    """An ISO time as milliseconds since 1970."""
    return None if not moment else int(datetime.fromisoformat(moment).timestamp() * 1000)
