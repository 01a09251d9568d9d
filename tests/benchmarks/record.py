"""From a run of the benchmarks to a record, its table, and what changed since the last one.

python -m tests.benchmarks.record RAW.json            table, changes of more than 20 %, and record.json beside it; what `make bench` ends in
python -m tests.benchmarks.record RAW.json --save     also keeps it as records/<machine>.json
python -m tests.benchmarks.record --doc               puts the kept records' tables into docs/speed.md
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from reports.benchmarks import ratios, seconds

RECORDS = Path(__file__).parent / "records"
DOC = Path(__file__).parents[2] / "docs" / "speed.md"
HEADING = "## The records"
CHANGE = 0.2
Record = dict[str, Any]


def condense(raw: Record) -> Record:
    """Machine, commit, date, and one row per group and side."""
    rows = []
    for test in raw["benchmarks"]:
        stats, extra = test["stats"], test["extra_info"]
        rows.append(
            {
                "group": test["group"],
                "side": " ".join([side(test["name"]), *extra.get("variant", "").split()]),
                "unit": extra.get("unit", ""),
                "per_second": extra.get("units", 1) / stats["median"],
                "median_s": stats["median"],
                "q1_s": stats["q1"],
                "q3_s": stats["q3"],
                "n": stats["rounds"],
                **{k: v for k, v in extra.items() if k not in ("unit", "units", "variant")},
            }
        )
    return {
        "machine": raw["machine_info"],
        "commit": raw["commit_info"].get("id"),
        "dirty": raw["commit_info"].get("dirty"),
        "date": raw["datetime"][:10],
        "rows": sorted(rows, key=lambda row: (row["group"], row["side"])),
    }


def side(name: str) -> str:
    """`ours`, `floor`, `rival` or `rival lance` of a benchmark's name."""
    base, _, parameters = name.partition("[")
    kinds = [word for word in re.split(r"[-\]]", parameters) if word in ("hdf5", "lance")]
    known = next((word for word in ("floor", "rival") if word in base), "ours")
    return " ".join([known, *kinds])


def table(record: Record) -> str:
    """Markdown: every side with its spread, and ours as a multiple of it."""
    found = ratios(record)
    lines = [
        "| what | side | per second | median, quartiles | n | ours is |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        ratio = found.get((row["group"], row["side"]))
        spread = f"{seconds(row['median_s'])} ({seconds(row['q1_s'])}–{seconds(row['q3_s'])})"
        speed = f"{row['per_second']:,.{0 if row['per_second'] >= 100 else 2}f} {row['unit']}"
        cells = (row["group"], row["side"], speed, spread, str(row["n"]))
        lines.append(f"| {' | '.join(cells)} | {f'{ratio:.2f} ×' if ratio else ''} |")
    return "\n".join(lines)


def changes(now: Record, before: Record) -> list[str]:
    """Ratios that moved by more than `CHANGE`, either way."""
    was = ratios(before)
    return [
        f"{group}: ours / {other} {was[group, other]:.2f} -> {ratio:.2f}"
        for (group, other), ratio in ratios(now).items()
        if (group, other) in was and abs(ratio / was[group, other] - 1) > CHANGE
    ]


def missed(record: Record) -> list[str]:
    """Units that took longer than their `target_s`."""
    taken = ((row, 1 / row["per_second"]) for row in record["rows"] if "target_s" in row)
    return [
        f"{row['group']}: {seconds(unit_s)}, target {seconds(row['target_s'])}"
        for row, unit_s in taken
        if unit_s > row["target_s"]
    ]


def path_of(record: Record) -> Path:
    """The record's file: one per kind of machine."""
    machine = record["machine"]
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return RECORDS / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def write_doc() -> None:
    """Renews what stands below `HEADING` in docs/speed.md."""
    parts = [DOC.read_text(encoding="utf-8").partition(HEADING)[0].rstrip(), HEADING]
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        machine, commit = record["machine"], record["commit"][:7]
        name = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
        parts += [
            f"{name}, torch {machine['torch']}, commit {commit}, {record['date']}:",
            table(record),
        ]
    DOC.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("raw", type=Path, nargs="?", help="what pytest --benchmark-json wrote")
    parser.add_argument("--save", action="store_true", help="keep it as the machine's record")
    parser.add_argument("--doc", action="store_true", help="renew the tables in docs/speed.md")
    args = parser.parse_args(argv)
    if args.doc:
        write_doc()
        return 0
    if args.raw is None:
        parser.error("give RAW.json, or --doc")
    record = condense(json.loads(args.raw.read_text()))
    args.raw.with_name("record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    kept = [path_of(record), *sorted(RECORDS.glob("*.json"))]
    before = next((path for path in kept if path.exists()), None)
    if before is not None:
        kept_record = json.loads(before.read_text())
        told = changes(record, kept_record)
        unmeasured = sorted(ratios(kept_record).keys() - ratios(record).keys())
        print(f"\nagainst {before.name}: {len(told)} ratios changed by more than {CHANGE:.0%}")
        print("".join(f"  CHANGED {line}\n" for line in told), end="")
        if unmeasured:
            sides = ", ".join(sorted({other for _, other in unmeasured}))
            print(f"  {len(unmeasured)} kept ratios are not measured here (no {sides})")
    print("".join(f"  MISSED {line}\n" for line in missed(record)), end="")
    if args.save:
        path_of(record).write_text(json.dumps(record, indent=1) + "\n")
        print(f"kept as {path_of(record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
