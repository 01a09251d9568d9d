"""Points against the best point, the floors, published values and each other; surprise against its control."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline import stats
from pipeline.stages.stability import rivals
from pipeline.stages.stability.differences import MARGIN, fields_of, method_of, paired
from pipeline.stages.stability.episodes import GROUP, Episodes, Matrix, Pair
from pipeline.stages.stability.measure import POINT, TWO_WAY
from pipeline.tables import SCHEMAS, make_frame

T_OVER_CLIPS = "95 % t over clips, each averaged over seeds"
FAMILIES = {"method": GROUP[1:], "setting": (*GROUP[:4], "other")}
"""What the comparisons adjusted together have in common, by kind; else their setting and other side."""

Row = dict[str, Any]


def best_points(stability: pl.DataFrame) -> dict[tuple[Any, ...], Row]:
    """Per planning setting (`GROUP`) the stability row of the best point over all runs.

    Highest mean success; of equals the one with the smaller spread, then the smaller λ.
    """
    rows = stability.filter(
        (pl.col("metric") == "success") & (pl.col("runs") == "all") & pl.col("method").is_not_null()
    )
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows.sort("lam", "point").iter_rows(named=True):
        key = tuple(row[name] for name in GROUP)
        if key not in best or _score(row) > _score(best[key]):
            best[key] = row
    return best


def _score(row: Row) -> tuple[float, float]:
    spread = row["std"]
    return round(row["mean"], 12), -(spread if spread is not None else 1.0)


def compare(
    tables: Mapping[str, pl.DataFrame],
    stability: pl.DataFrame,
    episodes: Mapping[tuple[Any, ...], Episodes],
    published: Sequence[Mapping[str, Any]] = (),
) -> pl.DataFrame:
    """The `comparison` table; p-values adjusted (Holm) over the points of one question."""
    best = best_points(stability)
    rows = _against_best_and_floors(tables, best, episodes)
    rows += _against_published(best, episodes, published)
    rows += rivals.against_methods(best, episodes) + rivals.against_settings(best, episodes)
    rows += _against_control(tables["surprise"])
    return make_frame(_adjusted(rows), SCHEMAS["comparison"])


def _against_best_and_floors(
    tables: Mapping[str, pl.DataFrame],
    best: Mapping[tuple[Any, ...], Row],
    episodes: Mapping[tuple[Any, ...], Episodes],
) -> list[Row]:
    rows: list[Row] = []
    for key, own in episodes.items():
        pairs = own.pairs()
        if not pairs or key not in best:
            continue
        group = dict(zip(GROUP, key, strict=True))
        top = best[key]["point"]
        floors = _floor_vectors(tables["planning"], group, pairs)
        for point, lam in own.lams.items():
            base = {**group, "point": point, "lam": lam, "metric": "success"}
            seeds = own.seeds(point)
            vectors = {seed: own.vector(point, seed, pairs) for seed in seeds}
            scores = [float(vector.mean()) for vector in vectors.values()]
            if point != top:
                rivals = {seed: own.vector(top, seed, pairs) for seed in own.seeds(top)}
                means = [float(vector.mean()) for vector in rivals.values()]
                improvement = stats.probability_of_improvement(scores, means)
                base_best = {**base, "other": top, "other_kind": "point"}
                differences = [vectors[seed] - rivals[seed] for seed in seeds if seed in rivals]
                rows.append({**base_best, "p_improvement": improvement, **paired(differences)})
            for floor, vector in floors.items():
                improvement = stats.probability_of_improvement(scores, [float(vector.mean())])
                differences = [own - vector for own in vectors.values()]
                base_floor = {**base, "other": floor, "other_kind": "floor"}
                rows.append({**base_floor, "p_improvement": improvement, **paired(differences)})
    return rows


def _against_published(
    best: Mapping[tuple[Any, ...], Row],
    episodes: Mapping[tuple[Any, ...], Episodes],
    published: Sequence[Mapping[str, Any]],
) -> list[Row]:
    """The best points against published rates: another scale, other data, the same protocol by name."""
    rows = []
    for key, row in best.items():
        group = dict(zip(GROUP, key, strict=True))
        own = episodes.get(key)
        for one in published:
            if own is None or any(group[k] != one[k] for k in ("method", "env", "protocol")):
                continue
            matrix = own.matrix(row["point"], own.pairs(row["point"]))
            if matrix.size:
                found = stats.against_value(matrix, one["value"], MARGIN)
                at = {**group, "point": row["point"], "lam": row["lam"], "metric": "success"}
                other = {"other": one["source"], "other_kind": "published", "paired": False}
                design = {"num_pairs": matrix.shape[1], "ci_method": method_of(found, TWO_WAY)}
                rows.append({**at, **other, "margin": MARGIN, **design, **fields_of(found)})
    return rows


def _floor_vectors(planning: pl.DataFrame, group: Row, pairs: Sequence[Pair]) -> dict[str, Matrix]:
    """Success of `random` and `zero` on exactly these pairs, where they have all of them."""
    same = [pl.col(name).eq_missing(pl.lit(group[name])) for name in ("env", "profile", "protocol")]
    vectors = {}
    for floor in ("random", "zero"):
        rows = planning.filter(pl.col("trial_id").is_null(), pl.col("planner") == floor, *same)
        found = {
            (e, p): float(s) for e, p, s in rows["eval_seed", "pair_id", "success"].iter_rows()
        }
        if pairs and all(pair in found for pair in pairs):
            vectors[floor] = np.array([found[pair] for pair in pairs])
    return vectors


def _against_control(surprise: pl.DataFrame) -> list[Row]:
    """Paired t over clips of the seed-averaged difference (the publication's test, App. F.3).

    The clips are the same for every seed, so each clip counts once: n is their number.
    """
    rows = []
    combination = [*POINT, "event"]
    for key, group in surprise.group_by(combination, maintain_order=True):
        num_seeds = group["seed"].n_unique()
        clips = (
            group.with_columns(difference=pl.col("surprise") - pl.col("surprise_control"))
            .filter(pl.col("difference").is_finite())
            .group_by("episode_id", "start_row")
            .agg(pl.col("difference").mean(), pl.col("seed").n_unique().alias("seeds"))
            .filter(pl.col("seeds") == num_seeds)
            .sort("episode_id", "start_row")["difference"]
            .to_numpy()
        )
        if not len(clips):
            continue
        found = stats.paired_t(clips)
        rows.append(
            {
                **dict(zip(combination, key, strict=True)),
                "metric": "surprise_difference",
                "other": "unperturbed clip",
                "other_kind": "control",
                "ci_method": method_of(found, T_OVER_CLIPS),
                "paired": True,
                "p_improvement": float((np.sign(clips) + 1).mean() / 2),
                **fields_of(found),
            }
        )
    return rows


def _adjusted(rows: list[Row]) -> list[Row]:
    """The rows with Holm-adjusted p-values, a family being one question asked of several points.

    Two methods are compared once, though each has a row.
    """
    families: dict[tuple[Any, ...], dict[Any, list[int]]] = {}
    for index, row in enumerate(rows):
        if row.get("p_value") is not None:
            asked = FAMILIES.get(row["other_kind"], (*GROUP, "metric", "event", "other"))
            family = (row["other_kind"], *(row.get(name) for name in asked))
            both = frozenset((row["method"], row["other"]))
            test = both if row["other_kind"] == "method" else index
            families.setdefault(family, {}).setdefault(test, []).append(index)
    for tests in families.values():
        p_values = [rows[members[0]]["p_value"] for members in tests.values()]
        for members, p_value in zip(tests.values(), stats.holm(p_values), strict=True):
            for index in members:
                rows[index]["p_adjusted"] = p_value
    return rows
