"""The timing of plans of a sweep on storage: made once, whole or not at all."""

import sys
import time
from collections.abc import Callable
from typing import Any

import polars as pl

from lewm.config import Config
from lewm.identity import digest
from pipeline.progress import duration
from pipeline.spec import Spec
from pipeline.storage import Storage
from pipeline.tables import SCHEMAS, BrokenTable, encode, read_part

QUIET_S = 5.0
"""A progress line at most this often."""


class Stopped(Exception):
    """The driver was asked to stop between two plans."""


def part_key(spec: Spec) -> str:
    """Where the timing with exactly these settings lies."""
    settings = [
        (world.method, world.env, point, _settings(config))
        for world in spec.worlds
        for point, config in world.variants
    ]
    return f"sweeps/{spec.folder}/timing-{digest(settings)}.parquet"


SECTIONS = ("model", "dino", "data", "planning", "timing")


def _settings(config: Config) -> dict[str, Any]:
    settings = config.model_dump(mode="json", include=set(SECTIONS))
    del settings["data"]["frame_size"]  # worlds are not drawn, and older parts are named without it
    return settings


def read_times(spec: Spec, storage: Storage) -> pl.DataFrame:
    """The rows of `timing`; none where nothing is timed yet, or its file is torn."""
    if spec.times:
        try:
            return read_part(storage, part_key(spec))
        except (BrokenTable, FileNotFoundError):
            pass
    return pl.DataFrame(schema=dict(SCHEMAS["timing"]))


def has_times(spec: Spec, storage: Storage) -> bool:
    """Whether what the sweep asks for is there."""
    return not spec.times or not read_times(spec, storage).is_empty()


def time_plans(spec: Spec, storage: Storage, stopped: Callable[[], bool]) -> None:
    """Times what is not timed yet, in this process; nothing is kept of a timing that is broken off.

    Args:
        stopped: polled between plans.
    """
    if has_times(spec, storage):
        return
    from pipeline.stages import timing

    cases = [
        timing.Case(
            {
                "method": world.method,
                "env": world.env,
                "profile": spec.profile,
                "planner": config.planning.planner,
                "eval_point": point,
            },
            config,
        )
        for world in spec.worlds
        for point, config in world.variants
    ]
    began = shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if stopped():
            raise Stopped
        now = time.monotonic()
        if now - shown > QUIET_S or done == total:
            shown = now
            left = duration((now - began) * (total - done) / done)
            print(f"timing: {done}/{total} plans, about {left} to go", file=sys.stderr)

    try:
        frame = timing.run(cases, progress)
    except Stopped:
        return
    storage.write_bytes(part_key(spec), encode(frame, SCHEMAS["timing"]))
