"""What every table and column means, with its unit, and the page that says so (docs/tables.md)."""

import polars as pl

from pipeline.tables import (
    JUDGED,
    PER_SWEEP_KEYS,
    PER_TRIAL_KEYS,
    SCHEMAS,
    VOLATILE,
    current_version,
)

ROWS = {
    "trials": "one row per trial, whatever became of it",
    "attempts": "one row per process that worked on a trial",
    "cells": "one row per evaluation cell: trial × stage × settings; floors have no trial",
    "curves": "one row per optimiser step of a trial",
    "loss_terms": "one row per step and term of a method with further loss terms",
    "latents": "one row per trial and layer, over held-out clips",
    "planning": "one row per planned episode; floors (`random`, `zero`, `oracle`) have no trial",
    "probing": "one row per target dimension, layer and probe of a trial",
    "surprise": "one row per held-out clip and event of a trial",
    "reconstruction": "one row per held-out clip, frame and kind of picture of a trial",
    "examples": "one row per picture of a planned episode",
    "stability": "one row per point (or floor), metric, place and set of runs: the spread over seeds",
    "comparison": "one row per point, metric and what it is compared with",
    "profiles": "one row per point, setting and threshold: the performance profile over seeds",
    "timing": "one row per timed repetition of planning",
    "search": "one row per suggestion of a search, real or simulated",
    "claims": "one row per published number or statement, under `<storage>/reproduction/tables/`",
    "summary": "one row per conclusion: a number, a sentence, or both",
}

