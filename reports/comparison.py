"""The page of a comparison: what two sweeps have in common, and what differs there."""

import csv
import io
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import polars as pl
from markupsafe import Markup

from reports import sections, text, views
from reports.comparison_charts import (
    Row,
    Told,
    both_chart,
    difference_chart,
    differences,
    figures_svg,
    inline,
    of_both,
    same,
    setting_name,
    settings,
)
from reports.paper import (
    CONCLUSIONS,
    WORDS,
    Paper,
    PaperTable,
    conclusion_cells,
    interval_words,
)
from reports.templating import TEMPLATES, template
from reports.theme import css

PLACE = ("layer", "target", "probe", "event", "protocol", "planner", "eval_point")
Cells = tuple[str, ...]
SUCCESS_HEADS = ("difference", "95 % interval", "p", "p, equivalence", "seeds", "pairs", "paired")


def success_rows(told: Told, setting: Row) -> list[Cells]:
    """A row per common point: success of both, difference, interval, tests, n."""
    found, rows = differences(told, setting), []
    for name, point, *both in of_both(told, setting):
        row = found.get(point["point"])
        cells = [_mean(one) for one in both]
        if row is None:
            rows.append((name, *cells, *[text.DASH] * 7))
            continue
        tests = (text.p_value(row["p_adjusted"]), text.p_value(row["p_equivalence"]))
        counts = (str(row["n"]), str(row["num_pairs"]), "yes" if row["paired"] else "no")
        rows.append(
            (name, *cells, text.points(row["diff"]), text.points_span(row), *tests, *counts)
        )
    return rows


