"""A sweep's TOML and command-line overrides, resolved to points, trials and identities.

Later wins: config defaults < profile < profile x env x method < sweep < sweep x profile < command line.
Imports neither torch nor ray, so `--dry-run` answers at once.
"""

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lewm.config import (
    EVALUATION_FIELDS,
    RECIPE_VERSION,
    TRAINING_FIELDS,
    Config,
    digest,
    lay,
    make_config,
    nearest,
    non_default,
    trial_id,
)

Overrides = dict[str, Any]
STAGE_NAMES = ("latents", "planning", "probing", "surprise")
METHOD_NAMES = ("lewm",)
PLANNER_NAMES = ("cem", "random", "zero")
SEARCH_KINDS = ("grid",)
SWEEP_KEYS = {
    "name", "question", "method", "env", "seeds", "stages", "search", "grid", "set", "evaluate",
    "profile",
}  # fmt: skip
PROFILE_KEYS = {"about", "set", "env", "method", "estimate"}


@dataclass(frozen=True)
class Request:
    """What the command line adds to a sweep's TOML."""

    sweep: str
    profile: str = "quick"
    env: str | None = None
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
class Spec:
    """A sweep, fully resolved.

    `base` is what every trial of the sweep shares: it may not change between invocations.
    `variants` are the evaluation settings to run on every trial, by their `eval_point`.
    """

    name: str
    question: str
    env: str
    profile: str
    folder: str
    stages: tuple[str, ...]
    trials: tuple[Trial, ...]
    variants: tuple[tuple[str, Config], ...]
    protocols: dict[str, dict[str, Any]]
    base: dict[str, Any]
    estimate: dict[str, Any]
    fingerprint: str | None

    @property
    def points(self) -> list[str]:
        """The distinct points, in the order of the grid."""
        return list(dict.fromkeys(trial.point for trial in self.trials))

    @property
    def seeds(self) -> list[int]:
        """The distinct training seeds, ascending."""
        return sorted({trial.config.seed for trial in self.trials})


def resolve(request: Request, fingerprint: str | None = None) -> Spec:
    """The sweep that a request asks for.

    Args:
        fingerprint: of `request.dataset`, which it stands in for in every identity.

    Raises:
        ValueError: one line that says what, where and the nearest right spelling.
    """
    table = load_toml(find_sweep(request.sweep))
    where = f"sweep {request.sweep!r}"
    _check_keys(table, SWEEP_KEYS, where)
    per_profile = table.get("profile", {}).get(request.profile, {})
    _check_keys(per_profile, {"grid", "set", "seeds", "stages"}, f"{where}, profile table")
    profile = load_profile(request.profile)
    method = _choice(table.get("method", "lewm"), METHOD_NAMES, f"{where}: method")
    env = _choice(request.env or table.get("env", "two_room"), env_names(), f"{where}: env")
    kind = table.get("search", {}).get("kind", "grid")
    _choice(kind, SEARCH_KINDS, f"{where}: search.kind")
    fixed = lay(
        {"method": method, "data.env": env},
        *layers(profile, env, method),
        _table(table, "set", where),
        _table(per_profile, "set", where),
        request.overrides,
    )
    if request.dataset is not None:
        fixed["data.dataset"] = request.dataset
    grid = {
        **_table(table, "grid", where),
        **_table(per_profile, "grid", where),
        **request.grid,
    }
    _check_grid(
        grid, where, ("planning", "latents", "probing", "surprise", "run", "seed", "method")
    )
    evaluate_grid = table.get("evaluate", {}).get("grid", {})
    _check_grid(
        evaluate_grid, f"{where}: evaluate", ("model", "loss", "data", "optim", "run", "seed")
    )
    _check_overrides(request.overrides, {**grid, **evaluate_grid})
    for key in {**grid, **evaluate_grid}:
        fixed.pop(key, None)
    seeds = check_seeds(request.seeds or per_profile.get("seeds", table.get("seeds", [0])), where)
    stages = tuple(per_profile.get("stages", table.get("stages", STAGE_NAMES)))
    for stage in stages:
        _choice(stage, STAGE_NAMES, f"{where}: stages")
    trials = [
        _make_trial({**fixed, **point, "seed": seed}, grid, fingerprint)
        for point in _product(grid)
        for seed in seeds
    ]
    base_config = make_config({**fixed, "seed": 0})
    variants = tuple(
        (canonical(point), make_config({**fixed, **point, "seed": 0}))
        for point in _product(evaluate_grid)
    )
    for _, config in variants:
        _choice(config.planning.planner, PLANNER_NAMES, f"{where}: planning.planner")
    protocols = load_protocols(env)
    used = {name: protocols[_choice(name, protocols, f"{where}: planning.protocols")]
            for _, config in variants for name in config.planning.protocols}  # fmt: skip
    extra = {k: v for k, v in request.overrides.items() if k not in evaluate_grid}
    if request.dataset is not None:
        extra["data.dataset"] = Path(request.dataset).name
    suffix = f"-{digest(extra, 6)}" if extra else ""
    return Spec(
        name=str(table.get("name", Path(request.sweep).stem)),
        question=str(table.get("question", "")),
        env=env,
        profile=request.profile,
        folder=f"{table.get('name', Path(request.sweep).stem)}-{env}-{request.profile}{suffix}",
        stages=stages,
        trials=tuple(trials),
        variants=variants,
        protocols=used,
        base=_base(base_config, grid, evaluate_grid, stages, fingerprint),
        estimate=dict(profile.get("estimate", {})),
        fingerprint=fingerprint,
    )