COLUMNS = {
    "trial_id": "hash of the trial's training settings, its seed and the recipe's version",
    "method": "what was trained (`lewm`, `pldm`, `dino_wm`)",
    "env": "environment",
    "profile": "size of model and run (`quick`, `small`, `paper`)",
    "point": "swept training settings without the seed, e.g. `loss.lam=0.1`",
    "lam": "λ, weight of SIGReg in the loss",
    "seed": "training seed",
    "status": "`done`, `diverged`, `failed`, `stopped`, `running`, `pending`, `unavailable`",
    "error": "first line of what failed",
    "diverged_step": "optimiser step at which the loss was not finite",
    "stop_reason": "why early stopping ended the trial",
    "attempts": "number of processes that worked on it",
    "num_params": "number of trained parameters",
    "num_steps": "optimiser steps",
    "batch_size": "clips per step",
    "num_threads": "CPU threads of one process",
    "precision": "`fp32` or `bf16`",
    "wall_s": "wall time, s",
    "started_at": "begin, ISO 8601, UTC",
    "finished_at": "end, ISO 8601, UTC",
    "peak_mem_gb": "largest resident memory of the process, GiB",
    "device": "`cpu`, or the accelerator",
    "host": "machine",
    "frames_per_s": "frames trained on per second, 1/s",
    "dataset_hash": "hash of the training file's decoded content",
    "policy": "behaviour that collected the training data",
    "checkpoint_hash": "hash of the final weights",
    "git_commit": "commit of the code that trained",
    "versions": "library versions, JSON",
    "config_json": "the whole resolved configuration, JSON",
    "mlflow_run_id": "run in MLflow",
    "attempt": "number of the process, from 1",
    "from_step": "step it went on from",
    "reason": "how or why it ended",
    "stage": "evaluation stage",
    "cell_id": "hash of trial, stage, its settings, schema version and manifest",
    "manifest_hash": "hash of the list of start/goal pairs",
    "step": "optimiser step, from 1",
    "loss": "total loss, pred_loss + λ · sigreg_loss",
    "pred_loss": "prediction loss on the batch: mean squared error of the next embedding",
    "sigreg_loss": "SIGReg statistic of the batch (grows with the batch size)",
    "val_pred_loss": "prediction loss on held-out clips; null where not measured",
    "grad_norm": "norm of the gradient before clipping",
    "lr": "learning rate",
    "mean_std": "standard deviation of the embedding, mean over dimensions",
    "term": "name of the loss term",
    "value": "value",
    "layer": "`encoder` (its output) or `projected` (the embedding)",
    "effective_rank": "exp of the entropy of the covariance's eigenvalues, 1 to latent size",
    "min_std": "standard deviation of the embedding, least dimension",
    "epps_pulley": "Epps–Pulley distance to N(0, 1) per sample, mean over directions; 0 is Gaussian",
    "isotropy": "evenness of the covariance's eigenvalues, up to 1",
    "straightness": "mean cosine between consecutive latent steps, −1 to 1",
    "collapsed": "whether the embedding collapsed by the sweep's rule; null but for `projected`",
    "pred_error": "mean squared error of the predicted next embedding",
    "copy_error": "mean squared error of copying the last embedding instead",
    "planner": "planner, or floor",
    "protocol": "evaluation protocol (`paper`, `moderate`, `strict`)",
    "eval_point": "swept evaluation settings; empty where none is swept",
    "num_samples": "action sequences per iteration of the planner",
    "num_iterations": "iterations of the planner",
    "num_elites": "sequences kept per iteration",
    "horizon": "planning horizon, blocks of actions",
    "history": "context frames given to the model",
    "eval_seed": "seed of pairs and planner",
    "pair_id": "number of the start/goal pair in its manifest",
    "episode_id": "episode of the data",
    "start_row": "row of the data where the episode or clip starts",
    "initial_success": "whether the start already counts as success",
    "success": "whether the goal was reached within the budget",
    "steps_to_success": "environment steps until success; null without",
    "final_distance": "distance to the goal at the end, in the environment's unit",
    "plan_s": "time spent planning, s",
    "target": "physical quantity that is read off",
    "dim": "dimension of the target",
    "probe": "`linear` (ridge) or `mlp`",
    "mse": "mean squared error of the standardised target; 1 is guessing the mean",
    "mse_std": "standard deviation of the squared error over frames",
    "r": "Pearson correlation with the target",
    "num_train": "frames the probe was fitted on",
    "num_test": "held-out frames it was judged on",
    "event": "what happens in the clip",
    "kind": "`physical` (impossible) or `visual` (possible, unusual)",
    "event_step": "environment step of the event from the clip's start",
    "surprise": "squared error between predicted and observed embedding at the event",
    "surprise_control": "the same for the unperturbed clip",
    "frame": "environment steps since the start",
    "png": "the picture, PNG",
    "metric": "what is measured: a column of another table, or a quantity made from it",
    "runs": "`all` (diverged count as no success), `converged`, or `seed=k` for one run",
    "num_seeds": "training seeds",
    "num_eval_seeds": "evaluation seeds",
    "num_episodes": "planned episodes behind a rate",
    "mean": "mean over seeds",
    "std": "standard deviation over seeds",
    "iqr": "distance between the quartiles over seeds",
    "iqm": "interquartile mean over seeds",
    "optimality_gap": "mean shortfall below a rate of 1",
    "ci_low": "lower end of the 95 % interval; null where it cannot be told",
    "ci_high": "upper end of the 95 % interval",
    "ci_method": "how the interval was made, or why there is none",
    "worst": "worst seed",
    "num_collapsed": "runs that collapsed",
    "num_diverged": "runs that diverged",
    "num_failed": "runs that failed",
    "other": "what it is compared with",
    "other_kind": "`point`, `floor`, `control`, `published`, `sweep`, `method` (best points) or `setting` (planner with its evaluation settings, best points)",
    "paired": "whether the same seeds (and pairs or clips) were set against each other",
    "diff": "mean difference, this one less the other, in the metric's unit",
    "p_improvement": "probability that a run of this one beats a run of the other",
    "p_value": "two-sided p of no difference",
    "p_adjusted": "the same after Holm over the points of one question",
    "margin": "difference that counts as practically none, in the metric's unit",
    "p_equivalence": "p of a difference of at least the margin (two one-sided tests)",
    "n": "independent units behind the number",
    "clip": "number of the clip in its draw, from 0",
    "ahead": "frames after the last context frame; 0 and less: context",
    "num_pairs": "start/goal pairs behind the difference",
    "tau": "threshold",
    "fraction": "share of seeds above the threshold",
    "batch": "episodes planned together",
    "setting": "`samples`: the planner's own; `flops`: as many as LeWM's operations buy",
    "num_samples_run": "samples really run",
    "num_iterations_run": "iterations really run",
    "measured_s": "time of what was run, s",
    "dtype": "number format",
    "flops": "floating-point operations of one plan",
    "random_weights": "whether the weights were untrained",
    "strategy": "`grid`, `random`, `bisect` or `tpe`",
    "repetition": "number of the simulated search; null for the real one",
    "order": "place in the search, from 0",
    "objective": "metric that is searched",
    "best_so_far": "objective of the best point so far, mean over seeds",
    "claim": "id of the claim in sweeps/published.toml; the numbers of a table share it",
    "statement": "the claim in words",
    "version": "version of the publication it was read in; empty for a re-evaluation",
    "reevaluation": "someone else's measurement, not the publication's",
    "sweep": "sweep that tests it",
    "folder": "run of that sweep in the storage; null where there is none",
    "command": "command line of the sweep",
    "source": "where it is published",
    "published": "published value, difference or factor; null where only a direction is known",
    "published_spread": "published standard deviation",
    "published_n": "published number of runs",
    "unit": "of published, ours and the interval: `share`, `points` (a difference of shares), `factor`, `s`, or the metric's own (null)",
    "ours": "our value, difference or factor; shown also where it decides nothing",
    "same_protocol": "whether ours has the published size, environment and protocol",
    "verdict": "`reproduced`, `not reproduced`, `undecided` (the interval does not decide), `not tested at this scale` or `not run`",
    "quantity": "name of the conclusion, e.g. `best_point`, `plateau_low`, `verdict`",
    "text": "its definition, its sentence, or why there is no value",
}

