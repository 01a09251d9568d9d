"""One self-contained HTML page: template, styles, charts and the Vega bundle, no network reference."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import polars as pl
import vl_convert
from markupsafe import Markup

from reports import (
    evaluation,
    next_run,
    prose,
    reconstruction,
    rivals,
    search,
    sections,
    stability,
    text,
    timing,
    training,
    views,
)
from reports.figures import MAX_TABLE_ROWS, Figure
from reports.success import (
    answers,
    configurations,
    file_name,
    seeds_figure,
    success_figure,
    success_table,
)
from reports.templating import TEMPLATES, template
from reports.theme import chart_config, css, page_config

VEGA_LITE = "6.4"
MAX_OPEN_TRIALS = 60
Row = dict[str, Any]


def render(tables: Mapping[str, pl.DataFrame], meta: Mapping[str, Any]) -> str:
    """The report as one HTML page; the same tables and meta give the same bytes.

    Args:
        tables: by name, with the schemas of the sweep's tables.
        meta: the sweep's `sweep.json`; everything in it is optional.
    """
    worlds = views.worlds(tables, meta)
    points = _points(tables)
    lams = [lam for _, lam in points]
    chapters = [
        _chapter(world, number, points, meta, len(worlds)) for number, world in enumerate(worlds)
    ]
    plans = any(world.plans for world in worlds)
    methods = rivals.method_sections(worlds)
    timed = timing.sections(tables)
    figures = [section["figure"] for section in [*methods, *timed]]
    figures += [figure for chapter in chapters for figure in chapter["figures"]]
    charts = {"config": page_config(lams), "figures": {f.name: f.page() for f in figures}}
    return template("report.html.j2").render(
        title=_title(meta, worlds),
        question=meta.get("question") or "Is it stable, at which λ, and how do we know?",
        chapters=chapters,
        methods=methods,
        timed=timed,
        overview=sections.overview(worlds) if len(worlds) > 1 and plans else [],
        findings=sections.findings(worlds) if len(worlds) > 1 and not plans else [],
        command=meta.get("command"),
        provenance=sections.provenance(meta, tables),
        citation=prose.citation(meta),
        max_rows=MAX_TABLE_ROWS,
        max_open_trials=MAX_OPEN_TRIALS,
        css=Markup(css(lams) + (TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        bundle=Markup(_bundle()),
        charts=Markup(_json(charts)),
    )


def figures_svg(tables: Mapping[str, pl.DataFrame], meta: Mapping[str, Any]) -> dict[str, str]:
    """The page's charts as static pictures for papers and slides: file stem → SVG, light theme."""
    points = _points(tables)
    config = chart_config(False, [lam for _, lam in points]) | {"background": "white"}
    config["font"] = "Arial, Helvetica, sans-serif"
    found = views.worlds(tables, meta)
    across = [*rivals.method_sections(found), *timing.sections(tables)]
    figures = [section["figure"] for section in across]
    for number, world in enumerate(found):
        figures += _figures(world, number, points)
    pictures = {}
    for figure in figures:
        spec = {**figure.static(), "config": config}
        pictures[figure.name] = _own_ids(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    return pictures


def _own_ids(svg: str) -> str:
    """The picture with its clip paths numbered from 1: the renderer counts on from picture to picture."""
    ids = {
        found: f"clip{i}" for i, found in enumerate(dict.fromkeys(re.findall(r"clip\d+", svg)), 1)
    }
    return re.sub(r"clip\d+", lambda match: ids[match.group()], svg)


def _title(meta: Mapping[str, Any], worlds: list[views.World]) -> str:
    name = str(meta.get("name") or "sweep")
    envs = dict.fromkeys(text.world(world.key["env"]) for world in worlds)
    profile = [f"{meta['profile']} profile"] if meta.get("profile") else []
    return " · ".join([name, *([", ".join(envs)] if envs else []), *profile])


def _points(tables: Mapping[str, pl.DataFrame]) -> list[tuple[str, float]]:
    """Every point of the sweep with its λ (0 where it has none), ascending: what colours stand for."""
    found = pl.concat([tables[name].select("point", "lam") for name in ("trials", "stability")])
    rows = (
        found.filter(pl.col("point").is_not_null()).unique().sort("lam", "point", nulls_last=True)
    )
    return [(str(point), 1.0 if lam is None else float(lam)) for point, lam in rows.iter_rows()]


def _groups(world: views.World, number: int, points: list[tuple[str, float]]) -> Row:
    """The figures of a world by section."""
    prefix = f"w{number}-" if number else ""
    settings = views.settings(world)
    main = world.main
    seeds = seeds_figure(world, main, file_name(prefix, "seeds", main)) if main else None
    return {
        "success": [
            success_figure(world, s, file_name(prefix, "success", s), 260 if i else 320)
            for i, s in enumerate(settings)
        ],
        "planners": [section["figure"] for section in rivals.setting_sections(world)],
        "seeds": [seeds] if seeds else [],
        "health": training.health_figures(world, f"{prefix}latents"),
        "curves": training.curve_figures(world, f"{prefix}train", [point for point, _ in points]),
        "probing": evaluation.probe_figures(world, prefix),
        "surprising": evaluation.surprise_figures(world, prefix),
        "drawing": reconstruction.figures(world, prefix),
        "simulated": search.figures(world, prefix),
    }


def _figures(world: views.World, number: int, points: list[tuple[str, float]]) -> list[Figure]:
    return [figure for group in _groups(world, number, points).values() for figure in group]


def _chapter(
    world: views.World,
    number: int,
    points: list[tuple[str, float]],
    meta: Mapping[str, Any],
    num_worlds: int,
) -> Row:
    """Everything the template needs of one world."""
    groups = _groups(world, number, points)
    settings = views.settings(world)
    finding = {
        name: world.summary(f"finding_{name}").get("text") or ""
        for name in ("latents", "curves", "probing", "surprise")
    }
    places = [point for point, _ in points]
    trials = sections.trial_rows(world)
    return {
        "name": world.name,
        "bare": world.is_bare,
        "plans": world.plans,
        "ordered": world.axis.ordered,
        "id": f"-{number + 1}" if number else "",
        "verdict": world.summary("verdict").get("text") or "There is no verdict yet.",
        "certainty": world.summary("certainty").get("text") or "",
        "answers": answers(world),
        "limits": prose.limits(world),
        "missing": [
            row["text"]
            for row in (world.summary("trials_missing"), world.summary("cells_missing"))
            if row and row["value"]
        ],
        "finding": finding,
        "settings": [success_table(world, setting) for setting in settings],
        "rivals": rivals.setting_sections(world),
        "configurations": configurations(world),
        "stable": [stability.stability_table(world, setting) for setting in settings],
        "collapse_rule": stability.collapse_rule(world),
        "lams": [(places.index(slot.point), slot.name) for slot in world.axis.slots],
        "probes": evaluation.probe_table(world),
        "surprise": evaluation.surprise_table(world),
        "examples": evaluation.examples(world),
        "drawn": reconstruction.strips(world),
        "frame_errors": reconstruction.error_table(world),
        "variance": [next_run.variance_table(world, setting) for setting in settings],
        "next": next_run.next_steps(world, meta, num_worlds),
        "search": search.section(world),
        "trials": trials,
        "lost": [row for row in trials if row["status"] in sections.LOST],
        "failed_cells": sections.failed_cells(world),
        "protocols": sections.protocol_table(world),
        "methods": prose.methods(world),
        "figures": [figure for group in groups.values() for figure in group],
        **groups,
    }


def _json(data: Any) -> str:
    """JSON that may stand inside a script element."""
    written = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(data: Any) -> Any:
    """The data with null for what is not a number."""
    if isinstance(data, float):
        return data if abs(data) < float("inf") else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, its addresses of other sites taken out."""
    snippet = "window.vegaEmbed = vegaEmbed;"
    bundle = str(vl_convert.javascript_bundle(snippet, vl_version=VEGA_LITE))
    bundle = re.sub(r"https://[\w.-]+", "about:blank", bundle)
    return bundle.replace("</script", "<\\/script")


__all__ = ["Figure", "figures_svg", "render"]
