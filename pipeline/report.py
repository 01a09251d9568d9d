"""Reports from tables alone: of one sweep, or of two set against each other. Trains and evaluates nothing.

python -m pipeline.report lambda                          the page of the sweep whose folder begins so
python -m pipeline.report lambda --format md,latex        the tables of a paper: Markdown, LaTeX
python -m pipeline.report lambda --format html,png        the page, and its figures as PNG too
python -m pipeline.report lambda-small lambda-paper       what differs: configuration, results, points
python -m pipeline.report --paper                         every published claim beside what sweeps here found
python -m pipeline.report --benchmarks tests/benchmarks/records/*.json --out .   what `make bench` measured
python -m pipeline.report lambda --storage s3://bucket/runs --out .
python -m pipeline.report lambda /data/runs/sweeps/lambda-two_room-quick     one of another storage

Imports no torch, ray or mlflow. The same tables give the same bytes.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.formats import FORMATS, PAGE

if TYPE_CHECKING:
    from pipeline.reporting import Report

OK, BAD_INPUT = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument(
        "sweep",
        nargs="?",
        help="a sweep's folder name, or the start of it; or (with a slash) its path or URI",
    )
    parser.add_argument("other", nargs="?", help="a second sweep, to be compared with the first")
    parser.add_argument(
        "--paper", action="store_true", help="every published claim, judged by the storage's sweeps"
    )
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="RECORD",
        help="the page of these benchmark records, one per machine",
    )
    parser.add_argument(
        "--storage",
        default="runs",
        help="where sweeps given by name live: a folder or s3://… (default: runs)",
    )
    parser.add_argument(
        "--format",
        default="html",
        metavar="F[,F]",
        help=f"one or several of {', '.join(FORMATS)} (default: html)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="copy the report here, e.g. out of a bucket"
    )
    args = parser.parse_args(argv)
    from pipeline.reporting import compare, write_benchmarks, write_report, write_reproduction
    from pipeline.storage import Storage
    from pipeline.survey import locate_sweep

    try:
        formats = parse_formats(args.format)
        storage = Storage(args.storage)
        if [bool(args.sweep), args.paper, bool(args.benchmarks)].count(True) != 1:
            raise ValueError("name a sweep, or give --paper for the page of all published claims")
        if args.benchmarks:
            page = write_benchmarks([Path(name) for name in args.benchmarks], Path(args.out or "."))
            print(f"report: {page}\nopen the report in a browser; it needs no network")
            return OK
        places = [locate_sweep(name, storage) for name in (args.sweep, args.other) if name]
        if args.paper:
            if "png" in formats:
                raise ValueError("--format png: the page of claims has no figures")
            made = write_reproduction(storage, formats)
        elif len(places) == 2:
            made = compare(places[0], places[1], storage, formats)
        else:
            made = write_report(places[0], formats)
        lines = _lines(made, Path(args.out) if args.out else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print("\n".join(lines))
    return OK


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats of `--format`.

    Raises:
        ValueError: an unknown one; names the nearest.
    """
    chosen = tuple(part.strip() for part in text.split(","))
    for name in chosen:
        if name not in FORMATS:
            known = {**{f: f for f in FORMATS}, "markdown": "md", "tex": "latex", "svg": "html"}
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f" (did you mean {known[near[0]]!r}?)" if near else ""
            raise ValueError(f"--format: {name!r} is no format{hint}; known: {', '.join(FORMATS)}")
    return chosen


def _lines(made: "Report", out: Path | None) -> list[str]:
    """Where everything is and what to do next; copies it to `out` if that is given."""
    shown = {key: made.folder.where(key) for key in made.keys}
    if out is not None:
        for key in shown:
            target = out.absolute() / key.removeprefix("report/")
            if key.startswith("report/") and not key.endswith(".svg"):
                made.folder.fetch(key, target)
                shown[key] = str(target)
    lines = [f"report: {shown[PAGE]}"] if PAGE in shown else []
    for kind, note in (("md", ""), ("latex", r"   (\input it; needs booktabs and longtable)")):
        if FORMATS[kind] in shown:
            lines.append(f"tables: {shown[FORMATS[kind]]}{note}")
    for suffix in ("svg", "png"):
        pictures = [place for key, place in shown.items() if key.endswith(f".{suffix}")]
        if pictures:
            lines.append(
                f"figures: {pictures[0].rpartition('/')[0]} ({len(pictures)} {suffix.upper()})"
            )
    again = [key for key in shown if key.startswith("tables/")]
    if again:
        lines.append(
            f"data: {made.folder.where('tables')} ({', '.join(Path(k).stem for k in again)})"
        )
    if PAGE in shown and (out is not None or made.folder.is_local):
        lines.append("open the report in a browser; it needs no network")
    elif PAGE in shown:
        lines.append("the same command with --out . fetches it out of the bucket")
    if made.next:
        lines += [f"next: {made.next[0]}", *(f"      {command}" for command in made.next[1:])]
    return lines


if __name__ == "__main__":
    sys.exit(main())
