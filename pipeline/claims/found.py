"""The answer of a finished sweep to a question: a number or a difference of ours, with its interval."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from pipeline import stats
from pipeline.claims.evidence import (
    FLOORS,
    Evidence,
    Missing,
    Row,
    Sample,
    axis_number,
    nothing_of,
    point_of,
    rows_of,
    sample,
)
from pipeline.claims.read import Question, Side
from pipeline.stages.stability.measure import BOUNDS, TWO_WAY
from pipeline.stats.intervals import Interval

OVER_PAIRS = "95 % over seeds of either side and over pairs"
OVER_SEEDS = "95 % t over seeds"
WELCH = "95 % Welch over seeds"
WILSON = "95 % Wilson over start/goal pairs"


@dataclass(frozen=True)
class Found:
    """A number of ours with its interval.

    Attributes:
        n: what the interval is over: seeds, pairs, clips, repetitions.
        place: key columns that it belongs to.
        note: what a reader should know of it.
    """

    value: float | None
    interval: Interval | None
    method: str
    n: int
    place: Row = field(default_factory=dict)
    num_episodes: int | None = None
    note: str = ""


def number(evidence: Evidence, question: Question, env: str) -> Found:
    """A number of ours, where it is to lie beside a published one."""
    if question.metric == "plan_s":
        return plan_time(evidence, question.high.method or "lewm", "plan_seconds")
    if question.metric == "surprise_difference":
        return _of_control(evidence, question, env)
    own = sample(evidence, question, question.high, env)
    values, n = list(own.values.values()), len(own.values)
    mean = float(np.mean(values))
    if own.matrix is None:
        if question.metric == "num_params":  # counted, not estimated
            same = Interval(min(values), max(values))
            return Found(mean, same, "counted", n, own.place)
        bounds = BOUNDS.get(question.metric)
        return Found(mean, stats.t_interval(values, bounds=bounds), OVER_SEEDS, n, own.place)
    matrix = own.matrix(own.pairs)
    if question.high.method in FLOORS:
        interval = stats.wilson(int(matrix.sum()), matrix.size)
        return Found(mean, interval, WILSON, matrix.size, own.place, matrix.size)
    interval = stats.rate_interval(matrix)
    return Found(mean, interval, TWO_WAY, n, own.place, matrix.size)


def less_value(evidence: Evidence, question: Question, env: str, value: float) -> Interval | None:
    """Interval of ours less a published number."""
    if question.metric == "success" and question.high.method not in FLOORS:
        own = sample(evidence, question, question.high, env)
        assert own.matrix is not None
        return stats.against_value(own.matrix(own.pairs), value, question.margin).interval
    interval = number(evidence, question, env).interval
    return None if interval is None else Interval(interval.low - value, interval.high - value)


def difference(evidence: Evidence, question: Question, low: Side, env: str) -> Found:
    """`high` less `low`: on the same seeds where one method is on both sides, on the same pairs always."""
    method = low.method or question.high.method
    wanted = question.high.value_of
    if wanted == ("best",) and low.value_of and low.value_of[0] not in ("smallest", "largest"):
        wanted = (f"not {low.value_of[0]}",)  # the best of the others
    first = sample(evidence, question, Side(question.high.method or method, wanted), env)
    second = sample(evidence, question, Side(method, low.value_of), env)
    if first.place == second.place:
        return Found(0.0, None, "", len(first.values), first.place, note="both are the same point")
    one_method = first.place.get("method") == second.place.get("method")
    if first.matrix is None or second.matrix is None:
        return _of_values(first, second, one_method)
    pairs = sorted(set(first.pairs) & set(second.pairs))
    if not pairs:
        raise Missing("no start/goal pair in common")
    size = len(pairs) * (len(first.values) + len(second.values))
    if low.method in FLOORS:
        found = stats.paired_two_way(first.matrix(pairs) - second.matrix(pairs), bounds=(-1.0, 1.0))
        return Found(found.diff, found.interval, TWO_WAY, found.n, first.place, size)
    seeds = sorted(set(first.values) & set(second.values))
    sides = first.matrix(pairs), second.matrix(pairs)
    if one_method and len(seeds) == len(first.values) == len(second.values):
        found = stats.paired_two_way(sides[0] - sides[1], bounds=(-1.0, 1.0))
        return Found(found.diff, found.interval, TWO_WAY, found.n, first.place, size)
    found = stats.unpaired_two_way(*sides, same_pairs=True, bounds=(-1.0, 1.0))
    return Found(found.diff, found.interval, OVER_PAIRS, found.n, first.place, size)


def _of_values(first: Sample, second: Sample, one_method: bool) -> Found:
    seeds = sorted(set(first.values) & set(second.values))
    if one_method and seeds:
        found = stats.paired_t([first.values[seed] - second.values[seed] for seed in seeds])
        return Found(found.diff, found.interval, f"{OVER_SEEDS}, paired", found.n, first.place)
    found = stats.unpaired(list(first.values.values()), list(second.values.values()))
    return Found(found.diff, found.interval, WELCH, found.n, first.place)


def _of_control(evidence: Evidence, question: Question, env: str) -> Found:
    """Surprise at an event less that of the same clips undisturbed: the report's own paired t."""
    method = question.high.method or "lewm"
    point = point_of(evidence, question, question.high, env, method)
    rows = rows_of(evidence, "comparison", env, method).filter(
        pl.col("other_kind") == "control",
        pl.col("event") == question.event,
        pl.col("point") == point,
    )
    if rows.is_empty():
        raise Missing(nothing_of(evidence, env, method, f"surprise at {question.event}"))
    row = rows.row(0, named=True)
    interval = None if row["ci_low"] is None else Interval(row["ci_low"], row["ci_high"])
    place = {k: row[k] for k in ("method", "env", "point", "lam", "event")}
    return Found(row["diff"], interval, row["ci_method"], row["n"], place)


