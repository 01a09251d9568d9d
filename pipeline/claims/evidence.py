"""What a finished sweep's tables say of a question: values per seed, episodes, differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from pipeline import stats
from pipeline.claims.read import PUBLISHED_ENV, Question, Side
from pipeline.stages.stability.episodes import GROUP, Episodes, Matrix, Pair, read_episodes
from pipeline.stages.stability.measure import BOUNDS, TWO_WAY
from pipeline.stats.intervals import Interval

OVER_PAIRS = "95 % over seeds of either side and over pairs"
OVER_SEEDS = "95 % t over seeds"
WELCH = "95 % Welch over seeds"
WILSON = "95 % Wilson over start/goal pairs"
FLOORS = ("random", "zero", "oracle")
PROJECTED = "projected"

Row = dict[str, Any]


class Missing(ValueError):
    """The tables do not hold what the question needs; says what."""


@dataclass(frozen=True)
class Evidence:
    """One finished sweep.

    Attributes:
        name: of the sweep's file; folder: of this run of it.
        command: that began it.
        tables: by name; a missing one counts as empty.
    """

    name: str
    folder: str
    profile: str
    command: str
    tables: Mapping[str, pl.DataFrame]

    @cached_property
    def envs(self) -> list[str]:
        """Environments with trials or timings."""
        frames = [self.tables[name] for name in ("trials", "timing") if name in self.tables]
        found = {env for frame in frames for env in frame["env"].drop_nulls().unique()}
        return sorted(found, key=lambda env: (env != PUBLISHED_ENV, env))

    @cached_property
    def episodes(self) -> dict[tuple[Any, ...], Episodes]:
        """By `GROUP`, as the report's judgement reads them."""
        return read_episodes(self.tables)


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


@dataclass(frozen=True)
class Sample:
    """One side: a value per seed, for success also every episode."""

    values: Mapping[int, float]
    place: Row
    matrix: Callable[[Sequence[Pair]], Matrix] | None = None
    pairs: tuple[Pair, ...] = ()


def sample(evidence: Evidence, question: Question, side: Side, env: str) -> Sample:
    """What was measured of one side in an environment.

    Raises:
        Missing: nothing, or not under this protocol, at this value.
    """
    if question.metric == "success":
        return _success(evidence, question, side, env)
    method = side.method or "lewm"
    point = _point(evidence, question, side, env, method)
    if question.metric == "num_params":
        rows = _rows(evidence, "trials", env, method).filter(pl.col("point") == point)
        rows = rows.filter(pl.col("num_params").is_not_null())
        values = dict(rows.select("seed", pl.col("num_params").cast(pl.Float64)).iter_rows())
    else:
        rows = _rows(evidence, "stability", env, method).filter(
            pl.col("metric") == question.metric,
            pl.col("runs").str.starts_with("seed="),
            pl.col("point") == point,
            pl.col("layer").is_null() | (pl.col("layer") == PROJECTED),
            *_of_event(question),
        )
        per_seed = rows.group_by("runs").agg(pl.col("mean").mean()).sort("runs")
        values = {int(runs[5:]): mean for runs, mean in per_seed.iter_rows() if mean is not None}
    if not values:
        raise Missing(_nothing(evidence, env, method, question.metric))
    lam = rows["lam"].first()
    place = {"method": method, "env": env, "point": point, "lam": lam}
    return Sample(values, place | _of_place(question))


def _of_place(question: Question) -> Row:
    names = ("target", "probe", "event")
    layer = {"layer": PROJECTED} if question.probe else {}
    return {name: getattr(question, name) for name in names} | layer


def _of_event(question: Question) -> list[pl.Expr]:
    """Rows of the question's target (all its dimensions), probe and event."""
    chosen = []
    if question.target is not None:
        chosen.append(pl.col("target").str.starts_with(f"{question.target}["))
    for name in ("probe", "event"):
        if (value := getattr(question, name)) is not None:
            chosen.append(pl.col(name) == value)
    return chosen


