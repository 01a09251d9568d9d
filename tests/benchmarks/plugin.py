"""What all benchmarks share, a plugin of `make bench` alone: the machine's fingerprint, the side of a measurement, the rival.

A benchmark's group is what is asked; its tests are the sides: `ours`, a rival, or `floor`, the same arithmetic
or bytes as bare matrix products or copies. Sides of a group are measured one after the other in one run, all of
them on as many threads (one, unless the group says so) and with memory set up as our workers do.
"""

import importlib.util
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lewm.training import keep_freed_memory
from pipeline.stages.timing import flop_counter

SHORT = os.environ.get("BENCH") == "short"
"""CI's run: fewer rounds and smaller work, so that ratios stay but figures mean less."""
TILE = 512
TOLD = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
"""Abilities of a processor that decide which kernels run."""
LIBRARIES = ("numpy", "h5py", "hdf5plugin", "lz4", "cramjam", "pylance", "stable-worldmodel")
Measure = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the sides of a group together, groups in the order of their first side."""

    def group(item: pytest.Item) -> str:
        marker = item.get_closest_marker("benchmark")
        return marker.kwargs["group"] if marker else item.nodeid

    order = {name: place for place, name in enumerate(dict.fromkeys(map(group, items)))}
    items.sort(key=lambda item: order[group(item)])


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Replaces the plugin's own account: what decides speed, and nothing that names a person's machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    machine_info.clear()
    machine_info |= {
        "cpu": told.get("model name", platform.processor()),
        "family_model_stepping": [told.get(k) for k in ("cpu family", "model", "stepping")],
        "flags": sorted(TOLD & set(told.get("flags", "").split())),
        "cache": told.get("cache size"),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "libraries": {name: version(name) for name in LIBRARIES if _installed(name)},
        "short": SHORT,
    }


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """`measure(call, units, unit)`: times a call that does `units` of something."""

    def run(
        call: Callable[[], object], units: float = 1, unit: str = "", rounds: int = 15, **more: Any
    ) -> None:
        benchmark.extra_info.update(units=units, unit=unit, **more)
        benchmark.pedantic(call, rounds=max(3, rounds // 3) if SHORT else rounds, warmup_rounds=1)

    return run


def count_flops(call: Callable[[], object]) -> float:
    """Floating point operations of the products, convolutions and attention in a call."""
    counter: FlopCounterMode = flop_counter()
    with counter:
        call()
    return float(counter.get_total_flops())


def matrix_products(flops: float) -> Callable[[], object]:
    """The floor of arithmetic: as many floating point operations as square matrix products."""
    a, b, out = (torch.randn(TILE, TILE) for _ in range(3))
    times = max(1, round(flops / (2 * TILE**3)))

    def call() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return call


@pytest.fixture(scope="session")
def rival() -> Any:
    """stable-worldmodel, the authors' library, with its home in a folder of ours and no network."""
    needed = ("stable_worldmodel", "stable_pretraining", "transformers", "hydra")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    from tests.interop.test_stable_worldmodel import stand_in_for_torchvision

    operators = stand_in_for_torchvision()
    import stable_worldmodel

    stable_worldmodel.operators_kept_alive = operators
    return f"stable-worldmodel {version('stable-worldmodel')}"
