"""What one machine can be asked before a sweep: each check in its own time limit, none of them changes anything."""

import importlib.metadata
import os
import resource
import shutil
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import cluster
from pipeline.datasets import cache
from pipeline.redact import redact
from pipeline.storage import Storage

CHECK_S = 25.0
"""A check that takes longer has failed."""
SKEW_WARN_S, SKEW_FAIL_S = 5.0, 600.0
"""Clocks: times in tables are off beyond the first; S3 refuses what was signed 15 minutes off."""
CACHE_GB, DISK_GB, SHM_GB, OPEN_FILES = 20.0, 5.0, 1.0, 4096
SHARE = "mount the same folder on every node, or use s3://bucket/prefix"


@dataclass(frozen=True)
class Finding:
    """What one check found at one place."""

    check: str
    state: str
    """`ok`, `warn` or `FAIL`."""
    text: str
    mend: str = ""
    place: str = "driver"


@dataclass(frozen=True)
class Request:
    """What every machine is asked to check; travels to the nodes as it is."""

    storage: str
    token: str
    """Folder in the storage through which driver and nodes find each other's notes."""
    env: str
    wants_gpu: bool
    mlflow: str | None
    versions: dict[str, str]
    on_node: bool = False


def examine(request: Request, gpus: float | None = None) -> list[Finding]:
    """Every check of the machine it runs on, each with its time limit.

    Args:
        gpus: what Ray says this node has; None for the driver's machine.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "versions": partial(_versions, request),
        "storage": partial(_storage, request),
        "clock": partial(_clock, request),
        "mlflow": partial(_mlflow, request),
        "gpu": partial(_gpu, request, gpus),
        "drawing": partial(_drawing, request),
        "cache": _cache,
        "disk": _disk,
        "shared memory": _shared_memory,
        "open files": _open_files,
    }
    return [_in_time(name, check) for name, check in checks.items()]


def examine_node(request: Request) -> list[Finding]:
    """The same from within a Ray task: this node must have the GPUs that Ray counts."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return examine(request, node["Resources"].get("GPU", 0.0))


