"""Where the spread at the best point comes from, and what to run next to see twice as sharply."""

from typing import Any

from pipeline import stats
from pipeline.stages.stability import words
from pipeline.stages.stability.decide import Setting

Row = dict[str, Any]
METHOD = "analysis of variance, seeds crossed with pairs within evaluation seeds"
SOURCES = (
    ("seed", "training seeds"),
    ("eval_seed", "evaluation seeds"),
    ("pair", "start/goal pairs"),
    ("seed_by_eval", "training seeds by evaluation seeds"),
    ("residual", "a seed's luck on a pair"),
)


def split(setting: Setting) -> list[Row]:
    """Shares of the variance of one episode's outcome by source, and seeds or pairs to halve the half-width."""
    base = setting.at_best
    values = setting.episodes.blocks(setting.best["point"])
    parts = None if values is None else stats.components(values)
    if values is None or parts is None:
        text = "not told: needs two seeds at the best point on the same pairs"
        return [{**base, "quantity": "variance_seed", "text": text, "n": setting.best["num_seeds"]}]
    return [*_shares(base, parts, values.shape), *_next(base, parts, values.shape)]


def _shares(base: Row, parts: stats.Components, shape: tuple[int, ...]) -> list[Row]:
    known = {name: getattr(parts, name) for name, _ in SOURCES}
    total = sum(value for value in known.values() if value is not None)
    counts = dict(zip(("seed", "eval_seed", "pair"), shape, strict=True))
    rows = []
    for name, source in SOURCES:
        row = {**base, "quantity": f"variance_{name}", "ci_method": METHOD, "n": counts.get(name)}
        if known[name] is None:
            text = f"{source}: not told from one evaluation seed, counted with the pairs"
            rows.append({**row, "text": text})
        else:
            share = known[name] / total if total else None
            text = f"{source}: standard deviation {100 * known[name] ** 0.5:.1f} points"
            rows.append({**row, "value": share, "text": text})
    return rows


def _next(base: Row, parts: stats.Components, shape: tuple[int, ...]) -> list[Row]:
    """Expected half-width now, and the fewest seeds or pairs that halve it."""
    num_seeds, num_evals, num_pairs = shape
    now = stats.half_width(parts, *shape)
    design = f"{words.count(num_seeds, 'seed')} on {words.count(num_evals * num_pairs, 'pair')}"
    told = {"quantity": "half_width", "value": now, "n": num_seeds}
    rows: list[Row] = [{**base, **told, "text": f"expected 95 % half-width with {design}"}]
    for noun, find in (("seed", stats.needed_seeds), ("pair", stats.needed_pairs)):
        needed = find(parts, now / 2, *shape) if now else None
        if needed is None:
            text = f"more {noun}s alone do not halve it: {'pairs' if noun == 'seed' else 'seeds'} limit it"
        else:
            what = noun if noun == "seed" else "pair per evaluation seed"
            text = f"{needed} {what.replace(noun, noun + 's')} would halve it"
        rows.append({**base, "quantity": f"{noun}s_to_halve", "value": needed, "text": text})
    return rows
