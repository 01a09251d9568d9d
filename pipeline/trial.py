"""One trial: `lewm.training` with storage, ownership, MLflow and a report to Ray Tune around it.

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
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from lewm.config import Config
from pipeline.cell_runner import EvaluateTask, is_device_lost, run_cells
from pipeline.cluster import code_hash
from pipeline.datasets.cache import local_copy
from pipeline.redact import redact
from pipeline.storage import Storage, parse_rows, read_marker
from pipeline.storage.lease import Heartbeat, Lease
from pipeline.storage.scratch import scratch
from pipeline.tracking import CurveLogger, Tracker

RUN_FILES = ("checkpoint.prev.pt", "checkpoint.pt", "curve.jsonl", "progress.json", "train.log")
Report = Callable[[dict[str, Any]], None]


OUT_OF_MEMORY, PAUSED = "out of memory", "paused"
"""What a trial without a marker reports: it did not fit beside its neighbours, or it reached a rung."""
TRIED_AGAIN = ("failed", "unavailable")
"""States of a marker that no trial goes by which is asked for again."""


class OwnershipLost(RuntimeError):
    """Another process took this trial over; nothing more may be committed."""


class _RungReached(Exception):
    """The step at which a search decides who goes on; its checkpoint is on storage."""

    def __init__(self, metrics: dict[str, float]) -> None:
        super().__init__()
        self.metrics = metrics


@dataclass(frozen=True)
class TrialTask:
    """What a worker needs to run a trial; plain data.

    Args:
        driver: token of the driver that started it, and `void` those of drivers known to be gone.
        code: hash of the driver's sources; a node with others refuses.
        packed: trials that share its GPU or, without one, its node.
        until: pause at the first checkpoint at or after this step.
        objective: cells that a search needs of this trial at once.
    """

    trial_id: str
    config_json: str
    point: str
    storage: str
    dataset: str
    dataset_hash: str
    profile: str
    git_commit: str | None
    tracker: Tracker | None
    driver: str | None = None
    void: tuple[str, ...] = ()
    code: str | None = None
    packed: int = 1
    until: int | None = None
    objective: EvaluateTask | None = None

    @property
    def config(self) -> Config:
        """The resolved config."""
        return Config.model_validate_json(self.config_json, strict=False)

    @property
    def key(self) -> str:
        """The trial's folder in the storage."""
        return f"trials/{self.trial_id}"


def run_name(task: TrialTask) -> str:
    """Short MLflow name, `lam=0.1 seed=3`, with the environment where the sweep has several."""
    config = task.config
    parts = [task.point.replace("loss.", "")] if task.point else []
    if task.tracker is not None and f"-{config.data.env}-" not in task.tracker.sweep:
        parts.insert(0, config.data.env)
    return " ".join([*parts, f"seed={config.seed}"])


def mlflow_params(task: TrialTask) -> dict[str, Any]:
    """What identifies a trial among all others, and what its sweep varies; the rest is the parent's."""
    config = task.config
    swept = dict(part.split("=", 1) for part in task.point.split(" ") if part)
    return {
        "method": config.method,
        "env": config.data.env,
        "profile": task.profile,
        **({} if config.lam is None else {"lam": config.lam}),
        "seed": config.seed,
        **{key: value for key, value in swept.items() if key != "loss.lam"},
    }


def mlflow_tags(task: TrialTask) -> dict[str, str]:
    """Provenance tags of a trial's run; those of MLflow's own names fill columns of its pages."""
    commit = task.git_commit or "unknown"
    return {
        "lewm.point": task.point,
        "lewm.status": "running",
        "lewm.dataset_hash": task.dataset_hash,
        "lewm.git_commit": commit,
        "mlflow.source.name": "pipeline.sweep",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit.rstrip("+"),
    }


