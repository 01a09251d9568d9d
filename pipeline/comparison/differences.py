"""Differences at common points: success episode by episode, other metrics run by run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline import stats
from pipeline.comparison.points import Match, Row, Sweep
from pipeline.stages.stability import words
from pipeline.stages.stability.differences import MARGIN
from pipeline.stages.stability.episodes import GROUP, Episodes, Pair, read_episodes
from pipeline.stages.stability.measure import LOWER_IS_BETTER, PLACE

HIGHER_IS_BETTER = frozenset({"success", "probe_r", "surprise_ratio"})
PAIRED_EPISODES = "95 % over seeds and pairs, paired on both"
OTHER_SEEDS = "95 % over seeds and pairs, paired on the pairs alone"
OTHER_PAIRS = "95 % over seeds and pairs, unpaired"
PAIRED_SEEDS = "95 % t over seeds, paired"
WELCH = "95 % Welch t over seeds, unpaired"


def difference_rows(first: Sweep, second: Sweep, matches: list[Match]) -> list[Row]:
    """Rows of `comparison`, one per common point, metric and place, p-values adjusted (Holm)."""
    return _adjusted([*_successes(first, second, matches), *_others(first, second, matches)])


def _successes(first: Sweep, second: Sweep, matches: list[Match]) -> list[Row]:
    """A row per common point and planning setting."""
    episodes = [_by_place(read_episodes(sweep.tables)) for sweep in (first, second)]
    manifests = [_manifests(sweep) for sweep in (first, second)]
    rows = []
    for match in matches:
        for place, own in (
            episodes[1].get((match.second["env"], match.second["method"]), {}).items()
        ):
            others = episodes[0].get((match.first["env"], match.first["method"]), {}).get(place)
            env, protocol = match.second["env"], place[0]
            same = {
                e
                for (at, p, e), known in manifests[1].items()
                if (at, p) == (env, protocol) and known == manifests[0].get((at, p, e))
            }
            found = None if others is None else _success(match, others, own, same)
            if found is not None:
                setting = dict(zip(GROUP[3:], place, strict=True))
                rows.append({**_keys(first, match), **setting, "metric": "success", **found})
    return rows


def _by_place(
    episodes: Mapping[tuple[Any, ...], Episodes],
) -> dict[tuple[str, str], dict[tuple[Any, ...], Episodes]]:
    """Episodes by (env, method), then by (protocol, planner, eval_point)."""
    found: dict[tuple[str, str], dict[tuple[Any, ...], Episodes]] = {}
    for (method, env, _, *place), own in episodes.items():
        found.setdefault((env, method), {})[tuple(place)] = own
    return found


def _manifests(sweep: Sweep) -> dict[tuple[str, str, int], str]:
    """The manifest's hash by (env, protocol, eval_seed), where there is a single one."""
    names = ["env", "protocol", "eval_seed"]
    known = sweep.tables["planning"].group_by(names).agg(pl.col("manifest_hash").unique())
    return {
        (env, protocol, seed): hashes[0]
        for env, protocol, seed, hashes in known.iter_rows()
        if len(hashes) == 1 and hashes[0] is not None
    }


def _success(match: Match, first: Episodes, second: Episodes, same: set[int]) -> Row | None:
    """The difference in success at a point; None where one of both has no episodes there.

    Args:
        same: evaluation seeds whose start/goal pairs are the same in both.
    """
    points = (match.first["point"], match.second["point"])
    sides = (first, second)
    seeds = [side.seeds(point) for side, point in zip(sides, points, strict=True)]
    pairs = [side.pairs(point) for side, point in zip(sides, points, strict=True)]
    if not all(seeds) or not all(pairs):
        return None
    shared_pairs = sorted(pair for pair in set(pairs[0]) & set(pairs[1]) if pair[0] in same)
    shared_seeds = sorted(set(seeds[0]) & set(seeds[1]))
    paired = bool(shared_pairs) and _worth_pairing(shared_seeds, *seeds)
    used: list[list[Pair]] = [shared_pairs, shared_pairs] if shared_pairs else pairs
    chosen = [shared_seeds, shared_seeds] if paired else seeds
    matrices = [
        np.stack([side.vector(point, seed, own) for seed in own_seeds])
        for side, point, own, own_seeds in zip(sides, points, used, chosen, strict=True)
    ]
    bounds = (-1.0, 1.0)
    if paired:
        method = PAIRED_EPISODES
        result = stats.paired_two_way(matrices[1] - matrices[0], MARGIN, bounds=bounds)
    else:
        method = OTHER_SEEDS if shared_pairs else OTHER_PAIRS
        result = stats.unpaired_two_way(
            matrices[1], matrices[0], bool(shared_pairs), MARGIN, bounds=bounds
        )
    scores = [matrix.mean(axis=1).tolist() for matrix in matrices]
    return {
        **_fields(result, method, "all episodes alike"),
        "paired": paired,
        "margin": MARGIN,
        "num_pairs": min(map(len, used)),
        "p_improvement": stats.probability_of_improvement(scores[1], scores[0]),
    }


