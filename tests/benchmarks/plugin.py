"""What all benchmarks share, a plugin of `make bench` alone: the machine's fingerprint, the side of a measurement, the rival.

A benchmark's group is what is asked; its tests are the sides: `ours`, a rival, or `floor`, the same arithmetic
or bytes as bare matrix products or copies. Sides of a group are measured one after the other in one run.
"""

import importlib.util
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

SHORT = os.environ.get("BENCH") == "short"
"""CI's run: fewer rounds and smaller work, so that ratios stay but figures mean less."""
TILE = 512
Measure = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Replaces the plugin's own account: what decides speed, and nothing that names a person's machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    machine_info.clear()
    machine_info |= {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "short": SHORT,
    }


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """`measure(call, units, unit)`: times a call that does `units` of something."""

    def run(
        call: Callable[[], object], units: float = 1, unit: str = "", rounds: int = 15, **more: Any
    ) -> None:
        benchmark.extra_info.update(units=units, unit=unit, **more)
        benchmark.pedantic(call, rounds=max(3, rounds // 3) if SHORT else rounds, warmup_rounds=1)

    return run


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
