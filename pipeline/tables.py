"""Schemas of every table, atomic Parquet parts, and the consolidated tables of a sweep.

A *part* is what one cell wrote: the stage's own columns, without keys, so a trial can be shared between
sweeps. A *table* is all parts of a sweep with the sweep's keys joined on, sorted the same way however
the parts came to be. The same rows give the same bytes.

Floors (planners `random`, `zero`, `oracle`) belong to no trial: their trial_id, method, point, lam and
seed are null. `point` is the canonical string of the swept training parameters (`loss.lam=0.1`),
`eval_point` that of the swept evaluation settings (empty when none is swept).
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage

Place = Storage | Path
"""A sweep's folder: the one that holds `tables/`."""
SCHEMA_VERSION = 2
"""Raised by any change of a schema; part of every cell's identity and of every file's metadata."""

Schema = Mapping[str, pl.DataType]

_TEXT, _REAL, _INT, _FLAG = pl.String(), pl.Float64(), pl.Int64(), pl.Boolean()


def _columns(text: str) -> dict[str, pl.DataType]:
    """Schema in the order given: `name` is text, `name:real`, `name:int`, `name:flag`, `name:bytes`."""
    kinds = {"": _TEXT, "real": _REAL, "int": _INT, "flag": _FLAG, "bytes": pl.Binary()}
    pairs = (word.partition(":") for word in text.split())
    return {name: kinds[kind] for name, _, kind in pairs}


_TRIAL = "trial_id method env profile point lam:real seed:int "
_SWEEP = (
    "method env profile point lam:real metric protocol planner eval_point layer target probe event "
)

PER_TRIAL_KEYS = tuple(_columns(_TRIAL))
PER_SWEEP_KEYS = tuple(_columns(_SWEEP))

SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    "trials": _columns(
        _TRIAL
        + "status error diverged_step:int stop_reason attempts:int num_params:int num_steps:int "
        "batch_size:int num_threads:int precision wall_s:real started_at finished_at peak_mem_gb:real "
        "device host frames_per_s:real dataset_hash policy checkpoint_hash git_commit versions "
        "config_json mlflow_run_id"
    ),
    "attempts": _columns(_TRIAL + "attempt:int host started_at finished_at from_step:int reason"),
    "cells": _columns(_TRIAL + "stage cell_id status error manifest_hash wall_s:real"),
    "curves": _columns(
        _TRIAL + "step:int loss:real pred_loss:real sigreg_loss:real val_pred_loss:real "
        "grad_norm:real lr:real mean_std:real"
    ),
    "loss_terms": _columns(_TRIAL + "step:int term value:real"),
    "latents": _columns(
        _TRIAL + "layer effective_rank:real mean_std:real min_std:real epps_pulley:real "
        "isotropy:real straightness:real collapsed:flag pred_error:real copy_error:real"
    ),
    "planning": _columns(
        _TRIAL + "planner protocol eval_point num_samples:int num_iterations:int num_elites:int "
        "horizon:int history:int eval_seed:int manifest_hash pair_id:int episode_id:int start_row:int "
        "initial_success:flag success:flag steps_to_success:int final_distance:real plan_s:real"
    ),
    "probing": _columns(
        _TRIAL
        + "target dim:int layer probe mse:real mse_std:real r:real num_train:int num_test:int"
    ),
    "surprise": _columns(
        _TRIAL + "episode_id:int start_row:int event kind event_step:int surprise:real "
        "surprise_control:real"
    ),
    "examples": _columns(
        _TRIAL + "planner protocol eval_seed:int pair_id:int episode_id:int success:flag frame:int "
        "kind png:bytes"
    ),
    "stability": _columns(
        _SWEEP
        + "runs num_seeds:int num_eval_seeds:int num_episodes:int mean:real std:real iqr:real "
        "iqm:real optimality_gap:real ci_low:real ci_high:real ci_method worst:real num_collapsed:int "
        "num_diverged:int num_failed:int"
    ),
    "comparison": _columns(
        _SWEEP
        + "other other_kind paired:flag diff:real ci_low:real ci_high:real p_improvement:real "
        "p_value:real p_adjusted:real margin:real p_equivalence:real n:int"
    ),
    "profiles": _columns(_SWEEP + "tau:real fraction:real ci_low:real ci_high:real"),
    "timing": _columns(
        _SWEEP + "num_samples:int num_iterations:int batch:int dtype device host flops:real "
        "random_weights:flag plan_s:real"
    ),
    "search": _columns(
        _SWEEP + "strategy repetition:int order:int objective best_so_far:real reason"
    ),
    "claims": _columns(
        _SWEEP + "claim source published:real published_spread:real published_n:int ours:real "
        "ci_low:real ci_high:real n:int same_protocol:flag verdict"
    ),
    "summary": _columns(
        _SWEEP + "quantity value:real text ci_low:real ci_high:real ci_method n:int"
    ),
}

JOINED_LATER = ("eval_point",)
"""Columns of a stage's table that depend on the sweep and so are given as keys, not by the stage."""

STAGE_SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    stage: {
        name: dtype
        for name, dtype in SCHEMAS[stage].items()
        if name not in PER_TRIAL_KEYS + JOINED_LATER
    }
    for stage in ("latents", "planning", "probing", "surprise", "examples")
}
"""What a per-trial stage returns: the columns of its table without the keys."""

VOLATILE = frozenset(
    {name for schema in SCHEMAS.values() for name in schema if name.endswith("_s")}
    | {"frames_per_s", "peak_mem_gb", "attempts", "device", "host", "started_at", "finished_at"}
    | {"mlflow_run_id", "git_commit"}
)
"""Columns that may differ between an interrupted and an unbroken sweep; all others agree."""

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


def encode(frame: pl.DataFrame, schema: Schema) -> bytes:
    """Parquet bytes of the frame; equal for equal frames (same library versions)."""
    table = conform(frame, schema).rechunk().to_arrow()
    table = table.cast(pa.schema([pa.field(name, _arrow(dtype)) for name, dtype in schema.items()]))
    table = table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})
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
    data, name = storage.read_bytes(key), storage.where(key)
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise BrokenTable(f"{name} is not a whole Parquet file: {_first_line(error)}") from None
    version = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise BrokenTable(f"{name} has schema version {version}, not {SCHEMA_VERSION}")
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


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
    data = encode(sort_rows(conform(frame, _schema(name))), _schema(name))
    Storage(sweep).write_bytes(table_key(name), data)


def read_table(sweep: Place, name: str) -> pl.DataFrame:
    """The sweep's whole table; no rows if the sweep has none yet.

    Raises:
        ValueError: unknown table name, or (`BrokenTable`) a torn file.
    """
    try:
        return conform(read_part(Storage(sweep), table_key(name)), _schema(name))
    except FileNotFoundError:
        return pl.DataFrame(schema=dict(_schema(name)))


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
        frames = [sort_rows(read_part(Storage(place), table_key(name))) for place in (a, b)]
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
        raise ValueError(f"unknown table {name!r}; known: {', '.join(SCHEMAS)}")
    return SCHEMAS[name]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
