"""Rebuilds a sweep's report from its tables; trains, evaluates and computes nothing.

python -m pipeline.report lambda                     the sweep whose folder begins so
python -m pipeline.report lambda --storage /data/runs
python -m pipeline.report lambda --storage s3://bucket/runs --out .

Imports no torch, ray or mlflow. The same tables give the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.stages import stability
from pipeline.storage import Storage
from pipeline.survey import find_sweep
from pipeline.tables import Place, has_table, read_table
from reports.page import figures_svg, render

OK, BAD_INPUT = 0, 2
PAGE = "report/index.html"


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
    parser.add_argument("--out", metavar="FOLDER", help="put the page here, e.g. out of a bucket")
    args = parser.parse_args(argv)
    try:
        storage = Storage(args.storage)
        sweep = storage.at(f"sweeps/{find_sweep(args.sweep, storage)}")
        page = make_report(sweep)
        if args.out:
            out = Path(args.out).absolute() / "index.html"
            sweep.fetch(PAGE, out)
            page = str(out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"report: {page}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
