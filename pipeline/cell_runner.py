"""Runs cells on a worker: loads a trial once, runs every cell, writes part and then marker of each."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lewm.config import Config
from pipeline.cells import Cell
from pipeline.datasets.cache import local_copy
from pipeline.redact import redact
from pipeline.storage import Storage
from pipeline.tables import STAGE_SCHEMAS, write_part

RELEASED = "released"
"""Folder of a trial that holds the files of a released checkpoint."""
STICKY = (
    *("illegal memory access", "misaligned address", "device-side assert", "launch failure"),
    *("ECC", "timed out"),
)
"""Of messages of torch's `AcceleratorError`."""
RELEASED_FILES = ("weights.pt", "config.json", "normaliser.json", "training.json")


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
        OSError: storage or dataset could not be read or written, or the device failed (tried again
            by Ray, not necessarily in another process).
    """
    storage = Storage(task.storage)
    run = _floor_runner(task) if task.trial_id is None else _trial_runner(task, storage)
    failed = 0
    for cell in task.cells:
        started = time.time()
        marker: dict[str, Any] = {"status": "done", "error": None}
        try:
            frame = run(cell)
            write_part(storage, cell.part, frame, STAGE_SCHEMAS[cell.stage])
        except OSError:
            raise
        except Exception as error:
            if is_device_lost(error):
                raise OSError(f"the device failed: {error}") from error
            lines = str(error).strip().splitlines() or [""]
            marker = {"status": "failed", "error": redact(f"{type(error).__name__}: {lines[0]}")}
            failed += 1
        marker |= {"manifest_hash": cell.manifest_hash, "wall_s": time.time() - started}
        storage.write_json(cell.marker, {**marker, "config": cell.config})
    return failed


def is_device_lost(error: Exception) -> bool:
    """Whether an accelerator failed in a way after which its process can use it no more."""
    return type(error).__name__ == "AcceleratorError" and any(s in str(error) for s in STICKY)


def _read_manifest(storage: Storage, cell: Cell) -> Any:
    from lewm.manifest import Manifest

    assert cell.manifest is not None
    return Manifest.from_json(storage.read_bytes(cell.manifest).decode())


def _trial_runner(task: EvaluateTask, storage: Storage) -> Callable[[Cell], Any]:
    import torch

    from lewm.data.episodes import EpisodeFile
    from lewm.training import keep_freed_memory, pick_device
    from pipeline.stages import load_stage
    from pipeline.stages.loaded import LoadedTrial

    assert task.config_json is not None
    config = Config.model_validate_json(task.config_json, strict=False)
    torch.set_num_threads(config.optim.num_threads)
    keep_freed_memory()
    device = pick_device(config.run.device)
    episodes = None if task.dataset is None else EpisodeFile(local_copy(task.dataset))
    method, normaliser = _load(storage, f"trials/{task.trial_id}", device, episodes)
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


def _load(storage: Storage, key: str, device: Any, episodes: Any) -> tuple[Any, Any]:
    """Method and normaliser of a trial, trained by us or released.

    A release without a normaliser of its own gets one fitted to all actions of the data file, as
    published.
    """
    from lewm.checkpoint import load_method
    from lewm.data.clips import Normaliser
    from lewm.released_weights import load_normaliser, load_released

    if not storage.exists(f"{key}/{RELEASED}"):
        with storage.reading(f"{key}/checkpoint.pt") as folder:
            _, method, normaliser, _ = load_method(folder / "checkpoint.pt", device)
        return method, normaliser
    with storage.reading(*(f"{key}/{RELEASED}/{name}" for name in RELEASED_FILES)) as folder:
        _, method = load_released(folder)
        known = load_normaliser(folder)
    return method.to(device), known or Normaliser.fit(episodes.read("action"))


def _floor_runner(task: EvaluateTask) -> Callable[[Cell], Any]:
    from pipeline.stages.planning import run_floor

    storage = Storage(task.storage)
    return lambda cell: run_floor(cell.config["planner"], _read_manifest(storage, cell))
