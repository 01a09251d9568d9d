"""What a finished sweep's tables say of a question: values per seed, episodes, differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from pipeline.claims.read import PUBLISHED_ENV, Question, Side
from pipeline.stages.stability.episodes import GROUP, Episodes, Matrix, Pair, read_episodes

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
    point = point_of(evidence, question, side, env, method)
    if question.metric == "num_params":
        rows = rows_of(evidence, "trials", env, method).filter(pl.col("point") == point)
        rows = rows.filter(pl.col("num_params").is_not_null())
        values = dict(rows.select("seed", pl.col("num_params").cast(pl.Float64)).iter_rows())
    else:
        rows = rows_of(evidence, "stability", env, method).filter(
            pl.col("metric") == question.metric,
            pl.col("runs").str.starts_with("seed="),
            pl.col("point") == point,
            pl.col("layer").is_null() | (pl.col("layer") == PROJECTED),
            *_of_event(question),
        )
        per_seed = rows.group_by("runs").agg(pl.col("mean").mean()).sort("runs")
        values = {int(runs[5:]): mean for runs, mean in per_seed.iter_rows() if mean is not None}
    if not values:
        raise Missing(nothing_of(evidence, env, method, question.metric))
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


def rows_of(evidence: Evidence, table: str, env: str, method: str) -> pl.DataFrame:
    """A table's rows of one method in one environment.

    Raises:
        Missing: there is no such table.
    """
    frame = evidence.tables.get(table)
    if frame is None:
        raise Missing(f"no table {table}")
    return frame.filter(pl.col("env") == env, pl.col("method") == method)


def nothing_of(evidence: Evidence, env: str, method: str, what: str) -> str:
    """Why there is nothing: the trials' own line where they could not run here."""
    trials = rows_of(evidence, "trials", env, method)
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
        raise Missing(nothing_of(evidence, env, method, "planned episodes"))
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


def point_of(evidence: Evidence, question: Question, side: Side, env: str, method: str) -> str:
    """The point of a side where no episodes choose it."""
    points = sorted(rows_of(evidence, "trials", env, method)["point"].drop_nulls().unique())
    if not points:
        raise Missing(nothing_of(evidence, env, method, "points"))
    if side.value_of and side.value_of != ("best",):
        points = _matching(points, side.value_of)
        if not points:
            raise Missing(f"no point {side.value_of[0]}")
    if len(points) == 1:
        return str(points[0])
    rows = rows_of(evidence, "stability", env, method).filter(
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
        numbers = {point: axis_number(point) for point in points}
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


def axis_number(point: str) -> float | None:
    """The value of the first axis with a number."""
    for part in point.split(" "):
        try:
            return float(part.partition("=")[2])
        except ValueError:
            continue
    return None
