"""The tables of a paper: rows chosen and formatted once, for Markdown and LaTeX alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from reports import sections, text, views
from reports.views import Row, World

Cells = tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        label: short and unique, e.g. for a cross-reference.
        caption: says what is shown, with n and the method of its intervals.
        heads: of the columns.
        align: one letter per column: `l` words, `r` numbers, `p` running text.
    """

    label: str
    caption: str
    heads: Cells
    align: str
    rows: tuple[Cells, ...]


@dataclass(frozen=True)
class Paper:
    """A document of tables.

    Attributes:
        notes: paragraphs before the tables: verdict, how sure, what is missing.
    """

    title: str
    notes: tuple[str, ...]
    tables: tuple[PaperTable, ...]


def paper(tables: Mapping[str, pl.DataFrame], meta: Mapping[str, Any]) -> Paper:
    """A sweep as the tables of a paper; the same tables and meta give the same document.

    Args:
        tables: by name, with the schemas of the sweep's tables.
        meta: the sweep's `sweep.json`; everything in it is optional.
    """
    notes: list[str] = []
    found: list[PaperTable] = []
    worlds = views.worlds(tables, meta)
    for number, world in enumerate(worlds):
        notes += _notes(world, len(worlds) > 1)
        found += _of_world(world, f"w{number}-" if number else "")
    rows = tuple((name, value) for name, value in sections.provenance(meta, tables))
    if rows:
        caption = "Provenance: where every number of these tables comes from."
        found.append(PaperTable("provenance", caption, ("what", "value"), "lp", rows))
    if not worlds:
        notes.append("This sweep has no trials yet, so there is nothing to report.")
    title = str(meta.get("folder") or meta.get("name") or "sweep")
    return Paper(title, tuple(notes), tuple(found))


def _notes(world: World, named: bool) -> list[str]:
    said = [world.summary(name).get("text") for name in ("verdict", "certainty")]
    missing = [
        row["text"]
        for row in (world.summary("trials_missing"), world.summary("cells_missing"))
        if row and row["value"]
    ]
    if missing:
        said.append(f"Not complete: {'; '.join(missing)}.")
    name = f"{world.name}: " if named else ""
    return [name + " ".join(sentence for sentence in said if sentence)]


def _of_world(world: World, prefix: str) -> list[PaperTable]:
    found = []
    for number, setting in enumerate(views.settings(world)):
        own = f"{prefix}{number}-" if number else prefix
        found += [_success(world, setting, own), _conclusions(world, setting, own)]
        found.append(_differences(world, setting, own))
    found += [_floors(world, prefix), _training(world, prefix), _latents(world, prefix)]
    found += [_protocols(world, prefix), _trials(world, prefix)]
    return [table for table in found if table.rows]


def _success(world: World, setting: Row, prefix: str) -> PaperTable:
    means, runs = world.spread("success", **setting)
    rows = []
    for row in means:
        at = {"metric": "success", "point": row["point"], **setting}
        converged = world.rows("stability", runs="converged", **at)
        rows.append(
            (
                world.axis.name(row["point"]),
                str(row["num_seeds"]),
                text.DASH if row["num_episodes"] is None else str(row["num_episodes"]),
                text.percent(row["mean"]),
                text.percent_span(row),
                text.percent(row["iqm"]),
                text.percent(row["worst"]),
                text.points(row["std"]).lstrip("+"),
                text.percent(converged[0]["mean"]) if converged else text.DASH,
                *(str(row[f"num_{fate}"]) for fate in ("collapsed", "diverged", "failed")),
            )
        )
    seeds = text.between([row["num_seeds"] for row in means], "seed")
    episodes = text.between([row["num_episodes"] or None for row in runs], "episode")
    caption = (
        f"Planning success of {world.name}, {views.setting_name(setting)}: mean over {seeds} of "
        f"{episodes} each; a diverged run counts as no success, a failed one has no number. "
        f"{interval_words(means)} std: over seeds, in points; converged: mean without diverged runs."
    )
    heads = (
        *("point", "seeds", "episodes", "success", "95 % interval", "IQM", "worst seed", "std"),
        *("converged", "collapsed", "diverged", "failed"),
    )
    return PaperTable(f"{prefix}success", caption, heads, "l" + "r" * 11, tuple(rows))


def interval_words(rows: list[Row]) -> str:
    """How the intervals of some rows were made, and why some have none."""
    methods = list(dict.fromkeys(row["ci_method"] for row in rows if row["ci_method"]))
    made = [method for method in methods if not method.startswith("none")]
    lacking = [method.removeprefix("none: ") for method in methods if method.startswith("none")]
    words = f"Intervals: {'; '.join(made)}." if made else "No intervals."
    return words + (f" {text.DASH}: none ({', '.join(lacking)})." if lacking else "")


