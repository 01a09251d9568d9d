"""The Push-T plane: a kinematic disc, a T-shaped block, four walls; its physics and its looks (facts §3).

Lengths are px of a 512-pixel plane, y downwards, angles rad. Every number here is the published
environment's.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pygame
import pymunk

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]

PLANE = 512
SUBSTEPS, DT = 10, 0.01
STIFFNESS, DAMPING = 100.0, 20.0
REACH = 100.0
"""px of a relative target for an action of 1."""
AGENT_RADIUS = 15.0
UNIT = 30.0
"""Thickness of the T's bars; they are 4 and 3 units long."""
BAR = ((-60.0, 30.0), (60.0, 30.0), (60.0, 0.0), (-60.0, 0.0))
STEM = ((-15.0, 30.0), (-15.0, 120.0), (15.0, 120.0), (15.0, 30.0))
CENTRE = (0.0, 45.0)
"""The block's centre of gravity in its own frame: midway between those of its two parts."""
MASS, INERTIA = 1.0, 2 * pymunk.moment_for_poly(1.0, BAR)
WALLS = (((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506)))
WALL_RADIUS = 2.0
GOAL_POSE = (256.0, 256.0, math.pi / 4)

WHITE, GREEN, GREY = (255, 255, 255), (144, 238, 144), (211, 211, 211)
BLUE, SLATE = (65, 105, 225), (119, 136, 153)


class Plane:
    """The simulation, set to a state.

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
        bar, stem = pymunk.Poly(self._block, BAR), pymunk.Poly(self._block, STEM)
        self._block.center_of_gravity = CENTRE
        self._agent.position = tuple(state[0:2])
        self._agent.velocity = tuple(state[5:7])
        self._block.angle = float(state[4])
        self._block.position = tuple(state[2:4])
        self._block.velocity = tuple(state[7:9])
        self._block.angular_velocity = float(state[9])
        self._space.add(self._agent, pymunk.Circle(self._agent, AGENT_RADIUS))
        self._space.add(self._block, bar, stem)

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

    def drive(self, dx: float, dy: float) -> None:
        """0.1 s of PD control towards a point, px from where the agent is now."""
        agent = self._agent
        x, y = agent.position
        target_x, target_y = x + dx, y + dy
        for _ in range(SUBSTEPS):
            (x, y), (vx, vy) = agent.position, agent.velocity
            pull_x = STIFFNESS * (target_x - x) - DAMPING * vx
            pull_y = STIFFNESS * (target_y - y) - DAMPING * vy
            agent.velocity = (vx + pull_x * DT, vy + pull_y * DT)
            self._space.step(DT)


def corners(
    pose: Sequence[float] | Array, part: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Corners of a part of the T in the plane, at a pose (x, y, angle)."""
    x, y, angle = pose
    c, s = math.cos(angle), math.sin(angle)
    return [(x + c * px - s * py, y + s * px + c * py) for px, py in part]


class Painter:
    """Draws states as the authors' environment does: outlined shapes on a 512-px canvas, then resized.

    Args:
        size: pixels per side of a frame. 224 is resized as published (bilinear); other sizes are
            area averages of the canvas.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._canvas = pygame.Surface((PLANE, PLANE))
        self._ground = pygame.Surface((PLANE, PLANE))
        self._ground.fill(WHITE)
        for part in (BAR, STEM):
            pygame.draw.polygon(self._ground, GREEN, [_whole(p) for p in corners(GOAL_POSE, part)])

    def draw(
        self, state: Array, agent: Colour = BLUE, block: Colour = SLATE
    ) -> npt.NDArray[np.uint8]:
        """The frame (size, size, 3) of a state."""
        canvas = self._canvas
        canvas.blit(self._ground, (0, 0))
        centre = _whole(state[:2])
        pygame.draw.circle(canvas, agent, centre, round(AGENT_RADIUS))
        pygame.draw.circle(canvas, _light(agent), centre, round(AGENT_RADIUS - 4))
        for part in (BAR, STEM):
            points = [_whole(p) for p in corners(state[2:5], part)]
            pygame.draw.polygon(canvas, _light(block), points)
            for a, b in zip(points, points[1:] + points[:1], strict=True):
                _thick_line(canvas, a, b, WALL_RADIUS, block)
        for a, b in WALLS:
            _thick_line(canvas, a, b, WALL_RADIUS, GREY)
        pixels = pygame.surfarray.pixels3d(canvas).transpose(1, 0, 2)
        method = cv2.INTER_LINEAR if self._size == 224 else cv2.INTER_AREA
        return np.asarray(cv2.resize(pixels, (self._size, self._size), interpolation=method))


def _whole(point: Sequence[float] | Array) -> tuple[int, int]:
    return round(point[0]), round(point[1])


def _light(colour: Colour) -> Colour:
    r, g, b = (min(int(np.float32(1.2) * np.float32(value)), 255) for value in colour)
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
