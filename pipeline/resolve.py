"""From a sweep's TOML, its profile and the command line to worlds, points, trials and identities.

Later wins: config defaults < profile < profile x env x method < sweep < sweep x profile < command line.
Imports neither torch nor ray, so `--dry-run` answers at once.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lewm.identity import (
    EVALUATION_FIELDS,
    RECIPE_VERSION,
    digest,
    non_default,
    training_fields,
    trial_id,
)
from lewm.overrides import EXCLUSIVE, lay, make_config
from pipeline.arguments import check_seeds
from pipeline.axes import Axes, Overrides, Point, check_settings, make_axes
from pipeline.search import next_round
from pipeline.search.checks import check_alone, check_objective, check_rungs
from pipeline.search.settings import Search, Suggestion, canonical, parse_search
from pipeline.shipped import (
    check_keys,
    choice,
    env_names,
    find_sweep,
    layers,
    load_profile,
    load_toml,
    over,
    profile_chain,
)
from pipeline.spec import (
    DEFAULT_STAGES,
    METHOD_NAMES,
    STAGE_NAMES,
    TIMING,
    Request,
    Spec,
    Trial,
    World,
    flatten,
    make_world,
)

SWEEP_KEYS = {
    "name", "question", "method", "env", "seeds", "stages", "search", "grid", "axis", "set", "evaluate",
    "profile",
}  # fmt: skip
PROFILE_KEYS = {
    *("grid", "axis", "set", "search", "seeds", "stages"),
    *("envs", "methods", "env", "method"),
}

NOT_SWEPT = (*STAGE_NAMES, TIMING, "run", "seed", "method")
NOT_EVALUATION = ("model", "loss", "decoder", "data", "optim", "run", "seed")


def resolve(request: Request, fingerprint: str | None = None) -> Spec:
    """The sweep that a request asks for.

    Args:
        fingerprint: of `request.dataset`, which it stands in for in every identity.

    Raises:
        ValueError: one line that says what, where and the nearest right spelling.
    """
    plan = _Plan(request)
    worlds, trials, bases = [], [], {}
    for method, env in itertools.product(plan.methods, plan.envs):
        fixed = plan.fixed(method, env)
        world = plan.world(method, env, fixed)
        worlds.append(world)
        bases[world.name] = plan.base(fixed, fingerprint)
        trials += [
            _make_trial(
                {**fixed, **point.overrides, "seed": seed}, plan.keys, point.named, fingerprint
            )
            for point, seed in (plan.first_trials() if plan.stages != (TIMING,) else ())
        ]
        plan.check_search(world, fixed)
    if request.dataset is not None and len(worlds) > 1:
        raise ValueError("--dataset goes with one environment and one method: add --env NAME")
    name = str(plan.table.get("name", Path(request.sweep).stem))
    place = worlds[0].env if len(worlds) == 1 else "multi"
    suffix = f"-{digest(plan.extra, 6)}" if plan.extra else ""
    return Spec(
        name=name,
        question=str(plan.table.get("question", "")),
        profile=request.profile,
        folder=f"{name}-{place}-{request.profile}{suffix}",
        stages=tuple(stage for stage in plan.stages if stage != TIMING),
        times=TIMING in plan.stages,
        worlds=tuple(worlds),
        trials=tuple(trials),
        base=_joint_base(bases),
        fingerprint=fingerprint,
        search=plan.search,
    )


def extend(spec: Spec, suggestions: Iterable[Suggestion]) -> tuple[Spec, list[Trial]]:
    """The sweep with the trials of a round added.

    Returns:
        The sweep, and one trial per suggestion, in their order.
    """
    shared = flatten(spec.trials[0].config)
    trials = [
        _make_trial(
            {**shared, **s.overrides, "seed": s.seed}, spec.search.keys, {}, spec.fingerprint
        )
        for s in suggestions
    ]
    known = {trial.trial_id for trial in spec.trials}
    new = tuple(trial for trial in trials if trial.trial_id not in known)
    return replace(spec, trials=(*spec.trials, *new)), trials


class _Plan:
    """A sweep's file, its profile and the command line, checked; makes one world after another."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.where = f"sweep {request.sweep!r}"
        self.table = table = load_toml(find_sweep(request.sweep))
        check_keys(table, SWEEP_KEYS, self.where)
        chain = profile_chain(request.profile)
        self.of_profile = over(table.get("profile", {}).get(name, {}) for name in chain)
        check_keys(self.of_profile, PROFILE_KEYS, f"{self.where}, profile table")
        self.profile = load_profile(request.profile)
        self.methods = self._names("method", "lewm", METHOD_NAMES)
        self.envs = self._names("env", "two_room", env_names())
        of_profile = _table(self.of_profile, "search", self.where)
        self.search = parse_search(
            {**_table(table, "search", self.where), **of_profile}, self.where
        )
        self._read_axes()
        self.seeds = check_seeds(
            request.seeds or self.of_profile.get("seeds", table.get("seeds", [0])), self.where
        )
        self.stages = tuple(self.of_profile.get("stages", table.get("stages", DEFAULT_STAGES)))
        for stage in self.stages:
            choice(stage, (*STAGE_NAMES, TIMING), f"{self.where}: stages")
        if self.search.is_adaptive:
            given = [request.seeds, self.of_profile.get("seeds"), table.get("seeds")]
            axes = self.axes.values
            check_alone(self.search, axes, any(given), self.methods, self.envs, self.where)

    def _read_axes(self) -> None:
        """The axes over training and those over evaluation only."""
        settings = check_settings(self.table.get("axis", {}), self.where)
        own = check_settings(self.of_profile.get("axis", {}), f"{self.where}, profile table")
        settings = {
            name: settings.get(name, {}) | own.get(name, {}) for name in {**settings, **own}
        }
        grid = {
            **_table(self.table, "grid", self.where),
            **_table(self.of_profile, "grid", self.where),
        }
        of_evaluation = self.table.get("evaluate", {}).get("grid", {})
        self.axes = make_axes({**grid, **self.request.grid}, settings, NOT_SWEPT, self.where)
        self.evaluation_axes = make_axes(
            of_evaluation, settings, NOT_EVALUATION, f"{self.where}: evaluate"
        )
        for key in self.search.keys:
            if key.split(".")[0] in NOT_SWEPT:
                raise ValueError(
                    f"{self.where}: {key!r} cannot be searched: it changes no training"
                )
        swept = (*self.axes.keys, *self.evaluation_axes.keys)
        _check_overrides(self.request.overrides, swept, self.search)
        self.keys = (*self.axes.plain, *self.search.keys)

    def first_trials(self) -> list[tuple[Point, int]]:
        """Points and seeds that are known before anything has been trained."""
        if self.search.is_adaptive:
            return [(Point(s.overrides, {}), s.seed) for s in next_round(self.search, [])]
        return [(point, seed) for point in self.axes.points() for seed in self.seeds]

    def check_search(self, world: World, fixed: Overrides) -> None:
        """Refuses a search that the trials of a world cannot follow."""
        for corner in self.search.corners():
            make_config({**fixed, **corner, "seed": 0})
        if self.search.is_adaptive:
            check_objective(self.search, self.stages, _successes(world), self.where)
        if self.search.early_stopping is not None:
            first = next(iter(self.first_trials()))[0].overrides
            check_rungs(self.search.early_stopping, make_config({**fixed, **first}), self.where)

    def _names(self, key: str, default: str, known: Sequence[str]) -> tuple[str, ...]:
        """The methods or environments: one name or a list, by the command line if it says so."""
        asked = self.request.envs if key == "env" else None
        value = asked or self.of_profile.get(f"{key}s") or self.table.get(key, default)
        names = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{self.where}: {key} needs different names, got {value!r}")
        return tuple(choice(name, known, f"{self.where}: {key}") for name in names)

    def fixed(self, method: str, env: str) -> Overrides:
        """Every setting of a world that no axis sweeps; what a composite axis sets is where it begins."""
        per_env = self.of_profile.get("env", {}).get(env, {})
        per_method = self.of_profile.get("method", {}).get(method, {})
        fixed = lay(
            {"method": method, "data.env": env},
            *layers(self.profile, env, method),
            _table(self.table, "set", self.where),
            _table(self.of_profile, "set", self.where),
            _table(per_env, "set", self.where),
            _table(per_method, "set", self.where),
            self.request.overrides,
        )
        if self.request.dataset is not None:
            fixed["data.dataset"] = self.request.dataset
        swept = {*self.keys, *self.evaluation_axes.plain}
        swept |= {EXCLUSIVE[key] for key in swept if key in EXCLUSIVE}
        return {k: v for k, v in fixed.items() if k not in swept}

    def world(self, method: str, env: str, fixed: Overrides) -> World:
        """One method in one environment with its evaluation settings."""
        variants = tuple(
            (_eval_point(point, self.evaluation_axes), make_config({**fixed, **point.overrides}))
            for point in self.evaluation_axes.points()
        )
        per_env = self.profile.get("env", {}).get(env, {})
        own = self.profile.get("method", {}).get(method, {}).get("estimate")
        estimate = own or {**self.profile.get("estimate", {}), **per_env.get("estimate", {})}
        return make_world(method, env, variants, estimate, self.where)

    @property
    def extra(self) -> Overrides:
        """The overrides that make another sweep of it, with a folder of its own."""
        chosen = self.request.overrides.items()
        extra = {k: v for k, v in chosen if k not in self.evaluation_axes.keys}
        if self.request.dataset is not None:
            extra["data.dataset"] = Path(self.request.dataset).name
        if self.request.envs is not None and len(self.request.envs) > 1:
            extra["env"] = list(self.request.envs)
        return extra

    def base(self, fixed: Overrides, fingerprint: str | None) -> dict[str, Any]:
        """What the trials of a world share, flat."""
        config = make_config({**fixed, "seed": 0})
        data = non_default(config, (*training_fields(config.method), *EVALUATION_FIELDS))
        flat = {
            f"{section}.{key}" if isinstance(value, dict) else section: leaf
            for section, value in data.items()
            for key, leaf in (value.items() if isinstance(value, dict) else [("", value)])
        }
        swept = {"seed", *self.keys, *self.evaluation_axes.plain}
        flat = {k: v for k, v in flat.items() if k not in swept}
        if fingerprint is not None:
            flat["data.dataset"] = fingerprint
        axes = {
            "swept": sorted((*self.axes, *self.search.keys)),
            "swept_evaluation": dict(self.evaluation_axes.values),
            **self.axes.definitions(),
            **self.evaluation_axes.definitions(),
        }
        search = {f"search.{key}": value for key, value in self.search.lasting().items()}
        return {"recipe": RECIPE_VERSION, "stages": list(self.stages), **axes, **search, **flat}


