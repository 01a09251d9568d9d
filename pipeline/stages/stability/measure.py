"""One number per run and metric, and how these spread over the seeds of a point."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pipeline import stats
from pipeline.stages.stability.episodes import GROUP, Episodes
from pipeline.tables import SCHEMAS, make_frame

POINT = ("method", "env", "profile", "point", "lam")
PLACE = ("protocol", "planner", "eval_point", "layer", "target", "probe", "event")
RATES = frozenset({"success"})
LOWER_IS_BETTER = frozenset(
    {"pred_loss", "val_pred_loss", "sigreg_loss", "probe_mse", "epps_pulley", "final_distance"}
    | {"copy_ratio", "loss_bursts", "grad_bursts", "frame_mse"}
)
_POSITIVE = (0.0, float("inf"))
BOUNDS: dict[str, tuple[float, float]] = {
    "success": (0.0, 1.0),
    "isotropy": (0.0, 1.0),
    "falling_share": (0.0, 1.0),
    "probe_r": (-1.0, 1.0),
    "straightness": (-1.0, 1.0),
    **dict.fromkeys(LOWER_IS_BETTER, _POSITIVE),
    **dict.fromkeys(("effective_rank", "mean_std", "min_std"), _POSITIVE),
    **dict.fromkeys(("surprise", "surprise_control", "surprise_ratio"), _POSITIVE),
}
"""Ranges to which intervals are clipped; without an entry a metric is unbounded."""
FLOOR_PLANNERS = ("random", "zero", "oracle")
FINISHED = ("done", "stopped", "diverged")

T_OVER_SEEDS = "95 % t over seeds"
TWO_WAY = "95 % over seeds and pairs"
WILSON_PAIRS = "95 % Wilson over start/goal pairs"
EXACT_SEEDS = "95 % exact (Clopper–Pearson) over seeds"
WILSON_RUN = "95 % Wilson over the episodes of one run"

_VALUES: dict[str, pl.DataType] = {
    "trial_id": pl.String(),
    **{name: SCHEMAS["stability"][name] for name in POINT},
    "seed": pl.Int64(),
    "metric": pl.String(),
    **{name: pl.String() for name in PLACE},
    "value": pl.Float64(),
    "num_episodes": pl.Int64(),
    "num_eval_seeds": pl.Int64(),
    "diverged": pl.Boolean(),
}


def run_values(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """One row per run, metric and place (protocol, layer, target ...): the run's number.

    Only finished runs count. A diverged run has success 0 in every setting that others were planned in,
    and no other number; a failed one has none.
    """
    frames = [
        _success(tables["planning"]),
        _final_losses(tables["curves"]),
        _smoothness(tables["curves"]),
        _melt(_with_copy_ratio(tables["latents"]), _LATENTS, ("layer",)),
        _probes(tables["probing"]),
        _surprise(tables["surprise"]),
        _frames(tables["reconstruction"]),
    ]
    values = pl.concat([frame for frame in frames if frame.height] or [_fit(pl.DataFrame())])
    status = tables["trials"].select("trial_id", "status").unique(maintain_order=True)
    values = values.join(status, on="trial_id", how="left")
    values = values.filter(
        pl.col("status").fill_null("done").is_in([*FINISHED]) & pl.col("value").is_finite()
    )
    values = values.with_columns(diverged=pl.col("status").eq_missing("diverged"))
    values = values.filter(~pl.col("diverged")).drop("status")
    return pl.concat([values, _diverged(tables["trials"], values)])


_LATENTS = (
    *("effective_rank", "mean_std", "min_std", "epps_pulley", "isotropy", "straightness"),
    "copy_ratio",
)


def _with_copy_ratio(latents: pl.DataFrame) -> pl.DataFrame:
    """Prediction error over that of copying the last frame; a model that learnt is below 1."""
    return latents.with_columns(copy_ratio=pl.col("pred_error") / pl.col("copy_error"))


def _fit(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as run values: absent columns null."""
    columns = [
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in _VALUES.items()
    ]
    return frame.select(columns) if frame.height else pl.DataFrame(schema=_VALUES)


