"""A simulation as rows of the sweep's tables: `search` per trial, `profiles` shares, `summary` words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.search.record import SHARE, SIMULATED
from pipeline.search.settings import Mode
from pipeline.search.simulation import KEY, Cost, Plateau, Step
from pipeline.storage import Storage
from pipeline.tables import SCHEMAS, make_frame, read_table, write_table

WORDS = {"grid": "grid", "random": "random search", "bisect": "bisection", "tpe": "TPE"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is simulated."""

    objective: str
    mode: Mode
    margin: float
    budget: int
    repetitions: int
    seed: int


def search_rows(place: Row, steps: Mapping[str, Sequence[Sequence[Step]]], p: Plateau) -> list[Row]:
    """One row per simulated trial; `best_so_far` is the true mean of what would be recommended."""
    return [
        place
        | {
            "point": f"{KEY}={step.lam}",
            "lam": step.lam,
            "strategy": strategy,
            "repetition": repetition,
            "order": order,
            "objective": place["metric"],
            "best_so_far": step.truth,
            "reason": f"drawn {step.value:.3g}; would take λ = {step.recommended:g}, whose true mean "
            f"{step.truth:.3g} is {'on' if p.holds(step.truth) else 'off'} the plateau",
        }
        for strategy, repetitions in steps.items()
        for repetition, found in enumerate(repetitions)
        for order, step in enumerate(found)
    ]


def share_rows(place: Row, costs: Sequence[Cost]) -> list[Row]:
    """Share of searches on the plateau (`fraction`) after `tau` trials."""
    return [
        place
        | {"metric": SHARE, "point": f"search={c.strategy}", "tau": float(number)}
        | {"fraction": share, "ci_low": low, "ci_high": high}
        for c in costs
        for number, (share, low, high) in enumerate(c.shares, 1)
    ]


def summary_rows(
    place: Row,
    question: Question,
    values: Mapping[float, Sequence[float]],
    plateau: Plateau,
    costs: Sequence[Cost],
) -> list[Row]:
    """The plateau, the finding, and per strategy the trials until half of the searches stay on it."""
    seeds = [len(found) for lam, found in values.items() if lam > 0]
    span = str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)}–{max(seeds)}"
    curve = (
        f"Curve: {question.objective} at {len(seeds)} λ > 0 × {span} seeds; plateau: λ from "
        f"{plateau.low:.2g} to {plateau.high:.2g}, true mean within {question.margin:g} of the best, "
        f"{plateau.best:.2g}"
    )
    rows: list[Row] = [
        {"quantity": "search_floor", "value": plateau.floor, "text": curve, "n": sum(seeds)},
        {
            "quantity": "finding_simulation",
            "text": finding(costs, question.budget),
            "n": question.repetitions,
        },
    ]
    for c in costs:
        share, low, high = c.shares[-1]
        never = f"{c.num_never} of {len(c.needed)} searches are not on it after {question.budget}"
        rows.append(
            {
                "quantity": "search_trials",
                "point": f"search={c.strategy}",
                "value": None if c.median is None else float(c.median),
                "text": never,
                "ci_low": low,
                "ci_high": high,
                "ci_method": f"of the share at the end, {share:.3f}: 95 % Wilson",
                "n": len(c.needed),
            }
        )
    return [place | row for row in rows]


def finding(costs: Sequence[Cost], budget: int) -> str:
    """Which strategy settles first, in one sentence with everybody's numbers."""
    ranked = sorted(costs, key=lambda c: (c.within(0.8) or budget + 1, c.num_never))
    parts = [f"{WORDS[c.strategy]} {trials_text(c.within(0.8), budget)}" for c in ranked]
    return f"Trials until four of five searches stay on the plateau: {', '.join(parts)}"


def trials_text(number: int | None, budget: int) -> str:
    """A number of trials for readers."""
    return f"more than {budget}" if number is None else str(number)


def write_rows(sweep: Storage, rows: Mapping[str, Sequence[Row]]) -> None:
    """Replaces what an earlier simulation wrote; everything else stays."""
    simulated = {
        "search": pl.col("repetition").is_not_null(),
        "profiles": pl.col("metric").is_in(SIMULATED),
        "summary": pl.col("quantity").is_in(SIMULATED),
    }
    for name, found in rows.items():
        kept = read_table(sweep, name).filter(~simulated[name])
        write_table(sweep, name, pl.concat([kept, make_frame(found, SCHEMAS[name])]))
