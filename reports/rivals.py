"""Methods side by side, planners side by side: on the same pairs, against each other."""

import itertools
from collections.abc import Sequence

from reports import text
from reports.axis import category_axis
from reports.figures import Figure, Spec, point_chart, rows_behind
from reports.success import DRAWN_FLOORS, FLOOR_LINES, RATE_DOMAIN, RATE_TICKS, file_name
from reports.views import SETTING, Row, World, intervals, setting_label, setting_name, settings

METHOD_HEADS = ("method", "best point", "seeds", "mean", "95 % interval", "worst seed", "published")
DIFFERENCE_HEADS = (
    "method",
    "against",
    "difference, points",
    "95 %",
    "p",
    "chance to beat it",
    "seeds",
)
SETTING_HEADS = (
    "planner",
    "mean",
    "95 % interval",
    "against the best, points",
    "95 %",
    "p",
    "seeds",
)


def method_sections(worlds: Sequence[World]) -> list[Row]:
    """A figure and two tables for every environment with several methods planned under one setting."""
    places = itertools.groupby(
        sorted(worlds, key=_place), key=lambda world: (world.key["env"], world.key["profile"])
    )
    found = []
    for number, (_, members) in enumerate(places):
        rivals = [world for world in members if world.main]
        shared = [
            setting
            for setting in (settings(rivals[0]) if rivals else [])
            if sum(bool(world.summary("best_point", **setting)) for world in rivals) > 1
        ]
        prefix = f"methods{number}-" if number else "methods-"
        found += [_methods(rivals, setting, prefix) for setting in shared]
    return found


def _place(world: World) -> tuple[str, str]:
    return str(world.key["env"]), str(world.key["profile"])


def _methods(rivals: Sequence[World], setting: Row, prefix: str) -> Row:
    """Methods at their best points under one planning setting."""
    planned = [world for world in rivals if world.summary("best_point", **setting)]
    named = {text.method(world.key["method"]): world for world in planned}
    means, runs, rows, against = [], [], [], []
    for name, world in named.items():
        best = world.summary("best_point", **setting)
        own, each = world.spread("success", point=best["point"], **setting)
        means += [{**row, "point": name} for row in own]
        runs += [{**row, "point": name} for row in each]
        published = world.rows(
            "comparison", metric="success", other_kind="published", point=best["point"], **setting
        )
        rows += [_rate_cells(name, best["text"], row, published) for row in own]
        against += world.rows("comparison", metric="success", other_kind="method", **setting)
    place = f"{text.world(planned[0].key['env'])}, {planned[0].key['profile']} profile"
    figure = _figure(
        file_name(prefix, "success", setting),
        _lead(means, against),
        f"{text.sentence(setting_name(setting))}, {place}. Every method at its best point",
        "method",
        planned[0],
        setting,
        (means, runs),
    )
    return {
        "name": f"{place}, {setting_name(setting)}",
        "figure": figure,
        "heads": METHOD_HEADS,
        "rows": rows,
        "difference_heads": DIFFERENCE_HEADS,
        "differences": [_difference_cells(row) for row in against],
    }


def _rate_cells(name: str, point: str, row: Row, published: Sequence[Row]) -> list[str]:
    levels = [
        f"{text.percent(row['mean'] - found['diff'])} ({found['other']})"
        for found in published
        if found["diff"] is not None
    ]
    return [
        name,
        point,
        str(row["num_seeds"]),
        text.percent(row["mean"]),
        text.percent_span(row),
        text.percent(row["worst"]),
        "; ".join(levels) or text.DASH,
    ]


def _difference_cells(row: Row) -> list[str]:
    return [
        text.method(row["method"]),
        text.method(row["other"]),
        text.points(row["diff"]),
        text.points_span(row),
        text.p_value(row["p_adjusted"]),
        text.percent(row["p_improvement"]),
        text.DASH if row["n"] is None else str(row["n"]),
    ]


def _lead(means: Sequence[Row], against: Sequence[Row]) -> str:
    """The method with the highest mean, and how far the others are below it."""
    top = max(means, key=lambda row: float(row["mean"]))
    parts = []
    for row in against:
        if row["method"] == top["method"] and row["diff"] is not None:
            span = f" ({text.points_span(row)})" if row["ci_low"] is not None else ""
            sure = "" if (row["p_adjusted"] or 1.0) < 0.05 else ", not clearly"
            parts.append(
                f"{text.points(row['diff'])} points{span} on {text.method(row['other'])}{sure}"
            )
    return f"{top['point']} has the highest mean: {'; '.join(parts)}"


