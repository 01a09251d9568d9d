"""What MLflow is told of a sweep. Nothing here can stop one: what cannot be delivered waits on storage."""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import polars as pl

from pipeline import record
from pipeline.redact import redact
from pipeline.results import final_metrics, trial_curve
from pipeline.search.record import read_stopped
from pipeline.spec import Spec
from pipeline.storage import Storage, read_marker
from pipeline.tracking import (
    Tracker,
    finish_sweep,
    finish_trial,
    last_steps,
    log_curve,
    open_sweep,
    open_trial,
    tracking_uri,
)
from pipeline.trial import TrialTask, mlflow_params, mlflow_tags, run_name

T = TypeVar("T")


class Delivery:
    """The sweep's side of MLflow; opened from a thread, because importing MLflow takes seconds."""

    def __init__(self, spec: Spec, storage: Storage, commit: str | None) -> None:
        self._spec = spec
        self._storage = storage
        self._commit = commit
        self._run_ids: dict[str, str] = {}
        self.failed = False
        pool = ThreadPoolExecutor(1)
        self._opening: Future[Tracker] = pool.submit(self._open)
        pool.shutdown(wait=False)

    def _open(self) -> Tracker:
        tags = {
            "lewm.question": self._spec.question,
            "lewm.git_commit": self._commit or "unknown",
            "lewm.env": ",".join(self._spec.envs),
            "lewm.profile": self._spec.profile,
        }
        storage = self._storage
        artifacts = storage.path("mlartifacts").as_uri() if storage.is_local else None
        return open_sweep(tracking_uri(storage), artifacts, self._spec.folder, tags)

    @property
    def tracker(self) -> Tracker | None:
        """The open parent run, or None where MLflow cannot be reached."""
        return self._try(self._opening.result)

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
        for task in tasks:
            marker = read_marker(self._storage, task.trial_id) or stopped.get(task.trial_id)
            if marker is None:
                continue
            reused = str(marker.get("finished_at") or begun_at) < begun_at
            tags = mlflow_tags(task) | ({"lewm.reused": "true"} if reused else {})
            run_id = open_trial(tracker, task.trial_id, run_name(task), mlflow_params(task), tags)
            curve = trial_curve(self._storage, task.trial_id)
            log_curve(tracker, run_id, curve, last_steps(tracker, run_id))
            self._run_ids[task.trial_id] = run_id

    def finish(self, tables: Mapping[str, pl.DataFrame], keys: Sequence[str]) -> None:
        """Final metrics and end states of all runs; verdict and some of the sweep's files on the parent."""
        tracker = self.tracker
        if tracker is not None:
            self._try(lambda: self._finish(tracker, tables, keys))

    def _finish(
        self, tracker: Tracker, tables: Mapping[str, pl.DataFrame], keys: Sequence[str]
    ) -> None:
        rows: list[dict[str, Any]] = tables["trials"].to_dicts()
        for row in rows:
            run_id = self._run_ids.get(row["trial_id"])
            if run_id is not None:
                finals = final_metrics(tables, row["trial_id"])
                finish_trial(tracker, run_id, row["status"], finals, {"lewm.status": row["status"]})
        verdict = tables["summary"].filter(pl.col("quantity") == "verdict")["text"].drop_nulls()
        with ExitStack() as open_files:
            files = [
                open_files.enter_context(self._storage.reading(key)) / key.rsplit("/", 1)[-1]
                for key in keys
            ]
            finish_sweep(tracker, files, {"mlflow.note.content": " ".join(verdict)}, "FINISHED")
