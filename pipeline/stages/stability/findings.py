"""Sentences: every number in them is one of the sweep's tables, every doubt is said."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.stages.stability.words import count, label, listed, number, p_text, percent, span

Row = dict[str, Any]
WITHOUT_PLANNING = ("finding_surprise", "finding_probing", "finding_latents")
"""What answers in place of planning, in this order."""
READ_WELL = 0.7
"""Pearson r from which a probe counts as reading a quantity, in words only."""


def verdict(
    place: Row,
    main: Mapping[str, Row],
    completeness: Mapping[str, Row],
    found: Mapping[str, str],
    plans: bool,
) -> list[Row]:
    """The report's two sentences: which λ and how stable, or what was found without planning; how sure.

    Args:
        found: the findings of `figures`, by quantity.
        plans: whether the sweep evaluates planning at all.
    """
    trials, cells = completeness["trials_missing"], completeness["cells_missing"]
    missing = trials if trials["value"] or not cells["value"] else cells
    if not main:
        told = [found[name] for name in WITHOUT_PLANNING if found.get(name)]
        first, n = "There is no verdict yet: no trial has planning results.", 0
        second = f"{_sentence(missing['text'])}."
        if not plans and told:
            first = f"{'. '.join(told)}."
            second = f"This sweep plans nothing, so which point plans best is not asked; {missing['text']}."
    else:
        first, second = _which(place, main), _how_sure(main, missing)
        n = main["best_success"]["n"]
    return [
        {**place, "quantity": "verdict", "text": first, "n": n},
        {**place, "quantity": "certainty", "text": second, "n": n},
    ]


def _sentence(text: str) -> str:
    return text if text.startswith("λ") else text[:1].upper() + text[1:]


def _which(place: Row, main: Mapping[str, Row]) -> str:
    best, name = main["best_success"], main["best_point"]["text"]
    random, clear = main.get("floor_random"), main["clears_random"]["value"]
    protocol = f"under the {place['protocol']} protocol"
    against = f"against {percent(random['value'])} for random actions" if random else ""
    if clear == 0.0:
        return (
            f"No point plans clearly better than random actions {protocol}: "
            f"{name}{', the best,' if main['best_point']['n'] > 1 else ''} reaches "
            f"{percent(best['value'])} {against}."
        )
    if best["ci_low"] is not None:
        interval = f"95 % interval {span(best)}, {count(best['n'], 'seed')}"
    elif best["n"] == 1:
        interval = "one seed, so no interval"
    else:
        interval = f"all episodes of {best['n']} seeds alike, so no interval"
    text = (
        f"{_sentence(name)} {_verb(main)} {protocol}: {percent(best['value'])} success ({interval})"
    )
    if against:
        text += f", {against}"
    return f"{text}; {main['plateau_low']['text']}."


def _verb(main: Mapping[str, Row]) -> str:
    """As sure as the numbers: what the best point does."""
    chance = main["p_best"].get("value")
    if main["best_point"]["n"] < 2:
        return "plans"
    if chance is None:
        return "has the highest mean"
    if chance >= 0.95:
        return "plans best"
    return "probably plans best" if chance >= 0.5 else "has the highest mean, though not surely,"


def _how_sure(main: Mapping[str, Row], missing: Row) -> str:
    seeds, name = main["best_success"]["n"], main["best_point"]["text"]
    if main["best_point"]["n"] < 2:
        text = "Only one point was tried, so nothing is said about other λ"
    elif main["p_best"].get("value") is None:
        text = "With a single seed at some point, how sure this is cannot be told: add seeds"
    else:
        share, regret = percent(main["p_best"]["value"]), main["regret"]
        text = (
            f"{_sentence(name)} is the best of these points with probability {share}; choosing it is expected to "
            f"lose {count(round(100 * regret['value']), 'point')} to the true best, with 95 % probability at "
            f"most {100 * regret['ci_high']:.0f}"
        )
    lost = [
        f"{main[quantity]['value'] * main[quantity]['n']:.0f} {word}"
        for quantity, word in (("collapsed_best", "collapsed"), ("diverged_best", "diverged"))
        if main[quantity]["value"]
    ]
    fate = f"of its runs, {listed(lost)}" if lost else "none of its runs collapsed or diverged"
    if seeds > 1:
        text += f"; its worst of {seeds} seeds reaches {percent(main['worst_seed']['value'])} and {fate}"
    else:
        text += f"; {fate}"
    return f"{text}; {missing['text']}." if missing["value"] else f"{text}."


def figures(
    group: Row,
    place: Row,
    main: Mapping[str, Row],
    tables: Mapping[str, pl.DataFrame],
    stability: pl.DataFrame,
    comparison: pl.DataFrame,
) -> list[Row]:
    """One sentence per figure, its title; where there is nothing to find, no row."""
    same = [pl.col(name) == value for name, value in group.items()]
    every = stability.filter(*same, pl.col("runs") == "all")
    best = main.get("best_point") or _only_point(every)
    texts = {
        "finding_latents": _joined(
            _latents(tables["trials"].filter(*same), tables["latents"].filter(*same)),
            _copying(every, best) or _straightness(every),
        ),
        "finding_curves": _curves(every),
        "finding_probing": _probing(every, best),
        "finding_surprise": _surprise(every, comparison.filter(*same), best),
    }
    rows = [{**group, "quantity": name, "text": text} for name, text in texts.items() if text]
    if main:
        success = {
            **place,
            "quantity": "finding_success",
            "text": _sentence(main["plateau_low"]["text"]),
        }
        rows.append(success)
    return rows


def _only_point(every: pl.DataFrame) -> Row:
    """The point of a world that has just one, as `best_point` would have it."""
    points = every.filter(pl.col("point").is_not_null(), pl.col("method").is_not_null())
    points = points.select("point", "lam").unique()
    if points.height != 1:
        return {}
    point, lam = points.row(0)
    return {"point": point, "text": label(point, lam)}


MAX_NAMED = 6
"""Settings that a sentence names one by one."""


def _latents(trials: pl.DataFrame, latents: pl.DataFrame) -> str:
    judged = latents.filter(pl.col("collapsed").is_not_null())
    if judged.is_empty():
        return ""
    counted = (
        judged.group_by("point", "lam")
        .agg(pl.col("collapsed").sum().alias("bad"), pl.len().alias("runs"))
        .sort("lam", "point")
    )
    bad = counted.filter(pl.col("bad") > 0)
    if bad.is_empty():
        return f"No latent space collapsed ({count(judged.height, 'run')} judged)"
    if bad.height > MAX_NAMED:
        return f"The latent space collapses at {bad.height} of {counted.height} settings"
    parts = [
        f"{label(row['point'], row['lam'])} ({row['bad']} of {count(row['runs'], 'seed')})"
        for row in bad.iter_rows(named=True)
    ]
    rest = " and nowhere else" if bad.height < counted.height else ""
    return f"The latent space collapses at {listed(parts)}{rest}"


def _copying(every: pl.DataFrame, best: Row) -> str:
    """What the predictor is worth: its held-out error against that of copying the last frame."""
    ratios = every.filter(
        pl.col("metric") == "copy_ratio", pl.col("point").eq_missing(pl.lit(best.get("point")))
    )
    if ratios.is_empty() or not best or ratios["mean"][0] is None:
        return ""
    row = ratios.row(0, named=True)
    interval = ""
    if row["ci_low"] is not None:
        ends = f"{row['ci_low']:.2f}–{row['ci_high']:.2f}"
        interval = f" ({ends}, t over {count(row['num_seeds'], 'seed')})"
    return (
        f"at {best['text']} the error of predicting the next embedding is {row['mean']:.2f} × that of "
        f"copying the last one{interval}"
    )


def _straightness(every: pl.DataFrame) -> str:
    """Where latent paths run straightest, of several points of which none is the best."""
    rows = every.filter(
        (pl.col("metric") == "straightness") & (pl.col("layer") == "projected"),
        pl.col("mean").is_not_null(),
    ).sort("mean", "point", descending=[True, False])
    if rows.height < 2:
        return ""
    parts = []
    for row in (rows.row(0, named=True), rows.row(-1, named=True)):
        ends = "" if row["ci_low"] is None else f", {row['ci_low']:.2f} to {row['ci_high']:.2f}"
        figures = f"mean cosine {row['mean']:.2f}{ends}".replace("-", "\N{MINUS SIGN}")
        parts.append(
            f"{label(row['point'], row['lam'])} ({figures} over {count(row['num_seeds'], 'seed')})"
        )
    return f"latent paths run straightest at {parts[0]} and least straight at {parts[1]}"


def _joined(*parts: str) -> str:
    said = "; ".join(part for part in parts if part)
    return said[:1].upper() + said[1:] if said and not said.startswith("λ") else said


def _curves(every: pl.DataFrame) -> str:
    losses = every.filter((pl.col("metric") == "val_pred_loss") & pl.col("mean").is_not_null())
    if losses.height < 2:
        return ""
    lowest = losses.sort("mean", "lam").row(0, named=True)
    name, mean = label(lowest["point"], lowest["lam"]), number(lowest["mean"])
    text = f"The lowest validation loss, {mean}, belongs to {name}"
    if lowest["num_collapsed"]:
        text += ", which collapsed: loss alone does not choose λ"
    return text


def _probing(every: pl.DataFrame, best: Row) -> str:
    rows = every.filter(
        (pl.col("metric") == "probe_r")
        & (pl.col("probe") == "linear")
        & pl.col("point").eq_missing(pl.lit(best.get("point"))),
    )
    if rows.is_empty() or not best:
        return ""
    per_layer = rows.group_by("layer").agg(pl.col("mean").mean()).sort("mean", "layer")
    layer = per_layer["layer"][-1]
    read = rows.filter(layer=layer).sort("mean", "target").to_dicts()
    source = {"projected": "projected embedding", "encoder": "encoder's output"}.get(layer, layer)
    begin = f"At {best['text']} a linear probe of the {source} reads"
    worst, top = read[0], read[-1]
    if worst["mean"] >= READ_WELL:
        return f"{begin} every quantity with r of at least {worst['mean']:.2f} (mean over seeds)"
    well = sum(row["mean"] >= READ_WELL for row in read)
    ends = (
        f"best {top['target']} ({top['mean']:.2f}), worst {worst['target']} ({worst['mean']:.2f})"
    )
    return f"{begin} {well} of {len(read)} quantities with r of at least {READ_WELL:g}: {ends}"


def _surprise(every: pl.DataFrame, comparison: pl.DataFrame, best: Row) -> str:
    here = pl.col("point").eq_missing(pl.lit(best.get("point")))
    ratios = every.filter((pl.col("metric") == "surprise_ratio") & here).sort("event")
    tests = comparison.filter((pl.col("other_kind") == "control") & here)
    if ratios.is_empty() or not best:
        return ""
    p_values = dict(tests.select("event", "p_adjusted").iter_rows())
    parts = []
    for row in ratios.sort("mean", descending=True).iter_rows(named=True):
        p_value = p_values.get(row["event"])
        tested = f" ({p_text(p_value)})" if p_value is not None else ""
        parts.append(f"{row['mean']:.1f} × its control for {row['event']}{tested}")
    return f"At {best['text']} surprise is {listed(parts)}"
