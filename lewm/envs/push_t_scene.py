"""The Push-T plane: a kinematic disc, a T-shaped block, four walls; its physics and its looks (facts §3).

Lengths are px of a 512-pixel plane, y downwards, angles rad. Every number here is the published
environment's.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pymunk

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else every worker prints a greeting
import pygame

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]
Point = tuple[float, float]

PLANE = 512
SUBSTEPS, DT = 10, 0.01
STIFFNESS, DAMPING = 100.0, 20.0
REACH = 100.0
"""px of a relative target for an action of 1."""
AGENT_RADIUS = 15.0
UNIT = 30.0
"""Thickness of the T's bars; they are 4 and 3 units long."""
BAR = ((-60.0, 0.0), (60.0, 0.0), (60.0, 30.0), (-60.0, 30.0))
STEM = ((-15.0, 30.0), (15.0, 30.0), (15.0, 120.0), (-15.0, 120.0))
"""Corners in the order of pymunk's hulls: how a thick line is drawn hangs on its direction."""
CENTRE = (0.0, 45.0)
"""The block's centre of gravity in its own frame: midway between those of its two parts."""
MASS, INERTIA = 1.0, 2 * pymunk.moment_for_poly(1.0, BAR)
WALLS = (((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506)))
WALL_RADIUS = 2.0
GOAL_POSE = (256.0, 256.0, math.pi / 4)

WHITE, GREEN, GREY = 255, (144, 238, 144), (211, 211, 211)
BLUE, SLATE, RED = (65, 105, 225), (119, 136, 153), (231, 76, 60)
MARK_PX = 2.0
"""The authors' pictures show pymunk's contact points: red lines this far to both sides."""


class Plane:
    """The simulation with the bodies at a state; nothing is stepped.

    Args:
        state: (10,) agent x, y; block x, y, angle; agent velocity x, y; block velocity x, y, angular.
    """

    def __init__(self, state: Array) -> None:
        self._space = pymunk.Space()
        self._space.gravity = (0.0, 0.0)
        self._space.damping = 0.0
        fixed = self._space.static_body
        self._space.add(*(pymunk.Segment(fixed, a, b, WALL_RADIUS) for a, b in WALLS))
        self._agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self._block = pymunk.Body(MASS, INERTIA)
        self._parts = pymunk.Poly(self._block, BAR), pymunk.Poly(self._block, STEM)
        self._block.center_of_gravity = CENTRE
        self._put(state)
        self._space.add(self._agent, pymunk.Circle(self._agent, AGENT_RADIUS))
        self._space.add(self._block, *self._parts)

    @classmethod
    def resumed(cls, state: Array) -> "Plane":
        """The simulation as one that came to the state by itself, up to contacts jammed at the walls.

        A step leaves more than poses and velocities behind: contacts, and corrections of their
        overlap that the next step makes. So the step that led here is made once more, block held,
        and then everything is put in its place. The block keeps no speed of its own (full damping):
        where it is not given, what the contacts give it in that step is right.

        Args:
            state: (10,), or the published (7,) without the block's velocities.
        """
        before = np.concatenate([state[:7], np.zeros(3)])
        before[:2] -= DT * state[5:7]
        plane = cls(before)
        plane.settle()
        found = plane.state()
        found[: len(state)] = state
        plane._put(found)
        return plane

    def _put(self, state: Array) -> None:
        x, y, block_x, block_y, angle, vx, vy, block_vx, block_vy, turning = state.tolist()
        self._agent.position, self._agent.velocity = (x, y), (vx, vy)
        self._block.angle = angle
        self._block.position, self._block.velocity = (block_x, block_y), (block_vx, block_vy)
        self._block.angular_velocity = turning

    def state(self) -> npt.NDArray[np.float64]:
        """The state (10,), the angle within 0..2 pi."""
        agent, block = self._agent, self._block
        return np.array(
            [
                *agent.position,
                *block.position,
                block.angle % (2 * math.pi),
                *agent.velocity,
                *block.velocity,
                block.angular_velocity,
            ]
        )

    def settle(self) -> None:
        """One physics step without control: what the authors' setter does."""
        self._space.step(DT)

    def drive(self, dx: np.float32, dy: np.float32) -> None:
        """0.1 s of PD control towards a point, px from where the agent is now.

        In single precision, as the authors' loop computes for float32 actions: contacts magnify the
        rounding to a tenth of a px within 60 steps.
        """
        agent = self._agent
        x, y = agent.position
        target_x, target_y = x + dx, y + dy
        for _ in range(SUBSTEPS):
            (x, y), (vx, vy) = agent.position, agent.velocity
            pull_x = STIFFNESS * (target_x - x) - DAMPING * vx
            pull_y = STIFFNESS * (target_y - y) - DAMPING * vy
            agent.velocity = (float(vx + pull_x * DT), float(vy + pull_y * DT))
            self._space.step(DT)

    def contact_marks(self, state: Array) -> list[tuple[Point, Point]]:
        """Puts the shapes at a state's poses and gives the short line that crosses each contact."""
        self._put(state)
        self._space.reindex_shapes_for_body(self._agent)
        marks: list[tuple[Point, Point]] = []
        for part in self._parts:
            for found in self._space.shape_query(part):
                if found.shape is None or found.shape.body is self._block:
                    continue
                contacts = found.contact_point_set
                arm = contacts.normal * MARK_PX
                marks += [(p.point_a - arm, p.point_b + arm) for p in contacts.points]
        return marks


