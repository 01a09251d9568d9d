"""The points that two sweeps have in common."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

Row = dict[str, Any]
Key = tuple[str, str | None, tuple[str, ...]]
"""(env, method where it tells worlds apart, value of each swept parameter)"""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is compared: its folder's name, its `sweep.json` and all its tables."""

    name: str
    meta: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame]

    @property
    def points(self) -> pl.DataFrame:
        """Its points: method, env, profile, point, lam, and one trial's config_json of each."""
        columns = ("method", "env", "profile", "point", "lam")
        trials = self.tables["trials"].sort("seed", "trial_id", nulls_last=True)
        return trials.group_by(columns, maintain_order=True).agg(pl.col("config_json").first())


class Match(NamedTuple):
    """A point of both sweeps, as either calls it."""

    first: Row
    second: Row


def common_points(first: Sweep, second: Sweep) -> list[Match]:
    """The points of both sweeps, by environment, method and λ."""
    swept = sorted({name for sweep in (first, second) for name in swept_parameters(sweep)})
    alone = {
        env
        for env in _envs(first) & _envs(second)
        if all(_is_alone(s, env) for s in (first, second))
    }
    known = [{_key(row, swept, alone): row for row in s.points.to_dicts()} for s in (first, second)]
    found = [Match(row, known[1][key]) for key, row in known[0].items() if key in known[1]]
    return sorted(found, key=lambda m: (m.second["env"], m.second["method"], *by_lam(m.second)))


def by_lam(row: Row) -> tuple[bool, float, str]:
    """Sorts points by λ, those without last."""
    return (row["lam"] is None, row["lam"] or 0.0, row["point"] or "")


def swept_parameters(sweep: Sweep) -> dict[str, list[str]]:
    """The values of every training parameter that the sweep sweeps, in the order of its points."""
    found: dict[str, dict[str, None]] = {}
    for row in sorted(sweep.points.to_dicts(), key=by_lam):
        for name, value in _assignments(row["point"]).items():
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in sorted(found.items())}


def _assignments(point: str | None) -> dict[str, str]:
    pairs = (part.partition("=") for part in (point or "").split(" ") if "=" in part)
    return {name: value for name, _, value in pairs}


def _envs(sweep: Sweep) -> set[str]:
    return set(sweep.points["env"])


def _is_alone(sweep: Sweep, env: str) -> bool:
    """Whether the sweep has a single method there, so that methods may differ between sweeps."""
    return sweep.points.filter(pl.col("env") == env)["method"].n_unique() == 1


def _key(row: Row, swept: Iterable[str], alone: set[str]) -> Key:
    own, config = _assignments(row["point"]), flat(json.loads(row["config_json"] or "{}"))
    values = tuple(str(config.get(name, own.get(name))) for name in swept)
    return row["env"], None if row["env"] in alone else row["method"], values


def nothing_in_common(first: Sweep, second: Sweep) -> str:
    """What either sweep is about, for two that share no point."""
    about = []
    for sweep in (first, second):
        envs, swept = ", ".join(sorted(_envs(sweep))), swept_parameters(sweep)
        grid = "; ".join(f"{name} = {', '.join(values)}" for name, values in swept.items())
        about.append(f"{sweep.name} has {envs or 'no trials'}{f' with {grid}' if grid else ''}")
    return f"the sweeps have no point in common: {about[0]}, {about[1]}"


def flat(data: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested settings as `section.key`."""
    found: Row = {}
    for key, value in data.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
