"""Charts as Vega-Lite specs: data from table rows, styles by name, no colour and no statistic in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.axis import PointAxis
from reports.curves import DECADES, Curves
from reports.text import percent, percent_span
from reports.theme import SHAPES, STATES

Row = dict[str, Any]
Spec = dict[str, Any]
PERCENT = ".0%"
MAX_TABLE_ROWS = 200


@dataclass(frozen=True)
class Figure:
    """A chart with the words around it and the data behind it.

    Attributes:
        name: file name and element id.
        title: the finding.
        caption: how to read it, with n and interval method.
        height: of the plot, px.
        columns, rows: the data behind it: cells of the sweep's tables as they are, for the table under
            the figure and for its CSV.
        curves: lines drawn besides the spec's own data; the CSV then holds their points.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    height: int
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    curves: Curves | None = None

    def static(self, width: int = 640) -> Spec:
        """The spec with its title, legends and a fixed width, for a file of its own."""
        size = {
            "width": width,
            "height": self.height,
            "title": {"text": self.title, "limit": width},
        }
        spec: Spec = _with_legends(self.spec)
        data = {} if self.curves is None else {"data": {"values": self.curves.values()}}
        return {**spec, **size, **data}

    def page(self) -> Spec:
        """The figure as the page's script takes it: spec as wide as its column, data, packed curves."""
        spec = {
            **self.spec,
            "width": "container",
            "height": self.height,
            "autosize": {"type": "fit", "contains": "padding"},
        }
        packed = {} if self.curves is None else {"curves": self.curves.packed()}
        return {"spec": spec, "columns": self.columns, "rows": self.rows, **packed}

    @property
    def shown(self) -> tuple[tuple[Any, ...], ...]:
        """The rows of the table under the figure."""
        return self.rows[:MAX_TABLE_ROWS]


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


BEHIND = ("point", "runs", "num_seeds", "num_episodes", "mean", "ci_low", "ci_high", "ci_method")


def rows_behind(
    means: Sequence[Row], runs: Sequence[Row], more: Sequence[Row] = ()
) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Columns and rows of a point chart's data: cells of `stability`, means first."""
    columns = (*BEHIND, "state")
    rows = [
        *((*(row[name] for name in BEHIND), None) for row in means),
        *((*(row[name] for name in BEHIND), state(row)) for row in runs),
        *((row["planner"], *(row[name] for name in BEHIND[1:]), None) for row in more),
    ]
    return columns, tuple(rows)


def point_chart(
    axis: PointAxis,
    means: Sequence[Row],
    runs: Sequence[Row],
    *,
    quantity: str,
    y_format: str = ".3~g",
    y_domain: tuple[float, float] | None = None,
    y_values: Sequence[float] | None = None,
    log: bool = False,
    floors: Sequence[Row] = (),
    plateau: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
    published: Sequence[tuple[float, str]] = (),
) -> Spec:
    """A quantity against the swept points: every run a dot, mean and interval over seeds beside them.

    Args:
        means: `stability` rows with runs "all".
        runs: `stability` rows of single runs.
        quantity: name and unit; the y axis' title.
        y_domain: of the axis; whiskers that leave it are cut.
        y_values: where it has ticks.
        log: logarithmic y axis; every drawn value must be above 0.
        floors: `stability` rows of planners without a model, drawn as band and line.
        plateau: places of its ends on the axis, shaded.
        reference: a level and its label, drawn as a line.
        published: values of others with their labels, drawn as lines.
    """
    scale: Spec = {"domain": list(y_domain), "nice": False} if y_domain else {"zero": False}
    y = {
        "field": "mean",
        "type": "quantitative",
        "title": quantity,
        "scale": {**scale, **({"type": "log"} if log else {})},
        "axis": {
            "format": y_format,
            **({"values": list(y_values)} if y_values else {"tickCount": 4 if log else 5}),
            **({"gridOpacity": DECADES} if log else {}),
        },
    }
    layers: list[Spec] = []
    if plateau is not None:
        layers.append(_plateau(axis, plateau))
    layers += [layer for floor in floors for layer in _floor(axis, floor, y)]
    if reference is not None:
        layers += _level(axis, y, *reference, "floor-line")
    for level, label in published:
        layers += _level(axis, y, level, label, "published")
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


