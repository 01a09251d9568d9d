"""Push-T: a disc pushes a T-shaped block to a pose (paper App. E; facts §3.1).

The published rules on pymunk 7: relative actions, PD control at 10 Hz, a fixed green T always drawn;
the goal is another state. Two setters:

- `exact`: poses and velocities are put in directly, into a fresh simulation, so that what follows is a
  function of the state alone.
- `paper` (published): one physics step is made after setting, which moves what overlaps or moves.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium
import numpy as np
import numpy.typing as npt

from lewm.envs import push_t_scene as scene
from lewm.envs.base import Array, Env, Random, State, Violation, ViolationKind
from lewm.envs.push_t_policies import Pusher, Weak
from lewm.envs.push_t_scene import Colour, Painter, Plane

if TYPE_CHECKING:
    from lewm.protocol import Protocol as EvaluationProtocol

REACHED_PX, REACHED_DEG = 20.0, 20.0
TELEPORT_PX = 100.0
WINDOW, MOVED_PX = 25, 20.0
RED: Colour = (220, 50, 50)


class PushTEnv(Env):
    """The Push-T world; observation and state are (10,), px and rad of a 512-px plane.

    Agent x, y; block x, y and angle in 0..2 pi; agent velocity x, y (the published seven numbers);
    block velocity x, y, angular.

    Args:
        image_size: pixels per side of the frames, 8..224. 224 is drawn as published, smaller ones are
            area averages of the 512-px canvas.
        setter: `exact` or `paper`.

    Raises:
        ValueError: an option out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    name: ClassVar[str] = "push_t"
    action_dim: ClassVar[int] = 2
    proprio = {"proprio": 4}  # noqa: RUF012
    behaviours = {"weak": Weak, "pusher": Pusher, "random": Random}  # noqa: RUF012
    success_rule: ClassVar[Mapping[str, float | bool]] = {
        "position_px": REACHED_PX,
        "angle_deg": REACHED_DEG,
        "block_only": False,
    }

    def __init__(
        self,
        image_size: int = 224,
        setter: Literal["exact", "paper"] = "exact",
        render_quality: Literal["exact"] = "exact",
        render_mode: str | None = "rgb_array",
    ) -> None:
        super().__init__(image_size, render_quality, render_mode)
        if setter not in ("exact", "paper"):
            raise ValueError(f"push_t: setter must be exact or paper, got {setter!r}")
        self._settles = setter == "paper"
        self._painter: Painter | None = None
        low, high = np.full(10, -np.inf), np.full(10, np.inf)
        low[4], high[4] = 0.0, 2 * math.pi
        self.observation_space = gymnasium.spaces.Box(low, high, (10,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._plane = Plane(np.array([256, 400, 400, 100, *[0.0] * 6], dtype=np.float64))
        self._goal = self._plane.state()

    def draw_task(self) -> None:
        """Start and goal in the published ranges, agent and block apart from each other."""
        self.set_goal(draw_state(self.np_random))
        self.set_state(draw_state(self.np_random))

    def step(self, action: Array) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Drives towards a point up to 100 px away; the reward is 1 where the published rule holds.

        Raises:
            ValueError: the action is not two finite numbers.
        """
        values = np.asarray(action, dtype=np.float32)
        if values.shape != (2,) or not np.isfinite(values).all():
            raise ValueError(f"push_t: action must be 2 finite numbers, got {action!r}")
        dx, dy = np.float32(scene.REACH) * np.clip(values, -1.0, 1.0)
        self._plane.drive(dx, dy)
        return self.get_state(), float(self.reached()), False, False, {}

    def render(self) -> npt.NDArray[np.uint8]:
        """The frame (H, W, 3) of the current state; the goal state is never drawn."""
        return self.render_state(self.get_state())

    def render_state(
        self, state: Array, block_colour: Colour = scene.SLATE, **options: Any
    ) -> npt.NDArray[np.uint8]:
        """The frame of any state, with the block in any colour."""
        if options:
            raise ValueError(f"push_t: unknown render options {sorted(options)}")
        if self._painter is None:
            self._painter = Painter(self.image_size)
        return self._painter.draw(_padded(_check(state)), block=block_colour)

    def get_state(self) -> State:
        """The ten numbers of the state."""
        return self._plane.state()

    def set_state(self, state: Array) -> None:
        """Puts the world into a state; takes the published seven numbers too.

        `paper` knows no block velocity; `exact` finds it from the contacts where it is not given.
        """
        values = _check(state)
        if self._settles:
            self._plane = Plane(_padded(values[:7]))
            self._plane.settle()
        else:
            self._plane = Plane.resumed(values)

    @property
    def goal(self) -> State:
        """The goal state (10,)."""
        return self._goal.copy()

    def set_goal(self, goal_state: Array) -> None:
        """Makes a state the goal; its velocities do not matter."""
        self._goal = _padded(_check(goal_state))

    def goal_distance(self) -> float:
        """Distance of (agent, block) places from the goal's in px, as the published rule takes it."""
        return float(np.linalg.norm(self.get_state()[:4] - self._goal[:4]))

    def reached(self) -> bool:
        """The published rule: (agent, block) within 20 px and the angle within 20 degrees."""
        return self._within(self.goal_distance(), REACHED_PX, REACHED_DEG)

    def success(self, protocol: "EvaluationProtocol") -> bool:
        """(agent, block), or with `block_only` the block alone, nearer than `position_px`, and the
        block's angle nearer than `angle_deg`."""
        rule = {**self.success_rule, **protocol.success}
        if rule["block_only"]:
            distance = float(np.linalg.norm(self.get_state()[2:4] - self._goal[2:4]))
        else:
            distance = self.goal_distance()
        return self._within(distance, rule["position_px"], rule["angle_deg"])

    def _within(self, distance: float, limit_px: float, limit_deg: float) -> bool:
        turn = abs(self._goal[4] - self.get_state()[4]) % (2 * math.pi)
        turn = min(turn, 2 * math.pi - turn)
        return bool(distance < limit_px and turn < math.radians(limit_deg))

    def admits(self, protocol: "EvaluationProtocol", start: Array, goal: Array) -> bool:
        """Every pair of states."""
        return True

    @staticmethod
    def physical_state(columns: Mapping[str, Array]) -> dict[str, Array]:
        """`agent_position`, `block_position` in px and `block_angle` as sin and cos, each (N, 2)."""
        state = _column(columns)
        angle = state[:, 4]
        return {
            "agent_position": state[:, 0:2],
            "block_position": state[:, 2:4],
            "block_angle": np.stack([np.sin(angle), np.cos(angle)], axis=1),
        }

    def violations(self) -> dict[str, tuple[ViolationKind, Violation]]:
        """`teleport`: agent and block jump by at least 100 px each; `colour`: the block turns red."""
        return {"teleport": ("physical", _teleport), "colour": ("visual", _recolour)}

    def state_columns(self, state: Array) -> dict[str, Array]:
        """`state` (7), `proprio` (4), `goal_state` (7) as published, and `block_velocity` (3)."""
        values = _padded(_check(state))
        return {
            "state": values[:7],
            "proprio": values[[0, 1, 5, 6]],
            "goal_state": self._goal[:7],
            "block_velocity": values[7:],
        }

    @staticmethod
    def state_from_columns(columns: Mapping[str, Array], row: int) -> State:
        """From `state` and `block_velocity`, which published files lack: then from the contacts."""
        state = _check(columns["state"][row])
        if "block_velocity" not in columns:
            return Plane.resumed(state).state()
        return np.concatenate([state, columns["block_velocity"][row]])

    @staticmethod
    def coverage(columns: Mapping[str, Array], ep_len: Array) -> dict[str, float]:
        """Shares: 25-step windows that move the block over 20 px, block cells (64 px), angles (15 deg)."""
        state = _column(columns)
        ends = np.cumsum(ep_len, dtype=np.int64)
        moved = [
            np.linalg.norm(e[WINDOW:] - e[:-WINDOW], axis=1) > MOVED_PX
            for e in (state[end - n : end, 2:4] for end, n in zip(ends, ep_len, strict=True))
            if len(e) > WINDOW
        ]
        cells = np.clip(state[:, 2:4] // 64, 0, 7).astype(int)
        angles = (state[:, 4] % (2 * math.pi) / math.radians(15)).astype(int)
        return {
            "windows_moved": float(np.concatenate(moved).mean()) if moved else 0.0,
            "cells_visited": len(set(map(tuple, cells.tolist()))) / 64,
            "angles_visited": len(set(angles.tolist())) / 24,
        }


def draw_state(rng: np.random.Generator) -> State:
    """Agent in 50..450, block in 100..400, any angle, all at rest (published ranges), not overlapping."""
    while True:
        agent, block = rng.uniform(50, 450, 2), rng.uniform(100, 400, 2)
        state = np.array([*agent, *block, rng.uniform(0, 2 * math.pi), *[0.0] * 5])
        if _is_apart(state):
            return state


def _is_apart(state: State) -> bool:
    """Whether the agent touches neither part of the block."""
    x, y, angle = state[2:5]
    c, s = math.cos(angle), math.sin(angle)
    dx, dy = state[0] - x, state[1] - y
    own_x, own_y = c * dx + s * dy, -s * dx + c * dy
    for part in (scene.BAR, scene.STEM):
        xs, ys = [p[0] for p in part], [p[1] for p in part]
        gap = math.hypot(
            max(min(xs) - own_x, 0, own_x - max(xs)), max(min(ys) - own_y, 0, own_y - max(ys))
        )
        if gap <= scene.AGENT_RADIUS + 2:
            return False
    return True


def _check(state: Array) -> npt.NDArray[np.float64]:
    values = np.asarray(state, dtype=np.float64)
    if values.shape not in ((7,), (10,)):
        raise ValueError(f"push_t: a state has 10 numbers (or the published 7), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"push_t: a state must be finite, got {values.tolist()}")
    return values


def _padded(state: State) -> State:
    return np.concatenate([state, np.zeros(10 - len(state))])


def _column(columns: Mapping[str, Array]) -> npt.NDArray[np.float64]:
    if "state" not in columns:
        raise ValueError("push_t: no column state in the data")
    return np.asarray(columns["state"], dtype=np.float64)


def _teleport(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    while True:
        after = draw_state(rng)
        agent, block = (np.linalg.norm(after[i : i + 2] - state[i : i + 2]) for i in (0, 2))
        if min(agent, block) >= TELEPORT_PX:
            return after, {}


def _recolour(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    return np.array(state, dtype=np.float64), {"block_colour": RED}