def _mean(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return text.DASH
    span = f" ({text.percent_span(row)})" if row["ci_low"] is not None else ""
    return f"{text.percent(row['mean'])}{span}"


def other_rows(told: Told, world: Row) -> tuple[Cells, list[Cells]]:
    """Other metrics of a world: a column per common point, difference and interval in a cell.

    Metrics that are equal to the bit in all runs are left out.
    """
    keys = {name: world[name] for name in ("method", "env", "profile")}
    rows = told.comparison.filter(*same(keys), pl.col("metric") != "success")
    axis = told.axis(world)
    found: dict[Cells, dict[str, Row]] = {}
    for row in rows.sort("metric", *PLACE, nulls_last=True).iter_rows(named=True):
        place = ", ".join(str(row[name]) for name in PLACE if row[name])
        found.setdefault((row["metric"], place), {})[row["point"]] = row
    found = {key: own for key, own in found.items() if any(row["diff"] for row in own.values())}
    points = [slot.point for slot in axis.slots]
    heads = ("metric", "where", *(slot.name for slot in axis.slots))
    return heads, [(*key, *(_other(own.get(p)) for p in points)) for key, own in found.items()]


def _other(row: Row | None) -> str:
    """A difference with its interval; a star where it is clear after Holm."""
    if row is None:
        return text.DASH
    star = "*" if row["p_adjusted"] is not None and row["p_adjusted"] < 0.05 else ""
    span = f" ({text.number_span(row, 2)})" if row["ci_low"] is not None else ""
    return f"{text.number(row['diff'], 2)}{star}{span}"


def conclusions(told: Told, setting: Row) -> list[Cells]:
    """What either sweep concludes for itself: best point, success, plateau and the rest."""
    rows = []
    place = {name: setting[name] for name in views.SETTING}
    for quantity, name, kind in CONCLUSIONS:
        cells = []
        for tables in told.tables:
            where = {"quantity": quantity, "env": setting["env"], **place}
            found = tables["summary"].filter(*same(where))
            cells.append(
                _concluded(found.row(0, named=True), kind) if found.height == 1 else text.DASH
            )
        if any(cell != text.DASH for cell in cells):
            rows.append((name, *cells))
    return rows


def _concluded(row: Row, kind: str) -> str:
    value, span = conclusion_cells(row, kind)
    return value if kind == WORDS or span == text.DASH else f"{value} ({span})"


def change_rows(told: Told) -> list[Cells]:
    """What differs in configuration, protocols, code and data."""
    return [(area, name, _value(a), _value(b)) for area, name, a, b in told.changes]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or text.DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not set" if value is None else str(value)


def render(told: Told) -> str:
    """The comparison as one HTML page without scripts; the same input gives the same bytes."""
    chapters = []
    for setting in settings(told):
        rows = success_rows(told, setting)
        figures = [inline(both_chart(told, setting)), inline(difference_chart(told, setting))]
        heads = ("point", *told.names, *SUCCESS_HEADS)
        chapter: Row = {"name": setting_name(setting), "rows": rows, "figures": figures}
        chapter["csv"] = _csv((heads, *rows))
        chapters.append({**chapter, "conclusions": conclusions(told, setting)})
    return template("comparison.html.j2").render(
        names=told.names,
        verdicts=told.said("verdict"),
        pairing=told.said("pairing"),
        common=told.said("points_common"),
        only=told.said("points_only_first", "points_only_second"),
        missing=told.said("missing_first", "missing_second"),
        chapters=chapters,
        heads=SUCCESS_HEADS,
        worlds=[(_world(world), *other_rows(told, world)) for world in _worlds(told)],
        changes=change_rows(told),
        provenance=[
            (name, sections.provenance(meta, tables))
            for name, meta, tables in zip(told.names, told.metas, told.tables, strict=True)
        ],
        css=Markup(css([]) + (TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def _csv(rows: Sequence[Cells]) -> str:
    """Rows as the address of a CSV file that needs no network."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return f"data:text/csv;charset=utf-8,{quote(file.getvalue())}"


def _worlds(told: Told) -> list[Row]:
    names = ("method", "env", "profile")
    return [
        dict(zip(names, key, strict=True))
        for key in dict.fromkeys(tuple(second[n] for n in names) for _, second in told.points)
    ]


def _world(world: Row) -> str:
    return f"{world['method']} in {text.world(world['env'])}, {world['profile']} profile"


def paper(told: Told) -> Paper:
    """The comparison as the tables of a paper."""
    a, b = told.names
    tables = []
    heads: Cells
    for number, setting in enumerate(settings(told)):
        found = differences(told, setting).values()
        intervals = interval_words(list(found))
        caption = (
            f"Planning success of {a} (first) and {b} (second), {setting_name(setting)}; difference: second less "
            f"first, in points. {intervals} p after Holm over the points; p of a difference of at least the "
            f"margin (two one-sided tests, each by itself)."
        )
        heads = ("point", "first", "second", *SUCCESS_HEADS)
        rows = tuple(success_rows(told, setting))
        tables.append(PaperTable(f"{number}-differences", caption, heads, "l" + "r" * 9, rows))
    for number, world in enumerate(_worlds(told)):
        heads, others = other_rows(told, world)
        caption = (
            f"Other metrics of {_world(world)}: {b} less {a}, mean difference and 95 % t interval over "
            "seeds (paired on seeds of the same data, else Welch's); * p < 0.05 after Holm over the points."
        )
        align = "ll" + "r" * (len(heads) - 2)
        tables.append(PaperTable(f"{number}-others", caption, heads, align, tuple(others)))
    caption = "What differs in configuration, protocols, code and data; what is equal is left out."
    heads = ("area", "setting", a, b)
    tables.append(PaperTable("changes", caption, heads, "llpp", tuple(change_rows(told))))
    names = ("verdict", "pairing", "points_common", "points_only_first", "points_only_second")
    said = [sentence for name in names for sentence in told.said(name)]
    missing = told.said("missing_first", "missing_second")
    notes = [*said, *([f"Not complete: {'; '.join(missing)}."] if missing else [])]
    return Paper(f"{a} and {b}", tuple(notes), tuple(table for table in tables if table.rows))


__all__ = ["Told", "figures_svg", "paper", "render"]
