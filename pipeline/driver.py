"""One invocation over one sweep: data, trials, cells, tables, MLflow, report, in this order.

Every station looks first at what the storage already holds, so it can be killed anywhere and started
again. Nothing here computes a result; it decides what is missing and who does it.
"""

import signal
import sys
import time
from typing import Any

import numpy as np

from pipeline import record
from pipeline.cells import (
    Cell,
    Manifests,
    cell_status,
    dataset_name,
    ensure_manifests,
    floor_cells,
    is_done,
    known_manifests,
    trial_cells,
)
from pipeline.delivery import Delivery
from pipeline.inputs import check_inputs
from pipeline.options import ALREADY_RUNNING, COMPLETE, SOME_FAILED, Options
from pipeline.plan_times import has_times, time_plans
from pipeline.progress import Beacon, Progress, duration
from pipeline.redact import redact
from pipeline.reporting import make_report
from pipeline.results import write_tables
from pipeline.search.record import read_stopped
from pipeline.spec import Spec
from pipeline.stop import Stop
from pipeline.storage import Storage, read_marker
from pipeline.storage.lease import Heartbeat, Lease
from pipeline.tables import BrokenTable, check_table
from pipeline.tracking import tracking_uri
from pipeline.training import Training
from pipeline.trial import git_commit
from reports.formats import PAGE


def run(spec: Spec, storage: Storage, options: Options) -> int:
    """Brings the sweep as far as it goes; returns the exit code.

    Raises:
        ValueError: the sweep was begun otherwise, the dataset does not fit, or no cluster answers.
    """
    tracking_uri(storage)
    check_inputs(spec, here_only=options.address is None and options.train)
    lease = Lease(storage, f"sweeps/{spec.folder}/owner.json")
    owner = lease.acquire()
    if owner is not None:
        print(
            f"error: sweep {spec.folder} is already running (pid {owner['pid']} on {owner['host']}); "
            "wait for it, or stop it first",
            file=sys.stderr,
        )
        return ALREADY_RUNNING
    stop = Stop()
    with Heartbeat(lease, stop.lose):
        return _Invocation(record.merge(spec, storage), storage, options, lease, stop).run()


