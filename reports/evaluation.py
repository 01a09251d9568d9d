"""Probes, surprise and pictures of planned episodes."""

import base64

import polars as pl

from reports import text
from reports.figures import Figure, point_chart, rows_behind
from reports.training import extremes
from reports.views import Row, World, intervals

MAX_EXAMPLES = 6


def probe_table(world: World) -> Row:
    """Probes: a row per target, layer and probe, a column per point."""
    cells: dict[tuple[str, ...], dict[str, Row]] = {}
    for metric in ("probe_r", "probe_mse"):
        for row in world.rows("stability", metric=metric, runs="all"):
            place = (row["target"], row["layer"], row["probe"])
            cells.setdefault(place, {}).setdefault(row["point"], {})[metric] = row
    best = world.best_point
    rows = []
    above = ""
    for key, found in sorted(cells.items()):
        columns = []
        for slot in world.axis.slots:
            r, mse = (_told(found.get(slot.point, {}).get(m)) for m in ("probe_r", "probe_mse"))
            columns.append(
                {
                    "best": slot.point == best,
                    "r": f"{r['mean']:.2f}".replace("-", "−") if r else text.DASH,
                    "spread": f"± {r['std']:.2f}" if r and r["std"] is not None else "",
                    "mse": f"{mse['mean']:.3f}" if mse else text.DASH,
                }
            )
        rows.append({"key": key, "first": key[0] != above, "columns": columns})
        above = key[0]
    means = world.rows("stability", metric="probe_r", runs="all")
    counts = world.tables["probing"].select("num_train", "num_test").unique().sort("num_train")
    return {
        "points": [{"name": slot.name, "best": slot.point == best} for slot in world.axis.slots],
        "rows": rows,
        "n": text.between([row["num_seeds"] for row in means], "seed"),
        "frames": [
            f"{train:,} training and {test:,} held-out frames" for train, test in counts.iter_rows()
        ],
    }


def _told(row: Row | None) -> Row | None:
    return row if row is not None and row["mean"] is not None else None


def probe_figures(world: World, prefix: str) -> list[Figure]:
    """How well each target is read, against λ: linear probe, the layer that the best point reads best."""
    linear = [
        row for row in world.rows("stability", metric="probe_r", probe="linear") if row["method"]
    ]
    layers = sorted({row["layer"] for row in linear})
    layer = "projected" if "projected" in layers else next(iter(layers), None)
    figures = []
    for target in sorted({row["target"] for row in linear})[:4]:
        means, runs = world.spread("probe_r", target=target, layer=layer, probe="linear")
        runs = [row for row in runs if row["mean"] is not None]
        if runs:
            figures.append(_probe_figure(world, prefix, str(target), str(layer), means, runs))
    return figures


def _probe_figure(
    world: World, prefix: str, target: str, layer: str, means: list[Row], runs: list[Row]
) -> Figure:
    words = target.replace("_", " ")
    low = min(0.0, *(row["mean"] for row in runs))
    spec = point_chart(
        world.axis, means, runs, quantity="Pearson r, held-out frames", y_domain=(low - 0.05, 1.05)
    )
    caption = (
        f"Linear probe of the {layer} embedding; {text.between([r['num_seeds'] for r in means], 'seed')} "
        f"per point. {intervals(means)}"
    )
    title = extremes(world, f"correlation with {words}", means)
    columns, rows = rows_behind(means, runs)
    return Figure(f"{prefix}probe-{target}", title, caption, spec, 210, columns, rows)


def surprise_figures(world: World, prefix: str) -> list[Figure]:
    """Surprise as a multiple of its control against λ, one figure per event."""
    events = sorted({row["event"] for row in world.rows("stability", metric="surprise_ratio")})
    kinds = _kinds(world)
    figures = []
    for event in events:
        means, runs = world.spread("surprise_ratio", event=event)
        means, runs = ([r for r in rows if (r["mean"] or 0) > 0] for rows in (means, runs))
        if not runs:
            continue
        levels = [row["mean"] for row in runs] + [1.0]
        spec = point_chart(
            world.axis,
            means,
            runs,
            quantity="surprise, multiple of control",
            y_format="~g",
            y_domain=(min(levels) / 1.5, max(levels) * 1.5),
            log=True,
            reference=(1.0, "as unsurprising as its control"),
        )
        caption = (
            f"{text.sentence(kinds.get(event, ''))} event; log scale; "
            f"{text.between([r['num_seeds'] for r in means], 'seed')} per point. {intervals(means)}"
        )
        columns, rows = rows_behind(means, runs)
        figures.append(
            Figure(
                f"{prefix}surprise-{event}",
                _surprise_title(world, str(event), means),
                caption,
                spec,
                210,
                columns,
                rows,
            )
        )
    return figures


def _surprise_title(world: World, event: str, means: list[Row]) -> str:
    here = [row for row in means if row["point"] == world.best_point] or means
    return (
        f"{text.sentence(event)} surprises {text.number(here[0]['mean'])} × as much as its control at "
        f"{world.axis.name(here[0]['point'])}"
    )


