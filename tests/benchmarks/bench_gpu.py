"""What only a GPU can show: `paper` trained from a file, trials of `small` side by side, 50 plans at once.

Skipped without one. `BENCH_DEVICE=cpu` runs all of it at profile `tiny`, to see that it works; such figures mean
nothing. The floor of training and planning does the counted operations as matrix products in bf16 or fp32.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lewm.agent import frozen, price_plans
from lewm.config import Config
from lewm.curve import RunFiles
from lewm.data.clips import prepare_frames
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.methods import make_method
from lewm.planners import make_planner
from lewm.run import make_run
from lewm.training import _batches, _setup_torch, _Updates
from pipeline.resolve import resolve
from pipeline.spec import Request
from tests.benchmarks.bench_data import episodes
from tests.benchmarks.plugin import Measure, count_flops

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product
DEVICE = os.environ.get("BENCH_DEVICE", "cuda")
ON_GPU = DEVICE != "cpu"
pytestmark = pytest.mark.skipif(
    ON_GPU and not torch.cuda.is_available(), reason="no GPU (see docs/speed.md)"
)
STEPS = 32 if ON_GPU else 2
MODES = ("off", "default", "reduce-overhead")
TRIALS = (1, 2, 4, 8)
NUM_PLANS = 50 if ON_GPU else 2


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """A training's settings are the process's, and other benchmarks come after these."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def config_of(profile: str, **changes: Any) -> Config:
    """Push-T's default trial of a profile, on the device measured; `section__field` changes a setting."""
    request = Request("lambda", profile=profile if ON_GPU else "tiny", envs=("push_t",))
    trial = next(t.config for t in resolve(request).trials if t.config.loss.lam > 0)
    sections: dict[str, dict[str, Any]] = {"run": {"device": DEVICE, "pixels_in_memory_gb": 0.0}}
    sections["optim"] = {"num_steps": 10**6, "num_epochs": None}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        sections.setdefault(section, {})[field] = value
    return trial.model_copy(
        update={s: getattr(trial, s).model_copy(update=c) for s, c in sections.items()}
    )


def file_of(config: Config, folder: Path) -> Path:
    size, path = config.model.image_size, folder / "push_t.h5"
    if not path.exists():
        made = episodes("push_t")
        write_episodes(path, ({**e, "pixels": e["pixels"][:, :size, :size]} for e in made))
    return path


@contextmanager
def training(config: Config, folder: Path) -> Iterator[Callable[[], None]]:
    """A call that makes `STEPS` updates as `lewm.training.train` does, fed from the file."""
    device = _setup_torch(config)
    with EpisodeFile(file_of(config, folder)) as file:
        run = make_run(config, folder, file, device)
        batches, updates, step = _batches(run, 0, run.num_steps), _Updates(run), 0
        with RunFiles(folder, run.curve, 0, 1) as files:

            def steps() -> None:
                nonlocal step
                for _ in range(STEPS):
                    updates.make(step, next(batches))
                    step += 1
                assert updates.read(files) is None

            yield steps


def floor(flops: float, dtype: torch.dtype) -> Callable[[], None]:
    size = 8192 if ON_GPU else 256
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))

    def call() -> None:
        for _ in range(max(1, round(flops / (2 * size**3)))):
            torch.mm(a, b)
        synchronise()

    return call


def synchronise() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


@pytest.mark.benchmark(group="GPU: training step, paper, fed from disk")
@pytest.mark.parametrize("mode", MODES)
def bench_train_ours(mode: str, measure: Measure, tmp_path: Path) -> None:
    with training(config_of("paper", optim__compile=mode), tmp_path) as steps:
        variant = "" if mode == "off" else f"compiled, {mode}"
        measure(steps, STEPS, "steps", 5, variant=variant)


@pytest.mark.benchmark(group="GPU: training step, paper, fed from disk")
def bench_train_floor(measure: Measure, tmp_path: Path) -> None:
    with training(config_of("paper"), tmp_path) as steps:
        flops = count_flops(steps)
    measure(floor(flops, torch.bfloat16), STEPS, "steps", 5, gflop=flops / STEPS / 1e9)


@pytest.mark.benchmark(group="GPU: trials of `small` side by side")
@pytest.mark.parametrize("count", TRIALS)
def bench_packed_ours(count: int, benchmark: Any, tmp_path: Path) -> None:
    """Each in a process of its own, as Ray packs them; all make `STEPS` updates at the same time."""
    file_of(config_of("small"), tmp_path)
    trials = []
    for number in range(count):
        command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", str(tmp_path), str(number)]
        trials.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    try:
        wait(trials)

        def together() -> None:
            for trial in trials:
                assert trial.stdin is not None
                print(file=trial.stdin, flush=True)
            wait(trials)

        variant = "" if count == 1 else f"{count} trials"
        benchmark.extra_info.update(units=count * STEPS, unit="steps", variant=variant)
        benchmark.pedantic(together, rounds=5, warmup_rounds=1)
    finally:
        for trial in trials:
            trial.kill()
            trial.wait()


def wait(trials: list["subprocess.Popen[str]"]) -> None:
    for trial in trials:
        assert trial.stdout is not None and trial.stdout.readline() == "ready\n"


def plans(precision: str, chunk: int, mode: str = "off") -> Callable[[], None]:
    """A call that makes `NUM_PLANS` plans as `lewm.control` does, worlds apart."""
    model = config_of("paper")
    config = model.planning.model_copy(update={"precision": precision, "compile": mode})
    method = make_method(model, 2).eval().to(DEVICE)
    planner, size = make_planner(config), model.model.image_size
    frames = torch.randint(0, 256, (chunk, 1, 3, size, size), dtype=torch.uint8)

    def call() -> None:
        with torch.no_grad(), frozen(method):
            for begin in range(0, NUM_PLANS, chunk):
                seen = prepare_frames(frames.to(DEVICE))
                price = price_plans(method, config, torch.device(DEVICE), seen, seen.flip(0))
                generators = [torch.Generator().manual_seed(begin + i) for i in range(chunk)]
                planner.plan(price, generators, config.horizon, 2 * model.data.action_block)

    return call


@pytest.mark.parametrize(
    "precision",
    [
        pytest.param(p, marks=pytest.mark.benchmark(group=f"GPU: 50 plans, paper, {p}"))
        for p in ("fp32", "bf16")
    ],
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [10, 50] if ON_GPU else [2])
def bench_plans_ours(precision: str, chunk: int, mode: str, measure: Measure) -> None:
    words = [f"in chunks of {chunk}"] if chunk == 50 else []
    words += [] if mode == "off" else [f"compiled, {mode}"]
    measure(plans(precision, chunk, mode), NUM_PLANS, "plans", 5, variant=" ".join(words))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        pytest.param(p, d, marks=pytest.mark.benchmark(group=f"GPU: 50 plans, paper, {p}"))
        for p, d in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    ],
)
def bench_plans_floor(precision: str, dtype: torch.dtype, measure: Measure) -> None:
    flops = count_flops(plans(precision, min(10, NUM_PLANS)))
    measure(floor(flops, dtype), NUM_PLANS, "plans", 5, gflop=flops / NUM_PLANS / 1e9)


def main(folder: Path, number: str) -> None:
    """One of several trials side by side: makes its updates each time it reads a line."""
    own = folder / number
    own.mkdir()
    (own / "push_t.h5").symlink_to(folder / "push_t.h5")
    with training(config_of("small"), own) as steps:
        steps()
        print("ready", flush=True)
        for _ in sys.stdin:
            steps()
            print("ready", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
