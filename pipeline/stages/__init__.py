"""Evaluation stages: each takes a trained trial and one resolved config, and returns rows.

To add one: write `pipeline/stages/<name>.py` with `run(trial, config) -> frame`, its schema in
`pipeline/tables/schemas.py`, and its line in `STAGES`. A stage writes nothing. The registry imports no torch, so
that reports can be made without it; what stages share of a trial in memory is in `loaded.py`.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars as pl

from lewm.spelling import nearest

if TYPE_CHECKING:
    from pipeline.stages.loaded import LoadedTrial

STAGES: dict[str, str] = {
    "latents": "pipeline.stages.latents:run",
    "planning": "pipeline.stages.planning:run",
    "probing": "pipeline.stages.probing:run",
    "surprise": "pipeline.stages.surprise:run",
    "examples": "pipeline.stages.examples:run",
    "reconstruction": "pipeline.stages.reconstruction:run",
}

Stage = Callable[["LoadedTrial", dict[str, Any]], pl.DataFrame]


def load_stage(name: str) -> Stage:
    """The `run` of a stage, imported on use.

    Raises:
        ValueError: unknown stage, with the known ones and the nearest.
    """
    if name not in STAGES:
        raise ValueError(
            f"unknown stage {name!r}{nearest(name, STAGES)}; known: {', '.join(STAGES)}"
        )
    module, _, attribute = STAGES[name].partition(":")
    stage: Stage = getattr(importlib.import_module(module), attribute)
    return stage
