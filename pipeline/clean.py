"""Frees storage of what nothing will read again; a sweep's results, tables and report stay whole.

python -m pipeline.clean --dry-run               what would go, and how many bytes; removes nothing
python -m pipeline.clean                         ... and now remove it
python -m pipeline.clean lambda                  of one sweep only
python -m pipeline.clean --unnamed-trials        also whole trials that no sweep names any more

What goes: previous checkpoints of trials that are done or diverged; cells of other schema versions, which
no sweep can read; parts of datasets that are whole, or that nobody has worked on for a day; temporary
files of dead writers, a day old. What a live driver's sweep or a live trial owns is left alone.
"""

import argparse
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.storage import Storage
from pipeline.storage.lease import is_stale
from pipeline.survey import THREADS, Row

OK, BAD_INPUT = 0, 2
DAY_S = 24 * 3600.0
TEMPORARY = re.compile(r"^\.(probe-[0-9a-f]{32}|.+\.[0-9a-f]{8}\.tmp)$")
OWN_FOLDERS = ("datasets", "trials", "baselines", "manifests", "sweeps", "comparisons")
"""Temporary files are looked for here, and nowhere else in a folder that may hold other things."""
EXAMPLES = 3
CHECKPOINT, CELL, PART, TEMP, TRIAL = (
    "previous checkpoints",
    "cells of other schema versions",
    "parts of datasets",
    "temporary files",
    "trials that no sweep names",
)


@dataclass(frozen=True)
class Piece:
    """One object that can go."""

    key: str
    reason: str
    size: int
    """Bytes."""


class Cleaner:
    """Finds and removes garbage in a storage.

    Args:
        sweep: folder name of the only sweep to look at; None: everything.
        unnamed_trials: whether whole trials may go.

    Raises:
        ValueError: a `sweep.json` is torn, so what it names is unknown; or whole trials are asked for
            while a driver runs.
    """

    def __init__(
        self, storage: Storage, sweep: str | None = None, unnamed_trials: bool = False
    ) -> None:
        self._storage = storage
        self._sweep = sweep
        self._unnamed_trials = unnamed_trials
        self._named: set[str] = set()
        self._live: set[str] = set()
        self.live_sweeps: list[str] = []
        begun = set(storage.list("trials"))
        for folder in storage.list("sweeps"):
            self._read_sweep(folder)
        if unnamed_trials and self.live_sweeps:
            busy = ", ".join(self.live_sweeps)
            raise ValueError(f"--unnamed-trials: wait until no driver runs, now {busy}")
        own = begun if sweep is None else self._trials_of(sweep)
        self._trials = sorted(own & begun - self._live)

    def _read_sweep(self, folder: str) -> None:
        trials = self._trials_of(folder)
        self._named |= trials
        if self._is_live(f"sweeps/{folder}/owner.json"):
            self.live_sweeps.append(folder)
            self._live |= trials

    def _trials_of(self, folder: str) -> set[str]:
        key = f"sweeps/{folder}/sweep.json"
        if not self._storage.exists(key):
            return set()
        stored = self._storage.read_json(key)
        if stored is None:
            raise ValueError(
                f"{self._storage.where(key)} is torn: what it names is unknown, nothing is removed"
            )
        return {row["trial_id"] for row in stored["trials"]}

    def _is_live(self, key: str) -> bool:
        owner = self._storage.read_json(key)
        return owner is not None and not is_stale(self._storage, key, owner)

    def find(self) -> list[Piece]:
        """Everything that can go, by reason and key."""
        unnamed = set(self._trials) - self._named if self._unnamed_trials else set()
        folders = [f"trials/{trial_id}" for trial_id in self._trials if trial_id not in unnamed]
        found = [piece for own in self._each(folders, self._of_trial) for piece in own]
        for trial_id in sorted(unnamed):
            if not self._is_live(f"trials/{trial_id}/owner.json"):
                keys = self._below(f"trials/{trial_id}")
                found += [self._piece(key, TRIAL) for key in keys]
        if self._sweep is None:
            if not self.live_sweeps:
                names = self._storage.list("baselines")
                cells = self._each([f"baselines/{name}" for name in names], self._old_cells)
                found += [piece for own in cells for piece in own]
            found += self._parts()
        return [*found, *self._temporary({piece.key for piece in found})]

    def _each(
        self, folders: Sequence[str], look: Callable[[str], list[Piece]]
    ) -> Iterator[list[Piece]]:
        with ThreadPoolExecutor(1 if self._storage.is_local else THREADS) as pool:
            yield from pool.map(look, folders)

    def _piece(self, key: str, reason: str) -> Piece:
        return Piece(key, reason, self._storage.size(key))

    def _of_trial(self, folder: str) -> list[Piece]:
        if self._is_live(f"{folder}/owner.json"):
            return []
        marker: Row = self._storage.read_json(f"{folder}/done.json") or {}
        found = self._old_cells(f"{folder}/cells")
        previous = f"{folder}/checkpoint.prev.pt"
        if marker.get("status") in ("done", "diverged") and self._storage.exists(previous):
            found.append(self._piece(previous, CHECKPOINT))
        return found

    def _old_cells(self, folder: str) -> list[Piece]:
        """Parts of another schema version, each with its marker."""
        from pipeline.tables import SCHEMA_VERSION

        names, found = self._storage.list(folder), []
        for name in names:
            if not name.endswith(".parquet"):
                continue
            version = schema_version(self._storage, f"{folder}/{name}")
            if version not in (None, SCHEMA_VERSION):
                found.append(self._piece(f"{folder}/{name}", CELL))
                marker = name.removesuffix(".parquet") + ".json"
                found += [self._piece(f"{folder}/{marker}", CELL)] if marker in names else []
        return found

    def _parts(self) -> list[Piece]:
        found: list[Piece] = []
        names = self._storage.list("datasets")
        for name in names:
            dataset = name.removesuffix(".parts")
            if dataset == name or self._is_live(f"datasets/{dataset}.owner.json"):
                continue
            whole = {f"{dataset}.h5", f"{dataset}.json"} <= set(names)
            keys = list(self._below(f"datasets/{name}"))
            if whole or all(self._storage.age_s(key) > DAY_S for key in keys):
                found += [self._piece(key, PART) for key in keys]
        return found

    def _temporary(self, found: set[str]) -> Iterator[Piece]:
        """Of folders only: in a bucket a write that was broken off leaves no object."""
        if not self._storage.is_local:
            return
        root = self._storage.root
        places = [root / name for name in OWN_FOLDERS]
        if self._sweep is not None:
            places = [root / "sweeps" / self._sweep, *(root / "trials" / t for t in self._trials)]
        live = {root / "trials" / t for t in self._live} | {
            root / "sweeps" / name for name in self.live_sweeps
        }
        for place in places:
            for folder, _, names in os.walk(place):
                for path in (place / folder / name for name in names if TEMPORARY.match(name)):
                    key = str(path.relative_to(root))
                    state = path.stat()
                    old = time.time() - state.st_mtime > DAY_S
                    if old and key not in found and not live & set(path.parents):
                        yield Piece(key, TEMP, state.st_size)

    def _below(self, folder: str) -> Iterator[str]:
        """Every object below a folder; a trial's marker first, so that half a trial is never done."""
        for name in sorted(
            self._storage.list(folder), key=lambda name: (name != "done.json", name)
        ):
            key = f"{folder}/{name}"
            inner = list(self._below(key))
            if inner:
                yield from inner
            elif not (self._storage.is_local and self._storage.path(key).is_dir()):
                yield key

    def remove(self, pieces: Sequence[Piece]) -> int:
        """Removes what `find` found, but for trials taken meanwhile; returns the bytes freed."""
        freed = 0
        for piece in pieces:
            owner = "/".join(piece.key.split("/")[:2]) + "/owner.json"
            if piece.key.startswith("trials/") and piece.key != owner and self._is_live(owner):
                continue
            self._storage.remove(piece.key)
            freed += piece.size
        if self._storage.is_local:
            for folder in {self._storage.path(piece.key).parent for piece in pieces}:
                _remove_empty(folder, self._storage)
        return freed