def _keys(*more: str) -> list[str]:
    return ["trial_id", *POINT, "seed", *more]


def _melt(frame: pl.DataFrame, metrics: tuple[str, ...], place: tuple[str, ...]) -> pl.DataFrame:
    return _fit(frame.unpivot(list(metrics), index=_keys(*place), variable_name="metric"))


def _success(planning: pl.DataFrame) -> pl.DataFrame:
    runs = planning.filter(pl.col("trial_id").is_not_null())
    settings = _keys("protocol", "planner", "eval_point")
    counts = (
        pl.len().alias("num_episodes"),
        pl.col("eval_seed").n_unique().alias("num_eval_seeds"),
    )
    frames = [
        runs.group_by(settings, maintain_order=True)
        .agg(pl.col(column).cast(pl.Float64).mean().alias("value"), *counts)
        .with_columns(metric=pl.lit(column))
        for column in ("success", "final_distance")
    ]
    return pl.concat([_fit(frame) for frame in frames])


def _final_losses(curves: pl.DataFrame) -> pl.DataFrame:
    """Last finite value of each loss."""
    metrics = ("pred_loss", "val_pred_loss", "sigreg_loss")
    last = (
        curves.sort("step")
        .group_by(_keys(), maintain_order=True)
        .agg(pl.col(name).filter(pl.col(name).is_finite()).last() for name in metrics)
    )
    return _melt(last, metrics, ())


def _frames(reconstruction: pl.DataFrame) -> pl.DataFrame:
    """Mean error of drawn frames by kind (`target`) and frames ahead of the context (`event`)."""
    drawn = reconstruction.filter(pl.col("mse").is_not_null())
    means = drawn.group_by(_keys("kind", "ahead"), maintain_order=True).agg(
        pl.col("mse").mean().alias("value")
    )
    ahead = pl.format("ahead={}", pl.col("ahead"))
    return _fit(means.with_columns(metric=pl.lit("frame_mse"), target=pl.col("kind"), event=ahead))


SMOOTHNESS = ("loss_bursts", "grad_bursts", "falling_share")


def _smoothness(curves: pl.DataFrame) -> pl.DataFrame:
    """Bursts of loss and gradient norm per 1,000 judged steps, and how monotone the loss falls."""
    rows = []
    for key, frame in curves.group_by(_keys(), maintain_order=True):
        run = frame.sort("step")
        losses, norms = run["loss"].to_numpy(), run["grad_norm"].to_numpy()
        values = (
            stats.bursts_per_1000(losses),
            stats.bursts_per_1000(norms),
            stats.falling_share(losses),
        )
        rows.append({**dict(zip(_keys(), key)), **dict(zip(SMOOTHNESS, values))})
    if not rows:
        return _fit(pl.DataFrame())
    schema = {name: _VALUES[name] for name in _keys()} | dict.fromkeys(SMOOTHNESS, pl.Float64())
    return _melt(pl.DataFrame(rows, schema=schema), SMOOTHNESS, ())


def _probes(probing: pl.DataFrame) -> pl.DataFrame:
    named = probing.with_columns(
        target=target_name(),
        probe_r=pl.col("r"),
        probe_mse=pl.col("mse"),
    )
    return _melt(named, ("probe_r", "probe_mse"), ("target", "layer", "probe"))


def target_name() -> pl.Expr:
    """A probed quantity with its dimension, as `agent_position[0]`."""
    return pl.format("{}[{}]", pl.col("target"), pl.col("dim"))


