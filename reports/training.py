"""Latent health against λ, and training curves."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from reports import text
from reports.curves import Curve, Curves, curve_chart, drawable, point_limit, rounded, thin
from reports.figures import Figure, point_chart, rows_behind, state
from reports.views import EMBEDDING, Row, World, intervals

HEALTH: tuple[tuple[str, str, str, bool, tuple[float, str] | None], ...] = (
    ("mean_std", "standard deviation", "mean std (latent units)", True, (1.0, "target 1")),
    ("epps_pulley", "Epps–Pulley distance", "Epps–Pulley per sample", True, None),
    ("effective_rank", "effective rank", "effective rank (dims)", True, None),
    ("straightness", "straightness", "straightness (cosine)", False, None),
)
MEANINGS = {
    "mean_std": "Standard deviation per dimension, averaged over dimensions.",
    "epps_pulley": "Distance to N(0, 1) along random directions.",
    "effective_rank": "Exponential of the entropy of the spectrum.",
    "straightness": "Mean cosine between successive steps, −1 to 1.",
}
CURVES: tuple[tuple[str, str, str, bool], ...] = (
    ("pred_loss", "training prediction loss", "training loss (MSE)", True),
    ("val_pred_loss", "validation prediction loss", "validation loss (MSE)", True),
    ("sigreg_loss", "SIGReg statistic", "SIGReg (unitless)", True),
    ("mean_std", "standard deviation", "mean std (latent units)", False),
)


def health_figures(world: World, prefix: str) -> list[Figure]:
    """Latent health of the projected embedding against λ."""
    figures = []
    for metric, name, quantity, zero, reference in HEALTH:
        means, runs = world.spread(metric, layer=EMBEDDING)
        runs = [row for row in runs if row["mean"] is not None]
        if not runs:
            continue
        levels = [row["mean"] for row in runs] + ([reference[0]] if reference else [])
        spec = point_chart(
            world.axis,
            means,
            runs,
            quantity=quantity,
            y_domain=_frame_of(levels, zero),
            reference=reference,
        )
        caption = (
            f"{MEANINGS[metric]} Projected embedding, held-out clips; {text.between([r['num_seeds'] for r in means], 'seed')} "
            f"per point. {intervals(means)}"
        )
        title = extremes(world, name, means)
        columns, rows = rows_behind(means, runs)
        figures.append(Figure(f"{prefix}-{metric}", title, caption, spec, 210, columns, rows))
    return figures


def extremes(world: World, name: str, means: list[Row]) -> str:
    """A quantity at the best point, and where it is lowest and highest."""
    known = [row for row in means if row["mean"] is not None]
    here = [row for row in known if row["point"] == world.best_point]
    if not known:
        return text.sentence(name)
    low, high = min(known, key=_mean), max(known, key=_mean)
    words = (
        f"{text.sentence(name)} is {text.number(here[0]['mean'])} at {_at(world, here[0])}"
        if here
        else ""
    )
    ends = [
        f"{label} {text.number(row['mean'])} at {_at(world, row)}"
        for label, row in (("lowest", low), ("highest", high))
        if row not in here
    ]
    if len(known) == 1:
        return words or f"{text.sentence(name)} is {text.number(low['mean'])} at {_at(world, low)}"
    return f"{words}; {', '.join(ends)}" if words else f"{text.sentence(name)}: {', '.join(ends)}"


def _mean(row: Row) -> float:
    mean: float = row["mean"]
    return mean


def _at(world: World, row: Row) -> str:
    return world.axis.name(row["point"])


def _frame_of(levels: list[float], zero: bool) -> tuple[float, float]:
    """An axis that shows every run; whiskers may leave it."""
    low, high = min(levels), max(levels)
    pad = 0.12 * (high - min(low, 0.0) if zero else high - low) or 0.1
    return (-0.4 * pad if zero and low >= 0 else low - pad), high + pad


def curve_figures(world: World, prefix: str, points: Sequence[str]) -> list[Figure]:
    """Training curves, every seed a line.

    Args:
        points: of the whole sweep, in the order of their colours.
    """
    table = world.tables["curves"]
    if table.is_empty():
        return []
    frame = table.sort("lam", "point", "seed", "step")
    limit = point_limit(frame["trial_id"].n_unique())
    states = _states(world)
    names = [world.axis.name(point) for point in points]
    drawn = [
        (
            f"{prefix}-curve-{metric}",
            _curve_title(world, metric, name),
            frame,
            metric,
            quantity,
            log,
        )
        for metric, name, quantity, log in CURVES
    ]
    drawn += [
        (f"{prefix}-term-{term}", _term_title(term), rows, "value", "term (unweighted)", True)
        for term, rows in _terms(world)
    ]
    figures = []
    for stem, title, rows, metric, quantity, log in drawn:
        shown = thin(rows.filter(drawable(metric, log)), limit)
        curves = Curves(tuple(_lines(world, shown, metric, states)))
        if not curves.lines:
            continue
        caption = (
            f"{text.sentence(text.between([len(curves.lines)], 'run'))}, each a line; no interval. Thinned to every "
            f"k-th measured step and the last, k the smallest that leaves about {limit} points; "
            "nothing is averaged."
        )
        figures.append(
            Figure(
                stem,
                title,
                caption,
                curve_chart(curves, names, quantity, log),
                230,
                ("run", "trial", "state", "last_step", "last_value"),
                tuple(
                    (c.run, c.trial, c.state, c.steps[-1], c.values_drawn[-1]) for c in curves.lines
                ),
                curves,
            )
        )
    return figures


def _terms(world: World) -> list[tuple[str, pl.DataFrame]]:
    """The further loss terms of the world's method, each with its rows."""
    table = world.tables.get("loss_terms")
    if table is None or table.is_empty():
        return []
    table = table.sort("lam", "point", "seed", "step")
    terms = table["term"].unique(maintain_order=True)
    return [(term, table.filter(pl.col("term") == term)) for term in terms]


def _term_title(term: str) -> str:
    return f"Loss term {term.replace('_', ' ')} on training batches, before its weight"


def _curve_title(world: World, metric: str, name: str) -> str:
    """The finding of a curve: its last value per point, from the `stability` table."""
    where = {"layer": EMBEDDING} if metric == "mean_std" else {}
    means = world.spread(metric, **where)[0]
    return extremes(world, f"final {name}", means)


def _states(world: World) -> dict[str, str]:
    """What became of each trial."""
    fates = {
        (row["point"], row["runs"]): state(row)
        for row in world.spread("mean_std", layer=EMBEDDING)[1]
    }
    return {
        row["trial_id"]: "diverged"
        if row["status"] == "diverged"
        else fates.get((row["point"], f"seed={row['seed']}"), "healthy")
        for row in world.rows("trials")
    }


def _lines(world: World, frame: pl.DataFrame, metric: str, states: dict[str, str]) -> list[Curve]:
    grouped = frame.group_by("trial_id", "point", "seed", maintain_order=True)
    found = grouped.agg("step", pl.col(metric).alias("value"))
    lines = []
    for row in found.iter_rows(named=True):
        name = world.axis.name(str(row["point"]))
        values: list[Any] = row["value"]
        lines.append(
            Curve(
                f"{name}, seed {row['seed']}",
                str(row["trial_id"]),
                name,
                states.get(row["trial_id"], "healthy"),
                tuple(row["step"]),
                tuple(rounded(value) for value in values),
            )
        )
    return lines
