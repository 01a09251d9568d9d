"""One trial: `lewm.train` with storage, ownership, MLflow and a report to Ray Tune around it.

The order that makes a kill harmless: done-marker first; else take the trial's lease, fetch its newest
checkpoint, train, and after every checkpoint upload it; the done-marker is written last.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lewm.config import Config
from pipeline.storage import Heartbeat, Lease, Storage, read_marker, read_rows
from pipeline.tracking import CurveLogger, Tracker

RUN_FILES = ("checkpoint.prev.pt", "checkpoint.pt", "curve.jsonl", "progress.json", "train.log")
Report = Callable[[dict[str, Any]], None]


class OwnershipLost(RuntimeError):
    """Another process took this trial over; nothing more may be committed."""


@dataclass(frozen=True)
class TrialTask:
    """What a worker needs to run a trial; plain data."""

    trial_id: str
    config_json: str
    point: str
    storage: str
    dataset: str
    dataset_hash: str
    profile: str
    git_commit: str | None
    tracker: Tracker | None

    @property
    def config(self) -> Config:
        """The resolved config."""
        return Config.model_validate_json(self.config_json, strict=False)

    @property
    def key(self) -> str:
        """The trial's folder in the storage."""
        return f"trials/{self.trial_id}"


def run_name(task: TrialTask) -> str:
    """Short MLflow name: `lam=0.1 seed=3`."""
    swept = task.point.replace("loss.", "") or "base"
    return f"{swept} seed={task.config.seed}"


def mlflow_params(task: TrialTask) -> dict[str, Any]:
    """The few flat parameters that make runs comparable in MLflow."""
    config = task.config
    swept = dict(part.split("=", 1) for part in task.point.split(" ") if part)
    return {
        "method": config.method,
        "env": config.data.env,
        "profile": task.profile,
        "lam": config.loss.lam,
        "seed": config.seed,
        "batch_size": config.optim.batch_size,
        "lr": config.optim.lr,
        "precision": config.optim.precision,
        "image_size": config.model.image_size,
        "latent_dim": config.model.latent_dim,
        **{key: value for key, value in swept.items() if key != "loss.lam"},
    }


def mlflow_tags(task: TrialTask) -> dict[str, str]:
    """Provenance tags of a trial's run."""
    return {
        "lewm.dataset_hash": task.dataset_hash,
        "lewm.point": task.point,
        "lewm.git_commit": task.git_commit or "unknown",
    }


def run_trial(task: TrialTask, report: Report) -> dict[str, Any]:
    """Trains a trial to its end, from wherever it stands; returns its done-marker.

    A Python exception of the training is final and recorded as `failed`; process death and I/O errors
    propagate, so that Ray tries again.

    Raises:
        OSError: storage or dataset could not be read or written.
        OwnershipLost: another process owns the trial now.
    """
    storage = Storage(task.storage)
    finished = read_marker(storage, task.trial_id)
    if finished is not None and finished["status"] != "failed":
        return finished
    lease = Lease(storage, f"{task.key}/owner.json")
    finished = _wait_for_lease(storage, lease, task.trial_id)
    if finished is not None:
        return finished
    with Heartbeat(lease), tempfile.TemporaryDirectory(prefix=f"lewm-{task.trial_id}-") as local:
        return _train(task, storage, lease, Path(local), report)


def _wait_for_lease(storage: Storage, lease: Lease, trial_id: str) -> dict[str, Any] | None:
    """Takes the lease, or waits for a live owner; returns the marker if that owner finished."""
    while lease.acquire() is not None:
        time.sleep(0.5)
    finished = read_marker(storage, trial_id)
    if finished is not None and finished["status"] != "failed":
        lease.release()
        return finished
    return None


