"""OGBench-Cube (`cube-single-v0`) as a goal-reaching world: a UR5e arm with a gripper, one cube (facts §3).

OGBench's model and controller are used through its package. The controller reads the effector's pose as
the last physics step left it, 2 ms old; that pose is part of the state here, and MuJoCo's warm start is
switched off, so that what happens next is a function of the state alone.
"""

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from ogbench.manipspace.envs.cube_env import CubeEnv as OGBenchCube

from lewm.envs.base import Array, Env, Random, State, Violation, ViolationKind
from lewm.envs.cube_policies import Markov, Plan
from lewm.envs.gl import Canvas, Quality

if TYPE_CHECKING:
    from lewm.protocol import Protocol as EvaluationProtocol

QPOS, QVEL, POSE = slice(0, 21), slice(21, 41), slice(41, 45)
"""Of a state: joint positions, velocities, and the effector's pose (x, y, z, yaw) that the controller sees."""
JOINTS, OPENING, BLOCK, BLOCK_QUAT = slice(0, 6), 6, slice(14, 17), slice(17, 21)
"""Of qpos: the arm's joints, the gripper's driver, the cube's place and orientation."""
REACHED_M = 0.04
TELEPORT_M = 0.1
TABLE = np.array([[0.3, -0.3], [0.55, 0.3]])
"""Where OGBench puts cubes: corners (x, y) in m."""
HALF_CUBE_M = 0.02
GREEN = (0.1, 0.75, 0.2)


