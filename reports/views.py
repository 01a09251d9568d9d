"""One world of a report: its success, latent health and training, as figures and table rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from reports import text
from reports.axis import PointAxis, make_axis
from reports.figures import Figure, curve_chart, point_chart, state

Row = dict[str, Any]
Tables = Mapping[str, pl.DataFrame]
SETTING = ("protocol", "planner", "eval_point")
EMBEDDING = "projected"
RATE_DOMAIN, RATE_TICKS = (-0.03, 1.03), (0, 0.2, 0.4, 0.6, 0.8, 1)
T_CAPTION = (
    "Bars: mean; whiskers: 95 % t interval over seeds, none where seeds are too few or equal."
)


@dataclass(frozen=True)
class World:
    """One method in one environment with one profile: a chapter of the report.

    `meta` is its entry in the sweep's `sweep.json`; empty if there is none.
    """

    key: Row
    tables: Tables
    axis: PointAxis
    meta: Row

    @property
    def name(self) -> str:
        """The world for readers."""
        return (
            f"{self.key['method']} in {text.world(self.key['env'])}, {self.key['profile']} profile"
        )

    def rows(self, table: str, **where: Any) -> list[Row]:
        """Rows of a table of this world with the given values, by λ, then point."""
        frame = self.tables[table]
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items()]
        return frame.filter(*same).sort("lam", "point", maintain_order=True).to_dicts()

    def summary(self, quantity: str, **where: Any) -> Row:
        """The summary row of a quantity; an empty dict if there is none."""
        rows = self.rows("summary", quantity=quantity, **where)
        return rows[0] if rows else {}

    def spread(self, metric: str, **where: Any) -> tuple[list[Row], list[Row]]:
        """`stability` rows of a metric: over all runs of each point, and run by run."""
        rows = [row for row in self.rows("stability", metric=metric, **where) if row["method"]]
        means = [row for row in rows if row["runs"] == "all"]
        return means, [row for row in rows if row["runs"].startswith("seed=")]


def worlds(tables: Tables, meta: Mapping[str, Any]) -> list[World]:
    """The chapters, in the order of their keys."""
    told = {(row["method"], row["env"]): row for row in meta.get("worlds") or []}
    names = ["method", "env", "profile"]
    frames = [tables[name].select(names) for name in ("trials", "stability")]
    keys = pl.concat(frames).filter(pl.col("method").is_not_null()).unique().sort(names)
    found = []
    for key in keys.iter_rows(named=True):
        place = [pl.col(name) == key[name] for name in ("env", "profile")]
        own = pl.col("method").is_null() | (pl.col("method") == key["method"])
        chosen = {name: frame.filter(own, *place) for name, frame in tables.items()}
        points = pl.concat(
            [chosen[name].select("point", "lam") for name in ("trials", "stability")]
        )
        points = points.unique().drop_nulls("point")
        pairs = [(str(point), lam) for point, lam in points.iter_rows()]
        own_meta = told.get((key["method"], key["env"]), {})
        found.append(World(dict(key), chosen, make_axis(pairs), own_meta))
    return found


def settings(world: World) -> list[Row]:
    """The planning settings, the verdict's first."""
    main = world.summary("verdict")
    found = [
        {name: row[name] for name in SETTING}
        for row in world.rows("summary", quantity="best_point")
    ]
    found.sort(key=lambda row: (any(row[name] != main.get(name) for name in SETTING), str(row)))
    return found


def setting_name(setting: Row) -> str:
    """A planning setting for readers."""
    extra = f", {setting['eval_point']}" if setting["eval_point"] else ""
    return f"{setting['protocol']} protocol, {str(setting['planner']).upper()} planner{extra}"


