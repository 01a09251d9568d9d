"""How the points were chosen, and what a search for them costs: suggestions, and simulated searches."""

import polars as pl

from reports import text
from reports.figures import Figure, Spec
from reports.views import Row, World

SHARE = "search_share"
WORDS = {"grid": "grid", "random": "random", "bisect": "bisection", "tpe": "TPE"}
DASHES = ([6, 3], [2, 3], [1, 0], [9, 3, 2, 3])


def section(world: World) -> Row:
    """Everything the template shows of a world's search; each part empty where there is none."""
    return {
        "verdict": world.summary("search_verdict").get("text") or "",
        "suggestions": suggestions(world),
        "costs": costs(world),
    }


def suggestions(world: World) -> list[list[str]]:
    """The suggestions of the sweep's own search in order: number, point, best so far, reason."""
    found = world.tables["search"].filter(pl.col("repetition").is_null()).sort("order")
    return [
        [
            str(row["order"] + 1),
            world.axis.name(row["point"]),
            text.number(row["best_so_far"]),
            row["reason"],
        ]
        for row in found.iter_rows(named=True)
    ]


def costs(world: World) -> list[list[str]]:
    """Per simulated strategy: trials until half of its searches stay on the plateau, share at the end."""
    rows = []
    for strategy, name in WORDS.items():
        row = world.summary("search_trials", point=f"search={strategy}")
        if row:
            half = "never" if row["value"] is None else f"{row['value']:.0f}"
            rows.append([name, half, text.percent_span(row), str(row["n"]), row["text"]])
    return rows


def simulated_figure(world: World, prefix: str) -> Figure | None:
    """Share of simulated searches on the plateau against the trials they have spent."""
    finding, floor = world.summary("finding_simulation"), world.summary("search_floor")
    if not finding:
        return None
    caption = (
        f"{finding['n']} simulated searches per strategy with the real strategies on this sweep's recorded "
        f"curve and its spread between seeds. {floor['text']} ({text.between([floor['n']], 'run')}). "
        "After one trial a search would take the only λ it has; one that ends early keeps its choice. "
        "Intervals, shown on pointing: 95 % Wilson."
    )
    columns = ("point", "tau", "fraction", "ci_low", "ci_high")
    rows = world.tables["profiles"].filter(pl.col("metric") == SHARE).sort("point", "tau")
    return Figure(
        f"{prefix}search-cost",
        finding["text"],
        caption,
        _share_spec(world),
        260,
        columns,
        tuple(rows.select(columns).iter_rows()),
    )


def _share_spec(world: World) -> Spec:
    values = [
        {
            "trials": row["tau"],
            "share": row["fraction"],
            "strategy": WORDS[row["point"].removeprefix("search=")],
            "interval": text.percent_span(row),
        }
        for row in world.tables["profiles"]
        .filter(pl.col("metric") == SHARE)
        .sort("point", "tau")
        .iter_rows(named=True)
    ]
    names = list(WORDS.values())
    strategy = {"field": "strategy", "type": "nominal", "legend": None}
    encoding = {
        "x": {
            "field": "trials",
            "type": "quantitative",
            "title": "trials spent",
            "axis": {"grid": False, "tickMinStep": 1},
        },
        "y": {
            "field": "share",
            "type": "quantitative",
            "title": "searches on the plateau",
            "scale": {"domain": [0, 1]},
            "axis": {"format": ".0%", "tickCount": 5},
        },
        "color": {**strategy, "scale": {"domain": names, "range": "strategies"}},
    }
    dash = {**strategy, "scale": {"domain": names, "range": [list(dash) for dash in DASHES]}}
    tooltip = [
        {"field": "strategy", "title": "strategy"},
        {"field": "trials", "title": "trials spent"},
        {"field": "share", "title": "on the plateau", "format": ".0%"},
        {"field": "interval", "title": "95 % Wilson"},
    ]
    return {
        "data": {"values": values},
        "encoding": encoding,
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {"strokeDash": dash}},
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0},
                "encoding": {"tooltip": tooltip},
            },
        ],
    }
