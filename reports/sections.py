"""The page's other tables: worlds at a glance, trials, protocols, provenance; chosen and formatted rows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from reports import text
from reports.stability import settings_of
from reports.views import Row, Tables, World


def overview(worlds: Sequence[World]) -> list[list[str]]:
    """Several worlds at a glance, a row each: the verdict's protocol, its floors, and what was learnt."""
    rows = []
    for world in worlds:
        main = world.main
        if not main:
            rows.append([_place(world), *[text.DASH] * 7])
            continue
        best, success = (world.summary(name, **main) for name in ("best_point", "best_success"))
        floors = {"protocol": main["protocol"]}
        random, oracle = (world.summary(f"floor_{name}", **floors) for name in ("random", "oracle"))
        clear = world.summary("clears_random", **main).get("value")
        at = {"point": best["point"], "runs": "all"}
        copying = world.rows("stability", metric="copy_ratio", **at)
        rows.append(
            [
                _place(world),
                str(main["protocol"]),
                str(best["text"]),
                f"{text.percent(success['value'])} ({text.percent_span(success)})",
                f"{text.percent(random['value'])} ({text.percent_span(random)})"
                if random
                else text.DASH,
                text.percent(oracle.get("value")),
                text.DASH if clear is None else "yes" if clear else "no",
                f"{text.number(copying[0]['mean'], 2)} ×" if copying else text.DASH,
            ]
        )
    return rows


def findings(worlds: Sequence[World]) -> list[tuple[str, str]]:
    """Several worlds at a glance where none plans: what was found in each."""
    return [(_place(world), str(world.summary("verdict").get("text") or "")) for world in worlds]


def _place(world: World) -> str:
    return f"{text.world(world.key['env'])} ({text.method(world.key['method'])})"


def trial_rows(world: World) -> list[Row]:
    """Every trial with its fate; failed and diverged ones first."""
    rank = {"failed": 0, "diverged": 1, "unavailable": 2, "pending": 3, "running": 3}
    rows = []
    for row in world.rows("trials"):
        notes = [row["error"], row["stop_reason"]]
        if row["diverged_step"] is not None:
            notes.append(f"not finite at step {row['diverged_step']:,}")
        rows.append(
            {
                "status": row["status"],
                "note": "; ".join(note for note in notes if note),
                "cells": [
                    world.axis.name(row["point"] or ""),
                    row["seed"],
                    row["trial_id"],
                    row["checkpoint_hash"] or text.DASH,
                    text.duration(row["wall_s"]),
                    text.number(row["peak_mem_gb"]) + " GB" if row["peak_mem_gb"] else text.DASH,
                ],
            }
        )
    return sorted(rows, key=lambda row: rank.get(str(row["status"]), 9))


LOST = ("failed", "diverged", "unavailable")


def failed_cells(world: World) -> list[Row]:
    """Evaluation cells that have failed, with their errors."""
    return [
        {"name": world.axis.name(row["point"] or ""), **row}
        for row in world.rows("cells", status="failed")
    ]


def protocol_table(world: World) -> Row:
    """Protocols as columns: their rules, the planner's sizes, the floors measured under them."""
    protocols = world.meta.get("protocols") or {}
    names = list(protocols)
    keys = list(dict.fromkeys(key for table in protocols.values() for key in table))
    rows = [
        {
            "name": PROTOCOL_WORDS.get(key, key),
            "cells": [_setting(protocols[name].get(key)) for name in names],
        }
        for key in keys
    ]
    for name, words in _planner_words(settings_of(world).get("planning") or {}):
        rows.append({"name": name, "cells": [words] * len(names)})
    floors = world.tables["stability"].filter(
        pl.col("method").is_null(), pl.col("metric") == "success"
    )
    for planner in ("random", "zero", "oracle"):
        cells = []
        for name in names:
            found = floors.filter(
                pl.col("planner") == planner, pl.col("protocol") == name
            ).to_dicts()
            cells.append(_floor(found[0]) if found else text.DASH)
        if any(cell != text.DASH for cell in cells):
            rows.append({"name": f"floor: {FLOOR_WORDS[planner]}", "cells": cells})
    return {"names": names, "rows": rows}