def setting_sections(world: World) -> list[Row]:
    """A figure and a table for every protocol with several planners or planner settings."""
    found = []
    known = settings(world)
    for protocol in dict.fromkeys(setting["protocol"] for setting in known):
        rivals = [setting for setting in known if setting["protocol"] == protocol]
        if len(rivals) > 1:
            found.append(_settings(world, rivals))
    return found


def _settings(world: World, rivals: Sequence[Row]) -> Row:
    """One method's planners under one protocol, on the networks of the leading one's best point."""
    compared = {
        tuple(row[name] for name in SETTING): row
        for row in world.rows("comparison", metric="success", other_kind="setting")
        if row["protocol"] == rivals[0]["protocol"]
    }
    points = {row["point"] for row in compared.values()} or {world.best_point or ""}
    means, runs, rows = [], [], []
    for setting in rivals:
        name = setting_label(setting["planner"], setting["eval_point"])
        at = compared.get(tuple(setting[key] for key in SETTING))
        for point in points:
            own, each = world.spread("success", point=point, **setting)
            means += [{**row, "point": name} for row in own]
            runs += [{**row, "point": name} for row in each]
            for row in own:
                difference = [
                    text.points(at["diff"]) if at else text.DASH,
                    text.points_span(at) if at else text.DASH,
                    text.p_value(at["p_adjusted"]) if at else text.DASH,
                ]
                cells = [text.percent(row["mean"]), text.percent_span(row), *difference]
                rows.append([name, *cells, str(row["num_seeds"])])
    at_point = world.axis.name(next(iter(points), ""))
    leader = next(iter({row["other"] for row in compared.values()}), "")
    figure = _figure(
        file_name(f"{world.key['method']}-{world.key['env']}-", "planners", rivals[0]),
        _clear_of(leader, list(compared.values())),
        f"{text.sentence(rivals[0]['protocol'])} protocol, the same networks ({at_point})",
        "planner and its settings",
        world,
        rivals[0],
        (means, runs),
    )
    return {
        "name": f"{rivals[0]['protocol']} protocol, {at_point}",
        "figure": figure,
        "heads": SETTING_HEADS,
        "rows": rows,
    }


def _clear_of(leader: str, against: Sequence[Row]) -> str:
    """How many of the others fall clearly below the leading one; none does where all are level."""
    if not against:
        return "All planners have the same mean"
    below = sum((row["p_adjusted"] or 1.0) < 0.05 and row["diff"] < 0 for row in against)
    planner, _, eval_point = leader.partition(" ")
    name = text.sentence(setting_label(planner, eval_point))
    return (
        f"{name} has the highest mean; {below} of {len(against)} others "
        f"{'is' if below == 1 else 'are'} clearly below it"
    )


def _figure(
    name: str,
    title: str,
    caption: str,
    axis_title: str,
    world: World,
    setting: Row,
    drawn: tuple[list[Row], list[Row]],
) -> Figure:
    means, runs = drawn
    axis = category_axis([row["point"] for row in means], axis_title)
    floors = [
        row
        for row in world.rows("stability", metric="success", protocol=setting["protocol"])
        if row["method"] is None and row["planner"] in DRAWN_FLOORS
    ]
    seeds = text.between([row["num_seeds"] for row in means], "seed")
    episodes = text.between([row["num_episodes"] or None for row in runs], "episode")
    caption += f": {seeds} each, a mark per seed ({episodes}); bars: means. {intervals(means)}"
    if floors:
        lines = text.listed([FLOOR_LINES[row["planner"]] for row in floors])
        caption += f" Grey: {lines} on the same pairs."
    spec: Spec = point_chart(
        axis,
        means,
        runs,
        quantity="planning success (% of episodes)",
        y_format=".0%",
        y_domain=RATE_DOMAIN,
        y_values=RATE_TICKS,
        floors=floors,
    )
    columns, rows = rows_behind(means, runs, floors)
    return Figure(name, title, caption, spec, 280, columns, rows)
