"""Which point, how sure, how wide the plateau: one planning setting's numbers, and what each of them means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline import stats
from pipeline.stages.stability import words
from pipeline.stages.stability.differences import MARGIN
from pipeline.stages.stability.episodes import GROUP, Episodes
from pipeline.stages.stability.measure import EXACT_SEEDS, FLOOR_PLANNERS

Row = dict[str, Any]
Draws = npt.NDArray[np.float64]
DRAWS = "4,000 draws of the points' means, Student's t over seeds on the logit scale"


@dataclass(frozen=True)
class Setting:
    """One planning setting: its keys, its points and their rows of `stability` over all runs.

    Attributes:
        group: values of `GROUP`.
        best: the row of the best point.
        points: the rows of all points, by λ, then point.
        floors: rows of the planners without a model under the same protocol.
        comparison: rows of the setting.
        episodes: what was planned.
    """

    group: Row
    best: Row
    points: list[Row]
    floors: dict[str, Row]
    comparison: pl.DataFrame
    episodes: Episodes

    @property
    def at_best(self) -> Row:
        """Keys of a row about the best point."""
        return self.base | {"point": self.best["point"], "lam": self.best["lam"]}

    @property
    def base(self) -> Row:
        """Keys of a row about the setting."""
        return {**self.group, "metric": "success"}


def read_setting(
    key: Sequence[Any],
    best: Row,
    stability: pl.DataFrame,
    comparison: pl.DataFrame,
    episodes: Episodes,
) -> Setting:
    """The setting of a key of `GROUP`."""
    group = dict(zip(GROUP, key, strict=True))
    same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in group.items()]
    rows = stability.filter(
        pl.col("metric") == "success", pl.col("runs") == "all", pl.col("method").is_not_null()
    )
    place = [
        pl.col(name).eq_missing(pl.lit(group[name])) for name in ("env", "profile", "protocol")
    ]
    floors = stability.filter(pl.col("method").is_null(), *place).to_dicts()
    return Setting(
        group,
        best,
        rows.filter(*same).sort("lam", "point").to_dicts(),
        {row["planner"]: row for row in floors if row["planner"] in FLOOR_PLANNERS},
        comparison.filter(*same),
        episodes,
    )


def decide(setting: Setting) -> list[Row]:
    """The setting's quantities; a null value is one that cannot be told, and its text says why."""
    clear = _clears_random(setting)
    return [
        *_best(setting),
        *_floors(setting),
        clear,
        *_rates(setting),
        *_plateau(setting, clear["value"]),
    ]


def _best(setting: Setting) -> list[Row]:
    best, base = setting.best, setting.at_best
    name, seeds = words.label(best["point"], best["lam"]), best["num_seeds"]
    return [
        {
            **base,
            "quantity": "best_point",
            "value": best["lam"],
            "text": name,
            "n": len(setting.points),
        },
        {
            **base,
            "quantity": "best_success",
            "value": best["mean"],
            **{key: best[key] for key in ("ci_low", "ci_high", "ci_method")},
            "n": seeds,
            "text": f"mean success over {words.count(seeds, 'seed')} at {name}",
        },
        *(
            {**base, "quantity": name, "value": best[column], "n": seeds, "text": text}
            for name, column, text in SPREAD
        ),
    ]


SPREAD = (
    ("worst_seed", "worst", "success of the worst seed at the best point"),
    ("seed_std", "std", "standard deviation of success over seeds at the best point"),
    ("seed_iqr", "iqr", "distance between the quartiles of success over seeds at the best point"),
)


def _floors(setting: Setting) -> list[Row]:
    return [
        {
            **setting.base,
            "planner": planner,
            "quantity": f"floor_{planner}",
            "value": row["mean"],
            **{key: row[key] for key in ("ci_low", "ci_high", "ci_method")},
            "n": row["num_episodes"],
        }
        for planner, row in setting.floors.items()
    ]


