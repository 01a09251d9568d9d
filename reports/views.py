"""One world of a report: its rows, its planning settings, and the words that name them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from reports import text
from reports.axis import PointAxis, make_axis, settings_of

Row = dict[str, Any]
Tables = Mapping[str, pl.DataFrame]
SETTING = ("protocol", "planner", "eval_point")
EMBEDDING = "projected"
_GROUPED_BY = {"summary": "quantity", "stability": "metric", "comparison": "metric"}


@dataclass(frozen=True)
class World:
    """One method in one environment with one profile: a chapter of the report.

    `meta` is its entry in the sweep's `sweep.json`; empty if there is none.
    """

    key: Row
    tables: Tables
    axis: PointAxis
    meta: Row
    _known: dict[str, dict[Any, list[Row]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The world for readers."""
        return f"{text.method(self.key['method'])} in {text.world(self.key['env'])}, {self.key['profile']} profile"

    @property
    def is_bare(self) -> bool:
        """Whether no trial of it has left anything to show."""
        return (
            self.tables["curves"].is_empty() and self.tables["latents"].is_empty() and not self.main
        )

    def rows(self, table: str, **where: Any) -> list[Row]:
        """Rows of a table of this world with the given values, in the order of the axis."""
        groups, key = self._groups(table), _GROUPED_BY.get(table)
        if key in where:
            found = groups.get(where[key], [])
        else:
            found = groups[None]
        return [row for row in found if all(row[name] == value for name, value in where.items())]

    def _groups(self, table: str) -> dict[Any, list[Row]]:
        """The table's rows, all (under None) and by the column it is mostly asked by; read once."""
        if table not in self._known:
            place = {slot.point: i for i, slot in enumerate(self.axis.slots)}
            rows = self.tables[table].sort("lam", maintain_order=True).to_dicts()
            rows.sort(key=lambda row: place.get(row["point"], -1))
            groups: dict[Any, list[Row]] = {None: rows}
            if key := _GROUPED_BY.get(table):
                for row in rows:
                    groups.setdefault(row[key], []).append(row)
            self._known[table] = groups
        return self._known[table]

    def summary(self, quantity: str, **where: Any) -> Row:
        """The summary row of a quantity; an empty dict if there is none."""
        rows = self.rows("summary", quantity=quantity, **where)
        return rows[0] if rows else {}

    def spread(self, metric: str, **where: Any) -> tuple[list[Row], list[Row]]:
        """`stability` rows of a metric: over all runs of each point, and run by run."""
        rows = [row for row in self.rows("stability", metric=metric, **where) if row["method"]]
        means = [row for row in rows if row["runs"] == "all"]
        return means, [row for row in rows if row["runs"].startswith("seed=")]

    @property
    def plans(self) -> bool:
        """Whether the sweep evaluates planning at all."""
        return self.summary("plans").get("value") != 0.0

    @property
    def main(self) -> Row:
        """The planning setting of the verdict; empty where nothing was planned."""
        known = settings(self)
        return known[0] if known else {}

    @property
    def best(self) -> Row:
        """The summary row of the verdict's best point; empty where nothing was planned."""
        return self.summary("best_point", **self.main) if self.main else {}

    @property
    def best_point(self) -> str | None:
        """The verdict's best point, if there is one."""
        point: str | None = self.best.get("point")
        return point


def worlds(tables: Tables, meta: Mapping[str, Any]) -> list[World]:
    """The chapters, in the order of their keys; those without any result last."""
    told = {(row["method"], row["env"]): row for row in _told(meta)}
    names = ["method", "env", "profile"]
    frames = [tables[name].select(names) for name in ("trials", "stability")]
    keys = pl.concat(frames).filter(pl.col("method").is_not_null()).unique().sort(names)
    begun = [str(trial["point"]) for trial in meta.get("trials", ())]
    found = []
    for key in keys.iter_rows(named=True):
        place = [pl.col(name) == key[name] for name in ("env", "profile")]
        own = pl.col("method").is_null() | (pl.col("method") == key["method"])
        chosen = {name: frame.filter(own, *place) for name, frame in tables.items()}
        points = pl.concat(
            [chosen[name].select("point", "lam") for name in ("trials", "stability")]
        )
        points = points.unique().drop_nulls("point")
        pairs = [(str(point), lam) for point, lam in points.iter_rows()]
        own_meta = told.get((key["method"], key["env"]), {})
        found.append(World(dict(key), chosen, make_axis(pairs, begun), own_meta))
    return sorted(found, key=lambda world: world.is_bare)


def _told(meta: Mapping[str, Any]) -> list[Row]:
    """What `sweep.json` says of its worlds; one of version 1 had a single world."""
    if meta.get("worlds") or not meta.get("env"):
        return list(meta.get("worlds") or [])
    variants = meta.get("variants") or [{}]
    method = variants[0].get("config", {}).get("method", "lewm")
    known = {name: meta.get(name) for name in ("protocols", "variants")}
    return [{"method": method, "env": meta["env"], **known}]


def settings(world: World) -> list[Row]:
    """The planning settings, the verdict's first."""
    verdict = world.summary("verdict")
    found = [
        {name: row[name] for name in SETTING}
        for row in world.rows("summary", quantity="best_point")
    ]
    found.sort(key=lambda row: (any(row[name] != verdict.get(name) for name in SETTING), str(row)))
    return found


def setting_name(setting: Row) -> str:
    """A planning setting for readers."""
    settings = settings_text(setting["eval_point"])
    extra = f", {settings}" if settings else ""
    return f"{setting['protocol']} protocol, {text.planner(setting['planner'])} planner{extra}"


def setting_label(planner: str, eval_point: str | None) -> str:
    """A planner with its settings: `CEM`, `CEM, horizon = 5`."""
    settings = settings_text(eval_point)
    return f"{text.planner(planner)}, {settings}" if settings else text.planner(planner)


def settings_text(point: str | None) -> str:
    """The settings of a point or an evaluation for readers: `solver = adam, horizon = 5`."""
    return ", ".join(f"{key} = {value}" for key, value in settings_of(point or "").items())


def intervals(rows: Sequence[Row]) -> str:
    """How the intervals of some rows were made, and why some have none."""
    methods = list(dict.fromkeys(row["ci_method"] for row in rows if row["ci_method"]))
    made = [method for method in methods if not method.startswith("none")]
    lacking = [method.removeprefix("none: ") for method in methods if method.startswith("none")]
    words = f"Whiskers: {'; '.join(made)}" if made else "No whiskers"
    return words + (f"; none where there is {' or '.join(lacking)}." if lacking else ".")
