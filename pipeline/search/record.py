"""What an adaptive search suggested, on storage and in the sweep's tables.

`sweeps/<sweep>/search.json` lists every suggestion in order; with the trials' values it is all that a
search knows, so a new driver goes on from it. The `search` table holds these suggestions (`repetition`
null) beside simulated searches (`pipeline.simulate`), which outlive every rewriting of the tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.search import Adaptive, best, verdict
from pipeline.search.settings import Bisect, Optuna, Outcome, Suggestion
from pipeline.spec import Spec, Trial
from pipeline.storage import Storage
from pipeline.tables import SCHEMAS, Place, make_frame, read_table

Row = dict[str, Any]
SHARE = "search_share"
INCUMBENT = "search_incumbent"
SIMULATED = (
    *(SHARE, INCUMBENT),
    *("search_trials", "search_trials_own", "search_floor", "finding_simulation"),
)
"""Metrics (in `profiles`) and quantities (in `summary`) that only a simulation writes."""


def read_suggestions(storage: Storage, folder: str) -> list[Row]:
    """The suggestions of a sweep so far, in order; each with trial_id, round, order, overrides, seed, reason."""
    stored = storage.read_json(f"sweeps/{folder}/search.json") or {"suggestions": []}
    return list(stored["suggestions"])


def write_suggestions(storage: Storage, folder: str, suggestions: Sequence[Row]) -> None:
    """Keeps all suggestions of a sweep."""
    storage.write_json(f"sweeps/{folder}/search.json", {"suggestions": list(suggestions)})


def read_stopped(storage: Storage, folder: str) -> dict[str, Row]:
    """The trials that early stopping ended in this sweep: step and reason by trial id."""
    return dict(storage.read_json(f"sweeps/{folder}/stopped.json") or {})


def write_stopped(
    storage: Storage,
    folder: str,
    rung: int,
    reasons: Mapping[str, str],
    judged: Iterable[str],
) -> None:
    """Keeps who was stopped at a rung; what an earlier judgement of the same trials said is replaced."""
    kept = {k: v for k, v in read_stopped(storage, folder).items() if k not in set(judged)}
    fresh = {trial_id: {"step": rung, "reason": reason} for trial_id, reason in reasons.items()}
    storage.write_json(f"sweeps/{folder}/stopped.json", kept | fresh)


def add_round(
    known: Sequence[Row], trials: Sequence[Trial], suggestions: Sequence[Suggestion]
) -> list[Row]:
    """The suggestions with a further round.

    Args:
        trials: of the round, one per suggestion.
    """
    number = known[-1]["round"] + 1 if known else 0
    return [
        *known,
        *(
            {
                "trial_id": trial.trial_id,
                "round": number,
                "order": len(known) + place,
                "overrides": s.overrides,
                "seed": s.seed,
                "reason": s.reason,
            }
            for place, (trial, s) in enumerate(zip(trials, suggestions, strict=True))
        ),
    ]


def outcomes_of(suggestions: Sequence[Row], values: Mapping[str, float | None]) -> list[Outcome]:
    """What became of the suggestions.

    Args:
        values: the objective by trial id; None for a trial that failed, diverged or was stopped.

    Raises:
        KeyError: a suggestion's trial has not ended.
    """
    return [Outcome(s["overrides"], s["seed"], values[s["trial_id"]]) for s in suggestions]


def read_objective(search: Adaptive, metrics: Mapping[str, float], trial: str) -> float:
    """The objective among a finished trial's final metrics.

    Raises:
        ValueError: it is not among them; names those that are.
    """
    value = metrics.get(f"final/{search.objective}")
    if value is None:
        known = ", ".join(sorted(name.removeprefix("final/") for name in metrics))
        raise ValueError(
            f"search.objective {search.objective!r} is not among the final metrics of {trial}: {known}"
        )
    return value


def search_rows(
    spec: Spec, suggestions: Sequence[Row], values: Mapping[str, float | None]
) -> list[Row]:
    """Rows of the `search` table: every suggestion whose trial has ended, as far as there is no gap."""
    search, by_id = spec.search, {trial.trial_id: trial for trial in spec.trials}
    assert isinstance(search, Bisect | Optuna)
    rows: list[Row] = []
    for number, suggestion in enumerate(suggestions, 1):
        if suggestion["trial_id"] not in values:
            break
        found = best(search, outcomes_of(suggestions[:number], values))
        assert found is not None
        trial = by_id[suggestion["trial_id"]]
        rows.append(
            _place(spec)
            | {
                "point": trial.point,
                "lam": trial.config.lam,
                "strategy": search.strategy,
                "order": suggestion["order"],
                "objective": search.objective,
                "best_so_far": found.mean,
                "reason": suggestion["reason"],
            }
        )
    return rows


def search_summary(
    spec: Spec, suggestions: Sequence[Row], values: Mapping[str, float | None]
) -> list[Row]:
    """The `summary` row that says what the search found and why it ended."""
    search = spec.search
    assert isinstance(search, Bisect | Optuna)
    ended = [s for s in suggestions if s["trial_id"] in values]
    text = verdict(search, outcomes_of(ended, values))
    row = {"metric": search.objective, "quantity": "search_verdict", "text": text, "n": len(ended)}
    return [_place(spec) | row]


def _place(spec: Spec) -> Row:
    world = spec.worlds[0]
    return {"method": world.method, "env": world.env, "profile": spec.profile}


def with_search(
    tables: Mapping[str, pl.DataFrame],
    sweep: Place,
    rows: Sequence[Row] = (),
    summary: Sequence[Row] = (),
) -> dict[str, pl.DataFrame]:
    """The sweep's tables with its search, and with the simulated searches that it has already.

    Args:
        tables: freshly made, `profiles` and `summary` among them.
        rows: of `search_rows`.
        summary: of `search_summary`.
    """
    kept = read_table(sweep, "search").filter(pl.col("repetition").is_not_null())
    shares = read_table(sweep, "profiles").filter(pl.col("metric").is_in(SIMULATED))
    told = read_table(sweep, "summary").filter(pl.col("quantity").is_in(SIMULATED))
    return {
        **tables,
        "search": pl.concat([make_frame(rows, SCHEMAS["search"]), kept]),
        "profiles": pl.concat([tables["profiles"], shares]),
        "summary": pl.concat([tables["summary"], make_frame(summary, SCHEMAS["summary"]), told]),
    }
