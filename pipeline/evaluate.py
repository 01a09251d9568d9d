"""Evaluates every trained trial of a sweep: one Ray task per trial, all its missing cells.

    python -m pipeline.evaluate lambda                 what is missing of the sweep's stages
    python -m pipeline.evaluate lambda --only probing  one stage

A cell is trial x stage x one resolved stage config. Its Parquet part is written first, its marker
(`<stage>-<cell_id>.json`) last; a cell without a whole part and marker is done again.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lewm.config import Config, dataset_id, digest
from pipeline.spec import Spec, Trial
from pipeline.storage import Storage, read_marker
from pipeline.tables import SCHEMA_VERSION, STAGE_SCHEMAS, BrokenTable, read_part, write_part

FLOORS = ("random", "zero", "oracle")
RETRIES = 3


@dataclass(frozen=True)
class Cell:
    """One unit of evaluation and where its rows go."""

    stage: str
    cell_id: str
    folder: str
    config: dict[str, Any]
    eval_point: str
    manifest: str | None = None
    manifest_hash: str | None = None

    @property
    def part(self) -> str:
        """Key of the Parquet part."""
        return f"{self.folder}/{self.stage}-{self.cell_id}.parquet"

    @property
    def marker(self) -> str:
        """Key of the marker that makes it done."""
        return f"{self.folder}/{self.stage}-{self.cell_id}.json"


@dataclass(frozen=True)
class ManifestRef:
    """A frozen start/goal manifest in the storage."""

    key: str
    hash: str
    protocol: dict[str, Any]
    name: str
    eval_seed: int
    num_pairs: int


Manifests = dict[tuple[str, str, int, int], ManifestRef]
"""By (dataset name, protocol, eval_seed, num_pairs)."""


def dataset_name(config: Config, fingerprint: str | None) -> str:
    """The name under which a trial's dataset is known: its spec's hash, or the file's fingerprint."""
    return dataset_id(config) if config.data.dataset is None else f"file-{fingerprint}"


def ensure_manifests(spec: Spec, storage: Storage, datasets: Mapping[str, Path]) -> Manifests:
    """Every manifest the sweep's planning cells need, made once and kept in the storage."""
    from lewm.data.episodes import EpisodeFile
    from lewm.protocol import make_manifest, protocol_from_dict

    for config, want in _wanted_manifests(spec):
        if not storage.exists(want.key):
            protocol = protocol_from_dict(spec.env, want.name, want.protocol)
            with EpisodeFile(datasets[dataset_name(config, spec.fingerprint)]) as episodes:
                manifest = make_manifest(
                    protocol, want.eval_seed, want.num_pairs, config.data, episodes
                )
            storage.write_bytes(want.key, manifest.to_json().encode())
    return known_manifests(spec, storage)


def known_manifests(spec: Spec, storage: Storage) -> Manifests:
    """The same, from storage alone.

    Raises:
        ValueError: one is missing or unreadable.
    """
    from lewm.protocol import Manifest

    found: Manifests = {}
    for config, want in _wanted_manifests(spec):
        path = storage.path(want.key)
        if not path.is_file():
            raise ValueError(f"no manifest {path}")
        name = dataset_name(config, spec.fingerprint)
        found[name, want.name, want.eval_seed, want.num_pairs] = replace(
            want, hash=Manifest.from_json(path.read_text()).hash
        )
    return found


def _wanted_manifests(spec: Spec) -> Iterator[tuple[Config, ManifestRef]]:
    if "planning" not in spec.stages:
        return
    configs = {dataset_name(t.config, spec.fingerprint): t.config for t in spec.trials}
    for name, config in configs.items():
        for _, variant in spec.variants:
            planning = variant.planning
            for protocol, eval_seed in itertools.product(planning.protocols, planning.eval_seeds):
                table = spec.protocols[protocol]
                identity = digest([table, name, eval_seed, planning.num_pairs], 8)
                key = f"manifests/{spec.env}-{protocol}-seed{eval_seed}-{identity}.json"
                yield config, ManifestRef(key, "", table, protocol, eval_seed, planning.num_pairs)


def trial_cells(spec: Spec, trial: Trial, manifests: Manifests) -> list[Cell]:
    """All cells of one trial, in the order of the sweep's stages."""
    folder = f"trials/{trial.trial_id}/cells"
    name = dataset_name(trial.config, spec.fingerprint)
    cells: dict[str, Cell] = {}
    for eval_point, variant in spec.variants:
        for stage in spec.stages:
            section = getattr(variant, stage).model_dump(mode="json")
            own = _own_axes(eval_point, stage)
            for config, ref in _resolve(stage, section, name, manifests):
                identity = {
                    "trial": trial.trial_id,
                    "stage": stage,
                    "config": config,
                    "schema": SCHEMA_VERSION,
                    "manifest": ref.hash if ref else None,
                }
                cell_id = digest(identity)
                cells.setdefault(
                    cell_id,
                    Cell(
                        stage,
                        cell_id,
                        folder,
                        config,
                        own,
                        ref.key if ref else None,
                        ref.hash if ref else None,
                    ),
                )
    return list(cells.values())


def _own_axes(eval_point: str, stage: str) -> str:
    """The part of an `eval_point` that concerns a stage."""
    return " ".join(part for part in eval_point.split(" ") if part.startswith(f"{stage}."))


