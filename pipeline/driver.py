"""One invocation over one sweep: data, trials, cells, tables, MLflow, report, in this order.

Every station looks first at what the storage already holds, so it can be killed anywhere and started
again. Nothing here computes a result; it decides what is missing and who does it.
"""

import os
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lewm.config import Config
from pipeline import evaluate, record
from pipeline.evaluate import Cell, dataset_name
from pipeline.progress import Progress, duration
from pipeline.spec import Spec, Trial
from pipeline.storage import Heartbeat, Lease, Storage, read_marker
from pipeline.tracking import Tracker, tracking_uri
from pipeline.trial import (
    TrialTask,
    git_commit,
    mlflow_params,
    mlflow_tags,
    run_name,
)

COMPLETE, SOME_FAILED, BAD_INPUT, ALREADY_RUNNING = 0, 1, 2, 3
RETRIES = 3
"""How often Ray starts a trial again after process death, node loss or an I/O error."""


@dataclass(frozen=True)
class Options:
    """How a sweep runs, as opposed to what it computes."""

    command: str
    address: str | None = None
    retry_failed: bool = False
    only: tuple[str, ...] | None = None
    train: bool = True


class Stop:
    """Set by SIGINT or SIGTERM; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.listen()

    def listen(self) -> None:
        """Takes the signals over; again after `ray.init`, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None


def run(spec: Spec, storage: Storage, options: Options) -> int:
    """Brings the sweep as far as it goes; returns the exit code.

    Raises:
        ValueError: the sweep was begun otherwise, the dataset does not fit, or no cluster answers.
    """
    lease = Lease(storage, f"sweeps/{spec.folder}/owner.json")
    owner = lease.acquire()
    if owner is not None:
        print(
            f"error: sweep {spec.folder} is already running (pid {owner['pid']} on {owner['host']}); "
            "wait for it, or stop it first",
            file=sys.stderr,
        )
        return ALREADY_RUNNING
    with Heartbeat(lease):
        return _Invocation(record.merge(spec, storage), storage, options).run()


