"""Evaluation protocols and start/goal manifests: which episodes are planned, and what counts as success.

A protocol is a table of `sweeps/protocols/<env>.toml`; a manifest is the list of pairs that a protocol
and an eval seed give. Both are data: printed in reports and hashed into a cell's identity. Imports no
torch.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lewm.config import DataConfig, digest, nearest
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.envs import Env, env_class, make_env

Array = npt.NDArray[Any]

CHOICES: dict[str, tuple[str, ...]] = {
    "episodes": ("train", "held_out"),
    "pre_solved": ("kept", "dropped"),
    "sampling": ("rows", "rows_old", "one_per_episode"),
}
COUNTS = ("hold", "goal_offset", "budget")

_EPISODES_PER_PAIR = 100
"""Generated episodes after which a protocol that no pair satisfies is given up."""


@dataclass(frozen=True)
class Protocol:
    """How start/goal pairs are chosen and judged (design §3).

    Attributes:
        name: `paper`, `strict` ...
        env: environment it belongs to.
        episodes: `train` (all of the training file's, as published) or `held_out` (generated from
            the eval seed).
        pre_solved: whether starts that satisfy the success rule already are `kept` or `dropped`.
        sampling: `rows` (uniform over valid rows, the published code's current form), `rows_old`
            (its former form, which never draws the last valid row) or `one_per_episode`.
        options: constructor options of the environment, such as Two-Room's `collision`.
        success: parameters of `Env.success` and `Env.admits`.
        hold: consecutive steps that the rule must hold.
        goal_offset: environment steps from start to goal in the recorded episode.
        budget: environment steps an attempt may take.
    """

    name: str
    env: str
    episodes: str
    pre_solved: str
    sampling: str
    options: Mapping[str, str]
    success: Mapping[str, float | bool]
    hold: int
    goal_offset: int
    budget: int

    def to_dict(self) -> dict[str, Any]:
        """JSON data of every field."""
        return asdict(self)

    def make_env(self, image_size: int = 64, **options: str) -> Env:
        """The environment under the protocol's rules, with further constructor options."""
        return make_env(self.env, image_size=image_size, **self.options, **options)


_KEYS = tuple(f.name for f in fields(Protocol) if f.name not in ("name", "env"))


def protocol_from_dict(env: str, name: str, table: Mapping[str, Any]) -> Protocol:
    """The protocol of a TOML table.

    Args:
        table: every field of `Protocol` but `name` and `env`; `options` may be left out.

    Raises:
        ValueError: a key is missing, unknown (names the nearest), of the wrong type or out of range.
    """
    where = f"protocol {env}.{name}"
    _check_keys(where, table, _KEYS)
    missing = [key for key in _KEYS if key not in table and key != "options"]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    for key, allowed in CHOICES.items():
        if table[key] not in allowed:
            raise ValueError(
                f"{where}: {key} must be one of {', '.join(allowed)}, got {table[key]!r}"
            )
    for key in COUNTS:
        if type(table[key]) is not int or table[key] < 1:
            raise ValueError(f"{where}: {key} must be a whole number >= 1, got {table[key]!r}")
    if (table["sampling"] == "one_per_episode") != (table["episodes"] == "held_out"):
        raise ValueError(
            f"{where}: sampling one_per_episode goes with episodes held_out, and only so"
        )
    success = _check_success(where, table["success"], env_class(env).success_rule)
    protocol = Protocol(**{"options": {}, **table, "success": success, "name": name, "env": env})
    try:
        protocol.make_env().close()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: options {dict(protocol.options)}: {error}") from None
    return protocol


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{nearest(key, known)}; allowed: {', '.join(known)}"
            )


def _check_success(
    where: str, table: Any, rule: Mapping[str, float | bool]
) -> dict[str, float | bool]:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: success must be a table, got {table!r}")
    _check_keys(f"{where}.success", table, tuple(rule))
    checked: dict[str, float | bool] = {}
    for key, value in table.items():
        flag = isinstance(rule[key], bool)
        if isinstance(value, bool) != flag or not isinstance(value, int | float):
            kind = "true or false" if flag else "a number"
            raise ValueError(f"{where}: success.{key} must be {kind}, got {value!r}")
        if not flag and not 0 < value < float("inf"):
            raise ValueError(f"{where}: success.{key} must be above 0 and finite, got {value!r}")
        checked[key] = value if flag else float(value)
    return checked


