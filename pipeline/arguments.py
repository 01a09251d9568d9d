"""Values given on the command line: assignments, axes, seeds."""

import tomllib
from collections.abc import Iterable, Sequence
from typing import Any

from lewm.spelling import nearest


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` with the value read as TOML (`0.1`, `true`, `[1, 2]`), else as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise ValueError(f"{text!r} is not key=value, e.g. loss.lam=0.1")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`key=v1,v2,...` as one axis of the grid."""
    key, equals, values = text.partition("=")
    parts = [part for part in values.strip("[] ").split(",") if part.strip()]
    if not equals or not parts:
        raise ValueError(f"{text!r} is not key=v1,v2,..., e.g. loss.lam=0,0.1,0.3")
    return key.strip(), [parse_assignment(f"{key}={part}")[1] for part in parts]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` or `0-4` as seeds."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise ValueError(f"--seeds {text!r}: expected 0,1,2 or 0-4") from None
    return check_seeds(seeds, "--seeds")


def check_seeds(seeds: Iterable[Any], where: str) -> tuple[int, ...]:
    """Training seeds as a tuple.

    Raises:
        ValueError: none, duplicates, or not natural numbers.
    """
    chosen = tuple(seeds)
    if not chosen:
        raise ValueError(f"{where}: seeds is empty; give at least one, e.g. seeds = [0, 1, 2]")
    for seed in chosen:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(f"{where}: seed {seed!r} is not a whole number from 0 to 2^32 - 1")
    if len(set(chosen)) != len(chosen):
        twice = next(seed for seed in chosen if chosen.count(seed) > 1)
        raise ValueError(f"{where}: seed {twice} is given twice")
    return chosen


def check_stages(text: str | None, known: Sequence[str]) -> tuple[str, ...] | None:
    """The stages of `--only`; None without one.

    Raises:
        ValueError: a stage that the sweep does not have.
    """
    if text is None:
        return None
    stages = tuple(part.strip() for part in text.split(","))
    for stage in stages:
        if stage not in known:
            near = nearest(stage, known)
            raise ValueError(
                f"--only: {stage!r} is not a stage of this sweep{near}; known: {', '.join(known)}"
            )
    return stages
