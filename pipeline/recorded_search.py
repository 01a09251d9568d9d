"""Searches simulated or replayed on what a finished sweep recorded, and the rows that they leave."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from lewm.spelling import nearest
from pipeline.results import final_metrics
from pipeline.search import replay
from pipeline.search.replay_rows import costs, replay_rows
from pipeline.search.replay_rows import finding as replay_finding
from pipeline.search.settings import (
    Choices,
    Optuna,
    Overrides,
    Range,
    Search,
)
from pipeline.search.simulation import (
    GRID_SEEDS,
    KEY,
    STRATEGIES,
    Cost,
    Curve,
    Plateau,
    cost,
    find_plateau,
    make_curve,
    run_all,
)
from pipeline.search.simulation_rows import (
    Question,
    Row,
    search_rows,
    share_rows,
    summary_rows,
    trials_text,
    write_rows,
)
from pipeline.storage import Storage
from pipeline.tables import read_table

METRIC_TABLES = ("curves", "latents", "planning", "probing", "surprise")


def simulate_sweep(
    sweep: Storage, question: Question, progress: Callable[[str, int, int], None]
) -> list[str]:
    """Simulates on every world of a sweep and writes the rows into its tables; returns what it found.

    Args:
        sweep: its folder.

    Raises:
        ValueError: the sweep's results are no curve over λ.
    """
    tables = {name: read_table(sweep, name) for name in ("trials", *METRIC_TABLES)}
    worlds = tables["trials"].select("method", "env", "profile").unique().sort("method", "env")
    if worlds.is_empty():
        raise ValueError(f"{sweep.uri} has no trials in its tables yet: run the sweep first")
    rows: dict[str, list[Row]] = {"search": [], "profiles": [], "summary": []}
    lines = []
    for world in worlds.iter_rows(named=True):
        values = recorded_values(tables, world, question.objective)
        curve = make_curve(values, question.objective.startswith("success_"))
        plateau = find_plateau(curve, question.mode, question.margin)
        steps = run_all(
            curve,
            question.objective,
            question.mode,
            question.budget,
            question.repetitions,
            question.seed,
            lambda strategy, done: progress(strategy, done, question.repetitions),
        )
        costs = [cost(s, steps[s], plateau, question.budget) for s in STRATEGIES]
        place = {**world, "metric": question.objective}
        rows["search"] += search_rows(place, steps, plateau)
        rows["profiles"] += share_rows(place, costs)
        rows["summary"] += summary_rows(place, question, values, plateau, costs)
        lines += _lines(world, question, curve, plateau, costs)
    write_rows(sweep, rows)
    return lines


def recorded_values(
    tables: Mapping[str, pl.DataFrame], world: Row, objective: str
) -> dict[float, list[float]]:
    """The objective by λ, one value per seed; a diverged run counts as no success.

    Args:
        world: its method, env and profile.

    Raises:
        ValueError: more than λ is swept, or no trial has this metric.
    """
    trials = tables["trials"].filter(*[pl.col(name) == value for name, value in world.items()])
    values: dict[float, list[float]] = {}
    known: set[str] = set()
    for row in trials.filter(pl.col("status").is_in(["done", "diverged"])).iter_rows(named=True):
        if row["point"] != f"{KEY}={row['lam']}":
            raise ValueError(f"a simulation is over λ alone, but this sweep has {row['point']!r}")
        metrics = final_metrics(tables, row["trial_id"]) if row["status"] == "done" else {}
        known |= {name.removeprefix("final/") for name in metrics}
        value = metrics.get(f"final/{objective}")
        if row["status"] == "diverged" and objective.startswith("success_"):
            value = 0.0
        if value is not None:
            values.setdefault(row["lam"], []).append(value)
    if not values:
        found = ", ".join(sorted(known)) or "none: no trial is finished"
        hint = nearest(objective, known)
        raise ValueError(f"no trial has a metric {objective!r}{hint}; final metrics: {found}")
    return values


def replay_sweep(
    sweep: Storage,
    other: Storage,
    search: Search,
    question: Question,
    progress: Callable[[str, int, int], None],
) -> list[str]:
    """Replays searches over several weights beside LeWM's over λ and writes the rows; returns what it found.

    Args:
        sweep: the folder of the sweep over several weights; its rows go into its tables.
        other: the folder of a sweep over λ.

    Raises:
        ValueError: the sweeps do not fit each other or the question.
    """
    if not isinstance(search, Optuna):
        raise ValueError(
            f"{sweep.uri} has not searched several weights: its search is {search.kind!r}"
        )
    if not question.objective.startswith("success_") or question.mode != "max":
        raise ValueError(
            f"searches are replayed for a success rate, the more the better; got {question.objective!r}"
        )
    search = search.model_copy(update={"objective": question.objective})
    tables, others = (
        {name: read_table(folder, name) for name in ("trials", *METRIC_TABLES)}
        for folder in (sweep, other)
    )
    world, against = _only_world(tables, sweep), _only_world(others, other)
    if (world["env"], world["profile"]) != (against["env"], against["profile"]):
        raise ValueError(
            f"{sweep.uri} is {world['env']} at profile {world['profile']}, {other.uri} is {against['env']} "
            f"at {against['profile']}: only the same can be set side by side"
        )
    values = recorded_values(others, against, question.objective)
    curve = make_curve(values, question.objective.startswith("success_"))
    pool = replay.make_pool(search, recorded_points(tables, search, question.objective))
    steps = replay.run_all(
        curve,
        pool,
        question.budget,
        question.repetitions,
        question.seed,
        lambda strategy, done: progress(strategy, done, question.repetitions),
    )
    place = {**world, "metric": question.objective}
    num_runs = sum(len(found) for lam, found in values.items() if lam > 0)
    rows = replay_rows(place, curve, pool, num_runs, steps, question.budget)
    write_rows(sweep, rows)
    told = replay_finding(costs(curve, pool, steps, question.budget), question.budget)
    floor = next(row["text"] for row in rows["summary"] if row["quantity"] == "search_floor")
    return [
        f"pools    {floor}",
        f"found    {told}",
        f"n        {question.repetitions} searches each",
    ]


def _only_world(tables: Mapping[str, pl.DataFrame], sweep: Storage) -> Row:
    worlds = tables["trials"].select("method", "env", "profile").unique().to_dicts()
    if len(worlds) != 1:
        raise ValueError(
            f"{sweep.uri} has {len(worlds)} worlds; replayed searches need exactly one"
        )
    return worlds[0]


def recorded_points(
    tables: Mapping[str, pl.DataFrame], search: Optuna, objective: str
) -> list[tuple[Overrides, float]]:
    """The first run of every point tried with its objective; a diverged one counts as no success."""
    trials = tables["trials"].filter(pl.col("status").is_in(["done", "diverged"]), seed=0)
    found = []
    for row in trials.sort("point").iter_rows(named=True):
        metrics = final_metrics(tables, row["trial_id"]) if row["status"] == "done" else {}
        value = metrics.get(f"final/{objective}")
        if row["status"] == "diverged" and search.is_rate:
            value = 0.0
        if value is not None:
            texts = dict(part.split("=", 1) for part in str(row["point"]).split(" "))
            found.append(
                ({key: _value(search.space[key], texts[key]) for key in search.keys}, value)
            )
    return found


def _value(axis: Range | Choices, text: str) -> Any:
    if isinstance(axis, Choices):
        return next(choice for choice in axis.choices if str(choice) == text)
    return float(text)


def _lines(
    world: Row, question: Question, curve: Curve, plateau: Plateau, costs: Sequence[Cost]
) -> list[str]:
    low, high = curve.span
    lines = [
        f"curve    {world['method']} {world['env']}: {question.objective} over λ {low:g} to {high:g}, plateau "
        f"{plateau.low:.2g} to {plateau.high:.2g} (within {question.margin:g} of {plateau.best:.2g})"
    ]
    for c in costs:
        end = 100 * c.shares[-1][0]
        lines.append(
            f"{c.strategy:8s} half of the searches stay on the plateau after "
            f"{trials_text(c.median, question.budget)} trials, four of five after "
            f"{trials_text(c.within(0.8), question.budget)}; {end:.0f} % are there after {question.budget}"
        )
    grid = f"{max(question.budget // GRID_SEEDS, 2)} λ × {GRID_SEEDS} seeds"
    return [*lines, f"n        {question.repetitions} searches per strategy; the grid has {grid}"]
