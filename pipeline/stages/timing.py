"""Seconds per plan, methods and planners side by side (paper Fig. 3), with the operations they take.

Runs once per sweep, alone on the machine. Planning time does not depend on what the weights are, so they are
random and nothing is trained. Shapes: B plans made together, H horizon, A action block.
"""

import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lewm.agent import price_plans
from lewm.config import Config, PlanningConfig
from lewm.envs import env_class
from lewm.methods import Method, make_method
from lewm.planners import make_planner
from lewm.training import pick_device
from pipeline.tables import SCHEMAS, make_frame

REFERENCE = "lewm"
"""Whose operations the setting `flops` gives to every method."""
MIN_SAMPLES = 2

Row = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Case:
    """A method under one planning setting.

    Attributes:
        keys: of its rows.
        config: method, model, planning and timing settings.
    """

    keys: Row
    config: Config


@dataclass
class _Bench:
    """A case ready to be timed.

    Attributes:
        num_samples, num_iterations: what a plan is given.
        run_samples, run_iterations: what is priced of it; the time of the search is scaled.
        encode_flops: of start and goal.
        sample_flops: of one action sequence in one iteration.
    """

    case: Case
    method: Method
    setting: str
    num_samples: int
    num_iterations: int
    run_samples: int
    run_iterations: int
    encode_flops: float
    sample_flops: float

    @property
    def flops(self) -> float:
        """Of one plan."""
        return self.encode_flops + self.sample_flops * self.num_samples * self.num_iterations


def run(cases: Sequence[Case], progress: Progress) -> pl.DataFrame:
    """One row per case, setting and repetition; the cases take turns within a repetition.

    Setting `samples` gives every method the planner's own samples and iterations; `flops` gives it as many
    as LeWM's operations under the same planner settings buy, at least `MIN_SAMPLES` once. A plan's time is that
    of encoding and of searching; where fewer samples or iterations are run than a plan has, the time of
    searching is scaled by their product, which favours neither side as long as a batch fills the machine.

    Args:
        progress: told how many plans of how many are timed.

    Raises:
        ValueError: a device that cannot be used here, or settings that differ where they must not.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    device = pick_device(cases[0].config.run.device)
    repetitions = {case.config.timing.repetitions for case in cases}
    if len(repetitions) > 1:
        raise ValueError(f"timing.repetitions must be the same for all methods, got {repetitions}")
    (number,) = repetitions
    benches = _benches(cases, device)
    rows: list[Row] = []
    for repetition in range(-1, number):  # the first one warms up
        for place, bench in enumerate(benches):
            encode_s, search_s = _measure(bench, device, max(repetition, 0))
            progress((repetition + 1) * len(benches) + place + 1, (number + 1) * len(benches))
            if repetition >= 0:
                rows.append(_row(bench, device, repetition, encode_s, search_s))
    return make_frame(rows, SCHEMAS["timing"])


def _benches(cases: Sequence[Case], device: torch.device) -> list[_Bench]:
    methods: dict[str, Method] = {}
    benches = []
    for case in cases:
        config = case.config
        name = config.model_dump_json(include={"method", "model", "dino", "data"})
        if name not in methods:
            torch.manual_seed(0)
            action_dim = env_class(config.data.env).action_dim
            made = make_method(config, action_dim, random_weights=True)
            methods[name] = made.to(device).eval().requires_grad_(False)
        benches.append(_bench(case, methods[name], device))
    budgets = {
        (bench.case.keys["env"], bench.case.keys["eval_point"]): bench.flops
        for bench in benches
        if bench.case.config.method == REFERENCE
    }
    for bench in list(benches):
        budget = budgets.get((bench.case.keys["env"], bench.case.keys["eval_point"]))
        if budget is not None and "flops" in bench.case.config.timing.settings:
            benches.append(_at_equal_flops(bench, budget))
    return [b for b in benches if b.setting in b.case.config.timing.settings]


def _bench(case: Case, method: Method, device: torch.device) -> _Bench:
    """The case with its own samples and iterations, its operations counted on one small call."""
    planning, timing = case.config.planning, case.config.timing
    gradient = planning.planner == "gradient"
    samples = planning.gradient_num_starts if gradient else planning.num_samples
    iterations = planning.gradient_num_steps if gradient else planning.num_iterations
    frames = _frames(case.config, device)
    encoding, searching = flop_counter(), flop_counter()
    # What torch.compile sees first under a counter it never compiles afterwards.
    plain = _settings(case.config).model_copy(update={"compile": "off"})
    with torch.no_grad():
        with encoding:
            cost = price_plans(method, plain, device, *frames)
        block = case.config.data.action_block * env_class(case.config.data.env).action_dim
        shape = (timing.batch, MIN_SAMPLES, planning.horizon, block)
        with searching:
            cost(torch.zeros(shape))
    per_sample = searching.get_total_flops() / MIN_SAMPLES
    if gradient:
        per_sample *= 3  # the backward pass costs about twice the forward pass
    return _Bench(
        case,
        method,
        "samples",
        samples,
        iterations,
        min(timing.samples or samples, samples),
        min(timing.iterations or iterations, iterations),
        encoding.get_total_flops(),
        per_sample,
    )


def flop_counter() -> FlopCounterMode:
    """Counts matrix products, convolutions and attention; torch's own leaves out attention on a CPU."""

    def attention(query: Any, key: Any, value: Any, *more: Any, **options: Any) -> int:
        flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
        return flops

    def slope(grad: Any, query: Any, key: Any, value: Any, *more: Any, **options: Any) -> int:
        flops: int = sdpa_backward_flop_count(grad, query, key, value)  # type: ignore[no-untyped-call]
        return flops

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={forward: attention, backward: slope})


