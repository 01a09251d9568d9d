"""Planning success: against λ, seed by seed, against the best point and the floors."""

from reports import text
from reports.axis import PointAxis, settings_of
from reports.figures import Figure, point_chart, rows_behind, seed_chart
from reports.views import SETTING, Row, World, intervals, setting_name

RATE_DOMAIN, RATE_TICKS = (-0.03, 1.03), (0, 0.2, 0.4, 0.6, 0.8, 1)
DRAWN_FLOORS = ("random", "oracle")


def file_name(prefix: str, words: str, setting: Row) -> str:
    """Name of a figure of a planning setting."""
    place = "-".join(str(setting[name]) for name in SETTING if setting[name])
    return f"{prefix}{words}-" + text.slug(place)


def success_figure(world: World, setting: Row, name: str, height: int) -> Figure:
    """Success against λ under one planning setting."""
    means, runs = world.spread("success", **setting)
    floors = [
        row
        for row in world.rows("stability", metric="success", protocol=setting["protocol"])
        if row["method"] is None
    ]
    drawn = [row for row in floors if row["planner"] in DRAWN_FLOORS]
    plateau = _plateau(world.axis, world, setting, means)
    levels = published_levels(world, setting)
    seeds = text.between([row["num_seeds"] for row in means], "seed")
    episodes = text.between([row["num_episodes"] or None for row in runs], "episode")
    caption = (
        f"{text.sentence(setting_name(setting))}. Each mark is one training seed ({seeds} per point, "
        f"{episodes} each; a diverged run counts as no success). Bars: mean over seeds. "
        f"{intervals(means)}"
    )
    if drawn:
        pairs = text.between([row["num_episodes"] for row in drawn], "pair")
        caption += (
            f" Grey: {text.listed([FLOOR_LINES[row['planner']] for row in drawn])} on the same pairs, "
            f"without a model; band 95 % Wilson ({pairs})."
        )
    if plateau is not None:
        low = world.summary("plateau_low", **setting)
        caption += f" Shaded: the plateau, {str(low['ci_method']).split('; ends')[0]}."
    if levels:
        caption += (
            f" Dotted: {text.listed([label for _, label in levels])}; other scale, other data."
        )
    spec = point_chart(
        world.axis,
        means,
        runs,
        quantity="planning success (% of episodes)",
        y_format=".0%",
        y_domain=RATE_DOMAIN,
        y_values=RATE_TICKS,
        floors=drawn,
        plateau=plateau,
        published=levels,
    )
    columns, rows = rows_behind(means, runs, floors)
    return Figure(name, _title(world, setting), caption, spec, height, columns, rows)


FLOOR_LINES = {"random": "random actions", "oracle": "the recorded actions (oracle)"}


def _title(world: World, setting: Row) -> str:
    """The finding of a planning setting: what its best point reaches, and where success stays near it."""
    finding = world.summary("finding_success", **setting).get("text")
    if finding:
        return str(finding)
    return text.sentence(str(world.summary("plateau_low", **setting).get("text") or "")) or (
        f"Planning success, {setting_name(setting)}"
    )


def _plateau(
    axis: PointAxis, world: World, setting: Row, means: list[Row]
) -> tuple[float, float] | None:
    low, high = (world.summary(f"plateau_{end}", **setting) for end in ("low", "high"))
    places = {row["lam"]: axis.at(row["point"]) for row in means}
    if not axis.ordered or low.get("value") not in places or high.get("value") not in places:
        return None
    return places[low["value"]], places[high["value"]]


def published_levels(world: World, setting: Row) -> list[tuple[float, str]]:
    """Published values of success with their labels: what a run's difference from them was taken to."""
    levels: dict[str, float] = {}
    means = {row["point"]: row["mean"] for row in world.spread("success", **setting)[0]}
    for row in world.rows("comparison", metric="success", other_kind="published", **setting):
        if row["diff"] is not None and means.get(row["point"]) is not None:
            levels.setdefault(str(row["other"]), means[row["point"]] - row["diff"])
    return [(level, f"{name} {text.percent(level)}") for name, level in levels.items()]