def corners(
    pose: Sequence[float] | Array, part: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Corners of a part of the T in the plane, at a pose (x, y, angle)."""
    x, y, angle = pose
    c, s = math.cos(angle), math.sin(angle)
    return [(x + c * px - s * py, y + s * px + c * py) for px, py in part]


class Painter:
    """Draws states as the authors' environment does: outlined shapes on a 512-px canvas, then resized.

    Contact points between block and agent or walls are marked in red, as there.

    Args:
        size: pixels per side of a frame. 224 is resized as published (bilinear); other sizes are
            area averages of the canvas.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._plane = Plane(np.zeros(10))
        self._pixels = np.full((PLANE, PLANE, 4), WHITE, dtype=np.uint8)
        self._canvas = pygame.image.frombuffer(self._pixels.data, (PLANE, PLANE), "RGBX")
        for part in (BAR, STEM):
            pygame.draw.polygon(self._canvas, GREEN, [_whole(p) for p in corners(GOAL_POSE, part)])
        self._ground = self._pixels.copy()

    def draw(
        self, state: Array, agent: Colour = BLUE, block: Colour = SLATE
    ) -> npt.NDArray[np.uint8]:
        """The frame (size, size, 3) of a state."""
        canvas = self._canvas
        self._pixels[:] = self._ground
        for part in (BAR, STEM):
            points = [_whole(p) for p in corners(state[2:5], part)]
            pygame.draw.polygon(canvas, _light(block), points)
            for a, b in zip(points, points[1:] + points[:1], strict=True):
                _thick_line(canvas, a, b, WALL_RADIUS, block)
        centre = _whole(state[:2])
        pygame.draw.circle(canvas, agent, centre, round(AGENT_RADIUS))
        pygame.draw.circle(canvas, _light(agent), centre, round(AGENT_RADIUS - 4))
        for a, b in WALLS:
            _thick_line(canvas, a, b, WALL_RADIUS, GREY)
        for start, end in self._plane.contact_marks(state):
            pygame.draw.aalines(canvas, RED, False, [_whole(start), _whole(end)])
        method = cv2.INTER_LINEAR if self._size == 224 else cv2.INTER_AREA
        small = cv2.resize(self._pixels, (self._size, self._size), interpolation=method)
        return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGBA2RGB))


def _whole(point: Sequence[float] | Array) -> tuple[int, int]:
    return round(point[0]), round(point[1])


def _light(colour: Colour) -> Colour:
    r, g, b = (min(round(1.2 * value), 255) for value in colour)
    return r, g, b


def _thick_line(
    canvas: pygame.Surface, a: tuple[int, int], b: tuple[int, int], radius: float, colour: Colour
) -> None:
    """A line of twice the radius with round ends."""
    pygame.draw.line(canvas, colour, a, b, round(2 * radius))
    across = (abs(b[1] - a[1]), abs(b[0] - a[0]))
    length = math.hypot(*across)
    if length == 0:
        return
    ox, oy = (round(value * radius / length) for value in across)
    sides = [(a[0] - ox, a[1] - oy), (a[0] + ox, a[1] + oy), (b[0] + ox, b[1] + oy)]
    pygame.draw.polygon(canvas, colour, [*sides, (b[0] - ox, b[1] - oy)])
    for end in (a, b):
        pygame.draw.circle(canvas, colour, end, round(radius))
