"""Frames drawn from embeddings: how far off they are, and what they look like."""

import base64

import polars as pl

from reports import text
from reports.figures import Figure, point_chart, rows_behind
from reports.views import Row, World, intervals

MAX_POINTS, MAX_CLIPS = 3, 2
KINDS = {
    "real": "recorded",
    "reconstructed": "drawn from its own embedding",
    "imagined": "drawn from the imagined embedding",
}


def figures(world: World, prefix: str) -> list[Figure]:
    """Error of drawn frames per point, at the last frame that is imagined, one figure per kind."""
    last = _last(world)
    if last is None:
        return []
    event = f"ahead={last}"
    blind, _ = world.spread("frame_mse", target="mean_frame", event=event)
    found = []
    for kind in ("reconstructed", "imagined"):
        means, runs = world.spread("frame_mse", target=kind, event=event)
        if not runs:
            continue
        reference = (blind[0]["mean"], "mean training frame") if blind else None
        levels = [row["mean"] for row in runs] + ([reference[0]] if reference else [])
        spec = point_chart(
            world.axis,
            means,
            runs,
            quantity="mean squared pixel error, 0 to 1",
            y_format=".3~g",
            y_domain=(0.0, 1.08 * max(levels)),
            reference=reference,
        )
        caption = (
            f"Held-out frame {last} blocks after the context, {KINDS[kind]}; "
            f"{text.between([row['num_seeds'] for row in means], 'seed')} per point. {intervals(means)} "
            "The mean training frame is what a decoder that reads nothing would draw."
        )
        columns, rows = rows_behind(means, runs)
        name = f"{prefix}frames-{kind}"
        found.append(Figure(name, _title(world, kind, means), caption, spec, 220, columns, rows))
    return found


def _last(world: World) -> int | None:
    ahead = world.tables["reconstruction"].filter(pl.col("kind") == "imagined")["ahead"]
    return None if ahead.is_empty() else int(ahead.max())  # type: ignore[arg-type]


def _title(world: World, kind: str, means: list[Row]) -> str:
    lowest = min(means, key=lambda row: row["mean"])
    words = {"reconstructed": "Reconstructed", "imagined": "Imagined"}[kind]
    if len(means) == 1:
        return f"{words} frames are off by {text.number(lowest['mean'])}"
    return (
        f"{words} frames are closest at {world.axis.name(lowest['point'])}: "
        f"{text.number(lowest['mean'])}"
    )


def error_table(world: World) -> Row:
    """Errors by frames ahead of the context: a row per frame and point."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in world.rows("stability", metric="frame_mse", runs="all"):
        ahead = int(str(row["event"]).removeprefix("ahead="))
        found.setdefault((row["point"], ahead), {})[row["target"]] = row
    places = [slot.point for slot in world.axis.slots]
    rows = []
    for point, ahead in sorted(found, key=lambda key: (places.index(key[0]), key[1])):
        kinds = found[point, ahead]
        cells = [_mean(kinds.get(name)) for name in ("reconstructed", "imagined", "mean_frame")]
        rows.append([world.axis.name(point), _when(ahead), *cells])
    heads = ["point", "frame", "reconstructed", "imagined", "mean training frame"]
    return {"heads": heads, "rows": rows}


def _mean(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return text.DASH
    spread = "" if row["std"] is None else f" ± {text.number(row['std'], 2)}"
    return f"{text.number(row['mean'])}{spread}"


def _when(ahead: int) -> str:
    return f"{ahead} ahead" if ahead > 0 else f"context {ahead}" if ahead < 0 else "context, last"


def strips(world: World) -> list[Row]:
    """Pictures by rule: the first drawn clips of the lowest seed, at the best point and those beside it."""
    frame = world.tables["reconstruction"].filter(
        pl.col("png").is_not_null(), pl.col("kind").is_in(list(KINDS))
    )
    points = [slot.point for slot in world.axis.slots]
    points.sort(key=lambda point: point != world.best_point)
    shown = [point for point in points if point in set(frame["point"])][:MAX_POINTS]
    found = []
    for point in shown:
        own = frame.filter(pl.col("point") == point)
        seed = own["seed"].sort()[0]
        own = own.filter(pl.col("seed") == seed, pl.col("clip") < MAX_CLIPS)
        for clip in own["clip"].unique().sort():
            name = f"{world.axis.name(point)}, seed {seed}, held-out clip {clip}"
            pictures = own.filter(pl.col("clip") == clip).sort("frame")
            found.append({"name": name, "lines": _lines(pictures, name)})
    return found


def _lines(pictures: pl.DataFrame, name: str) -> list[Row]:
    """One line per kind with every frame of the clip; None where a kind has no picture."""
    lines = []
    frames = pictures.select("frame", "ahead").unique().sort("frame").rows()
    for kind, words in KINDS.items():
        own = {row["frame"]: row for row in pictures.filter(pl.col("kind") == kind).to_dicts()}
        cells = [_picture(own.get(frame), _when(ahead), words, name) for frame, ahead in frames]
        lines.append({"words": words, "pictures": cells})
    return lines


def _picture(row: Row | None, when: str, words: str, name: str) -> Row:
    if row is None:
        return {"src": None, "words": "", "alt": ""}
    error = "" if row["mse"] is None else f"error {text.number(row['mse'], 2)}"
    return {
        "src": f"data:image/png;base64,{base64.b64encode(row['png']).decode()}",
        "words": error or when,
        "alt": f"{when}, {words}{', ' if error else ''}{error}: {name}",
    }
