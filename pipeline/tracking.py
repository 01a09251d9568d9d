"""MLflow: one parent run per sweep, one child run per trial, found again by their tags.

Runs are opened by id through `MlflowClient`; nothing depends on MLflow's notion of an active run, so a
resumed trial continues its run. A step is logged once: whatever the server already has is skipped.
Of a sweep of a thousand trials all runs are asked for in one request, not one by one.
"""

import base64
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlparse

from pipeline.storage import Storage

EXPERIMENT = "lewm"
BATCH = 900
"""Metrics per request; MLflow takes at most 1,000."""
MOST_RUNS, MOST_PARAMS = 1000, 100
"""Runs per page of an answer; params per request."""
GATHER_S, MOST_PAUSE_S = 5.0, 60.0
"""Rows are gathered this long before a request; after failed ones the pause doubles."""
CURVE_METRICS = ("val_pred_loss", "loss", "pred_loss", "sigreg_loss", "grad_norm", "lr", "mean_std")
"""The first is the one that MLflow's comparison page draws before anything is chosen there."""
MEASURED_SELDOM = ("val_pred_loss", "mean_std")
CHARTED = 500
"""Steps of a curve that MLflow gets one by one; see `is_charted`."""
END_STATES = {
    "done": "FINISHED",
    "stopped": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "unavailable": "KILLED",
}
"""MLflow's word for how a trial ended; the tag `lewm.status` holds ours."""
LONGEST_TAG, LONGEST_PARAM = 5000, 6000
"""Characters a server takes; experiments' tags are the shortest."""
KIND_TAGS = {"mlflow.experimentKind": "custom_model_development"}
WORKFLOW = "workflowType=machine_learning"
"""Without these MLflow shows its pages for language-model applications, which are empty here."""
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

    def page(self, path: str, query: str = "") -> str:
        """The address, on whatever server, of a page of the experiment."""
        return (
            f"#/experiments/{self.experiment_id}/{path}?{'&'.join(filter(None, (WORKFLOW, query)))}"
        )

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


def open_sweep(
    uri: str,
    artifacts: str | None,
    sweep: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any] | None = None,
) -> Tracker:
    """Creates or finds the database, the experiment and the sweep's parent run.

    The driver calls this before any worker starts: several processes that open a fresh SQLite file at
    once would fail.

    Args:
        artifacts: where a database without a server keeps artifacts; None: MLflow's default.
        tags: of the parent run; those it has already are brought up to date.
        params: what all its trials share.
    """
    client = _client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        location = artifacts if uri.startswith("sqlite:") else None
        experiment_id = client.create_experiment(
            EXPERIMENT, artifact_location=location, tags=KIND_TAGS
        )
    else:
        experiment_id = experiment.experiment_id
        for key in KIND_TAGS.keys() - experiment.tags.keys():
            client.set_experiment_tag(experiment_id, key, KIND_TAGS[key])
    query = f"tags.`lewm.sweep` = '{sweep}' and tags.`lewm.kind` = 'sweep'"
    found = client.search_runs([experiment_id], query, max_results=1)
    all_tags = {"lewm.sweep": sweep, "lewm.kind": "sweep", **tags}
    if found:
        parent = found[0]
        client.update_run(parent.info.run_id, status="RUNNING")
    else:
        parent = client.create_run(experiment_id, run_name=sweep, tags=all_tags)
    _log(client, parent, params=params or {}, tags=all_tags)
    return Tracker(uri, experiment_id, parent.info.run_id, sweep)


def _log(
    client: Any,
    run: Any,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str | None] | None = None,
) -> None:
    """Gives a run what it has not yet, in one request; a tag of None is taken away.

    Metrics are set when new or changed, at step 0. Params never change once they are there.
    """
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    known = run.data
    fresh = [
        Metric(key, float(value), now, 0)
        for key, value in (metrics or {}).items()
        if known.metrics.get(key) != float(value)
    ]
    new_params = [
        Param(key, str(value)[:LONGEST_PARAM])
        for key, value in (params or {}).items()
        if key not in known.params
    ]
    wanted = {k: None if v is None else v[:LONGEST_TAG] for k, v in (tags or {}).items()}
    new_tags = [RunTag(k, v) for k, v in wanted.items() if v is not None and known.tags.get(k) != v]
    if fresh or new_params or new_tags:
        first, more = new_params[:MOST_PARAMS], new_params[MOST_PARAMS:]
        client.log_batch(run.info.run_id, metrics=fresh, params=first, tags=new_tags)
        for start in range(0, len(more), MOST_PARAMS):
            client.log_batch(run.info.run_id, params=more[start : start + MOST_PARAMS])
    for key in [k for k, v in wanted.items() if v is None and k in known.tags]:
        client.delete_tag(run.info.run_id, key)