def _train(
    task: TrialTask, storage: Storage, lease: Lease, local: Path, report: Report
) -> dict[str, Any]:
    import torch
    from lewm.train import train

    config = task.config
    for name in RUN_FILES:
        storage.fetch(f"{task.key}/{name}", local / name)
    attempts = _Attempts(storage, task.key)
    storage.write_json(f"{task.key}/config.json", json.loads(task.config_json))
    logger = None
    if task.tracker is not None:
        logger = CurveLogger(
            task.tracker, task.trial_id, run_name(task), mlflow_params(task), mlflow_tags(task)
        )
    started = time.time()
    logged = 0

    def on_checkpoint(step: int, metrics: dict[str, float]) -> None:
        nonlocal logged
        if not lease.held():
            raise OwnershipLost(f"trial {task.trial_id} was taken over")
        for name in RUN_FILES:
            if (local / name).is_file():
                storage.put(local / name, f"{task.key}/{name}")
        rows = read_rows(local / "curve.jsonl")
        if logger is not None:
            logger.add(rows[logged:])
        logged = len(rows)
        report({"step": step, "num_steps": config.optim.num_steps or 0, **metrics})

    try:
        result = train(config, local, Path(task.dataset), on_checkpoint)
        marker = _describe(task, local, result.status, result.step)
    except (OSError, OwnershipLost):
        attempts.close("io error or lost ownership")
        raise
    except Exception as error:
        marker = _failure(task, error)
        (local / "train.log").open("a").write(traceback.format_exc())
        storage.put(local / "train.log", f"{task.key}/train.log")
    finally:
        if logger is not None:
            logger.close()
    attempts.close(marker["status"])
    marker |= {
        "attempts": len(attempts.rows),
        "wall_s": sum(row["wall_s"] or 0.0 for row in attempts.rows),
        "started_at": attempts.rows[0]["started_at"],
        "finished_at": _now(),
        "host": socket.gethostname(),
        "device": str(torch.device(_device(config))),
        "peak_mem_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "git_commit": task.git_commit,
        "attempt_wall_s": time.time() - started,
    }
    if not lease.held():
        raise OwnershipLost(f"trial {task.trial_id} was taken over")
    storage.write_json(f"{task.key}/done.json", marker)
    return marker


def _device(config: Config) -> str:
    from lewm.train import pick_device

    return str(pick_device(config.run.device))


def _describe(task: TrialTask, local: Path, status: str, step: int) -> dict[str, Any]:
    from lewm.checkpoint import load_method

    config, method, _, _ = load_method(local / "checkpoint.pt", "cpu")
    progress = json.loads((local / "progress.json").read_text())
    return {
        "status": status,
        "error": None,
        "diverged_step": step if status == "diverged" else None,
        "num_params": sum(p.numel() for p in method.parameters()),
        "num_steps": step,
        "batch_size": config.optim.batch_size,
        "num_threads": config.optim.num_threads,
        "precision": config.optim.precision,
        "frames_per_s": progress.get("frames_per_s"),
        "dataset_hash": task.dataset_hash,
        "policy": config.data.policy,
        "checkpoint_hash": weights_hash(method.state_dict()),
        "versions": versions(),
    }


def _failure(task: TrialTask, error: Exception) -> dict[str, Any]:
    config = task.config
    lines = str(error).strip().splitlines() or [""]
    return {
        "status": "failed",
        "error": f"{type(error).__name__}: {lines[0]}",
        "batch_size": config.optim.batch_size,
        "num_threads": config.optim.num_threads,
        "precision": config.optim.precision,
        "dataset_hash": task.dataset_hash,
        "policy": config.data.policy,
        "versions": versions(),
    }


def weights_hash(state: dict[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, in name order."""
    import torch

    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def versions() -> str:
    """The library versions that results depend on, as one string."""
    names = ("torch", "numpy", "h5py", "ray", "mlflow", "polars")
    parts = [f"python {platform.python_version()}"]
    parts += [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join(parts)


class _Attempts:
    """The processes that worked on a trial, kept in `attempts.json` beside its checkpoint."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = f"{key}/attempts.json"
        self.rows: list[dict[str, Any]] = (storage.read_json(self._key) or {}).get("rows", [])
        for row in self.rows:
            row["reason"] = row["reason"] or "process ended without a word (killed or lost)"
        progress = storage.read_json(f"{key}/progress.json") or {}
        self._started = time.time()
        self.rows.append(
            {
                "attempt": len(self.rows) + 1,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": _now(),
                "finished_at": None,
                "from_step": int(progress.get("step", 0)),
                "reason": None,
                "wall_s": None,
            }
        )
        self._write()

    def close(self, reason: str) -> None:
        self.rows[-1] |= {
            "finished_at": _now(),
            "reason": reason,
            "wall_s": time.time() - self._started,
        }
        self._write()

    def _write(self) -> None:
        self._storage.write_json(self._key, {"rows": self.rows})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit() -> str | None:
    """The commit of the code that runs, with `+` if the checkout is dirty; None outside a checkout."""
    folder = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def tune_trainable(params: dict[str, Any]) -> None:
    """The function that Ray Tune runs: one `TrialTask` under the key `task`."""
    from ray import tune

    task: TrialTask = params["task"]

    def report(metrics: dict[str, Any]) -> None:
        tune.report({"trial_id_": task.trial_id, **metrics})

    marker = run_trial(task, report)
    tune.report(
        {"trial_id_": task.trial_id, "status": marker["status"], "step": marker.get("num_steps")}
    )