def run_trial(task: TrialTask, report: Report) -> dict[str, Any]:
    """Trains a trial to its end, from wherever it stands; returns its done-marker.

    A Python exception of the training is final and recorded as `failed`; process death and I/O errors
    propagate, so that Ray tries again. Without a marker, and returned with a status only, stay a trial
    that paused at `task.until` and one that did not fit into its share of the memory.

    Raises:
        OSError: storage or dataset could not be read or written, or the device failed.
        OwnershipLost: another process owns the trial now.
    """
    storage = Storage(task.storage)
    finished = read_marker(storage, task.trial_id)
    if finished is not None and finished["status"] not in TRIED_AGAIN:
        return finished
    own = () if task.driver is None else (task.driver,)
    lease = Lease(storage, f"{task.key}/owner.json", task.driver, (*task.void, *own))
    finished = _wait_for_lease(storage, lease, task.trial_id)
    if finished is not None:
        return finished
    with Heartbeat(lease), scratch(f"lewm-{task.trial_id}-") as local:
        return _train(task, storage, lease, local, report)


def _wait_for_lease(storage: Storage, lease: Lease, trial_id: str) -> dict[str, Any] | None:
    """Takes the lease, or waits for a live owner; returns the marker if that owner finished."""
    while lease.acquire() is not None:
        time.sleep(0.5)
    finished = read_marker(storage, trial_id)
    if finished is not None and finished["status"] not in TRIED_AGAIN:
        lease.release()
        return finished
    return None


def _train(
    task: TrialTask, storage: Storage, lease: Lease, local: Path, report: Report
) -> dict[str, Any]:
    for name in RUN_FILES:
        storage.fetch(f"{task.key}/{name}", local / name)
    attempts = _Attempts(storage, task.key, lease.replaced)
    storage.write_json(f"{task.key}/config.json", json.loads(task.config_json))
    upload = _Upload(task, storage, lease, local, report)
    outcome: dict[str, Any] = {}
    try:
        outcome = _run(task, local, upload)
    except (OSError, OwnershipLost) as error:
        attempts.close(f"{type(error).__name__}: tried again")
        raise
    except _RungReached as rung:
        rungs = storage.read_json(f"{task.key}/rungs.json") or {}
        storage.write_json(f"{task.key}/rungs.json", rungs | {str(task.until): rung.metrics})
        attempts.close(PAUSED)
        return {"status": PAUSED}
    except Exception as error:
        if task.packed > 1 and _is_out_of_memory(error):
            attempts.close(f"{OUT_OF_MEMORY} with {task.packed} trials side by side")
            return {"status": OUT_OF_MEMORY}
        if is_device_lost(error):
            attempts.close("the device failed: tried again in another process")
            raise OSError(f"the device failed: {error}") from error
        outcome = _failure(error)
        with (local / "train.log").open("a") as log:
            log.write(traceback.format_exc())
        storage.put(local / "train.log", f"{task.key}/train.log")
    finally:
        upload.close(outcome.get("status"))
    attempts.close(outcome["status"])
    marker = _provenance(task) | outcome | attempts.summary()
    if not lease.held():
        raise OwnershipLost(f"trial {task.trial_id} was taken over")
    storage.write_json(f"{task.key}/done.json", marker)
    return marker


class _Upload:
    """Called after each durable checkpoint: copies the run's files out and passes its news on."""

    def __init__(
        self, task: TrialTask, storage: Storage, lease: Lease, local: Path, report: Report
    ) -> None:
        self._task, self._storage, self._lease, self._local = task, storage, lease, local
        self._report = report
        self._num_logged = 0
        self._logger = None
        if task.tracker is not None:
            self._logger = CurveLogger(
                task.tracker, task.trial_id, run_name(task), mlflow_params(task), mlflow_tags(task)
            )

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if not self._lease.held():
            raise OwnershipLost(f"trial {self._task.trial_id} was taken over")
        for name in RUN_FILES:
            if (self._local / name).is_file():
                self._storage.put(self._local / name, f"{self._task.key}/{name}")
        if self._logger is not None:
            rows = parse_rows((self._local / "curve.jsonl").read_bytes())
            self._logger.add(rows[self._num_logged :])
            self._num_logged = len(rows)
        num_steps = self._task.config.optim.num_steps
        self._report({**metrics, "step": step, "num_steps": num_steps or 0})
        if self._task.until is not None and self._task.until <= step < (num_steps or step):
            raise _RungReached(metrics)

    def close(self, status: str | None) -> None:
        if self._logger is not None:
            self._logger.close(status)


