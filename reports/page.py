"""One self-contained HTML page: template, styles, charts and the Vega bundle, no network reference."""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from reports import search, sections, text, views
from reports.figures import Figure
from reports.theme import chart_config, lam_colours, palette

VEGA_LITE = "6.4"
TEMPLATES = Path(__file__).parent / "templates"
Row = dict[str, Any]


def render(tables: Mapping[str, pl.DataFrame], meta: Mapping[str, Any]) -> str:
    """The report as one HTML page; the same tables and meta give the same bytes.

    Args:
        tables: by name, with the schemas of the sweep's tables.
        meta: the sweep's `sweep.json`; everything in it is optional.
    """
    worlds = views.worlds(tables, meta)
    chapters = [_chapter(world, number) for number, world in enumerate(worlds)]
    figures = [figure for chapter in chapters for figure in chapter["figures"]]
    charts = {
        "specs": {f.name: {"spec": f.page(), "canvas": f.curves} for f in figures},
        "light": chart_config(False, _lams(tables)),
        "dark": chart_config(True, _lams(tables)),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_title(meta),
        question=meta.get("question") or "",
        chapters=chapters,
        overview=sections.overview(worlds) if len(worlds) > 1 else [],
        provenance=sections.provenance(meta, tables),
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        bundle=Markup(_bundle()),
        charts=Markup(_json(charts)),
        states=zip(
            ("healthy", "collapsed", "diverged"), palette(False)["states"], palette(True)["states"]
        ),
        strategies=[
            {"name": name, "light": light, "dark": dark}
            for name, light, dark in zip(
                search.WORDS.values(), palette(False)["strategies"], palette(True)["strategies"]
            )
        ],
    )


def figures_svg(tables: Mapping[str, pl.DataFrame], meta: Mapping[str, Any]) -> dict[str, str]:
    """The page's charts as static pictures for papers and slides: file stem → SVG, light theme."""
    config = chart_config(False, _lams(tables)) | {"background": "white"}
    config["font"] = "Arial, Helvetica, sans-serif"
    pictures = {}
    for number, world in enumerate(views.worlds(tables, meta)):
        for figure in _chapter(world, number)["figures"]:
            spec = {**figure.static(), "config": config}
            pictures[figure.name] = _own_ids(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    return pictures


def _own_ids(svg: str) -> str:
    """The picture with its clip paths numbered from 1: the renderer counts on from picture to picture."""
    ids = {
        found: f"clip{i}" for i, found in enumerate(dict.fromkeys(re.findall(r"clip\d+", svg)), 1)
    }
    return re.sub(r"clip\d+", lambda match: ids[match.group()], svg)


def _title(meta: Mapping[str, Any]) -> str:
    name = str(meta.get("name") or "sweep")
    envs = dict.fromkeys(world["env"] for world in meta.get("worlds") or [])
    place = [", ".join(text.world(env) for env in envs)] if envs else []
    profile = [f"{meta['profile']} profile"] if meta.get("profile") else []
    return " · ".join([name, *place, *profile])


def _lams(tables: Mapping[str, pl.DataFrame]) -> list[float]:
    """One entry per point, ascending in λ: what the curves' colours stand for."""
    points = pl.concat([tables[name].select("point", "lam") for name in ("trials", "stability")])
    return [float(lam) for lam in points.unique().drop_nulls().sort("lam", "point")["lam"]]


def _chapter(world: views.World, number: int) -> Row:
    """Everything the template needs of one world."""
    prefix = f"w{number}-" if number else ""
    settings = views.settings(world)
    charts = [
        views.success_figure(world, setting, _file_name(prefix, setting), 330 if first else 260)
        for first, setting in zip([True] + [False] * len(settings), settings)
    ]
    health = views.health_figures(world, f"{prefix}latents")
    curves = views.curve_figures(world, f"{prefix}train")
    lams = _lams(world.tables)
    found = search.section(world, prefix)
    simulated = [found["figure"]] if found["figure"] else []
    return {
        "name": world.name,
        "verdict": world.summary("verdict").get("text") or "There is no verdict yet.",
        "certainty": world.summary("certainty").get("text") or "",
        "missing": [
            row["text"]
            for row in (world.summary("trials_missing"), world.summary("cells_missing"))
            if row and row["value"]
        ],
        "success_title": world.summary("finding_success").get("text") or "Planning success",
        "latents_title": world.summary("finding_latents").get("text") or "",
        "curves_title": world.summary("finding_curves").get("text") or "",
        "probing_title": world.summary("finding_probing").get("text") or "",
        "surprise_title": world.summary("finding_surprise").get("text") or "",
        "success": charts,
        "settings": [views.success_table(world, setting) for setting in settings],
        "health": health,
        "curves": curves,
        "lams": [
            {"name": slot.name, "light": light, "dark": dark}
            for slot, light, dark in zip(
                world.axis.slots, lam_colours(lams, False), lam_colours(lams, True)
            )
        ],
        "probes": sections.probe_table(world),
        "surprise": sections.surprise_table(world),
        "examples": sections.examples(world),
        "protocols": sections.protocol_table(world),
        "collapse_rule": sections.collapse_rule(world),
        "trials": sections.trial_rows(world),
        "failed_cells": sections.failed_cells(world),
        "search": found,
        "figures": [*charts, *health, *curves, *simulated],
    }


def _file_name(prefix: str, setting: Row) -> str:
    words = "-".join(str(setting[name]) for name in views.SETTING if setting[name])
    return prefix + "success-" + re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")


def _json(data: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, its addresses of other sites taken out."""
    snippet = "window.vegaEmbed = vegaEmbed;"
    bundle = str(vl_convert.javascript_bundle(snippet, vl_version=VEGA_LITE))
    bundle = re.sub(r"https://[\w.-]+", "about:blank", bundle)
    return bundle.replace("</script", "<\\/script")


__all__ = ["Figure", "figures_svg", "render"]