class CubeEnv(Env):
    """The Cube world; observation and state are qpos, qvel and the effector's pose, (45,).

    Lengths are m, angles rad. Actions (5,): effector x, y, z, yaw and gripper, relative.

    Args:
        image_size: pixels per side of the frames, 8..224, drawn at that size.
        render_quality: `exact` as the authors draw, or `fast` without shadows and antialiasing
            (software rendering is several times faster; frames differ by about 14 grey levels).

    Raises:
        ValueError: an option out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    name: ClassVar[str] = "cube"
    action_dim: ClassVar[int] = 5
    behaviours = {"markov": Markov, "plan": Plan, "random": Random}  # noqa: RUF012
    success_rule: ClassVar[Mapping[str, float | bool]] = {
        "distance_m": REACHED_M,
        "angle_deg": 180.0,
    }

    def __init__(
        self,
        image_size: int = 224,
        render_quality: Quality = "exact",
        render_mode: str | None = "rgb_array",
    ) -> None:
        if not 8 <= image_size <= 224:
            raise ValueError(f"cube: image_size must be within 8..224, got {image_size}")
        if render_quality not in ("exact", "fast"):
            raise ValueError(f"cube: render_quality must be exact or fast, got {render_quality!r}")
        self.image_size = image_size
        self.render_quality: Quality = render_quality
        self.render_mode = render_mode
        self.simulation = copy.copy(_template())
        self._model = self.simulation.model
        self._data, self._drawn = mujoco.MjData(self._model), mujoco.MjData(self._model)
        self.simulation._data = self._data
        self._canvas: Canvas | None = None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (45,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
        self._pose = np.zeros(4)
        self.simulation.np_random = np.random.default_rng(0)
        self._draw_state()
        self._goal = self.get_state()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[State, dict[str, Any]]:
        """Draws a goal and a start as OGBench does; options `state`, `goal` set them."""
        super().reset(seed=seed)
        self.simulation.np_random = self.np_random
        self._draw_state()
        self.set_goal(self.get_state())
        self._draw_state()
        if options and "state" in options:
            self.set_state(options["state"])
        if options and "goal" in options:
            self.set_goal(options["goal"])
        return self.get_state(), {}

    def _draw_state(self) -> None:
        self.simulation.reset()
        self._look()

    def step(self, action: Array) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Moves for 50 ms; the reward is 1 where the published success rule holds.

        Raises:
            ValueError: the action is not five finite numbers.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (5,) or not np.isfinite(values).all():
            raise ValueError(f"cube: action must be 5 finite numbers, got {action!r}")
        simulation, site = self.simulation, self.simulation._pinch_site_id
        self._data.site_xpos[site] = self._pose[:3]
        self._data.site_xmat[site] = _turn(self._pose[3])
        simulation.set_control(np.clip(values, -1.0, 1.0))
        mujoco.mj_step(self._model, self._data, nstep=simulation._n_steps)
        self._look()
        return self.get_state(), float(self.reached()), False, False, {}

    def _look(self) -> None:
        """Notes the effector's pose as the controller will see it at the next step."""
        site = self.simulation._pinch_site_id
        self._pose = np.append(self._data.site_xpos[site], _yaw_of(self._data.site_xmat[site]))

    def render(self) -> npt.NDArray[np.uint8]:
        """The frame (H, W, 3) of the current state; the goal is never drawn."""
        return self.render_state(self.get_state())

    def render_state(
        self, state: Array, cube_colour: tuple[float, float, float] | None = None, **options: Any
    ) -> npt.NDArray[np.uint8]:
        """The frame of any state, with the cube in any colour (r, g, b in 0..1)."""
        if options:
            raise ValueError(f"cube: unknown render options {sorted(options)}")
        if self._canvas is None:
            fast = self.render_quality == "fast"
            self._canvas = Canvas(
                self.name, self._model, "front_pixels", self.image_size, fast, shadows=not fast
            )
        self._drawn.qpos[:], self._drawn.qvel[:] = _check(state)[QPOS], 0.0
        mujoco.mj_forward(self._model, self._drawn)
        geoms = self.simulation._cube_geom_ids_list[0]
        usual = self._model.geom_rgba[geoms].copy()
        if cube_colour is not None:
            self._model.geom_rgba[geoms, :3] = cube_colour
        frame = self._canvas.draw(self._drawn)
        self._model.geom_rgba[geoms] = usual
        return frame

    def close(self) -> None:
        """Frees the OpenGL context, if one was made."""
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None

    def get_state(self) -> State:
        """qpos (21), qvel (20), the effector's place (3) and yaw that the controller sees."""
        return np.concatenate([self._data.qpos, self._data.qvel, self._pose])

    def set_state(self, state: Array) -> None:
        """Puts the world into a state; 41 numbers (without the pose) are taken too."""
        values = _check(state)
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:], self._data.qvel[:] = values[QPOS], values[QVEL]
        mujoco.mj_forward(self._model, self._data)
        self._look()
        if len(values) == 45:
            self._pose = values[POSE].copy()

    @property
    def goal(self) -> State:
        """The goal state (45,)."""
        return self._goal.copy()

    def set_goal(self, goal_state: Array) -> None:
        """Makes the cube's pose in `goal_state` the goal."""
        self._goal = _check(goal_state).copy()

    def goal_distance(self) -> float:
        """Distance of the cube's centre from its goal in m."""
        return math.dist(self._data.qpos[BLOCK], self._goal[BLOCK])

    def reached(self) -> bool:
        """Whether the cube's centre is within 4 cm of its goal (published)."""
        return self.goal_distance() <= REACHED_M

    def success(self, protocol: "EvaluationProtocol") -> bool:
        """The cube's centre within `distance_m`, turned by at most `angle_deg` modulo its symmetries."""
        rule = {**self.success_rule, **protocol.success}
        if self.goal_distance() > rule["distance_m"]:
            return False
        turn = cube_angle(self._data.qpos[BLOCK_QUAT], self._goal[BLOCK_QUAT])
        return math.degrees(turn) <= rule["angle_deg"]

    def admits(self, protocol: "EvaluationProtocol", start: Array, goal: Array) -> bool:
        """Every pair of states."""
        return True

    def oracle_info(self) -> dict[str, Any]:
        """What OGBench's oracles look at."""
        mujoco.mj_rnePostConstraint(self._model, self._data)
        self.simulation._prev_qpos, self.simulation._prev_qvel = self._data.qpos, self._data.qvel
        info: dict[str, Any] = self.simulation.compute_ob_info()
        return info

    def draw_target(self, rng: np.random.Generator) -> None:
        """A new place for the oracle to bring the cube to; never drawn in frames."""
        before, self.simulation.np_random = self.simulation.np_random, rng
        self.simulation.set_new_target(return_info=False)
        self.simulation.np_random = before

    @staticmethod
    def physical_state(columns: Mapping[str, Array]) -> dict[str, Array]:
        """The quantities of the paper's probe table (Table 4), (N, k).

        Joint angles and velocities (6), effector place (3) in m, its yaw as sin and cos, the gripper's
        opening 0..1, the cube's place (3) in m, its quaternion (4, first number >= 0), its yaw as sin
        and cos of four times the angle: a cube looks alike every quarter turn.
        """
        qpos, qvel = _column(columns, "qpos"), _column(columns, "qvel")
        quat = qpos[:, BLOCK_QUAT]
        yaw = _column(columns, "proprio_effector_yaw").reshape(len(qpos))
        turn = 4 * _quaternion_yaw(quat)
        return {
            "joint_angles": qpos[:, JOINTS],
            "joint_velocities": qvel[:, JOINTS],
            "effector_position": _column(columns, "proprio_effector_pos"),
            "effector_yaw": np.stack([np.sin(yaw), np.cos(yaw)], axis=1),
            "gripper_opening": _opening(qpos)[:, None],
            "block_position": qpos[:, BLOCK],
            "block_quaternion": np.where(quat[:, :1] < 0, -quat, quat),
            "block_yaw": np.stack([np.sin(turn), np.cos(turn)], axis=1),
        }

    def violations(self) -> dict[str, tuple[ViolationKind, Violation]]:
        """`teleport`: the cube jumps on the table by at least 10 cm; `colour`: it turns green."""
        return {"teleport": ("physical", _teleport), "colour": ("visual", _recolour)}

    def state_columns(self, state: Array) -> dict[str, Array]:
        """`qpos`, `qvel`, `proprio_*` and `privileged_block_0_*` under the published names."""
        values = _check(state).copy()
        qpos, qvel = values[QPOS], values[QVEL]
        quat = qpos[BLOCK_QUAT]
        return {
            "qpos": qpos,
            "qvel": qvel,
            "proprio_joint_pos": qpos[JOINTS],
            "proprio_joint_vel": qvel[JOINTS],
            "proprio_effector_pos": values[POSE][:3],
            "proprio_effector_yaw": values[POSE][3:],
            "proprio_gripper_opening": _opening(qpos[None]),
            "privileged_block_0_pos": qpos[BLOCK],
            "privileged_block_0_quat": quat,
            "privileged_block_0_yaw": _quaternion_yaw(quat[None]),
        }

    @staticmethod
    def state_from_columns(columns: Mapping[str, Array], row: int) -> State:
        """From `qpos` and `qvel`, and the effector's pose where the file has it."""
        parts = [columns["qpos"][row], columns["qvel"][row]]
        seen = ("proprio_effector_pos", "proprio_effector_yaw")
        if all(name in columns for name in seen):
            parts += [np.atleast_1d(columns[name][row]) for name in seen]
        return np.concatenate(parts).astype(np.float64)

    @staticmethod
    def coverage(columns: Mapping[str, Array], ep_len: Array) -> dict[str, float]:
        """Shares: episodes that lift the cube, 25-step windows that move it 4 cm, table cells visited."""
        place = _column(columns, "qpos")[:, BLOCK]
        ends = np.cumsum(ep_len, dtype=np.int64)
        episodes = [place[end - length : end] for end, length in zip(ends, ep_len, strict=True)]
        moved = [
            np.linalg.norm(e[25:] - e[:-25], axis=1) > REACHED_M for e in episodes if len(e) > 25
        ]
        cells = np.floor((place[:, :2] - TABLE[0]) / (TABLE[1] - TABLE[0]) * 10).astype(int)
        inside = ((cells >= 0) & (cells < 10)).all(axis=1)
        return {
            "lifted": float(np.mean([e[:, 2].max() > 0.06 for e in episodes])),
            "windows_moved": float(np.concatenate(moved).mean()) if moved else 0.0,
            "cells_visited": len(set(map(tuple, cells[inside].tolist()))) / 100,
        }


