"""Two sweeps set against each other: which points they have in common, and what differs there.

Differences are the second sweep less the first: the first is the baseline. Points are the same where
every parameter that either sweep sweeps has the same value, given in the point or in the trial's
configuration. Success is paired on the same training seeds and the same start/goal pairs (evaluation
seed, pair and manifest); other metrics on the same seeds of the same data. What cannot be paired is
compared all the same, by wider intervals, and its rows say so.
"""

import polars as pl

from pipeline.comparison.changes import Change, changes
from pipeline.comparison.differences import difference_rows
from pipeline.comparison.points import Match, Sweep, common_points, nothing_in_common
from pipeline.comparison.sentences import summary_rows
from pipeline.tables import SCHEMAS, make_frame, sort_rows


def compare(first: Sweep, second: Sweep) -> dict[str, pl.DataFrame]:
    """The tables `comparison` (`other_kind` sweep) and `summary` of two sweeps.

    Rows have the second sweep's keys, `other` is the first sweep's name; p-values are adjusted (Holm) over
    the points of one metric and setting.

    Raises:
        ValueError: they have no point in common.
    """
    matches = common_points(first, second)
    if not matches:
        raise ValueError(f"{nothing_in_common(first, second)}: there is nothing to compare")
    rows = difference_rows(first, second, matches)
    told = summary_rows(first, second, matches, rows)
    return {
        "comparison": sort_rows(make_frame(rows, SCHEMAS["comparison"])),
        "summary": sort_rows(make_frame(told, SCHEMAS["summary"])),
    }


__all__ = ["Change", "Match", "Sweep", "changes", "common_points", "compare"]