def _rows(evidence: Evidence, table: str, env: str, method: str) -> pl.DataFrame:
    frame = evidence.tables.get(table)
    if frame is None:
        raise Missing(f"no table {table}")
    return frame.filter(pl.col("env") == env, pl.col("method") == method)


def _nothing(evidence: Evidence, env: str, method: str, what: str) -> str:
    """Why there is nothing: the trials' own line where they could not run here."""
    trials = _rows(evidence, "trials", env, method)
    lost = trials.filter(pl.col("status") == "unavailable")["error"].drop_nulls()
    if len(lost):
        return str(lost[0])
    if trials.is_empty():
        return f"no trials of {method} in {env}"
    return f"no {what} of {method} in {env}"


def _success(evidence: Evidence, question: Question, side: Side, env: str) -> Sample:
    if side.method in FLOORS:
        return _floor(evidence, question, side.method, env)
    method = side.method or "lewm"
    own = {
        key: episodes
        for key, episodes in evidence.episodes.items()
        if key[: GROUP.index("profile")] == (method, env)
    }
    if not own:
        raise Missing(_nothing(evidence, env, method, "planned episodes"))
    protocols = {key[GROUP.index("protocol")] for key in own}
    protocol = question.protocol
    if protocol not in protocols:
        raise Missing(f"no episodes of {method} under protocol {protocol}")
    keys = [key for key in own if key[GROUP.index("protocol")] == protocol]
    points = sorted({point for key in keys for point in _points_of(own[key])})
    chosen = list(points)
    if side.value_of:
        chosen = _matching(points, side.value_of)
        if not chosen:
            keys = [key for key in keys if _is_setting(key, side.value_of)]
            chosen = points
        if not keys or not chosen:
            raise Missing(f"no point or evaluation setting {side.value_of[0]}")
    at = [
        (_mean(own[key], point), str(key), point, key)
        for key in keys
        for point in chosen
        if point in _points_of(own[key])
    ]
    if not at:
        raise Missing(f"no episodes at {' or '.join(chosen)}")
    _, _, point, key = max(at, key=lambda one: (one[0], one[1], one[2]))
    episodes = own[key]
    pairs = tuple(episodes.pairs(point))
    if not pairs:
        raise Missing(f"the seeds of {method} at {point or 'its point'} have no pairs in common")
    matrix = episodes.matrix(point, pairs)
    values = dict(zip(episodes.seeds(point), matrix.mean(axis=1).tolist(), strict=True))
    place = dict(zip(GROUP, key, strict=True)) | {"point": point, "lam": episodes.lams[point]}
    return Sample(values, place, lambda chosen: episodes.matrix(point, chosen), pairs)


def _points_of(episodes: Episodes) -> set[str]:
    return {point for point, _ in episodes.runs}


def _mean(episodes: Episodes, point: str) -> float:
    pairs = episodes.pairs(point)
    return round(float(episodes.matrix(point, pairs).mean()), 12) if pairs else -1.0


def _floor(evidence: Evidence, question: Question, planner: str, env: str) -> Sample:
    rows = evidence.tables["planning"].filter(
        pl.col("trial_id").is_null(),
        pl.col("planner") == planner,
        pl.col("env") == env,
        pl.col("protocol") == question.protocol,
    )
    found = {(e, p): float(s) for e, p, s in rows["eval_seed", "pair_id", "success"].iter_rows()}
    if not found:
        raise Missing(f"no floor {planner} in {env} under protocol {question.protocol}")
    place = {"env": env, "planner": planner, "protocol": question.protocol}
    return Sample(
        {0: float(np.mean(list(found.values())))},
        place,
        lambda chosen: np.array([[found[pair] for pair in chosen]]),
        tuple(sorted(found)),
    )