def _planner_words(planning: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The planner's sizes in words; nothing of what the sweep does not say."""
    known = {key: _setting(value) for key, value in planning.items()}
    needed = (
        "planner",
        "num_samples",
        "num_iterations",
        "num_elites",
        "horizon",
        "execute",
    )
    rows = []
    if all(key in known for key in needed):
        size = "{num_samples} samples × {num_iterations} iterations, {num_elites} elites"
        plan = "{horizon} blocks, {execute} executed"
        rows.append(("planner", f"{text.planner(known['planner'])}: {size.format(**known)}"))
        rows.append(("horizon", plan.format(**known)))
    if "num_pairs" in known and "eval_seeds" in known:
        rows.append(("pairs", f"{known['num_pairs']} for each eval seed ({known['eval_seeds']})"))
    return rows


def _floor(row: Row) -> str:
    return f"{text.percent(row['mean'])} ({text.percent_span(row)}, n = {row['num_episodes']})"


FLOOR_WORDS = {
    "random": "random actions",
    "zero": "no action",
    "oracle": "the recorded actions",
}
PROTOCOL_WORDS = {
    "episodes": "episodes from",
    "pre_solved": "starts already solved",
    "sampling": "start sampling",
    "options": "world's options",
    "hold": "success must hold (steps)",
    "history": "context frames of a plan",
    "goal_offset": "goal offset (steps)",
    "budget": "budget (steps)",
    "success": "success rule",
}


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_setting(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_setting(inner) for inner in value)
    return text.DASH if value is None else str(value)


def provenance(meta: Mapping[str, Any], tables: Tables) -> list[tuple[str, str]]:
    """Where the numbers come from: (name, value), what is unknown left out."""
    rows: list[tuple[str, Any]] = [
        ("sweep", meta.get("folder") or meta.get("name")),
        ("command", meta.get("command")),
        ("begun", meta.get("begun_at")),
        ("git commit", _distinct(tables["trials"], "git_commit") or meta.get("git_commit")),
        ("dataset (content hash)", _distinct(tables["trials"], "dataset_hash")),
        ("behaviour policy", _distinct(tables["trials"], "policy")),
        ("parameters", _distinct(tables["trials"], "num_params", ",")),
        ("optimiser steps", _distinct(tables["trials"], "num_steps", ",")),
        ("batch size (λ is tied to it)", _distinct(tables["trials"], "batch_size")),
        ("precision", _distinct(tables["trials"], "precision")),
        ("threads per trial", _distinct(tables["trials"], "num_threads")),
        ("manifests", _distinct(tables["planning"], "manifest_hash")),
        ("trained on", _machines(tables["trials"])),
        (
            "machine of the first command",
            _setting(meta.get("machine")) if meta.get("machine") else None,
        ),
        ("versions", _versions(meta, tables["trials"])),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _distinct(frame: pl.DataFrame, column: str, spec: str = "") -> str:
    values = frame[column].drop_nulls().unique().sort().to_list()
    return ", ".join(format(value, spec) for value in values)


def _machines(trials: pl.DataFrame) -> str:
    pairs = trials.select("host", "device").drop_nulls().unique().sort("host", "device")
    return ", ".join(f"{host} ({device})" for host, device in pairs.iter_rows())


def _versions(meta: Mapping[str, Any], trials: pl.DataFrame) -> str:
    """Library versions of the trials, else of the sweep; JSON objects and plain text both fit."""
    found = trials["versions"].drop_nulls().unique().sort().to_list() or [
        meta.get("versions") or ""
    ]
    return "; ".join(_version_words(value) for value in found)


def _version_words(value: Any) -> str:
    try:
        known = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return str(value)
    if isinstance(known, dict):
        return ", ".join(f"{library} {version}" for library, version in known.items())
    return str(known)