def _in_time(name: str, check: Callable[[], Finding]) -> Finding:
    found: list[Finding] = []

    def run() -> None:
        try:
            found.append(check())
        except Exception as error:  # a check may stumble over whatever its machine is missing
            found.append(Finding(name, "FAIL", redact(last_line(error))))

    thread = threading.Thread(target=run, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(CHECK_S)
    return found[0] if found else Finding(name, "FAIL", f"no answer in {CHECK_S:.0f} s")


def last_line(error: BaseException) -> str:
    """What an error says in its last line: Ray puts the cause there."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def versions() -> dict[str, str]:
    """Of this process: what results depend on, our own code by its hash, and what talks to MLflow."""
    return {**cluster.node_versions(), "mlflow": importlib.metadata.version("mlflow")}


def _versions(request: Request) -> Finding:
    here = versions()
    if wrong := cluster.differences(request.versions, here):
        mend = (
            "install the same on every node: pip install -c constraints.txt -e '.[cluster,envs,s3]'"
        )
        return Finding("versions", "FAIL", wrong, mend)
    return Finding("versions", "ok", ", ".join(f"{name} {value}" for name, value in here.items()))


def _storage(request: Request) -> Finding:
    """The driver writes a note first; a node that cannot read it has another storage."""
    storage = Storage(request.storage)
    if not (request.on_node and storage.is_local):  # it would make a folder that is not mounted
        storage.check_writable()
    if request.on_node and storage.read_json(f"{request.token}/driver.json") is None:
        text = f"{storage.uri} is another one than the driver's"
        return Finding("storage", "FAIL", text, SHARE)
    name = uuid.uuid4().hex if request.on_node else "driver"
    storage.write_json(f"{request.token}/{name}.json", {"written_at": time.time()})
    return Finding("storage", "ok", f"{storage.uri} can be written and read")


def _clock(request: Request) -> Finding:
    """Against the driver's, by way of the storage: it alone says how old the driver's note is."""
    storage = Storage(request.storage)
    note = f"{request.token}/driver.json"
    written = storage.read_json(note)
    if written is None:
        return Finding("clock", "warn", "cannot be compared without a shared storage")
    skew = time.time() - (float(written["written_at"]) + storage.age_s(note))
    reference = "the driver's" if request.on_node else "the storage's"
    mend = "set the clocks by NTP: timedatectl set-ntp true"
    if not request.on_node and storage.is_local:
        skew = float(written["written_at"]) - storage.path(note).stat().st_mtime
    if abs(skew) > SKEW_FAIL_S:
        return Finding("clock", "FAIL", f"{skew:+.0f} s against {reference}", mend)
    if abs(skew) > SKEW_WARN_S:
        return Finding("clock", "warn", f"{skew:+.0f} s against {reference}", mend)
    return Finding("clock", "ok", f"within {SKEW_WARN_S:.0f} s of {reference}")


def _mlflow(request: Request) -> Finding:
    uri, mend = request.mlflow, "run `mlflow server`, and set MLFLOW_TRACKING_URI to it"
    if uri is None and not Storage(request.storage).is_local:
        text = "a bucket cannot hold its database, and MLFLOW_TRACKING_URI is not set"
        return Finding("mlflow", "FAIL", text, mend)
    if uri is None or uri.startswith("sqlite:"):
        text = "a SQLite file, written by the driver's machine"
        if request.on_node:
            return Finding("mlflow", "warn", text, f"for several machines {mend}")
        return Finding("mlflow", "ok", text)
    if not uri.startswith(("http://", "https://")):
        return Finding(
            "mlflow", "warn", f"{redact(uri)} is not asked", "a server's http:// is best"
        )
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10) as answer:
            return Finding("mlflow", "ok", f"{redact(uri)} answers {answer.status}")
    except OSError as error:
        text = f"{redact(uri)} does not answer: {last_line(error)}"
    if request.on_node:
        mend = "curves wait on storage until the driver delivers them; to log live, use an address that nodes reach"  # fmt: skip
        return Finding("mlflow", "warn", text, mend)
    return Finding("mlflow", "FAIL", text, "start the server, or correct MLFLOW_TRACKING_URI")


def _gpu(request: Request, gpus: float | None) -> Finding:
    expected = gpus if gpus is not None else float(request.wants_gpu)
    if not expected:
        return Finding("gpu", "ok", "none needed here")
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen:
        return Finding("gpu", "ok", f"{seen} visible to torch")
    text = f"torch {torch.__version__} sees none"
    if gpus is None:
        return Finding("gpu", "warn", text, "the profile wants one: --address, or --profile quick")
    mend = "nvidia-smi on the node: a driver, and a torch built for its CUDA"
    return Finding("gpu", "FAIL", f"Ray counts {gpus:.0f}, {text}", mend)


def _drawing(request: Request) -> Finding:
    from lewm.envs import make_env

    env = make_env(request.env, image_size=56)
    try:
        env.reset(seed=0)
        env.render()
    finally:
        env.close()
    backend = os.environ.get("MUJOCO_GL") or "chosen by itself"
    return Finding("drawing", "ok", f"{request.env} draws (MUJOCO_GL {backend})")


def _cache() -> Finding:
    place = Path(os.environ.get("LEWM_CACHE") or cache.DEFAULT).expanduser()
    mend = "set LEWM_CACHE to a folder on the node's own disk with room for the dataset"
    try:
        Storage(place).check_writable()
    except ValueError as error:
        return Finding("cache", "FAIL", last_line(error), mend)
    free = shutil.disk_usage(place).free / 1e9
    state = "ok" if free >= CACHE_GB else "warn"
    return Finding("cache", state, f"{place} has {free:.0f} GB free", "" if state == "ok" else mend)


def _disk() -> Finding:
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free / 1e9
    if free >= DISK_GB:
        return Finding("disk", "ok", f"at least {DISK_GB:.0f} GB free in {place}")
    mend = "checkpoints and Ray's own files go through it: make room, or set TMPDIR"
    return Finding("disk", "warn" if free > 1 else "FAIL", f"{place} has {free:.1f} GB free", mend)


def _shared_memory() -> Finding:
    if not Path("/dev/shm").is_dir():
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    free = shutil.disk_usage("/dev/shm").free / 1e9
    if free >= SHM_GB:
        return Finding("shared memory", "ok", f"at least {SHM_GB:.0f} GB free in /dev/shm")
    mend = "docker run --shm-size=4g, or a memory-backed volume at /dev/shm"
    return Finding("shared memory", "warn", f"/dev/shm has {free:.2f} GB free", mend)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Finding("open files", "ok", f"at least {OPEN_FILES} allowed")
    return Finding(
        "open files", "warn", f"{soft} allowed", "ulimit -n 65536 before `ray start` and the driver"
    )