@dataclass(frozen=True, eq=False)
class Pair:
    """One start and goal, `goal_offset` steps apart in one recorded episode.

    Attributes:
        pair_id: position in the manifest; with the eval seed it chooses the planner's stream.
        episode_id: in the training file, or the number of the generated episode.
        start_row: row of the training file, or step within the generated episode.
        start_state: state vector of the environment.
        goal_state: likewise.
        actions: (goal_offset, A) recorded raw actions from start to goal; the oracle's plan.
        initial_success: whether the start satisfies the success rule already.
    """

    pair_id: int
    episode_id: int
    start_row: int
    start_state: npt.NDArray[np.float64]
    goal_state: npt.NDArray[np.float64]
    actions: npt.NDArray[np.float32]
    initial_success: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON data, exact."""
        return {
            **{name: getattr(self, name) for name in ("pair_id", "episode_id", "start_row")},
            "start_state": self.start_state.tolist(),
            "goal_state": self.goal_state.tolist(),
            "actions": self.actions.tolist(),
            "initial_success": self.initial_success,
        }


@dataclass(frozen=True, eq=False)
class Manifest:
    """The pairs of one protocol and eval seed, frozen."""

    protocol: Protocol
    eval_seed: int
    pairs: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON data; what the hash is over."""
        return {
            "protocol": self.protocol.to_dict(),
            "eval_seed": self.eval_seed,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }

    def to_json(self) -> str:
        """Text that `from_json` reads back exactly."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The manifest written by `to_json`.

        Raises:
            ValueError: not such a text.
        """
        try:
            data = json.loads(text)
            table = dict(data["protocol"])
            protocol = protocol_from_dict(table.pop("env"), table.pop("name"), table)
            pairs = tuple(_pair_from_dict(pair) for pair in data["pairs"])
            return cls(protocol, int(data["eval_seed"]), pairs)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a manifest: {type(error).__name__} {error}") from None

    @cached_property
    def hash(self) -> str:
        """12 hex digits of the SHA-256 of the content."""
        return digest(self.to_dict())


def _pair_from_dict(data: Mapping[str, Any]) -> Pair:
    return Pair(
        **{
            **data,
            "start_state": np.array(data["start_state"], dtype=np.float64),
            "goal_state": np.array(data["goal_state"], dtype=np.float64),
            "actions": np.array(data["actions"], dtype=np.float32),
        }
    )


def make_manifest(
    protocol: Protocol,
    eval_seed: int,
    num_pairs: int,
    data: DataConfig,
    episode_file: EpisodeFile | None,
) -> Manifest:
    """The pairs that an eval seed draws under a protocol; a pure function of its arguments.

    `held_out` episodes are generated, unrendered, by the data's behaviour policy under the protocol's
    options, from the eval seed's own stream (whatever `data.collect_seed`), until enough pairs
    qualify: at most one pair per episode, its start uniform over the episode's qualifying ones. The
    first n pairs never depend on `num_pairs`.

    The `rows` samplings keep the publication's draw, `default_rng(eval_seed).choice` without
    replacement, then sorted; that draw depends on the number drawn, so here the first n pairs of a
    longer manifest are *not* those of a shorter one. The published form wins over that convenience.

    Args:
        data: environment and behaviour policy of held-out episodes.
        episode_file: the training file; needed by `episodes = "train"` only.

    Raises:
        ValueError: another environment's protocol, no file where one is needed, or too few pairs.
    """
    if data.env != protocol.env:
        raise ValueError(f"protocol {protocol.env}.{protocol.name} does not fit env {data.env!r}")
    if protocol.episodes == "held_out":
        pairs = _held_out_pairs(protocol, eval_seed, num_pairs, data)
    elif episode_file is None:
        raise ValueError(f"protocol {protocol.name} needs the training file's episodes")
    else:
        pairs = _file_pairs(protocol, eval_seed, num_pairs, episode_file)
    return Manifest(protocol, eval_seed, tuple(pairs))