def _make_trial(overrides: Overrides, grid: Mapping[str, Any], fingerprint: str | None) -> Trial:
    config = make_config(overrides)
    flat = flatten(config)
    return Trial(trial_id(config, fingerprint), config, canonical({key: flat[key] for key in grid}))


def make_trial(config: Config, point: str, fingerprint: str | None) -> Trial:
    """The trial of a stored config, as `sweep.json` keeps them."""
    return Trial(trial_id(config, fingerprint), config, point)


def _base(
    config: Config,
    grid: Mapping[str, Any],
    evaluate_grid: Mapping[str, Any],
    stages: Sequence[str],
    fingerprint: str | None,
) -> dict[str, Any]:
    data = non_default(config, (*TRAINING_FIELDS, *EVALUATION_FIELDS))
    flat = {
        f"{section}.{key}" if isinstance(value, dict) else section: leaf
        for section, value in data.items()
        for key, leaf in (value.items() if isinstance(value, dict) else [("", value)])
    }
    flat = {k: v for k, v in flat.items() if k not in grid and k not in evaluate_grid}
    flat.pop("seed", None)
    if fingerprint is not None:
        flat["data.dataset"] = fingerprint
    axes = {"swept": sorted(grid), "swept_evaluation": dict(evaluate_grid)}
    return {"recipe": RECIPE_VERSION, "stages": list(stages), **axes, **flat}


def check_base(stored: Mapping[str, Any], new: Mapping[str, Any], folder: str) -> None:
    """Refuses a sweep whose shared settings are not those it began with.

    Raises:
        ValueError: names the first key that differs and the two ways out.
    """
    for key in sorted({*stored, *new}):
        was, now = stored.get(key, "(default)"), new.get(key, "(default)")
        if was != now:
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


def canonical(point: Mapping[str, Any]) -> str:
    """One string per point: `loss.lam=0.1`, keys sorted, joined by spaces; `all` for no axis."""
    parts = (f"{key}={point[key]}" for key in sorted(point))
    return " ".join(parts)


def _product(grid: Mapping[str, Sequence[Any]]) -> Iterable[Overrides]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def layers(profile: Mapping[str, Any], env: str, method: str) -> list[Overrides]:
    """A profile's settings for one environment and method, the more special later."""
    per_env = profile.get("env", {}).get(env, {})
    per_method = profile.get("method", {}).get(method, {})
    both = per_env.get("method", {}).get(method, {})
    return [table.get("set", {}) for table in (profile, per_env, per_method, both)]


