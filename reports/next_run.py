"""Where the spread comes from, and the command that would make the answer surer."""

import shlex
from collections.abc import Mapping
from typing import Any

from reports import text
from reports.views import Row, World, setting_name

SOURCES = ("seed", "eval_seed", "pair", "seed_by_eval", "residual")
DROPPED_WITH_VALUE = ("--seeds", "--grid", "--retry", "--only")
DROPPED = ("--dry-run",)
FIRST_SEEDS = 3
"""Seeds to ask for where there are too few to say how many are needed."""


def variance_table(world: World, setting: Row) -> Row:
    """The split of the variance at the best point, its sources as rows; empty where it cannot be told."""
    rows = []
    for source in SOURCES:
        row = world.summary(f"variance_{source}", **setting)
        if row and (row["value"] is not None or source != "seed"):
            name, _, told = str(row["text"]).partition(": ")
            share = row["value"]
            rows.append(
                {
                    "name": name,
                    "share": share,
                    "words": text.percent(share),
                    "told": told,
                    "n": row["n"] or text.DASH,
                }
            )
    first = world.summary("variance_seed", **setting)
    return {
        "name": setting_name(setting),
        "best": world.summary("best_point", **setting).get("text") or "",
        "rows": sorted(rows, key=lambda row: -(row["share"] or 0)),
        "told": str(first.get("text") or "") if not rows else "",
        "method": str(first.get("ci_method") or ""),
        "finding": _finding(rows),
    }


def _finding(rows: list[Row]) -> str:
    known = [row for row in rows if row["share"] is not None]
    if not known:
        return ""
    top = max(known, key=lambda row: row["share"])
    return f"{text.percent(top['share'])} of the variance of an episode's outcome comes from {top['name']}"


def next_steps(world: World, meta: Mapping[str, Any], num_worlds: int) -> list[Row]:
    """What to run next, in order: sentence and command."""
    command = str(meta.get("command") or "")
    steps = []
    missing = [world.summary(f"{noun}_missing") for noun in ("trials", "cells")]
    lacking = [str(row["text"]) for row in missing if row.get("value")]
    if lacking:
        retry = ["--retry", "failed"] if world.summary("trials_failed").get("value") else []
        words = f"First finish this sweep: {'; '.join(lacking)}."
        if unavailable := world.rows("trials", status="unavailable"):
            words += f" What is lacking: {unavailable[0]['error']}."
        steps.append({"words": words, "command": sweep_command(command, retry)})
    if world.main:
        steps += _to_halve(world, world.main, command, num_worlds)
    return [step for step in steps if step["words"]]


def _to_halve(world: World, main: Row, command: str, num_worlds: int) -> list[Row]:
    """The runs that would halve the half-width at the best point of the verdict."""
    best = world.summary("best_point", **main)
    now = world.summary("half_width", **main)
    seeds, pairs = (world.summary(f"{noun}s_to_halve", **main) for noun in ("seed", "pair"))
    axes = point_options(str(best["point"]))
    where = " (other worlds of the sweep get them too)" if num_worlds > 1 else ""
    told = ""
    if now.get("value") is not None:
        width = text.size_in_points(now["value"])
        design = str(now["text"]).removeprefix("expected 95 % half-width ")
        told = f"The expected 95 % half-width at {best['text']} is {width} points now, {design}. "
    if seeds.get("value") is not None:
        n = round(seeds["value"])
        words = (
            f"{told}To halve it: {n} training seeds at this point{where}, the old ones included."
        )
        steps = [
            {"words": words, "command": sweep_command(command, [*axes, "--seeds", f"0-{n - 1}"])}
        ]
    elif now.get("value") is None:
        success = world.summary("best_success", **main)
        n = max(FIRST_SEEDS, 2 * (success.get("n") or 1))
        why = world.summary("variance_seed", **main).get("text") or "the split of the variance"
        words = (
            f"How many seeds would halve the uncertainty is {why}. Begin with {n} seeds at "
            f"{best['text']}{where}."
        )
        steps = [
            {"words": words, "command": sweep_command(command, [*axes, "--seeds", f"0-{n - 1}"])}
        ]
    else:
        steps = [{"words": f"{told}{text.sentence(str(seeds.get('text') or ''))}.", "command": ""}]
    if pairs.get("value") is not None:
        n = round(pairs["value"])
        words = (
            f"Or, without training anything: {n} start/goal pairs per evaluation seed. A changed number of pairs is a "
            "sweep folder of its own; it shares the trained models."
        )
        new = ["--set", f"planning.num_pairs={n}"]
        steps.append({"words": words, "command": sweep_command(command, new, keep_axes=True)})
    return steps


def point_options(point: str) -> list[str]:
    """The options that ask for one point only: `loss.lam=0.1 model.depth=2` as two axes of one value."""
    parts = [part for part in point.split(" ") if "=" in part]
    return [word for part in parts for word in ("--grid", part)]


def sweep_command(command: str, more: list[str], keep_axes: bool = False) -> str:
    """The sweep's own command with other seeds and axes; empty where the sweep does not tell it.

    Args:
        command: as given, e.g. `python -m pipeline.sweep lambda --storage /data`.
        more: options put at the end.
        keep_axes: keep its seeds and axes.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if not words:
        return ""
    dropped = ("--retry", "--only") if keep_axes else DROPPED_WITH_VALUE
    if more[:1] == ["--retry"] or not more:
        dropped = ("--retry", "--only")
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name in dropped:
            skip = not equals
        elif name not in DROPPED:
            kept.append(word)
    return shlex.join([*kept, *more])
