"""Who moves Reacher's arm beside `Random`, and the arm's geometry that both it and the world need."""

import math

import numpy as np
import numpy.typing as npt

from lewm.envs.base import Array, Env, State

LINKS_M = (0.12, 0.12)
WRIST_LIMIT = math.radians(160)
JOINT_RAD = 0.05


def fingertip(angles: Array) -> npt.NDArray[np.float64]:
    """Places (N, 2) of the fingertip in m, from joint angles (N, 2)."""
    first, second = LINKS_M
    reach, bend = angles[:, 0], angles[:, 0] + angles[:, 1]
    x = first * np.cos(reach) + second * np.cos(bend)
    y = first * np.sin(reach) + second * np.sin(bend)
    return np.stack([x, y], axis=1)


def wrap(angle: float) -> float:
    """The angle within -pi..pi."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


class InverseKinematics:
    """Drives the fingertip to random places: inverse kinematics and a noisy PD controller on the joints.

    A new place and elbow are drawn when the last is reached (both joints within `JOINT_RAD`) or
    `PATIENCE` steps have passed. In 20 steps the tip comes within 1.5 cm of 87 % of the places; 70 % are
    reached by then (601 places).
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
        error[0] = wrap(error[0])
        torques = self.KP * error - self.KD * velocities + self._rng.normal(0, self.NOISE, 2)
        return np.clip(torques, -1.0, 1.0).astype(np.float32)

    def _is_there(self, state: State) -> bool:
        assert self._wanted is not None
        gap = self._wanted - state[:2]
        return bool(max(abs(wrap(gap[0])), abs(gap[1])) < JOINT_RAD)

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
        return np.array([wrap(bearing - inner), wrist])