def _worth_pairing(shared: list[int], *seeds: list[int]) -> bool:
    """Whether the seeds in common say as much as all: two at least, or every one."""
    return len(shared) >= 2 or (bool(shared) and all(own == shared for own in seeds))


def _fields(result: stats.Comparison, method: str, alike: str) -> Row:
    interval = result.interval
    reason = "one seed" if result.n < 2 else alike
    return {
        "diff": result.diff,
        "ci_low": interval.low if interval else None,
        "ci_high": interval.high if interval else None,
        "ci_method": method if interval else f"none: {reason}",
        "p_value": result.p_value,
        "p_equivalence": result.p_equivalence,
        "n": result.n,
    }


def _keys(first: Sweep, match: Match) -> Row:
    """The second sweep's keys; the first one's name, and its point where that is called otherwise."""
    names = ("method", "env", "profile", "point", "lam")
    other = first.name
    if match.first["point"] != match.second["point"]:
        other += f": {words.label(match.first['point'], match.first['lam'])}"
    return {name: match.second[name] for name in names} | {"other": other, "other_kind": "sweep"}


def _others(first: Sweep, second: Sweep, matches: list[Match]) -> list[Row]:
    """A row per common point and metric other than success, from one number per run."""
    values = [_run_values(sweep) for sweep in (first, second)]
    rows = []
    for match in matches:
        known = [
            own.get((point["env"], point["method"], point["point"]), {})
            for own, point in zip(values, (match.first, match.second), strict=True)
        ]
        same_data = _dataset(first, match.first) == _dataset(second, match.second) is not None
        for place, own in known[1].items():
            if place in known[0]:
                rows.append(
                    {
                        **_keys(first, match),
                        **dict(zip(("metric", *PLACE), place, strict=True)),
                        **_difference(place[0], known[0][place], own, same_data),
                    }
                )
    return rows


def _run_values(sweep: Sweep) -> dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, float]]]:
    """By (env, method, point), then by metric and place: the number of every seed."""
    runs = sweep.tables["stability"].filter(
        pl.col("runs").str.starts_with("seed="),
        pl.col("metric") != "success",
        pl.col("mean").is_not_null(),
    )
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, float]]] = {}
    for row in runs.iter_rows(named=True):
        point = found.setdefault((row["env"], row["method"], row["point"]), {})
        place = (row["metric"], *(row[name] for name in PLACE))
        point.setdefault(place, {})[int(row["runs"].removeprefix("seed="))] = row["mean"]
    return found


def _dataset(sweep: Sweep, point: Row) -> str | None:
    """The hash of the data that a point's trials were trained on, where there is a single one."""
    same = [pl.col(name).eq_missing(pl.lit(point[name])) for name in ("method", "env", "point")]
    hashes = sweep.tables["trials"].filter(*same)["dataset_hash"].drop_nulls().unique()
    return str(hashes[0]) if len(hashes) == 1 else None


def _difference(
    metric: str, first: Mapping[int, float], second: Mapping[int, float], same_data: bool
) -> Row:
    seeds = [sorted(side) for side in (first, second)]
    shared = sorted(set(first) & set(second))
    paired = same_data and _worth_pairing(shared, *seeds)
    if paired:
        result = stats.paired_t([second[seed] - first[seed] for seed in shared])
    else:
        result = stats.unpaired(list(second.values()), list(first.values()))
    row = _fields(result, PAIRED_SEEDS if paired else WELCH, "all seeds equal")
    better = [list(second.values()), list(first.values())]
    if metric in LOWER_IS_BETTER:
        row["p_improvement"] = stats.probability_of_improvement(better[1], better[0])
    elif metric in HIGHER_IS_BETTER:
        row["p_improvement"] = stats.probability_of_improvement(*better)
    return {**row, "paired": paired}


def _adjusted(rows: list[Row]) -> list[Row]:
    """The rows with Holm-adjusted p-values, a family being one metric and place over the points."""
    families: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["p_value"] is not None:
            key = (row["env"], row["method"], row["metric"], *(row.get(name) for name in PLACE))
            families.setdefault(key, []).append(row)
    for members in families.values():
        for row, p_value in zip(members, stats.holm([row["p_value"] for row in members])):
            row["p_adjusted"] = p_value
    return rows
