"""Finds sweeps in the storage, and what it holds of their trials, read with as few requests as each one's state allows."""

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.storage import Storage
from pipeline.storage.lease import is_stale

THREADS = 32
"""Requests at once to a bucket, where each takes tens of milliseconds."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What storage holds of one trial."""

    trial_id: str
    label: str
    state: str
    marker: Row
    attempts: list[Row]
    progress: Row
    cells: Counter[tuple[str, str]]
    """How many by (stage, `done` or `failed`)."""
    num_steps: int | None
    threads: int


def find_sweep(name: str, storage: Storage) -> str:
    """The folder name of a sweep in the storage, by its whole name or the start of it.

    Raises:
        ValueError: none begins so (names the nearest), or several do (lists them).
    """
    known = storage.list("sweeps")
    if name in known:
        return name
    # `lambda` means lambda-<env>-<profile> before it means lambda2-<env>-<profile>
    whole = [known_name for known_name in known if known_name.startswith(f"{name}-")]
    found = whole or [known_name for known_name in known if name and known_name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"sweep {name!r} is one of several, name one: {', '.join(found)}")
    if not known:
        raise ValueError(f"no sweep {name!r}: there is none in {storage.where('sweeps')}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"no sweep {name!r}{hint}; known: {', '.join(known)}")


def locate_sweep(sweep: str, storage: "str | Path | Storage") -> Storage:
    """The folder of a sweep, given by its path or URI, or by its name in a storage (`find_sweep`).

    Args:
        sweep: a name, the start of one, or (with a slash in it) a path or URI.

    Raises:
        ValueError: there is no such sweep, or a name fits several.
    """
    if "/" not in sweep:
        whole = Storage(storage)
        return whole.at(f"sweeps/{find_sweep(sweep, whole)}")
    folder = Storage(sweep.rstrip("/"))
    if not (folder.exists("sweep.json") or folder.list("tables")):
        raise ValueError(f"no sweep in {folder.uri}: it holds neither sweep.json nor tables/")
    return folder


def survey(storage: Storage, sweep: Row) -> list[Seen]:
    """Every trial that a `sweep.json` lists, in its order."""
    known = set(storage.list("trials"))
    stopped = storage.read_json(f"sweeps/{sweep['folder']}/stopped.json") or {}
    with ThreadPoolExecutor(1 if storage.is_local else THREADS) as pool:
        return list(pool.map(lambda row: _look(storage, row, known, stopped), sweep["trials"]))


def _look(storage: Storage, row: Row, known: set[str], stopped: Row) -> Seen:
    """Reads as few objects of a trial as its state allows: none of one that nobody began."""
    trial_id, config = row["trial_id"], row["config"]
    key = f"trials/{trial_id}"
    begun = trial_id in known
    marker = (storage.read_json(f"{key}/done.json") if begun else None) or {}
    progress, attempts, state = {}, [], str(marker.get("status", "waiting"))
    if trial_id in stopped:
        state = "stopped"
    elif begun and not marker:
        owner = storage.read_json(f"{key}/owner.json")
        if owner is not None and not is_stale(storage, f"{key}/owner.json", owner):
            state = "running"
        progress = storage.read_json(f"{key}/progress.json") or {}
    if begun and marker.get("attempts") != 1:
        attempts = (storage.read_json(f"{key}/attempts.json") or {}).get("rows", [])
    asked = config["optim"]["num_steps"]
    return Seen(
        trial_id=trial_id,
        label=f"{row['point']} seed={row['seed']}".strip(),
        state=state,
        marker=marker,
        attempts=attempts or ([{**marker, "from_step": 0}] if marker.get("started_at") else []),
        progress=progress,
        cells=_found_cells(storage.list(f"{key}/cells")) if marker else Counter(),
        num_steps=asked or progress.get("num_steps") or marker.get("num_steps"),
        threads=int(config["optim"]["num_threads"]),
    )


def _found_cells(names: Sequence[str]) -> Counter[tuple[str, str]]:
    """A marker with a part beside it is a cell that is done; without one, it failed."""
    parts = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
    markers = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return Counter((m.rpartition("-")[0], "done" if m in parts else "failed") for m in markers)


def expected_cells(sweep: Row) -> Counter[str]:
    """How many cells a trial of the sweep has in each stage (of its largest world)."""
    worlds = []
    for world in sweep.get("worlds", []):
        cells: dict[tuple[str, str, int], None] = {}
        for variant in world["variants"]:
            config = variant["config"]
            planning = config["planning"]
            for stage in sweep["stages"]:
                own = json.dumps([config[stage], planning if stage == "examples" else None])
                pairs = len(planning["protocols"]) * len(planning["eval_seeds"])
                num = pairs if stage == "planning" else 1
                cells |= {(stage, own, i): None for i in range(num)}
        worlds.append(Counter(stage for stage, _, _ in cells))
    return max(worlds, key=lambda world: world.total(), default=Counter())


def newest_errors(storage: Storage, seen: Sequence[Seen], most: int) -> list[str]:
    """The newest errors, one line each: trials that failed, then cells that did."""
    failed = [t for t in seen if t.state == "failed"]
    failed.sort(key=lambda t: str(t.marker.get("finished_at") or ""), reverse=True)
    lines = [f"{t.label}: {t.marker.get('error')}" for t in failed]
    for trial in seen:
        if len(lines) >= most or not any(how == "failed" for _, how in trial.cells):
            continue
        folder = f"trials/{trial.trial_id}/cells"
        for name in storage.list(folder):
            if name.endswith(".json"):
                marker = storage.read_json(f"{folder}/{name}") or {}
                if marker.get("status") == "failed":
                    stage = name.rpartition("-")[0]
                    lines.append(f"{trial.label} {stage}: {marker.get('error')}")
    return [line if len(line) <= 160 else f"{line[:157]}..." for line in lines[:most]]
