"""OGBench-Cube (`cube-single-v0`) as a goal-reaching world: a UR5e arm with a gripper, one cube (facts §3).

OGBench's model and controller are used through its package. The authors' controller and camera see
bodies where they were before the last physics step, 2 ms ago. That is where integrating the joints back
by one step puts them, so with MuJoCo's warm start switched off both the frame and what happens next are
functions of qpos and qvel alone.
"""

import copy
import functools
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt

from lewm.envs import cube_rows as rows
from lewm.envs.base import Array, Env, Random, State, Violation, ViolationKind
from lewm.envs.cube_policies import Markov, Plan
from lewm.envs.cube_rows import BLOCK, BLOCK_QUAT, BLOCK_VEL, QPOS, QVEL, check_state, cube_angle
from lewm.envs.gl import Canvas, Quality, mujoco, without_gl

with warnings.catch_warnings(), without_gl():  # see cube_policies
    warnings.simplefilter("ignore")
    from ogbench.manipspace.envs.cube_env import CubeEnv as OGBenchCube

if TYPE_CHECKING:
    from lewm.protocol import Protocol as EvaluationProtocol

REACHED_M = 0.04
TELEPORT_M = 0.1
GRIPPER_M = 0.06
"""A teleported cube stays this far from the gripper's axis."""
HALF_CUBE_M = 0.02
PRESSED_N = 50.0
"""Force (and torque) on the pad that OGBench counts as a full touch."""
GREEN = (0.1, 0.75, 0.2)


