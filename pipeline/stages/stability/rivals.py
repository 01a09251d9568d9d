"""Methods against methods, and planners or their settings against each other, on the same pairs."""

from collections.abc import Mapping
from typing import Any

from pipeline import stats
from pipeline.stages.stability import words
from pipeline.stages.stability.differences import paired, unpaired
from pipeline.stages.stability.episodes import GROUP, Episodes, Pair

Row = dict[str, Any]
Key = tuple[Any, ...]
METHOD, PROTOCOL = GROUP.index("method"), GROUP.index("protocol")


def against_methods(best: Mapping[Key, Row], episodes: Mapping[Key, Episodes]) -> list[Row]:
    """Every method's best point against every other's under one planning setting, both ways round.

    Seeds are not paired: two methods share no network.
    """
    rows = []
    for key in best:
        for other in best:
            if key[METHOD] == other[METHOD] or key[METHOD + 1 :] != other[METHOD + 1 :]:
                continue
            sides = [(episodes.get(k, Episodes()), best[k]["point"]) for k in (key, other)]
            pairs = _common_pairs(sides)
            told = _told(key, best[key]) | {"other": other[METHOD], "other_kind": "method"}
            if not pairs:
                rows.append({**told, "paired": False, "n": 0})
                continue
            successes = [own.matrix(point, pairs) for own, point in sides]
            rates = [matrix.mean(axis=1) for matrix in successes]
            improvement = {"p_improvement": stats.probability_of_improvement(*rates)}
            rows.append({**told, **improvement, **unpaired(*successes)})
    return rows


def against_settings(best: Mapping[Key, Row], episodes: Mapping[Key, Episodes]) -> list[Row]:
    """Every planner and evaluation setting against the leading one, on the networks of its best point.

    Within one method, environment and protocol; the leading one has the highest mean at its best point.
    """
    rows = []
    for key in best:
        rivals = [other for other in best if other[: PROTOCOL + 1] == key[: PROTOCOL + 1]]
        top = max(
            rivals, key=lambda other: (round(best[other]["mean"], 12), other == key, str(other))
        )
        if top == key:
            continue
        point = best[top]["point"]
        sides = [(episodes.get(k, Episodes()), point) for k in (key, top)]
        pairs = _common_pairs(sides)
        (own, _), (theirs, _) = sides
        seeds = sorted(set(own.seeds(point)) & set(theirs.seeds(point))) if pairs else []
        values = [
            (own.vector(point, seed, pairs), theirs.vector(point, seed, pairs)) for seed in seeds
        ]
        told = _told(key, best[top]) | {
            "other": words.setting(*top[PROTOCOL + 1 :]),
            "other_kind": "setting",
        }
        if values:
            rates = [[float(side.mean()) for side in sides] for sides in zip(*values, strict=True)]
            told["p_improvement"] = stats.probability_of_improvement(*rates)
        rows.append(told | paired([one - other for one, other in values]))
    return rows


def _told(key: Key, at: Row) -> Row:
    """Whose success at which point."""
    return {
        **dict(zip(GROUP, key, strict=True)),
        "point": at["point"],
        "lam": at["lam"],
        "metric": "success",
    }


def _common_pairs(sides: list[tuple[Episodes, str]]) -> list[Pair]:
    """The pairs that all runs of both points have in common."""
    known = [set(own.pairs(point)) for own, point in sides]
    return sorted(set.intersection(*known))