def _point(evidence: Evidence, question: Question, side: Side, env: str, method: str) -> str:
    """The point of a side where no episodes choose it."""
    points = sorted(_rows(evidence, "trials", env, method)["point"].drop_nulls().unique())
    if not points:
        raise Missing(_nothing(evidence, env, method, "points"))
    if side.value_of and side.value_of != ("best",):
        points = _matching(points, side.value_of)
        if not points:
            raise Missing(f"no point {side.value_of[0]}")
    if len(points) == 1:
        return str(points[0])
    rows = _rows(evidence, "stability", env, method).filter(
        pl.col("metric") == "success", pl.col("runs") == "all", pl.col("point").is_in(points)
    )
    own = rows.filter(pl.col("protocol") == question.protocol)
    ranked = (rows if own.is_empty() else own).sort("mean", "point", nulls_last=False)
    if ranked.is_empty():
        raise Missing(f"{len(points)} points and no planning to choose one by")
    return str(ranked["point"][-1])


def _matching(points: Sequence[str], spellings: tuple[str, ...]) -> list[str]:
    """Points with this value of an axis; `best` is left to the caller."""
    if spellings == ("best",):
        return list(points)
    if spellings[0] in ("smallest", "largest"):
        numbers = {point: _number(point) for point in points}
        known = {point: value for point, value in numbers.items() if value is not None}
        if len(known) < 2:
            return []
        choose = min if spellings[0] == "smallest" else max
        return [choose(known, key=lambda point: known[point])]
    if spellings[0].startswith("not "):
        away = spellings[0].removeprefix("not ")
        return [point for point in points if point and not _has(point, (away,))]
    return [point for point in points if _has(point, spellings)]


def _is_setting(key: tuple[Any, ...], spellings: tuple[str, ...]) -> bool:
    """Whether an evaluation setting is meant: by its planner, or a value of its evaluation axes."""
    planner, eval_point = key[GROUP.index("planner")], key[GROUP.index("eval_point")]
    return planner in spellings or _has(eval_point or "", spellings)


def _has(point: str, spellings: tuple[str, ...]) -> bool:
    values = [part.partition("=")[2] for part in point.split(" ") if part]
    return any(_same(value, spelling) for value in values for spelling in spellings)


def _same(value: str, spelling: str) -> bool:
    try:
        return float(value) == float(spelling)
    except ValueError:
        return value.lower() == spelling.lower()


def _number(point: str) -> float | None:
    """The value of the first axis with a number."""
    for part in point.split(" "):
        try:
            return float(part.partition("=")[2])
        except ValueError:
            continue
    return None


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
    point = _point(evidence, question, question.high, env, method)
    rows = _rows(evidence, "comparison", env, method).filter(
        pl.col("other_kind") == "control",
        pl.col("event") == question.event,
        pl.col("point") == point,
    )
    if rows.is_empty():
        raise Missing(_nothing(evidence, env, method, f"surprise at {question.event}"))
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
    rows = _rows(evidence, "comparison", env, method).filter(
        pl.col("other_kind") == "point", pl.col("metric") == "success"
    )
    rows = rows.filter(pl.col("protocol") == question.protocol)
    own = [row for row in rows.to_dicts() if (question.axis or "") in row["point"]]
    if question.least is not None:
        own = [row for row in own if (_number(row["point"]) or 0.0) >= question.least]
        own = [row for row in own if (_number(row["other"]) or 0.0) >= question.least]
    if not own:
        where = "" if question.least is None else f" with values from {question.least:g}"
        raise Missing(f"no comparison of points of {question.axis}{where}")
    return own


def plateau_ends(evidence: Evidence, question: Question, env: str) -> tuple[Row, Row]:
    """The ends of the λ plateau, as the report has them.

    Raises:
        Missing: no plateau was found, or its ends are not certain.
    """
    rows = _rows(evidence, "summary", env, "lewm").filter(pl.col("protocol") == question.protocol)
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
