"""What was published, as questions to our tables: `sweeps/published.toml`, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.claims.rules import KINDS
from pipeline.shipped import check_keys, choice, load_toml, package_folder

CLAIM_KEYS = {
    "id", "statement", "source", "version", "kind", "sweep", "also", "env", "protocol", "metric", "margin",
    "rows", "probes", "high", "low", "level", "published", "axis", "least", "factor", "target", "probe",
    "event", "value_of", "profiles",
}  # fmt: skip
ROW_KEYS = {"method", "env", "value", "spread", "n", "value_of", "reevaluation"}
SIDE_KEYS = {"method", "value_of", "search"}
PROBES = ("linear", "mlp")
MARGINS = {"success": 0.1, "probe_r": 0.05, "probe_mse": 0.05}
"""Differences that count as none: of rates as in the report's comparisons, of probes half a tenth."""
PUBLISHED_ENV = "push_t"
"""Where the publication ran what it says of the method alone."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """What is measured: of which method, at which value of the sweep's axis.

    Attributes:
        value_of: spellings of the value; `best`, `smallest`, `largest`, `not <value>`; empty for the only
            point or the best one.
        search: strategies of a replayed search, parts of their names.
    """

    method: str | None = None
    value_of: tuple[str, ...] = ()
    search: tuple[str, ...] = ()

    def words(self) -> str:
        """For readers: `lewm, tiny`."""
        return ", ".join(
            part for part in (self.method, *self.value_of[:1], *self.search[:1]) if part
        )


@dataclass(frozen=True)
class Question:
    """One thing to judge: a published number, or a statement with a direction.

    Attributes:
        id: of its claim; several numbers of one table share it.
        source: who says so.
        version: of the publication it was read in.
        sweeps: those that can answer, the one that was made for it first; empty if none can.
        env: None if the claim is about the method wherever it runs.
        margin: differences smaller than this count as none.
        published: the number, the difference or the factor; None where only the direction is known.
        reevaluation: someone else's measurement, not the publication's.
        high, low: what is compared; `high` alone with `level`, or for a number.
        axis: part of the name of the axis that makes no difference.
        least: smallest value of the axis that the claim is about.
        factor: least width of the plateau in λ.
        profiles: those at which it may be judged; all if empty (`pipeline.claims.rules.permitted`).
    """

    id: str
    statement: str
    source: str
    version: str
    kind: str
    sweeps: tuple[str, ...]
    env: str | None
    protocol: str
    metric: str
    margin: float
    published: float | None = None
    spread: float | None = None
    n: int | None = None
    reevaluation: bool = False
    high: Side = Side()
    low: Side | None = None
    level: float | None = None
    axis: str | None = None
    least: float | None = None
    factor: float | None = None
    target: str | None = None
    probe: str | None = None
    event: str | None = None
    profiles: tuple[str, ...] = ()


def load_claims(path: Path | None = None) -> list[Question]:
    """Every question of the file, in its order; by default of the one that ships.

    Raises:
        ValueError: an unknown key, kind or missing field, a claim twice; one line that names the claim.
    """
    file = path or package_folder() / "published.toml"
    questions: list[Question] = []
    seen: set[str] = set()
    for table in load_toml(file).get("claim", []):
        where = f"{file.name}: claim {table.get('id')!r}"
        check_keys(table, CLAIM_KEYS, where)
        for key in ("id", "statement", "source", "version", "kind", "sweep"):
            if not isinstance(table.get(key), str) or (key != "sweep" and not table[key]):
                raise ValueError(f"{where}: {key} must be a text, got {table.get(key)!r}")
        choice(table["kind"], KINDS, f"{where}: kind")
        if table["id"] in seen:
            raise ValueError(f"{where} is there twice")
        seen.add(table["id"])
        questions += _questions(table, where)
    return questions


def _questions(table: Row, where: str) -> list[Question]:
    """Those of a claim: one per row of numbers, or one."""
    if "probes" in table:
        return [
            _question({**table, "metric": metric, "probe": probe}, where, row)
            for method, numbers in table["probes"].items()
            for metric, probe, row in _probes(method, numbers, where)
        ]
    if "rows" in table:
        return [_question(table, where, row) for row in table["rows"]]
    if table["kind"] == "absolute":
        raise ValueError(f"{where}: an absolute claim needs rows of numbers")
    return [_question(table, where, {})]


def _probes(method: str, numbers: Any, where: str) -> list[tuple[str, str, Row]]:
    if not isinstance(numbers, list) or len(numbers) != 3 * len(PROBES):
        raise ValueError(f"{where}: probes of {method} are six numbers, got {numbers!r}")
    found = []
    for probe, place in zip(PROBES, (0, 3), strict=True):
        mse, spread, r = numbers[place : place + 3]
        found.append(("probe_mse", probe, {"method": method, "value": mse, "spread": spread}))
        found.append(("probe_r", probe, {"method": method, "value": r}))
    return found


def _question(table: Row, where: str, row: Row) -> Question:
    check_keys(row, ROW_KEYS, f"{where}: rows")
    if row and not isinstance(row.get("value"), int | float):
        raise ValueError(f"{where}: value must be a number, got {row.get('value')!r}")
    metric = table.get("metric", "success")
    high = table.get("high", {}) | {k: row[k] for k in ("method", "value_of") if k in row}
    if row and "value_of" in table:
        high["value_of"] = table["value_of"]
    source = row.get("reevaluation") or table["source"]
    sweeps = [name for name in (table["sweep"], *table.get("also", ())) if name]
    return Question(
        id=table["id"],
        statement=table["statement"],
        source=source,
        version="" if "reevaluation" in row else table["version"],
        kind=table["kind"],
        sweeps=tuple(sweeps),
        env=row.get("env", table.get("env")),
        protocol=table.get("protocol", "paper"),
        metric=metric,
        margin=float(table.get("margin", MARGINS.get(metric, 0.0))),
        published=_number(row.get("value", table.get("published"))),
        spread=row.get("spread"),
        n=row.get("n"),
        reevaluation="reevaluation" in row,
        high=_side(high, where),
        low=_side(table["low"], where) if "low" in table else None,
        level=_number(table.get("level")),
        axis=table.get("axis"),
        least=table.get("least"),
        factor=table.get("factor"),
        target=table.get("target") or None,
        probe=table.get("probe"),
        event=table.get("event"),
        profiles=tuple(table.get("profiles", ())),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _side(given: Mapping[str, Any], where: str) -> Side:
    check_keys(given, SIDE_KEYS, f"{where}: side")
    return Side(given.get("method"), _texts(given.get("value_of")), _texts(given.get("search")))


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)