class _Invocation:
    """One run of the driver; holds what its stations share."""

    def __init__(
        self, spec: Spec, storage: Storage, options: Options, lease: Lease, stop: Stop
    ) -> None:
        self.storage = storage
        self.options = options
        self.folder = f"sweeps/{spec.folder}"
        self.started = time.time()
        self.commit = git_commit()
        self.stop = stop
        self.undone: list[dict[str, Any]] = []
        self.training = Training(spec, storage, options, lease, self.commit, stop)

    @property
    def spec(self) -> Spec:
        """The sweep, as far as its search has brought it."""
        return self.training.spec

    def run(self) -> int:
        record.write(self.spec, self.storage, self.options.command, self.commit)
        self._forget("unavailable")
        if self.options.retry_failed:
            self._forget("failed")
        if self._is_complete():
            self._print_end(fresh=False)
            return self._exit_code()
        self._write_state("running")
        delivery = Delivery(self.spec, self.storage, self.commit)
        manifests: Manifests = {}
        if self.spec.trials:
            self._connect()
            try:
                self._prepare_data()
            except KeyboardInterrupt:
                return self._interrupted(delivery)
            manifests = self._train_and_evaluate(delivery)
        else:
            self.stop.listen()
        if self.spec.times and not self.stop():
            time_plans(self.spec, self.storage, self.stop)
        if self.stop():
            return self._interrupted(delivery)
        self._finish(manifests, delivery)
        self._print_end(fresh=True, page=delivery.page)
        return self._exit_code()

    def _train_and_evaluate(self, delivery: Delivery) -> Manifests:
        """Brings trials and cells as far as they go; returns the pairs they are planned on."""
        with (
            self._progress() as progress,
            Beacon(progress, self.storage, f"{self.folder}/driver.json"),
        ):
            manifests = {} if self.stop() else self._manifests(progress)
            if self.options.train and not self.stop():
                self.training.train(progress, delivery.tracker, manifests)
            if not self.stop():
                self.training.evaluate(progress, manifests, self.options.only)
        return manifests

    def _connect(self) -> None:
        from pipeline.cluster import check_versions, connect

        connect(self.options.address)
        self.stop.listen()
        if self.options.address is not None:
            check_versions()
        self.training.share_out()

    def _prepare_data(self) -> None:
        """Collects or checks every dataset the trials name."""
        from pipeline.datasets.collected import check_dataset, ensure_dataset

        if not self.spec.needs_data:
            return
        wanted = {dataset_name(t.config, self.spec.fingerprint): t.config for t in self.spec.trials}
        for name, config in wanted.items():
            if config.data.dataset is None:
                key = ensure_dataset(config, self.storage, self.training.num_workers(), self.stop)
                self.training.hashes[name] = check_dataset(self.storage, key)
                self.training.datasets[name] = self.storage.where(key)
            else:
                assert self.spec.fingerprint is not None
                self.training.hashes[name] = self.spec.fingerprint
                self.training.datasets[name] = config.data.dataset
        stored = self.storage.read_json(f"{self.folder}/datasets.json") or {}
        for name, found in self.training.hashes.items():
            if stored.get(name, found) != found:
                raise ValueError(
                    f"dataset {self.training.datasets[name]} has content hash {found}, but this sweep began "
                    f"with {stored[name]}: restore that file, or start a sweep of another name"
                )
        self.storage.write_json(f"{self.folder}/datasets.json", stored | self.training.hashes)

    def _progress(self) -> Progress:
        names, done = {}, {}
        for trial in self.spec.trials:
            names[trial.trial_id] = self.spec.label(trial)
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None:
                done[trial.trial_id] = marker["status"]
        known = [world.estimate.get("evaluate_s") for world in self.spec.worlds]
        evaluate_s = None if None in known else float(np.mean([s for s in known if s is not None]))
        return Progress(names, done, evaluate_s, self.training.num_workers())

    def _manifests(self, progress: Progress) -> Manifests:
        return ensure_manifests(
            self.spec, self.storage, self.training.datasets, self.training.hashes, progress.pairs
        )

    def _cells(self, manifests: Manifests) -> dict[str | None, list[Cell]]:
        cells: dict[str | None, list[Cell]] = {None: floor_cells(self.spec, manifests)}
        stopped = read_stopped(self.storage, self.spec.folder)
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None and marker["status"] == "done" and trial.trial_id not in stopped:
                cells[trial.trial_id] = trial_cells(self.spec, trial, manifests)
        return cells

    def _finish(self, manifests: Manifests, delivery: Delivery) -> None:
        """Tables, report, MLflow's final state, and the state that makes the sweep complete."""
        cells = self._cells(manifests)
        tracker = delivery.tracker
        run_ids = delivery.deliver_curves(
            [self.training.task(t, tracker) for t in self.spec.trials]
        )
        tables = write_tables(
            self.spec,
            self.storage,
            cells,
            lambda c: cell_status(self.storage, c),
            run_ids,
            self.training.values,
        )
        make_report(self.storage.at(self.folder))
        delivery.finish(tables, [f"{self.folder}/{PAGE}", f"{self.folder}/sweep.json"])
        undone = tables["cells"].filter(tables["cells"]["status"] != "done")
        self.undone = [] if self.options.only else undone.to_dicts()
        whole = not (self.undone or delivery.failed or self.options.only)
        expected = [cell.cell_id for owned in cells.values() for cell in owned]
        self._write_state("complete" if whole else "partial", expected)

    def _forget(self, status: str) -> None:
        """Trials that ended so are tried again."""
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None and marker["status"] == status:
                self.storage.remove(f"trials/{trial.trial_id}/done.json")

    def _write_state(self, state: str, cells: list[str] | None = None) -> None:
        self.storage.write_json(
            f"{self.folder}/state.json",
            {
                "state": state,
                "trials": [t.trial_id for t in self.spec.trials],
                "cells": cells or [],
                "search": self.spec.search.model_dump(mode="json"),
            },
        )

    def _is_complete(self) -> bool:
        """Whether an earlier invocation finished exactly this; checks every marker and part again."""
        state = self.storage.read_json(f"{self.folder}/state.json")
        if state is None or state["state"] != "complete":
            return False
        if state["trials"] != [t.trial_id for t in self.spec.trials]:
            return False
        if state.get("search") != self.spec.search.model_dump(mode="json"):
            return False
        stopped = read_stopped(self.storage, self.spec.folder)
        ids = [t.trial_id for t in self.spec.trials if t.trial_id not in stopped]
        if any(read_marker(self.storage, trial_id) is None for trial_id in ids):
            return False
        if not (self.storage.exists(f"{self.folder}/{PAGE}") and self._tables_whole()):
            return False
        if not has_times(self.spec, self.storage):
            return False
        try:
            manifests = known_manifests(self.spec, self.storage)
        except ValueError:
            return False
        cells = self._cells(manifests)
        expected = [cell.cell_id for owned in cells.values() for cell in owned]
        return sorted(expected) == sorted(state["cells"]) and all(
            is_done(self.storage, cell) for owned in cells.values() for cell in owned
        )

    def _tables_whole(self) -> bool:
        from pipeline.stages.stability import INPUTS, OUTPUTS

        folder = self.storage.at(self.folder)
        try:
            for name in ("attempts", "examples", *INPUTS, *OUTPUTS):
                check_table(folder, name)
        except (BrokenTable, FileNotFoundError) as error:
            print(f"warning: {error}; the tables are made again", file=sys.stderr)
            return False
        return True

    def _interrupted(self, delivery: Delivery) -> int:
        if self.stop.signal is None:
            print(
                f"error: another driver took over sweep {self.spec.folder}: this one was not heard of "
                "for too long (see `python -m pipeline.status`)",
                file=sys.stderr,
            )
            return ALREADY_RUNNING
        self._write_state("interrupted")
        name = signal.Signals(self.stop.signal).name
        print(
            f"\n{name}: stopped; everything finished is kept. Go on with the same command:\n"
            f"  {self.options.command}",
            file=sys.stderr,
        )
        delivery.interrupt()
        return 128 + self.stop.signal

    def _exit_code(self) -> int:
        markers = [read_marker(self.storage, t.trial_id) or {} for t in self.spec.trials]
        failed = self.undone or any(marker.get("status") == "failed" for marker in markers)
        return SOME_FAILED if failed else COMPLETE

    def _unavailable(self) -> list[str]:
        """Why trials could not run here, each reason once."""
        markers = [read_marker(self.storage, t.trial_id) or {} for t in self.spec.trials]
        reasons = [str(m["error"]) for m in markers if m.get("status") == "unavailable"]
        return list(dict.fromkeys(reasons))

    def _page(self) -> str:
        """Where the report is, and how to look at it if that is a bucket."""
        if self.storage.is_local:
            return f"{self.storage.where(self.folder)}/{PAGE}"
        name, where = self.spec.folder, self.storage.uri
        return f"python -m pipeline.report {name} --storage {where} --out ."

    def _print_end(self, fresh: bool, page: str = "") -> None:
        statuses = [
            (read_marker(self.storage, t.trial_id) or {"status": "pending"})["status"]
            for t in self.spec.trials
        ]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
        took = f"in {duration(time.time() - self.started)}" if fresh else "nothing was missing"
        root = self.storage.where(self.folder)
        uri = redact(tracking_uri(self.storage)).rstrip("/")
        served = uri.startswith("http")
        lines = [
            f"sweep    {self.spec.folder}: {counts or 'plans timed'}, {took}",
            f"report   {self._page()}",
            f"tables   {root}/tables",
            f"mlflow   {f'{uri}/{page}' if served else f'mlflow ui --backend-store-uri {uri}'}",
        ]
        if page and not served:
            lines.append(f"         then http://127.0.0.1:5000/{page}")
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id) or {}
            if marker.get("status") == "failed":
                lines.append(f"failed   {self.spec.label(trial)}: {marker['error']}")
        for reason in self._unavailable():
            lines.append(f"missing  {reason}; then the same command")
        for row in self.undone:
            where = f"{row['env']} {row['point'] or 'floors'} seed={row['seed']} {row['stage']}"
            lines.append(f"failed   {where}: {row['error'] or 'not evaluated'}")
        if "failed" in statuses:
            lines.append(f"next     {self.options.command} --retry failed")
        print("\n".join(lines))
