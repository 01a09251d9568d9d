"""Writes reports from tables alone: of one sweep, of two set against each other, of every claim.

Imports no torch, ray or mlflow. The same tables give the same bytes.
"""

import json
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
from reports import benchmarks, latex, markdown, next_run, page, reproduction, views
from reports import comparison as comparison_page
from reports.formats import FIGURES, FORMATS, PAGE
from reports.paper import Paper, paper

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


def write_benchmarks(records: Sequence[Path], out: Path) -> Path:
    """Writes the page of benchmark records to `out`/benchmarks.html; returns where that is.

    Raises:
        ValueError: a record that is missing or is none.
    """
    found = []
    for path in records:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            benchmarks.ratios(record)
        except FileNotFoundError:
            raise ValueError(f"--benchmarks {path}: no such file") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"--benchmarks {path}: not a record of `make bench`") from None
        found.append(record)
    page = out.absolute() / "benchmarks.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(benchmarks.render(found), encoding="utf-8")
    return page


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
