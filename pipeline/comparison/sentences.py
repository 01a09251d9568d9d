"""What two sweeps' differences say together, in sentences; what only one has, what is missing."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from pipeline.comparison.points import Match, Row, Sweep, by_lam
from pipeline.stages.stability import words
from pipeline.stages.stability.differences import MARGIN
from pipeline.stages.stability.episodes import GROUP
from pipeline.stages.stability.summarise import strictest_first


def summary_rows(first: Sweep, second: Sweep, matches: list[Match], rows: list[Row]) -> list[Row]:
    """Sentences: the verdict from the strictest protocol, a finding per setting, what only one has."""
    told = []
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["metric"] == "success":
            settings.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    for env, method, profile in dict.fromkeys(
        (m.second["env"], m.second["method"], m.second["profile"]) for m in matches
    ):
        world = {"env": env, "method": method, "profile": profile}
        own = {k: v for k, v in settings.items() if k[:3] == (method, env, profile)}
        for key, found in own.items():
            place = dict(zip(GROUP, key, strict=True))
            text = _finding(first, second, place, found)
            told.append({**place, "quantity": "finding_success", "text": text, "n": len(found)})
        main = min(own, key=strictest_first, default=None)
        text = "There is no verdict yet: the sweeps have no point in common that both planned with."
        if main is not None:
            text = _finding(first, second, dict(zip(GROUP, main, strict=True)), own[main])
        told.append(
            {**world, "quantity": "verdict", "text": text, "n": len(own.get(main or (), []))}
        )
        told.append({**world, "quantity": "pairing", **_pairing(own)})
    told.append(
        {"quantity": "points_common", "value": len(matches), **_common(first, second, matches)}
    )
    for name, sweep, side in (("first", first, "first"), ("second", second, "second")):
        known = {_place(getattr(match, side)) for match in matches}
        only = [row for row in sweep.points.to_dicts() if _place(row) not in known]
        label = [_label(row) for row in sorted(only, key=lambda r: (r["env"], *by_lam(r)))]
        text = (
            f"only in {sweep.name}: {', '.join(label)}"
            if only
            else f"no point is only in {sweep.name}"
        )
        told.append({"quantity": f"points_only_{name}", "value": len(only), "text": text})
        missing = sweep.tables["summary"].filter(
            pl.col("quantity").is_in(["trials_missing", "cells_missing"]), pl.col("value") > 0
        )
        for row in missing.iter_rows(named=True):
            text = f"{sweep.name}, {row['method']} in {row['env']}: {row['text']}"
            told.append({"quantity": f"missing_{name}", "value": row["value"], "text": text})
    return told


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("method", "env", "point"))


def _label(row: Row) -> str:
    return f"{words.label(row['point'], row['lam'])} ({row['method']} in {row['env']})"


def _common(first: Sweep, second: Sweep, matches: list[Match]) -> Row:
    """How many points are common, and how many of their trials are the very same ones."""
    trials = [set(sweep.tables["trials"]["trial_id"].drop_nulls()) for sweep in (first, second)]
    shared = len(trials[0] & trials[1])
    text = f"{words.count(len(matches), 'point')} in common"
    if shared:
        verb = "trial belongs" if shared == 1 else "trials belong"
        text += f"; {shared} {verb} to both sweeps, so there nothing can differ but the evaluation"
    return {"text": text, "n": shared}


def _finding(first: Sweep, second: Sweep, place: Row, rows: list[Row]) -> str:
    """What the differences of a setting say together, at each point that is decided."""
    tested = [row for row in rows if row.get("p_adjusted") is not None]
    alike = [row for row in rows if row["p_value"] is None and row["paired"] and row["diff"] == 0]
    begin = f"Under the {place['protocol']} protocol {second.name}, against {first.name} at "
    begin += f"{words.count(len(rows), 'common point')}, "
    clear = [row for row in tested if row["p_adjusted"] < 0.05]
    equal = [row for row in tested if row not in clear and row["p_equivalence"] < 0.05]
    parts = []
    for found, verb in (
        ([row for row in clear if row["diff"] > 0], "plans better"),
        ([row for row in clear if row["diff"] < 0], "plans worse"),
    ):
        if found:
            parts.append(f"{verb} at {words.listed(map(_told, _sorted(found)))}")
    if equal:
        parts.append(
            f"is equal within {100 * MARGIN:.0f} points at {_names(equal)} (each tested by itself)"
        )
    if alike:
        parts.append(f"ends every episode alike at {_names(alike)}")
    open_ones = [row for row in rows if not any(row in known for known in (clear, equal, alike))]
    if open_ones and not parts:
        return f"{begin}is neither better nor worse beyond doubt: {_shown(open_ones)}."
    if open_ones:
        parts.append(f"not decided: {_shown(open_ones)}")
    return f"{begin}{'; '.join(parts)}."


def _names(rows: list[Row]) -> str:
    return words.listed(_name(row) for row in _sorted(rows))


def _shown(rows: list[Row]) -> str:
    return words.listed(f"{_points(row['diff'])} points at {_name(row)}" for row in _sorted(rows))


def _points(value: float) -> str:
    return f"{100 * value:+.0f}".replace("-", "−")


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=by_lam)


def _name(row: Row) -> str:
    return words.label(row["point"], row["lam"])


def _told(row: Row) -> str:
    low, high = (_points(row[end]) for end in ("ci_low", "ci_high"))
    interval, p_value = f"95 % interval {low} to {high}", words.p_text(row["p_adjusted"])
    return f"{_name(row)} ({_points(row['diff'])} points, {interval}, {p_value})"


def _pairing(settings: Mapping[tuple[Any, ...], list[Row]]) -> Row:
    """How many of the success rows are paired, and what the others are."""
    rows = [row for found in settings.values() for row in found]
    paired = sum(row["paired"] for row in rows)
    if not rows:
        return {"value": 0, "text": "no success to compare yet", "n": 0}
    text = (
        f"{paired} of {words.count(len(rows), 'difference')} in success paired on seeds and pairs"
    )
    if paired < len(rows):
        text += "; the others are not (other training seeds, or other start/goal pairs)"
    return {"value": paired, "text": text, "n": len(rows)}
