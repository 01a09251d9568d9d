"""The `[search]` table of a sweep: how its trials are chosen, by what they are judged, what stops early.

Without one, or with `kind = "grid"`, a sweep trains every point of its grid with every seed. `bisect` and
`optuna` choose further trials from the results of earlier ones, in rounds, up to a budget of trials.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lewm.config import Count, Frozen, Positive, Seed
from pipeline.shipped import check_keys, choice

Overrides = dict[str, Any]
Mode = Literal["max", "min"]
CURVE_METRICS = ("loss", "pred_loss", "sigreg_loss", "val_pred_loss", "mean_std")
VAL_PRED_RATIO = "val_pred_ratio"
STOP_METRICS = (*CURVE_METRICS, VAL_PRED_RATIO)


class EarlyStopping(Frozen):
    """Synchronous successive halving: at each rung the best share of the trials goes on.

    The deterministic form of ASHA (Li et al. 2020): a rung waits for all its trials, so which of them
    stop depends neither on the number of workers nor on their speed.
    """

    metric: str
    """Seen without labels: a column of the curve, or `val_pred_ratio` = val_pred_loss / mean_std²."""
    mode: Mode = "min"
    rungs: tuple[Count, ...] = Field(min_length=1)
    """Optimiser steps, ascending."""
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of a rung's trials that go on, rounded up."""

    @model_validator(mode="after")
    def _check(self) -> "EarlyStopping":
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must ascend, got {list(self.rungs)}")
        return self


class Search(Frozen):
    """`kind = "grid"`: every point of `[grid]` with every seed. Base of the kinds that choose."""

    kind: str = "grid"
    early_stopping: EarlyStopping | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The config fields that the search itself sets."""
        return ()

    @property
    def is_adaptive(self) -> bool:
        """Whether trials are chosen from the results of others."""
        return bool(self.keys)

    @property
    def strategy(self) -> str:
        """Its name in the `search` table."""
        return self.kind

    def corners(self) -> list[Overrides]:
        """Settings at the ends of everything it may choose; if these are valid, so is all between."""
        return []

    def lasting(self) -> Overrides:
        """What may not change between invocations: all that is not default, but for the budget."""
        plain = self.model_dump(mode="json", exclude_defaults=True, exclude={"budget"})
        return {**plain, **({"kind": self.kind} if self.is_adaptive else {})}


class _Adaptive(Search):
    objective: str
    """What a trial is judged by: any final metric, without `final/`."""
    mode: Mode = "max"
    budget: Count
    """Trials in all; raising it later extends the sweep."""

    @property
    def is_rate(self) -> bool:
        """Whether the objective is a share of episodes."""
        return self.objective.startswith("success_")


class Bisect(_Adaptive):
    """Golden section over the logarithm of one field; seeds are added until a comparison is decided."""

    kind: str = "bisect"
    key: str = "loss.lam"
    low: Positive
    high: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.8
    """One-sided: how sure it must be that one inner point is better before the bracket is cut."""
    tolerance: Annotated[float, Field(ge=0.02, allow_inf_nan=False)] = 0.25
    """Stops when the bracket is narrower, in decades."""
    seeds: Count = 1
    """Seeds of a new point."""
    max_seeds: Count = 4
    """Seeds of a point at most; then a comparison is given up as not to be told apart."""

    @model_validator(mode="after")
    def _check(self) -> "Bisect":
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.seeds > self.max_seeds:
            raise ValueError(f"seeds = {self.seeds} is above max_seeds = {self.max_seeds}")
        if self.early_stopping is not None:
            raise ValueError(
                "early_stopping goes with grid or optuna: bisect compares finished trials, two at a time"
            )
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """The config fields that the search itself sets."""
        return (self.key,)

    def corners(self) -> list[Overrides]:
        """Both ends of the bracket."""
        return [{self.key: self.low}, {self.key: self.high}]


class Range(Frozen):
    """An interval of the space, whole numbers if both ends are."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range starts above 0, got low = {self.low:g}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Choices(Frozen):
    """Listed values of the space."""

    choices: tuple[str | int | float | bool, ...] = Field(min_length=2)


class Optuna(_Adaptive):
    """A sampler of Optuna over several fields, through Ray's `OptunaSearch`."""

    kind: str = "optuna"
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    space: dict[str, Range | Choices] = Field(min_length=1)
    batch: Count = 4
    """Suggestions per round; they train side by side."""
    seed: Seed = 0
    """Of the sampler; training seeds count up from 0 where a point comes again."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The config fields that the search itself sets."""
        return tuple(sorted(self.space))

    @property
    def strategy(self) -> str:
        """Its name in the `search` table."""
        return f"optuna-{self.sampler}"

    def corners(self) -> list[Overrides]:
        """Every end and choice of every field, one at a time."""
        return [
            {key: value}
            for key, axis in self.space.items()
            for value in (axis.choices if isinstance(axis, Choices) else (axis.low, axis.high))
        ]


KINDS: dict[str, type[Search]] = {"grid": Search, "bisect": Bisect, "optuna": Optuna}


def canonical(point: Mapping[str, Any]) -> str:
    """One string per point: `loss.lam=0.1`, keys sorted, joined by spaces; empty for no axis."""
    return " ".join(f"{key}={point[key]}" for key in sorted(point))


@dataclass(frozen=True)
class Suggestion:
    """A trial to run, and why in plain words."""

    overrides: Overrides
    seed: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of a suggestion; without a value (failed, diverged, stopped) it counts as the worst."""

    overrides: Overrides
    seed: int
    value: float | None


def parse_search(table: Any, where: str) -> Search:
    """The settings that a `[search]` table gives.

    Raises:
        ValueError: one line that says what, where and the nearest right spelling.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: [search] must be a table of key = value, got {table!r}")
    kind = KINDS[choice(table.get("kind", "grid"), KINDS, f"{where}: search.kind")]
    check_keys(table, kind.model_fields, f"{where}, [search] of kind {table.get('kind', 'grid')}")
    rule = table.get("early_stopping")
    if isinstance(rule, Mapping):
        check_keys(rule, EarlyStopping.model_fields, f"{where}, [search.early_stopping]")
        choice(
            rule.get("metric", STOP_METRICS[0]),
            STOP_METRICS,
            f"{where}: search.early_stopping.metric",
        )
    try:
        return kind.model_validate(_tuples(table))
    except ValidationError as error:
        raise ValueError(f"{where}: {_first(error, table)}") from None


def load_search(stored: Mapping[str, Any] | None) -> Search:
    """The settings as `sweep.json` keeps them; a sweep from before there was any search is a grid."""
    return Search() if stored is None else parse_search(stored, "sweep.json")


def _tuples(value: Any) -> Any:
    """TOML's and JSON's arrays as the tuples that strict settings ask for."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _first(error: ValidationError, table: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("Range", "Choices")]
    if first["type"] == "missing":
        return f"search.{'.'.join(path)} is missing"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{'.'.join(['search', *path])}: {message}{got}"
