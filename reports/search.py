"""How the points were chosen, and what a search for them costs: suggestions, and simulated searches."""

import polars as pl

from reports import text
from reports.figures import Figure, Spec
from reports.views import Row, World

SHARE, INCUMBENT = "search_share", "search_incumbent"
OVER_LAM = {"grid": "grid", "random": "random", "bisect": "bisection", "tpe": "TPE"}
SIX_OR_ONE = {
    "lewm-grid": "LeWM, grid",
    "pldm-random": "PLDM, random",
    "lewm-bisect": "LeWM, bisection",
    "pldm-tpe": "PLDM, TPE",
}
DASHES = ([6, 3], [2, 3], [1, 0], [9, 3, 2, 3])


def section(world: World) -> Row:
    """Everything the template shows of a world's search; each part empty where there is none."""
    return {
        "verdict": world.summary("search_verdict").get("text") or "",
        "suggestions": suggestions(world),
        "costs": costs(world),
        "heads": COST_HEADS if compares_methods(world) else COST_HEADS[:-1],
        "strategies": list(enumerate(_words(world).values())),
    }


COST_HEADS = (
    "strategy",
    "trials until half have arrived",
    "arrived at the end, 95 % Wilson",
    "searches",
    "at the end",
    "trials to its own best",
)


def compares_methods(world: World) -> bool:
    """Whether searches over several weights were replayed beside those over λ."""
    return bool(world.summary("search_trials_own"))


def _words(world: World) -> dict[str, str]:
    return SIX_OR_ONE if compares_methods(world) else OVER_LAM


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
    """Per strategy: trials until half of its searches stay where they should, share at the end."""
    rows = []
    for strategy, name in _words(world).items():
        row = world.summary("search_trials", point=f"search={strategy}")
        own = world.summary("search_trials_own", point=f"search={strategy}")
        if row:
            cells = [name, _trials(row), text.percent_span(row), str(row["n"]), row["text"]]
            rows.append(cells + ([_trials(own)] if own else []))
    return rows


def _trials(row: Row) -> str:
    return "never" if row["value"] is None else f"{row['value']:.0f}"


def figures(world: World, prefix: str) -> list[Figure]:
    """What searches cost: where each strategy stands after so many trials, and the share that has arrived."""
    finding, floor = world.summary("finding_simulation"), world.summary("search_floor")
    if not finding:
        return []
    runs = f"{floor['text']} ({text.between([floor['n']], 'run')})."
    if not compares_methods(world):
        caption = (
            f"{finding['n']} simulated searches per strategy with the real strategies on this sweep's recorded "
            f"curve and its spread between seeds. {runs} After one trial a search would take the only λ it "
            "has; one that ends early keeps its choice. Intervals, shown on pointing: 95 % Wilson."
        )
        title = "searches on the plateau"
        return [_figure(world, f"{prefix}search-cost", finding["text"], caption, SHARE, title)]
    caption = (
        f"{finding['n']} replayed searches per strategy with the real strategies on recorded trials. {runs} "
        "A search over λ draws from LeWM's curve and its spread between seeds; one over six weights gets the "
        "recorded configuration nearest to what it asks for."
    )
    best = "Success of what a search would take, against the trials it has spent"
    means = f"{caption} Intervals, shown on pointing: 95 % t over searches of these pools."
    shares = f"{caption} Intervals, shown on pointing: 95 % Wilson."
    return [
        _figure(world, f"{prefix}six-or-one", best, means, INCUMBENT, "mean success of its choice"),
        _figure(world, f"{prefix}search-cost", finding["text"], shares, SHARE, "searches arrived"),
    ]


def _figure(
    world: World, name: str, title: str, caption: str, metric: str, quantity: str
) -> Figure:
    columns = ("point", "tau", "fraction", "ci_low", "ci_high")
    rows = world.tables["profiles"].filter(pl.col("metric") == metric).sort("point", "tau")
    spec = _spec(rows.to_dicts(), _words(world), quantity)
    return Figure(name, title, caption, spec, 260, columns, tuple(rows.select(columns).iter_rows()))


def _spec(rows: list[Row], words: dict[str, str], quantity: str) -> Spec:
    """A line per strategy over the trials spent."""
    values = [
        {
            "trials": row["tau"],
            "share": row["fraction"],
            "strategy": words[row["point"].removeprefix("search=")],
            "interval": text.percent_span(row),
        }
        for row in rows
    ]
    names = list(words.values())
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
            "title": quantity,
            "scale": {"domain": [0, 1]},
            "axis": {"format": ".0%", "tickCount": 5},
        },
        "color": {**strategy, "scale": {"domain": names, "range": "strategies"}},
    }
    dash = {**strategy, "scale": {"domain": names, "range": [list(dash) for dash in DASHES]}}
    tooltip = [
        {"field": "strategy", "title": "strategy"},
        {"field": "trials", "title": "trials spent"},
        {"field": "share", "title": quantity, "format": ".0%"},
        {"field": "interval", "title": "95 %"},
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