PERCENT, POINTS, NUMBER, WORDS = "percent", "points", "number", "words"
CONCLUSIONS = (
    ("best_point", "best point", WORDS),
    ("best_success", "success there", PERCENT),
    ("worst_seed", "worst seed", PERCENT),
    ("seed_std", "std over seeds, points", POINTS),
    ("seed_iqr", "IQR over seeds, points", POINTS),
    ("collapsed_best", "collapsed, best point", PERCENT),
    ("collapsed_tried", "collapsed, all tried", PERCENT),
    ("diverged_best", "diverged, best point", PERCENT),
    ("diverged_tried", "diverged, all tried", PERCENT),
    ("plateau_low", "plateau from λ", NUMBER),
    ("plateau_high", "plateau to λ", NUMBER),
    ("sensitivity_below", "loss per decade below, points", POINTS),
    ("sensitivity_above", "loss per decade above, points", POINTS),
    ("p_best", "probability to be the best", PERCENT),
    ("regret", "expected regret, points", POINTS),
    ("share_near_best", "configurations near the best", PERCENT),
    ("variance_seed", "variance: training seed", PERCENT),
    ("variance_eval_seed", "variance: evaluation seed", PERCENT),
    ("variance_pair", "variance: start/goal pair", PERCENT),
    ("variance_seed_by_eval", "variance: seed by evaluation", PERCENT),
    ("variance_residual", "variance: residual", PERCENT),
    ("half_width", "expected half-width, points", POINTS),
    ("seeds_to_halve", "seeds to halve it", NUMBER),
    ("pairs_to_halve", "pairs to halve it", NUMBER),
)


def _conclusions(world: World, setting: Row, prefix: str) -> PaperTable:
    """The quantities of a setting, each with its definition or sentence."""
    rows = []
    methods: dict[str, list[str]] = {}
    for quantity, name, kind in CONCLUSIONS:
        row = world.summary(quantity, **setting)
        if not row:
            continue
        value, span = conclusion_cells(row, kind)
        n = text.DASH if row["n"] is None else str(row["n"])
        told = "" if kind == WORDS else row["text"] or ""
        rows.append((name, value, span, n, told))
        if row["ci_low"] is not None and row["ci_method"]:
            methods.setdefault(row["ci_method"], []).append(name)
    told = "; ".join(f"{', '.join(names)}: {method}" for method, names in methods.items())
    caption = (
        f"What is concluded about {world.name}, {views.setting_name(setting)}; n: what the number was "
        f"made from (seeds, runs or points). Intervals: {told or 'none'}."
    )
    heads = ("quantity", "value", "95 % interval", "n", "meaning")
    return PaperTable(f"{prefix}conclusions", caption, heads, "lrrrp", tuple(rows))


def conclusion_cells(row: Row, kind: str) -> tuple[str, str]:
    """Value and interval of a row of `summary`."""
    value = row["text"] if kind == WORDS else _value(row["value"], kind)
    return str(value), _span(row, kind)


def _value(value: float | None, kind: str) -> str:
    if kind == PERCENT:
        return text.percent(value)
    return text.points(value).lstrip("+") if kind == POINTS else text.number(value)


def _span(row: Row, kind: str) -> str:
    if kind == PERCENT:
        return text.percent_span(row)
    if kind == POINTS and row["ci_low"] is not None:
        return f"{_value(row['ci_low'], kind)} to {_value(row['ci_high'], kind)}"
    return text.number_span(row)


def _differences(world: World, setting: Row, prefix: str) -> PaperTable:
    """Points against the best point and the floors."""
    rows, margins = [], set()
    for row in world.rows("comparison", metric="success", **setting):
        rows.append((world.axis.name(row["point"]), _other(world, row), *difference_cells(row)))
        margins.add(row["margin"])
    known = sorted(value for value in margins if value is not None)
    margin = ", ".join(text.points(value).lstrip("+") for value in known) or text.DASH
    caption = (
        f"Differences in success on the same seeds and start/goal pairs, {world.name}, "
        f"{views.setting_name(setting)}: in points, 95 % interval for new seeds and pairs, p after Holm "
        f"over the points of one question, p of a difference of at least {margin} points (two one-sided "
        f"tests, each by itself), seeds in common; other methods: the same pairs, separate seeds."
    )
    heads = ("point", "against", "difference", "95 % interval", "p", "p, equivalence", "seeds")
    return PaperTable(f"{prefix}differences", caption, heads, "llrrrrr", tuple(rows))


def _other(world: World, row: Row) -> str:
    """What a point is compared with, for readers."""
    other = str(row["other"] or "")
    if row["other_kind"] == "point":
        return world.axis.name(other)
    return text.method(other) if row["other_kind"] == "method" else FLOORS.get(other, other)


