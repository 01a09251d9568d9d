"""Who pushes the T: a weak policy that stays near it, and one that brings it to random poses (facts §3).

Shapes: C candidate contacts on the boundary of the T.
"""

import math

import numpy as np
import numpy.typing as npt

from lewm.envs.base import Array, Env
from lewm.envs.push_t_scene import AGENT_RADIUS, BAR, CENTRE, INERTIA, MASS, REACH, STEM

Vector = npt.NDArray[np.float64]


class Weak:
    """Random targets near the block, the authors' offline collector.

    A uniform relative target, kept within 100 px of the block on each axis.
    """

    AROUND_PX = 100.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def reset(self, env: Env) -> None:
        """Nothing to forget."""

    def act(self, env: Env) -> npt.NDArray[np.float32]:
        """The next relative target (2,)."""
        state = env.get_state()
        agent, block = state[0:2], state[2:4]
        target = agent + REACH * self._rng.uniform(-1.0, 1.0, 2)
        near = np.clip(target, block - self.AROUND_PX, block + self.AROUND_PX)
        return np.clip((near - agent) / REACH, -1.0, 1.0).astype(np.float32)


class Pusher:
    """Brings the block to random poses, one after another, by quasi-static pushes.

    Of points all along the T's boundary it takes the one whose push best reduces the pose error, walks
    round the block to it, pushes while that still helps, and chooses again. Without damping the block
    moves as impulses say: a push of depth d at a contact with inward normal n and lever r turns it by
    d (r x n) / (I / m + (r x n)^2) and shifts its centre along n accordingly.
    """

    NOISE, TURN_PX, STAND_OFF_PX, DEPTHS = 0.04, 55.0, 12.0, (6.0, 14.0, 28.0)
    LOW, HIGH, SPACING_PX, PATIENCE = 110.0, 402.0, 10.0, 25
    RING_PX = 105.0
    """Radius around the block's centre on which it walks."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._points_C2, self._normals_C2 = boundary(self.SPACING_PX)
        self._levers_C = _cross(self._points_C2 - CENTRE, self._normals_C2)
        self._contact: int | None = None
        self._pushing = False
        self._steps = 0
        self._goal: Vector = np.zeros(3)

    def reset(self, env: Env) -> None:
        """Draws the first pose to reach."""
        self._draw_goal()

    def act(self, env: Env) -> npt.NDArray[np.float32]:
        """The next relative target (2,)."""
        state = env.get_state()
        agent, pose = state[0:2], state[2:5]
        shift, turn = self._error(pose)
        if np.hypot(*shift) < 12 and abs(turn) < math.radians(10):
            self._draw_goal()
            shift, turn = self._error(pose)
        self._steps += 1
        point, normal = self._in_plane(pose)
        if (
            self._contact is None
            or self._steps > self.PATIENCE
            or not self._still_helps(shift, turn)
        ):
            self._choose(agent, point, normal, shift, turn)
        assert self._contact is not None
        wanted, gain = self._wanted(agent, pose, point[self._contact], normal[self._contact])
        action = gain * (wanted - agent) / REACH + self._rng.normal(0.0, self.NOISE, 2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _draw_goal(self) -> None:
        place = self._rng.uniform(self.LOW, self.HIGH, 2)
        self._goal = np.array([*place, self._rng.uniform(0, 2 * math.pi)])
        self._contact = None

    def _error(self, pose: Array) -> tuple[Vector, float]:
        """What is missing: the shift of the block's centre in its own frame, and the turn."""
        turn = (self._goal[2] - pose[2] + math.pi) % (2 * math.pi) - math.pi
        gap = _rotated(np.array(CENTRE), self._goal[2]) + self._goal[:2]
        gap = gap - _rotated(np.array(CENTRE), pose[2]) - pose[:2]
        return _rotated(gap, -pose[2]), turn

    def _gains(self, shift: Vector, turn: float) -> Vector:
        """Reduction of the squared pose error (C,) that the best depth of push at each contact brings."""
        resist = INERTIA / MASS
        best = np.full(len(self._levers_C), -np.inf)
        before = shift @ shift + (self.TURN_PX * turn) ** 2
        for depth in self.DEPTHS:
            turned = depth * self._levers_C / (resist + self._levers_C**2)
            moved = (depth * resist / (resist + self._levers_C**2))[:, None] * self._normals_C2
            left = ((shift - moved) ** 2).sum(axis=1) + (self.TURN_PX * (turn - turned)) ** 2
            best = np.maximum(best, before - left)
        return best

    def _in_plane(self, pose: Array) -> tuple[Vector, Vector]:
        """Contacts and inward normals in the plane, (C, 2) each."""
        points = _rotated(self._points_C2, pose[2]) + pose[:2]
        return points, _rotated(self._normals_C2, pose[2])

    def _choose(
        self, agent: Vector, points: Vector, normals: Vector, shift: Vector, turn: float
    ) -> None:
        gains = self._gains(shift, turn)
        stand = points - (AGENT_RADIUS + self.STAND_OFF_PX) * normals
        outside = ((stand < 25) | (stand > 487)).any(axis=1)
        walk = np.hypot(*(stand - agent).T)
        score = gains - 0.5 * walk
        score[outside] = -np.inf
        self._contact = int(np.argmax(score))
        self._pushing, self._steps = False, 0

    def _still_helps(self, shift: Vector, turn: float) -> bool:
        assert self._contact is not None
        gains = self._gains(shift, turn)
        return bool(gains[self._contact] > 0.3 * max(gains.max(), 1e-9))

    def _wanted(
        self, agent: Vector, pose: Array, point: Vector, normal: Vector
    ) -> tuple[Vector, float]:
        """Where to go next, and how hard."""
        stand = point - (AGENT_RADIUS + self.STAND_OFF_PX) * normal
        offset = agent - point
        along, aside = float(offset @ normal), abs(float(_cross(offset, normal)))
        if along < 0 and aside < 6 and along > -(AGENT_RADIUS + self.STAND_OFF_PX + 14):
            self._pushing = True
        if self._pushing and aside < 14 and along < 4:
            return point + 12 * normal, 1.6
        self._pushing = False
        return self._around(agent, pose, stand), 2.2

    def _around(self, agent: Vector, pose: Array, stand: Vector) -> Vector:
        """The next place on the way to `stand` that does not touch the block."""
        if _is_clear(agent, stand, pose):
            return stand
        centre = _rotated(np.array(CENTRE), pose[2]) + pose[:2]
        here, there = (math.atan2(*(p - centre)[::-1]) for p in (agent, stand))
        gap = (there - here + math.pi) % (2 * math.pi) - math.pi
        step = math.copysign(min(abs(gap), 0.6), gap)
        ring = centre + self.RING_PX * np.array([math.cos(here + step), math.sin(here + step)])
        return np.clip(ring, 25.0, 487.0)