def _resolve(
    stage: str, section: dict[str, Any], name: str, manifests: Manifests
) -> list[tuple[dict[str, Any], ManifestRef | None]]:
    if stage != "planning":
        return [(section, None)]
    shared = {k: v for k, v in section.items() if k not in ("protocols", "eval_seeds")}
    chosen = [
        manifests[name, protocol, eval_seed, section["num_pairs"]]
        for protocol in section["protocols"]
        for eval_seed in section["eval_seeds"]
    ]
    return [
        (
            {
                **shared,
                "protocol": ref.name,
                "protocol_table": ref.protocol,
                "eval_seed": ref.eval_seed,
            },
            ref,
        )
        for ref in chosen
    ]


def floor_cells(spec: Spec, manifests: Manifests) -> list[Cell]:
    """The floors: per dataset, protocol and eval seed one cell for each of `FLOORS`."""
    if "planning" not in spec.stages:
        return []
    cells = []
    for (name, protocol, eval_seed, num_pairs), ref in manifests.items():
        entry = digest([name, protocol, eval_seed])
        for planner in FLOORS:
            config = {
                "planner": planner,
                "protocol": protocol,
                "protocol_table": ref.protocol,
                "eval_seed": eval_seed,
                "num_pairs": num_pairs,
            }
            cell_id = digest([config, SCHEMA_VERSION, ref.hash])
            folder = f"baselines/{entry}"
            cells.append(Cell("planning", cell_id, folder, config, "", ref.key, ref.hash))
    return cells


def is_done(storage: Storage, cell: Cell) -> bool:
    """Whether a cell has a marker that says so and a whole part behind it."""
    marker = storage.read_json(cell.marker)
    if marker is None or marker["status"] != "done":
        return False
    try:
        read_part(storage.path(cell.part))
    except (BrokenTable, FileNotFoundError) as error:
        print(f"warning: {error}; the cell is done again", file=sys.stderr)
        return False
    return True


def cell_status(storage: Storage, cell: Cell) -> dict[str, Any]:
    """The marker of a cell, or one that says `pending`."""
    return storage.read_json(cell.marker) or {"status": "pending", "error": None, "wall_s": None}


@dataclass(frozen=True)
class EvaluateTask:
    """What a worker needs to run cells: of one trial, or floors (no trial)."""

    storage: str
    dataset: str
    config_json: str
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
    from lewm.protocol import Manifest

    assert cell.manifest is not None
    return Manifest.from_json(storage.path(cell.manifest).read_text())


def _trial_runner(task: EvaluateTask, storage: Storage) -> Callable[[Cell], Any]:
    import torch

    from lewm.checkpoint import load_method
    from lewm.data.episodes import EpisodeFile
    from lewm.train import pick_device
    from pipeline.stages import load_stage
    from pipeline.stages.loaded import LoadedTrial

    config = Config.model_validate_json(task.config_json, strict=False)
    torch.set_num_threads(config.optim.num_threads)
    device = pick_device(config.run.device)
    path = storage.path(f"trials/{task.trial_id}/checkpoint.pt")
    _, method, normaliser, _ = load_method(path, device)
    manifests = {
        (cell.config["protocol"], cell.config["eval_seed"]): _read_manifest(storage, cell)
        for cell in task.cells
        if cell.manifest is not None
    }
    trial = LoadedTrial(
        config=config,
        method=method,
        normaliser=normaliser,
        episodes=EpisodeFile(Path(task.dataset)),
        device=device,
        manifests=manifests,
    )
    return lambda cell: load_stage(cell.stage)(trial, cell.config)


def _floor_runner(task: EvaluateTask) -> Callable[[Cell], Any]:
    from pipeline.stages.planning import run_floor

    storage = Storage(task.storage)
    return lambda cell: run_floor(cell.config["planner"], _read_manifest(storage, cell))


def missing_tasks(
    spec: Spec,
    storage: Storage,
    manifests: Manifests,
    datasets: Mapping[str, Path],
    only: Sequence[str] | None = None,
) -> list[EvaluateTask]:
    """What is still to evaluate: floors first, then trial by trial."""
    floors = tuple(c for c in floor_cells(spec, manifests) if not is_done(storage, c))
    first = spec.trials[0].config
    root = str(storage.root)
    tasks = []
    if floors and (only is None or "planning" in only):
        data = str(datasets[dataset_name(first, spec.fingerprint)])
        tasks.append(EvaluateTask(root, data, first.model_dump_json(), None, floors))
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
            data = str(datasets[dataset_name(trial.config, spec.fingerprint)])
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description="Evaluate what is missing of a sweep that was begun; trains nothing.",
    )
    parser.add_argument("sweep", help="a sweep's folder name, or the start of it")
    parser.add_argument("--storage", default="runs", help="where the sweep lives (default: runs)")
    parser.add_argument("--only", help="comma-separated stages")
    parser.add_argument("--address", help="an existing Ray cluster: auto or host:port")
    args = parser.parse_args(argv)
    from pipeline import driver, record
    from pipeline.report import find_sweep_dir

    try:
        storage = Storage(args.storage)
        spec = record.load(storage, find_sweep_dir(args.sweep, storage.root).name)
        only = tuple(args.only.split(",")) if args.only else None
        for stage in only or ():
            if stage not in spec.stages:
                known = ", ".join(spec.stages)
                raise ValueError(f"--only: {stage!r} is not a stage of this sweep; known: {known}")
        command = f"python -m pipeline.evaluate {args.sweep} --storage {args.storage}"
        options = driver.Options(command, args.address, only=only, train=False)
        return driver.run(spec, storage, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
