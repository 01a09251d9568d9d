"""When a claim counts as reproduced: one rule per kind, on intervals alone."""

from collections.abc import Sequence

from pipeline.stats.intervals import Interval

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
NOT_TESTED, NOT_RUN = "not tested at this scale", "not run"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_TESTED, NOT_RUN)
KINDS = ("absolute", "order", "direction", "plateau", "ratio")
ABSOLUTE = ("absolute", "ratio")
"""Kinds that speak of a number: judged at profile `paper` only."""

RULES = {
    "absolute": "A published number. Judged at profile paper only: reproduced if the 95 % interval of ours "
    "less the published value lies within the margin; not reproduced if it lies outside; else undecided.",
    "order": "One side above another. Reproduced if the 95 % interval of the difference lies above zero (or "
    "of the value, above the level), not reproduced if it lies below, else undecided.",
    "direction": "An effect of a control or a test, judged as an order.",
    "plateau": "No difference that matters. Reproduced if every 95 % interval of the difference lies within "
    "the margin, not reproduced if one lies outside, else undecided. Of λ: reproduced if the plateau is at "
    "least as wide as the stated factor between the uncertain ends nearest each other, not reproduced if not "
    "even between the farthest.",
    "ratio": "A published factor. Judged at profile paper only: reproduced if the 95 % interval of ours lies "
    "within the published factor times or over one plus the margin; not reproduced if outside.",
}
"""The rules in words, by kind."""


def within(interval: Interval | None, low: float, high: float) -> str:
    """Reproduced inside [low, high], not reproduced outside; undecided where it reaches over an end."""
    if interval is None:
        return UNDECIDED
    if low <= interval.low and interval.high <= high:
        return REPRODUCED
    apart = interval.high < low or interval.low > high
    return NOT_REPRODUCED if apart else UNDECIDED


def above(interval: Interval | None, level: float = 0.0) -> str:
    """Reproduced above the level, not reproduced below it."""
    if interval is None:
        return UNDECIDED
    if interval.low > level:
        return REPRODUCED
    return NOT_REPRODUCED if interval.high < level else UNDECIDED


def near(published: float, margin: float) -> tuple[float, float]:
    """Where a ratio counts as the published one."""
    return published / (1 + margin), published * (1 + margin)


def flat(intervals: Sequence[Interval | None], margin: float) -> str:
    """Reproduced if all differences lie within the margin, not reproduced if one does not."""
    found = [within(interval, -margin, margin) for interval in intervals]
    if not found or NOT_REPRODUCED in found:
        return NOT_REPRODUCED if found else UNDECIDED
    return UNDECIDED if UNDECIDED in found else REPRODUCED


def permitted(kind: str, profile: str, profiles: Sequence[str] = ()) -> bool:
    """Whether a run of this profile may decide a claim of this kind.

    Args:
        profiles: those that the claim itself admits; all if empty.
    """
    if kind in ABSOLUTE and profile != "paper":
        return False
    return not profiles or profile in profiles
