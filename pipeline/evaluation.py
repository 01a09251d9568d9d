"""What is left to evaluate, and who does it: one Ray task per trial, all its missing cells.

A cell is trial x stage x one resolved stage config. Its Parquet part is written first, its marker
(`<stage>-<cell_id>.json`) last; a cell without a whole part and marker is done again.
"""

from collections.abc import Callable, Mapping, Sequence

from pipeline.cell_runner import EvaluateTask, run_cells
from pipeline.cells import Cell, Manifests, dataset_name, floor_cells, is_done, trial_cells
from pipeline.search.record import read_stopped
from pipeline.spec import Spec, Trial
from pipeline.storage import Storage, read_marker

RETRIES = 3
"""How often Ray starts a task again after process death, node loss or an I/O error."""


def missing_tasks(
    spec: Spec,
    storage: Storage,
    manifests: Manifests,
    datasets: Mapping[str, str],
    only: Sequence[str] | None = None,
) -> list[EvaluateTask]:
    """What is still to evaluate: floors first, then trial by trial."""
    root = storage.uri
    missing = [c for c in floor_cells(spec, manifests) if not is_done(storage, c)]
    tasks = []
    if only is None or "planning" in only:
        for env in spec.envs:
            floors = tuple(cell for cell in missing if cell.env == env)
            if floors:
                tasks.append(EvaluateTask(root, None, None, None, floors))
    stopped = read_stopped(storage, spec.folder)
    for trial in spec.trials:
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


def run_tasks(
    tasks: Sequence[EvaluateTask],
    share: Mapping[str, float],
    on_done: Callable[[EvaluateTask, str | None], None],
    stopped: Callable[[], bool],
) -> None:
    """Runs tasks on the connected Ray, each with a trial's share; lost workers are tried again.

    Args:
        on_done: called with each task and its error line, or None.
        stopped: polled; once true, what has not started is cancelled.
    """
    import ray

    remote = ray.remote(run_cells).options(
        num_cpus=share["CPU"],
        num_gpus=share.get("GPU", 0.0),
        max_retries=RETRIES,
        retry_exceptions=[OSError],
    )
    waiting = {remote.remote(task): task for task in tasks}
    while waiting:
        if stopped():
            for reference in waiting:
                ray.cancel(reference, force=True)
            return
        ready, _ = ray.wait(list(waiting), timeout=0.5)
        for reference in ready:
            task = waiting.pop(reference)
            error = None
            try:
                ray.get(reference)
            except ray.exceptions.RayError as failure:
                error = str(failure).strip().splitlines()[-1]
            on_done(task, error)
