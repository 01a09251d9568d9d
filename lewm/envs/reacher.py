"""Reacher of the DeepMind control suite, `hard`, as a goal-reaching world (facts §3; paper App. E).

A two-link arm in the plane; the suite's model, two simulation steps (40 ms) per action, its target
ball made invisible. The goal is a pose of the arm: another state. Nothing but MuJoCo's warm start is
changed (switched off), so that what happens next is a function of the state alone.
"""

import copy
import functools
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt

from lewm.envs.base import Array, Env, Random, State, Violation, ViolationKind
from lewm.envs.gl import Canvas, Quality, mujoco
from lewm.envs.reacher_policies import (
    JOINT_RAD,
    WRIST_LIMIT,
    InverseKinematics,
    fingertip,
    wrap,
)

if TYPE_CHECKING:
    from lewm.protocol import Protocol as EvaluationProtocol

ACTION_REPEAT = 2
TELEPORT_M = 0.1
RED = (0.9, 0.1, 0.1, 1.0)
TARGET_M = 0.015


class ReacherEnv(Env):
    """The Reacher world; observation and state are joint angles (rad) and velocities (rad/s), (4,).

    Args:
        image_size: pixels per side of the frames, 8..224, drawn at that size.
        render_quality: `exact` as the suite draws, or `fast` without antialiasing.

    Raises:
        ValueError: an option out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    name: ClassVar[str] = "reacher"
    render_qualities = ("exact", "fast")
    action_dim: ClassVar[int] = 2
    behaviours = {"random": Random, "ik": InverseKinematics}  # noqa: RUF012
    success_rule: ClassVar[Mapping[str, float | bool]] = {
        "joint_rad": JOINT_RAD,
        "shoulder_periodic": False,
        "endpoint": False,
        "endpoint_m": 0.01,
    }

    def __init__(
        self,
        image_size: int = 224,
        render_quality: Quality = "exact",
        render_mode: str | None = "rgb_array",
    ) -> None:
        super().__init__(image_size, render_quality, render_mode)
        self._model = copy.copy(_compiled())
        self._data, self._drawn = mujoco.MjData(self._model), mujoco.MjData(self._model)
        self._canvas: Canvas | None = None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._goal = np.zeros(4)
        self.set_state(np.zeros(4))

    def draw_task(self) -> None:
        """A pose and a goal pose at rest, as the suite draws them."""
        self.set_state(_draw_pose(self.np_random))
        self.set_goal(_draw_pose(self.np_random))

    def step(self, action: Array) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Applies the torques for two simulation steps; the reward is 1 where the published rule holds.

        Raises:
            ValueError: the action is not two finite numbers.
        """
        torques = np.asarray(action, dtype=np.float64)
        if torques.shape != (2,) or not np.isfinite(torques).all():
            raise ValueError(f"reacher: action must be 2 finite numbers, got {action!r}")
        self._data.ctrl[:] = torques
        mujoco.mj_step(self._model, self._data, ACTION_REPEAT)
        return self.get_state(), float(self.reached()), False, False, {}

    def render(self) -> npt.NDArray[np.uint8]:
        """The frame (H, W, 3) of the current state; goal and target are never drawn."""
        return self.render_state(self.get_state())

    def render_state(
        self,
        state: Array,
        arm_colour: tuple[float, float, float, float] | None = None,
        **options: Any,
    ) -> npt.NDArray[np.uint8]:
        """The frame of any state, with the arm in any colour (r, g, b, a in 0..1)."""
        if options:
            raise ValueError(f"reacher: unknown render options {sorted(options)}")
        if self._canvas is None:
            fast = self.render_quality == "fast"
            self._canvas = Canvas(self.name, self._model, 0, self.image_size, fast)
        _put(self._model, self._drawn, state)
        arm = self._model.material("self").id
        usual = self._model.mat_rgba[arm].copy()
        if arm_colour is not None:
            self._model.mat_rgba[arm] = arm_colour
        frame = self._canvas.draw(self._drawn)
        self._model.mat_rgba[arm] = usual
        return frame

    def close(self) -> None:
        """Frees the OpenGL context, if one was made."""
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None

    def get_state(self) -> State:
        """Joint angles and velocities (4,)."""
        return np.concatenate([self._data.qpos, self._data.qvel])

    def set_state(self, state: Array) -> None:
        """Puts the arm into a state; what follows depends on nothing before."""
        _put(self._model, self._data, state)

    @property
    def goal(self) -> State:
        """The goal state (4,)."""
        return self._goal.copy()

    def set_goal(self, goal_state: Array) -> None:
        """Makes the pose in `goal_state` the goal."""
        self._goal = _checked(goal_state).copy()

    def goal_distance(self) -> float:
        """The larger of the two joints' distances to the goal, in rad, without angle wrap."""
        return float(np.abs(self._data.qpos - self._goal[:2]).max())

    def reached(self) -> bool:
        """Whether both joints are nearer than 0.05 rad, without angle wrap (published)."""
        return self.goal_distance() < JOINT_RAD

    def success(self, protocol: "EvaluationProtocol") -> bool:
        """Joints within `joint_rad` (`shoulder_periodic`: modulo full turns), or, with `endpoint`, the
        fingertip within `endpoint_m`."""
        rule = {**self.success_rule, **protocol.success}
        if rule["endpoint"]:
            tips = fingertip(np.stack([self._data.qpos, self._goal[:2]]))
            return bool(np.linalg.norm(tips[0] - tips[1]) <= rule["endpoint_m"])
        shoulder, wrist = self._data.qpos - self._goal[:2]
        if rule["shoulder_periodic"]:
            shoulder = wrap(shoulder)
        return bool(max(abs(shoulder), abs(wrist)) < rule["joint_rad"])

    def admits(self, protocol: "EvaluationProtocol", start: Array, goal: Array) -> bool:
        """Every pair of poses."""
        return True

    @staticmethod
    def physical_state(columns: Mapping[str, Array]) -> dict[str, Array]:
        """`joint_angles` as sin and cos (N, 4), `joint_velocities` (N, 2) in rad/s, `fingertip` (N, 2) in m."""
        state = _states(columns)
        angles = state[:, :2]
        return {
            "joint_angles": np.concatenate([np.sin(angles), np.cos(angles)], axis=1),
            "joint_velocities": state[:, 2:],
            "fingertip": fingertip(angles),
        }

    def violations(self) -> dict[str, tuple[ViolationKind, Violation]]:
        """`teleport`: the arm jumps, its tip by at least 10 cm; `colour`: the arm turns red."""
        return {"teleport": ("physical", _teleport), "colour": ("visual", _recolour)}

    def state_columns(self, state: Array) -> dict[str, Array]:
        """`qpos`, `qvel`, `finger_pos` and `observation` (angles, tip to goal's tip, velocities)."""
        qpos, qvel = np.array(state[:2], np.float64), np.array(state[2:4], np.float64)
        tip, wanted = fingertip(np.stack([qpos, self._goal[:2]]))
        observation = np.concatenate([qpos, wanted - tip, qvel]).astype(np.float32)
        return {"qpos": qpos, "qvel": qvel, "finger_pos": tip, "observation": observation}

    @staticmethod
    def state_from_columns(columns: Mapping[str, Array], row: int) -> State:
        """Angles and velocities, from `qpos` and `qvel`."""
        picked = {
            name: columns[name][row : row + 1] for name in ("qpos", "qvel") if name in columns
        }
        return _states(picked)[0]

    @staticmethod
    def coverage(columns: Mapping[str, Array], ep_len: Array) -> dict[str, float]:
        """Shares of visited cells: of the joint space (12 x 12), of the disc that the tip can reach."""
        angles = _states(columns)[:, :2]
        shoulder = ((angles[:, 0] + math.pi) % (2 * math.pi) / (2 * math.pi) * 12).astype(int) % 12
        wrist = np.clip((angles[:, 1] + WRIST_LIMIT) / (2 * WRIST_LIMIT) * 12, 0, 11).astype(int)
        tips = np.floor(fingertip(angles) / 0.04).astype(int)
        grid = [(x, y) for x in range(-6, 6) for y in range(-6, 6)]
        inside = {
            c for c in grid if 0.06 < math.hypot(0.04 * c[0] + 0.02, 0.04 * c[1] + 0.02) < 0.22
        }
        visited = set(map(tuple, tips.tolist()))
        return {
            "joint_cells_visited": len(set(zip(shoulder.tolist(), wrist.tolist()))) / 144,
            "tip_cells_visited": len(inside & visited) / len(inside),
        }


