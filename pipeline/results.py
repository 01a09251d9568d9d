"""Gathers what trials and cells left in the storage into the sweep's tables and final metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.plan_times import read_times
from pipeline.search.record import (
    read_stopped,
    read_suggestions,
    search_rows,
    search_summary,
    with_search,
)
from pipeline.shipped import load_published
from pipeline.spec import Spec, Trial
from pipeline.stages import stability
from pipeline.storage import Storage, parse_rows, read_marker
from pipeline.tables import (
    PER_TRIAL_KEYS,
    SCHEMAS,
    STAGE_SCHEMAS,
    consolidate,
    make_frame,
    read_part,
    write_table,
)

Row = dict[str, Any]
Parts = dict[str, list[tuple[Row, pl.DataFrame]]]


def keys_of(spec: Spec, trial: Trial) -> Row:
    """The sweep's key columns of a trial."""
    config = trial.config
    return {
        "trial_id": trial.trial_id,
        "method": config.method,
        "env": config.data.env,
        "profile": spec.profile,
        "point": trial.point,
        "lam": config.lam if spec.knows_lam else None,
        "seed": config.seed,
    }


def floor_keys(spec: Spec, env: str) -> Row:
    """The key columns of floors: they belong to no trial."""
    return dict.fromkeys(PER_TRIAL_KEYS) | {"env": env, "profile": spec.profile}


def write_tables(
    spec: Spec,
    storage: Storage,
    cells: Mapping[str | None, list[Any]],
    status_of: Callable[[Any], Row],
    run_ids: Mapping[str, str],
    values: Mapping[str, float | None],
) -> dict[str, pl.DataFrame]:
    """Writes every table of the sweep from the storage; equal tables are left untouched.

    Args:
        cells: per trial id (None: floors) its `pipeline.cells.Cell`s.
        status_of: the marker of a cell.
        run_ids: per trial id its MLflow run.
        values: per trial id the objective of an adaptive search.

    Returns:
        All tables by name.
    """
    folder = storage.at(f"sweeps/{spec.folder}")
    tables = {
        "trials": _frame("trials", [_trial_row(spec, storage, t, run_ids) for t in spec.trials]),
        "attempts": _frame("attempts", _attempt_rows(spec, storage)),
        "curves": _curves(spec, storage),
        "loss_terms": _loss_terms(spec, storage),
    }
    cell_rows: list[Row] = []
    parts: Parts = {stage: [] for stage in STAGE_SCHEMAS}
    by_id = {trial.trial_id: trial for trial in spec.trials}
    for trial_id, owned in cells.items():
        own = None if trial_id is None else by_id[trial_id]
        _gather(spec, storage, own, owned, parts)
        for cell in owned:
            keys = floor_keys(spec, cell.env) if own is None else keys_of(spec, own)
            marker = status_of(cell)
            cell_rows.append(
                keys
                | {
                    "stage": cell.stage,
                    "cell_id": cell.cell_id,
                    "status": marker["status"],
                    "error": marker["error"],
                    "manifest_hash": cell.manifest_hash,
                    "wall_s": marker["wall_s"],
                }
            )
    tables["cells"] = _frame("cells", cell_rows)
    for stage, found in parts.items():
        tables[stage] = consolidate(found, stage)
    tables["timing"] = read_times(spec, storage)
    tables |= stability.run(tables, load_published())
    tables = _searched(spec, storage, tables, values)
    for name, frame in tables.items():
        write_table(folder, name, frame)
    return tables


def trial_metrics(
    spec: Spec, storage: Storage, trial: Trial, cells: Sequence[Any]
) -> dict[str, float]:
    """The `final/...` summary of a trial from its curve and those of its cells that are done."""
    parts: Parts = {stage: [] for stage in STAGE_SCHEMAS}
    _gather(spec, storage, trial, cells, parts)
    tables = {stage: consolidate(found, stage) for stage, found in parts.items()}
    curve = (keys_of(spec, trial), _curve(storage, trial.trial_id))
    return final_metrics({**tables, "curves": consolidate([curve], "curves")}, trial.trial_id)


def _gather(
    spec: Spec, storage: Storage, trial: Trial | None, cells: Sequence[Any], parts: Parts
) -> None:
    """Adds the parts of a trial's cells (None: floors) that are done."""
    for cell in cells:
        if (storage.read_json(cell.marker) or {}).get("status") == "done":
            keys = floor_keys(spec, cell.env) if trial is None else keys_of(spec, trial)
            own = {"eval_point": cell.eval_point} if cell.stage == "planning" else {}
            parts[cell.stage].append((keys | own, read_part(storage, cell.part)))


def _searched(
    spec: Spec,
    storage: Storage,
    tables: dict[str, pl.DataFrame],
    values: Mapping[str, float | None],
) -> dict[str, pl.DataFrame]:
    """The tables with what a search suggested and found."""
    folder = storage.at(f"sweeps/{spec.folder}")
    if not spec.search.is_adaptive:
        return with_search(tables, folder)
    known = read_suggestions(storage, spec.folder)
    rows, summary = search_rows(spec, known, values), search_summary(spec, known, values)
    return with_search(tables, folder, rows, summary)


def _frame(table: str, rows: list[Row]) -> pl.DataFrame:
    return make_frame(rows, SCHEMAS[table])


