"""A sweep as MLflow's pages show it: the parent run's note and key numbers, and a view of its runs.

Everything comes from the sweep's tables; nothing is computed here.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.results import success_name

Row = dict[str, Any]
Tables = Mapping[str, pl.DataFrame]
PLACE = ("method", "env", "profile", "protocol", "planner", "eval_point")
QUANTITIES = (
    "best_success", "worst_seed", "seed_std", "p_best", "regret", "plateau_low", "plateau_high",
    "floor_random", "collapsed_tried", "diverged_tried", "trials_missing", "cells_missing",
)  # fmt: skip
"""What of the summary the parent run holds as metrics `sweep/…`."""
WITH_INTERVAL = ("best_success",)
MOST_ROWS = 12
"""Points in the note's table; of more, those with the highest success."""


def worlds(tables: Tables) -> list[Row]:
    """The keys of each world's headline setting (`PLACE`), in the order of the report."""
    verdicts = tables["summary"].filter(pl.col("quantity") == "verdict")
    return verdicts.select(PLACE).to_dicts()


def _quantities(tables: Tables, world: Row) -> dict[str, Row]:
    """The summary of a world: rows of its headline setting, and those of no setting, by quantity."""
    rows = tables["summary"].filter(
        pl.col("method") == world["method"],
        pl.col("env") == world["env"],
        pl.col("quantity") != "p_best_other",
    )
    found: dict[str, Row] = {}
    for row in rows.iter_rows(named=True):
        if all(row[key] in (None, world[key]) for key in ("protocol", "planner", "eval_point")):
            found[row["quantity"]] = row
    return found


def sweep_metrics(tables: Tables) -> dict[str, float]:
    """The parent run's metrics, by name; with the environment in the name where there are several."""
    metrics: dict[str, float | None] = {}
    every = worlds(tables)
    for world in every:
        prefix = "sweep/" if len(every) == 1 else f"sweep/{world['env']}/"
        rows = _quantities(tables, world)
        metrics[f"{prefix}best_lam"] = rows.get("best_point", {}).get("lam")
        for name in QUANTITIES:
            row = rows.get(name, {})
            metrics[f"{prefix}{name}"] = row.get("value")
            if name in WITH_INTERVAL:
                metrics[f"{prefix}{name}_low"] = row.get("ci_low")
                metrics[f"{prefix}{name}_high"] = row.get("ci_high")
    metrics["sweep/trials"] = tables["trials"].height
    return {key: float(value) for key, value in metrics.items() if value is not None}


def missing(tables: Tables) -> list[str]:
    """One sentence per world and kind of what the sweep lacks; empty if it is whole."""
    texts = []
    every = worlds(tables)
    for world in every:
        rows = _quantities(tables, world)
        for name in ("trials_missing", "cells_missing"):
            row = rows.get(name, {})
            if row.get("value"):
                texts.append(f"{world['env']}: {row['text']}" if len(every) > 1 else row["text"])
    return texts


def note(tables: Tables, question: str, links: Mapping[str, str], command: str) -> str:
    """The parent run's description, in Markdown: verdict, certainty, success per point, what is missing.

    Args:
        links: addresses by what they lead to.
    """
    every = worlds(tables)
    parts = [" · ".join(f"[{name}]({address})" for name, address in links.items())]
    for world in every:
        rows = _quantities(tables, world)
        head = f"{world['env']}: " if len(every) > 1 else ""
        verdict = f"**{head}{rows['verdict']['text']}**"
        certainty = rows.get("certainty", {}).get("text")
        parts.append(" ".join([verdict, *([certainty] if certainty else [])]))
    parts += [f"**Missing:** {text}." for text in missing(tables) if text not in parts[-1]]
    parts.append(_success_table(tables, every))
    parts += [question, f"`{command}`"]
    return "\n\n".join(part for part in parts if part)