@functools.cache
def _compiled() -> mujoco.MjModel:
    """The suite's `hard` model, target invisible; found without importing the suite, which takes seconds.

    Compiling it takes 65 ms, a copy 9: an environment is made for every collected episode.
    """
    found = importlib.util.find_spec("dm_control")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'dm_control'", name="dm_control")
    path = Path(found.submodule_search_locations[0]) / "suite" / "reacher.xml"
    model = mujoco.MjModel.from_xml_path(str(path))
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
    model.geom("target").size[0] = TARGET_M
    model.mat_rgba[model.material("target").id, 3] = 0.0
    return model


def _put(model: mujoco.MjModel, data: mujoco.MjData, state: Array) -> None:
    values = _checked(state)
    mujoco.mj_resetData(model, data)
    data.qpos[:], data.qvel[:] = values[:2], values[2:]
    mujoco.mj_forward(model, data)


def _checked(state: Array) -> State:
    """The state; MuJoCo itself would put zeros in the place of NaN."""
    values = np.asarray(state, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"reacher: a state has 4 finite numbers, got {state!r}")
    return values


def _states(columns: Mapping[str, Array]) -> npt.NDArray[np.float64]:
    for name in ("qpos", "qvel"):
        if name not in columns:
            raise ValueError(f"reacher: no column {name} in the data")
    return np.concatenate([columns["qpos"], columns["qvel"]], axis=1).astype(np.float64)


def _draw_pose(rng: np.random.Generator) -> State:
    shoulder, wrist = rng.uniform(-math.pi, math.pi), rng.uniform(-WRIST_LIMIT, WRIST_LIMIT)
    return np.array([shoulder, wrist, 0.0, 0.0])


def _teleport(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    while True:
        pose = _draw_pose(rng)
        before, after = fingertip(np.stack([state[:2], pose[:2]]))
        if np.linalg.norm(before - after) >= TELEPORT_M:
            return pose, {}


def _recolour(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    return np.array(state, dtype=np.float64), {"arm_colour": RED}
