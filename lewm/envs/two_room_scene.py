"""The plane of Two-Room: its geometry, how a disc collides in it and what it looks like.

Units are pixels of the published 224-pixel picture whatever the size of the frames; the centre of
pixel k has coordinate k. The plane has a border at 14, a vertical wall at x = 112 of half-thickness
5, a door in it around y = 49 of half-extent 14; the agent is a disc of radius 7 and moves at most
5 px per axis and step (facts §3.2; numbers read off the published environment's recordings).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PLANE = 224
BORDER = 14
BORDER_LINE = 4
WALL_X = 112.0
WALL_HALF = 5.0
DOOR_Y = 49.0
DOOR_HALF = 14.0
RADIUS = 7.0
LOW, HIGH = BORDER + RADIUS, PLANE - BORDER - RADIUS
TOUCH = WALL_HALF + RADIUS
"""The disc touches the wall when its centre is this far from `WALL_X`."""
STOP_GAP = 0.5
DOOR_MARGIN = 1.75
"""The end-point rule stops `STOP_GAP` short of the wall and widens the door by `DOOR_MARGIN`."""
SKIN = 1e-9
DRAWN = 36.0
"""Farther than this from its centre the agent changes no grey level."""

Point = tuple[float, float]


def same_room(a: Point, b: Point) -> bool:
    """Whether two points lie on one side of the wall's middle."""
    return (a[0] < WALL_X) == (b[0] < WALL_X)


def _bounded(point: Point) -> Point:
    return min(max(point[0], LOW), HIGH), min(max(point[1], LOW), HIGH)


def move_endpoint(start: Point, target: Point) -> Point:
    """Where a step ends under the published rule: only the end point is tested, axis by axis.

    The disc may cut the corners of the door, and overlaps the wall by up to 8.75 px inside it.
    """
    x, y = _bounded(target)
    if abs(y - DOOR_Y) <= DOOR_HALF + DOOR_MARGIN:
        return x, y
    if start[0] < WALL_X:
        return (WALL_X - TOUCH - STOP_GAP if x > WALL_X - TOUCH else x), y
    return (WALL_X + TOUCH + STOP_GAP if x < WALL_X + TOUCH else x), y


def move_swept(start: Point, target: Point) -> Point:
    """Where a step ends when the disc is moved along its path and slides where it touches.

    A start that overlaps a wall is first moved to the nearest clear place.
    """
    at, goal = push_out(start), _bounded(target)
    for _ in range(4):
        hit = _first_contact(at, goal)
        if hit is None:
            return goal
        t, (nx, ny) = hit
        dx, dy = goal[0] - at[0], goal[1] - at[1]
        at = at[0] + t * dx + SKIN * nx, at[1] + t * dy + SKIN * ny
        left = 1.0 - t
        inward = min(dx * nx + dy * ny, 0.0)
        goal = _bounded((at[0] + left * (dx - inward * nx), at[1] + left * (dy - inward * ny)))
    return at


def is_clear(point: Point) -> bool:
    """Whether the disc there overlaps neither wall nor border."""
    inside = _bounded(point) == point
    return inside and all(math.dist(point, q) >= RADIUS - 1e-6 for q in _nearest_wall(point))


def _nearest_wall(point: Point) -> tuple[Point, Point]:
    """The nearest points of the wall's upper and lower half."""
    x = min(max(point[0], WALL_X - WALL_HALF), WALL_X + WALL_HALF)
    return (x, min(point[1], DOOR_Y - DOOR_HALF)), (x, max(point[1], DOOR_Y + DOOR_HALF))


def push_out(point: Point) -> Point:
    """The nearest clear place of the disc; the point itself if it is clear."""
    x, y = _bounded(point)
    if abs(x - WALL_X) >= TOUCH:
        return x, y
    for upper, (qx, qy) in zip((True, False), _nearest_wall((x, y)), strict=True):
        gap = math.dist((x, y), (qx, qy))
        if gap >= RADIUS:
            continue
        if gap > 0.0:
            scale = (RADIUS + SKIN) / gap
            return qx + (x - qx) * scale, qy + (y - qy) * scale
        side = math.copysign(TOUCH + SKIN, x - WALL_X)
        edge = DOOR_Y - DOOR_HALF + RADIUS if upper else DOOR_Y + DOOR_HALF - RADIUS
        return (WALL_X + side, y) if TOUCH - abs(x - WALL_X) <= abs(edge - y) else (x, edge)
    return x, y


