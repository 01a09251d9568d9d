"""Replayed searches as rows of the tables of the sweep over several weights, beside a λ sweep's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.search.record import INCUMBENT
from pipeline.search.replay import STRATEGIES, TARGET, Pool, best_values, target
from pipeline.search.simulation import Cost, Curve, Step, cost
from pipeline.search.simulation_rows import share_rows, trials_text
from pipeline.stats import t_interval

Row = dict[str, Any]
Steps = Mapping[str, Sequence[Sequence[Step]]]
WORDS = {
    "lewm-bisect": "LeWM by bisection",
    "lewm-grid": "LeWM by grid",
    "pldm-random": "PLDM at random",
    "pldm-tpe": "PLDM by TPE",
}
OVER_SEARCHES = "95 % t over replayed searches, of one recorded pool"


def costs(curve: Curve, pool: Pool, steps: Steps, budget: int) -> dict[str, list[Cost]]:
    """What the strategies cost until they stay within `TARGET` of the best of both, and of their own method."""
    best = best_values(curve, pool)
    top = [max(best.values())] * len(STRATEGIES)
    levels = {"both": top, "own": [best[s.split("-")[0]] for s in STRATEGIES]}
    return {
        name: [
            cost(s, steps[s], target(level), budget)
            for s, level in zip(STRATEGIES, known, strict=True)
        ]
        for name, known in levels.items()
    }


def replay_rows(
    place: Row, curve: Curve, pool: Pool, num_runs: int, steps: Steps, budget: int
) -> dict[str, list[Row]]:
    """Rows of `profiles` and `summary`.

    Args:
        place: method, env, profile and metric of the sweep over several weights.
        num_runs: behind LeWM's curve.
    """
    found = costs(curve, pool, steps, budget)
    return {
        "profiles": share_rows(place, found["both"]) + _incumbents(place, steps, budget),
        "summary": _summary(place, curve, pool, num_runs, found, budget),
    }


def _incumbents(place: Row, steps: Steps, budget: int) -> list[Row]:
    """The value of what would be taken after `tau` trials, its mean over searches (`fraction`)."""
    rows = []
    for strategy, repetitions in steps.items():
        for number in range(1, budget + 1):
            values = [found[min(number, len(found)) - 1].truth for found in repetitions]
            interval = t_interval(values)
            rows.append(
                place
                | {
                    "metric": INCUMBENT,
                    "point": f"search={strategy}",
                    "tau": float(number),
                    "fraction": float(np.mean(values)),
                    "ci_low": interval.low if interval else None,
                    "ci_high": interval.high if interval else None,
                }
            )
    return rows


def _summary(
    place: Row,
    curve: Curve,
    pool: Pool,
    num_runs: int,
    found: Mapping[str, Sequence[Cost]],
    budget: int,
) -> list[Row]:
    best = best_values(curve, pool)
    text = (
        f"Best recorded: LeWM {best['lewm']:.3g} (mean over seeds, {num_runs} trials over λ), PLDM "
        f"{best['pldm']:.3g} (one run of {len(pool.points)} random configurations, flattered by the choice); "
        f"arrived: within {100 * TARGET:.0f} % of it to stay"
    )
    repetitions = len(found["both"][0].needed)
    rows: list[Row] = [
        {
            "quantity": "search_floor",
            "value": TARGET,
            "text": text,
            "n": num_runs + len(pool.points),
        },
        {"quantity": "finding_simulation", "text": finding(found, budget), "n": repetitions},
    ]
    for both, own in zip(found["both"], found["own"], strict=True):
        share, low, high = both.shares[-1]
        at = {"point": f"search={both.strategy}", "n": repetitions}
        never = f"{both.num_never} of {repetitions} searches have not arrived after {budget}"
        rows += [
            at
            | {
                "quantity": "search_trials",
                "value": None if both.median is None else float(both.median),
                "text": never,
                "ci_low": low,
                "ci_high": high,
                "ci_method": f"of the share at the end, {share:.3f}: 95 % Wilson",
            },
            at
            | {
                "quantity": "search_trials_own",
                "value": None if own.median is None else float(own.median),
                "text": f"{own.num_never} of {repetitions} searches have not arrived at their own method's "
                f"best after {budget}",
            },
        ]
    return [place | row for row in rows]


def finding(found: Mapping[str, Sequence[Cost]], budget: int) -> str:
    """Median trials of every strategy in one sentence: to the best of both methods, and to its own best."""
    parts = [
        f"{WORDS[both.strategy]} {trials_text(both.median, budget)} ({trials_text(own.median, budget)})"
        for both, own in zip(found["both"], found["own"], strict=True)
    ]
    return (
        f"Median trials to {100 * TARGET:.0f} % of the best of both methods (of its own best): "
        f"{', '.join(parts)}"
    )