def _clears_random(setting: Setting) -> Row:
    """Whether the best point plans better than random actions: 1, 0 or null."""
    row = {**setting.at_best, "quantity": "clears_random", "n": setting.best["num_seeds"]}
    random = setting.floors.get("random")
    found = setting.comparison.filter(
        pl.col("other") == "random", pl.col("point").eq_missing(pl.lit(setting.best["point"]))
    ).to_dicts()
    if random is None or not found:
        return {**row, "value": None, "text": "no random floor on these pairs yet", "n": 0}
    test = found[0]
    if test["p_adjusted"] is not None:
        clear = test["diff"] > 0 and test["p_adjusted"] < 0.05
        gain = f"{100 * test['diff']:+.0f} points"
        text = f"{gain} on the same pairs, {words.p_text(test['p_adjusted'])} after Holm"
        method = "paired over seeds and pairs"
        return {**row, "value": float(clear), "text": text, "ci_method": method}
    pairs = setting.episodes.pairs(setting.best["point"])
    matrix = setting.episodes.matrix(setting.best["point"], pairs)
    lows = [stats.wilson(int(run.sum()), len(run)) for run in matrix]
    clear = all(one is not None and one.low > random["ci_high"] for one in lows)
    text = f"every run's own interval lies {'' if clear else 'not '}above the floor's"
    method = "Wilson intervals apart: these trained models only"
    return {**row, "value": float(clear), "text": text, "ci_method": method}


def _rates(setting: Setting) -> list[Row]:
    """How often runs collapse or diverge: at the best point, over all points tried, and at the control."""
    tried = [row for row in setting.points if row["lam"] != 0]
    control = [row for row in setting.points if row["lam"] == 0]
    rows = []
    for fate in ("collapsed", "diverged"):
        for scope, chosen, where in (
            ("best", [setting.best], "at the best point"),
            ("tried", tried, "over all points but λ = 0, the control,"),
            ("control", control, "at λ = 0, where they are meant to collapse,"),
        ):
            n = sum(row["num_seeds"] for row in chosen)
            if not n:
                continue
            bad = sum(row[f"num_{fate}"] for row in chosen)
            interval = stats.exact(bad, n)
            keys = setting.at_best if scope == "best" else setting.base
            rows.append(
                {
                    **keys,
                    "quantity": f"{fate}_{scope}",
                    "value": bad / n,
                    "ci_low": interval.low if interval else None,
                    "ci_high": interval.high if interval else None,
                    "ci_method": EXACT_SEEDS,
                    "n": n,
                    "text": f"{bad} of {words.count(n, 'run')} {where} {fate}",
                }
            )
    return rows


def _plateau(setting: Setting, clear: float | None) -> list[Row]:
    """The plateau over λ > 0 among points that differ from the best one in λ only, and how sure it all is."""
    rest = words.apart_from_lam(setting.best["point"])
    line = [
        row
        for row in setting.points
        if row["lam"] is not None and words.apart_from_lam(row["point"]) == rest
    ]
    positive = [row for row in line if row["lam"] > 0]
    lams, means = [row["lam"] for row in positive], [row["mean"] for row in positive]
    found = stats.plateau(lams, means, MARGIN)
    draws = _draws(setting, setting.points)
    of_line = None if draws is None else draws[[setting.points.index(row) for row in positive]]
    ends: list[Row] = [
        {**setting.base, "quantity": f"plateau_{end}", "n": 0} for end in ("low", "high")
    ]
    slopes: list[Row] = []
    if len({row["lam"] for row in line}) < 2:
        text = _near_words(setting, clear)
    elif found is None:
        text = "no plateau: no λ > 0 has planning results"
    elif clear == 0.0:
        text = "no plateau: no λ plans clearly better than random actions"
    elif len(positive) < 2:
        text = "no plateau: a single λ > 0 shows no range"
    else:
        inside = [found.low <= lam <= found.high for lam in lams]
        near = None if of_line is None else stats.within_margin(of_line, MARGIN)[inside].min()
        text = words.plateau_text(found, MARGIN, None if near is None else float(near))
        sure = None if of_line is None else stats.plateau_ends(lams, of_line, MARGIN)
        for place, (row, value) in enumerate(zip(ends, (found.low, found.high), strict=True)):
            row |= {"value": value, "n": found.num_points}
            if sure is not None:
                row |= {"ci_low": sure[place].low, "ci_high": sure[place].high}
        slopes = _slopes(setting, lams, means, found)
    method = (
        f"widest contiguous range of tested λ > 0 with mean success within {MARGIN:g} of the best"
    )
    told = [{**row, "text": text, "ci_method": f"{method}; ends: {DRAWS}"} for row in ends]
    return [*told, *slopes, *_certainty(setting, draws), _share_near(setting)]


