"""Speed of the installed worlds in one process: `python tests/benchmarks/bench_worlds.py [ENV ...]`.

Prints environment steps/s without drawing, by behaviour policy, and frames/s of stepping and drawing at 224
and at 64 px for every render quality the world knows. The best of three rounds, as the machine may be busy;
floors are those of issue 3.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from lewm.envs import ENVS, Env, make_env

ROUNDS, ROUND_S = 3, 2.0
FLOORS = {
    ("two_room", "exact"): 600,
    ("push_t", "exact"): 200,
    ("reacher", "exact"): 25,
    ("cube", "exact"): 4,
    ("cube", "fast"): 20,
}


def per_second(call: Callable[[], object]) -> float:
    """Calls per second, the best of `ROUNDS` rounds of about `ROUND_S` seconds."""
    call()
    best = 0.0
    for _ in range(ROUNDS):
        begin, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - begin) < ROUND_S:
            call()
            count += 1
        best = max(best, count / spent)
    return best


def stepper(env: Env, policy: str) -> Callable[[], object]:
    """A call that makes one step of a behaviour, and begins a new episode after 100."""
    rng = np.random.default_rng(0)
    behaviour, steps = env.make_behaviour(policy, rng), 0

    def step() -> None:
        nonlocal steps
        if steps % 100 == 0:
            env.reset(seed=steps)
            behaviour.reset(env)
        env.step(behaviour.act(env))
        steps += 1

    return step


def bench(name: str) -> None:
    """Prints one world's speeds."""
    env = make_env(name)
    rates = {policy: per_second(stepper(env, policy)) for policy in env.behaviours}
    env.close()
    steps = ", ".join(f"{policy} {rate:,.0f}" for policy, rate in rates.items())
    print(f"{name:9} steps/s without drawing: {steps}", flush=True)
    for quality in ("exact", "fast"):
        for size in (224, 64):
            try:
                env = make_env(name, image_size=size, render_quality=quality)
            except ValueError:
                continue
            step = stepper(env, "random" if "random" in env.behaviours else next(iter(rates)))
            rate = per_second(lambda env=env, step=step: (step(), env.render()))
            floor = FLOORS.get((name, quality)) if size == 224 else None
            note = f" (floor {floor}: {'met' if rate >= floor else 'NOT met'})" if floor else ""
            print(f"{'':9} {quality} {size} px: {rate:,.0f} frames/s{note}", flush=True)
            env.close()


if __name__ == "__main__":
    for world in sys.argv[1:] or ENVS:
        try:
            bench(world)
        except ValueError as error:
            print(f"{world:9} skipped: {error}")
