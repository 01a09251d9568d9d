"""MLflow: one parent run per sweep, one child run per trial, found again by their tags.

Runs are opened by id through `MlflowClient`; nothing depends on MLflow's notion of an active run, so a
resumed trial continues its run. A step is logged once: whatever the server already has is skipped.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from pipeline.storage import Storage

EXPERIMENT = "lewm"
BATCH = 900
"""Metrics per request; MLflow takes at most 1,000."""
GATHER_S, MOST_PAUSE_S = 5.0, 60.0
"""Rows are gathered this long before a request; after failed ones the pause doubles."""
CURVE_METRICS = ("loss", "pred_loss", "sigreg_loss", "val_pred_loss", "grad_norm", "lr", "mean_std")
Row = Mapping[str, Any]


def tracking_uri(storage: Storage) -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite file in the storage (absolute, as MLflow wants it).

    Raises:
        ValueError: the storage is a bucket, which cannot hold a database, and no server is named.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given and not storage.is_local:
        raise ValueError(
            f"storage {storage.uri} cannot hold MLflow's database: set MLFLOW_TRACKING_URI to a "
            "tracking server, or to sqlite:////absolute/path.db on the driver's machine"
        )
    return given or f"sqlite:///{storage.root / 'mlflow.db'}"


@dataclass(frozen=True)
class Tracker:
    """Where the runs of one sweep are kept; plain data, so it travels to workers."""

    uri: str
    experiment_id: str
    parent_id: str
    sweep: str

    @property
    def is_of_one_machine(self) -> bool:
        """Whether only one machine reaches it: a database file, or a server on loopback."""
        host = urlparse(self.uri).hostname or ""
        return self.uri.startswith("sqlite:") or host == "localhost" or host.startswith("127.")

    @property
    def client(self) -> Any:
        """A fresh MLflow client."""
        return _client(self.uri)


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def open_sweep(uri: str, artifacts: str | None, sweep: str, tags: Mapping[str, str]) -> Tracker:
    """Creates or finds the database, the experiment and the sweep's parent run.

    The driver calls this before any worker starts: several processes that open a fresh SQLite file at
    once would fail.

    Args:
        artifacts: where a database without a server keeps artifacts; None: MLflow's default.
    """
    client = _client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        location = artifacts if uri.startswith("sqlite:") else None
        experiment_id = client.create_experiment(EXPERIMENT, artifact_location=location)
    else:
        experiment_id = experiment.experiment_id
    query = f"tags.`lewm.sweep` = '{sweep}' and tags.`lewm.kind` = 'sweep'"
    parent = _find(client, experiment_id, query)
    if parent is None:
        all_tags = {"lewm.sweep": sweep, "lewm.kind": "sweep", **tags}
        parent = client.create_run(experiment_id, run_name=sweep, tags=all_tags)
    else:
        client.update_run(parent.info.run_id, status="RUNNING")
    return Tracker(uri, experiment_id, parent.info.run_id, sweep)


def _find(client: Any, experiment_id: str, query: str) -> Any | None:
    found = client.search_runs([experiment_id], query, max_results=1)
    return found[0] if found else None


def open_trial(
    tracker: Tracker, trial_id: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """Creates or finds the child run of a trial in this sweep; returns its run id."""
    client = tracker.client
    query = f"tags.`lewm.sweep` = '{tracker.sweep}' and tags.`lewm.trial_id` = '{trial_id}'"
    run = _find(client, tracker.experiment_id, query)
    if run is None:
        all_tags = {
            "mlflow.parentRunId": tracker.parent_id,
            "lewm.sweep": tracker.sweep,
            "lewm.kind": "trial",
            "lewm.trial_id": trial_id,
            **tags,
        }
        run = client.create_run(tracker.experiment_id, run_name=name, tags=all_tags)
    run_id = str(run.info.run_id)
    missing = {k: v for k, v in params.items() if k not in run.data.params}
    if missing:
        from mlflow.entities import Param

        client.log_batch(run_id, params=[Param(k, str(v)) for k, v in missing.items()])
    return run_id


def log_curve(tracker: Tracker, run_id: str, rows: Sequence[Row], last: dict[str, int]) -> None:
    """Delivers the rows of a training curve that the run does not have yet, whole steps in order.

    Args:
        rows: one per step with `step` and any of `CURVE_METRICS`; `at`, in milliseconds, is when it
            was first tried. MLflow keeps one of equal points, so a repeated request adds nothing.
        last: per metric the last step the run holds; brought up to date as requests succeed.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client = tracker.client
    fresh = [
        Metric(f"train/{name}", float(row[name]), row.get("at", now), int(row["step"]))
        for row in rows
        for name in CURVE_METRICS
        if row.get(name) is not None and row["step"] > last.get(name, -1)
    ]
    for start in range(0, len(fresh), BATCH):
        batch = fresh[start : start + BATCH]
        client.log_batch(run_id, metrics=batch)
        for metric in batch:
            last[metric.key.removeprefix("train/")] = metric.step