def difference_cells(row: Row) -> Cells:
    """Difference of rates, interval, adjusted p, p of equivalence, n."""
    n = text.DASH if row["n"] is None else str(row["n"])
    tests = (text.p_value(row["p_adjusted"]), text.p_value(row["p_equivalence"]))
    return (text.points(row["diff"]), text.points_span(row), *tests, n)


FLOORS = {"random": "random actions", "zero": "no action", "oracle": "recorded actions"}


def _floors(world: World, prefix: str) -> PaperTable:
    floors = [row for row in world.rows("stability", metric="success") if row["method"] is None]
    rows = [
        (
            str(row["protocol"]),
            FLOORS.get(row["planner"], str(row["planner"])),
            text.percent(row["mean"]),
            text.percent_span(row),
            str(row["num_episodes"]),
        )
        for row in sorted(floors, key=lambda row: (str(row["protocol"]), str(row["planner"])))
    ]
    caption = (
        f"Planners without a model on the same start/goal pairs, {text.world(world.key['env'])}. "
        f"{interval_words(floors)}"
    )
    heads = ("protocol", "planner", "success", "95 % interval", "pairs")
    return PaperTable(f"{prefix}floors", caption, heads, "llrrr", tuple(rows))


TRAINING = (
    ("val_pred_loss", "validation loss"),
    ("loss_bursts", "loss bursts"),
    ("grad_bursts", "gradient bursts"),
    ("falling_share", "falling share"),
)
HEALTH = (
    ("mean_std", "std per dimension"),
    ("effective_rank", "effective rank"),
    ("epps_pulley", "Epps–Pulley"),
    ("straightness", "straightness"),
    ("copy_ratio", "error, of copying's"),
)


def _training(world: World, prefix: str) -> PaperTable:
    about = (
        "Stability of training, {world}: mean over {seeds} (95 % interval); bursts per 1,000 steps; "
        "falling share: of the twentieths of training, those in which the loss falls. {intervals}"
    )
    return _means(world, f"{prefix}training", about, TRAINING, {})


def _latents(world: World, prefix: str) -> PaperTable:
    about = (
        "Health of the projected embedding on held-out clips, {world}: mean over {seeds} (95 % "
        "interval). {intervals}"
    )
    return _means(world, f"{prefix}latents", about, HEALTH, {"layer": views.EMBEDDING})


def _means(
    world: World, label: str, about: str, metrics: tuple[tuple[str, str], ...], place: Row
) -> PaperTable:
    """A row per point, a column per metric that the sweep has: mean and interval."""
    found = {metric: world.spread(metric, **place)[0] for metric, _ in metrics}
    known = [(metric, name) for metric, name in metrics if found[metric]]
    every = [row for rows in found.values() for row in rows]
    rows = []
    for slot in world.axis.slots:
        cells = []
        for metric, _ in known:
            row = next((row for row in found[metric] if row["point"] == slot.point), None)
            cells.append(_mean_cell(row))
        if any(cell != text.DASH for cell in cells):
            rows.append((slot.name, *cells))
    caption = about.format(
        world=world.name,
        seeds=text.between([row["num_seeds"] for row in every], "seed"),
        intervals=interval_words(every),
    )
    heads = ("point", *(name for _, name in known))
    return PaperTable(label, caption, heads, "l" + "r" * len(known), tuple(rows))


def _mean_cell(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return text.DASH
    span = f" ({text.number_span(row, 2)})" if row["ci_low"] is not None else ""
    return f"{text.number(row['mean'], 2)}{span}"


def _protocols(world: World, prefix: str) -> PaperTable:
    found = sections.protocol_table(world)
    rows = tuple((row["name"], *row["cells"]) for row in found["rows"])
    caption = f"Evaluation protocols of {world.name}."
    heads = ("rule", *found["names"])
    return PaperTable(f"{prefix}protocols", caption, heads, "l" + "p" * len(found["names"]), rows)


def _trials(world: World, prefix: str) -> PaperTable:
    """Every trial with the hash of its weights: what the numbers can be traced to."""
    rows = tuple(
        (
            world.axis.name(row["point"] or ""),
            text.DASH if row["seed"] is None else str(row["seed"]),
            str(row["status"]),
            str(row["trial_id"]),
            (row["checkpoint_hash"] or text.DASH)[:12],
        )
        for row in world.rows("trials")
    )
    caption = f"Trials of {world.name}; checkpoint: the first 12 digits of the hash of its weights."
    heads = ("point", "seed", "status", "trial", "checkpoint")
    return PaperTable(f"{prefix}trials", caption, heads, "lrlll", rows)