def _make_trial(
    overrides: Overrides, keys: Iterable[str], named: Overrides, fingerprint: str | None
) -> Trial:
    """A trial whose point names the values of some config keys and of composite axes."""
    config = make_config(overrides)
    flat = flatten(config)
    point = canonical({key: flat[key] for key in keys} | named)
    return Trial(trial_id(config, fingerprint), config, point)


def _eval_point(point: Point, axes: Axes) -> str:
    """The canonical string of one setting of the evaluation axes."""
    return canonical({name: point.overrides[name] for name in axes.plain} | point.named)


def _successes(world: World) -> list[str]:
    """The names of a world's success rates among the final metrics (`pipeline.results`)."""
    names = []
    for eval_point, config in world.variants:
        own = [part for part in eval_point.split(" ") if part.startswith("planning.")]
        extra = f"_{' '.join(own)}".replace("=", "_") if own else ""
        names += [f"success_{protocol}{extra}" for protocol in config.planning.protocols]
    return names


def _joint_base(bases: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One base for all worlds: what they share plainly, what differs under the world's name."""
    if len(bases) == 1:
        return next(iter(bases.values()))
    keys = dict.fromkeys(key for base in bases.values() for key in base)
    keys.pop("data.env", None)
    joint: dict[str, Any] = {"worlds": list(bases)}
    for key in keys:
        values = {name: base.get(key, "(default)") for name, base in bases.items()}
        if len({repr(value) for value in values.values()}) == 1:
            joint[key] = next(iter(values.values()))
        else:
            joint |= {f"{name}: {key}": value for name, value in values.items()}
    return joint


def _check_overrides(overrides: Mapping[str, Any], axes: Sequence[str], search: Search) -> None:
    """Refuses `--set` where it would be ignored, or where another option says it."""
    options = {"data.env": "--env", "data.dataset": "--dataset", "seed": "--seeds"}
    for key in overrides:
        if key in search.keys:
            raise ValueError(
                f"--set {key}: this sweep's search chooses it; its range is in [search]"
            )
        if key in axes:
            raise ValueError(f"--set {key}: an axis of this sweep sets it; use --grid {key}=...")
        if key in options:
            raise ValueError(f"--set {key}: use {options[key]}")


def _table(table: Mapping[str, Any], key: str, where: str) -> Overrides:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{where}: [{key}] must be a table of key = value, got {value!r}")
    return dict(value)
