"""What a sweep is, on storage: `sweep.json` holds its base, its trials and where it was begun."""

import json
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from lewm.config import Config
from pipeline import spec as specs
from pipeline.redact import redact
from pipeline.search.settings import load_search
from pipeline.spec import Spec, Trial, World
from pipeline.storage import Storage
from pipeline.trial import versions


def merge(spec: Spec, storage: Storage) -> Spec:
    """The sweep with all trials ever asked of it, after checking that its base is unchanged.

    Raises:
        ValueError: the sweep was begun with another base.
    """
    stored = storage.read_json(f"sweeps/{spec.folder}/sweep.json")
    if stored is None:
        return spec
    specs.check_base(stored["base"], json.loads(json.dumps(spec.base)), spec.folder)
    base = {key: value for key, value in stored["base"].items() if "axis." in key} | spec.base
    known = {trial.trial_id for trial in spec.trials}
    older = [trial for trial in stored_trials(stored) if trial.trial_id not in known]
    trials = sorted(
        (*spec.trials, *older),
        key=lambda t: (spec.worlds.index(spec.world(t)), t.config.lam or 0, t.point, t.config.seed),
    )
    return replace(spec, trials=tuple(trials), base=base)


def stored_trials(stored: Mapping[str, Any]) -> list[Trial]:
    """The trials that a `sweep.json` lists."""
    return [
        Trial(row["trial_id"], _config(row["config"]), row["point"]) for row in stored["trials"]
    ]


def _config(data: Mapping[str, Any]) -> Config:
    return Config.model_validate_json(json.dumps(data))


def load(storage: Storage, folder: str) -> Spec:
    """The sweep that a folder's `sweep.json` describes.

    Raises:
        ValueError: there is none that can be read.
    """
    stored = storage.read_json(f"sweeps/{folder}/sweep.json")
    if stored is None:
        raise ValueError(f"sweep {folder} has no readable sweep.json in {storage.uri}")
    plain = (
        "name",
        "question",
        "profile",
        "folder",
        "base",
        "fingerprint",
        "released",
        "knows_lam",
    )
    return Spec(
        **{key: stored[key] for key in plain},
        stages=tuple(stored["stages"]),
        times=stored.get("times", False),
        worlds=tuple(_world(row) for row in stored["worlds"]),
        trials=tuple(stored_trials(stored)),
        search=load_search(stored.get("search")),
    )


def _world(row: Mapping[str, Any]) -> World:
    variants = tuple((v["eval_point"], _config(v["config"])) for v in row["variants"])
    return World(
        **{key: row[key] for key in ("method", "env", "protocols", "estimate")}, variants=variants
    )


def write(spec: Spec, storage: Storage, command: str, commit: str | None) -> None:
    """Writes `sweep.json`; when, where and with what it was begun stays as it was."""
    old = storage.read_json(f"sweeps/{spec.folder}/sweep.json") or {}
    begun = {
        "begun_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact(command),
        "git_commit": commit,
        "versions": versions(),
        "machine": f"{socket.gethostname()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} CPUs",
    }
    content = {
        "name": spec.name,
        "question": spec.question,
        "profile": spec.profile,
        "folder": spec.folder,
        "stages": list(spec.stages),
        "base": spec.base,
        "fingerprint": spec.fingerprint,
        "released": spec.released,
        "knows_lam": spec.knows_lam,
        "times": spec.times,
        "search": spec.search.model_dump(mode="json", exclude_none=True),
        "worlds": [
            {
                "method": world.method,
                "env": world.env,
                "protocols": world.protocols,
                "estimate": world.estimate,
                "variants": [
                    {"eval_point": point, "config": config.model_dump(mode="json")}
                    for point, config in world.variants
                ],
            }
            for world in spec.worlds
        ],
        "trials": [
            {
                "trial_id": trial.trial_id,
                "point": trial.point,
                "seed": trial.config.seed,
                "config": trial.config.model_dump(mode="json"),
            }
            for trial in spec.trials
        ],
    }
    kept = {key: old.get(key) or value for key, value in begun.items()}
    storage.write_json(f"sweeps/{spec.folder}/sweep.json", content | kept)


def begun_at(storage: Storage, folder: str) -> str:
    """When the sweep was begun, as ISO text; empty if it was not."""
    return str((storage.read_json(f"{folder}/sweep.json") or {}).get("begun_at", ""))