def _first_contact(start: Point, end: Point) -> tuple[float, Point] | None:
    """The first contact of a moving disc with the wall: its time in [0, 1] and outward normal."""
    near = abs(start[0] - WALL_X) < TOUCH + 1e-6 or abs(end[0] - WALL_X) < TOUCH
    if not near and same_room(start, end):
        return None
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    if length == 0.0:
        return None
    early = -1e-6 / length
    top, bottom = DOOR_Y - DOOR_HALF, DOOR_Y + DOOR_HALF
    hits: list[tuple[float, Point]] = []
    for nx in (-1.0, 1.0):
        t = (WALL_X + nx * TOUCH - start[0]) / dx if dx * nx < 0.0 else 2.0
        if early <= t <= 1.0 and not top < start[1] + t * dy < bottom:
            hits.append((t, (nx, 0.0)))
    for ny, edge in ((1.0, top + RADIUS), (-1.0, bottom - RADIUS)):
        t = (edge - start[1]) / dy if dy * ny < 0.0 else 2.0
        if early <= t <= 1.0 and abs(start[0] + t * dx - WALL_X) <= WALL_HALF:
            hits.append((t, (0.0, ny)))
    for cx in (WALL_X - WALL_HALF, WALL_X + WALL_HALF):
        for cy in (top, bottom):
            ox, oy = start[0] - cx, start[1] - cy
            b = (ox * dx + oy * dy) / length
            root = b * b - (ox * ox + oy * oy - RADIUS**2)
            t = (-b - math.sqrt(root)) / length if b < 0.0 <= root else 2.0
            if early <= t <= 1.0:
                hits.append((t, ((ox + t * dx) / RADIUS, (oy + t * dy) / RADIUS)))
    if not hits:
        return None
    t, normal = min(hits)
    return max(t, 0.0), normal


class _Scene(NamedTuple):
    """What frames of one size share; x and y masks hold (all, unbordered, wall or beside the door)."""

    background: npt.NDArray[np.uint8]
    white: npt.NDArray[np.float64]
    masks_x: npt.NDArray[np.float64]
    masks_y: npt.NDArray[np.float64]


@lru_cache(maxsize=8)
def _scene(size: int) -> _Scene:
    k = np.arange(PLANE, dtype=np.float64)
    inner = (k >= BORDER - BORDER_LINE) & (k < BORDER)
    outer = (k >= PLANE - BORDER) & (k < PLANE - BORDER + BORDER_LINE)
    free = (~(inner | outer)).astype(np.float64)
    wall = (np.abs(k - WALL_X) <= WALL_HALF).astype(np.float64)
    shut = free * (np.abs(k - DOOR_Y) > DOOR_HALF)
    masks_x = np.stack([np.ones(PLANE), free, wall])
    masks_y = np.stack([np.ones(PLANE), free, shut])
    _, ux, wx = _averages(masks_x, 0, 0, size, size)
    _, uy, sy = _averages(masks_y, 0, 0, size, size)
    white = np.outer(uy, ux) - np.outer(sy, wx)
    grey = _grey(255.0 * white)
    return _Scene(np.repeat(grey[:, :, None], 3, axis=2), white, masks_x, masks_y)


def _grey(value: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Grey levels are cut, not rounded, as in the published renderer."""
    return (value + 1e-3).astype(np.uint8)


def _averages(
    values: npt.NDArray[np.float64], origin: int, first: int, last: int, size: int
) -> npt.NDArray[np.float64]:
    """Means (3, last - first) over the output pixels first..last of values (3, n) from `origin` on."""
    edges = np.arange(first, last + 1) * (PLANE / size) - origin
    whole = np.minimum(edges.astype(np.int64), values.shape[1])
    padded = np.concatenate([values, np.zeros((3, 1))], axis=1)
    below = np.concatenate([np.zeros((3, 1)), np.cumsum(values, axis=1)], axis=1)
    area = below[:, whole] + (edges - whole) * padded[:, whole]
    return (area[:, 1:] - area[:, :-1]) * (size / PLANE)


def _spread(
    masks: npt.NDArray[np.float64], centre: float, size: int
) -> tuple[int, int, npt.NDArray[np.float64]]:
    """The agent's profile along one axis: output range and its masked area averages (3, n)."""
    ratio = PLANE / size
    first = max(0, math.floor((centre - DRAWN) / ratio))
    last = min(size, math.ceil((centre + DRAWN + 1.0) / ratio))
    if first >= last:
        return 0, 0, np.zeros((3, 0))
    origin, end = math.floor(first * ratio), min(PLANE, math.ceil(last * ratio))
    offset = np.arange(origin, end) - centre
    profile = np.exp(offset * offset / (-2.0 * RADIUS**2))
    profile /= profile.max()
    return first, last, _averages(masks[:, origin:end] * profile, origin, first, last, size)


def draw(agent: Point, size: int, colour: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The frame (size, size, 3): black walls on white, the agent a gaussian blob of std 7 px.

    A size below 224 is the exact area average of the 224-pixel picture: picture and blob are sums of
    products of a function of x and one of y, so only the two axes are averaged.
    """
    scene = _scene(size)
    frame = scene.background.copy()
    x0, x1, (blob_x, free_x, wall_x) = _spread(scene.masks_x, agent[0], size)
    y0, y1, (blob_y, free_y, shut_y) = _spread(scene.masks_y, agent[1], size)
    blob = np.outer(blob_y, blob_x)
    covered = np.outer(free_y, free_x) - np.outer(shut_y, wall_x)
    rest = 255.0 * (scene.white[y0:y1, x0:x1] - covered)
    for channel, level in enumerate(colour):
        frame[y0:y1, x0:x1, channel] = _grey(rest + level * blob if level else rest)
    return frame
