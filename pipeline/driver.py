"""One invocation over one sweep: data, trials, cells, tables, MLflow, report, in this order.

Every station looks first at what the storage already holds, so it can be killed anywhere and started
again. Nothing here computes a result; it decides what is missing and who does it.
"""

import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import numpy as np

from pipeline import evaluate, record
from pipeline.cell_runner import EvaluateTask
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
from pipeline.evaluate import RETRIES
from pipeline.inputs import check_inputs
from pipeline.lease import Heartbeat, Lease
from pipeline.progress import Beacon, Progress, duration
from pipeline.redact import redact
from pipeline.report import PAGE, make_report
from pipeline.results import trial_metrics, write_tables
from pipeline.rounds import Rounds
from pipeline.search_checks import objective_stage
from pipeline.search_record import read_objective, read_stopped, read_suggestions
from pipeline.search_settings import Bisect, Optuna
from pipeline.spec import Spec, Trial
from pipeline.storage import Storage, read_marker
from pipeline.tables import BrokenTable, read_part, table_key
from pipeline.tracking import Tracker, tracking_uri
from pipeline.trial import OUT_OF_MEMORY, PAUSED, TrialTask, git_commit

COMPLETE, SOME_FAILED, BAD_INPUT, ALREADY_RUNNING = 0, 1, 2, 3


@dataclass(frozen=True)
class Options:
    """How a sweep runs, as opposed to what it computes."""

    command: str
    address: str | None = None
    retry_failed: bool = False
    only: tuple[str, ...] | None = None
    train: bool = True
    per_gpu: int = 1
    per_node: int | None = None

    @property
    def packed(self) -> int:
        """How many trials share a GPU or a node."""
        return max(self.per_gpu, self.per_node or 1)


