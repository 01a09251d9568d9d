"""Connecting to Ray: a local one started for this process, or an existing cluster."""

import os
from typing import Any

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
PASSED_ON = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MUJOCO_GL", "RAY_AUTH_MODE")
OBJECT_STORE_BYTES = 100 * 1024**2


def connect(address: str | None, num_cpus: int | None = None) -> None:
    """Makes Ray ready for tasks and trials.

    Args:
        address: None starts a Ray of our own on this machine (never joins a stale one);
            `auto` or `host:port` joins an existing cluster.
        num_cpus: CPUs of a Ray of our own; all by default.

    Raises:
        ValueError: no cluster answers at the address.
    """
    os.environ.update(ENVIRONMENT)
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
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    settings["runtime_env"] = {"env_vars": ENVIRONMENT | passed}
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({reason}); "
            "check the address, `ray status`, and RAY_AUTH_MODE on both sides"
        ) from None


def resources_per_trial(num_threads: int, gpus: float = 1.0) -> dict[str, float]:
    """CPU and GPU shares of one trial on the connected cluster.

    Args:
        gpus: share of a GPU, where the cluster has any; a fraction packs trials on one card (Ray only
            counts it, memory is not capped).

    Raises:
        ValueError: no machine of the cluster has that many CPUs.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if num_threads > most:
        raise ValueError(
            f"optim.num_threads = {num_threads}, but the largest machine here has {most:.0f} CPUs; "
            "choose another profile or --set optim.num_threads (it is part of a trial's identity)"
        )
    share = {"CPU": float(num_threads)}
    if any(node.get("GPU", 0.0) >= 1 for node in nodes):
        share["GPU"] = gpus
    return share
