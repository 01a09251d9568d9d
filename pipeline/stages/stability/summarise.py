"""Conclusions in numbers and sentences: best λ, plateau, certainty, floors, what is missing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline import stats
from pipeline.stages.stability import findings
from pipeline.stages.stability.compare import MARGIN, best_points
from pipeline.stages.stability.measure import FLOOR_PLANNERS, GROUP, WILSON_POOLED
from pipeline.tables import SCHEMAS, make_frame

Row = dict[str, Any]
BOOTSTRAP = "bootstrap over seeds, 10,000 draws"
PROTOCOL_ORDER = ("strict", "moderate", "paper")


def summarise(
    tables: Mapping[str, pl.DataFrame],
    values: pl.DataFrame,
    stability: pl.DataFrame,
    comparison: pl.DataFrame,
) -> pl.DataFrame:
    """The `summary` table: quantities per planning setting, then verdict and findings per world.

    `verdict` and `certainty` are the report's first two sentences, taken from the strictest protocol.
    """
    settings: dict[tuple[Any, ...], dict[str, Row]] = {}
    for key, best in best_points(stability).items():
        settings[key] = _setting(dict(zip(GROUP, key, strict=True)), best, values, stability)
    rows = [row for quantities in settings.values() for row in quantities.values()]
    for group in _worlds(tables["trials"], stability):
        own = sorted(
            (key for key in settings if key[:3] == tuple(group.values())), key=_strictest_first
        )
        main = settings[own[0]] if own else {}
        place = dict(zip(GROUP, own[0], strict=True)) if own else dict(group)
        completeness = _completeness(group, tables["trials"], tables["cells"])
        rows += completeness.values()
        rows += findings.verdict(place, main, completeness)
        rows += findings.figures(group, place, main, tables, stability, comparison)
    return make_frame(rows, SCHEMAS["summary"])


def _strictest_first(key: tuple[Any, ...]) -> tuple[int, tuple[str, ...]]:
    protocol = key[GROUP.index("protocol")]
    rank = PROTOCOL_ORDER.index(protocol) if protocol in PROTOCOL_ORDER else len(PROTOCOL_ORDER)
    return rank, tuple(map(str, key))


def _worlds(trials: pl.DataFrame, stability: pl.DataFrame) -> list[Row]:
    names = ["method", "env", "profile"]
    both = pl.concat([trials.select(names), stability.select(names)])
    return both.filter(pl.col("method").is_not_null()).unique().sort(names).to_dicts()


def _setting(
    group: Row, best: Row, values: pl.DataFrame, stability: pl.DataFrame
) -> dict[str, Row]:
    """The quantities of one planning setting, by name."""
    runs = values.filter(
        pl.col("metric") == "success",
        *[pl.col(name).eq_missing(pl.lit(value)) for name, value in group.items()],
    )
    base = {**group, "metric": "success"}
    at_best = {**base, "point": best["point"], "lam": best["lam"]}
    label = findings.label(best["point"], best["lam"])
    mean, seeds = best["mean"], best["num_seeds"]
    rows = [
        {
            **at_best,
            "quantity": "best_point",
            "value": best["lam"],
            "text": label,
            "n": runs["point"].n_unique(),
        },
        {
            **at_best,
            "quantity": "best_success",
            "value": mean,
            "ci_low": best["ci_low"],
            "ci_high": best["ci_high"],
            "ci_method": best["ci_method"],
            "n": seeds,
            "text": f"mean success over {findings.count(seeds, 'seed')} at {label}",
        },
        {**at_best, "quantity": "worst_seed", "value": best["worst"], "n": seeds},
        {**at_best, "quantity": "num_collapsed", "value": best["num_collapsed"], "n": seeds},
        {**at_best, "quantity": "num_diverged", "value": best["num_diverged"], "n": seeds},
        _p_best(at_best, runs, best["point"]),
        _pooled(at_best, runs.filter(pl.col("point") == best["point"])),
    ]
    floors = _floors(base, stability)
    quantities = {row["quantity"]: row for row in rows + floors}
    quantities["clears_random"] = _clears_random(at_best, quantities)
    for row in _plateau(base, best, stability, quantities["clears_random"]["value"]):
        quantities[row["quantity"]] = row
    return quantities


def _p_best(base: Row, runs: pl.DataFrame, point: str) -> Row:
    """How often the best point stays best when seeds are resampled."""
    groups = runs.sort("lam", "point", "seed").group_by("point", maintain_order=True)
    samples = {str(name): frame["value"].to_list() for (name,), frame in groups}
    fewest = min(map(len, samples.values()))
    row = {**base, "quantity": "p_best", "ci_method": BOOTSTRAP, "n": fewest}
    if fewest < 2 or len(samples) < 2:
        text = "not told: needs two points and at least two seeds at each"
        return {**row, "value": None, "text": text}
    shares = stats.probability_best(list(samples.values()), np.random.default_rng(0))
    value = float(shares[list(samples).index(point)])
    text = "share of draws in which the best point stays best; few seeds understate the doubt"
    return {**row, "value": value, "text": text}


def _pooled(base: Row, runs: pl.DataFrame) -> Row:
    """Wilson over all episodes at the best point: the issue's first check, not the interval."""
    episodes = int(runs["num_episodes"].sum())
    counts = (runs["value"] * runs["num_episodes"]).sum()
    interval = stats.wilson(round(counts), episodes)
    return {
        **base,
        "quantity": "best_success_pooled",
        "value": counts / episodes if episodes else None,
        "ci_low": interval.low if interval else None,
        "ci_high": interval.high if interval else None,
        "ci_method": WILSON_POOLED,
        "n": episodes,
        "text": "episodes of all seeds pooled",
    }


