"""Reacher of the DeepMind control suite, `hard`, as a goal-reaching world (facts §3; paper App. E).

A two-link arm in the plane; the suite's model, two simulation steps (40 ms) per action, its target
ball made invisible. The goal is a pose of the arm: another state. Nothing but MuJoCo's warm start is
changed (switched off), so that what happens next is a function of the state alone.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from lewm.envs.base import Array, Env, Random, State, Violation, ViolationKind
from lewm.envs.gl import Canvas, Quality

if TYPE_CHECKING:
    from lewm.protocol import Protocol as EvaluationProtocol

ACTION_REPEAT = 2
LINKS_M = (0.12, 0.12)
WRIST_LIMIT = math.radians(160)
JOINT_RAD = 0.05
TELEPORT_M = 0.1
RED = (0.9, 0.1, 0.1, 1.0)
TARGET_M = 0.015


class InverseKinematics:
    """Drives the fingertip to random places: inverse kinematics and a noisy PD controller on the joints.

    A new place and elbow are drawn when the last is reached or `PATIENCE` steps have passed.
    """

    KP, KD, NOISE, PATIENCE = 4.0, 0.15, 0.15, 40

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._wanted: npt.NDArray[np.float64] | None = None
        self._steps = 0

    def reset(self, env: Env) -> None:
        """Forgets the place it was going to."""
        self._wanted = None

    def act(self, env: Env) -> npt.NDArray[np.float32]:
        """Torques (2,) towards the wanted joint angles."""
        state = env.get_state()
        angles, velocities = state[:2], state[2:]
        if self._wanted is None or self._steps >= self.PATIENCE or self._is_there(state):
            self._wanted, self._steps = self._draw(), 0
        self._steps += 1
        error = self._wanted - angles
        error[0] = _wrap(error[0])
        torques = self.KP * error - self.KD * velocities + self._rng.normal(0, self.NOISE, 2)
        return np.clip(torques, -1.0, 1.0).astype(np.float32)

    def _is_there(self, state: State) -> bool:
        assert self._wanted is not None
        gap = self._wanted - state[:2]
        return bool(max(abs(_wrap(gap[0])), abs(gap[1])) < JOINT_RAD)

    def _draw(self) -> npt.NDArray[np.float64]:
        """Joint angles for a fingertip place uniform over the reachable disc, either elbow."""
        first, second = LINKS_M
        nearest = math.sqrt(
            first**2 + second**2 - 2 * first * second * math.cos(math.pi - WRIST_LIMIT)
        )
        low, high = (nearest * 1.05) ** 2, (first + second) ** 2
        radius = math.sqrt(self._rng.uniform(low, high))
        bearing = self._rng.uniform(-math.pi, math.pi)
        cosine = (radius**2 - first**2 - second**2) / (2 * first * second)
        wrist = math.acos(min(max(cosine, -1.0), 1.0)) * (1 if self._rng.random() < 0.5 else -1)
        inner = math.atan2(second * math.sin(wrist), first + second * math.cos(wrist))
        return np.array([_wrap(bearing - inner), wrist])


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
        if not 8 <= image_size <= 224:
            raise ValueError(f"reacher: image_size must be within 8..224, got {image_size}")
        if render_quality not in ("exact", "fast"):
            raise ValueError(
                f"reacher: render_quality must be exact or fast, got {render_quality!r}"
            )
        self.image_size = image_size
        self.render_quality: Quality = render_quality
        self.render_mode = render_mode
        self._model = _load_model()
        self._data, self._drawn = mujoco.MjData(self._model), mujoco.MjData(self._model)
        self._canvas: Canvas | None = None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._goal = np.zeros(4)
        self._target = np.zeros(2)
        self.set_state(np.zeros(4))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[State, dict[str, Any]]:
        """Draws a pose and a goal pose at rest, as the suite does; options `state`, `goal` set them."""
        super().reset(seed=seed)
        self.set_state(_draw_pose(self.np_random))
        self.set_goal(_draw_pose(self.np_random))
        if options and "state" in options:
            self.set_state(options["state"])
        if options and "goal" in options:
            self.set_goal(options["goal"])
        return self.get_state(), {}

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
        self._goal = np.asarray(goal_state, dtype=np.float64).copy()

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
            shoulder = _wrap(shoulder)
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
        return np.concatenate([columns["qpos"][row], columns["qvel"][row]]).astype(np.float64)

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


def fingertip(angles: Array) -> npt.NDArray[np.float64]:
    """Places (N, 2) of the fingertip in m, from joint angles (N, 2)."""
    first, second = LINKS_M
    reach, bend = angles[:, 0], angles[:, 0] + angles[:, 1]
    x = first * np.cos(reach) + second * np.cos(bend)
    y = first * np.sin(reach) + second * np.sin(bend)
    return np.stack([x, y], axis=1)


def _load_model() -> mujoco.MjModel:
    """The suite's `hard` model, target invisible; found without importing the suite, which takes seconds."""
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
    values = np.asarray(state, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"reacher: a state has 4 finite numbers, got {state!r}")
    mujoco.mj_resetData(model, data)
    data.qpos[:], data.qvel[:] = values[:2], values[2:]
    mujoco.mj_forward(model, data)


def _states(columns: Mapping[str, Array]) -> npt.NDArray[np.float64]:
    for name in ("qpos", "qvel"):
        if name not in columns:
            raise ValueError(f"reacher: no column {name} in the data")
    return np.concatenate([columns["qpos"], columns["qvel"]], axis=1).astype(np.float64)


def _draw_pose(rng: np.random.Generator) -> State:
    shoulder, wrist = rng.uniform(-math.pi, math.pi), rng.uniform(-WRIST_LIMIT, WRIST_LIMIT)
    return np.array([shoulder, wrist, 0.0, 0.0])


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _teleport(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    while True:
        pose = _draw_pose(rng)
        before, after = fingertip(np.stack([state[:2], pose[:2]]))
        if np.linalg.norm(before - after) >= TELEPORT_M:
            return pose, {}


def _recolour(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    return np.array(state, dtype=np.float64), {"arm_colour": RED}