def _level(axis: PointAxis, y: Spec, level: float, label: str, style: str) -> list[Spec]:
    low, high = axis.domain
    row = {"at": low, "to": high, "mean": level, "label": label}
    return [
        _values(
            [row],
            _mark("rule", style),
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
    low, high = y["scale"].get("domain", (-math.inf, math.inf))
    spans = [
        {**row, "low": max(row["ci_low"], low), "high": min(row["ci_high"], high)}
        for row in rows
        if row["ci_low"] is not None
    ]
    encoding = {"x": axis.encoding(), "y": y}
    tooltip = [
        {"field": "name", "title": "point"},
        {"field": "mean", "title": "mean over seeds", "format": y["axis"]["format"]},
        {"field": "ci_low", "title": "interval from", "format": y["axis"]["format"]},
        {"field": "ci_high", "title": "to", "format": y["axis"]["format"]},
        {"field": "ci_method", "title": "interval"},
        {"field": "num_seeds", "title": "seeds"},
    ]
    interval = {"x": axis.encoding(), "y": _y(y, "low"), "y2": {"field": "high"}}
    return [
        _values(beyond_zero if axis.ordered else [], _mark("line", "trend"), encoding),
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


SEED_MARKS = {"healthy": "", "collapsed": " ▾", "diverged": " ✕"}
MAX_LABELLED_SEEDS = 12


def seed_chart(names: Sequence[str], labels: dict[str, str], runs: Sequence[Row]) -> Spec:
    """Success of every run as a matrix: a row per point, a column per seed, the rate written in the cell.

    Args:
        names: of the points that have runs, from top to bottom.
        labels: the name of each point.
        runs: `stability` rows of single runs.
    """
    seeds = sorted({_seed(row) for row in runs})
    rows = [
        {
            "point": labels[row["point"]],
            "seed": _seed(row),
            "mean": row["mean"],
            "state": state(row),
            "label": f"{100 * row['mean']:.0f}{SEED_MARKS[state(row)]}",
            "interval": percent_span(row),
            "episodes": row["num_episodes"] or None,
        }
        for row in runs
    ]
    x = {
        "field": "seed",
        "type": "ordinal",
        "title": "training seed",
        "sort": seeds,
        "axis": {"labelAngle": 0, "domain": False, "ticks": False, "labelOverlap": True},
    }
    y = {
        "field": "point",
        "type": "ordinal",
        "title": None,
        "sort": list(names),
        "axis": {"domain": False, "ticks": False, "labelLimit": 160},
    }
    tooltip = [
        {"field": "point", "title": "point"},
        {"field": "seed", "title": "seed"},
        {"field": "mean", "title": "success", "format": PERCENT},
        {"field": "interval", "title": "Wilson, this run only"},
        {"field": "episodes", "title": "episodes"},
        {"field": "state", "title": "latent space"},
    ]
    shade: Spec = {"field": "mean", "type": "quantitative", "legend": None}
    shade["scale"] = {"domain": [0, 1], "range": [0.04, 0.55]}
    cells: list[Spec] = [
        {"mark": _mark("rect", "cell"), "encoding": {"fillOpacity": shade, "tooltip": tooltip}}
    ]
    if len(seeds) <= MAX_LABELLED_SEEDS:
        cells.append(
            {"mark": _mark("text", "cell-label"), "encoding": {"text": {"field": "label"}}}
        )
    return {"data": {"values": rows}, "encoding": {"x": x, "y": y}, "layer": cells}


def _seed(row: Row) -> int:
    return int(row["runs"].removeprefix("seed="))