def _remove_empty(folder: "os.PathLike[str]", storage: Storage) -> None:
    """Removes a folder that is empty now, and those above it, up to the storage's own."""
    kept = {storage.root, *(storage.root / name for name in OWN_FOLDERS)}
    for place in (storage.root / folder, *(storage.root / folder).parents):
        if place in kept or any(place.iterdir()):
            return
        place.rmdir()


def schema_version(storage: Storage, key: str) -> int | None:
    """The schema version a part was written with; None if it is no whole part of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = str(storage.path(key)) if storage.is_local else io.BytesIO(storage.read_bytes(key))
        return int((pq.read_schema(source).metadata or {})[b"schema_version"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def lines(pieces: Sequence[Piece], verb: str) -> list[str]:
    """What goes: a line per reason with number, size and some examples."""
    out = []
    for reason in dict.fromkeys(piece.reason for piece in pieces):
        own = [piece for piece in pieces if piece.reason == reason]
        shown = ", ".join(piece.key for piece in own[:EXAMPLES])
        more = ", ..." if len(own) > EXAMPLES else ""
        out.append(f"{verb} {len(own)} {reason}, {_mb(own)}: {shown}{more}")
    return out


def _mb(pieces: Sequence[Piece]) -> str:
    return f"{sum(piece.size for piece in pieces) / 1e6:.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.clean",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    add = parser.add_argument
    add("sweep", nargs="?", help="a sweep's folder name, or the start of it (default: all)")
    add("--storage", default="runs", help="folder or s3://bucket/prefix (default: runs)")
    add("--dry-run", action="store_true", help="only say what would be removed")
    add("--unnamed-trials", action="store_true", help="also whole trials that no sweep names")
    args = parser.parse_args(argv)
    try:
        if args.sweep and args.unnamed_trials:
            raise ValueError("--unnamed-trials looks at the whole storage: leave the sweep out")
        storage, sweep = Storage(args.storage), None
        if args.sweep:
            from pipeline.survey import find_sweep

            sweep = find_sweep(args.sweep, storage)
        cleaner = Cleaner(storage, sweep, args.unnamed_trials)
        pieces = cleaner.find()
        freed = 0 if args.dry_run else cleaner.remove(pieces)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    for folder in cleaner.live_sweeps:
        print(f"left alone: {folder} and its trials; a driver is at work on it")
    print(
        "\n".join(lines(pieces, "would remove" if args.dry_run else "removed")) or "nothing to do"
    )
    if pieces:
        print(
            f"{_mb(pieces)} would be free" if args.dry_run else f"{freed / 1e6:.1f} MB are free now"
        )
    return OK


if __name__ == "__main__":
    sys.exit(main())
