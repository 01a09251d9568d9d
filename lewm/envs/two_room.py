"""Two-Room: a disc walks to a goal through the one door of a wall (paper App. E; facts §3.2).

Plane, collisions and looks are in `two_room_scene`; positions are in px of the 224-pixel picture
whatever the size of the frames. Two collision rules:

- `endpoint` (published): only the end point of a step is tested, and only its y against the door,
  so the disc may cut the door's corners.
- `swept`: the disc is moved along its path and slides where it touches; it never overlaps a wall.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium
import numpy as np
import numpy.typing as npt

from lewm.envs import two_room_scene as scene
from lewm.envs.base import Array, Env, Random, State, Violation, ViolationKind
from lewm.envs.two_room_scene import DOOR_Y, HIGH, LOW, PLANE, WALL_X, Point, same_room

if TYPE_CHECKING:
    from lewm.protocol import Protocol as EvaluationProtocol

SPEED = 5.0
REACHED_PX = 16.0
SPAWN_LOW, SPAWN_HIGH = 27.0, 196.0
MIN_STEPS = 25
"""Reset draws goals in the other room at least this many full steps away, through the door."""
TELEPORT_PX = 80.0
RED, BLUE = (255, 0, 0), (0, 0, 255)
MOVES = {"endpoint": scene.move_endpoint, "swept": scene.move_swept}


class Expert:
    """The authors' data policy: unit vector to the door, then to the goal, plus noise, clipped.

    The noise has std 2.0 per axis against a drift of length 1; with probability 0.05 the last action
    is repeated (facts §3.1).
    """

    NOISE = 2.0
    REPEAT = 0.05
    DOOR_TOLERANCE = 10.5

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._last: npt.NDArray[np.float32] | None = None

    def reset(self, env: Env) -> None:
        """Forgets the last action."""
        self._last = None

    def act(self, env: Env) -> npt.NDArray[np.float32]:
        """The noisy next action."""
        assert isinstance(env, TwoRoomEnv)
        agent, waypoint = _point(env.get_state()), _point(env.goal)
        door = (WALL_X, DOOR_Y)
        if not same_room(agent, waypoint) and math.dist(agent, door) > self.DOOR_TOLERANCE:
            waypoint = door
        offset = np.array(waypoint) - agent
        noisy = offset / max(float(np.hypot(*offset)), 1e-8) + self._rng.normal(0, self.NOISE, 2)
        repeats = self._rng.random() < self.REPEAT
        if self._last is None or not repeats:
            self._last = np.clip(noisy, -1.0, 1.0).astype(np.float32)
        return self._last.copy()


class TwoRoomEnv(Env):
    """The Two-Room world; observation and state are the agent's x and y.

    Args:
        image_size: pixels per side of the frames, at most 224; smaller frames are the area average
            of the 224-pixel picture.
        collision: `endpoint` (the paper's) or `swept`.

    Raises:
        ValueError: an option out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    name: ClassVar[str] = "two_room"
    action_dim: ClassVar[int] = 2
    proprio = {"proprio": 2}  # noqa: RUF012
    behaviours = {"expert": Expert, "random": Random}  # noqa: RUF012
    success_rule: ClassVar[Mapping[str, float | bool]] = {
        "distance_px": REACHED_PX,
        "goal_side": False,
        "cross_room": False,
    }

    def __init__(
        self,
        image_size: int = PLANE,
        collision: Literal["endpoint", "swept"] = "endpoint",
        render_quality: Literal["exact"] = "exact",
        render_mode: str | None = "rgb_array",
    ) -> None:
        super().__init__(image_size, render_quality, render_mode)
        if collision not in MOVES:
            raise ValueError(f"two_room: collision must be endpoint or swept, got {collision!r}")
        self.collision = collision
        self._move = MOVES[collision]
        self.observation_space = gymnasium.spaces.Box(0.0, PLANE, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._agent: Point = (WALL_X / 2, WALL_X)
        self._goal: Point = (PLANE - self._agent[0], WALL_X)

    def draw_task(self) -> None:
        """A start anywhere, and a goal in the other room."""
        self._agent, self._goal = _draw_task(self.np_random)

    def step(self, action: Array) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Moves the agent; the reward is 1 where the published success rule holds, else 0.

        Raises:
            ValueError: the action is not finite.
        """
        dx, dy = float(action[0]), float(action[1])
        if not (math.isfinite(dx) and math.isfinite(dy)):
            raise ValueError(f"two_room: action must be finite, got {action!r}")
        x, y = self._agent
        target = (x + SPEED * min(max(dx, -1.0), 1.0), y + SPEED * min(max(dy, -1.0), 1.0))
        self._agent = self._move(self._agent, target)
        return self.get_state(), float(self.reached()), False, False, {}

    def render(self) -> npt.NDArray[np.uint8]:
        """The frame (H, W, 3) of the current state; the goal is never drawn."""
        return scene.draw(self._agent, self.image_size, RED)

    def render_state(
        self, state: Array, agent_colour: tuple[int, int, int] = RED, **options: Any
    ) -> npt.NDArray[np.uint8]:
        """The frame of any state, with the agent in any colour."""
        if options:
            raise ValueError(f"two_room: unknown render options {sorted(options)}")
        return scene.draw(_point(state), self.image_size, agent_colour)

    def get_state(self) -> State:
        """The agent's position (2,) in px."""
        return np.array(self._agent, dtype=np.float64)

    def set_state(self, state: Array) -> None:
        """Places the agent, exactly and without a collision test."""
        self._agent = _point(state)

    @property
    def goal(self) -> State:
        """The goal position (2,) in px."""
        return np.array(self._goal, dtype=np.float64)

    def set_goal(self, goal_state: Array) -> None:
        """Makes the agent's position in `goal_state` the goal."""
        self._goal = _point(goal_state)

    def goal_distance(self) -> float:
        """Distance to the goal in px."""
        return math.dist(self._agent, self._goal)

    def reached(self) -> bool:
        """Whether the goal is nearer than the published 16 px."""
        return self.goal_distance() < REACHED_PX

    def episode_over(self) -> bool:
        """The authors' episodes end at the goal."""
        return self.reached()

    def success(self, protocol: "EvaluationProtocol") -> bool:
        """Nearer than `distance_px`, and with `goal_side` in the goal's room."""
        rule = {**self.success_rule, **protocol.success}
        if rule["goal_side"] and not same_room(self._agent, self._goal):
            return False
        return self.goal_distance() < rule["distance_px"]

    def admits(self, protocol: "EvaluationProtocol", start: Array, goal: Array) -> bool:
        """With `cross_room` start and goal lie in two rooms; under `swept` both are clear of walls."""
        rule = {**self.success_rule, **protocol.success}
        if rule["cross_room"] and same_room(_point(start), _point(goal)):
            return False
        return self.collision != "swept" or (self.is_clear(start) and self.is_clear(goal))

    @staticmethod
    def is_clear(state: Array) -> bool:
        """Whether the disc overlaps neither wall nor border."""
        return scene.is_clear(_point(state))

    @staticmethod
    def physical_state(columns: Mapping[str, Array]) -> dict[str, Array]:
        """`agent_position` (N, 2) in px."""
        return {"agent_position": np.asarray(_position_column(columns), dtype=np.float64)}

    def violations(self) -> dict[str, tuple[ViolationKind, Violation]]:
        """`teleport`: a jump of at least 80 px to a clear place; `colour`: the agent turns blue."""
        return {"teleport": ("physical", _teleport), "colour": ("visual", _recolour)}

    def state_columns(self, state: Array) -> dict[str, Array]:
        """`proprio` and `pos_agent` (the position) and `goal_pos_agent` (the current goal)."""
        position = np.array(_point(state), dtype=np.float64)
        return {"proprio": position, "pos_agent": position.copy(), "goal_pos_agent": self.goal}

    @staticmethod
    def state_from_columns(columns: Mapping[str, Array], row: int) -> State:
        """The agent's position, from `proprio`, `pos_agent` or `state`."""
        return np.asarray(_position_column(columns)[row][:2], dtype=np.float64)

    @staticmethod
    def coverage(columns: Mapping[str, Array], ep_len: Array) -> dict[str, float]:
        """Shares: episodes that passed the door, 16-px cells visited, episodes that end at the goal."""
        position = np.asarray(_position_column(columns), dtype=np.float64)
        ends = np.cumsum(ep_len, dtype=np.int64)
        starts = ends - ep_len
        left = np.maximum.reduceat(position[:, 0] < WALL_X - scene.TOUCH, starts)
        right = np.maximum.reduceat(position[:, 0] > WALL_X + scene.TOUCH, starts)
        figures = {
            "crossed_door": float(np.mean(left & right)),
            "cells_visited": _cells_visited(position),
        }
        if "goal_pos_agent" in columns:
            gap = position[ends - 1] - np.asarray(columns["goal_pos_agent"])[ends - 1]
            figures["reached_goal"] = float(np.mean(np.linalg.norm(gap, axis=1) < REACHED_PX))
        return figures


def _cells_visited(position: Array, side: int = 11) -> float:
    """Share of the cells of a side x side grid with a clear centre that hold a position."""
    width = (HIGH - LOW) / side
    cell = np.clip(((position - LOW) // width).astype(np.int64), 0, side - 1)
    visited = set(map(tuple, cell.tolist()))
    grid = [(i, j) for i in range(side) for j in range(side)]
    clear = [
        c for c in grid if scene.is_clear((LOW + width * (c[0] + 0.5), LOW + width * (c[1] + 0.5)))
    ]
    return sum(c in visited for c in clear) / len(clear)


def _point(state: Array) -> Point:
    return float(state[0]), float(state[1])


def _position_column(columns: Mapping[str, Array]) -> Array:
    for name in ("proprio", "pos_agent", "state"):
        if name in columns:
            return columns[name]
    raise ValueError("two_room: no column proprio, pos_agent or state in the data")


def _draw_task(rng: np.random.Generator) -> tuple[Point, Point]:
    """A start anywhere clear of the wall's column and a goal in the other room, far enough."""
    door = (WALL_X, DOOR_Y)
    start = _draw_place(rng)
    while True:
        goal = _draw_place(rng)
        path = math.dist(start, door) + math.dist(door, goal)
        if not same_room(start, goal) and path >= MIN_STEPS * SPEED:
            return start, goal


def _draw_place(rng: np.random.Generator) -> Point:
    while True:
        place = _point(rng.uniform(SPAWN_LOW, SPAWN_HIGH, 2))
        if abs(place[0] - WALL_X) > scene.TOUCH:
            return place


def _teleport(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    while True:
        place = _draw_place(rng)
        if math.dist(place, _point(state)) >= TELEPORT_PX:
            return np.array(place, dtype=np.float64), {}


def _recolour(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    return np.array(state, dtype=np.float64), {"agent_colour": BLUE}