def _success_table(tables: Tables, every: Sequence[Row]) -> str:
    """Success per point and world as a Markdown table, under each world's headline setting."""
    rows: list[Row] = []
    for world in every:
        own = [pl.col(key).eq_missing(world[key]) for key in PLACE]
        rows += (
            tables["stability"]
            .filter(pl.col("metric") == "success", pl.col("runs") == "all", *own)
            .sort("lam", "point", nulls_last=True)
            .to_dicts()
        )
    rows = [row for row in rows if row["mean"] is not None]
    if not rows:
        return ""
    shown = sorted(rows, key=lambda row: -float(row["mean"]))[:MOST_ROWS]
    lines = [
        "| point | success | interval | worst seed | seeds |",
        "|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row in shown):
        place = f"{row['env']} " if len(every) > 1 else ""
        low, high = row["ci_low"], row["ci_high"]
        interval = "–" if low is None or high is None else f"{_percent(low)} – {_percent(high)}"
        cells = [
            f"{place}{(row['point'] or 'one point').replace('loss.lam=', 'λ = ')}",
            _percent(row["mean"]),
            interval,
            _percent(row["worst"]),
            str(row["num_seeds"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    methods = " / ".join(dict.fromkeys(str(row["ci_method"]) for row in rows))
    left_out = f"; the best {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    protocols = ", ".join(dict.fromkeys(str(world["protocol"]) for world in every))
    return "\n".join(lines) + f"\n\nProtocol {protocols}; interval {methods}{left_out}."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}".replace("%", " %")


def trial_note(row: Row) -> str | None:
    """Why a trial has no whole result, for its run's description; None if it has."""
    texts = {
        "failed": f"failed: {row['error']}",
        "diverged": f"diverged at step {row['diverged_step']}: a loss is no longer a number",
        "stopped": f"stopped early: {row['stop_reason']}",
    }
    return texts.get(row["status"])


def runs_view(tables: Tables, folder: str, grouped: bool) -> Row:
    """The state of MLflow's runs page that shows a sweep's trials, as the page itself would save it.

    Args:
        folder: the sweep's.
        grouped: one row per point, seeds averaged, instead of one row per trial.
    """
    every = worlds(tables)
    swept = _swept(tables["trials"])
    success = [success_name(w["protocol"], w["eval_point"]) for w in every if w["protocol"]]
    metrics = [*dict.fromkeys(f"final/{name}" for name in success)]
    metrics += ["final/val_pred_loss", "final/latents_effective_rank", "final/latents_collapsed"]
    section = _id(folder, "section")
    charts = _charts(swept, metrics, section, folder)
    state: Row = {
        "searchFilter": f"tags.`lewm.sweep` = '{folder}' and tags.`lewm.kind` = 'trial'",
        "orderByKey": "metrics.`lam`" if swept == ["lam"] else f"metrics.`{metrics[0]}`",
        "orderByAsc": swept == ["lam"],
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [
            "tags.`lewm.status`",
            *(f"params.`{key}`" for key in (*swept, "seed")),
            *(f"metrics.`{key}`" for key in metrics),
        ],
        "columnOrder": [
            "attributes.`Run Name`",
            "tags.`lewm.status`",
            *(f"params.`{key}`" for key in (*swept, "seed")),
            *(f"metrics.`{key}`" for key in metrics),
            "runDateAndNestInfo",
            "duration",
        ],
        "columnWidths": {f"metrics.`{key}`": 8 * len(key) + 24 for key in metrics},
        "runsHiddenMode": "FIRST_20_RUNS" if tables["trials"].height > 100 else "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": section,
                "name": "This sweep",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "isAccordionReordered": True,
    }
    if grouped:
        keys = [{"mode": "param", "groupByData": key} for key in swept]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": keys}
    return state


def _swept(trials: pl.DataFrame) -> list[str]:
    """The params in which a sweep's trials differ, the seed aside; `lam` if in none."""
    points = [dict(p.split("=", 1) for p in point.split(" ") if p) for point in trials["point"]]
    keys = dict.fromkeys(key.replace("loss.lam", "lam") for point in points for key in point)
    worlds = [key for key in ("env", "method") if trials[key].n_unique() > 1]
    return [*worlds, *keys] or ["lam"]


def _charts(swept: Sequence[str], metrics: Sequence[str], section: str, folder: str) -> list[Row]:
    """Parallel coordinates, success over the first swept key, and what tells how training went."""
    shared = {"metricSectionId": section, "deleted": False, "isGenerated": False}
    x = {"key": "log10_lam", "type": "METRIC"}
    if "lam" not in swept:
        x = {"key": swept[-1], "type": "PARAM"}
    charts: list[Row] = [
        {
            "type": "PARALLEL",
            "selectedParams": list(swept),
            "selectedMetrics": ["final/val_pred_loss", metrics[0]],
            "showAllRuns": False,
            "runsCountToCompare": 100,
        },
        {
            "type": "SCATTER",
            "xaxis": x,
            "yaxis": {"key": metrics[0], "type": "METRIC"},
            "runsCountToCompare": 100,
        },
    ]
    for key, scale in (
        ("train/val_pred_loss", "log"),
        ("train/sigreg_loss", "log"),
        ("train/mean_std", "linear"),
    ):
        charts.append(
            {
                "type": "LINE",
                "metricKey": key,
                "selectedMetricKeys": [key],
                "scaleType": scale,
                "xAxisKey": "step",
                "xAxisScaleType": "linear",
                "lineSmoothness": 0,
                "useGlobalXaxisKey": True,
                "useGlobalLineSmoothing": True,
                "runsCountToCompare": 100,
                "displayName": key,
            }
        )
    return [
        {**chart, **shared, "uuid": _id(folder, str(number))} for number, chart in enumerate(charts)
    ]


def _id(*names: str) -> str:
    """An identifier that is the same whenever the same view is saved."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, " ".join(names)))