def seeds_figure(world: World, setting: Row, name: str) -> Figure | None:
    """Every run's success, a column per seed."""
    runs = world.spread("success", **setting)[1]
    if not runs:
        return None
    present = {row["point"] for row in runs}
    labels = {slot.point: slot.name for slot in world.axis.slots if slot.point in present}
    worst, best = (world.summary(q, **setting) for q in ("worst_seed", "best_point"))
    spread = world.summary("seed_std", **setting)
    if worst.get("n") == 1:
        title = f"One seed at {best['text']}: it reaches {text.percent(worst['value'])}"
    else:
        title = (
            f"At {best['text']} the worst of {text.between([worst['n']], 'seed')} reaches "
            f"{text.percent(worst['value'])}; the standard deviation over seeds is "
            f"{text.points(spread['value']).lstrip('+')} points"
        )
    episodes = text.between([row["num_episodes"] or None for row in runs], "episode")
    caption = (
        f"{text.sentence(setting_name(setting))}. Success in % of {episodes}, one run a cell, darker is "
        "higher; ▾ collapsed, ✕ diverged; empty: no result. Interval on pointing: 95 % Wilson, which holds "
        "for that one trained model only."
    )
    if len({row["runs"] for row in runs}) > 12:
        caption += " With more than 12 seeds the rates stand in the table only."
    spec = seed_chart(list(labels.values()), labels, runs)
    columns, rows = rows_behind([], runs)
    return Figure(name, title, caption, spec, 34 * len(labels) + 30, columns, rows)


def success_table(world: World, setting: Row) -> Row:
    """Success per point: over all runs, among converged ones, against best and random."""
    rows = []
    best = world.summary("best_point", **setting).get("point")
    for row in world.spread("success", **setting)[0]:
        at = {"metric": "success", "point": row["point"], **setting}
        converged = world.rows("stability", runs="converged", **at)
        rows.append(
            {
                "best": row["point"] == best,
                "cells": [
                    world.axis.name(row["point"]),
                    row["num_seeds"],
                    text.percent(row["mean"]),
                    text.percent_span(row),
                    text.percent(row["iqm"]),
                    text.percent(row["worst"]),
                    text.points(row["std"]).lstrip("+"),
                    text.percent(converged[0]["mean"]) if converged else text.DASH,
                    *(row[f"num_{fate}"] or 0 for fate in ("collapsed", "diverged", "failed")),
                ],
            }
        )
    return {
        "name": setting_name(setting),
        "rows": rows,
        "differences": difference_table(world, setting),
        "published": published_rows(world, setting),
        "equivalent": _margin(world, setting),
    }


def difference_table(world: World, setting: Row) -> list[Row]:
    """Each point against the best one and against random actions, on the same seeds and pairs."""
    best = world.summary("best_point", **setting).get("point")
    against: dict[str, dict[str, Row]] = {}
    for row in world.rows("comparison", metric="success", **setting):
        if row["other_kind"] in ("point", "floor"):
            against.setdefault(row["point"], {})[row["other"]] = row
    rows = []
    for slot in world.axis.slots:
        if found := against.get(slot.point):
            cells = [*_difference(found.get(str(best))), *_difference(found.get("random"))]
            rows.append({"best": slot.point == best, "name": slot.name, "cells": cells})
    return rows


def _difference(row: Row | None) -> list[str]:
    """A difference of rates, its interval, the adjusted p-value and the seeds in common."""
    if row is None:
        return [text.DASH] * 4
    seeds = text.DASH if row["n"] is None else str(row["n"])
    return [text.points(row["diff"]), text.points_span(row), text.p_value(row["p_adjusted"]), seeds]


def published_rows(world: World, setting: Row) -> list[list[str]]:
    """Points against published values: difference, interval, margin, p of the equivalence test."""
    return [
        [
            world.axis.name(row["point"]),
            str(row["other"]),
            text.points(row["diff"]),
            text.points_span(row),
            text.points(row["margin"]).lstrip("+"),
            text.p_value(row["p_equivalence"]),
        ]
        for row in world.rows("comparison", metric="success", other_kind="published", **setting)
    ]


