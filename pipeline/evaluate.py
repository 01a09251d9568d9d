"""Evaluates every trained trial of a sweep: one Ray task per trial, all its missing cells.

    python -m pipeline.evaluate lambda                 what is missing of the sweep's stages
    python -m pipeline.evaluate lambda --only probing  one stage
    python -m pipeline.evaluate --weights DIR --env push_t --protocol paper,strict --dataset FILE
                                                       a released checkpoint, without any sweep

A cell is trial x stage x one resolved stage config. Its Parquet part is written first, its marker
(`<stage>-<cell_id>.json`) last; a cell without a whole part and marker is done again.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline import released
from pipeline.arguments import check_stages, parse_assignment
from pipeline.cell_runner import EvaluateTask, run_cells
from pipeline.cells import Cell, Manifests, dataset_name, floor_cells, is_done, trial_cells
from pipeline.options import Options
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Evaluates what is missing of a sweep that was begun, or a released checkpoint "
        "(a folder with config.json and weights.pt); trains nothing.",
        epilog="DIR comes from the authors, or from `python -m lewm.released export`; the latter carries "
        "the units of its actions (normaliser.json) and what it was trained on (training.json).",
    )
    add = parser.add_argument
    add("sweep", nargs="?", help="a sweep's folder name, or the start of it")
    add(
        "--storage",
        default="runs",
        help="where the sweep lives: a folder or s3://… (default: runs)",
    )
    add("--only", help="comma-separated stages")
    add("--address", help="an existing Ray cluster: auto or host:port")
    add("--weights", metavar="DIR", type=Path, help="a released checkpoint instead of a sweep")
    add("--env", help="its environment")
    add("--profile", help="settings of data and planner (default: paper)")
    add("--protocol", metavar="NAME,...", help="protocols to plan under (default: the profile's)")
    add("--manifest", metavar="FILE", type=Path, help="pairs of ours or CLEAR-LeWM's instead")
    add("--dataset", metavar="FILE", help="the file it was trained on, or its URI")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any config field")
    return parser.parse_args(argv)


FOR_WEIGHTS = ("env", "profile", "protocol", "manifest", "dataset", "set")


def _spec_of(args: argparse.Namespace, storage: Storage) -> Spec:
    """The sweep to evaluate: a stored one, or the one made of a released checkpoint."""
    from pipeline import record
    from pipeline.survey import find_sweep

    if args.weights is None:
        for name in FOR_WEIGHTS:
            if getattr(args, name):
                raise ValueError(f"--{name} goes with --weights; a sweep brings its own")
        if args.sweep is None:
            raise ValueError("name a sweep, or a released checkpoint with --weights DIR --env NAME")
        return record.load(storage, find_sweep(args.sweep, storage))
    if args.sweep is not None or args.env is None:
        raise ValueError("--weights needs --env NAME, and no sweep beside it")
    request = released.Request(
        weights=args.weights,
        env=args.env,
        profile=args.profile or "paper",
        protocols=tuple(args.protocol.split(",")) if args.protocol else None,
        dataset=args.dataset,
        manifest=args.manifest,
        overrides=dict(parse_assignment(text) for text in args.set),
    )
    spec, manifest = released.resolve(request)
    storage.check_writable()
    released.store(spec, storage, args.weights, manifest)
    return spec


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    from pipeline import driver

    args = parse(argv)
    command = " ".join(["python -m pipeline.evaluate", *(sys.argv[1:] if argv is None else argv)])
    try:
        storage = Storage(args.storage)
        spec = _spec_of(args, storage)
        only = check_stages(args.only, spec.stages)
        options = Options(command, args.address, only=only, train=False)
        return driver.run(spec, storage, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
