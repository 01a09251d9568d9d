"""What Cube's numbers mean: the layout of its state, the columns of its files, quantities read off them.

Lengths are m, angles rad, quaternions w first. A state is MuJoCo's qpos (21) and qvel (20), and how hard
the gripper's right pad is pressed (0..1), which is stored for readers of `observation` and has no effect.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lewm.envs.base import Array, State

Float = npt.NDArray[np.float64]

QPOS, QVEL, TOUCH = slice(0, 21), slice(21, 41), slice(41, 42)
STATE_WIDTHS = (42, 41)
"""Ours, and the published files' without the touch."""
JOINTS, OPENING, BLOCK, BLOCK_QUAT = slice(0, 6), 6, slice(14, 17), slice(17, 21)
"""Of qpos: the arm's joints, the gripper's driver, the cube's centre and orientation."""
BLOCK_VEL = slice(14, 20)
"""Of qvel: the cube's."""
TABLE = np.array([[0.3, -0.3], [0.55, 0.3]])
"""Where OGBench puts cubes: corners (x, y)."""
PROPRIO = {
    "proprio_joint_pos": 6,
    "proprio_joint_vel": 6,
    "proprio_effector_pos": 3,
    "proprio_effector_yaw": 1,
    "proprio_gripper_contact": 1,
    "proprio_gripper_opening": 1,
    "proprio_gripper_vel": 1,
}
"""Columns of proprioception with their widths."""
MOVED_M, LIFTED_M = 0.04, 0.06
OBSERVATION_CENTRE, OBSERVATION_SCALE, OPENING_SCALE = np.array([0.425, 0.0, 0.0]), 10.0, 3.0


def check_state(state: Array) -> Float:
    """A copy of a state as (42,), touch 0 where it is missing.

    Raises:
        ValueError: neither 42 nor 41 numbers, or one that is not finite.
    """
    values = np.array(state, dtype=np.float64)
    if values.ndim != 1 or len(values) not in STATE_WIDTHS:
        raise ValueError(f"cube: a state has 42 numbers (41 without touch), got {values.shape}")
    if not np.isfinite(values).all():
        wrong = np.flatnonzero(~np.isfinite(values)).tolist()
        raise ValueError(f"cube: a state must be finite, its numbers {wrong} are not")
    return np.append(values, 0.0) if len(values) == 41 else values


def columns_of(state: Float, effector: Float, effector_yaw: float) -> dict[str, Array]:
    """One row under the published names, `observation` (28) as OGBench forms it.

    Args:
        state: (42,).
        effector: place (3,) between the finger tips.
    """
    qpos, qvel, touch = state[QPOS].copy(), state[QVEL].copy(), state[TOUCH].copy()
    quat, opening, yaw = qpos[BLOCK_QUAT], _opening(qpos[None]), quaternion_yaw(qpos[BLOCK_QUAT])
    sight = [
        qpos[JOINTS],
        qvel[JOINTS],
        (effector - OBSERVATION_CENTRE) * OBSERVATION_SCALE,
        [math.cos(effector_yaw), math.sin(effector_yaw)],
        opening * OPENING_SCALE,
        touch,
        (qpos[BLOCK] - OBSERVATION_CENTRE) * OBSERVATION_SCALE,
        quat,
        [math.cos(yaw), math.sin(yaw)],
    ]
    return {
        "qpos": qpos,
        "qvel": qvel,
        "observation": np.concatenate(sight),
        "proprio_joint_pos": qpos[JOINTS],
        "proprio_joint_vel": qvel[JOINTS],
        "proprio_effector_pos": effector,
        "proprio_effector_yaw": np.array([effector_yaw]),
        "proprio_gripper_contact": touch,
        "proprio_gripper_opening": opening,
        "proprio_gripper_vel": qvel[[OPENING]],
        "privileged_block_0_pos": qpos[BLOCK],
        "privileged_block_0_quat": quat,
        "privileged_block_0_yaw": np.array([yaw]),
    }