def last_steps(tracker: Tracker, run_id: str) -> dict[str, int]:
    """Per curve metric the last step that a run holds."""
    client = tracker.client
    logged = client.get_run(run_id).data.metrics
    names = [name for name in CURVE_METRICS if f"train/{name}" in logged]
    histories = {name: client.get_metric_history(run_id, f"train/{name}") for name in names}
    return {name: max(m.step for m in points) for name, points in histories.items() if points}


def finish_trial(
    tracker: Tracker, run_id: str, status: str, finals: Mapping[str, float], tags: Mapping[str, str]
) -> None:
    """Sets `final/...` metrics that are new or changed, tags, and the run's end status."""
    from mlflow.entities import Metric, RunTag

    client = tracker.client
    run = client.get_run(run_id)
    now = int(time.time() * 1000)
    metrics = [
        Metric(key, float(value), now, 0)
        for key, value in finals.items()
        if run.data.metrics.get(key) != float(value)
    ]
    fresh_tags = [RunTag(k, str(v)) for k, v in tags.items() if run.data.tags.get(k) != str(v)]
    for start in range(0, max(len(metrics), 1), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH], tags=fresh_tags)
    end = "FINISHED" if status in ("done", "diverged", "stopped") else "FAILED"
    if run.info.status != end:
        client.set_terminated(run_id, status=end)


def finish_sweep(
    tracker: Tracker, artifacts: Sequence[Any], tags: Mapping[str, str], status: str
) -> None:
    """Attaches the sweep's files to its parent run and closes it."""
    client = tracker.client
    for path in artifacts:
        client.log_artifact(tracker.parent_id, str(path))
    for key, value in tags.items():
        client.set_tag(tracker.parent_id, key, value)
    client.set_terminated(tracker.parent_id, status=status)


class CurveLogger:
    """Delivers a trial's curve from a thread of its own; training never waits for MLflow.

    Only rows of durable checkpoints are handed in, so a resumed trial repeats none. What could not be
    delivered stays in the trial's `curve.jsonl`, and the driver delivers it at the end of the sweep.
    """

    def __init__(
        self,
        tracker: Tracker,
        trial_id: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        self._open = (tracker, trial_id, name, dict(params), dict(tags))
        self._rows: list[Row] = []
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def add(self, rows: Sequence[Row]) -> None:
        """Queues rows for delivery."""
        now = int(time.time() * 1000)
        with self._lock:
            self._rows.extend({**row, "at": now} for row in rows)
        self._wake.set()

    def close(self, timeout_s: float = 30.0) -> None:
        """Delivers what is queued, waiting at most `timeout_s`."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        tracker = self._open[0]
        run_id: str | None = None
        last: dict[str, int] = {}
        pause = GATHER_S
        while not (self._closing.is_set() and not self._rows):
            self._wake.wait()
            self._closing.wait(pause)
            self._wake.clear()
            with self._lock:
                rows, self._rows = self._rows, []
            try:
                if run_id is None:
                    run_id = open_trial(*self._open)
                    last = last_steps(tracker, run_id)
                log_curve(tracker, run_id, rows, last)
                self.error, pause = None, GATHER_S
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                if self._closing.is_set():
                    return
                run_id, pause = None, min(pause * 2, MOST_PAUSE_S)  # what did arrive is read again
                with self._lock:
                    self._rows = [*rows, *self._rows]
                self._wake.set()