def boundary(spacing: float) -> tuple[Vector, Vector]:
    """Points (C, 2) along the T's outline in its own frame, and the normals into it.

    Points nearer than 6 px to a corner are left out, and the T's two inner corners stay clear by the
    agent's radius.
    """
    inner = AGENT_RADIUS + 4
    edges = [
        ((-60, 0), (60, 0), (0, 1), 6, 6),
        ((60, 0), (60, 30), (-1, 0), 6, 6),
        ((60, 30), (15, 30), (0, -1), 6, inner),
        ((15, 30), (15, 120), (-1, 0), inner, 6),
        ((15, 120), (-15, 120), (0, -1), 6, 6),
        ((-15, 120), (-15, 30), (1, 0), 6, inner),
        ((-15, 30), (-60, 30), (0, -1), inner, 6),
        ((-60, 30), (-60, 0), (1, 0), 6, 6),
    ]
    points, normals = [], []
    for start, end, normal, before, after in edges:
        a, b = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
        length = float(np.hypot(*(b - a)))
        count = max(int((length - before - after) // spacing), 0) + 1
        for place in np.linspace(before, length - after, count):
            points.append(a + (b - a) * place / length)
            normals.append(normal)
    return np.array(points), np.array(normals, dtype=np.float64)


def _is_clear(start: Vector, end: Vector, pose: Array) -> bool:
    """Whether the disc can go straight from start to end without touching the block."""
    count = max(int(np.hypot(*(end - start)) // 8), 1) + 1
    way = start + np.linspace(0, 1, count)[:, None] * (end - start)
    own = _rotated(way - pose[:2], -pose[2])
    for part in (BAR, STEM):
        corners = np.array(part)
        gap = np.maximum(corners.min(axis=0) - own, own - corners.max(axis=0)).clip(min=0)
        if (np.hypot(*gap.T)[1:] < AGENT_RADIUS + 3).any():
            return False
    return True


def _rotated(vectors: Vector, angle: float) -> Vector:
    c, s = math.cos(angle), math.sin(angle)
    turned: Vector = vectors @ np.array([[c, s], [-s, c]])
    return turned


def _cross(a: Vector, b: Vector) -> Vector:
    crossed: Vector = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return crossed