def success_figure(world: World, setting: Row, name: str, height: int) -> Figure:
    """Success against λ under one planning setting."""
    means, runs = world.spread("success", **setting)
    floors = [
        row
        for row in world.rows("stability", metric="success", protocol=setting["protocol"])
        if row["method"] is None and row["planner"] in ("random", "oracle")
    ]
    low, high = (world.summary(f"plateau_{end}", **setting) for end in ("low", "high"))
    plateau = None
    if low.get("value") is not None:
        places = {row["lam"]: world.axis.at(row["point"]) for row in means}
        if low["value"] in places and high["value"] in places:
            plateau = (places[low["value"]], places[high["value"]])
    pairs = text.between([row["num_episodes"] for row in floors], "pair")
    caption = (
        f"{_sentence(setting_name(setting))}. Each mark is one training seed "
        f"({text.between([row['num_seeds'] for row in means], 'seed')} per point, "
        f"{text.between([row['num_episodes'] or None for row in runs], 'episode')} each; a diverged run counts "
        f"as no success). {T_CAPTION} Grey: planners without a model on the same pairs, band 95 % "
        f"Wilson ({pairs})."
    )
    if plateau is not None:
        caption += f" Shaded: plateau, {low['ci_method']}."
    spec = point_chart(
        world.axis,
        means,
        runs,
        quantity="planning success (% of episodes)",
        y_format=".0%",
        y_domain=RATE_DOMAIN,
        y_values=RATE_TICKS,
        floors=floors,
        plateau=plateau,
    )
    return Figure(name, f"Planning success, {setting_name(setting)}", caption, spec, height)


def success_table(world: World, setting: Row) -> Row:
    """Success per point: over all runs, among converged ones, against best and random."""
    rows = []
    best = world.summary("best_point", **setting).get("point")
    for row in world.rows("stability", metric="success", runs="all", **setting):
        if row["method"] is None:
            continue
        at = {"metric": "success", "point": row["point"], **setting}
        converged = world.rows("stability", runs="converged", **at)
        rows.append(
            {
                "best": row["point"] == best,
                "cells": [
                    world.axis.name(row["point"]),
                    row["num_seeds"],
                    text.percent(row["mean"]),
                    text.percent_span(row),
                    text.percent(row["iqm"]),
                    text.percent(row["worst"]),
                    text.points(row["std"]).lstrip("+"),
                    text.percent(converged[0]["mean"]) if converged else text.DASH,
                    *(
                        row[name] or text.DASH
                        for name in ("num_collapsed", "num_diverged", "num_failed")
                    ),
                ],
            }
        )
    return {
        "name": setting_name(setting),
        "rows": rows,
        "differences": difference_table(world, setting),
        "facts": _facts(world, setting),
    }


def difference_table(world: World, setting: Row) -> list[Row]:
    """Each point against the best one and against random actions, on the same seeds and pairs."""
    best = world.summary("best_point", **setting).get("point")
    rows = []
    for slot in world.axis.slots:
        found = world.rows("comparison", metric="success", point=slot.point, **setting)
        against = {row["other"]: row for row in found}
        if against:
            cells = [*_difference(against.get(best)), *_difference(against.get("random"))]
            rows.append({"best": slot.point == best, "name": slot.name, "cells": cells})
    return rows


def _difference(row: Row | None) -> list[str]:
    """A difference of rates, its interval, the adjusted p-value and the seeds in common."""
    if row is None:
        return [text.DASH] * 4
    seeds = text.DASH if row["n"] is None else str(row["n"])
    return [text.points(row["diff"]), text.points_span(row), text.p_value(row["p_adjusted"]), seeds]


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _facts(world: World, setting: Row) -> list[Row]:
    """The numbers under the verdict, each with its n."""
    best = world.summary("best_point", **setting)
    success = world.summary("best_success", **setting)
    pooled = world.summary("best_success_pooled", **setting)
    worst, chance = world.summary("worst_seed", **setting), world.summary("p_best", **setting)
    low, high = (world.summary(f"plateau_{end}", **setting) for end in ("low", "high"))
    # floor rows name the floor as their planner
    random = world.summary("floor_random", protocol=setting["protocol"])
    oracle = world.summary("floor_oracle", protocol=setting["protocol"])
    seeds = text.between([success["n"]], "seed")
    plateau = "none"
    if low.get("value") is not None:
        ends = (text.number(low["value"]), text.number(high["value"]))
        plateau = ends[0] if ends[0] == ends[1] else text.DASH.join(ends)
    facts = [
        ("best point", best["text"], f"of {text.between([best['n']], 'point')}"),
        ("success there", text.percent(success["value"]), _interval_note(success, seeds)),
        ("worst seed", text.percent(worst["value"]), f"of {seeds}"),
        ("plateau", f"λ {plateau}" if plateau != "none" else plateau, _plateau_note(low)),
        ("stays best", text.percent(chance["value"]), "of draws, seeds resampled"),
    ]
    for row, name in ((random, "random actions"), (oracle, "recorded actions")):
        if row:
            facts.append(
                (name, text.percent(row["value"]), f"{text.percent_span(row)}, n = {row['n']}")
            )
    if pooled.get("ci_low") is not None:
        note = f"{text.percent_span(pooled)}, Wilson, n = {pooled['n']}; a first check only"
        facts.append(("episodes pooled", text.percent(pooled["value"]), note))
    return [{"label": label, "value": value, "note": note} for label, value, note in facts]


