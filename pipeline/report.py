"""Reports from tables alone: of one sweep, or of two set against each other. Trains and evaluates nothing.

python -m pipeline.report lambda                          the page of the sweep whose folder begins so
python -m pipeline.report lambda --format md,latex        the tables of a paper: Markdown, LaTeX
python -m pipeline.report lambda --format html,png        the page, and its figures as PNG too
python -m pipeline.report lambda-small lambda-paper       what differs: configuration, results, points
python -m pipeline.report --paper                         every published claim beside what sweeps here found
python -m pipeline.report lambda --storage s3://bucket/runs --out .
python -m pipeline.report lambda /data/runs/sweeps/lambda-two_room-quick     one of another storage

Imports no torch, ray or mlflow. The same tables give the same bytes.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import vl_convert

from pipeline import claims, comparison
from pipeline.comparison import Sweep
from pipeline.shipped import load_programme, load_published
from pipeline.stages import stability
from pipeline.storage import Storage
from pipeline.survey import locate_sweep
from pipeline.tables import (
    SCHEMAS,
    BrokenTable,
    Place,
    check_table,
    encode_table,
    has_table,
    read_table,
    sort_rows,
    table_key,
)
from reports import comparison as comparison_page
from reports import latex, markdown, next_run, page, reproduction, views
from reports.paper import Paper, paper

OK, BAD_INPUT = 0, 2
PAGE, FIGURES = "report/index.html", "report/figures"
FORMATS = {"html": PAGE, "md": "report/tables.md", "latex": "report/tables.tex", "png": FIGURES}
PNG_SCALE = 2.0
Files = dict[str, bytes]
Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What was written: the folder of a sweep or comparison, and the keys of its files."""

    folder: Storage
    keys: tuple[str, ...]
    next: tuple[str, ...]
    """What to run next: a sentence and a command, or nothing."""


def make_report(sweep: Place) -> str:
    """Writes the page of a sweep and its figures as SVG; equal files are left alone.

    Args:
        sweep: the folder that holds `tables/` and `sweep.json`; either may be incomplete.

    Returns:
        Path or URI of the page.

    Raises:
        ValueError: a table is torn (`pipeline.tables.BrokenTable`) or of a newer version.
    """
    return write_report(sweep, ("html",)).folder.where(PAGE)


def write_report(place: Place, formats: Sequence[str]) -> Report:
    """Writes the report of a sweep in some of `FORMATS`; all is made before anything is written, the page last.

    Raises:
        ValueError: as `make_report`.
    """
    folder = Storage(place)
    meta = read_meta(folder)
    tables, judged = read_tables(folder)
    files = {table_key(name): encode_table(name, tables[name]) for name in judged}
    files |= _papers(formats, lambda: paper(tables, meta))
    if {"html", "png"} & set(formats):
        files |= _pictures(page.figures_svg(tables, meta), "png" in formats)
    if "html" in formats:
        files[PAGE] = page.render(tables, meta).encode()
    _write(folder, files)
    return Report(folder, tuple(files), _next(tables, meta))


def compare(first: Place, second: Place, storage: Storage, formats: Sequence[str]) -> Report:
    """Writes the comparison of two sweeps: tables, and the report in some of `FORMATS`.

    It lies in the first sweep's storage, else (a sweep in no `sweeps/` folder) in the one given, under
    `comparisons/<first>--<second>`.

    Raises:
        ValueError: the sweeps are the same or have nothing in common, or as `make_report`.
    """
    places = (Storage(first), Storage(second))
    if places[0].uri == places[1].uri:
        raise ValueError(f"{places[0].uri} is given twice: a comparison needs two sweeps")
    sweeps = (_read_sweep(places[0]), _read_sweep(places[1]))
    found = comparison.compare(*sweeps)
    root, inside, _ = places[0].uri.rpartition("/sweeps/")
    name = f"{sweeps[0].name}--{sweeps[1].name}"
    folder = (Storage(root) if inside else storage).at(f"comparisons/{name}")
    files = {table_key(table): encode_table(table, frame) for table, frame in found.items()}
    told = comparison_page.Told(
        names=(sweeps[0].name, sweeps[1].name),
        metas=(sweeps[0].meta, sweeps[1].meta),
        tables=(sweeps[0].tables, sweeps[1].tables),
        points=comparison.common_points(*sweeps),
        changes=comparison.changes(*sweeps),
        **found,
    )
    files |= _papers(formats, lambda: comparison_page.paper(told))
    if {"html", "png"} & set(formats):
        files |= _pictures(comparison_page.figures_svg(told), "png" in formats)
    if "html" in formats:
        files[PAGE] = comparison_page.render(told).encode()
    _write(folder, files)
    return Report(folder, tuple(files), ())