def _run(task: TrialTask, local: Path, upload: _Upload) -> dict[str, Any]:
    """Trains, and says what came out."""
    from lewm.checkpoint import load_method
    from lewm.methods import method_class
    from lewm.training import pick_device, train

    config = task.config
    reason = method_class(config.method).unavailable(config)
    if reason is not None:
        return {"status": "unavailable", "error": reason}
    expected = task.dataset_hash if config.data.dataset is not None else None
    result = train(config, local, local_copy(task.dataset, expected), upload)
    _, method, _, _ = load_method(local / "checkpoint.pt", "cpu")
    progress = json.loads((local / "progress.json").read_text())
    return {
        "status": result.status,
        "error": None,
        "diverged_step": result.step if result.status == "diverged" else None,
        "num_params": sum(p.numel() for p in method.parameters()),
        "num_steps": result.step,
        "frames_per_s": progress.get("frames_per_s"),
        "checkpoint_hash": weights_hash(method.state_dict()),
        "device": str(pick_device(config.run.device)),
    }


def _failure(error: Exception) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [""]
    return {"status": "failed", "error": redact(f"{type(error).__name__}: {lines[0]}")}


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a training did not fit, on a GPU or in its share of the node."""
    text = f"{type(error).__name__}: {error}".lower()
    wanted = (
        *("out of memory", "can't allocate memory", "unable to allocate", "cannot allocate"),
        "alloc_failed",  # cuBLAS and cuDNN
    )
    return isinstance(error, MemoryError) or any(part in text for part in wanted)


def _cap_memory(packed: int) -> None:
    """Keeps this process to its share, so that a neighbour is not killed for what we take.

    On a GPU a share of the card, through PyTorch's allocator; without one a share of the machine's
    memory, as the limit on the process's private data.
    """
    if packed <= 1:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0 / packed)
        return
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    share = max(psutil.virtual_memory().total // packed, used)
    resource.setrlimit(resource.RLIMIT_DATA, (share + _reserved(), resource.RLIM_INFINITY))


def _reserved() -> int:
    """Private memory that is mapped but not in use: stacks of threads, arenas."""
    memory = psutil.Process().memory_info()
    return int(max(memory.data - memory.rss, 0))


def _provenance(task: TrialTask) -> dict[str, Any]:
    config = task.config
    return {
        "batch_size": config.optim.batch_size,
        "num_threads": config.optim.num_threads,
        "precision": config.optim.precision,
        "dataset_hash": task.dataset_hash,
        "policy": config.data.policy,
        "versions": versions(),
        "git_commit": task.git_commit,
        "host": socket.gethostname(),
        "peak_mem_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
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

    def __init__(self, storage: Storage, key: str, dead: dict[str, Any] | None) -> None:
        """`dead` is the owner that was last seen alive before this process, if it did not end well."""
        self._storage = storage
        self._key = f"{key}/attempts.json"
        self.rows: list[dict[str, Any]] = (storage.read_json(self._key) or {}).get("rows", [])
        for row in self.rows:
            row["reason"] = row["reason"] or "process ended without a word (killed or lost)"
        if dead is not None and self.rows and self.rows[-1]["wall_s"] is None:
            began = datetime.fromisoformat(self.rows[-1]["started_at"]).timestamp()
            self.rows[-1]["wall_s"] = max(dead["renewed_at"] - began, 0.0)
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

    def summary(self) -> dict[str, Any]:
        """What the trial's marker says of its processes."""
        return {
            "attempts": len(self.rows),
            "wall_s": sum(row["wall_s"] or 0.0 for row in self.rows),
            "started_at": self.rows[0]["started_at"],
            "finished_at": self.rows[-1]["finished_at"],
        }

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


def tune_trainable(params: dict[str, Any], tasks: dict[str, TrialTask]) -> None:
    """The function that Ray Tune runs: the task named by `params["trial_id"]`."""
    from ray import tune

    task = tasks[params["trial_id"]]
    if task.code not in (None, code_hash()):
        raise OSError(f"node {socket.gethostname()} runs other code of this project")
    _cap_memory(task.packed)
    marker = run_trial(task, lambda metrics: tune.report(dict(metrics)))
    if marker["status"] == "done" and task.objective is not None:
        run_cells(task.objective)
    step = marker.get("num_steps")
    tune.report({"status": marker["status"]} | ({} if step is None else {"step": step}))