@functools.cache
def _template() -> Any:
    """OGBench's environment, compiled once per process (seconds); worlds are shallow copies of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulation = OGBenchCube(
            env_type="single",
            mode="data_collection",
            ob_type="states",
            width=224,
            height=224,
            visualize_info=False,
            terminate_at_goal=True,
        )
        simulation.reset(seed=0)
    model, purple = simulation.model, simulation._colors["purple"]
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
    for name in ("ur5e/robotiq/black", "ur5e/robotiq/pad_gray"):
        model.mat_rgba[model.material(name).id] = purple
    return simulation


def _check(state: Array) -> npt.NDArray[np.float64]:
    values = np.asarray(state, dtype=np.float64)
    if values.shape not in ((41,), (45,)):
        raise ValueError(f"cube: a state has 45 numbers (41 without the pose), got {values.shape}")
    return values


def _turn(yaw: float) -> npt.NDArray[np.float64]:
    """Rotation about the vertical, as MuJoCo stores it (9,)."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0])


def _yaw_of(matrix: Array) -> float:
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, matrix)
    return float(_quaternion_yaw(quat[None])[0])


def _quaternion_yaw(quat: Array) -> npt.NDArray[np.float64]:
    """Yaw (N,) in rad of quaternions (N, 4), w first."""
    w, x, y, z = quat.T
    return np.asarray(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2)))