def _file_pairs(
    protocol: Protocol, eval_seed: int, num_pairs: int, file: EpisodeFile
) -> Iterator[Pair]:
    """Rows drawn as published; rows that do not qualify are dropped before the draw."""
    offset = protocol.goal_offset
    spans = [
        np.arange(begin, begin + length - offset)
        for begin, length in zip(file.ep_offset, file.ep_len, strict=True)
        if length > offset
    ]
    valid = np.concatenate([np.empty(0, dtype=np.int64), *spans])
    env = protocol.make_env()
    states = _states(env, file)
    if protocol.pre_solved == "dropped" or _restricts(protocol, env):
        wanted = [_qualifies(env, protocol, states(row), states(row + offset)) for row in valid]
        valid = valid[np.array(wanted, dtype=bool)]
    reachable = len(valid) - (protocol.sampling == "rows_old")
    if reachable < num_pairs:
        raise ValueError(
            f"protocol {protocol.name}: {num_pairs} pairs asked for, {max(reachable, 0)} rows of "
            f"{file.path} qualify"
        )
    drawn = np.random.default_rng(eval_seed).choice(reachable, size=num_pairs, replace=False)
    for pair_id, row in enumerate(np.sort(valid[drawn]).tolist()):
        episode_id = int(np.searchsorted(file.ep_offset, row, side="right")) - 1
        actions = file.read("action", np.arange(row, row + offset))
        start, goal = states(row), states(row + offset)
        yield _make_pair(env, protocol, (pair_id, episode_id, row), (start, goal), actions)


def _restricts(protocol: Protocol, env: Env) -> bool:
    """Whether the protocol asks for more of a pair than the environment's defaults do."""
    return bool(protocol.options) or any(
        env.success_rule[key] != value for key, value in protocol.success.items()
    )


def _states(env: Env, file: EpisodeFile) -> Callable[[int], Array]:
    columns = {name: file.read(name) for name in file.columns if name != "pixels"}
    return lambda row: env.state_from_columns(columns, row)


def _held_out_pairs(
    protocol: Protocol, eval_seed: int, num_pairs: int, data: DataConfig
) -> Iterator[Pair]:
    env, offset = protocol.make_env(), protocol.goal_offset
    spec = data.model_copy(update={"collect_seed": DataConfig().collect_seed})
    found = 0
    for index in range(_EPISODES_PER_PAIR * (num_pairs + 1)):
        if found == num_pairs:
            return
        episode = collect_episode(
            spec, 64, index, render=False, stream=eval_seed, **protocol.options
        )
        rng = np.random.default_rng(np.random.SeedSequence((eval_seed, index)))
        for step in rng.permutation(max(0, len(episode["action"]) - offset)).tolist():
            start = env.state_from_columns(episode, step)
            goal = env.state_from_columns(episode, step + offset)
            if _qualifies(env, protocol, start, goal):
                actions = episode["action"][step : step + offset]
                yield _make_pair(env, protocol, (found, index, step), (start, goal), actions)
                found += 1
                break
    if found < num_pairs:
        raise ValueError(
            f"protocol {protocol.name}: only {found} of {num_pairs} pairs in "
            f"{_EPISODES_PER_PAIR * (num_pairs + 1)} episodes of policy {data.policy!r}"
        )


def _qualifies(env: Env, protocol: Protocol, start: Array, goal: Array) -> bool:
    if not env.admits(protocol, start, goal):
        return False
    return protocol.pre_solved == "kept" or not _solved(env, protocol, start, goal)


def _solved(env: Env, protocol: Protocol, start: Array, goal: Array) -> bool:
    env.set_goal(goal)
    env.set_state(start)
    return bool(env.success(protocol))


def _make_pair(
    env: Env,
    protocol: Protocol,
    ids: tuple[int, int, int],
    states: tuple[Array, Array],
    actions: Array,
) -> Pair:
    start, goal = (np.asarray(state, dtype=np.float64) for state in states)
    return Pair(
        *ids, start, goal, np.asarray(actions, np.float32), _solved(env, protocol, start, goal)
    )
