"""Numbers as a reader sees them; formats, never computes."""

import re
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
DASH = "–"
NO_BREAK = "\N{NO-BREAK SPACE}"


def percent(value: float | None) -> str:
    """A fraction as percent; a dash for none."""
    return DASH if value is None else f"{100 * value:.0f} %"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits with a proper minus sign; a dash for none."""
    if value is None:
        return DASH
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    if e:
        text = f"{mantissa} × 10{_superscript(int(exponent))}"
    return text.replace("-", "−")


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def percent_span(row: Row) -> str:
    """A rate's interval in percent."""
    if row["ci_low"] is None:
        return DASH
    return f"{100 * row['ci_low']:.0f}{DASH}{100 * row['ci_high']:.0f} %"


def number_span(row: Row, digits: int = 3) -> str:
    """An interval in the quantity's unit."""
    if row["ci_low"] is None:
        return DASH
    return f"{number(row['ci_low'], digits)} to {number(row['ci_high'], digits)}"


def points(value: float | None) -> str:
    """A difference of rates in percentage points, signed."""
    return DASH if value is None else f"{100 * value:+.0f}".replace("-", "−")


def points_span(row: Row) -> str:
    """The interval of a difference of rates, in percentage points."""
    if row["ci_low"] is None:
        return DASH
    return f"{points(row['ci_low'])} to {points(row['ci_high'])}"


def p_value(value: float | None) -> str:
    """A p-value, small ones as a bound."""
    if value is None:
        return DASH
    return f"{value:.2g}" if value >= 1e-3 else "< 0.001"


def between(values: list[int | None], noun: str) -> str:
    """`3 seeds` or `2–3 seeds`: what n is, over several points."""
    known = sorted({value for value in values if value is not None})
    if not known:
        return f"no {noun}s"
    span = str(known[0]) if len(known) == 1 else f"{known[0]}{DASH}{known[-1]}"
    return f"{span} {noun}{'' if known[-1] == 1 else 's'}"


def world(env: str) -> str:
    """`two_room` as `Two-Room`."""
    return "-".join(part.capitalize() for part in env.split("_"))


METHODS = {"lewm": "LeWM", "pldm": "PLDM", "dino_wm": "DINO-WM"}


def method(name: str) -> str:
    """`dino_wm` as `DINO-WM`."""
    return METHODS.get(name) or name.replace("_", " ")


PLANNERS = {"cem": "CEM", "icem": "iCEM", "mppi": "MPPI", "gradient": "gradient-descent"}


def planner(name: str) -> str:
    """`cem` as `CEM`."""
    return PLANNERS.get(name, name)


def slug(words: str) -> str:
    """The words as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")


def duration(seconds: float | None) -> str:
    """Seconds as a reader's unit."""
    if seconds is None:
        return DASH
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cell(value: object) -> str:
    """A value of a data table: numbers with four significant digits, a dash for none."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, 4) if isinstance(value, float) else str(value)


def sentence(words: str) -> str:
    """The words with a capital, λ left as it is."""
    return words if words.startswith("λ") else words[:1].upper() + words[1:]


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    items = list(parts)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def size_in_points(value: float | None) -> str:
    """A size of a rate in percentage points, without a sign; one decimal below ten."""
    if value is None:
        return DASH
    return f"{100 * value:.1f}" if abs(value) < 0.0995 else f"{100 * value:.0f}"


def size_span(row: Row) -> str:
    """The interval of a size in percentage points."""
    if row["ci_low"] is None:
        return DASH
    return f"{size_in_points(row['ci_low'])} to {size_in_points(row['ci_high'])}"


def chance(value: float) -> str:
    """A probability from draws; the ends are bounds, not certainties."""
    if value < 0.005:
        return "< 1 %"
    return "> 99 %" if value > 0.995 else f"{100 * value:.0f} %"


def bound(words: str) -> str:
    """The words with numbers bound to their signs and units, so that no line breaks between them."""
    words = re.sub(r"(?<=[λ=<>pnr±]) (?=[=<>±\d])", NO_BREAK, words)
    return re.sub(r"(?<=\d) (?=%|points?\b|seeds?\b|×)", NO_BREAK, words)