def _trial_row(spec: Spec, storage: Storage, trial: Trial, run_ids: Mapping[str, str]) -> Row:
    stopped = read_stopped(storage, spec.folder).get(trial.trial_id)
    marker = read_marker(storage, trial.trial_id) or {"status": "pending"}
    if stopped is not None:  # of this sweep, whatever became of the trial elsewhere
        marker = {
            "status": "stopped",
            "stop_reason": stopped["reason"],
            "num_steps": stopped["step"],
        }
    known = {k: v for k, v in marker.items() if k in SCHEMAS["trials"]}
    return {
        **known,
        **keys_of(spec, trial),
        "config_json": trial.config.model_dump_json(),
        "mlflow_run_id": run_ids.get(trial.trial_id),
    }


def _attempt_rows(spec: Spec, storage: Storage) -> list[Row]:
    wanted = SCHEMAS["attempts"]
    rows = []
    for trial in spec.trials:
        stored = storage.read_json(f"trials/{trial.trial_id}/attempts.json") or {"rows": []}
        for row in stored["rows"]:
            rows.append({k: v for k, v in row.items() if k in wanted} | keys_of(spec, trial))
    return rows


def _curves(spec: Spec, storage: Storage) -> pl.DataFrame:
    """Every step of every trial."""
    stopped = read_stopped(storage, spec.folder)
    frames = []
    for trial in spec.trials:
        frame = _curve(storage, trial.trial_id)
        if trial.trial_id in stopped:
            frame = frame.filter(pl.col("step") < stopped[trial.trial_id]["step"])
        frames.append((keys_of(spec, trial), frame))
    return consolidate(frames, "curves")


def _loss_terms(spec: Spec, storage: Storage) -> pl.DataFrame:
    """The terms of losses beside those that `curves` has columns for, one row per step and term."""
    own = {n: SCHEMAS["loss_terms"][n] for n in ("step", "term", "value")}
    frames = []
    for trial in spec.trials:
        content = _curve_bytes(storage, trial.trial_id)
        first = parse_rows(content.partition(b"\n")[0])
        terms = [key for row in first for key in row if key not in SCHEMAS["curves"]]
        if not terms:
            continue
        long = [
            {"step": row["step"], "term": term, "value": row.get(term)}
            for row in parse_rows(content)
            for term in terms
        ]
        frames.append((keys_of(spec, trial), make_frame(long, own).drop_nulls("value")))
    return consolidate(frames, "loss_terms")


def _curve(storage: Storage, trial_id: str) -> pl.DataFrame:
    own = {k: v for k, v in SCHEMAS["curves"].items() if k not in PER_TRIAL_KEYS}
    content = _curve_bytes(storage, trial_id)
    try:
        return pl.read_ndjson(content, schema=own) if content else make_frame([], own)
    except pl.exceptions.PolarsError:  # a torn line, or a number that JSON proper lacks
        return make_frame([{k: row.get(k) for k in own} for row in parse_rows(content)], own)


def trial_curve(storage: Storage, trial_id: str) -> list[Row]:
    """The training curve of a trial, one row per step."""
    return parse_rows(_curve_bytes(storage, trial_id))


def _curve_bytes(storage: Storage, trial_id: str) -> bytes:
    try:
        return storage.read_bytes(f"trials/{trial_id}/curve.jsonl")
    except FileNotFoundError:
        return b""


def success_name(protocol: str, eval_point: str | None) -> str:
    """The final metric that holds a trial's success under a protocol and an evaluation setting."""
    extra = f"_{eval_point}".replace("=", "_") if eval_point else ""
    return f"success_{protocol}{extra}"


def final_metrics(tables: Mapping[str, pl.DataFrame], trial_id: str) -> dict[str, float]:
    """The `final/...` summary of a trial over all stages, flat, for MLflow."""
    own = {
        name: tables[name].filter(pl.col("trial_id") == trial_id)
        for name in ("curves", "latents", "planning", "probing", "surprise")
    }
    finals: dict[str, float | None] = {}
    for name in ("loss", "pred_loss", "sigreg_loss", "val_pred_loss", "mean_std"):
        values = own["curves"].sort("step")[name].drop_nulls()
        finals[name] = values[-1] if len(values) else None
    for row in own["latents"].filter(pl.col("layer") == "projected").iter_rows(named=True):
        for name in ("effective_rank", "mean_std", "epps_pulley", "straightness", "collapsed"):
            finals[f"latents_{name}"] = row[name]
        if row["copy_error"]:
            finals["latents_copy_ratio"] = row["pred_error"] / row["copy_error"]
    success = own["planning"].group_by("protocol", "eval_point").agg(pl.col("success").mean())
    for row in success.iter_rows(named=True):
        finals[success_name(row["protocol"], row["eval_point"])] = row["success"]
    probes = own["probing"].filter(pl.col("layer") == "projected")
    for row in probes.group_by("target", "probe").agg(pl.col("r").mean()).iter_rows(named=True):
        finals[f"r_{row['probe']}_{row['target']}"] = row["r"]
    ratio = (
        own["surprise"]
        .group_by("event")
        .agg((pl.col("surprise").mean() / pl.col("surprise_control").mean()).alias("ratio"))
    )
    for row in ratio.iter_rows(named=True):
        finals[f"surprise_ratio_{row['event']}"] = row["ratio"]
    return {f"final/{k}": float(v) for k, v in sorted(finals.items()) if v is not None}
