"""The sweep's judgement: from per-trial tables to `stability`, `comparison`, `profiles`, `summary`.

Runs once per sweep over all its tables, needs no model and no machine. `measure` reduces every run to
one number per metric and describes the spread over seeds, `compare` sets points against the best point,
the floors and the control, `rivals` methods and planners against each other, `decide` says which point
and how sure, `spread` where the variance comes from and what to run next; `summarise` collects it,
`findings` puts it into sentences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.stages.stability.compare import compare
from pipeline.stages.stability.episodes import read_episodes
from pipeline.stages.stability.measure import measure, run_values, success_profiles
from pipeline.stages.stability.summarise import summarise
from pipeline.tables import SCHEMAS, sort_rows

INPUTS = (
    "trials",
    "cells",
    "curves",
    "latents",
    "planning",
    "probing",
    "surprise",
    "timing",
    "reconstruction",
)
OUTPUTS = ("stability", "comparison", "profiles", "summary")


def run(
    tables: Mapping[str, pl.DataFrame], published: Sequence[Mapping[str, Any]] = ()
) -> dict[str, pl.DataFrame]:
    """Every table of `OUTPUTS`, in canonical order, from the tables of `INPUTS`.

    Args:
        tables: by name; a missing one counts as empty, others are ignored.
        published: success rates to set the best points against: method, env, protocol, value, source.

    Returns:
        Frames with the schemas of `pipeline.tables`. Where a number cannot be told (one seed, no
        spread, nothing finished) it is null and the text says so.
    """
    empty = {name: pl.DataFrame(schema=dict(SCHEMAS[name])) for name in INPUTS}
    given = {name: sort_rows(tables.get(name, empty[name])) for name in INPUTS}
    values, episodes = run_values(given), read_episodes(given)
    stability = measure(given, values, episodes)
    comparison = compare(given, stability, episodes, published)
    return {
        "stability": sort_rows(stability),
        "comparison": sort_rows(comparison),
        "profiles": sort_rows(success_profiles(values)),
        "summary": sort_rows(summarise(given, stability, comparison, episodes)),
    }
