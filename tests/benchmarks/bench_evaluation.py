"""Probes of one layer at the default sizes; frames per second of the installed worlds, stepping included."""

import numpy as np
import pytest
import torch

from lewm.config import ProbingConfig
from lewm.envs import ENVS, make_env
from pipeline.stages.probing import fit_mlp, fit_ridge
from tests.benchmarks.plugin import Measure, count_flops, matrix_products

PROBES = pytest.mark.benchmark(group="probes of one layer, D = 192, 6 targets")


def fit() -> None:
    settings = ProbingConfig()
    generator = torch.Generator().manual_seed(0)
    x, y, test = (
        torch.randn(n, d, generator=generator, dtype=torch.float64)
        for n, d in ((settings.num_train, 192), (settings.num_train, 6), (settings.num_test, 192))
    )
    fit_ridge(x, y, test, settings.ridge)
    fit_mlp(x, y, test, settings)


@PROBES
def bench_ours(measure: Measure) -> None:
    measure(fit, 1, "fits", 5)


@PROBES
def bench_floor(measure: Measure) -> None:
    measure(matrix_products(count_flops(fit)), 1, "fits", 5)


COLLECTIONS = [
    pytest.param(w, s, marks=pytest.mark.benchmark(group=f"frames drawn at {s} px, {w}"))
    for s in (64, 224)
    for w in ENVS
]


@pytest.mark.parametrize(("world", "size"), COLLECTIONS)
def bench_collection(world: str, size: int, measure: Measure) -> None:
    try:
        env = make_env(world, image_size=size, render_quality="exact")
    except (ValueError, ImportError) as error:
        pytest.skip(str(error))
    policy = "random" if "random" in env.behaviours else next(iter(env.behaviours))
    behaviour = env.make_behaviour(policy, np.random.default_rng(0))
    env.reset(seed=0)
    behaviour.reset(env)
    count = 5 if world == "cube" else 20

    def steps() -> None:
        for _ in range(count):
            env.step(behaviour.act(env))
            env.render()

    measure(steps, count, "frames", 6)
    env.close()
