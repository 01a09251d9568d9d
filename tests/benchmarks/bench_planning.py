"""One CEM plan for one episode at published sizes (300 samples, horizon 5 x 5 steps).

Ten iterations of the published 30 on one thread (three in CI's run): a plan's time is proportional to them but for the
encoding of start and goal. And all 30 on two threads, as the targets were set. The floor does the counted operations
of our plan as matrix products.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from lewm.config import PlanningConfig
from lewm.methods import make_method
from lewm.overrides import make_config
from lewm.planners import make_planner
from tests.benchmarks.plugin import SHORT, Measure, count_flops, matrix_products

CASES = {"paper sizes": (3 if SHORT else 10, 1), "paper sizes, 30 iterations, 2 threads": (30, 2)}
"""Iterations and threads."""


def parametrised(function: Any) -> Any:
    cases = [
        pytest.param(*case, marks=pytest.mark.benchmark(group=f"CEM plan, {name}"))
        for name, case in CASES.items()
        if not SHORT or case[1] == 1
    ]
    return pytest.mark.parametrize(("iterations", "threads"), cases)(function)


@pytest.fixture(autouse=True)
def on_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(
        request.node.callspec.params["threads"] if hasattr(request.node, "callspec") else 1
    )
    yield
    torch.set_num_threads(1)


def frames() -> torch.Tensor:
    return torch.randn(1, 1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def our_plan(iterations: int) -> Callable[[], object]:
    method = make_method(make_config({}), 2).eval()
    settings = PlanningConfig(num_iterations=iterations)
    planner, start = make_planner(settings), frames()

    @torch.inference_mode()
    def plan() -> object:
        generators = [torch.Generator().manual_seed(0)]
        return planner.plan(method.plan_cost(start, start), generators, settings.horizon, 10)

    return plan


@parametrised
def bench_floor(iterations: int, threads: int, measure: Measure) -> None:
    flops = count_flops(our_plan(iterations))
    measure(matrix_products(flops), 300 * iterations, "candidates", 5, gflop=flops / 1e9)


@parametrised
def bench_rival(iterations: int, threads: int, measure: Measure, rival: str) -> None:
    from types import SimpleNamespace

    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from stable_worldmodel.solver import CEMSolver

    from lewm.released_config import make_release

    model: Any = instantiate(OmegaConf.create(make_release(make_config({}).model, 2))).eval()
    solver = CEMSolver(model, num_samples=300, n_steps=iterations, topk=30)
    space = Box(-1, 1, (1, 2), dtype=np.float32)
    solver.configure(
        action_space=space, n_envs=1, config=SimpleNamespace(horizon=5, action_block=5)
    )
    info = {"pixels": frames(), "goal": frames(), "action": torch.zeros(1, 1, 10)}
    measure(lambda: solver.solve(dict(info)), 300 * iterations, "candidates", 5, rival=rival)


@parametrised
def bench_ours(iterations: int, threads: int, measure: Measure) -> None:
    measure(our_plan(iterations), 300 * iterations, "candidates", 5)


@pytest.mark.benchmark(group="CEM without a model, 50 plans of 300 x 30")
def bench_search_ours(measure: Measure) -> None:
    """What a CPU does of a plan that an accelerator prices: draws, sorts, refits."""
    settings = PlanningConfig()
    planner = make_planner(settings)

    def plans() -> None:
        generators = [torch.Generator().manual_seed(number) for number in range(50)]
        planner.plan(lambda actions: actions[..., -1, 0], generators, settings.horizon, 10)

    measure(plans, 50, "plans", 10)