def plan_time(evidence: Evidence, method: str, quantity: str) -> Found:
    """Seconds of a plan, or how many times LeWM's, with the planner's own samples; as the report has them.

    Args:
        quantity: `plan_seconds` or `time_ratio`.

    Raises:
        Missing: not timed.
    """
    rows = evidence.tables["summary"].filter(
        pl.col("quantity") == quantity, pl.col("method") == method, pl.col("metric") == "samples"
    )
    if rows.is_empty():
        raise Missing(f"no planning time of {method}")
    row = rows.row(0, named=True)
    interval = None if row["ci_low"] is None else Interval(row["ci_low"], row["ci_high"])
    place = {name: row[name] for name in ("method", "env", "planner", "eval_point")}
    note = str(row["text"])
    timed = evidence.tables["timing"].filter(pl.col("method") == method)
    if timed["random_weights"].fill_null(False).any():
        note += "; random weights, on which a plan's time does not depend"
    return Found(row["value"], interval, row["ci_method"], row["n"], place, note=note)


def time_ratio(evidence: Evidence, question: Question, low: Side) -> Found:
    """Seconds per plan of `high` over LeWM's.

    Raises:
        Missing: not timed, or no table has the metric.
    """
    if question.metric != "plan_s" or low.method != "lewm":
        raise Missing(f"no table holds {question.metric} over those of {low.words()}")
    return plan_time(evidence, question.high.method or "", "time_ratio")


def flat_rows(evidence: Evidence, question: Question, env: str) -> list[Row]:
    """The report's comparisons of an axis' points with the best one.

    Raises:
        Missing: no second point on this axis, or none where the claim speaks.
    """
    method = question.high.method or "lewm"
    rows = rows_of(evidence, "comparison", env, method).filter(
        pl.col("other_kind") == "point", pl.col("metric") == "success"
    )
    rows = rows.filter(pl.col("protocol") == question.protocol)
    own = [row for row in rows.to_dicts() if (question.axis or "") in row["point"]]
    if question.least is not None:
        own = [row for row in own if (axis_number(row["point"]) or 0.0) >= question.least]
        own = [row for row in own if (axis_number(row["other"]) or 0.0) >= question.least]
    if not own:
        where = "" if question.least is None else f" with values from {question.least:g}"
        raise Missing(f"no comparison of points of {question.axis}{where}")
    return own


def plateau_ends(evidence: Evidence, question: Question, env: str) -> tuple[Row, Row]:
    """The ends of the λ plateau, as the report has them.

    Raises:
        Missing: no plateau was found, or its ends are not certain.
    """
    rows = rows_of(evidence, "summary", env, "lewm").filter(pl.col("protocol") == question.protocol)
    ends = []
    for end in ("low", "high"):
        found = rows.filter(pl.col("quantity") == f"plateau_{end}").to_dicts()
        if not found or found[0]["value"] is None:
            raise Missing(str(found[0]["text"]) if found else "no plateau was judged")
        ends.append(found[0])
    return ends[0], ends[1]


def search_shares(evidence: Evidence, question: Question, low: Side) -> tuple[Row, Row]:
    """Trials that replayed searches needed, of both strategies.

    Raises:
        Missing: no searches were replayed.
    """
    rows = evidence.tables["summary"].filter(pl.col("quantity") == "search_trials")
    found = []
    for side in (question.high, low):
        names = [f"search={name}" for name in side.search]
        own = rows.filter(pl.col("point").is_in(names)).to_dicts()
        if not own:
            raise Missing("no replayed searches: python -m pipeline.simulate pldm --against lambda")
        found.append(own[0])
    return found[0], found[1]