def state_of(columns: Mapping[str, Array], row: int) -> State:
    """The state (42,) stored in a row; files without the touch have 0.

    Raises:
        ValueError: no column `qpos` or `qvel`.
    """
    parts = [_column(columns, "qpos")[row], _column(columns, "qvel")[row]]
    if "proprio_gripper_contact" in columns:
        parts.append(np.atleast_1d(columns["proprio_gripper_contact"][row]))
    return check_state(np.concatenate(parts))


def quantities(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Targets of probing; see `CubeEnv.physical_state`."""
    qpos = _column(columns, "qpos").astype(np.float64)
    qvel = _column(columns, "qvel").astype(np.float64)
    quat = qpos[:, BLOCK_QUAT]
    effector_yaw = _column(columns, "proprio_effector_yaw").astype(np.float64).reshape(len(qpos))
    yaw = quaternion_yaw(quat)
    return {
        "joint_angles": qpos[:, JOINTS],
        "joint_velocities": qvel[:, JOINTS],
        "effector_position": _column(columns, "proprio_effector_pos").astype(np.float64),
        "effector_yaw": _circle(effector_yaw),
        "gripper_opening": _opening(qpos)[:, None],
        "block_position": qpos[:, BLOCK],
        "block_quaternion": np.where(quat[:, :1] < 0, -quat, quat),
        "block_yaw": _circle(yaw),
        "block_yaw_quarter": _circle(4 * yaw),
    }


def coverage(columns: Mapping[str, Array], ep_len: Array) -> dict[str, float]:
    """Shares; see `CubeEnv.coverage`."""
    place = _column(columns, "qpos")[:, BLOCK].astype(np.float64)
    ends = np.cumsum(ep_len, dtype=np.int64)
    episodes = [place[end - length : end] for end, length in zip(ends, ep_len, strict=True)]
    moved = [np.linalg.norm(e[25:] - e[:-25], axis=1) > MOVED_M for e in episodes if len(e) > 25]
    cells = np.floor((place[:, :2] - TABLE[0]) / (TABLE[1] - TABLE[0]) * 10).astype(int)
    inside = ((cells >= 0) & (cells < 10)).all(axis=1)
    return {
        "lifted": float(np.mean([e[:, 2].max() > LIFTED_M for e in episodes])),
        "moved": float(np.mean([bool(window.any()) for window in moved])) if moved else 0.0,
        "windows_moved": float(np.concatenate(moved).mean()) if moved else 0.0,
        "cells_visited": len(set(map(tuple, cells[inside].tolist()))) / 100,
    }


def quaternion_yaw(quat: Array) -> Float:
    """Yaw of quaternions (..., 4)."""
    w, x, y, z = np.moveaxis(np.asarray(quat), -1, 0)
    return np.asarray(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2)))


def cube_angle(quat: Array, other: Array) -> float:
    """Smallest turn between two orientations of a cube, any of its 24 symmetries allowed.

    The symmetries are, up to sign, the unit quaternions (1, 0, 0, 0), (1, 1, 0, 0) / sqrt 2 and
    (1, 1, 1, 1) / 2 with their numbers in any order and with any signs.
    """
    (w, *v), (a, *b) = (np.asarray(q, dtype=np.float64) / np.linalg.norm(q) for q in (quat, other))
    relative = np.append(w * a + np.dot(v, b), w * np.array(b) - a * np.array(v) - np.cross(v, b))
    size = np.sort(np.abs(relative))[::-1]
    nearest = max(size[0], (size[0] + size[1]) / math.sqrt(2), size.sum() / 2)
    return 2 * math.acos(min(float(nearest), 1.0))


def _opening(qpos: Array) -> Float:
    """The gripper's driver joint as a share, 0 open to 1 closed, (N,)."""
    return np.clip(qpos[:, OPENING] / 0.8, 0.0, 1.0)


def _circle(angle: Float) -> Float:
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _column(columns: Mapping[str, Array], name: str) -> Array:
    if name not in columns:
        raise ValueError(f"cube: no column {name} in the data")
    return columns[name]