def _floors(base: Row, stability: pl.DataFrame) -> list[Row]:
    rows = stability.filter(
        pl.col("method").is_null(),
        *[pl.col(k).eq_missing(pl.lit(base[k])) for k in ("env", "profile", "protocol")],
    ).to_dicts()
    return [
        {
            **base,
            "planner": row["planner"],
            "quantity": f"floor_{row['planner']}",
            "value": row["mean"],
            **{k: row[k] for k in ("ci_low", "ci_high", "ci_method")},
            "n": row["num_episodes"],
        }
        for row in rows
        if row["planner"] in FLOOR_PLANNERS
    ]


def _clears_random(base: Row, quantities: Mapping[str, Row]) -> Row:
    row = {**base, "quantity": "clears_random", "ci_method": "first check: intervals apart"}
    random, pooled = quantities.get("floor_random"), quantities["best_success_pooled"]
    if random is None or pooled["ci_low"] is None:
        return {**row, "value": None, "text": "no random floor on these pairs yet", "n": 0}
    clear = pooled["ci_low"] > random["ci_high"]
    text = (
        f"pooled Wilson interval of the best point {findings.span(pooled)} (n = {pooled['n']}) against "
        f"the random floor's {findings.span(random)} (n = {random['n']})"
    )
    return {**row, "value": float(clear), "text": text, "n": pooled["n"]}


def _plateau(base: Row, best: Row, stability: pl.DataFrame, clear: float | None) -> list[Row]:
    """Plateau ends over λ > 0 among points that differ from the best one in λ only."""
    rows = stability.filter(
        (pl.col("metric") == "success") & (pl.col("runs") == "all") & pl.col("lam").is_not_null(),
        *[pl.col(name).eq_missing(pl.lit(base[name])) for name in GROUP],
    ).filter(
        pl.col("point").map_elements(findings.apart_from_lam, return_dtype=pl.String)
        == findings.apart_from_lam(best["point"])
    )
    found = stats.plateau(rows["lam"].to_list(), rows["mean"].to_list(), MARGIN)
    ends: list[Row] = [{**base, "quantity": f"plateau_{end}", "n": 0} for end in ("low", "high")]
    if found is None:
        text = "no plateau: no λ > 0 has planning results"
    elif clear == 0.0:
        text = "no plateau: no λ plans clearly better than random actions"
    elif rows.filter(pl.col("lam") > 0).height < 2:
        text = "no plateau: a single λ > 0 shows no range"
    else:
        text = findings.plateau_text(found, MARGIN)
        ends[0]["value"], ends[1]["value"] = found.low, found.high
        for row in ends:
            row["n"] = found.num_points
    method = f"mean success within {MARGIN:g} of the best; contiguous tested λ > 0"
    return [{**row, "text": text, "ci_method": method} for row in ends]


def _completeness(group: Row, trials: pl.DataFrame, cells: pl.DataFrame) -> dict[str, Row]:
    """How many trials there are of each status, and what of trials and evaluation is missing.

    Only trained trials have cells to miss.
    """
    trials = trials.filter(*[pl.col(name) == value for name, value in group.items()])
    trained = trials.filter(pl.col("status").is_in(["done", "stopped"]))["trial_id"].to_list()
    rows = []
    for noun, table in (
        ("trial", trials),
        ("evaluation cell", cells.filter(pl.col("trial_id").is_in(trained))),
    ):
        counts = dict(table.group_by("status").len().sort("status").iter_rows())
        lacking = {k: n for k, n in counts.items() if k not in ("done", "stopped", "diverged")}
        text = f"all {noun}s have finished" if table.height else f"there are no {noun}s"
        if lacking:
            parts = ", ".join(f"{n} {name}" for name, n in lacking.items())
            text = f"no result from {sum(lacking.values())} of {findings.count(table.height, noun)}"
            text += f" ({parts})"
        name = noun.split()[-1] + "s"
        total = {**group, "n": table.height}
        rows += [{**total, "quantity": f"{name}_{k}", "value": n} for k, n in counts.items()]
        missing = sum(lacking.values())
        rows.append({**total, "quantity": f"{name}_missing", "value": missing, "text": text})
    return {str(row["quantity"]): row for row in rows}
