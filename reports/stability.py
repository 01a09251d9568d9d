"""What "stable" means here: every definition with its value, interval and n."""

from collections.abc import Callable

from reports import text
from reports.views import EMBEDDING, Row, World, setting_name

RATE, POINTS, LAM, NUMBER = "rate", "points", "lam", "number"
GROUPS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Spread over seeds",
        (
            ("seed_std", "standard deviation", POINTS),
            ("seed_iqr", "interquartile range", POINTS),
            ("worst_seed", "worst seed", RATE),
        ),
    ),
    (
        "Runs lost",
        (
            ("collapsed_best", "collapsed, best point", RATE),
            ("collapsed_tried", "collapsed, all tried", RATE),
            ("collapsed_control", "collapsed, control", RATE),
            ("diverged_best", "diverged, best point", RATE),
            ("diverged_tried", "diverged, all tried", RATE),
        ),
    ),
    (
        "Over λ",
        (
            ("plateau_low", "plateau from", LAM),
            ("plateau_high", "plateau to", LAM),
            ("sensitivity_below", "sensitivity below it", POINTS),
            ("sensitivity_above", "sensitivity above it", POINTS),
            ("share_near_best", "share of configurations near the best", RATE),
        ),
    ),
    (
        "The choice",
        (("p_best", "probability to be the best", RATE), ("regret", "regret", POINTS)),
    ),
)
SMOOTHNESS = (
    (
        "loss_bursts",
        "loss bursts per 1,000 steps",
        "the training loss exceeds 1.5 × the median of the 100 steps before, and six robust standard "
        "deviations",
    ),
    ("grad_bursts", "gradient bursts per 1,000 steps", "the same of the gradient's norm"),
    (
        "falling_share",
        "falling share",
        "share of the steps between successive twentieths of training in which the mean loss falls",
    ),
)
DEFINED = {
    "plateau_low": "its low end; interval: where that end lies in 95 % of the draws",
    "plateau_high": "its high end; interval: where that end lies in 95 % of the draws",
}
FORMATS: dict[str, tuple[Callable[[float | None], str], Callable[[Row], str]]] = {
    RATE: (text.percent, text.percent_span),
    POINTS: (lambda value: text.size_in_points(value), lambda row: text.size_span(row)),
    LAM: (lambda value: text.number(value), lambda row: text.number_span(row)),
    NUMBER: (lambda value: text.number(value), lambda row: text.number_span(row)),
}


def stability_table(world: World, setting: Row) -> Row:
    """Every definition of stability with its value at one planning setting, in groups."""
    groups = []
    for name, quantities in GROUPS:
        rows = [
            _row(label, found, kind, DEFINED.get(quantity, ""))
            for quantity, label, kind in quantities
            if (found := world.summary(quantity, **setting))
        ]
        if rows:
            groups.append({"name": name, "rows": rows})
    smooth = _smoothness(world, world.summary("best_point", **setting).get("point"))
    if smooth:
        groups.insert(2, {"name": "Smoothness of training, best point", "rows": smooth})
    return {
        "name": setting_name(setting),
        "best": world.summary("best_point", **setting).get("text") or "",
        "groups": groups,
        "chances": _chances(world, setting),
        "methods": _methods(world, setting),
    }


def _row(label: str, found: Row, kind: str, defined: str) -> list[str]:
    value, span = FORMATS[kind]
    n = text.DASH if not found["n"] else str(found["n"])
    shown = text.DASH if found["value"] is None else value(found["value"])
    told = found["text"] if found["value"] is None or not defined else defined
    interval = span(found) if found["value"] is not None else text.DASH
    return [label, shown, interval, n, str(told or "")]


def _smoothness(world: World, point: str | None) -> list[list[str]]:
    rows = []
    for metric, label, defined in SMOOTHNESS:
        for row in world.rows("stability", metric=metric, runs="all", point=point):
            if row["mean"] is not None:
                span = text.number_span(row) if row["ci_low"] is not None else text.DASH
                told = f"{defined}; worst seed {text.number(row['worst'])}"
                rows.append([label, text.number(row["mean"]), span, str(row["num_seeds"]), told])
    return rows


def _chances(world: World, setting: Row) -> list[Row]:
    """Per point the probability to be the best, and to lie within the margin of the best."""
    best = {
        row["point"]: row
        for quantity in ("p_best", "p_best_other")
        for row in world.rows("summary", quantity=quantity, **setting)
        if row["value"] is not None
    }
    near = {row["point"]: row for row in world.rows("summary", quantity="p_near_best", **setting)}
    chosen = world.summary("best_point", **setting).get("point")
    return [
        {
            "name": slot.name,
            "best": slot.point == chosen,
            "shares": [
                {"words": text.chance(found["value"]), "share": round(found["value"], 3)}
                for found in (best[slot.point], near[slot.point])
            ],
            "n": best[slot.point]["n"],
        }
        for slot in world.axis.slots
        if slot.point in best and slot.point in near
    ]


def _methods(world: World, setting: Row) -> str:
    """How the intervals of the table were made."""
    found = {
        "runs lost": "collapsed_best",
        "plateau": "plateau_low",
        "probabilities and regret": "p_best",
    }
    parts = []
    for words, quantity in found.items():
        row = world.summary(quantity, **setting)
        if (
            row.get("ci_method")
            and row.get("ci_low" if quantity != "p_best" else "value") is not None
        ):
            parts.append(f"{words}: {row['ci_method']}")
    return "; ".join(parts)


def collapse_rule(world: World) -> str:
    """The rule by which a run counts as collapsed, as far as the sweep's settings tell it."""
    latents = settings_of(world).get("latents", {})
    if "collapse_std" not in latents:
        return ""
    control = world.summary("collapsed_control", **world.main) if world.main else {}
    checked = f" Check: {control['text']}." if control.get("text") else ""
    return (
        f"A run counts as collapsed if its {EMBEDDING} embedding has a mean standard deviation below "
        f"{latents['collapse_std']:g}.{checked}"
    )


def settings_of(world: World) -> Row:
    """The first evaluation settings of a world, as its config tells them."""
    variants = world.meta.get("variants") or [{}]
    settings: Row = variants[0].get("config", {})
    return settings
