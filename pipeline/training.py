"""What a driver has workers do: train trials, round by round, and run cells."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline import record
from pipeline.cell_runner import EvaluateTask
from pipeline.cells import Manifests, dataset_name, is_done, trial_cells
from pipeline.evaluation import RETRIES, Evaluations, missing_tasks, trial_task
from pipeline.options import Options
from pipeline.progress import Progress
from pipeline.redact import redact
from pipeline.results import trial_metrics
from pipeline.search.checks import objective_stage
from pipeline.search.record import read_objective, read_suggestions
from pipeline.search.rounds import Rounds
from pipeline.search.settings import Bisect, Optuna
from pipeline.spec import Spec, Trial
from pipeline.stop import Stop
from pipeline.storage import Storage, read_marker
from pipeline.storage.lease import Lease
from pipeline.tracking import Tracker
from pipeline.trial import OUT_OF_MEMORY, PAUSED, TrialTask


class Training:
    """The workers' side of one invocation; `spec` grows with the rounds of a search.

    Args:
        lease: of the sweep; its token marks what this driver's workers own.
        commit: of the code.
    """

    def __init__(
        self,
        spec: Spec,
        storage: Storage,
        options: Options,
        lease: Lease,
        commit: str | None,
        stop: Stop,
    ) -> None:
        self.spec = spec
        self.storage = storage
        self.options = options
        self.lease = lease
        self.commit = commit
        self.stop = stop
        self.datasets: dict[str, str] = {}
        self.hashes: dict[str, str] = {}
        self.share: dict[str, float] = {}
        self.values: dict[str, float | None] = {}
        self.evaluations = Evaluations()
        self.early: set[str] = set()

    def share_out(self) -> None:
        """CPU and GPU of a trial on what is connected."""
        from pipeline.cluster import resources_per_trial

        configs = [trial.config for trial in self.spec.trials]
        units = {world.estimate.get("unit") for world in self.spec.worlds}
        self.share = resources_per_trial(
            max(config.optim.num_threads for config in configs),
            self.options.per_gpu,
            self.options.per_node,
            wants_gpu="gpu" in units and configs[0].run.device == "auto",
            memory_gb=max(known) if (known := self._memory_gb()) else None,
        )

    def _memory_gb(self) -> list[float]:
        """What trials of the sweep's worlds are known to take of a node's memory."""
        found = (world.estimate.get("memory_gb") for world in self.spec.worlds)
        return [float(value) for value in found if value is not None]

    def num_workers(self) -> int:
        """How many trials run at once on what is connected."""
        import ray

        there = ray.cluster_resources()
        rooms = [there.get(name, 0.0) / share for name, share in self.share.items()]
        return max(int(min(rooms) + 1e-6), 1)

    def task(self, trial: Trial, tracker: Tracker | None) -> TrialTask:
        """What a worker needs to run a trial."""
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
            void=(self.lease.replaced["token"],) if self.lease.replaced else (),
            code=code_hash(),
            packed=self.options.packed,
        )

    def train(self, progress: Progress, tracker: Tracker | None, manifests: Manifests) -> None:
        """Brings every trial to its end: all of a grid, or round after round of a search."""
        from pipeline.cluster import spans_machines

        if tracker is not None and tracker.is_of_one_machine and spans_machines():
            tracker = None  # only the driver reaches it, and delivers at the end
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

        def on_report(trial_id: str, metrics: dict[str, Any]) -> None:
            progress.step(trial_id, metrics)
            if metrics.get("status") == "done":
                self._evaluate_early(trial_id, progress, manifests)
            self.evaluations.look(progress.cell_done)

        left = [t for t in trials if read_marker(self.storage, t.trial_id) is None]
        while left:
            from pipeline.tuner import run_trials

            progress.phase = "training"
            tasks = [
                replace(self.task(t, tracker), until=until, objective=self._objective(t, manifests))
                for t in left
            ]
            ends = run_trials(tasks, self.share, on_report, self.stop, RETRIES)
            if self.stop():
                self.evaluations.cancel()
                return
            left = [t for t in left if ends.get(t.trial_id) == OUT_OF_MEMORY]
            if left:
                self._pack_less(progress)
            self._give_up(tasks, ends, progress)

    def _evaluate_early(self, trial_id: str, progress: Progress, manifests: Manifests) -> None:
        """Has a trained trial evaluated as soon as no training wants its place."""
        if self.spec.search.is_adaptive:  # whose trials evaluate what the search needs themselves
            return
        only = self.options.only
        try:
            tasks = missing_tasks(
                self.spec, self.storage, manifests, self.datasets, only, {trial_id}
            )
        except OSError:  # the end of the sweep looks again; training goes on meanwhile
            return
        self.evaluations.start(tasks, self.share)
        self.early.add(trial_id)
        progress.add_cells(len(tasks))

    def _objective(self, trial: Trial, manifests: Manifests) -> EvaluateTask | None:
        """The cells that an adaptive search needs of a trial, which runs them itself."""
        search = self.spec.search
        if not isinstance(search, Bisect | Optuna):
            return None
        stage = objective_stage(search.objective)
        cells = tuple(c for c in trial_cells(self.spec, trial, manifests) if c.stage == stage)
        return trial_task(self.spec, self.storage, trial, self.datasets, cells)

    def _judge(
        self, spec: Spec, trials: Sequence[Trial], progress: Progress, manifests: Manifests
    ) -> dict[str, float | None]:
        """The search's objective of trials that are done; cells that are missing are run now."""
        search = spec.search
        assert isinstance(search, Bisect | Optuna)
        stage = objective_stage(search.objective)
        self.spec = spec
        if stage is not None:
            self.evaluate(progress, manifests, [stage], {t.trial_id for t in trials})
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
        self.share_out()
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

    def evaluate(
        self,
        progress: Progress,
        manifests: Manifests,
        only: Sequence[str] | None = None,
        trials: Collection[str] | None = None,
    ) -> None:
        """Runs every cell that is missing, or those of some stages and trials."""
        known = missing_tasks(self.spec, self.storage, manifests, self.datasets, only, trials)
        tasks = [task for task in known if task.trial_id not in self.early]
        self.evaluations.start(tasks, self.share)
        progress.add_cells(len(tasks))
        progress.begin_cells()
        self.evaluations.finish(progress.cell_done, self.stop)