def write_reproduction(storage: Storage, formats: Sequence[str]) -> Report:
    """Judges every published claim by the sweeps of a storage, and writes tables and page to `reproduction/`.

    Raises:
        ValueError: as `make_report`.
    """
    found, states = [], []
    for name in storage.list("sweeps"):
        folder = storage.at(f"sweeps/{name}")
        meta = read_meta(folder)
        if not has_table(folder, "trials"):
            continue
        state = (folder.read_json("state.json") or {}).get("state", "not known")
        tables = read_tables(folder)[0]
        profile, command = str(meta.get("profile") or ""), str(meta.get("command") or "")
        found.append(claims.Evidence(str(meta.get("name")), name, profile, command, tables))
        states.append({"folder": name, "profile": profile, "command": command, "state": state})
    questions = claims.with_order(claims.load_claims(), load_programme())
    judged = claims.judge_all(questions, found)
    told = reproduction.Told(judged, claims.summarise(judged), claims.RULES, states)
    folder = storage.at("reproduction")
    files = {
        table_key("claims"): encode_table("claims", told.claims),
        table_key("summary"): encode_table("summary", told.summary),
    }
    files |= _papers(formats, lambda: reproduction.paper(told))
    if "html" in formats:
        files[PAGE] = reproduction.render(told).encode()
    _write(folder, files)
    return Report(folder, tuple(files), ())


def read_meta(folder: Storage) -> Row:
    """The sweep's `sweep.json`, brought to today's form; what is unknown is left out."""
    name = folder.uri.rsplit("/", 1)[-1]
    meta = folder.read_json("sweep.json") or {"folder": name, "name": name}
    trials = meta.get("trials") or []
    if "worlds" not in meta and "env" in meta:  # before a sweep could have several
        config = trials[0]["config"] if trials else {}
        world = {"env": meta["env"], "protocols": meta.get("protocols") or {}}
        settings = config | {"planning": meta.get("planning") or {}}
        world |= {"method": config.get("method", "lewm")}
        meta["worlds"] = [world | {"variants": [{"eval_point": "", "config": settings}]}]
    return meta


def read_tables(folder: Storage) -> tuple[dict[str, pl.DataFrame], tuple[str, ...]]:
    """The tables a report shows, and which of them had to be made again from the others.

    Those of `stability` are made again where one is missing, torn or of an older version; what a search
    or its simulation added to them is kept.
    """
    names = (*stability.INPUTS, "loss_terms", "examples", "search")
    tables = {name: read_table(folder, name) for name in names}
    try:
        for name in stability.OUTPUTS:
            check_table(folder, name)
    except (BrokenTable, FileNotFoundError):
        made = stability.run(tables, load_published())
        for name, added in SEARCHED.items():
            made[name] = pl.concat([made[name], _kept(folder, name).filter(added)])
        again = stability.OUTPUTS if has_table(folder, "trials") else ()
        return tables | {name: sort_rows(frame) for name, frame in made.items()}, again
    return tables | {name: read_table(folder, name) for name in stability.OUTPUTS}, ()


SEARCHED = {
    "profiles": pl.col("metric").str.starts_with("search_"),
    "summary": pl.col("quantity").str.starts_with("search_")
    | (pl.col("quantity") == "finding_simulation"),
}
"""Rows that the judgement does not make."""


def _kept(folder: Storage, name: str) -> pl.DataFrame:
    try:
        return read_table(folder, name)
    except BrokenTable:
        return pl.DataFrame(schema=dict(SCHEMAS[name]))


def _read_sweep(folder: Storage) -> Sweep:
    return Sweep(folder.uri.rsplit("/", 1)[-1], read_meta(folder), read_tables(folder)[0])


def _papers(formats: Sequence[str], make: Callable[[], Paper]) -> Files:
    """The tables of a paper in the formats asked for."""
    renderers = {"md": markdown.render, "latex": latex.render}
    chosen = [name for name in formats if name in renderers]
    if not chosen:
        return {}
    made = make()
    return {FORMATS[name]: renderers[name](made).encode() for name in chosen}


def _pictures(svgs: Mapping[str, str], with_png: bool) -> Files:
    files = {f"{FIGURES}/{name}.svg": svg.encode() for name, svg in svgs.items()}
    if with_png:
        for name, svg in svgs.items():
            files[f"{FIGURES}/{name}.png"] = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
    return files


def _write(folder: Storage, files: Files) -> None:
    """Writes the files; pictures that these replace or no longer have are removed first."""
    drawn = {key for key in files if key.startswith(FIGURES)}
    if drawn:
        for name in folder.list(FIGURES):
            key = f"{FIGURES}/{name}"
            svg = f"{FIGURES}/{Path(name).stem}.svg"
            if key not in drawn and (svg not in drawn or folder.read_bytes(svg) != files[svg]):
                folder.remove(key)
    for key, content in files.items():
        folder.write_bytes(key, content)


def _next(tables: Mapping[str, pl.DataFrame], meta: Mapping[str, Any]) -> tuple[str, ...]:
    """What to run next, as the page says it: a sentence and a command; empty if there is nothing."""
    worlds = views.worlds(tables, meta)
    for world in worlds:
        for step in next_run.next_steps(world, meta, len(worlds)):
            if step["command"]:
                return str(step["words"]), str(step["command"])
    return ()


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
    try:
        formats = parse_formats(args.format)
        storage = Storage(args.storage)
        if args.paper == bool(args.sweep):
            raise ValueError("name a sweep, or give --paper for the page of all published claims")
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


def _lines(made: Report, out: Path | None) -> list[str]:
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
