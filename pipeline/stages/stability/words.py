"""Numbers and names as the sentences of the tables say them."""

from collections.abc import Iterable
from typing import Any

from pipeline import stats

Row = dict[str, Any]
LAM_KEY = "loss.lam="


def label(point: str | None, lam: float | None) -> str:
    """A point for readers: `λ = 0.1`, further swept parameters behind it: `λ = 0.1, knots = 9`."""
    parts = [f"λ = {lam:g}"] if lam is not None and LAM_KEY in (point or LAM_KEY) else []
    for part in apart_from_lam(point or "").split():
        key, _, value = part.partition("=")
        parts.append(f"{key.rpartition('.')[2].replace('_', ' ')} = {value.removesuffix('.0')}")
    return ", ".join(parts) or "the only point"


def apart_from_lam(point: str) -> str:
    """The canonical point string without λ."""
    return " ".join(part for part in point.split(" ") if not part.startswith(LAM_KEY))


def setting(planner: str, eval_point: str) -> str:
    """A planner with its evaluation settings: `cem`, `cem planning.horizon=5`."""
    return f"{planner} {eval_point}".strip()


def percent(value: float) -> str:
    """A fraction as whole percent."""
    return f"{100 * value:.0f} %"


def span(row: Row) -> str:
    """A rate's interval as percent."""
    return f"{100 * row['ci_low']:.0f}–{100 * row['ci_high']:.0f} %"


def count(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listed(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    items = list(parts)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def number(value: float) -> str:
    """Three significant digits, no exponent for ordinary sizes."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def p_text(p_value: float) -> str:
    """A p-value; below 0.001 only the bound's order."""
    return f"p = {p_value:.2g}" if p_value >= 1e-3 else "p < 0.001"


def plateau_text(found: stats.Plateau, margin: float, surety: float | None) -> str:
    """The plateau in words, open ends named.

    Args:
        surety: how likely the least likely of its points lies within the margin; None: not told.
    """
    inside = f"within {100 * margin:.0f} points of the best"
    if found.num_points == 1:
        return f"only λ = {found.low:g} is {inside}: the plateau is narrower than the grid"
    text = f"success stays {inside} at the {found.num_points} tested λ from {found.low:g} to {found.high:g}"
    open_ends = [
        f"{which} tested"
        for which, reached in (
            ("smallest", found.reaches_low_end),
            ("largest", found.reaches_high_end),
        )
        if reached
    ]
    if open_ends:
        text += f" ({listed(open_ends)}: it may reach further)"
    if surety is not None:
        text += f", the least certain of them with probability {percent(surety)}"
    return text
