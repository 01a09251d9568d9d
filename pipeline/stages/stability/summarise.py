"""Conclusions in numbers and sentences: best λ, plateau, certainty, floors, what is missing."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.stages.stability import findings, words
from pipeline.stages.stability.compare import best_points
from pipeline.stages.stability.decide import decide, read_setting
from pipeline.stages.stability.episodes import GROUP, Episodes
from pipeline.stages.stability.ratios import time_ratios
from pipeline.stages.stability.spread import split
from pipeline.tables import SCHEMAS, make_frame

Row = dict[str, Any]
PROTOCOL_ORDER = ("strict", "moderate", "paper")


def summarise(
    tables: Mapping[str, pl.DataFrame],
    stability: pl.DataFrame,
    comparison: pl.DataFrame,
    episodes: Mapping[tuple[Any, ...], Episodes],
) -> pl.DataFrame:
    """The `summary` table: quantities per planning setting, then verdict and findings per world.

    `verdict` and `certainty` are the report's first two sentences, taken from the strictest protocol.
    """
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for key, best in best_points(stability).items():
        own = episodes.get(key, Episodes())
        setting = read_setting(key, best, stability, comparison, own)
        settings[key] = [*decide(setting), *split(setting)]
    rows = [row for quantities in settings.values() for row in quantities]
    for group in _worlds(tables["trials"], stability):
        own_keys = [key for key in settings if key[:3] == tuple(group.values())]
        first = min(own_keys, key=strictest_first, default=None)
        main = {str(row["quantity"]): row for row in settings[first]} if first else {}
        place = dict(zip(GROUP, first, strict=True)) if first else dict(group)
        completeness = _completeness(group, tables["trials"], tables["cells"])
        rows += completeness.values()
        found = findings.figures(group, place, main, tables, stability, comparison)
        plans = bool(main) or _asks_planning(group, tables["cells"])
        told = {str(row["quantity"]): str(row["text"]) for row in found}
        rows += findings.verdict(place, main, completeness, told, plans)
        rows.append({**group, "quantity": "plans", "value": float(plans)})
        rows += found
    rows += time_ratios(tables["timing"])
    return make_frame(rows, SCHEMAS["summary"])


def strictest_first(key: tuple[Any, ...]) -> tuple[int, tuple[str, ...]]:
    """Sorts keys of `GROUP` by how strict their protocol is."""
    protocol = key[GROUP.index("protocol")]
    rank = PROTOCOL_ORDER.index(protocol) if protocol in PROTOCOL_ORDER else len(PROTOCOL_ORDER)
    return rank, tuple(map(str, key))


def _worlds(trials: pl.DataFrame, stability: pl.DataFrame) -> list[Row]:
    names = ["method", "env", "profile"]
    both = pl.concat([trials.select(names), stability.select(names)])
    return both.filter(pl.col("method").is_not_null()).unique().sort(names).to_dicts()


def _asks_planning(group: Row, cells: pl.DataFrame) -> bool:
    """Whether planning is among what is evaluated; of a world without any cells nothing is known."""
    own = cells.filter(*[pl.col(name) == value for name, value in group.items()])
    return own.is_empty() or bool((own["stage"] == "planning").any())


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
            text = f"no result from {sum(lacking.values())} of {words.count(table.height, noun)}"
            text += f" ({parts})"
        name = noun.split()[-1] + "s"
        total = {**group, "n": table.height}
        rows += [{**total, "quantity": f"{name}_{k}", "value": n} for k, n in counts.items()]
        missing = sum(lacking.values())
        rows.append({**total, "quantity": f"{name}_missing", "value": missing, "text": text})
    return {str(row["quantity"]): row for row in rows}
