"""The page of a benchmark record: every loop beside its rival and its floor, as rates with their spread.

A record is what `make bench` keeps in tests/benchmarks/records: a machine, a commit, and one row per group (what
is asked) and side (`ours`, `rival ...`, `floor`), with the units done per second, the median and the quartiles
of the time of a call, and n, the number of calls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from reports import text
from reports.templating import TEMPLATES, template
from reports.theme import css

Record = Mapping[str, Any]
Row = dict[str, Any]
SHOWN_APART = {"group", "side", "unit", "per_second", "median_s", "q1_s", "q3_s", "n"}


def ratios(record: Record) -> dict[tuple[str, str], float]:
    """How many times as fast ours is, by group and other side; variants of ours are no other side."""
    speed = {(row["group"], row["side"]): row["per_second"] for row in record["rows"]}
    return {
        (group, other): speed[group, "ours"] / value
        for (group, other), value in speed.items()
        if other.split()[0] != "ours" and (group, "ours") in speed
    }


def seconds(value: float) -> str:
    """A duration for readers."""
    return f"{1e3 * value:,.2f} ms" if value < 1 else f"{value:,.2f} s"


def render(records: Sequence[Record]) -> str:
    """One HTML file without scripts; the same records give the same bytes."""
    return template("benchmarks.html.j2").render(
        machines=[_machine(record) for record in records],
        css=Markup(css([]) + (TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def _machine(record: Record) -> Row:
    machine = record["machine"]
    groups: dict[str, list[Row]] = {}
    for row in record["rows"]:
        groups.setdefault(row["group"], []).append(row)
    found = ratios(record)
    return {
        "name": machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores",
        "threads": machine["threads"],
        "versions": f"Python {machine['python']}, torch {machine['torch']}",
        "short": machine["short"],
        "commit": (record["commit"] or "unknown")[:7],
        "date": record["date"],
        "groups": [
            {"name": name, "sides": _sides(rows, found), "verdict": _verdict(name, found)}
            for name, rows in groups.items()
        ],
    }


def _sides(rows: Sequence[Row], found: Mapping[tuple[str, str], float]) -> list[Row]:
    fastest = max(row["per_second"] for row in rows)
    order = sorted(rows, key=lambda row: (row["side"] != "ours", row["side"]))
    return [
        {
            "side": row["side"],
            "kind": row["side"].split()[0],
            "share": 100 * row["per_second"] / fastest,
            "speed": f"{text.number(row['per_second'])} {row['unit']}/s",
            "time": f"{seconds(row['median_s'])} ({seconds(row['q1_s'])}–{seconds(row['q3_s'])})",
            "n": row["n"],
            "ratio": f"{found[key]:.2f} ×" if (key := (row["group"], row["side"])) in found else "",
            "more": ", ".join(
                f"{name.replace('_', ' ')} {text.number(value) if isinstance(value, float) else value}"
                for name, value in row.items()
                if name not in SHOWN_APART
            ),
        }
        for row in order
    ]


def _verdict(group: str, found: Mapping[tuple[str, str], float]) -> str:
    """What the ratios say in words."""
    parts = []
    for (name, other), ratio in sorted(found.items(), key=lambda item: item[0][1] == "floor"):
        if name != group:
            continue
        if other == "floor":
            parts.append(f"at {100 * ratio:.0f} % of the floor's speed")
        else:
            parts.append(
                f"{ratio:.2f} × as fast as the {other.replace('rival', 'rival,', 1)}".rstrip(",")
            )
    said = "; ".join(parts)
    return said[:1].upper() + said[1:]
