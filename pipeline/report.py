"""Rebuilds a sweep's report from its tables; trains, evaluates and computes nothing.

python -m pipeline.report lambda                     the sweep whose folder begins so
python -m pipeline.report lambda --storage /data/runs

Imports no torch, ray or mlflow. The same tables give the same bytes.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence

import polars as pl

from pipeline.stages import stability
from pipeline.storage import Storage
from pipeline.tables import Place, has_table, read_table
from reports.page import figures_svg, render

OK, BAD_INPUT = 0, 2
PAGE = "report/index.html"


def find_sweep(name: str, storage: Storage) -> str:
    """The folder name of a sweep in the storage, by its whole name or the start of it.

    Raises:
        ValueError: none begins so (names the nearest), or several do (lists them).
    """
    known = storage.list("sweeps")
    if name in known:
        return name
    # `lambda` means lambda-<env>-<profile> before it means lambda2-<env>-<profile>
    whole = [known_name for known_name in known if known_name.startswith(f"{name}-")]
    found = whole or [known_name for known_name in known if name and known_name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"sweep {name!r} is one of several, name one: {', '.join(found)}")
    if not known:
        raise ValueError(f"no sweep {name!r}: there is none in {storage.where('sweeps')}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"no sweep {name!r}{hint}; known: {', '.join(known)}")


def make_report(sweep: Place) -> str:
    """Writes `report/index.html` and `report/figures/*.svg` of a sweep; equal files are left alone.

    Args:
        sweep: the folder that holds `tables/` and `sweep.json`; either may be incomplete.

    Returns:
        Path or URI of the page.

    Raises:
        ValueError: a table is torn (`pipeline.tables.BrokenTable`).
    """
    tables = read_tables(sweep)
    storage = Storage(sweep)
    folder = storage.uri.rsplit("/", 1)[-1]
    meta = storage.read_json("sweep.json") or {"folder": folder, "name": folder}
    pictures = figures_svg(tables, meta)
    for name, picture in pictures.items():
        storage.write_bytes(f"report/figures/{name}.svg", picture.encode())
    for name in storage.list("report/figures"):
        if name.endswith(".svg") and name.removesuffix(".svg") not in pictures:
            storage.remove(f"report/figures/{name}")
    storage.write_bytes(PAGE, render(tables, meta).encode())
    return storage.where(PAGE)


def read_tables(sweep: Place) -> dict[str, pl.DataFrame]:
    """The tables a report shows; those of `stability` are made from the others where one is missing."""
    tables = {name: read_table(sweep, name) for name in (*stability.INPUTS, "examples", "search")}
    if all(has_table(sweep, name) for name in stability.OUTPUTS):
        return tables | {name: read_table(sweep, name) for name in stability.OUTPUTS}
    return tables | stability.run(tables)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("sweep", help="a sweep's folder name, or the start of it")
    parser.add_argument(
        "--storage",
        default="runs",
        help="where the sweep lives: a folder or s3://… (default: runs)",
    )
    args = parser.parse_args(argv)
    try:
        storage = Storage(args.storage)
        page = make_report(storage.at(f"sweeps/{find_sweep(args.sweep, storage)}"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"report: {page}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
