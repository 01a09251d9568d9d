"""Which settings of two sweeps differ, as their `sweep.json` and trials tell."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from pipeline.comparison.points import Row, Sweep, flat, swept_parameters


class Change(NamedTuple):
    """A setting in which two sweeps differ; None where one of them lacks it."""

    area: str
    name: str
    first: Any
    second: Any


def changes(first: Sweep, second: Sweep) -> list[Change]:
    """Every setting that `sweep.json` knows and in which both differ; where equal, nothing.

    Areas: `grid` (environments, values swept, seeds), then of the environments in common `settings` (the
    resolved configurations of the trials), `protocols`, and `code and data`.
    """
    sweeps = (first, second)
    envs = [set(sweep.points["env"]) for sweep in sweeps]
    names = [{"environments": ", ".join(sorted(own))} for own in envs]
    found = _differing("grid", *names)
    grids = [swept_parameters(sweep) for sweep in (first, second)]
    found += _differing("grid", *({n: ", ".join(v) for n, v in grid.items()} for grid in grids))
    seeds = [{"seeds": _listed(sweep.tables["trials"]["seed"])} for sweep in (first, second)]
    found += _differing("grid", *seeds)
    swept = {name for grid in grids for name in grid}
    common = envs[0] & envs[1]
    found += _differing("settings", *(_settings(sweep, swept, common) for sweep in sweeps))
    found += _differing("protocols", *(_protocols(sweep, common) for sweep in sweeps))
    return found + _differing("code and data", *(_sources(sweep, common) for sweep in sweeps))


def _differing(area: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    names = sorted({*first, *second})
    pairs = ((name, first.get(name), second.get(name)) for name in names)
    return [Change(area, name, a, b) for name, a, b in pairs if a != b]


def _settings(sweep: Sweep, swept: set[str], envs: set[str]) -> Row:
    """The settings of the trials in some environments, swept parameters and seed left out.

    Where trials differ in one that the sweep does not sweep, all of its values.
    """
    configs = [flat(row["config"]) for row in sweep.meta.get("trials") or []]
    configs = [config for config in configs if config.get("data.env") in {*envs, None}]
    found: Row = {}
    for key in {key for config in configs for key in config} - swept - {"seed"}:
        values = {json.dumps(config.get(key)): config.get(key) for config in configs}
        found[key] = next(iter(values.values())) if len(values) == 1 else list(values.values())
    base = sweep.meta.get("base") or {}
    extra = {key: base[key] for key in base if key == "recipe" or key.startswith("search.")}
    return found | extra | {"stages": sweep.meta.get("stages")}


def _protocols(sweep: Sweep, envs: set[str]) -> Row:
    return {
        f"{world['env']}: {name}": value
        for world in sweep.meta.get("worlds") or []
        if world["env"] in envs
        for name, value in flat(world.get("protocols") or {}).items()
    }


def _sources(sweep: Sweep, envs: set[str]) -> Row:
    trials = sweep.tables["trials"].filter(pl.col("env").is_in(list(envs)))
    commit = _listed(trials["git_commit"]) or sweep.meta.get("git_commit")
    versions = sweep.meta.get("versions")
    libraries = (
        {f"version of {k}": v for k, v in versions.items()} if isinstance(versions, dict) else {}
    )
    data = {"dataset (content hash)": _listed(trials["dataset_hash"])}
    return {"git commit": commit, **data, "trained on": _listed(trials["device"]), **libraries}


def _listed(values: pl.Series) -> str | None:
    known = values.drop_nulls().unique().sort().to_list()
    return ", ".join(map(str, known)) or None
