"""Columns and types of every table, and which version of them added what."""

from collections.abc import Mapping

import polars as pl

SCHEMA_VERSION = 2
"""Raised by any change of a stage's schema; part of every cell's identity and of every file's metadata."""
JUDGED_VERSION = 7
"""Version of the tables in `JUDGED`; raised also when their rows change their meaning."""
JUDGED = ("stability", "comparison", "profiles", "summary")
"""Tables made from others: one of an older version is made again, not migrated."""

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
    "reconstruction": _columns(
        _TRIAL + "clip:int episode_id:int start_row:int frame:int ahead:int kind mse:real png:bytes"
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
        "p_value:real p_adjusted:real margin:real p_equivalence:real n:int num_pairs:int ci_method"
    ),
    "profiles": _columns(_SWEEP + "tau:real fraction:real ci_low:real ci_high:real"),
    "timing": _columns(
        _SWEEP + "setting repetition:int num_samples:int num_iterations:int num_samples_run:int "
        "num_iterations_run:int batch:int dtype device host num_threads:int flops:real "
        "random_weights:flag measured_s:real plan_s:real"
    ),
    "search": _columns(
        _SWEEP + "strategy repetition:int order:int objective best_so_far:real reason"
    ),
    "claims": _columns(
        _SWEEP
        + "order:int claim kind statement setting source version reevaluation:flag sweep folder "
        "command published:real published_spread:real published_n:int unit margin:real ours:real ci_low:real "
        "ci_high:real ci_method n:int num_episodes:int same_protocol:flag verdict text"
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
    for stage in ("latents", "planning", "probing", "surprise", "examples", "reconstruction")
}
"""What a per-trial stage returns: the columns of its table without the keys."""

VOLATILE = frozenset(
    {name for schema in SCHEMAS.values() for name in schema if name.endswith("_s")}
    | {"frames_per_s", "peak_mem_gb", "attempts", "device", "host", "started_at", "finished_at"}
    | {"mlflow_run_id", "git_commit"}
)
"""Columns that may differ between an interrupted and an unbroken sweep; all others agree."""

ADDED: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "latents": ("pred_error", "copy_error"),
        "examples": ("planner", "protocol", "eval_seed", "pair_id", "success"),
    },
    3: {"comparison": ("num_pairs", "ci_method")},
}
"""Columns that a version of the schemas added, by table: null in tables of the versions before it."""
