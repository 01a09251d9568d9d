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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewm.config import Config
from pipeline import released
from pipeline.arguments import parse_assignment
from pipeline.cells import Cell, Manifests, dataset_name, floor_cells, is_done, trial_cells
from pipeline.dataset_cache import local_copy
from pipeline.released import FOLDER
from pipeline.spec import Spec
from pipeline.storage import Storage, read_marker
from pipeline.tables import STAGE_SCHEMAS, write_part

RETRIES = 3
"""How often Ray starts a task again after process death, node loss or an I/O error."""


@dataclass(frozen=True)
class EvaluateTask:
    """What a worker needs to run cells: of one trial, or floors (no trial)."""

    storage: str
    dataset: str | None
    config_json: str | None
    trial_id: str | None
    cells: tuple[Cell, ...]


def run_cells(task: EvaluateTask) -> int:
    """Runs the cells of one task and writes part and marker of each; returns how many failed.

    Raises:
        OSError: storage or dataset could not be read or written (tried again by Ray).
    """
    storage = Storage(task.storage)
    run = _floor_runner(task) if task.trial_id is None else _trial_runner(task, storage)
    failed = 0
    for cell in task.cells:
        started = time.time()
        marker: dict[str, Any] = {"status": "done", "error": None}
        try:
            frame = run(cell)
            write_part(storage.path(cell.part), frame, STAGE_SCHEMAS[cell.stage])
        except OSError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            marker = {"status": "failed", "error": f"{type(error).__name__}: {lines[0]}"}
            failed += 1
        marker |= {"manifest_hash": cell.manifest_hash, "wall_s": time.time() - started}
        storage.write_json(cell.marker, {**marker, "config": cell.config})
    return failed


def _read_manifest(storage: Storage, cell: Cell) -> Any:
    from lewm.manifest import Manifest

    assert cell.manifest is not None
    return Manifest.from_json(storage.path(cell.manifest).read_text())


def _trial_runner(task: EvaluateTask, storage: Storage) -> Callable[[Cell], Any]:
    import torch

    from lewm.data.episodes import EpisodeFile
    from lewm.train import pick_device
    from pipeline.stages import load_stage
    from pipeline.stages.loaded import LoadedTrial

    assert task.config_json is not None
    config = Config.model_validate_json(task.config_json, strict=False)
    torch.set_num_threads(config.optim.num_threads)
    device = pick_device(config.run.device)
    episodes = None if task.dataset is None else EpisodeFile(local_copy(task.dataset))
    method, normaliser = _load(storage.path(f"trials/{task.trial_id}"), device, episodes)
    manifests = {
        (cell.config["protocol"], cell.config["eval_seed"]): _read_manifest(storage, cell)
        for cell in task.cells
        if cell.manifest is not None
    }
    trial = LoadedTrial(
        config=config,
        method=method,
        normaliser=normaliser,
        data=episodes,
        device=device,
        manifests=manifests,
    )
    return lambda cell: load_stage(cell.stage)(trial, cell.config)


def _load(folder: Path, device: Any, episodes: Any) -> tuple[Any, Any]:
    """Method and normaliser of a trial, trained by us or released.

    A release without a normaliser of its own gets one fitted to all actions of the data file, as
    published.
    """
    from lewm.checkpoint import load_method
    from lewm.data.clips import Normaliser
    from lewm.released import load_normaliser, load_released

    if not (folder / FOLDER).is_dir():
        _, method, normaliser, _ = load_method(folder / "checkpoint.pt", device)
        return method, normaliser
    _, method = load_released(folder / FOLDER)
    known = load_normaliser(folder / FOLDER)
    return method.to(device), known or Normaliser.fit(episodes.read("action"))


def _floor_runner(task: EvaluateTask) -> Callable[[Cell], Any]:
    from pipeline.stages.planning import run_floor

    storage = Storage(task.storage)
    return lambda cell: run_floor(cell.config["planner"], _read_manifest(storage, cell))


def missing_tasks(
    spec: Spec,
    storage: Storage,
    manifests: Manifests,
    datasets: Mapping[str, str],
    only: Sequence[str] | None = None,
) -> list[EvaluateTask]:
    """What is still to evaluate: floors first, then trial by trial."""
    root = str(storage.root)
    missing = [c for c in floor_cells(spec, manifests) if not is_done(storage, c)]
    tasks = []
    if only is None or "planning" in only:
        for env in spec.envs:
            floors = tuple(cell for cell in missing if cell.env == env)
            if floors:
                tasks.append(EvaluateTask(root, None, None, None, floors))
    for trial in spec.trials:
        marker = read_marker(storage, trial.trial_id)
        if marker is None or marker["status"] != "done":
            continue
        cells = tuple(
            cell
            for cell in trial_cells(spec, trial, manifests)
            if (only is None or cell.stage in only) and not is_done(storage, cell)
        )
        if cells:
            data = datasets.get(dataset_name(trial.config, spec.fingerprint))
            tasks.append(
                EvaluateTask(root, data, trial.config.model_dump_json(), trial.trial_id, cells)
            )
    return tasks


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
    add("--storage", default="runs", help="where the sweep lives (default: runs)")
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
    from pipeline.report import find_sweep_dir

    if args.weights is None:
        for name in FOR_WEIGHTS:
            if getattr(args, name):
                raise ValueError(f"--{name} goes with --weights; a sweep brings its own")
        if args.sweep is None:
            raise ValueError("name a sweep, or a released checkpoint with --weights DIR --env NAME")
        return record.load(storage, find_sweep_dir(args.sweep, storage.root).name)
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
        only = tuple(args.only.split(",")) if args.only else None
        for stage in only or ():
            if stage not in spec.stages:
                known = ", ".join(spec.stages)
                raise ValueError(f"--only: {stage!r} is not a stage of this sweep; known: {known}")
        options = driver.Options(command, args.address, only=only, train=False)
        return driver.run(spec, storage, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