def _margin(world: World, setting: Row) -> str:
    margins = {row["margin"] for row in world.rows("comparison", metric="success", **setting)}
    known = sorted(margin for margin in margins if margin is not None)
    return text.points(known[0]).lstrip("+") if known else ""


def configurations(world: World) -> Row:
    """What the numbers of points of many settings stand for; empty where points are named by their settings."""
    if not world.axis.numbered:
        return {}
    found = [(slot.label, settings_of(slot.point)) for slot in world.axis.slots]
    keys = list(dict.fromkeys(key for _, settings in found for key in settings))
    rows = [[name, *(settings.get(key, text.DASH) for key in keys)] for name, settings in found]
    return {"heads": ["configuration", *keys], "rows": rows}


def answers(world: World) -> list[Row]:
    """The four questions of a reader in a hurry: which, how sure, against what, what next."""
    main = world.main
    if not main:
        return []
    best, success = (world.summary(q, **main) for q in ("best_point", "best_success"))
    chance = world.summary("p_best", **main)
    near = world.summary("p_near_best", point=best["point"], **main)
    return [
        {
            "label": "Which λ" if world.axis.ordered else "Which point",
            "value": world.axis.name(best["point"]),
            "note": f"{text.percent(success['value'])} success, {_interval_note(success)}",
            "link": "",
        },
        {
            "label": "How sure",
            "value": text.DASH if chance.get("value") is None else text.chance(chance["value"]),
            "note": _sure_note(chance, near, best["n"]),
            "link": "stability",
        },
        _against(world, main),
        _next(world, main),
    ]


def _interval_note(success: Row) -> str:
    seeds = text.between([success["n"]], "seed")
    if success["ci_low"] is None:
        return f"no interval: {str(success['ci_method']).removeprefix('none: ')}"
    return f"95 % interval {text.percent_span(success)}, {seeds}"


def _sure_note(chance: Row, near: Row, num_points: int) -> str:
    if chance.get("value") is None:
        return str(chance.get("text") or "only one point was tried")
    note = f"probability that it is the best of {text.between([num_points], 'point')}"
    if near.get("value") is not None:
        note += f"; {text.chance(near['value'])} that it is at least near the best"
    return note


def _against(world: World, main: Row) -> Row:
    floors = {"protocol": main["protocol"]}
    random, oracle = (world.summary(f"floor_{name}", **floors) for name in ("random", "oracle"))
    if not random:
        note = "the random floor has not been measured on these pairs"
        return {"label": "Against what", "value": text.DASH, "note": note, "link": ""}
    gain = world.summary("clears_random", **main).get("text") or ""
    note = f"random actions: {text.percent_span(random)}, n = {random['n']}; {gain}"
    if oracle:
        note += f"; recorded actions: {text.percent(oracle['value'])}"
    value = f"random {text.percent(random['value'])}"
    return {"label": "Against what", "value": value, "note": note, "link": "success"}


def _next(world: World, main: Row) -> Row:
    label, link = "What next", "next"
    missing = world.summary("trials_missing")
    if missing.get("value"):
        again = " with --retry failed" if world.summary("trials_failed").get("value") else ""
        note = f"{missing['text']}: the same command again{again}"
        return {"label": label, "value": "finish it", "note": note, "link": link}
    needed = world.summary("seeds_to_halve", **main)
    if needed.get("value") is not None:
        value, note = (
            f"{needed['value']:.0f} seeds",
            "at this point would halve the interval's width",
        )
        return {"label": label, "value": value, "note": note, "link": link}
    pairs = world.summary("pairs_to_halve", **main)
    if pairs.get("value") is not None:
        value, note = f"{pairs['value']:.0f} pairs", "would halve the interval's width"
        return {"label": label, "value": value, "note": note, "link": link}
    note = str(needed.get("text") or "without a second seed no spread can be told")
    return {"label": label, "value": "more seeds", "note": note, "link": link}
