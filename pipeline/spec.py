"""A sweep, fully resolved (`pipeline.resolve`): worlds, trials, and what may not change between invocations.

A *world* is one method in one environment; method and environment are axes like any other, but each
world has a grid of trials, evaluation settings and protocols of its own.
Imports neither torch nor ray, so `--dry-run` answers at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lewm.config import Config
from pipeline.axes import Overrides
from pipeline.search.settings import Search
from pipeline.shipped import choice, load_protocols

DEFAULT_STAGES = ("latents", "planning", "probing", "surprise", "examples")
STAGE_NAMES = (*DEFAULT_STAGES, "reconstruction")
TIMING = "timing"
"""The stage that runs once per sweep, on models with random weights; alone, it needs no trials."""
METHOD_NAMES = ("lewm", "pldm", "dino_wm", "random_encoder", "copy_last", "linear_dynamics")
PLANNER_NAMES = ("cem", "icem", "mppi", "gradient", "random", "zero")


@dataclass(frozen=True)
class Request:
    """What the command line adds to a sweep's TOML."""

    sweep: str
    profile: str = "quick"
    envs: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    grid: Overrides = field(default_factory=dict)
    overrides: Overrides = field(default_factory=dict)
    dataset: str | None = None


@dataclass(frozen=True)
class Trial:
    """One config and one training seed."""

    trial_id: str
    config: Config
    point: str


@dataclass(frozen=True)
class World:
    """One method in one environment: how its trials are evaluated, and how long they take.

    `variants` are the evaluation settings to run on every trial, by their `eval_point`.
    """

    method: str
    env: str
    variants: tuple[tuple[str, Config], ...]
    protocols: dict[str, dict[str, Any]]
    estimate: dict[str, Any]

    @property
    def name(self) -> str:
        """`lewm push_t`."""
        return f"{self.method} {self.env}"


@dataclass(frozen=True)
class Spec:
    """A sweep, fully resolved; `base` is what its trials share, and may not change between invocations.

    With `released` its one trial is a released checkpoint (`pipeline.released`); then `knows_lam` says
    whether λ and seed of its training are known. `times`: plans are timed, which needs no trial.
    """

    name: str
    question: str
    profile: str
    folder: str
    stages: tuple[str, ...]
    worlds: tuple[World, ...]
    trials: tuple[Trial, ...]
    base: dict[str, Any]
    fingerprint: str | None
    released: bool = False
    knows_lam: bool = True
    times: bool = False
    search: Search = field(default_factory=Search)

    @property
    def needs_data(self) -> bool:
        """Whether anything is to be read from a data file: not for pairs that are generated."""
        if not self.trials:
            return False
        protocols = [table for world in self.worlds for table in world.protocols.values()]
        return (
            not self.released
            or bool(set(self.stages) - {"planning", "examples"})
            or any(table["episodes"] == "train" for table in protocols)
        )

    @property
    def points(self) -> list[str]:
        """The distinct points, in the order of the grid."""
        return list(dict.fromkeys(trial.point for trial in self.trials))

    @property
    def seeds(self) -> list[int]:
        """The distinct training seeds, ascending."""
        return sorted({trial.config.seed for trial in self.trials})

    @property
    def envs(self) -> list[str]:
        """The distinct environments, in the order of the worlds."""
        return list(dict.fromkeys(world.env for world in self.worlds))

    def world(self, trial: Trial) -> World:
        """The world of a trial."""
        place = (trial.config.method, trial.config.data.env)
        return next(world for world in self.worlds if (world.method, world.env) == place)

    def label(self, trial: Trial) -> str:
        """A trial for readers: of its world what others differ in, its point, its seed."""
        parts = [trial.config.method] if len({world.method for world in self.worlds}) > 1 else []
        parts += [trial.config.data.env] if len(self.envs) > 1 else []
        parts += [trial.point] if trial.point else []
        return " ".join([*parts, f"seed={trial.config.seed}"])


def make_world(
    method: str,
    env: str,
    variants: tuple[tuple[str, Config], ...],
    estimate: dict[str, Any],
    where: str,
) -> World:
    """A world with the protocols that its evaluation settings name.

    Raises:
        ValueError: an unknown planner or protocol.
    """
    protocols = load_protocols(env)
    used = {}
    for _, config in variants:
        choice(config.planning.planner, PLANNER_NAMES, f"{where}: planning.planner")
        for name in config.planning.protocols:
            used[name] = protocols[choice(name, protocols, f"{where}: planning.protocols")]
    return World(method, env, variants, used, estimate)


def check_base(stored: Mapping[str, Any], new: Mapping[str, Any], folder: str) -> None:
    """Refuses a sweep whose shared settings are not those it began with.

    Raises:
        ValueError: names the first key that differs and the two ways out.
    """
    for key in sorted({*stored, *new}, key=lambda key: (key != "worlds", key)):
        was, now = stored.get(key, "(default)"), new.get(key, "(default)")
        is_new_value = "axis." in key and "(default)" in (was, now)
        if was != now and not is_new_value:
            raise ValueError(
                f"sweep {folder!r} was begun with {key} = {was}, now {now}: put it back, or give the "
                "sweep another name (copy its TOML and change `name`)"
            )


def flatten(config: Config) -> Overrides:
    """Every field as `section.leaf` → JSON value."""
    flat: Overrides = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat.update({f"{key}.{leaf}": v for leaf, v in value.items()})
        else:
            flat[key] = value
    return flat
