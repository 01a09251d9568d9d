"""Schemas of every table, atomic Parquet parts, and the consolidated tables of a sweep.

A *part* is what one cell wrote: the stage's own columns, without keys, so a trial can be shared between
sweeps. A *table* is all parts of a sweep with the sweep's keys joined on, sorted the same way however
the parts came to be. The same rows give the same bytes.

Floors (planners `random`, `zero`, `oracle`) belong to no trial: their trial_id, method, point, lam and
seed are null. `point` is the canonical string of the swept training parameters (`loss.lam=0.1`),
`eval_point` that of the swept evaluation settings (empty when none is swept).

`python -m pipeline.tables` prints every table, column and unit (docs/tables.md).
"""

import difflib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage
from pipeline.survey import locate_sweep
from pipeline.tables.schemas import (
    ADDED,
    JOINED_LATER,
    JUDGED,
    JUDGED_VERSION,
    PER_SWEEP_KEYS,
    PER_TRIAL_KEYS,
    SCHEMA_VERSION,
    SCHEMAS,
    STAGE_SCHEMAS,
    VOLATILE,
    Schema,
)

Place = Storage | Path
"""A sweep's folder: the one that holds `tables/`."""
_VOLATILE_TABLES = frozenset({"attempts"})
_SORT_FIRST = ("method", "env", "profile", "lam", "point", "seed")


class BrokenTable(ValueError):
    """A Parquet file is torn, corrupt, or of another schema version: redo what wrote it."""


def make_frame(rows: Iterable[Mapping[str, Any]], schema: Schema) -> pl.DataFrame:
    """A frame with exactly the schema's columns and types; keys a row lacks become null.

    Raises:
        ValueError: a row has a key that the schema has not.
    """
    rows = list(rows)
    unknown = sorted({key for row in rows for key in row} - set(schema))
    if unknown:
        raise ValueError(f"columns not in the schema: {', '.join(unknown)}")
    return pl.DataFrame(
        {
            name: pl.Series(name, [row.get(name) for row in rows], dtype)
            for name, dtype in schema.items()
        },
        schema=dict(schema),
    )


def conform(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """The frame with the schema's column order and types.

    Raises:
        ValueError: columns are missing or unknown, or a value does not fit its type.
    """
    missing = [name for name in schema if name not in frame.columns]
    unknown = [name for name in frame.columns if name not in schema]
    if missing or unknown:
        raise ValueError(f"table columns differ: missing {missing}, unknown {unknown}")
    try:
        return frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"table values do not fit the schema: {error}") from None


