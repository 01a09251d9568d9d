"""How many times longer one method plans than another (paper Fig. 3)."""

import math
from typing import Any

import polars as pl

from pipeline import stats

Row = dict[str, Any]
REFERENCE = "lewm"
OVER_REPETITIONS = (
    "95 % t over repetitions of the logarithm; both timed in turn in one process on one machine"
)
KEYS = ("env", "profile", "planner", "eval_point", "setting")


def time_ratios(timing: pl.DataFrame) -> list[Row]:
    """Rows of `summary`: per method its seconds and operations per plan, and both over LeWM's."""
    rows: list[Row] = []
    for key, group in timing.sort("method", "repetition").group_by(*KEYS, maintain_order=True):
        base = dict(zip(KEYS, key, strict=True))
        setting = base.pop("setting")
        own = {str(name): part for (name,), part in group.group_by("method", maintain_order=True)}
        for method, part in own.items():
            at = base | {"method": method, "metric": setting}
            rows += [at | row for row in _absolute(part)]
            if method != REFERENCE and REFERENCE in own:
                rows += [at | row for row in _relative(part, own[REFERENCE])]
    return rows


def _absolute(part: pl.DataFrame) -> list[Row]:
    seconds = part["plan_s"].to_list()
    interval = stats.t_interval([math.log(s) for s in seconds])
    first = part.row(0, named=True)
    asked = f"{first['num_samples']} samples × {first['num_iterations']} iterations"
    run = f"{first['num_samples_run']} × {first['num_iterations_run']}"
    scaled = (
        ""
        if run == asked.replace(" samples", "").replace(" iterations", "")
        else f", {run} of them run"
    )
    return [
        {
            "quantity": "plan_seconds",
            "value": math.exp(sum(map(math.log, seconds)) / len(seconds)),
            "ci_low": math.exp(interval.low) if interval else None,
            "ci_high": math.exp(interval.high) if interval else None,
            "ci_method": OVER_REPETITIONS,
            "n": len(seconds),
            "text": f"seconds per plan, geometric mean: {asked}{scaled}, on {first['device']}",
        },
        {
            "quantity": "plan_flops",
            "value": first["flops"],
            "n": 1,
            "text": f"floating-point operations of one plan, counted: {asked}",
        },
    ]


def _relative(part: pl.DataFrame, reference: pl.DataFrame) -> list[Row]:
    both = part.join(reference, on="repetition", suffix="_reference").sort("repetition")
    logs = (both["plan_s"] / both["plan_s_reference"]).log().to_list()
    interval = stats.t_interval(logs)
    flops = part["flops"][0] / reference["flops"][0]
    return [
        {
            "quantity": "time_ratio",
            "value": math.exp(sum(logs) / len(logs)),
            "ci_low": math.exp(interval.low) if interval else None,
            "ci_high": math.exp(interval.high) if interval else None,
            "ci_method": OVER_REPETITIONS,
            "n": len(logs),
            "text": "times LeWM's seconds per plan, geometric mean over repetitions",
        },
        {
            "quantity": "flops_ratio",
            "value": flops,
            "n": 1,
            "text": "times LeWM's operations per plan, counted",
        },
    ]