def _interval_note(success: Row, seeds: str) -> str:
    if success["ci_low"] is None:
        return f"no interval: {success['ci_method'].removeprefix('none: ')}"
    return f"{text.percent_span(success)}, t over {seeds}"


def _plateau_note(low: Row) -> str:
    return f"{low['n']} tested values" if low.get("value") is not None else ""


HEALTH = (
    ("mean_std", "standard deviation per dimension, mean", True, (1.0, "target 1")),
    ("epps_pulley", "Epps–Pulley distance to N(0, 1), per sample", True, None),
    ("effective_rank", "effective rank", True, None),
    ("straightness", "temporal straightness (mean cosine, −1 to 1)", False, None),
)


def health_figures(world: World, prefix: str) -> list[Figure]:
    """Latent health of the projected embedding against λ."""
    figures = []
    for metric, title, zero, reference in HEALTH:
        means, runs = world.spread(metric, layer=EMBEDDING)
        if runs:
            levels = [row["mean"] for row in runs] + ([reference[0]] if reference else [])
            spec = point_chart(
                world.axis,
                means,
                runs,
                quantity=title,
                titled=False,
                y_domain=_frame_of(levels, zero),
                reference=reference,
            )
            caption = (
                f"Projected embedding; {text.between([r['num_seeds'] for r in means], 'seed')}."
            )
            figures.append(Figure(f"{prefix}-{metric}", title, caption, spec, 210))
    return figures


def _frame_of(levels: list[float], zero: bool) -> tuple[float, float]:
    """An axis that shows every run; whiskers may leave it."""
    low, high = min(levels), max(levels)
    pad = 0.12 * (high - min(low, 0.0) if zero else high - low) or 0.1
    return (-0.4 * pad if zero and low >= 0 else low - pad), high + pad


CURVES = (
    ("pred_loss", "prediction loss (training)", True),
    ("val_pred_loss", "prediction loss (validation)", True),
    ("sigreg_loss", "SIGReg statistic", True),
    ("mean_std", "standard deviation per dimension, mean", False),
)


def curve_figures(world: World, prefix: str) -> list[Figure]:
    """Training curves, every seed a line."""
    if world.tables["curves"].is_empty():
        return []
    frames = world.tables["curves"].sort("lam", "point", "seed", "step")
    fates = {
        (row["point"], row["runs"]): state(row)
        for row in world.spread("mean_std", layer=EMBEDDING)[1]
    }
    lost = {row["trial_id"] for row in world.rows("trials", status="diverged")}
    runs = []
    for (trial, point, seed), frame in frames.group_by(
        "trial_id", "point", "seed", maintain_order=True
    ):
        fate = fates.get((str(point), f"seed={seed}"), "healthy")
        runs.append(
            {
                "name": world.axis.name(str(point)),
                "run": f"seed {seed}",
                "state": "diverged" if trial in lost else fate,
                "rows": frame.to_dicts(),
            }
        )
    names = [slot.name for slot in world.axis.slots]
    figures = []
    for metric, title, log in CURVES:
        spec = curve_chart(runs, names, metric, title, log)
        if spec["data"]["values"]:
            figures.append(Figure(f"{prefix}-curve-{metric}", title, "", spec, 230, curves=True))
    return figures
