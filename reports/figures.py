"""Charts as Vega-Lite specs: data from table rows, styles by name, no colour and no statistic in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.axis import PointAxis
from reports.text import percent, percent_span
from reports.theme import DASHES, SHAPES, STATES

Row = dict[str, Any]
Spec = dict[str, Any]
MAX_CURVE_POINTS = 200
PERCENT = ".0%"


@dataclass(frozen=True)
class Figure:
    """A chart with the words around it.

    Attributes:
        name: file name and element id.
        title: the finding, or what is shown.
        caption: how to read it, with n and interval method.
        height: of the plot, px.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    height: int
    curves: bool = False

    def static(self, width: int = 640) -> Spec:
        """The spec with its title, legends and a fixed width, for a file of its own."""
        size = {"width": width, "height": self.height, "title": self.title}
        spec: Spec = _with_legends(self.spec)
        return {**spec, **size}

    def page(self) -> Spec:
        """The spec as the page shows it: as wide as its column."""
        return {
            **self.spec,
            "width": "container",
            "height": self.height,
            "autosize": {"type": "fit", "contains": "padding"},
        }


def _with_legends(part: Any) -> Any:
    """The spec with the legends that the page draws itself."""
    if isinstance(part, list):
        return [_with_legends(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    legend = {"title": None, "orient": "top"}
    return {
        key: legend if key == "legend" and inner is None else _with_legends(inner)
        for key, inner in part.items()
    }


def state(row: Row) -> str:
    """What became of the run of a one-run row."""
    if row["num_diverged"]:
        return "diverged"
    return "collapsed" if row["num_collapsed"] else "healthy"


def point_chart(
    axis: PointAxis,
    means: Sequence[Row],
    runs: Sequence[Row],
    *,
    quantity: str,
    titled: bool = True,
    y_format: str = ".3~g",
    y_domain: tuple[float, float] | None = None,
    y_values: Sequence[float] | None = None,
    floors: Sequence[Row] = (),
    plateau: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
) -> Spec:
    """A quantity against the swept points: every run a dot, mean and interval over seeds beside them.

    Args:
        means: `stability` rows with runs "all".
        runs: `stability` rows of single runs.
        quantity: name and unit; the y axis' title, if `titled`.
        y_domain: of the axis; whiskers that leave it are cut.
        y_values: where it has ticks.
        floors: `stability` rows of planners without a model, drawn as band and line.
        plateau: places of its ends on the axis, shaded.
        reference: a level and its label, drawn as a line.
    """
    y = {
        "field": "mean",
        "type": "quantitative",
        "title": quantity if titled else None,
        "scale": {"domain": list(y_domain), "nice": False} if y_domain else {"zero": False},
        "axis": {
            "format": y_format,
            **({"values": list(y_values)} if y_values else {"tickCount": 5}),
        },
    }
    layers: list[Spec] = []
    if plateau is not None:
        layers.append(_plateau(axis, plateau))
    layers += [layer for floor in floors for layer in _floor(axis, floor, y)]
    if reference is not None:
        layers += _level(axis, y, *reference)
    if axis.break_at is not None:
        layers.append(_values([{"at": axis.break_at}], _mark("rule", "slot"), {"x": _x("at")}))
    layers += _means(axis, means, y)
    layers.append(_runs(axis, runs, y, quantity))
    return {
        "layer": layers,
        "encoding": {"x": axis.encoding()},
        "resolve": {"axis": {"y": "shared"}},
    }


def _values(values: Sequence[Row], mark: Spec, encoding: Spec) -> Spec:
    return {"data": {"values": list(values)}, "mark": mark, "encoding": encoding}


def _mark(kind: str, style: str, **more: Any) -> Spec:
    return {"type": kind, "style": style, "clip": kind in ("rule", "rect"), **more}


def _x(field: str) -> Spec:
    return {"field": field, "type": "quantitative"}


def _y(y: Spec, field: str) -> Spec:
    return {**y, "field": field}


def _plateau(axis: PointAxis, ends: tuple[float, float]) -> Spec:
    row = {"at": ends[0] - 0.15 * axis.dodge, "to": ends[1] + 0.45 * axis.dodge}
    return _values([row], _mark("rect", "plateau"), {"x": axis.encoding(), "x2": {"field": "to"}})


def _floor(axis: PointAxis, row: Row, y: Spec) -> list[Spec]:
    """Line at the floor's rate with its label beside the plot; for the random one, the band of its interval too."""
    low, high = axis.domain
    data = {
        "at": low,
        "to": high,
        "mean": row["mean"],
        "low": row["ci_low"],
        "high": row["ci_high"],
        "label": f"{row['planner']} {percent(row['mean'])}",
        "planner": row["planner"],
        "interval": percent_span(row),
        "n": row["num_episodes"],
    }
    tooltip = [
        {"field": "planner", "title": "planner without a model"},
        {"field": "mean", "title": "success", "format": PERCENT},
        {"field": "interval", "title": row["ci_method"]},
        {"field": "n", "title": "pairs"},
    ]
    across = {"x": axis.encoding(), "x2": {"field": "to"}}
    band = {**across, "y": _y(y, "low"), "y2": {"field": "high"}, "tooltip": tooltip}
    bands = [_values([data], _mark("rect", "floor-band"), band)]
    return [
        *(bands if row["planner"] == "random" else []),
        _values([data], _mark("rule", "floor-line"), {**across, "y": _y(y, "mean")}),
        _values(
            [{**data, "at": high}],
            _mark("text", "floor-label", align="left", dx=5),
            {"x": axis.encoding(), "y": _y(y, "mean"), "text": {"field": "label"}},
        ),
    ]


def _level(axis: PointAxis, y: Spec, level: float, label: str) -> list[Spec]:
    low, high = axis.domain
    row = {"at": low, "to": high, "mean": level, "label": label}
    return [
        _values(
            [row],
            _mark("rule", "floor-line"),
            {"x": axis.encoding(), "x2": {"field": "to"}, "y": _y(y, "mean")},
        ),
        _values(
            [{**row, "at": high}],
            _mark("text", "floor-label", align="right", dx=-4, dy=-7),
            {"x": axis.encoding(), "y": _y(y, "mean"), "text": {"field": "label"}},
        ),
    ]


def _means(axis: PointAxis, means: Sequence[Row], y: Spec) -> list[Spec]:
    rows = [
        {
            "at": axis.at(row["point"]),
            "name": axis.name(row["point"]),
            **{key: row[key] for key in ("mean", "ci_low", "ci_high", "ci_method", "num_seeds")},
        }
        for row in means
        if row["mean"] is not None
    ]
    beyond_zero = [
        row for row in rows if axis.break_at is None or float(row["at"] or 0.0) > axis.break_at
    ]
    spans = [row for row in rows if row["ci_low"] is not None]
    encoding = {"x": axis.encoding(), "y": y}
    tooltip = [
        {"field": "name", "title": "point"},
        {"field": "mean", "title": "mean over seeds", "format": y["axis"]["format"]},
        {"field": "ci_low", "title": "interval from", "format": y["axis"]["format"]},
        {"field": "ci_high", "title": "to", "format": y["axis"]["format"]},
        {"field": "ci_method", "title": "interval"},
        {"field": "num_seeds", "title": "seeds"},
    ]
    interval = {"x": axis.encoding(), "y": _y(y, "ci_low"), "y2": {"field": "ci_high"}}
    return [
        _values(beyond_zero, _mark("line", "trend"), encoding),
        _values(spans, _mark("rule", "interval"), interval),
        _values(
            rows,
            _mark("tick", "mean", orient="horizontal", size=18, thickness=2),
            {**encoding, "tooltip": tooltip},
        ),
    ]


def _runs(axis: PointAxis, runs: Sequence[Row], y: Spec, quantity: str) -> Spec:
    """One mark per run, to the right of its point's mean."""
    per_point: dict[str, list[Row]] = {}
    for row in runs:
        per_point.setdefault(row["point"], []).append(row)
    rows = []
    for point, members in per_point.items():
        step = 0.26 * axis.dodge / max(len(members) - 1, 2)
        for index, row in enumerate(members):
            shift = 0.14 * axis.dodge + index * step
            rows.append(
                {
                    "at": round(axis.at(point) + shift, 6),
                    "name": axis.name(point),
                    "run": row["runs"].replace("=", " "),
                    "mean": row["mean"],
                    "state": state(row),
                    "interval": percent_span(row) if row["metric"] == "success" else None,
                    "episodes": row["num_episodes"] or None,
                }
            )
    tooltip = [
        {"field": "name", "title": "point"},
        {"field": "run", "title": "run"},
        {"field": "mean", "title": quantity, "format": y["axis"]["format"]},
        {"field": "state", "title": "latent space"},
    ]
    if any(row["interval"] for row in rows):
        tooltip.append({"field": "interval", "title": "Wilson, this run only"})
        tooltip.append({"field": "episodes", "title": "episodes"})
    states = {"field": "state", "type": "nominal", "legend": None}
    encoding = {
        "x": axis.encoding(),
        "y": y,
        "color": {**states, "scale": {"domain": list(STATES), "range": "category"}},
        "shape": {**states, "scale": {"domain": list(STATES), "range": list(SHAPES)}},
        "size": {
            **states,
            "type": "ordinal",
            "scale": {"domain": list(STATES), "range": [58, 90, 90]},
        },
        "tooltip": tooltip,
    }
    return _values(rows, _mark("point", "run", filled=True), encoding)


def thin(rows: Sequence[Row], limit: int = MAX_CURVE_POINTS) -> list[Row]:
    """Every k-th row and the last, k the smallest that leaves at most about `limit`; no averaging."""
    step = max(-(-len(rows) // limit), 1)
    kept = list(rows[::step])
    return kept if not rows or kept[-1] is rows[-1] else [*kept, rows[-1]]


def _drawable(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def curve_chart(
    runs: Sequence[Row], names: Sequence[str], metric: str, title: str, log: bool
) -> Spec:
    """A training metric against the step, one line per run; pointing at a run dims the others.

    Args:
        runs: one per trial: name (of its point), run, state, rows of (step, metric).
        names: of all points, in the order of their colours.
        log: logarithmic y axis; values that are not above 0 cannot be drawn there and are left out.
    """
    values = []
    for run in runs:
        for row in thin([r for r in run["rows"] if _drawable(r[metric], log)]):
            value = float(f"{row[metric]:.4g}")
            key = {"id": f"{run['name']}, {run['run']}", "name": run["name"], "state": run["state"]}
            values.append({"step": row["step"], "value": value, **key})
    x = {
        "field": "step",
        "type": "quantitative",
        "title": "optimiser step",
        "axis": {"grid": False},
    }
    scale = {"type": "log", "nice": False} if log else {"zero": False}
    number: Spec = {"format": ".2~g", "tickCount": 4}
    if log:
        decade = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6"
        number["gridOpacity"] = {"condition": {"test": decade, "value": 1}, "value": 0}
    y = {"field": "value", "type": "quantitative", "title": None, "scale": scale, "axis": number}
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
    shown = {"condition": {"param": "over", "value": 0.85}, "value": 0.12}
    line = {
        "mark": {"type": "line", "strokeWidth": 1.2},
        "encoding": {**shared, "color": colour, "strokeDash": dash, "opacity": shown},
    }
    select = {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["id"]}
    tooltip = [
        {"field": "id", "type": "nominal", "title": "run"},
        {"field": "step", "type": "quantitative", "format": ",d"},
        {"field": "value", "type": "quantitative", "title": title, "format": ".4~g"},
        {"field": "state", "type": "nominal", "title": "latent space"},
    ]
    # not `nearest`: Vega-Lite 6.4 reads a tooltip's text fields from the wrong datum there
    hover = {
        "params": [{"name": "over", "select": select}],
        "mark": {"type": "point", "filled": True, "opacity": 0, "size": 80},
        "encoding": {**shared, "tooltip": tooltip},
    }
    return {"data": {"values": values}, "layer": [line, hover]}