def _kinds(world: World) -> dict[str, str]:
    frame = world.tables["surprise"].select("event", "kind").unique().sort("event")
    return dict(frame.iter_rows())


def surprise_table(world: World) -> list[Row]:
    """Surprise against its control, per event and point."""
    kinds = _kinds(world)
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for metric in ("surprise", "surprise_control"):
        for row in world.rows("stability", metric=metric, runs="all"):
            found.setdefault((row["point"], row["event"]), {})[metric] = row
    tests = {
        (row["point"], row["event"]): row for row in world.rows("comparison", other_kind="control")
    }
    rows = []
    for ratio in world.rows("stability", metric="surprise_ratio", runs="all"):
        if ratio["mean"] is None:
            continue
        at = (ratio["point"], ratio["event"])
        level, control = (found.get(at, {}).get(m) for m in ("surprise", "surprise_control"))
        test = tests.get(at)
        rows.append(
            {
                "event": ratio["event"],
                "kind": kinds.get(ratio["event"], ""),
                "collapsed": bool(ratio["num_collapsed"]),
                "cells": [
                    world.axis.name(ratio["point"]),
                    text.number(level["mean"]) if level else text.DASH,
                    text.number(control["mean"]) if control else text.DASH,
                    text.number(ratio["mean"]),
                    text.number_span(ratio),
                    text.percent(test["p_improvement"]) if test else text.DASH,
                    text.p_value(test["p_adjusted"]) if test else text.DASH,
                    f"{test['n']} × {ratio['num_seeds']}"
                    if test
                    else f"{text.DASH} × {ratio['num_seeds']}",
                ],
            }
        )
    return sorted(rows, key=lambda row: str(row["event"]))


def examples(world: World) -> Row:
    """Planned episodes in pictures, by rule: the best point's first seed, its manifest's first pairs.

    Where none of these failed (or none succeeded), the first stored one that did stands beside them.
    """
    found = world.tables["examples"]
    found = found.filter(pl.col("point").eq_missing(pl.lit(world.best_point)))
    protocol = world.main.get("protocol")
    if protocol in found["protocol"].to_list():
        found = found.filter(pl.col("protocol") == protocol)
    if found.is_empty():
        return {}
    first = found.sort("seed", "planner", "protocol", "eval_seed").row(0, named=True)
    chosen = found.filter(
        [pl.col(name) == first[name] for name in ("seed", "planner", "protocol", "eval_seed")]
    )
    pairs = chosen["pair_id"].unique().sort().to_list()[:MAX_EXAMPLES]
    shown = chosen.filter(pl.col("pair_id").is_in(pairs))
    episodes = _episodes(world, shown)
    added = ""
    outcomes = set(shown["success"].to_list())
    if len(outcomes) == 1:
        wanted = not outcomes.pop()
        extra = _first(world.tables["examples"], found, wanted)
        word = "reached its goal" if wanted else "failed"
        if extra is None:
            added = f"No stored episode {word}."
        else:
            episodes += _episodes(world, extra, full=True)
            added = f"None of these {word}: the last one is the first stored episode that did."
    where = (
        f"{world.axis.name(world.best_point or '')}, seed {first['seed']}, {first['protocol']} protocol, "
        f"{text.planner(first['planner'])}, eval seed {first['eval_seed']}"
    )
    return {"episodes": episodes, "where": where, "added": added}


def _first(every: pl.DataFrame, at_best: pl.DataFrame, success: bool) -> pl.DataFrame | None:
    """The first stored episode with an outcome: at the best point, else at the lowest λ that has one."""
    for frame in (at_best, every):
        order = ["lam", "point", "seed", "protocol", "planner", "eval_seed", "pair_id"]
        rows = frame.filter(pl.col("success") == success).sort(order)
        if rows.height:
            row = rows.row(0, named=True)
            same = [pl.col(name).eq_missing(pl.lit(row[name])) for name in order]
            return frame.filter(same)
    return None


def _episodes(world: World, found: pl.DataFrame, full: bool = False) -> list[Row]:
    episodes = []
    for pair in found["pair_id"].unique().sort():
        rows = found.filter(pl.col("pair_id") == pair).sort("frame")
        first = rows.row(0, named=True)
        outcome = "reached" if first["success"] else "not reached"
        pictures = [_picture(row) for row in rows.iter_rows(named=True)]
        where = (
            f"{world.axis.name(str(first['point']))}, seed {first['seed']}, {first['protocol']} protocol, "
            if full
            else ""
        )
        episodes.append(
            {
                "name": f"{where}pair {pair}: goal {outcome}",
                "success": first["success"],
                "goal": next(p for p in pictures if p["kind"] == "goal"),
                "path": [p for p in pictures if p["kind"] != "goal"],
            }
        )
    return episodes


def _picture(row: Row) -> Row:
    """A stored picture as the page shows it, with its caption."""
    data = base64.b64encode(row["png"]).decode()
    words = {"start": "start", "goal": "goal"}.get(row["kind"], f"step {row['frame']}")
    return {"kind": row["kind"], "words": words, "src": f"data:image/png;base64,{data}"}
