"""Connecting to Ray: a local one started for this process, or an existing cluster."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.redact import SECRETS

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set for the driver, inherited by a local Ray and handed to the workers of a cluster."""
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Binds a Ray of our own to 127.0.0.1 on every system; by default on Linux it is open to the network."""
PASSED_ON = ("MLFLOW_", "AWS_", "LEWM_", "MUJOCO_GL", "RAY_AUTH_MODE", "OMP_NUM_THREADS")
"""Prefixes of the variables that workers of a cluster get from the driver."""
NOT_PASSED_ON = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "LEWM_CACHE")
"""They name files of one machine."""
PACKAGES = ("lewm", "pipeline", "sweeps")
"""Code that travels to the workers of a cluster, so that every node runs the driver's."""
SAME_EVERYWHERE = ("torch", "numpy", "h5py", "ray", "polars", "pyarrow")
"""Libraries whose versions must be those of the driver: bits depend on them."""
OBJECT_STORE_BYTES = 100 * 1024**2
PROBE_S = 5.0


def connect(address: str | None, num_cpus: int | None = None) -> None:
    """Makes Ray ready for tasks and trials.

    Args:
        address: None starts a Ray of our own on this machine, bound to loopback (never joins a stale
            one); `auto` or `host:port` joins an existing cluster.
        num_cpus: CPUs of a Ray of our own; all by default.

    Raises:
        ValueError: no cluster answers at the address, or one that runs other versions.
    """
    os.environ.update(ENVIRONMENT | (LOOPBACK_ONLY if address is None else {}))
    import ray

    if ray.is_initialized():
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **settings,
        )
        return
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "10")  # gives up within 20 s
    settings["runtime_env"] = _worker_environment()
    _probe(address)
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise _nobody(address, str(error).strip().splitlines()[0]) from None


def _worker_environment() -> dict[str, Any]:
    """The runtime environment of a cluster's workers: our code, our variables, our secrets.

    Ray writes variables of a runtime environment into its logs, so secrets go by a setup hook.
    """
    passed = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED_ON) and name not in (*NOT_PASSED_ON, *SECRETS)
    }
    secrets = {name: os.environ[name] for name in SECRETS if name in os.environ}
    found: dict[str, Any] = {
        "env_vars": ENVIRONMENT | passed,
        "py_modules": [str(_package_folder(name)) for name in PACKAGES],
        "excludes": ["**/__pycache__/**"],
    }
    if secrets:

        def take_secrets() -> None:
            os.environ.update(secrets)

        found["worker_process_setup_hook"] = take_secrets
    return found


def _package_folder(name: str) -> Path:
    package = importlib.import_module(name)
    return Path(next(iter(package.__path__))).resolve()


def _probe(address: str) -> None:
    """Refuses at once what nobody listens at; Ray itself would try for minutes."""
    if address == "auto":
        from ray._private.services import find_gcs_addresses

        if not os.environ.get("RAY_ADDRESS") and not find_gcs_addresses():
            raise _nobody(address, "no Ray runs on this machine")
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"--address {address!r}: auto or host:port, e.g. 10.0.0.5:6379")
    if address.startswith("ray://"):
        raise ValueError(f"--address {address!r}: Ray Client is not supported; run on the head")
    try:
        socket.create_connection((host, int(port)), PROBE_S).close()
    except OSError as error:
        raise _nobody(address, str(error)) from None


def _nobody(address: str, reason: str) -> ValueError:
    return ValueError(
        f"no Ray cluster answers at {address!r} ({reason}); check the address, `ray status` on the "
        "head, firewalls, and RAY_AUTH_MODE and the token on both sides"
    )


@functools.cache
def code_hash() -> str:
    """Hash over the sources of `PACKAGES`: two processes with the same hash run the same code."""
    total = hashlib.sha256()
    for name in PACKAGES:
        folder = _package_folder(name)
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".toml"):
                total.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:12]


def node_versions() -> dict[str, str]:
    """What must be alike on every node: Python's minor version, libraries, our own code."""
    found = {name: importlib.metadata.version(name) for name in SAME_EVERYWHERE}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **found, "lewm-sweep": code_hash()}


def differences(driver: Mapping[str, str], node: Mapping[str, str]) -> str:
    """What a node has that the driver has not: `torch 2.12 (driver 2.13)`; empty if nothing."""
    names = [name for name in driver if node.get(name) != driver[name]]
    return ", ".join(f"{name} {node.get(name)} (driver {driver[name]})" for name in names)