def _surprise(surprise: pl.DataFrame) -> pl.DataFrame:
    means = surprise.group_by(_keys("event"), maintain_order=True).agg(
        pl.col("surprise").mean(), pl.col("surprise_control").mean()
    )
    named = means.with_columns(
        surprise_difference=pl.col("surprise") - pl.col("surprise_control"),
        surprise_ratio=pl.col("surprise") / pl.col("surprise_control"),
    )
    metrics = ("surprise", "surprise_control", "surprise_difference", "surprise_ratio")
    return _melt(named, metrics, ("event",))


def _diverged(trials: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """Success 0 for each diverged trial in each planning setting of its method, world and profile."""
    shared = ("method", "env", "profile")
    settings = (
        values.filter(pl.col("metric") == "success").select(*GROUP).unique(maintain_order=True)
    )
    lost = trials.filter(pl.col("status") == "diverged").select(_keys())
    rows = lost.join(settings, on=[*shared], how="inner", maintain_order="left_right")
    return _fit(
        rows.with_columns(
            metric=pl.lit("success"), value=pl.lit(0.0), num_episodes=0, diverged=pl.lit(True)
        )
    )


def measure(
    tables: Mapping[str, pl.DataFrame],
    values: pl.DataFrame,
    episodes: Mapping[tuple[Any, ...], Episodes],
) -> pl.DataFrame:
    """The `stability` table: per point, metric and place, over all runs and over converged ones.

    "all" counts a diverged run as no success; metrics other than success have no value for it, so
    there both rows agree. Each run has its own row too (`runs` is `seed=0`), so that a figure can show
    every seed. Floors come as rows with null method, point and lam.
    """
    collapsed = tables["latents"].filter(pl.col("collapsed"))["trial_id"].unique().to_list()
    counts = _counts(tables["trials"], collapsed)
    nothing = {"num_collapsed": 0, "num_diverged": 0, "num_failed": 0}
    rows: list[dict[str, Any]] = []
    combination = [*POINT, "metric", *PLACE]
    for key, group in values.group_by(combination, maintain_order=True):
        keys = dict(zip(combination, key, strict=True))
        point = counts.get(tuple(keys[name] for name in POINT), nothing)
        for runs in ("all", "converged"):
            chosen = group if runs == "all" else group.filter(~pl.col("diverged"))
            described = _describe(str(keys["metric"]), chosen)
            if keys["metric"] in RATES:
                own = episodes.get(tuple(keys[name] for name in GROUP))
                described |= _rate_interval(str(keys["point"]), own, runs == "all")
            rows.append({**keys, **point, "runs": runs, **described})
        rows += [{**keys, **_single(run, collapsed)} for run in group.iter_rows(named=True)]
    return make_frame(rows + _floors(tables["planning"]), SCHEMAS["stability"])


def _describe(metric: str, runs: pl.DataFrame) -> dict[str, Any]:
    """Spread over the seeds of one combination; null where it cannot be told."""
    runs = runs.sort("seed")
    sample = runs["value"].to_list()
    described: dict[str, Any] = {
        "num_seeds": len(sample),
        "num_eval_seeds": runs["num_eval_seeds"].max(),
        "num_episodes": int(runs["num_episodes"].sum()) if metric in RATES else None,
        "ci_method": "none: no runs",
    }
    if not sample:
        return described
    interval = stats.t_interval(sample, bounds=BOUNDS.get(metric))
    if interval is not None:
        described |= {"ci_low": interval.low, "ci_high": interval.high, "ci_method": T_OVER_SEEDS}
    else:
        described["ci_method"] = "none: one seed" if len(sample) == 1 else "none: all seeds equal"
    return {
        **described,
        "mean": sum(sample) / len(sample),
        "std": stats.std(sample),
        "iqr": stats.iqr(sample),
        "iqm": stats.iqm(sample),
        "optimality_gap": stats.optimality_gap(sample) if metric in RATES else None,
        "worst": max(sample) if metric in LOWER_IS_BETTER else min(sample),
    }


def _rate_interval(point: str, episodes: Episodes | None, with_lost: bool) -> dict[str, Any]:
    """The interval of a success rate, for new seeds and new pairs."""
    nothing = {"ci_low": None, "ci_high": None, "ci_method": "none: no episodes"}
    if episodes is None or not (pairs := episodes.pairs(point)):
        return nothing
    matrix = episodes.matrix(point, pairs, with_lost)
    interval = stats.rate_interval(matrix)
    if interval is not None:
        return {"ci_low": interval.low, "ci_high": interval.high, "ci_method": TWO_WAY}
    reason = "one seed" if len(matrix) < 2 else "all episodes alike"
    return {**nothing, "ci_method": f"none: {reason}"}


def _single(run: dict[str, Any], collapsed: Sequence[str]) -> dict[str, Any]:
    """One run's row; for a rate with Wilson's interval, which holds for this one model only."""
    row = {
        "runs": f"seed={run['seed']}",
        "num_seeds": 1,
        "num_eval_seeds": run["num_eval_seeds"],
        "mean": run["value"],
        "ci_method": "none: one run",
        "num_collapsed": int(run["trial_id"] in collapsed),
        "num_diverged": int(run["diverged"]),
        "num_failed": 0,
    }
    n = run["num_episodes"]
    if run["metric"] in RATES:
        row["num_episodes"] = n
        interval = stats.wilson(round(run["value"] * n), n)
        if interval is not None:
            row |= {"ci_low": interval.low, "ci_high": interval.high, "ci_method": WILSON_RUN}
    return row


def _counts(
    trials: pl.DataFrame, collapsed: Sequence[str]
) -> dict[tuple[Any, ...], dict[str, int]]:
    """Per point: how many trials collapsed, diverged, failed."""
    per_point = trials.group_by(POINT, maintain_order=True).agg(
        pl.col("trial_id").is_in(list(collapsed)).sum().alias("num_collapsed"),
        (pl.col("status") == "diverged").sum().alias("num_diverged"),
        (pl.col("status") == "failed").sum().alias("num_failed"),
    )
    return {
        tuple(row[name] for name in POINT): {k: int(row[k]) for k in row if k not in POINT}
        for row in per_point.iter_rows(named=True)
    }


def _floors(planning: pl.DataFrame) -> list[dict[str, Any]]:
    """Success of the planners without a model; their pairs are independent, so Wilson applies."""
    floors = planning.filter(pl.col("trial_id").is_null())
    rows = []
    for key, group in floors.group_by("env", "profile", "protocol", "planner", maintain_order=True):
        n, successes = group.height, int(group["success"].sum())
        interval = stats.wilson(successes, n)
        assert interval is not None
        rows.append(
            {
                **dict(zip(("env", "profile", "protocol", "planner"), key, strict=True)),
                "metric": "success",
                "runs": "all",
                "num_eval_seeds": group["eval_seed"].n_unique(),
                "num_episodes": n,
                "mean": successes / n,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "ci_method": WILSON_PAIRS,
            }
        )
    return rows


def success_profiles(values: pl.DataFrame) -> pl.DataFrame:
    """The `profiles` table: share of a point's seeds whose success is above tau (all runs).

    Performance profiles of Agarwal et al. 2021 over seeds; few seeds, so exact intervals.
    """
    rows = []
    success = values.filter(pl.col("metric") == "success")
    combination = [*POINT, "metric", *PLACE]
    for key, group in success.group_by(combination, maintain_order=True):
        keys = dict(zip(combination, key, strict=True))
        for step in range(21):
            tau = step / 20
            reached = int((group["value"] > tau).sum())
            interval = stats.exact(reached, group.height)
            assert interval is not None
            rows.append(
                {
                    **keys,
                    "tau": tau,
                    "fraction": reached / group.height,
                    "ci_low": interval.low,
                    "ci_high": interval.high,
                }
            )
    return make_frame(rows, SCHEMAS["profiles"])