def _near_words(setting: Setting, clear: float | None) -> str:
    """What stands for the plateau where λ is not swept."""
    if len(setting.points) < 2:
        return "one setting was tried, so nothing is known about others"
    if clear == 0.0:
        return "no setting plans clearly better than random actions"
    near = sum(row["mean"] >= setting.best["mean"] - MARGIN for row in setting.points)
    return (
        f"{near} of {len(setting.points)} settings are within {100 * MARGIN:.0f} points of the best"
    )


def _slopes(
    setting: Setting, lams: Sequence[float], means: Sequence[float], found: stats.Plateau
) -> list[Row]:
    rows = []
    sides = zip(("below", "above"), stats.outer_slopes(lams, means, found), strict=True)
    for side, slope in sides:
        text = f"success lost per decade of λ just {side} the plateau"
        if slope is None:
            text = (
                f"the plateau reaches the {'smallest' if side == 'below' else 'largest'} λ tested"
            )
        rows.append(
            {
                **setting.base,
                "quantity": f"sensitivity_{side}",
                "value": slope,
                "text": text,
                "n": len(lams),
            }
        )
    return rows


def _draws(setting: Setting, points: Sequence[Row]) -> Draws | None:
    """Draws of the points' means over new seeds, one row per point; None where seeds are too few."""
    groups = []
    for row in points:
        point = row["point"]
        matrix = setting.episodes.matrix(point, setting.episodes.pairs(point))
        if not matrix.size:
            return None
        groups.append((matrix.mean(axis=1).tolist(), matrix.shape[1]))
    return stats.draw_means(groups, np.random.default_rng(0))


def _certainty(setting: Setting, draws: Draws | None) -> list[Row]:
    """Per point how likely it is the best and on the plateau; for the chosen one the regret."""
    fewest = min(row["num_seeds"] for row in setting.points)
    about = {"n": fewest, "ci_method": DRAWS}
    if draws is None or len(setting.points) < 2:
        text = "not told: needs two points and at least two seeds at each"
        names = ("p_best", "regret")
        return [{**setting.at_best, "quantity": name, "text": text, "n": fewest} for name in names]
    best, near = stats.probability_best(draws), stats.within_margin(draws, MARGIN)
    rows: list[Row] = []
    for row, of_best, of_near in zip(setting.points, best, near, strict=True):
        at = {**setting.base, "point": row["point"], "lam": row["lam"], **about}
        chosen = row["point"] == setting.best["point"]
        rows += [
            {
                **at,
                "quantity": "p_best" if chosen else "p_best_other",
                "value": float(of_best),
                "text": "probability that this point has the highest mean over new seeds",
            },
            {
                **at,
                "quantity": "p_near_best",
                "value": float(of_near),
                "text": f"probability that this point lies within {MARGIN:g} of the best",
            },
        ]
    chosen_at = [row["point"] for row in setting.points].index(setting.best["point"])
    mean, range_ = stats.regret(draws, chosen_at)
    text = "success lost if another point is the best after all: expected, and its 95 % quantile"
    rows.append(
        {
            **setting.at_best,
            **about,
            "quantity": "regret",
            "value": mean,
            "ci_low": range_.low,
            "ci_high": range_.high,
            "text": text,
        }
    )
    return rows


def _share_near(setting: Setting) -> Row:
    """The share of the tried configurations whose mean is within the margin of the best."""
    tried = [row for row in setting.points if row["lam"] != 0 and row["mean"] is not None]
    near = sum(row["mean"] >= setting.best["mean"] - MARGIN for row in tried)
    row = {**setting.base, "quantity": "share_near_best", "n": len(tried)}
    text = f"{near} of {words.count(len(tried), 'configuration')} tried (λ = 0 apart) within the margin"
    if not tried:
        return {**row, "text": "no configuration but the control was tried"}
    return {**row, "value": near / len(tried), "text": text}