class CubeEnv(Env):
    """The Cube world; observation and state are qpos, qvel and the pad's touch, (42,) of `cube_rows`.

    Lengths are m, angles rad. Actions (5,): effector x, y, z, yaw and gripper, relative.

    Args:
        image_size: pixels per side of the frames, 8..224, drawn at that size.
        render_quality: `exact` as the authors draw, or `fast` without shadows and antialiasing
            (software rendering is eight times faster; frames differ by about 16 grey levels).

    Raises:
        ValueError: an option out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    name: ClassVar[str] = "cube"
    render_qualities = ("exact", "fast")
    action_dim: ClassVar[int] = 5
    proprio = rows.PROPRIO
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
        super().__init__(image_size, render_quality, render_mode)
        self.simulation = copy.copy(_template())
        self._model = self.simulation.model
        self._data, self._scratch = mujoco.MjData(self._model), mujoco.MjData(self._model)
        self.simulation._data = self._data
        self._canvas: Canvas | None = None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (42,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
        self._touch = 0.0
        self.simulation.np_random = np.random.default_rng(0)
        self._draw_state()
        self._goal = self.get_state()

    def draw_task(self) -> None:
        """A goal and a start as OGBench draws them."""
        self.simulation.np_random = self.np_random
        self._draw_state()
        self.set_goal(self.get_state())
        self._draw_state()

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
        self.simulation.set_control(np.clip(values, -1.0, 1.0))
        mujoco.mj_step(self._model, self._data, nstep=self.simulation._n_steps)
        self._look()
        return self.get_state(), float(self.reached()), False, False, {}

    def _look(self) -> None:
        """Sets what controller and oracles see: the effector's pose of 2 ms ago, the pad's touch."""
        mujoco.mj_rnePostConstraint(self._model, self._data)
        pad = self._data.body("ur5e/robotiq/right_pad").cfrc_ext
        self._touch = min(float(np.linalg.norm(pad)) / PRESSED_N, 1.0)
        site = self.simulation._pinch_site_id
        self._look_back(self._data.qpos, self._data.qvel)
        self._data.site_xpos[site] = self._scratch.site_xpos[site]
        self._data.site_xmat[site] = self._scratch.site_xmat[site]

    def _look_back(self, qpos: Array, qvel: Array) -> tuple[npt.NDArray[np.float64], float]:
        """Puts `_scratch` one physics step before a state: the effector's place (3,) and yaw there."""
        self._scratch.qpos[:] = qpos
        mujoco.mj_integratePos(self._model, self._scratch.qpos, qvel, -self._model.opt.timestep)
        mujoco.mj_kinematics(self._model, self._scratch)
        site, quat = self.simulation._pinch_site_id, np.empty(4)
        mujoco.mju_mat2Quat(quat, self._scratch.site_xmat[site])
        return self._scratch.site_xpos[site].copy(), float(rows.quaternion_yaw(quat))

    def render(self) -> npt.NDArray[np.uint8]:
        """The frame (H, W, 3) of the current state; the goal is never drawn."""
        return self.render_state(self.get_state())

    def render_state(
        self, state: Array, cube_colour: tuple[float, float, float] | None = None, **options: Any
    ) -> npt.NDArray[np.uint8]:
        """The frame of any state, with the cube in any colour (r, g, b in 0..1).

        Raises:
            ValueError: another option, or no OpenGL on this machine (what to install).
        """
        if options:
            raise ValueError(f"cube: unknown render options {sorted(options)}")
        if self._canvas is None:
            fast = self.render_quality == "fast"
            self._canvas = Canvas(
                self.name, self._model, "front_pixels", self.image_size, fast, shadows=not fast
            )
        values = check_state(state)
        self._look_back(values[QPOS], values[QVEL])
        mujoco.mj_forward(self._model, self._scratch)
        geoms = self.simulation._cube_geom_ids_list[0]
        usual = self._model.geom_rgba[geoms].copy()
        if cube_colour is not None:
            self._model.geom_rgba[geoms, :3] = cube_colour
        frame = self._canvas.draw(self._scratch)
        self._model.geom_rgba[geoms] = usual
        return frame

    def close(self) -> None:
        """Frees the OpenGL context, if one was made."""
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None

    def get_state(self) -> State:
        """qpos (21), qvel (20) and the pad's touch."""
        return np.concatenate([self._data.qpos, self._data.qvel, [self._touch]])

    def set_state(self, state: Array) -> None:
        """Puts the world into a state; the published 41 numbers (without the touch) are taken too."""
        values = check_state(state)
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:], self._data.qvel[:] = values[QPOS], values[QVEL]
        mujoco.mj_forward(self._model, self._data)
        self._look()
        self._touch = float(values[-1])

    @property
    def goal(self) -> State:
        """The goal state (42,)."""
        return self._goal.copy()

    def set_goal(self, goal_state: Array) -> None:
        """Makes the cube's pose in `goal_state` the goal."""
        self._goal = check_state(goal_state)

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
        and cos. The cube looks alike every quarter turn, so no picture tells that yaw; what it can tell
        is `block_yaw_quarter`: sin and cos of four times the angle.
        """
        return rows.quantities(columns)

    def violations(self) -> dict[str, tuple[ViolationKind, Violation]]:
        """`teleport`: the cube jumps on the table by at least 10 cm; `colour`: it turns green."""
        return {"teleport": ("physical", self._teleport), "colour": ("visual", _recolour)}

    def _teleport(self, state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
        after = check_state(state)
        effector, _ = self._look_back(after[QPOS], after[QVEL])
        before = after[BLOCK].copy()
        while True:
            place = rng.uniform(*rows.TABLE)
            far = math.dist(place, before[:2]) >= TELEPORT_M
            if far and math.dist(place, effector[:2]) >= GRIPPER_M:
                break
        half = rng.uniform(0, math.pi)
        after[BLOCK] = (*place, HALF_CUBE_M)
        after[BLOCK_QUAT] = (math.cos(half), 0.0, 0.0, math.sin(half))
        after[QVEL][BLOCK_VEL] = 0.0
        return after, {}

    def state_columns(self, state: Array) -> dict[str, Array]:
        """`qpos`, `qvel`, `observation`, `proprio_*`, `privileged_block_0_*`, named as published."""
        values = check_state(state)
        return rows.columns_of(values, *self._look_back(values[QPOS], values[QVEL]))

    @staticmethod
    def state_from_columns(columns: Mapping[str, Array], row: int) -> State:
        """From `qpos` and `qvel`; the touch is 0 where a file lacks `proprio_gripper_contact`."""
        return rows.state_of(columns, row)

    @staticmethod
    def coverage(columns: Mapping[str, Array], ep_len: Array) -> dict[str, float]:
        """Shares of 10 x 10 table cells visited and of episodes that lift the cube or move it.

        `moved`: by more than 4 cm within 25 steps, at some time; `windows_moved`: over all such windows.
        """
        return rows.coverage(columns, ep_len)


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


def _recolour(state: State, rng: np.random.Generator) -> tuple[State, dict[str, Any]]:
    return np.array(state, dtype=np.float64), {"cube_colour": GREEN}
