"""Charts of a comparison: success of both sweeps, and its difference, as Vega-Lite specs and SVG."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import vl_convert
from markupsafe import Markup

from reports import text, views
from reports.axis import PointAxis, make_axis
from reports.paper import interval_words
from reports.theme import chart_config, colours, page_config

VEGA_LITE = "6.4"
WIDTH, HEIGHT = 640, 260
FONT = "Arial, Helvetica, sans-serif"
"""Its widths are known where the picture is drawn, and nearly those of any reader's sans-serif."""
SETTING = ("method", "env", "profile", "protocol", "planner", "eval_point")
Row = dict[str, Any]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What a comparison is made from; of every pair the first sweep comes first.

    Attributes:
        comparison, summary: of the comparison itself.
        points: the points in common, as keys in either sweep.
        changes: area, setting and its two values, where these differ.
    """

    names: tuple[str, str]
    metas: tuple[Mapping[str, Any], Mapping[str, Any]]
    tables: tuple[Mapping[str, pl.DataFrame], Mapping[str, pl.DataFrame]]
    points: Sequence[tuple[Row, Row]]
    changes: Sequence[tuple[str, str, Any, Any]]
    comparison: pl.DataFrame
    summary: pl.DataFrame

    def said(self, *quantities: str, **where: Any) -> list[str]:
        """The sentences of some quantities."""
        chosen = self.summary.filter(pl.col("quantity").is_in(list(quantities)), *same(where))
        return list(dict.fromkeys(chosen["text"].drop_nulls()))

    def axis(self, setting: Row) -> PointAxis:
        """Where the common points of a setting's world stand."""
        return make_axis((b["point"], b["lam"]) for _, b in self.points if _in(b, setting))


@dataclass(frozen=True)
class Chart:
    """A figure with its words."""

    name: str
    title: str
    caption: str
    spec: Spec


def same(where: Mapping[str, Any]) -> list[pl.Expr]:
    """The filter for rows with these values, null being one."""
    return [pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items()]


def _in(point: Row, setting: Row) -> bool:
    return all(point[name] == setting[name] for name in ("method", "env", "profile"))


def settings(told: Told) -> list[Row]:
    """The planning settings that both have results of."""
    rows = told.comparison.filter(pl.col("metric") == "success").select(SETTING)
    return rows.unique().sort(SETTING, descending=[False] * 3 + [True, False, False]).to_dicts()


def setting_name(setting: Row) -> str:
    """World and planning setting for readers."""
    place = f"{setting['method']} in {text.world(setting['env'])}"
    return f"{place}, {views.setting_name(setting)}"


def _file(setting: Row) -> str:
    words = "-".join(str(setting[name]) for name in SETTING if name != "profile" and setting[name])
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")


def charts(told: Told) -> list[Chart]:
    """Per setting both sweeps' success, and its difference."""
    found = []
    for setting in settings(told):
        found += [both_chart(told, setting), difference_chart(told, setting)]
    return found


def of_both(told: Told, setting: Row) -> list[tuple[str, Row, Row | None, Row | None]]:
    """Per common point: its name, its key in the second sweep, and both sweeps' rows of success."""
    axis, place = told.axis(setting), {name: setting[name] for name in views.SETTING}
    found = []
    for first, second in sorted(told.points, key=lambda pair: _by_lam(pair[1])):
        if _in(second, setting):
            rows = [
                _success(tables["stability"], point, place)
                for tables, point in zip(told.tables, (first, second), strict=True)
            ]
            found.append((axis.name(second["point"]), second, rows[0], rows[1]))
    return found


def _by_lam(row: Row) -> tuple[bool, float, str]:
    return (row["lam"] is None, row["lam"] or 0.0, row["point"] or "")


def _success(stability: pl.DataFrame, point: Row, place: Row) -> Row | None:
    keys = {name: point[name] for name in ("method", "env", "profile", "point")}
    rows = stability.filter(*same({**keys, **place, "metric": "success", "runs": "all"}))
    return rows.row(0, named=True) if rows.height else None


def differences(told: Told, setting: Row) -> dict[str, Row]:
    """The rows of the difference in success by point."""
    rows = told.comparison.filter(*same({**setting, "metric": "success"}))
    return {row["point"]: row for row in rows.iter_rows(named=True)}


