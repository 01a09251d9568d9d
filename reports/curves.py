"""Training curves: lines thinned by a stated rule, packed for the page, drawn by run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from reports.theme import DASHES, STATES

Row = dict[str, Any]
Spec = dict[str, Any]
MAX_CURVE_POINTS, MIN_CURVE_POINTS = 200, 20
MAX_FIGURE_POINTS = 20_000
MAX_LABELS = 8
DECADES = {
    "condition": {
        "test": "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6",
        "value": 1,
    },
    "value": 0,
}
"""Opacity of the grid of a logarithmic axis: lines at powers of ten only."""


@dataclass(frozen=True)
class Curve:
    """One run's line.

    Attributes:
        run: for readers, e.g. `λ = 0.1, seed 0`.
        name: of its point.
        steps, values: of the points drawn.
    """

    run: str
    trial: str
    name: str
    state: str
    steps: tuple[int, ...]
    values_drawn: tuple[float, ...]


@dataclass(frozen=True)
class Curves:
    """The lines of one figure."""

    lines: tuple[Curve, ...]

    def values(self) -> list[Row]:
        """A row per drawn point."""
        return [
            {"step": step, "value": value, **_keys(line)}
            for line in self.lines
            for step, value in zip(line.steps, line.values_drawn, strict=True)
        ]

    def packed(self) -> Row:
        """The same for the page: every series of steps once, every line a row."""
        series = {line.steps: 0 for line in self.lines}
        for index, steps in enumerate(series):
            series[steps] = index
        lines = [
            (*_keys(line).values(), series[line.steps], line.values_drawn) for line in self.lines
        ]
        return {"steps": list(series), "lines": lines}

    @property
    def num_drawn(self) -> int:
        """How many points the longest line has."""
        return max((len(line.steps) for line in self.lines), default=0)


def _keys(line: Curve) -> Row:
    return {"id": line.run, "trial": line.trial, "name": line.name, "state": line.state}


def point_limit(num_runs: int) -> int:
    """About how many points a curve keeps: 200, fewer where a figure would exceed 20,000."""
    return max(min(MAX_CURVE_POINTS, MAX_FIGURE_POINTS // max(num_runs, 1)), MIN_CURVE_POINTS)


def thin(frame: pl.DataFrame, limit: int) -> pl.DataFrame:
    """Every k-th row of each trial and its last, k the smallest that leaves about `limit`; no averaging.

    Args:
        frame: rows in order of step, with `trial_id`.
    """
    row, count = pl.int_range(pl.len()).over("trial_id"), pl.len().over("trial_id")
    step = (count + limit - 1) // limit
    return frame.filter((row % step == 0) | (row == count - 1))


def drawable(metric: str, log: bool) -> pl.Expr:
    """Whether a value can be drawn; on a log axis only what is above 0."""
    value = pl.col(metric)
    finite = value.is_not_null() & value.is_finite()
    return finite & (value > 0) if log else finite


def rounded(value: float) -> float:
    """Four significant digits: more than a screen shows."""
    return float(f"{value:.4g}")


def curve_chart(curves: Curves, names: Sequence[str], quantity: str, log: bool) -> Spec:
    """A training metric against the step, one line per run; a wide unseen one lies over it to point at.

    Args:
        names: of all points, in the order of their colours.
        quantity: name and unit, the y axis' title.
        log: logarithmic y axis.
    """
    x = {
        "field": "step",
        "type": "quantitative",
        "title": "optimiser step",
        "axis": {"grid": False, "tickCount": 5},
    }
    scale = {"type": "log" if log else "linear", "domain": _domain(curves, log), "nice": False}
    number: Spec = {"format": ".2~g", "tickCount": 4}
    if log:
        number["gridOpacity"] = DECADES
    y = {
        "field": "value",
        "type": "quantitative",
        "title": quantity,
        "scale": scale,
        "axis": number,
    }
    colour = {
        "field": "name",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(names), "range": "ordinal"},
    }
    dash = {
        "field": "state",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(STATES), "range": [list(dash) for dash in DASHES]},
    }
    shared = {"x": x, "y": y, "detail": {"field": "id"}}
    line = {
        "mark": {"type": "line", "strokeWidth": 1.2, "opacity": 0.85},
        "encoding": {**shared, "color": colour, "strokeDash": dash},
    }
    tooltip = [
        {"field": "id", "type": "nominal", "title": "run"},
        {"field": "trial", "type": "nominal", "title": "trial"},
        {"field": "state", "type": "nominal", "title": "latent space"},
    ]
    hover = {
        "mark": {"type": "line", "strokeWidth": 9, "opacity": 0, "cursor": "pointer"},
        "encoding": {**shared, "tooltip": tooltip},
    }
    return {"layer": [line, *_end_labels(curves, names, log, x, y), hover]}


def _domain(curves: Curves, log: bool) -> list[float]:
    drawn = [value for line in curves.lines for value in line.values_drawn]
    low, high = min(drawn), max(drawn)
    if log:
        return [low / 1.1, high * 1.1]
    pad = 0.05 * (high - low) or 0.1
    return [low - pad, high + pad]


def _end_labels(curves: Curves, names: Sequence[str], log: bool, x: Spec, y: Spec) -> list[Spec]:
    """The points' names at the ends of their first runs, moved apart where they would overlap."""
    first: dict[str, Curve] = {}
    for line in curves.lines:
        first.setdefault(line.name, line)
    if not 1 < len(first) <= MAX_LABELS:
        return []
    low, high = (math.log(end) if log else end for end in _domain(curves, log))
    places = {
        name: ((math.log(line.values_drawn[-1]) if log else line.values_drawn[-1]) - low)
        / (high - low)
        for name, line in first.items()
    }
    apart = _apart(places, gap=0.065)
    last = max(line.steps[-1] for line in curves.lines)
    rows = []
    for name, place in apart.items():
        at = low + place * (high - low)
        rows.append({"step": last, "value": math.exp(at) if log else at, "label": name})
    mark = {"type": "text", "style": "end-label", "align": "left", "dx": 5, "clip": False}
    return [
        {
            "data": {"values": rows},
            "mark": mark,
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        }
    ]


def _apart(places: dict[str, float], gap: float) -> dict[str, float]:
    """Places from 0 to 1 in order, moved until neighbours are a gap apart, inside the frame."""
    order = sorted(places, key=lambda name: places[name])
    moved = [places[name] for name in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved[-1] = min(moved[-1], 1.0)
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - gap)
    return dict(zip(order, moved, strict=True))
