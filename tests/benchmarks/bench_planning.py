"""One CEM plan for one episode at published sizes (300 samples, horizon 5 x 5 steps), on one thread.

Ten iterations of the published 30 (three in CI's run): a plan's time is proportional to them but for the encoding of
start and goal. The floor does the counted operations of our plan as matrix products.
"""

from collections.abc import Callable
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

ITERATIONS = 3 if SHORT else 10
pytestmark = pytest.mark.benchmark(group="CEM plan, paper sizes")


def frames() -> torch.Tensor:
    return torch.randn(1, 1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def our_plan() -> Callable[[], object]:
    method = make_method(make_config({}), 2).eval()
    settings = PlanningConfig(num_iterations=ITERATIONS)
    planner, start = make_planner(settings), frames()

    @torch.inference_mode()
    def plan() -> object:
        generators = [torch.Generator().manual_seed(0)]
        return planner.plan(method.plan_cost(start, start), generators, settings.horizon, 10)

    return plan


def bench_floor(measure: Measure) -> None:
    flops = count_flops(our_plan())
    measure(matrix_products(flops), 300 * ITERATIONS, "candidates", 5, gflop=flops / 1e9)


def bench_rival(measure: Measure, rival: str) -> None:
    from types import SimpleNamespace

    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from stable_worldmodel.solver import CEMSolver

    from lewm.released_config import make_release

    model: Any = instantiate(OmegaConf.create(make_release(make_config({}).model, 2))).eval()
    solver = CEMSolver(model, num_samples=300, n_steps=ITERATIONS, topk=30)
    space = Box(-1, 1, (1, 2), dtype=np.float32)
    solver.configure(
        action_space=space, n_envs=1, config=SimpleNamespace(horizon=5, action_block=5)
    )
    info = {"pixels": frames(), "goal": frames(), "action": torch.zeros(1, 1, 10)}
    measure(lambda: solver.solve(dict(info)), 300 * ITERATIONS, "candidates", 5, rival=rival)


def bench_ours(measure: Measure) -> None:
    measure(our_plan(), 300 * ITERATIONS, "candidates", 5)