def _at_equal_flops(bench: _Bench, budget: float) -> _Bench:
    """The same with as many samples, then iterations, as the budget buys."""
    number = max(int((budget - bench.encode_flops) // bench.sample_flops), MIN_SAMPLES)
    iterations = min(max(number // bench.num_samples, 1), bench.num_iterations)
    samples = min(number // iterations, bench.num_samples)
    timing = bench.case.config.timing
    return _Bench(
        bench.case,
        bench.method,
        "flops",
        samples,
        iterations,
        min(timing.samples or samples, samples),
        min(timing.iterations or iterations, iterations),
        bench.encode_flops,
        bench.sample_flops,
    )


def _frames(config: Config, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A start and a goal: (B, 1, 3, size, size) each."""
    size = config.model.image_size
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, config.timing.batch, 1, 3, size, size, generator=generator).to(device)
    return both[0], both[1]


def _settings(config: Config) -> PlanningConfig:
    """The planner's, in the precision that is timed."""
    return config.planning.model_copy(update={"precision": config.timing.dtype})


def _measure(bench: _Bench, device: torch.device, repetition: int) -> tuple[float, float]:
    """Seconds of encoding, and of searching with what is run."""
    config = bench.case.config
    elites = max(min(config.planning.num_elites, bench.run_samples), MIN_SAMPLES)
    run = {"num_samples": bench.run_samples, "num_iterations": bench.run_iterations}
    run |= {
        "gradient_num_starts": bench.run_samples,
        "gradient_num_steps": bench.run_iterations,
    }
    settings = _settings(config).model_copy(update={**run, "num_elites": elites})
    planner, frames = make_planner(settings), _frames(config, device)
    generators = [
        torch.Generator().manual_seed(1000 * repetition + plan)
        for plan in range(config.timing.batch)
    ]
    block = config.data.action_block * env_class(config.data.env).action_dim
    with torch.no_grad():
        began = _now(device)
        cost = price_plans(bench.method, settings, device, *frames)
        encoded = _now(device)
        planner.plan(cost, generators, config.planning.horizon, block)
        return encoded - began, _now(device) - encoded


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _row(
    bench: _Bench, device: torch.device, repetition: int, encode_s: float, search_s: float
) -> Row:
    run = bench.run_samples * bench.run_iterations
    scale = bench.num_samples * bench.num_iterations / run
    return bench.case.keys | {
        "metric": "plan_s",
        "setting": bench.setting,
        "repetition": repetition,
        "num_samples": bench.num_samples,
        "num_iterations": bench.num_iterations,
        "num_samples_run": bench.run_samples,
        "num_iterations_run": bench.run_iterations,
        "batch": bench.case.config.timing.batch,
        "dtype": bench.case.config.timing.dtype,
        "device": device_name(device),
        "host": socket.gethostname(),
        "num_threads": torch.get_num_threads(),
        "flops": bench.flops,
        "random_weights": True,
        "measured_s": encode_s + search_s,
        "plan_s": encode_s + search_s * scale,
    }


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