class _Invocation:
    """One run of the driver; holds what its stations share."""

    def __init__(self, spec: Spec, storage: Storage, options: Options) -> None:
        self.spec = spec
        self.storage = storage
        self.options = options
        self.folder = f"sweeps/{spec.folder}"
        self.started = time.time()
        self.commit = git_commit()
        self.stop = Stop()
        self.datasets: dict[str, Path] = {}
        self.hashes: dict[str, str] = {}
        self.share: dict[str, float] = {}

    def run(self) -> int:
        record.write(self.spec, self.storage, self.options.command, self.commit)
        if self.options.retry_failed:
            self._forget_failed()
        if self._is_complete():
            self._print_end(fresh=False)
            return self._exit_code()
        self._write_state("running")
        with ThreadPoolExecutor(1) as background:
            tracker_future = background.submit(self._open_tracker)
            self._connect()
            try:
                self._prepare_data()
            except KeyboardInterrupt:
                return self._interrupted()
            tracker = self._result_of(tracker_future)
        with self._progress() as progress:
            if self.options.train and not self.stop():
                self._train(progress, tracker)
            manifests = {} if self.stop() else self._manifests()
            if not self.stop():
                self._evaluate(progress, manifests)
        if self.stop():
            return self._interrupted()
        self._finish(manifests, tracker)
        self._print_end(fresh=True)
        return self._exit_code()

    def _connect(self) -> None:
        from pipeline.cluster import connect, resources_per_trial

        connect(self.options.address)
        self.stop.listen()
        threads = max(trial.config.optim.num_threads for trial in self.spec.trials)
        self.share = resources_per_trial(threads)

    def _workers(self) -> int:
        import ray

        return max(int(ray.cluster_resources().get("CPU", 1) // self.share["CPU"]), 1)

    def _prepare_data(self) -> None:
        """Collects or checks every dataset the trials name."""
        from pipeline.collect import check_dataset, ensure_dataset

        wanted = {dataset_name(t.config, self.spec.fingerprint): t.config for t in self.spec.trials}
        for name, config in wanted.items():
            if config.data.dataset is None:
                path = ensure_dataset(config, self.storage.root, self._workers(), self.stop)
                self.hashes[name] = check_dataset(path)
            else:
                path = Path(config.data.dataset)
                check_fits(path, config)
                assert self.spec.fingerprint is not None
                self.hashes[name] = self.spec.fingerprint
            self.datasets[name] = path
        stored = self.storage.read_json(f"{self.folder}/datasets.json") or {}
        for name, found in self.hashes.items():
            if stored.get(name, found) != found:
                raise ValueError(
                    f"dataset {self.datasets[name]} has content hash {found}, but this sweep began "
                    f"with {stored[name]}: restore that file, or start a sweep of another name"
                )
        self.storage.write_json(f"{self.folder}/datasets.json", stored | self.hashes)

    def _open_tracker(self) -> Tracker:
        from pipeline.tracking import open_sweep

        tags = {
            "lewm.question": self.spec.question,
            "lewm.git_commit": self.commit or "unknown",
            "lewm.env": self.spec.env,
            "lewm.profile": self.spec.profile,
        }
        artifacts = self.storage.root / "mlartifacts"
        return open_sweep(tracking_uri(self.storage.root), artifacts, self.spec.folder, tags)

    def _result_of(self, future: "Future[Tracker]") -> Tracker | None:
        try:
            return future.result()
        except Exception as error:
            print(
                f"warning: MLflow cannot be reached ({error}); curves stay on storage, and the next "
                "invocation delivers them",
                file=sys.stderr,
            )
            return None

    def _task(self, trial: Trial, tracker: Tracker | None) -> TrialTask:
        name = dataset_name(trial.config, self.spec.fingerprint)
        return TrialTask(
            trial_id=trial.trial_id,
            config_json=trial.config.model_dump_json(),
            point=trial.point,
            storage=str(self.storage.root),
            dataset=str(self.datasets[name]),
            dataset_hash=self.hashes[name],
            profile=self.spec.profile,
            git_commit=self.commit,
            tracker=tracker,
        )

    def _progress(self) -> Progress:
        names, done = {}, {}
        for trial in self.spec.trials:
            names[trial.trial_id] = f"{trial.point} seed={trial.config.seed}".strip()
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None:
                done[trial.trial_id] = marker["status"]
        return Progress(names, done, self.spec.estimate.get("evaluate_s"), self._workers())

    def _train(self, progress: Progress, tracker: Tracker | None) -> None:
        """Trains every trial without a marker, each as one Ray Tune trial."""
        tasks = [
            self._task(trial, tracker)
            for trial in self.spec.trials
            if read_marker(self.storage, trial.trial_id) is None
        ]
        if not tasks:
            return
        from pipeline.search import run_grid

        errors = run_grid(tasks, self.share, progress.step, self.stop, RETRIES)
        for task in tasks:
            if not self.stop() and read_marker(self.storage, task.trial_id) is None:
                error = errors.get(task.trial_id, "ended without a word")
                self.storage.write_json(
                    f"{task.key}/done.json",
                    {"status": "failed", "error": f"after {RETRIES} retries: {error}"},
                )

    def _manifests(self) -> evaluate.Manifests:
        return evaluate.ensure_manifests(self.spec, self.storage, self.datasets)

    def _cells(self, manifests: evaluate.Manifests) -> dict[str | None, list[Cell]]:
        cells: dict[str | None, list[Cell]] = {None: evaluate.floor_cells(self.spec, manifests)}
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None and marker["status"] == "done":
                cells[trial.trial_id] = evaluate.trial_cells(self.spec, trial, manifests)
        return cells

    def _evaluate(self, progress: Progress, manifests: evaluate.Manifests) -> None:
        tasks = evaluate.missing_tasks(
            self.spec, self.storage, manifests, self.datasets, self.options.only
        )
        if not tasks:
            return
        progress.begin_cells(len(tasks))
        evaluate.run_tasks(tasks, self.share, lambda _, error: progress.cell_done(error), self.stop)

    def _finish(self, manifests: evaluate.Manifests, tracker: Tracker | None) -> None:
        """Tables, MLflow's final state, report, and the marker that makes the sweep complete."""
        from pipeline.report import make_report
        from pipeline.results import final_metrics, write_tables

        cells = self._cells(manifests)
        run_ids = self._deliver_curves(tracker)
        tables = write_tables(
            self.spec,
            self.storage,
            cells,
            lambda cell: evaluate.cell_status(self.storage, cell),
            run_ids,
        )
        page = make_report(self.storage.path(self.folder))
        if tracker is not None:
            from pipeline.tracking import finish_sweep, finish_trial

            for row in tables["trials"].iter_rows(named=True):
                tags = {"lewm.status": row["status"]}
                finals = final_metrics(tables, row["trial_id"])
                finish_trial(tracker, run_ids[row["trial_id"]], row["status"], finals, tags)
            verdict = tables["summary"].filter(tables["summary"]["quantity"] == "verdict")["text"]
            finish_sweep(
                tracker,
                [page, self.storage.path(f"{self.folder}/sweep.json")],
                {"mlflow.note.content": " ".join(text for text in verdict if text)},
                "FINISHED",
            )
        expected = [cell.cell_id for owned in cells.values() for cell in owned]
        whole = tracker is not None and self.options.only is None
        self._write_state("complete" if whole else "partial", expected)

    def _deliver_curves(self, tracker: Tracker | None) -> dict[str, str]:
        """One MLflow run per trial with its whole curve, whoever trained it; run ids by trial."""
        if tracker is None:
            return {}
        from pipeline.results import trial_curve
        from pipeline.tracking import last_steps, log_curve, open_trial

        run_ids = {}
        begun_at = record.begun_at(self.storage, self.folder)
        for trial in self.spec.trials:
            task = self._task(trial, tracker)
            marker = read_marker(self.storage, trial.trial_id)
            finished = (marker or {}).get("finished_at")
            reused = finished is not None and finished < begun_at
            tags = mlflow_tags(task) | ({"lewm.reused": "true"} if reused else {})
            run_id = open_trial(tracker, trial.trial_id, run_name(task), mlflow_params(task), tags)
            curve = trial_curve(self.storage, trial.trial_id)
            log_curve(tracker, run_id, curve, last_steps(tracker, run_id))
            run_ids[trial.trial_id] = run_id
        return run_ids

    def _forget_failed(self) -> None:
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None and marker["status"] == "failed":
                self.storage.path(f"trials/{trial.trial_id}/done.json").unlink()

    def _write_state(self, state: str, cells: list[str] | None = None) -> None:
        self.storage.write_json(
            f"{self.folder}/state.json",
            {
                "state": state,
                "trials": [t.trial_id for t in self.spec.trials],
                "cells": cells or [],
            },
        )

    def _is_complete(self) -> bool:
        """Whether an earlier invocation finished exactly this; checks every marker and part again."""
        state = self.storage.read_json(f"{self.folder}/state.json")
        if state is None or state["state"] != "complete":
            return False
        if state["trials"] != [t.trial_id for t in self.spec.trials]:
            return False
        if any(read_marker(self.storage, t.trial_id) is None for t in self.spec.trials):
            return False
        if not all(
            self.storage.exists(f"{self.folder}/{f}") for f in ("report/index.html", "tables")
        ):
            return False
        try:
            manifests = evaluate.known_manifests(self.spec, self.storage)
        except ValueError:
            return False
        cells = self._cells(manifests)
        expected = [cell.cell_id for owned in cells.values() for cell in owned]
        return sorted(expected) == sorted(state["cells"]) and all(
            evaluate.is_done(self.storage, cell) for owned in cells.values() for cell in owned
        )

    def _interrupted(self) -> int:
        assert self.stop.signal is not None
        self._write_state("interrupted")
        name = signal.Signals(self.stop.signal).name
        print(
            f"\n{name}: stopped; everything finished is kept. Go on with the same command:\n"
            f"  {self.options.command}",
            file=sys.stderr,
        )
        return 128 + self.stop.signal

    def _exit_code(self) -> int:
        markers = [read_marker(self.storage, t.trial_id) or {} for t in self.spec.trials]
        failed = any(marker.get("status") == "failed" for marker in markers)
        return SOME_FAILED if failed else COMPLETE

    def _print_end(self, fresh: bool) -> None:
        statuses = [
            (read_marker(self.storage, t.trial_id) or {"status": "pending"})["status"]
            for t in self.spec.trials
        ]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
        took = f"in {duration(time.time() - self.started)}" if fresh else "nothing was missing"
        root = self.storage.path(self.folder)
        uri = tracking_uri(self.storage.root)
        lines = [
            f"sweep    {self.spec.folder}: {counts}, {took}",
            f"report   {root / 'report' / 'index.html'}",
            f"tables   {root / 'tables'}",
            f"mlflow   mlflow ui --backend-store-uri {uri}",
        ]
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id) or {}
            if marker.get("status") == "failed":
                lines.append(f"failed   {trial.point} seed={trial.config.seed}: {marker['error']}")
        if "failed" in statuses:
            lines.append(f"next     {self.options.command} --retry failed")
        print("\n".join(lines))


def check_fits(path: Path, config: Config) -> None:
    """Refuses a named dataset whose frames or actions are not those of the config.

    Raises:
        ValueError: one line with what is expected and what the file has.
    """
    from lewm.data.episodes import EpisodeFile
    from lewm.envs import make_env

    with EpisodeFile(path) as episodes:
        if episodes.image_size != config.model.image_size:
            raise ValueError(
                f"dataset {path} has frames of {episodes.image_size} px, the profile wants "
                f"{config.model.image_size}: --set model.image_size={episodes.image_size}"
            )
        action_dim = make_env(config.data.env).action_dim
        if episodes.action_dim != action_dim:
            raise ValueError(
                f"dataset {path} has {episodes.action_dim}-d actions, {config.data.env} takes "
                f"{action_dim}-d ones"
            )