MEANT_HERE = {
    ("attempts", "reason"): "how the process ended",
    ("cells", "status"): "`done`, `failed` or `pending`",
    ("curves", "mean_std"): COLUMNS["mean_std"] + ", on held-out clips; null where not measured",
    ("latents", "mean_std"): COLUMNS["mean_std"] + ", over held-out frames",
    ("planning", "plan_s"): "time of encoding and planning, the episode's share of its chunk's, s",
    (
        "reconstruction",
        "kind",
    ): "`real`, `reconstructed` (from the frame's own embedding), `imagined` (from an "
    "open-loop rollout), `mean_frame` (the mean training frame, the floor)",
    (
        "reconstruction",
        "mse",
    ): "mean squared error against the real frame, pixels in 0 to 1; null for `real`",
    ("reconstruction", "frame"): "frame of the clip, from 0",
    ("reconstruction", "png"): "the picture, 112 px at most; null but for the first clips",
    ("examples", "kind"): "`start`, `goal` or `reached`",
    (
        "claims",
        "kind",
    ): "`absolute`, `order`, `direction`, `plateau` or `ratio`: the rule that judges it",
    ("claims", "order"): "place on the page, from 0",
    ("claims", "setting"): "what the row is about within its claim",
    ("claims", "text"): "why this verdict",
    ("claims", "n"): "what the interval is over: seeds, start/goal pairs, clips or repetitions",
    ("comparison", "other"): "the other point, floor, control or sweep",
    ("comparison", "n"): "seeds behind the difference; clips for `control`",
    ("profiles", "tau"): "threshold of the metric; trials spent for `search_share`",
    (
        "profiles",
        "fraction",
    ): "share of seeds above it; of searches on the plateau for `search_share`",
    ("timing", "repetition"): "repetition, in each of which all methods take their turn",
    ("timing", "num_threads"): "CPU threads of torch",
    (
        "timing",
        "plan_s",
    ): "time of one whole plan, searching scaled to all samples and iterations, s",
    ("search", "reason"): "why this point was suggested",
    ("summary", "value"): "the number, in the metric's unit; null where it cannot be told",
    ("summary", "n"): "what the number was made from: seeds, points, runs or trials",
}
"""Descriptions that differ from `COLUMNS` in one table."""

TYPES = {
    pl.String(): "text",
    pl.Float64(): "real",
    pl.Int64(): "whole",
    pl.Boolean(): "yes/no",
    pl.Binary(): "bytes",
}

HEAD = """# The tables of a sweep

Written by `python -m pipeline.tables > docs/tables.md`; do not edit by hand.

Every number of a report is a cell of these tables: Parquet files under
`<storage>/sweeps/<sweep>/tables/`, one per table, and under
`<storage>/comparisons/<a>--<b>/tables/` for a comparison of two sweeps. They are sorted by their lasting
columns; the same results give the same bytes. In Python:

```python
import polars as pl
from pipeline.tables import scan

episodes = scan("lambda", "planning")                     # a polars LazyFrame; storage="runs" is the default
episodes = scan("lambda", "planning", "s3://bucket/runs")  # the same out of a bucket
episodes = scan("/data/runs/sweeps/lambda-two_room-quick", "planning")
print(episodes.filter(pl.col("protocol") == "strict").group_by("lam").agg(pl.col("success").mean()).collect())
```

A file says its schema's version in its metadata (`schema_version`). Older versions are read: columns that
they lack are null (`pipeline.tables.schemas.ADDED`). {judged} are made from
the others: of an older version, they are made again by the next report. A newer version is refused with
one line. Cells of another version are evaluated again by the next sweep of that name.

*Volatile* columns may differ between an interrupted and an unbroken sweep; all others are the same to the
bit. Any column may be null where it does not apply.
"""


def describe(table: str, column: str) -> str:
    """What a column of a table means, with its unit."""
    return MEANT_HERE.get((table, column)) or COLUMNS[column]


def page() -> str:
    """The text of docs/tables.md."""
    judged = [f"`{name}`" for name in JUDGED]
    blocks = [HEAD.format(judged=f"{', '.join(judged[:-1])} and {judged[-1]}")]
    keys = [
        ("The keys of a trial", PER_TRIAL_KEYS, "trials", "Null for floors, which have no trial."),
        ("The keys of a conclusion", PER_SWEEP_KEYS, "summary", "Null where they do not apply."),
    ]
    for title, names, table, note in keys:
        blocks.append(f"## {title}\n\n{note}\n\n{_listing(table, names)}")
    for table, schema in SCHEMAS.items():
        shared = PER_TRIAL_KEYS if "trial_id" in schema else PER_SWEEP_KEYS
        first = "trial" if "trial_id" in schema else "conclusion"
        own = tuple(name for name in schema if name not in shared)
        about = f"{ROWS[table][:1].upper()}{ROWS[table][1:]}. Version {current_version(table)}."
        blocks.append(
            f"## `{table}`\n\n{about} First the keys of a {first}, then:\n\n{_listing(table, own)}"
        )
    return "\n".join(blocks)


def _listing(table: str, names: tuple[str, ...]) -> str:
    rows = ["| column | type | meaning |", "|---|---|---|"]
    for name in names:
        volatile = "; volatile" if name in VOLATILE else ""
        kind = TYPES[SCHEMAS[table][name]]
        rows.append(f"| `{name}` | {kind} | {describe(table, name)}{volatile} |")
    return "\n".join(rows) + "\n"