def on_every_node(call: Callable[[], Any], timeout_s: float = 60.0) -> dict[str, Any]:
    """Runs a function once on each node that is alive and can run something; by node address.

    A node that does not answer in time, or raises, has the exception as its result.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(call)
    waiting = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            waiting[name] = remote.options(scheduling_strategy=here).remote()
    ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=timeout_s)
    found: dict[str, Any] = {}
    for name, reference in waiting.items():
        try:
            found[name] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            found[name] = TimeoutError(f"no answer in {timeout_s:.0f} s")
            ray.cancel(reference, force=True)
        except Exception as error:
            found[name] = error
    return found


def spans_machines() -> bool:
    """Whether the connected cluster has nodes on other machines than this one."""
    import ray

    here = ray.util.get_node_ip_address()
    return (
        any(n["NodeManagerAddress"] != here for n in ray.nodes() if n["Alive"]) or _has_autoscaler()
    )


def check_versions() -> None:
    """Refuses a cluster with a node whose Python, libraries or code are not the driver's.

    Raises:
        ValueError: names the node and what differs.
    """
    driver = node_versions()
    for node, found in on_every_node(node_versions).items():
        if isinstance(found, Exception):
            reason = (str(found).strip().splitlines() or [type(found).__name__])[-1]
            raise ValueError(f"node {node} cannot run our code: {reason}")
        if wrong := differences(driver, found):
            raise ValueError(
                f"node {node} has {wrong}: install the same there (`pip install -c constraints.txt`)"
            )


def resources_per_trial(
    num_threads: int,
    per_gpu: int = 1,
    per_node: int | None = None,
    wants_gpu: bool = False,
    memory_gb: float | None = None,
) -> dict[str, float]:
    """CPU and GPU shares of one trial on the connected cluster.

    Args:
        per_gpu: trials that share a GPU, where the cluster has any.
        per_node: trials that share the CPUs of a node; None: as many as it has CPUs for.
        wants_gpu: refuse a cluster without one.
        memory_gb: what a trial is known to take of a node, if it is.

    Raises:
        ValueError: no machine of the cluster has that many CPUs, or a GPU where one is wanted, or the
            memory for so many trials side by side.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    growing = not cpus or _has_autoscaler()
    has_gpu = any(node.get("GPU", 0.0) >= 1 for node in nodes) or (wants_gpu and growing)
    if wants_gpu and not has_gpu:
        raise ValueError(
            "this profile is sized for a GPU, and no machine here has one: add GPU nodes, choose "
            "--profile quick, or say --set run.device=cpu"
        )
    share = {"CPU": float(num_threads)}
    if per_node is not None:
        _check_memory(per_node, memory_gb, nodes)
        share["CPU"] = min(cpus, default=1.0) / per_node
    elif num_threads > max(cpus, default=0.0) and not growing:
        raise ValueError(
            f"optim.num_threads = {num_threads}, but the largest machine here has {max(cpus):.0f} "
            "CPUs; choose another profile or --set optim.num_threads (it is part of a trial's identity)"
        )
    if has_gpu:
        share["GPU"] = 1.0 / per_gpu
    return share


def _check_memory(
    per_node: int, memory_gb: float | None, nodes: Sequence[Mapping[str, float]]
) -> None:
    smallest = min((node["memory"] for node in nodes if node.get("CPU")), default=0.0) / 2**30
    if memory_gb and smallest and per_node * memory_gb > smallest:
        raise ValueError(
            f"--trials-per-node {per_node}: a trial takes about {memory_gb:.1f} GB, and the smallest "
            f"machine has {smallest:.1f} GB for them: at most {max(int(smallest / memory_gb), 1)}"
        )


def _has_autoscaler() -> bool:
    """Whether the cluster can grow, so that what is missing now may come.

    Every head reports node types; one that has no configuration to grow by names each after its node's id.
    """
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

    status = _internal_kv_get(b"__autoscaling_status") if _internal_kv_initialized() else None
    report = json.loads(status).get("autoscaler_report") if status else None
    types = (report or {}).get("active_nodes") or {}
    return any(re.fullmatch("node_[0-9a-f]{56}", name) is None for name in types)
