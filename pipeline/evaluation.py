"""What is left to evaluate, and who does it: one Ray task per trial, all its missing cells.

A cell is trial x stage x one resolved stage config. Its Parquet part is written first, its marker
(`<stage>-<cell_id>.json`) last; a cell without a whole part and marker is done again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pipeline.cell_runner import EvaluateTask, run_cells
from pipeline.cells import Cell, Manifests, dataset_name, floor_cells, is_done, trial_cells
from pipeline.search.record import read_stopped
from pipeline.spec import Spec, Trial
from pipeline.storage import Storage, read_marker

OnDone = Callable[[str | None], None]
"""Called with the error line of a task that ended, or None."""

RETRIES = 3
"""How often Ray starts a task again after process death, node loss or an I/O error."""


def missing_tasks(
    spec: Spec,
    storage: Storage,
    manifests: Manifests,
    datasets: Mapping[str, str],
    only: Sequence[str] | None = None,
    trials: Collection[str] | None = None,
) -> list[EvaluateTask]:
    """What is still to evaluate: floors first, then trial by trial; of `trials` only, without floors."""
    root = storage.uri
    tasks = []
    if trials is None and (only is None or "planning" in only):
        missing = [c for c in floor_cells(spec, manifests) if not is_done(storage, c)]
        for env in spec.envs:
            floors = tuple(cell for cell in missing if cell.env == env)
            if floors:
                tasks.append(EvaluateTask(root, None, None, None, floors))
    stopped = read_stopped(storage, spec.folder)
    for trial in spec.trials:
        if trials is not None and trial.trial_id not in trials:
            continue
        marker = read_marker(storage, trial.trial_id)
        if marker is None or marker["status"] != "done" or trial.trial_id in stopped:
            continue
        cells = tuple(
            cell
            for cell in trial_cells(spec, trial, manifests)
            if (only is None or cell.stage in only) and not is_done(storage, cell)
        )
        if cells:
            tasks.append(trial_task(spec, storage, trial, datasets, cells))
    return tasks


def trial_task(
    spec: Spec,
    storage: Storage,
    trial: Trial,
    datasets: Mapping[str, str],
    cells: tuple[Cell, ...],
) -> EvaluateTask:
    """What a worker needs to run cells of a trial."""
    data = datasets.get(dataset_name(trial.config, spec.fingerprint))
    config = trial.config.model_dump_json()
    return EvaluateTask(storage.uri, data, config, trial.trial_id, cells)


class Evaluations:
    """Tasks on the connected Ray; lost workers are tried again."""

    def __init__(self) -> None:
        self._running: list[Any] = []

    def start(self, tasks: Sequence[EvaluateTask], share: Mapping[str, float]) -> None:
        """Has each task run as soon as a trial's share is free."""
        import ray

        remote = ray.remote(run_cells).options(
            num_cpus=share["CPU"],
            num_gpus=share.get("GPU", 0.0),
            max_retries=RETRIES,
            retry_exceptions=[OSError],
        )
        self._running += [remote.remote(task) for task in tasks]

    def look(self, on_done: OnDone, timeout_s: float = 0.0) -> None:
        """Tells of those that have ended, waiting for the first at most so long."""
        import ray

        if not self._running:
            return
        ready, _ = ray.wait(self._running, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(self._running, num_returns=len(self._running), timeout=0)
        for reference in ready:
            self._running.remove(reference)
            error = None
            try:
                ray.get(reference)
            except ray.exceptions.RayError as failure:
                error = str(failure).strip().splitlines()[-1]
            on_done(error)

    def finish(self, on_done: OnDone, stopped: Callable[[], bool]) -> None:
        """Waits for all; once `stopped()`, cancels what is left."""
        while self._running and not stopped():
            self.look(on_done, timeout_s=0.5)
        self.cancel()

    def cancel(self) -> None:
        """Ends what runs and what waits."""
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
