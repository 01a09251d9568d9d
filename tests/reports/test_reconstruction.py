"""Frames drawn from embeddings on the page, and points that are named, or numbered, by their settings."""

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))

from synthetic_sweep import META, make_tables

from pipeline.stages import stability
from pipeline.tables import SCHEMAS, make_frame
from reports.axis import make_axis
from reports.page import render
from reports.reconstruction import error_table, figures, strips
from reports.views import World, worlds

ERRORS = {"reconstructed": 0.01, "imagined": 0.03, "mean_frame": 0.05}
CONTEXT, HORIZON, NUM_CLIPS = 2, 3, 4


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="PNG")
    return buffer.getvalue()


def drawn(lam: float, seed: int) -> list[dict[str, Any]]:
    """Errors that grow with λ and with frames ahead."""
    keys = {"method": "lewm", "env": "two_room", "profile": "quick", "point": f"loss.lam={lam}"}
    keys |= {"lam": lam, "seed": seed, "trial_id": f"{round(lam * 1e4):06x}{seed:06x}"}
    rows = []
    for clip in range(NUM_CLIPS):
        for frame in range(CONTEXT + HORIZON):
            ahead = frame - CONTEXT + 1
            at = {
                **keys,
                "clip": clip,
                "episode_id": clip,
                "start_row": 0,
                "frame": frame,
                "ahead": ahead,
            }
            kinds = ["real", "reconstructed", "mean_frame"] + ["imagined"] * (ahead > 0)
            for kind in kinds:
                mse = (
                    None
                    if kind == "real"
                    else ERRORS[kind] * (1 + lam) + 0.001 * ahead * (kind == "imagined")
                )
                shown = clip < 3 and kind != "mean_frame"
                rows.append({**at, "kind": kind, "mse": mse, "png": png() if shown else None})
    return rows


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    tables = make_tables(failed=(), diverged=())
    rows = [row for lam in (0.01, 0.1) for seed in (0, 1, 2) for row in drawn(lam, seed)]
    tables["reconstruction"] = make_frame(rows, SCHEMAS["reconstruction"])
    return tables | stability.run(tables)


@pytest.fixture(scope="module")
def world(tables: dict[str, pl.DataFrame]) -> World:
    return worlds(tables, META)[0]


def test_figures_show_the_last_imagined_frame_against_the_mean_frame(world: World) -> None:
    reconstructed, imagined = figures(world, "")
    assert reconstructed.title == "Reconstructed frames are closest at λ = 0.01: 0.0101"
    assert imagined.title == "Imagined frames are closest at λ = 0.01: 0.0333"
    assert "mean training frame" in str(imagined.spec) and "3 seeds per point" in imagined.caption
    told = {row[0]: row[4] for row in imagined.rows if row[1] == "all"}
    assert told["loss.lam=0.1"] == pytest.approx(0.03 * 1.1 + 0.003)


def test_the_table_has_every_frame_and_a_dash_where_nothing_was_imagined(world: World) -> None:
    rows = error_table(world)["rows"]
    assert [row[1] for row in rows[:5]] == [
        "context -1",
        "context, last",
        "1 ahead",
        "2 ahead",
        "3 ahead",
    ]
    assert rows[0][3] == "–" and rows[2][3].startswith("0.0313")
    assert len(rows) == 2 * (CONTEXT + HORIZON)


def test_pictures_are_chosen_by_rule_and_told_in_words(world: World) -> None:
    found = strips(world)
    assert [clip["name"] for clip in found] == [
        f"λ = {lam}, seed 0, held-out clip {clip}" for lam in (0.1, 0.01) for clip in (0, 1)
    ]  # the verdict's best point first
    real, reconstructed, imagined = found[0]["lines"]
    assert [len(line["pictures"]) for line in (real, reconstructed, imagined)] == [5, 5, 5]
    assert [picture["src"] is None for picture in imagined["pictures"]] == [
        True,
        True,
        False,
        False,
        False,
    ]
    alt = imagined["pictures"][2]["alt"]
    assert alt.startswith("1 ahead, drawn from the imagined embedding, error 0.034: λ = 0.1")
    assert base64.b64decode(real["pictures"][0]["src"].partition(",")[2]) == png()


def test_the_page_has_the_section_only_where_something_was_drawn(
    tables: dict[str, pl.DataFrame],
) -> None:
    page = render(tables, META)
    assert 'id="frames"' in page and 'href="#frames"' in page
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', page)) == page.count('<img src="data:')
    empty = tables | {"reconstruction": tables["reconstruction"].clear()}
    assert 'id="frames"' not in render(empty | stability.run(empty), META)


def test_points_are_named_by_few_settings_and_numbered_by_many() -> None:
    few = make_axis([("loss.reconstruction=0.0", 0.03), ("loss.reconstruction=1.0", 0.03)])
    assert [slot.name for slot in few.slots] == ["reconstruction = 0", "reconstruction = 1"]
    assert [slot.label for slot in few.slots] == ["0", "1"] and few.title == "reconstruction"
    both = make_axis(
        [("loss.lam=0.1 model.latent_dim=64", 0.1), ("loss.lam=0.2 model.latent_dim=64", 0.2)]
    )
    assert both.slots[0].name == "λ = 0.1, latent dim = 64" and not both.numbered
    many = make_axis([(" ".join(f"pldm.w{i}={i + j}" for i in range(6)), None) for j in range(3)])
    assert many.numbered and many.slots[2].name == "configuration 3"