def trial_runs(tracker: Tracker) -> dict[str, Any]:
    """The sweep's child runs by trial id, as MLflow's entities with metrics, params and tags."""
    client = tracker.client
    query = f"tags.`lewm.sweep` = '{tracker.sweep}' and tags.`lewm.kind` = 'trial'"
    found: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_runs(
            [tracker.experiment_id], query, max_results=MOST_RUNS, page_token=token
        )
        found |= {run.data.tags["lewm.trial_id"]: run for run in page}
        token = page.token
        if not token:
            return found


def open_trial(
    tracker: Tracker, trial_id: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """Creates or finds the child run of a trial in this sweep, as one under way; returns its run id."""
    client = tracker.client
    query = f"tags.`lewm.sweep` = '{tracker.sweep}' and tags.`lewm.trial_id` = '{trial_id}'"
    found = client.search_runs([tracker.experiment_id], query, max_results=1)
    if found and found[0].info.status != "RUNNING":
        client.update_run(found[0].info.run_id, status="RUNNING")
    run = create_trial(tracker, trial_id, name, params, tags, known=found[0] if found else None)
    return str(run.info.run_id)


def create_trial(
    tracker: Tracker,
    trial_id: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    known: Any | None,
    begun_ms: int | None = None,
) -> Any:
    """The child run of a trial, made unless it is `known`, with its params and tags.

    Args:
        begun_ms: when the trial began; None: now.
    """
    client = tracker.client
    if known is None:
        all_tags = {
            "mlflow.parentRunId": tracker.parent_id,
            "lewm.sweep": tracker.sweep,
            "lewm.kind": "trial",
            "lewm.trial_id": trial_id,
            **tags,
        }
        known = client.create_run(
            tracker.experiment_id, start_time=begun_ms, run_name=name, tags=all_tags
        )
    _log(client, known, params=params, tags=tags)
    return known


def log_curve(
    tracker: Tracker,
    run_id: str,
    rows: Sequence[Row],
    last: dict[str, int],
    *,
    ended: bool = False,
) -> None:
    """Delivers the charted rows of a training curve that the run does not have yet, whole steps in order.

    MLflow takes a tenth of a millisecond per point, so long curves are thinned; storage has them whole.

    Args:
        rows: one per step with `step` and any of `CURVE_METRICS`; `at`, in milliseconds, is when it
            was first tried. MLflow keeps one of equal points, so a repeated request adds nothing.
        last: per metric the last step the run holds; brought up to date as requests succeed.
        ended: the rows are the whole curve of a trial that has ended, and its last losses go along.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client = tracker.client
    end = rows[-1]["step"] if ended and rows else math.inf
    fresh = [
        Metric(f"train/{name}", float(row[name]), row.get("at", now), int(row["step"]))
        for row in rows
        for name in CURVE_METRICS
        if row.get(name) is not None
        and row["step"] > last.get(name, -1)
        and (name in MEASURED_SELDOM or is_charted(row["step"]) or row["step"] >= end - 1)
    ]
    for start in range(0, len(fresh), BATCH):
        batch = fresh[start : start + BATCH]
        client.log_batch(run_id, metrics=batch)
        for metric in batch:
            last[metric.key.removeprefix("train/")] = metric.step


def is_charted(step: int) -> bool:
    """Whether MLflow gets this step: every one below 500, every 10th below 5,000, every 100th below ..."""
    stride = 1
    while step >= CHARTED * stride:
        stride *= 10
    return step % stride == 0


def last_steps(run: Any) -> dict[str, int]:
    """Per curve metric the last step that a run, as MLflow's entity, holds."""
    steps = {metric.key: metric.step for metric in run.data._metric_objs}
    return {name: steps[f"train/{name}"] for name in CURVE_METRICS if f"train/{name}" in steps}


def finish_trial(
    tracker: Tracker,
    run: Any,
    status: str,
    finals: Mapping[str, float],
    tags: Mapping[str, str | None],
    ended_ms: int | None = None,
) -> None:
    """Sets a run's metrics that are new or changed, its tags, and its end state.

    Args:
        run: MLflow's entity, no older than what was last logged to it.
        status: the trial's.
        ended_ms: when the trial ended; None: now.
    """
    client = tracker.client
    _log(client, run, metrics=finals, tags={"lewm.status": status, **tags})
    end = END_STATES.get(status, "KILLED")
    if run.info.status != end:
        client.set_terminated(run.info.run_id, status=end, end_time=ended_ms)


def finish_sweep(
    tracker: Tracker,
    artifacts: Mapping[str | None, Sequence[Any]],
    metrics: Mapping[str, float],
    tags: Mapping[str, str | None],
) -> None:
    """Gives the parent run the sweep's files, key numbers and tags, and closes it.

    Args:
        artifacts: local files by the folder they go to; None is the uppermost.
    """
    client = tracker.client
    for folder, paths in artifacts.items():
        for path in paths:
            client.log_artifact(tracker.parent_id, str(path), folder)
    _log(client, client.get_run(tracker.parent_id), metrics=metrics, tags=tags)
    client.set_terminated(tracker.parent_id, status="FINISHED")


def stop_sweep(tracker: Tracker) -> None:
    """Closes the parent run and the runs of trials under way as killed; the next invocation goes on."""
    client = tracker.client
    for run in trial_runs(tracker).values():
        if run.info.status == "RUNNING":
            _log(client, run, tags={"lewm.status": "interrupted"})
            client.set_terminated(run.info.run_id, status="KILLED")
    client.set_tag(tracker.parent_id, "lewm.status", "interrupted")
    client.set_terminated(tracker.parent_id, status="KILLED")


def save_view(tracker: Tracker, key: str, name: str, state: Mapping[str, Any]) -> str:
    """Saves a view of the runs page under the experiment's *Views*; returns its part of the address.

    The format is that of MLflow's own pages, which keep a saved view as a tag of the experiment.

    Args:
        key: names the view in addresses; a view of the same key is replaced.
        state: facets of the search and state of the page, as the page itself would save them.
    """
    text = json.dumps(state, separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    now = int(time.time() * 1000)
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    value = json.dumps(view, separators=(",", ":"))
    if len(value) > LONGEST_TAG:
        raise ValueError(f"the saved view {key} has {len(value)} characters")
    tag = f"mlflow.sharedViewState.{key}"
    tracker.client.set_experiment_tag(tracker.experiment_id, tag, value)
    return tracker.page("runs", f"viewStateShareKey={quote(key)}")


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
        self._status: str | None = None
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def add(self, rows: Sequence[Row]) -> None:
        """Queues rows for delivery."""
        now = int(time.time() * 1000)
        with self._lock:
            self._rows.extend({**row, "at": now} for row in rows)
        self._wake.set()

    def close(self, status: str | None = None, timeout_s: float = 30.0) -> None:
        """Delivers what is queued, waiting at most `timeout_s`, and how the trial ended, if it did."""
        self._status = status
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        tracker = self._open[0]
        run_id: str | None = None
        last: dict[str, int] = {}
        pause = GATHER_S
        ended = False
        while not (self._closing.is_set() and not self._rows and ended):
            self._wake.wait()
            self._closing.wait(pause)
            self._wake.clear()
            with self._lock:
                rows, self._rows = self._rows, []
            try:
                if run_id is None:
                    run_id = open_trial(*self._open)
                    last = last_steps(tracker.client.get_run(run_id))
                log_curve(tracker, run_id, rows, last)
                ended = self._closing.is_set()
                if ended and self._status is not None:
                    finish_trial(tracker, tracker.client.get_run(run_id), self._status, {}, {})
                self.error, pause = None, GATHER_S
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                if self._closing.is_set():
                    return
                run_id, pause = None, min(pause * 2, MOST_PAUSE_S)  # what did arrive is read again
                with self._lock:
                    self._rows = [*rows, *self._rows]
                self._wake.set()