def check_seeds(seeds: Iterable[Any], where: str) -> tuple[int, ...]:
    """Training seeds as a tuple.

    Raises:
        ValueError: none, duplicates, or not natural numbers.
    """
    chosen = tuple(seeds)
    if not chosen:
        raise ValueError(f"{where}: seeds is empty; give at least one, e.g. seeds = [0, 1, 2]")
    for seed in chosen:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(f"{where}: seed {seed!r} is not a whole number from 0 to 2^32 - 1")
    if len(set(chosen)) != len(chosen):
        twice = next(seed for seed in chosen if chosen.count(seed) > 1)
        raise ValueError(f"{where}: seed {twice} is given twice")
    return chosen


def _check_grid(grid: Mapping[str, Any], where: str, forbidden: tuple[str, ...]) -> None:
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"{where}: grid {key!r} needs a non-empty list of values, got {values!r}"
            )
        if len({repr(value) for value in values}) != len(values):
            raise ValueError(f"{where}: grid {key!r} has a value twice: {values}")
        if key.split(".")[0] in forbidden:
            raise ValueError(f"{where}: {key!r} cannot be an axis of this grid")


def _check_overrides(overrides: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
    """Refuses `--set` where it would be ignored, or where another option says it."""
    options = {"data.env": "--env", "data.dataset": "--dataset", "seed": "--seeds"}
    for key in overrides:
        if key in axes:
            raise ValueError(f"--set {key}: it is an axis of this sweep; use --grid {key}=...")
        if key in options:
            raise ValueError(f"--set {key}: use {options[key]}")


def _check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _choice(name: Any, known: Iterable[str], where: str) -> str:
    if name not in known:
        raise ValueError(
            f"{where}: unknown {name!r}{nearest(str(name), known)}; known: {', '.join(sorted(known))}"
        )
    return str(name)


def _table(table: Mapping[str, Any], key: str, where: str) -> Overrides:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{where}: [{key}] must be a table of key = value, got {value!r}")
    return dict(value)


def load_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        ValueError: unreadable, or a syntax error with its line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def package_folder() -> Path:
    """The installed `sweeps` folder: package data without Python, found after any kind of install."""
    import sweeps

    return next(Path(path) for path in sweeps.__path__ if (Path(path) / "profiles").is_dir())


def find_sweep(name: str) -> Path:
    """The TOML of a sweep: a path that ends in `.toml`, or the name of one that ships with us."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ValueError(f"no such sweep file: {name}")
        return Path(name)
    return _shipped(package_folder(), name, "sweep", hidden={"published"})


def load_profile(name: str) -> dict[str, Any]:
    """A profile's TOML."""
    path = _shipped(package_folder() / "profiles", name, "profile")
    table = load_toml(path)
    _check_keys(table, PROFILE_KEYS, f"profile {name!r}")
    return table


def env_names() -> list[str]:
    """Environments with evaluation protocols: those that a sweep can name."""
    return sorted(path.stem for path in (package_folder() / "protocols").glob("*.toml"))


def load_protocols(env: str) -> dict[str, dict[str, Any]]:
    """The evaluation protocols of an environment, by name."""
    return load_toml(_shipped(package_folder() / "protocols", env, "protocols of environment"))


def _shipped(folder: Path, name: str, what: str, hidden: Iterable[str] = ()) -> Path:
    known = {path.stem: path for path in folder.glob("*.toml") if path.stem not in hidden}
    return known[_choice(name, known, what)]


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` with the value read as TOML (`0.1`, `true`, `[1, 2]`), else as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise ValueError(f"{text!r} is not key=value, e.g. loss.lam=0.1")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`key=v1,v2,...` as one axis of the grid."""
    key, equals, values = text.partition("=")
    parts = [part for part in values.strip("[] ").split(",") if part.strip()]
    if not equals or not parts:
        raise ValueError(f"{text!r} is not key=v1,v2,..., e.g. loss.lam=0,0.1,0.3")
    return key.strip(), [parse_assignment(f"{key}={part}")[1] for part in parts]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` or `0-4` as seeds."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise ValueError(f"--seeds {text!r}: expected 0,1,2 or 0-4") from None
    return check_seeds(seeds, "--seeds")