def _opening(qpos: Array) -> npt.NDArray[np.float64]:
    return np.clip(qpos[:, OPENING] / 0.8, 0.0, 1.0)


def _column(columns: Mapping[str, Array], name: str) -> npt.NDArray[np.float64]:
    if name not in columns:
        raise ValueError(f"cube: no column {name} in the data")
    return np.asarray(columns[name], dtype=np.float64)


def cube_angle(quat: Array, other: Array) -> float:
    """Smallest turn in rad between two orientations of a cube, any of its 24 symmetries allowed."""
    matrices = []
    for q in (quat, other):
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, np.asarray(q, dtype=np.float64))
        matrices.append(matrix.reshape(3, 3))
    relative = matrices[0].T @ matrices[1]
    trace = np.einsum("nij,ji->n", _symmetries(), relative).max()
    return math.acos(min(max((float(trace) - 1) / 2, -1.0), 1.0))


@functools.cache
def _symmetries() -> npt.NDArray[np.float64]:
    """The 24 rotations (24, 3, 3) that map a cube onto itself."""
    signed = [
        np.diag(signs) @ np.eye(3)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]
    return np.stack([matrix for matrix in signed if np.linalg.det(matrix) > 0])


def _teleport(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    after = np.array(state, dtype=np.float64)
    while True:
        place = rng.uniform(*TABLE)
        far = math.dist(place, state[BLOCK][:2]) >= TELEPORT_M
        if far and (len(state) < 45 or math.dist(place, state[POSE][:2]) > 0.06):
            break
    half = rng.uniform(0, math.pi)
    after[BLOCK] = (*place, HALF_CUBE_M)
    after[BLOCK_QUAT] = (math.cos(half), 0.0, 0.0, math.sin(half))
    after[QVEL][14:] = 0.0
    return after, {}


def _recolour(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    return np.array(state, dtype=np.float64), {"cube_colour": GREEN}