def both_chart(told: Told, setting: Row) -> Chart:
    """Success of both sweeps at their common points."""
    axis, marks = told.axis(setting), []
    for name, point, first, second in of_both(told, setting):
        for which, (sweep, row) in enumerate(zip(told.names, (first, second), strict=True)):
            if row is not None and row["mean"] is not None:
                at = axis.at(point["point"]) + (which - 0.5) * 0.12 * axis.dodge
                ends = {"low": row["ci_low"], "high": row["ci_high"]}
                marks.append({"at": at, "point": name, "sweep": sweep, "mean": row["mean"], **ends})
    by_sweep = {"field": "sweep", "type": "nominal", "scale": {"domain": list(told.names)}}
    shape = {"domain": list(told.names), "range": ["circle", "diamond"]}
    legend = {"title": None, "orient": "top", "labelLimit": 400}
    colour = {**by_sweep, "legend": legend}
    y = {"type": "quantitative", "title": "planning success (% of episodes)"}
    scale = {"scale": {"domain": [-0.03, 1.03], "nice": False}}
    axis_y = {"axis": {"format": ".0%", "values": [0, 0.2, 0.4, 0.6, 0.8, 1]}}
    spec = {
        "data": {"values": marks},
        "encoding": {"x": axis.encoding(), "color": colour},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.3},
                "encoding": {
                    "y": {"field": "low", **y, **scale, **axis_y},
                    "y2": {"field": "high"},
                },
                "transform": [{"filter": "datum.low !== null"}],
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "y": {"field": "mean", **y, **scale, **axis_y},
                    "shape": {**by_sweep, "scale": shape, "legend": legend},
                },
            },
        ],
    }
    rows = [row for _, _, *pair in of_both(told, setting) for row in pair if row is not None]
    seeds = text.between([row["num_seeds"] for row in rows], "seed")
    caption = f"Mean over {seeds}. {interval_words(rows)}"
    title = f"Success of both sweeps, {setting_name(setting)}"
    return Chart(f"success-{_file(setting)}", title, caption, spec)


def difference_chart(told: Told, setting: Row) -> Chart:
    """The difference in success at the common points, with the margin of equivalence."""
    axis, rows = told.axis(setting), differences(told, setting)
    values = [
        {
            "at": axis.at(point),
            "diff": row["diff"],
            "low": row["ci_low"],
            "high": row["ci_high"],
            "paired": "paired" if row["paired"] else "unpaired",
        }
        for point, row in rows.items()
    ]
    margin = next((row["margin"] for row in rows.values() if row["margin"] is not None), None)
    reach = [
        abs(value[key])
        for value in values
        for key in ("diff", "low", "high")
        if value[key] is not None
    ]
    limit = min(1.0, 1.1 * max([*reach, 0.15]))
    y = {
        "type": "quantitative",
        "title": "difference in success (points)",
        "scale": {"domain": [-limit, limit], "nice": False},
        "axis": {"labelExpr": "format(100 * datum.value, '+.0f')"},
    }
    band = {"y": {"datum": -(margin or 0), **y}, "y2": {"datum": margin or 0}}
    shape = {"domain": ["paired", "unpaired"], "range": ["circle", "square"]}
    spec = {
        "data": {"values": values},
        "layer": [
            {
                "data": {"values": [{}]},
                "mark": {"type": "rect", "style": "floor-band"},
                "encoding": band,
            },
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "style": "floor-line"},
                "encoding": {"y": {"datum": 0, **y}},
            },
            {
                "mark": {"type": "rule", "style": "interval"},
                "transform": [{"filter": "datum.low !== null"}],
                "encoding": {
                    "x": axis.encoding(),
                    "y": {"field": "low", **y},
                    "y2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "style": "mean"},
                "encoding": {
                    "x": axis.encoding(),
                    "y": {"field": "diff", **y},
                    "shape": {
                        "field": "paired",
                        "type": "nominal",
                        "scale": shape,
                        "legend": {"title": None, "orient": "top"},
                    },
                },
            },
        ],
    }
    grey = f" Grey: within {text.points(margin).lstrip('+')} points." if margin is not None else ""
    seeds = text.between([row["n"] for row in rows.values()], "seed")
    intervals = interval_words(list(rows.values()))
    caption = f"{told.names[1]} less {told.names[0]}; {seeds}. {intervals}{grey}"
    finding = told.said("finding_success", **setting)
    title = finding[0] if finding else f"Difference in success, {setting_name(setting)}"
    return Chart(f"difference-{_file(setting)}", title, caption, spec)


def figures_svg(told: Told) -> dict[str, str]:
    """The charts as static pictures: file stem → SVG, light theme."""
    config = chart_config(False, []) | {
        "background": "white",
        "font": "Arial, Helvetica, sans-serif",
    }
    ink = colours([], False)["ink"]
    return {chart.name: _svg(chart, config, ink) for chart in charts(told)}


def inline(chart: Chart) -> Row:
    """The chart as the page shows it: as wide as its column, its colours those of the page's theme."""
    head, end, rest = _svg(chart, page_config([]), "var(--ink)").partition(">")
    head = re.sub(r' (?:width|height)="[\d.]+"', "", head)
    return {"title": chart.title, "caption": chart.caption, "drawn": Markup(head + end + rest)}


def _svg(chart: Chart, config: Spec, ink: str) -> str:
    """A picture whose clip paths have names of their own, so that several may stand on one page."""
    legend = {"labelColor": ink, "labelFontSize": 11}
    whole = {**config, "font": FONT, "legend": legend}
    spec = {**chart.spec, "width": WIDTH, "height": HEIGHT, "config": whole}
    svg = str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    found = dict.fromkeys(re.findall(r"clip\d+", svg))
    ids = {old: f"{chart.name}-clip{i}" for i, old in enumerate(found)}
    return re.sub(r"clip\d+", lambda match: ids[match.group()], svg)
