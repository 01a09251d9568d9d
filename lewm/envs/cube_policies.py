"""Who moves the cube: OGBench's oracles in OGBench's own loop (facts §3).

When an oracle has placed the cube, a new target is drawn and it starts again, about twice in 200 steps.
The oracles draw from NumPy's global generator; here it is seeded from the behaviour's own for the call
and put back afterwards.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lewm.envs.base import Env
from lewm.envs.gl import without_gl

with warnings.catch_warnings(), without_gl():  # it opens a window library without a display
    warnings.simplefilter("ignore")
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

if TYPE_CHECKING:
    from lewm.envs.cube import CubeEnv

NOISE = 0.1
NOISE_OF_ACTION = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
"""How much of the noise level each number of an action gets (position, yaw, gripper), as OGBench's."""


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    before = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(before)


class _PickAndPlace:
    """One oracle after another, each to a new target."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._oracle: Any = None

    def reset(self, env: Env) -> None:
        """Draws the first target."""
        self._begin(_as_cube(env))

    def act(self, env: Env) -> npt.NDArray[np.float32]:
        """The oracle's action (5,), with noise, clipped."""
        world = _as_cube(env)
        if self._oracle.done:
            self._begin(world)
        action = self._oracle.select_action(None, world.oracle_info())
        return np.clip(self._with_noise(action), -1.0, 1.0).astype(np.float32)

    def _begin(self, world: "CubeEnv") -> None:
        world.draw_target(self._rng)
        self._oracle = self._make(world.simulation)
        with _seeded(self._rng):
            self._oracle.reset(None, world.oracle_info())

    def _make(self, simulation: Any) -> Any:
        raise NotImplementedError

    def _with_noise(self, action: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return action


class Markov(_PickAndPlace):
    """Reacts to where the cube is; gaussian noise of a level drawn once per episode, up to 0.1."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self._level = rng.uniform(0.0, NOISE)

    def _make(self, simulation: Any) -> Any:
        return CubeMarkovOracle(env=simulation, min_norm=0.4)

    def _with_noise(self, action: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return action + self._rng.normal(0.0, self._level * NOISE_OF_ACTION)


class Plan(_PickAndPlace):
    """Follows a smooth plan with temporally correlated noise of level 0.1."""

    def _make(self, simulation: Any) -> Any:
        return CubePlanOracle(env=simulation, noise=NOISE)


def _as_cube(env: Env) -> "CubeEnv":
    from lewm.envs.cube import CubeEnv

    assert isinstance(env, CubeEnv)
    return env