def encode(frame: pl.DataFrame, schema: Schema, version: int | None = None) -> bytes:
    """Parquet bytes of the frame; equal for equal frames (same library versions).

    Args:
        version: of the schema; `SCHEMA_VERSION` if not given.
    """
    table = conform(frame, schema).rechunk().to_arrow()
    table = table.cast(pa.schema([pa.field(name, _arrow(dtype)) for name, dtype in schema.items()]))
    table = table.replace_schema_metadata({"schema_version": str(version or SCHEMA_VERSION)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _arrow(dtype: pl.DataType) -> Any:
    if dtype == pl.String:
        return pa.string()
    if dtype == pl.Binary:
        return pa.binary()
    if dtype == pl.Boolean:
        return pa.bool_()
    return pa.float64() if dtype == pl.Float64 else pa.int64()


def write_part(storage: Storage, key: str, frame: pl.DataFrame, schema: Schema) -> None:
    """Writes one cell's rows: whole under its final name, or not at all.

    Args:
        schema: usually `STAGE_SCHEMAS[stage]`.

    Raises:
        ValueError: the frame does not have the schema's columns and types.
    """
    storage.write_bytes(key, encode(frame, schema))


def read_part(storage: Storage, key: str) -> pl.DataFrame:
    """The rows of a part, its page checksums verified.

    Raises:
        FileNotFoundError: there is no such part.
        BrokenTable: it is torn, corrupt or of another schema version; redo the cell.
    """
    frame, version = _read(storage, key)
    if version != str(SCHEMA_VERSION):
        where = storage.where(key)
        raise BrokenTable(f"{where} has schema version {version}, not {SCHEMA_VERSION}")
    return frame


def _read(storage: Storage, key: str) -> tuple[pl.DataFrame, str]:
    """The rows of a Parquet file of ours, its page checksums verified, and its schema version."""
    data = storage.read_bytes(key)
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _torn(storage.where(key), error) from None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame, _stored_version(table.schema)


def _stored_version(schema: pa.Schema) -> str:
    return str((schema.metadata or {}).get(b"schema_version", b"none").decode())


def _torn(where: str, error: Exception) -> BrokenTable:
    return BrokenTable(f"{where} is not a whole Parquet file: {_first_line(error)}")


def consolidate(
    parts: Iterable[tuple[Mapping[str, Any], pl.DataFrame]], table: str
) -> pl.DataFrame:
    """All parts of one table as one frame, keys joined on, in the table's canonical order.

    Args:
        parts: (keys, part) pairs. `keys` holds values for `PER_TRIAL_KEYS` (left out means null: floors)
            and for `JOINED_LATER` columns; where a part has a column of that name too, the key wins.
        table: name of a per-trial table.

    Raises:
        ValueError: unknown table, or a part that does not fit it (`BrokenTable` if it is torn).
    """
    schema = _schema(table)
    frames = []
    for keys, frame in parts:
        defaults: dict[str, Any] = {
            name: None
            for name in PER_TRIAL_KEYS
            if name in schema and name not in frame.columns and name not in keys
        }
        if "eval_point" in schema and not {"eval_point"} & ({*frame.columns} | {*keys}):
            defaults["eval_point"] = ""
        values = {**defaults, **keys}
        literals = [pl.lit(value, dtype=schema[name]).alias(name) for name, value in values.items()]
        frames.append(conform(frame.with_columns(literals), schema))
    merged = pl.concat(frames) if frames else pl.DataFrame(schema=dict(schema))
    return sort_rows(merged)


def sort_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows in canonical order: sweep position first, then every other lasting column; nulls last."""
    first = [name for name in _SORT_FIRST if name in frame.columns]
    rest = [
        name
        for name, dtype in frame.schema.items()
        if name not in first and name not in VOLATILE and dtype != pl.Binary
    ]
    return frame.sort(first + rest, nulls_last=True, maintain_order=True)


def table_key(name: str) -> str:
    """Where a sweep's folder keeps the table; unknown names raise `ValueError`."""
    _schema(name)
    return f"tables/{name}.parquet"


def has_table(sweep: Place, name: str) -> bool:
    """Whether the sweep has the table."""
    return Storage(sweep).exists(table_key(name))


def write_table(sweep: Place, name: str, frame: pl.DataFrame) -> None:
    """Writes a sorted table of the sweep; an equal file is left untouched.

    Raises:
        ValueError: unknown table name, or a frame that does not fit its schema.
    """
    Storage(sweep).write_bytes(table_key(name), encode_table(name, frame))


def encode_table(name: str, frame: pl.DataFrame) -> bytes:
    """The file that `write_table` writes.

    Raises:
        ValueError: as there.
    """
    schema = _schema(name)
    return encode(sort_rows(conform(frame, schema)), schema, current_version(name))


def read_table(sweep: Place, name: str) -> pl.DataFrame:
    """The sweep's whole table; no rows if the sweep has none yet.

    A table of an older version is brought to the current one: columns that it lacks are null.

    Raises:
        ValueError: unknown table name, a table of a newer version, or (`BrokenTable`) a torn file.
    """
    schema, storage, key = _schema(name), Storage(sweep), table_key(name)
    try:
        frame, version = _read(storage, key)
    except FileNotFoundError:
        return pl.DataFrame(schema=dict(schema))
    where = storage.where(key)
    return _fitted(frame.with_columns(_lacking(name, version, where)), name, where)


def _fitted(frame: pl.DataFrame, name: str, where: str) -> pl.DataFrame:
    try:
        return conform(frame, _schema(name))
    except ValueError as error:
        raise BrokenTable(f"{where}: {error}") from None


def scan(sweep: str | Place, name: str, storage: str | Path | Storage = "runs") -> pl.LazyFrame:
    """A table of a sweep as a polars LazyFrame, with the columns of `SCHEMAS[name]`.

    Columns and units are in docs/tables.md. In a folder only the columns and rows that a query needs
    are read, without checking the pages' checksums; out of a bucket the whole table is fetched first.
    Tables of older versions are read as `read_table` reads them; a table that the sweep has not yet
    has no rows.

    Args:
        sweep: its name or the start of it, or the path or URI of its folder.
        name: of the table.
        storage: where a sweep given by name lives: a folder or s3://bucket/prefix.

    Raises:
        ValueError: unknown table or sweep (names the nearest one), a table of a newer version, or
            (`BrokenTable`) a torn file.

    Example:
        >>> import polars as pl
        >>> from pipeline.tables import scan
        >>> episodes = scan("lambda", "planning").filter(pl.col("protocol") == "strict")
        >>> episodes.group_by("lam", "seed").agg(pl.col("success").mean()).collect()
    """
    schema, key = _schema(name), table_key(name)
    folder = locate_sweep(sweep, storage) if isinstance(sweep, str) else Storage(sweep)
    if not folder.is_local:
        return read_table(folder, name).lazy()
    path = folder.path(key)
    if not path.is_file():
        if not folder.root.is_dir():
            raise ValueError(f"no sweep in {folder.uri}: there is no such folder")
        return pl.LazyFrame(schema=dict(schema))
    try:
        stored = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _torn(str(path), error) from None
    lacking = _lacking(name, _stored_version(stored), str(path))
    return pl.scan_parquet(path, glob=False).with_columns(lacking).select(list(schema))


def current_version(name: str) -> int:
    """The version in which a table is written today."""
    return JUDGED_VERSION if name in JUDGED else SCHEMA_VERSION


def check_table(sweep: Place, name: str) -> None:
    """Nothing, if the table is whole and of the current version.

    Raises:
        FileNotFoundError: the sweep has no such table.
        BrokenTable: it is torn or of an older version; make it again.
        ValueError: unknown table name, or a table of a newer version.
    """
    storage, key = Storage(sweep), table_key(name)
    frame, version = _read(storage, key)
    if _lacking(name, version, storage.where(key)) or int(version) != current_version(name):
        where, current = storage.where(key), current_version(name)
        raise BrokenTable(f"{where} has schema version {version}, not {current}")
    _fitted(frame, name, storage.where(key))


def _lacking(name: str, version: str, where: str) -> list[pl.Expr]:
    """The columns that a table of some version lacks, as nulls."""
    current = current_version(name)
    if not version.isdecimal():
        raise BrokenTable(f"{where} has schema version {version}, not {current}")
    if int(version) > current:
        raise ValueError(
            f"{where} was made by a newer version of this project (schema version {version}, this one "
            f"reads up to {current}): update the project"
        )
    added = [
        column
        for at, tables in ADDED.items()
        if at > int(version)
        for column in tables.get(name, ())
    ]
    return [pl.lit(None, dtype=SCHEMAS[name][column]).alias(column) for column in added]


def same_tables(a: Place, b: Place) -> list[str]:
    """What differs between two sweeps' tables, volatile columns and `attempts` aside; empty if nothing."""
    differences = []
    for name in sorted(set(SCHEMAS) - _VOLATILE_TABLES):
        present = [has_table(place, name) for place in (a, b)]
        if not any(present):
            continue
        if not all(present):
            differences.append(f"{name}: only in {a if present[0] else b}")
            continue
        frames = [sort_rows(read_table(place, name)) for place in (a, b)]
        differences += [f"{name}: {what}" for what in _frame_differences(*frames)]
    return differences


def _frame_differences(a: pl.DataFrame, b: pl.DataFrame) -> list[str]:
    if a.schema != b.schema:
        return ["columns or types differ"]
    if a.height != b.height:
        return [f"{a.height} rows against {b.height}"]
    differences = []
    for name in (column for column in a.columns if column not in VOLATILE):
        rows = (~a[name].eq_missing(b[name])).arg_true()
        if len(rows):
            row = int(rows[0])
            differences.append(
                f"column {name} differs in {len(rows)} rows, first in row {row}: "
                f"{a[name][row]!r} against {b[name][row]!r}"
            )
    return differences


def _schema(name: str) -> dict[str, pl.DataType]:
    if name not in SCHEMAS:
        near = difflib.get_close_matches(name, SCHEMAS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown table {name!r}{hint}; known: {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


__all__ = [
    "JOINED_LATER",
    "JUDGED",
    "JUDGED_VERSION",
    "PER_SWEEP_KEYS",
    "PER_TRIAL_KEYS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "STAGE_SCHEMAS",
    "VOLATILE",
    "BrokenTable",
    "Place",
    "Schema",
    "check_table",
    "conform",
    "consolidate",
    "current_version",
    "encode",
    "encode_table",
    "has_table",
    "make_frame",
    "read_part",
    "read_table",
    "same_tables",
    "scan",
    "sort_rows",
    "table_key",
    "write_part",
    "write_table",
]