class Stop:
    """Set by SIGINT or SIGTERM (a second one ends the process at once), or when the lease is lost."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.taken_over = False
        self.listen()

    def lose(self) -> None:
        """Another driver has the sweep now."""
        self.taken_over = True

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
        return self.signal is not None or self.taken_over


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
        self.spec = spec
        self.storage = storage
        self.options = options
        self.lease = lease
        self.folder = f"sweeps/{spec.folder}"
        self.started = time.time()
        self.commit = git_commit()
        self.stop = stop
        self.datasets: dict[str, str] = {}
        self.hashes: dict[str, str] = {}
        self.share: dict[str, float] = {}
        self.undone: list[dict[str, Any]] = []
        self.values: dict[str, float | None] = {}

    def run(self) -> int:
        record.write(self.spec, self.storage, self.options.command, self.commit)
        if self.options.retry_failed:
            self._forget_failed()
        if self._is_complete():
            self._print_end(fresh=False)
            return self._exit_code()
        self._write_state("running")
        delivery = Delivery(self.spec, self.storage, self.commit)
        self._connect()
        try:
            self._prepare_data()
        except KeyboardInterrupt:
            return self._interrupted()
        with (
            self._progress() as progress,
            Beacon(progress, self.storage, f"{self.folder}/driver.json"),
        ):
            manifests = {} if self.stop() else self._manifests(progress)
            if self.options.train and not self.stop():
                self._train(progress, delivery.tracker, manifests)
            if not self.stop():
                self._evaluate(progress, manifests, self.options.only)
        if self.stop():
            return self._interrupted()
        self._finish(manifests, delivery)
        self._print_end(fresh=True)
        return self._exit_code()

    def _connect(self) -> None:
        from pipeline.cluster import check_versions, connect

        connect(self.options.address)
        self.stop.listen()
        if self.options.address is not None:
            check_versions()
        self._share_out()

    def _share_out(self) -> None:
        """CPU and GPU of a trial on what is connected."""
        from pipeline.cluster import resources_per_trial

        configs = [trial.config for trial in self.spec.trials]
        units = {world.estimate.get("unit") for world in self.spec.worlds}
        self.share = resources_per_trial(
            max(config.optim.num_threads for config in configs),
            self.options.per_gpu,
            self.options.per_node,
            wants_gpu="gpu" in units and configs[0].run.device == "auto",
        )

    def _workers(self) -> int:
        import ray

        there = ray.cluster_resources()
        rooms = [there.get(name, 0.0) / share for name, share in self.share.items()]
        return max(int(min(rooms) + 1e-6), 1)

    def _prepare_data(self) -> None:
        """Collects or checks every dataset the trials name."""
        from pipeline.datasets import check_dataset, ensure_dataset

        if not self.spec.needs_data:
            return
        wanted = {dataset_name(t.config, self.spec.fingerprint): t.config for t in self.spec.trials}
        for name, config in wanted.items():
            if config.data.dataset is None:
                key = ensure_dataset(config, self.storage, self._workers(), self.stop)
                self.hashes[name] = check_dataset(self.storage, key)
                self.datasets[name] = self.storage.where(key)
            else:
                assert self.spec.fingerprint is not None
                self.hashes[name] = self.spec.fingerprint
                self.datasets[name] = config.data.dataset
        stored = self.storage.read_json(f"{self.folder}/datasets.json") or {}
        for name, found in self.hashes.items():
            if stored.get(name, found) != found:
                raise ValueError(
                    f"dataset {self.datasets[name]} has content hash {found}, but this sweep began "
                    f"with {stored[name]}: restore that file, or start a sweep of another name"
                )
        self.storage.write_json(f"{self.folder}/datasets.json", stored | self.hashes)

    def _task(self, trial: Trial, tracker: Tracker | None) -> TrialTask:
        from pipeline.cluster import code_hash

        name = dataset_name(trial.config, self.spec.fingerprint)
        return TrialTask(
            trial_id=trial.trial_id,
            config_json=trial.config.model_dump_json(),
            point=trial.point,
            storage=self.storage.uri,
            dataset=self.datasets.get(name, ""),
            dataset_hash=self.hashes.get(name, "none"),
            profile=self.spec.profile,
            git_commit=self.commit,
            tracker=tracker,
            driver=self.lease.token,
            void=(self.lease.replaced,) if self.lease.replaced else (),
            code=code_hash(),
            packed=self.options.packed,
        )

    def _progress(self) -> Progress:
        names, done = {}, {}
        for trial in self.spec.trials:
            names[trial.trial_id] = self.spec.label(trial)
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None:
                done[trial.trial_id] = marker["status"]
        known = [world.estimate.get("evaluate_s") for world in self.spec.worlds]
        evaluate_s = None if None in known else float(np.mean([s for s in known if s is not None]))
        return Progress(names, done, evaluate_s, self._workers())

    def _train(self, progress: Progress, tracker: Tracker | None, manifests: Manifests) -> None:
        """Brings every trial to its end: all of a grid, or round after round of a search."""
        if self.options.address is not None and tracker is not None and tracker.is_file:
            tracker = (
                None  # a database file belongs to the driver's machine, which delivers at the end
            )
        rounds = Rounds(
            self.storage,
            progress,
            run=lambda trials, until: self._run_trials(trials, until, progress, tracker, manifests),
            judge=lambda spec, trials: self._judge(spec, trials, progress, manifests),
            write=lambda spec: record.write(spec, self.storage, self.options.command, self.commit),
            stop=self.stop,
        )
        self.spec = rounds.train(self.spec)
        if self.spec.search.is_adaptive and not self.stop():
            suggestions = read_suggestions(self.storage, self.spec.folder)
            self.values = rounds.values(self.spec, suggestions)

    def _run_trials(
        self,
        trials: Sequence[Trial],
        until: int | None,
        progress: Progress,
        tracker: Tracker | None,
        manifests: Manifests,
    ) -> None:
        """Trains what has no marker yet, each as one Ray Tune trial; packs less what did not fit."""
        left = [t for t in trials if read_marker(self.storage, t.trial_id) is None]
        while left:
            from pipeline.tuner import run_trials

            progress.phase = "training"
            tasks = [
                replace(
                    self._task(t, tracker), until=until, objective=self._objective(t, manifests)
                )
                for t in left
            ]
            ends = run_trials(tasks, self.share, progress.step, self.stop, RETRIES)
            if self.stop():
                return
            left = [t for t in left if ends.get(t.trial_id) == OUT_OF_MEMORY]
            if left:
                self._pack_less(progress)
            self._give_up(tasks, ends, progress)

    def _objective(self, trial: Trial, manifests: Manifests) -> EvaluateTask | None:
        """The cells that an adaptive search needs of a trial, which runs them itself."""
        search = self.spec.search
        if not isinstance(search, Bisect | Optuna):
            return None
        stage = objective_stage(search.objective)
        cells = tuple(c for c in trial_cells(self.spec, trial, manifests) if c.stage == stage)
        return evaluate.trial_task(self.spec, self.storage, trial, self.datasets, cells)

    def _judge(
        self, spec: Spec, trials: Sequence[Trial], progress: Progress, manifests: Manifests
    ) -> dict[str, float | None]:
        """The search's objective of trials that are done; cells that are missing are run now."""
        search = spec.search
        assert isinstance(search, Bisect | Optuna)
        stage = objective_stage(search.objective)
        self.spec = spec
        if stage is not None:
            self._evaluate(progress, manifests, [stage], {t.trial_id for t in trials})
        values: dict[str, float | None] = {}
        for trial in trials:
            cells = [c for c in trial_cells(spec, trial, manifests) if c.stage == stage]
            metrics = trial_metrics(spec, self.storage, trial, cells)
            failed = any(not is_done(self.storage, cell) for cell in cells)
            label = spec.label(trial)
            values[trial.trial_id] = None if failed else read_objective(search, metrics, label)
        return values

    def _pack_less(self, progress: Progress) -> None:
        """One trial less on each GPU or node: some did not fit into their share of the memory."""
        was, options = self.options.packed, self.options
        per_node = None if options.per_node is None else max(options.per_node - 1, 1)
        self.options = replace(options, per_gpu=max(options.per_gpu - 1, 1), per_node=per_node)
        self._share_out()
        progress.line(
            f"out of memory with {was} trials side by side: going on with {self.options.packed}; "
            "what they had finished is kept"
        )

    def _give_up(
        self, tasks: Sequence[TrialTask], ends: Mapping[str, str], progress: Progress
    ) -> None:
        """Records as failed what has no marker after all retries."""
        for task in tasks:
            unfinished = ends.get(task.trial_id) in (PAUSED, OUT_OF_MEMORY)
            if not unfinished and read_marker(self.storage, task.trial_id) is None:
                error = redact(ends.get(task.trial_id, "ended without a word"))
                self.storage.write_json(
                    f"{task.key}/done.json",
                    {"status": "failed", "error": f"after {RETRIES} retries: {error}"},
                )
                progress.end(task.trial_id, "failed")

    def _manifests(self, progress: Progress) -> Manifests:
        return ensure_manifests(self.spec, self.storage, self.datasets, self.hashes, progress.pairs)

    def _cells(self, manifests: Manifests) -> dict[str | None, list[Cell]]:
        cells: dict[str | None, list[Cell]] = {None: floor_cells(self.spec, manifests)}
        stopped = read_stopped(self.storage, self.spec.folder)
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None and marker["status"] == "done" and trial.trial_id not in stopped:
                cells[trial.trial_id] = trial_cells(self.spec, trial, manifests)
        return cells

    def _evaluate(
        self,
        progress: Progress,
        manifests: Manifests,
        only: Sequence[str] | None = None,
        trials: Collection[str] | None = None,
    ) -> None:
        """Runs every cell that is missing, or those of some stages and trials."""
        tasks = evaluate.missing_tasks(self.spec, self.storage, manifests, self.datasets, only)
        if trials is not None:
            tasks = [task for task in tasks if task.trial_id in trials]
        if not tasks:
            return
        progress.begin_cells(len(tasks))
        evaluate.run_tasks(tasks, self.share, lambda _, error: progress.cell_done(error), self.stop)

    def _finish(self, manifests: Manifests, delivery: Delivery) -> None:
        """Tables, report, MLflow's final state, and the state that makes the sweep complete."""
        cells = self._cells(manifests)
        tracker = delivery.tracker
        run_ids = delivery.deliver_curves([self._task(t, tracker) for t in self.spec.trials])
        tables = write_tables(
            self.spec,
            self.storage,
            cells,
            lambda c: cell_status(self.storage, c),
            run_ids,
            self.values,
        )
        make_report(self.storage.at(self.folder))
        delivery.finish(tables, [f"{self.folder}/{PAGE}", f"{self.folder}/sweep.json"])
        undone = tables["cells"].filter(tables["cells"]["status"] != "done")
        self.undone = [] if self.options.only else undone.to_dicts()
        whole = not (self.undone or delivery.failed or self.options.only)
        expected = [cell.cell_id for owned in cells.values() for cell in owned]
        self._write_state("complete" if whole else "partial", expected)

    def _forget_failed(self) -> None:
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id)
            if marker is not None and marker["status"] == "failed":
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
                read_part(folder, table_key(name))
        except (BrokenTable, FileNotFoundError) as error:
            print(f"warning: {error}; the tables are made again", file=sys.stderr)
            return False
        return True

    def _interrupted(self) -> int:
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
        return 128 + self.stop.signal

    def _exit_code(self) -> int:
        markers = [read_marker(self.storage, t.trial_id) or {} for t in self.spec.trials]
        failed = self.undone or any(marker.get("status") == "failed" for marker in markers)
        return SOME_FAILED if failed else COMPLETE

    def _print_end(self, fresh: bool) -> None:
        statuses = [
            (read_marker(self.storage, t.trial_id) or {"status": "pending"})["status"]
            for t in self.spec.trials
        ]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
        took = f"in {duration(time.time() - self.started)}" if fresh else "nothing was missing"
        root = self.storage.where(self.folder)
        uri = redact(tracking_uri(self.storage))
        lines = [
            f"sweep    {self.spec.folder}: {counts}, {took}",
            f"report   {root}/{PAGE}",
            f"tables   {root}/tables",
            f"mlflow   {uri if uri.startswith('http') else f'mlflow ui --backend-store-uri {uri}'}",
        ]
        for trial in self.spec.trials:
            marker = read_marker(self.storage, trial.trial_id) or {}
            if marker.get("status") == "failed":
                lines.append(f"failed   {self.spec.label(trial)}: {marker['error']}")
        for row in self.undone:
            where = f"{row['env']} {row['point'] or 'floors'} seed={row['seed']} {row['stage']}"
            lines.append(f"failed   {where}: {row['error'] or 'not evaluated'}")
        if "failed" in statuses:
            lines.append(f"next     {self.options.command} --retry failed")
        print("\n".join(lines))
