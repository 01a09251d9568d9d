"""What only an accelerator can get wrong; `pytest -m gpu` on a machine with one.

`TEST_DEVICE=cpu python -m pytest -m gpu tests/lewm/test_gpu.py` runs all of it without, to see that the tests work.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lewm.agent import price_plans
from lewm.config import PlanningConfig
from lewm.curve import RunFiles
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.methods import Method, make_method
from lewm.run import make_run
from lewm.training import _batches, _setup_torch, _Updates, train
from tests.lewm.test_resume import SETTINGS, assert_same_end, train_and_die
from tests.lewm.test_train import make_episodes, read_curve, tiny

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product
DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON_GPU = DEVICE != "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no GPU here"),
]
MODES = ("off", "default", "reduce-overhead")


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_episodes(path, make_episodes(6, 26))
    return path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lewm", "pldm"])
def test_it_trains_as_a_cpu_does(
    method: str, precision: str, dataset: Path, tmp_path: Path
) -> None:
    """The same curve to 1 %, to 10 % in bf16, whose products a GPU sums in another order."""
    curves = []
    for number, device in enumerate(("cpu", DEVICE)):
        settings = {"run__device": device, "optim__precision": precision, "model__dropout": 0.0}
        folder = tmp_path / str(number)
        assert train(tiny(method=method, **settings), folder, dataset).status == "done"
        curves.append(read_curve(folder)[:-1])
    for row, other in zip(*curves, strict=True):
        wanted = pytest.approx(row["loss"], rel=0.01 if precision == "fp32" else 0.1)
        assert other["loss"] == wanted, row["step"]


@pytest.mark.parametrize("mode", MODES if ON_GPU else MODES[:1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_is_exact(precision: str, mode: str, dataset: Path, tmp_path: Path) -> None:
    changes = {"run__device": DEVICE, "optim__precision": precision, "optim__compile": mode}
    train(tiny(**SETTINGS, **changes), tmp_path / "whole", dataset)
    train_and_die(tmp_path / "broken", dataset, 6, **changes)
    train(tiny(**SETTINGS, **changes), tmp_path / "broken", dataset)
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


def refuse_waiting(mode: str) -> None:
    if ON_GPU:
        torch.cuda.set_sync_debug_mode(mode)


def test_updates_do_not_wait_for_the_device(dataset: Path, tmp_path: Path) -> None:
    """Once batches are there; only reading what was measured waits."""
    config = tiny(run__device=DEVICE, run__pixels_in_memory_gb=0.0)
    device = _setup_torch(config)
    with EpisodeFile(dataset) as file:
        run = make_run(config, tmp_path, file, device)
        batches, updates = list(_batches(run, 0, 6)), _Updates(run)
        updates.make(0, batches[0])
        try:
            refuse_waiting("error")
            for step, batch in enumerate(batches[1:], start=1):
                updates.make(step, batch)
        finally:
            refuse_waiting("default")
        with RunFiles(tmp_path, run.curve, 0, 1) as files:
            assert updates.read(files) is None


@pytest.fixture(scope="module")
def method() -> Method:
    torch.manual_seed(0)
    made = make_method(tiny(), 2).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("mode", MODES if ON_GPU else MODES[:1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_plans_cost_what_they_do_on_a_cpu(precision: str, mode: str, method: Method) -> None:
    """To 1e-4 in fp32, to 10 % in bf16; asked twice, for a graph's output is overwritten."""
    frames, actions = torch.randn(4, 2, 3, 16, 16), torch.randn(2, 4, 9, 5, 10)
    plain = price_plans(
        method.cpu(), PlanningConfig(), torch.device("cpu"), frames[:, :1], frames[:, 1:]
    )
    expected = [plain(part) for part in actions]
    settings = PlanningConfig(precision=precision, compile=mode)
    there = frames.to(DEVICE)
    with torch.no_grad():
        cost = price_plans(
            method.to(DEVICE), settings, torch.device(DEVICE), there[:, :1], there[:, 1:]
        )
        found = [cost(part) for part in actions]
    for ours, theirs in zip(found, expected, strict=True):
        tolerance = 1e-4 if precision == "fp32" else 0.1
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
