"""Seconds per plan, methods side by side: every repetition a mark, ratios to LeWM with their intervals."""

from collections.abc import Sequence

import polars as pl

from reports import text
from reports.axis import category_axis
from reports.figures import Figure, Spec
from reports.views import Row, Tables, setting_label

SETTINGS = {
    "samples": "the planner's own samples and iterations for every method",
    "flops": "as many samples as LeWM's operations buy",
}
HEADS = (
    "method",
    "samples × iterations",
    "of them run",
    "seconds, 95 %",
    "operations",
    "× LeWM's seconds, 95 %",
    "× LeWM's operations",
)
COLUMNS = (
    *("method", "setting", "eval_point", "repetition", "num_samples", "num_iterations"),
    *("num_samples_run", "num_iterations_run", "batch", "dtype", "num_threads", "flops", "plan_s"),
)
KEYS = ("env", "profile", "planner", "eval_point", "setting")


def sections(tables: Tables) -> list[Row]:
    """A figure and a table for every setting under which plans were timed."""
    timing = tables.get("timing")
    if timing is None or timing.is_empty():
        return []
    groups = timing.sort("method", "repetition").group_by(*KEYS, maintain_order=True)
    parts = [(dict(zip(KEYS, key, strict=True)), group) for key, group in groups]
    parts.sort(key=lambda part: (list(SETTINGS).index(part[0]["setting"]), str(part[0])))
    return [_section(place, group, tables["summary"]) for place, group in parts]


def _section(place: Row, group: pl.DataFrame, summary: pl.DataFrame) -> Row:
    same = [pl.col(name).eq_missing(pl.lit(place[name])) for name in KEYS[:-1]]
    rows = summary.filter(*same, pl.col("metric") == place["setting"])
    told = {(row["method"], row["quantity"]): row for row in rows.iter_rows(named=True)}
    methods = sorted(
        group["method"].unique().to_list(), key=lambda name: told[name, "plan_seconds"]["value"]
    )
    first = {row["method"]: row for row in group.reverse().iter_rows(named=True)}
    machine = first[methods[0]]
    name = setting_label(place["planner"], place["eval_point"])
    caption = (
        f"{text.sentence(SETTINGS[place['setting']])}; {name}, batch {machine['batch']}, {machine['dtype']}, "
        f"{machine['device']}, {machine['num_threads']} CPU threads, random weights. A mark per repetition "
        f"({told[methods[0], 'plan_seconds']['n']}), in each of which all methods took their turn; bars: "
        f"geometric means. {told[methods[0], 'plan_seconds']['ci_method']}."
    )
    figure = Figure(
        f"timing-{place['setting']}-{text.slug(name)}",
        _title(methods, told),
        caption,
        _spec(methods, group, told),
        240,
        COLUMNS,
        tuple(group.select(COLUMNS).iter_rows()),
    )
    return {
        "name": f"{name}, {SETTINGS[place['setting']]}",
        "figure": figure,
        "heads": HEADS,
        "rows": [_cells(method, first[method], told) for method in methods],
        "scaled": any(_is_scaled(row) for row in first.values()),
    }


def _is_scaled(row: Row) -> bool:
    asked = row["num_samples"], row["num_iterations"]
    return asked != (row["num_samples_run"], row["num_iterations_run"])


def _title(methods: Sequence[str], told: dict[tuple[str, str], Row]) -> str:
    """Each method's ratio to LeWM."""
    parts = [
        f"{text.method(method)} {text.number(told[method, 'time_ratio']['value'])} × "
        f"({text.number_span(told[method, 'time_ratio'])})"
        for method in methods
        if (method, "time_ratio") in told
    ]
    if not parts:
        seconds = told[methods[0], "plan_seconds"]["value"]
        return f"{text.method(methods[0])} takes {text.number(seconds)} s per plan"
    return f"A plan takes, in LeWM's time: {', '.join(parts)}"


def _cells(method: str, row: Row, told: dict[tuple[str, str], Row]) -> list[str]:
    seconds, flops = told[method, "plan_seconds"], told[method, "plan_flops"]
    ratio, more = told.get((method, "time_ratio")), told.get((method, "flops_ratio"))
    return [
        text.method(method),
        f"{row['num_samples']} × {row['num_iterations']}",
        f"{row['num_samples_run']} × {row['num_iterations_run']}" if _is_scaled(row) else "all",
        f"{text.number(seconds['value'])} ({text.number_span(seconds)})",
        f"{text.number(flops['value'] / 1e12)} T",
        f"{text.number(ratio['value'])} ({text.number_span(ratio)})" if ratio else text.DASH,
        text.number(more["value"]) if more else text.DASH,
    ]


def _spec(methods: Sequence[str], group: pl.DataFrame, told: dict[tuple[str, str], Row]) -> Spec:
    names = [text.method(method) for method in methods]
    axis = category_axis(names, "method")
    y = {
        "field": "seconds",
        "type": "quantitative",
        "title": "seconds per plan (log scale)",
        "scale": {"type": "log", "nice": True},
        "axis": {"format": "~g", "tickCount": 4},
    }
    runs = [
        {
            "at": axis.at(text.method(row["method"])) + 0.1 + 0.02 * row["repetition"],
            "name": text.method(row["method"]),
            "seconds": row["plan_s"],
            "repetition": row["repetition"],
        }
        for row in group.iter_rows(named=True)
    ]
    means = [
        {
            "at": axis.at(text.method(method)),
            "name": text.method(method),
            "seconds": told[method, "plan_seconds"]["value"],
            "low": told[method, "plan_seconds"]["ci_low"],
            "high": told[method, "plan_seconds"]["ci_high"],
        }
        for method in methods
    ]
    number = {"format": ".3~g"}
    tooltip = [
        {"field": "name", "title": "method"},
        {"field": "seconds", "title": "seconds per plan", **number},
    ]
    x = axis.encoding()
    spans = [row for row in means if row["low"] is not None]
    return {
        "layer": [
            {
                "data": {"values": spans},
                "mark": {"type": "rule", "style": "interval"},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "data": {"values": means},
                "mark": {
                    "type": "tick",
                    "style": "mean",
                    "orient": "horizontal",
                    "size": 18,
                    "thickness": 2,
                },
                "encoding": {"x": x, "y": y, "tooltip": tooltip},
            },
            {
                "data": {"values": runs},
                "mark": {"type": "point", "style": "run", "filled": True, "size": 50},
                "encoding": {
                    "x": x,
                    "y": y,
                    "tooltip": [*tooltip, {"field": "repetition", "title": "repetition"}],
                },
            },
        ]
    }
