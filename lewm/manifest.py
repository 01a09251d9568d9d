"""Start/goal manifests: the pairs that a protocol and an eval seed draw, frozen and hashed.

A manifest says what its pairs were drawn from: `check_manifest` refuses one of another dataset. Those of
other projects are read by `lewm.named_manifest`. Imports no torch, but to split a named file's episodes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lewm.config import DataConfig
from lewm.data.episodes import EpisodeFile
from lewm.envs import Env
from lewm.identity import digest
from lewm.protocol import Protocol, protocol_from_dict
from lewm.windows import (
    BARREN_EPISODES,
    State,
    Window,
    episode_windows,
    generated_windows,
    is_solved,
    row_windows,
)

Progress = Callable[[int, int], None]
"""Called with (pairs found, pairs asked for) after every episode looked at."""

SCHEMA_VERSION = "lewm-manifest-v1"
GENERATED = "generated"


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

    Raises:
        ValueError: a state or an action is not finite.
    """

    pair_id: int
    episode_id: int
    start_row: int
    start_state: State
    goal_state: State
    actions: npt.NDArray[np.float32]
    initial_success: bool

    def __post_init__(self) -> None:
        for name in ("start_state", "goal_state", "actions"):
            if not np.isfinite(getattr(self, name)).all():
                place = f"pair {self.pair_id} (episode {self.episode_id}, row {self.start_row})"
                raise ValueError(f"{place}: {name} is not finite")

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
    """The pairs of one protocol and eval seed, frozen.

    Attributes:
        source: what the pairs were drawn from: the dataset's hash, or `generated ...` with the policy;
            None where nobody said.

    Raises:
        ValueError: two pairs of one id, or one with too few or too many recorded actions.
    """

    protocol: Protocol
    eval_seed: int
    pairs: tuple[Pair, ...]
    source: str | None = None

    def __post_init__(self) -> None:
        where = f"manifest of {self.protocol.env}.{self.protocol.name}"
        steps = self.protocol.goal_offset
        for pair in self.pairs:
            if pair.actions.ndim != 2 or len(pair.actions) != steps:
                raise ValueError(
                    f"{where}: pair {pair.pair_id} needs {steps} recorded actions, "
                    f"got an array of shape {pair.actions.shape}"
                )
        if len({pair.pair_id for pair in self.pairs}) < len(self.pairs):
            raise ValueError(f"{where}: two pairs have the same pair_id")

    def to_dict(self) -> dict[str, Any]:
        """JSON data; what the hash is over."""
        return {
            "schema_version": SCHEMA_VERSION,
            "protocol": self.protocol.to_dict(),
            "eval_seed": self.eval_seed,
            "source": self.source,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }

    def to_json(self) -> str:
        """Text that `from_json` reads back exactly."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The manifest written by `to_json`.

        Raises:
            ValueError: not such a text, or of another version.
        """
        try:
            data = json.loads(text)
            if data["schema_version"] != SCHEMA_VERSION:
                found = data["schema_version"]
                raise ValueError(f"manifest has version {found!r}; known: {SCHEMA_VERSION}")
            table = dict(data["protocol"])
            protocol = protocol_from_dict(table.pop("env"), table.pop("name"), table)
            pairs = tuple(_pair_from_dict(pair) for pair in data["pairs"])
            return cls(protocol, int(data["eval_seed"]), pairs, data["source"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
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


def check_manifest(manifest: Manifest, dataset_hash: str) -> None:
    """Refuses a manifest whose pairs were drawn from another dataset; generated pairs fit any.

    Args:
        dataset_hash: in the form in which `make_manifest` was given it.

    Raises:
        ValueError: drawn from another dataset, or from one that nobody named.
    """
    if manifest.source == dataset_hash or (manifest.source or "").startswith(GENERATED):
        return
    source = "a dataset that it does not name" if manifest.source is None else manifest.source
    raise ValueError(
        f"manifest {manifest.hash} ({manifest.protocol.env}.{manifest.protocol.name}, eval seed "
        f"{manifest.eval_seed}) was drawn from {source}, not from dataset {dataset_hash}"
    )


def make_manifest(
    protocol: Protocol,
    eval_seed: int,
    num_pairs: int,
    data: DataConfig,
    episode_file: EpisodeFile | None,
    *,
    dataset_hash: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """The pairs that an eval seed draws under a protocol; a pure function of its arguments.

    `held_out` episodes are generated, unrendered, by the data's behaviour policy under the protocol's
    options, from the eval seed's own stream (whatever `data.collect_seed`), until enough pairs
    qualify. A named file (`data.dataset`) has a distribution that no policy of ours reproduces: there
    they are the held-out episodes of the file's split, in an order drawn from the eval seed. (With
    `data.split = "clip"`, and for weights that somebody else trained on the file, training has seen
    them.) Either way each episode gives at most one pair, its start uniform over its qualifying
    ones, and the first n pairs never depend on `num_pairs`.

    The `rows` samplings keep the publication's draw, `default_rng(eval_seed).choice` without
    replacement, then sorted; that draw depends on the number drawn, so here the first n pairs of a
    longer manifest are *not* those of a shorter one. The published form wins over that convenience.

    Args:
        data: environment, behaviour policy and split.
        episode_file: the training file; not needed for generated episodes.
        dataset_hash: identity of that file, kept as the manifest's `source`.
        progress: told how many pairs there are; episodes of a slow world take seconds each.

    Raises:
        ValueError: another environment's protocol, no file where one is needed, too few pairs, or
            something not finite in a pair.
    """
    if data.env != protocol.env:
        raise ValueError(f"protocol {protocol.env}.{protocol.name} does not fit env {data.env!r}")
    generated = protocol.episodes == "held_out" and data.dataset is None
    if episode_file is None and not generated:
        raise ValueError(f"protocol {protocol.name} needs the training file's episodes")
    with closing(protocol.make_env()) as env:
        if generated:
            windows = generated_windows(protocol, env, eval_seed, data)
            none = f"{BARREN_EPISODES} episodes of policy {data.policy!r} in a row gave none"
            source: str | None = f"{GENERATED} by {data.policy}, at most {data.max_steps} steps"
        else:
            assert episode_file is not None
            windows = _file_windows(protocol, env, eval_seed, num_pairs, data, episode_file)
            held_out = "held-out " if protocol.episodes == "held_out" else ""
            none = f"no other of the {held_out}episodes of {episode_file.path} has one"
            source = dataset_hash
        pairs = _first_pairs(windows, env, protocol, num_pairs, progress)
    if len(pairs) < num_pairs:
        raise ValueError(
            f"protocol {protocol.name}: only {len(pairs)} of {num_pairs} pairs; {none}"
        )
    return Manifest(protocol, eval_seed, pairs, source)


def _file_windows(
    protocol: Protocol,
    env: Env,
    eval_seed: int,
    num_pairs: int,
    data: DataConfig,
    file: EpisodeFile,
) -> Iterator[Window | None]:
    if file.action_dim != env.action_dim:
        raise ValueError(
            f"dataset {file.path}: actions of width {file.action_dim}; {env.name} has {env.action_dim}"
        )
    if protocol.sampling == "one_per_episode":
        return episode_windows(protocol, env, eval_seed, data, file)
    return row_windows(protocol, env, eval_seed, num_pairs, file)


def _first_pairs(
    windows: Iterator[Window | None],
    env: Env,
    protocol: Protocol,
    num_pairs: int,
    progress: Progress | None,
) -> tuple[Pair, ...]:
    """The first windows as pairs, as many as there are."""
    pairs: list[Pair] = []
    for window in windows:
        if window is not None:
            ids = (len(pairs), window.episode_id, window.start_row)
            pairs.append(make_pair(ids, window, env, protocol))
        if progress is not None:
            progress(len(pairs), num_pairs)
        if len(pairs) == num_pairs:
            break
    return tuple(pairs)


def make_pair(ids: tuple[int, int, int], window: Window, env: Env, protocol: Protocol) -> Pair:
    """The window as pair (pair_id, episode_id, start_row).

    Raises:
        ValueError: something in it is not finite.
    """
    solved = is_solved(env, protocol, window.start, window.goal)
    return Pair(*ids, window.start, window.goal, window.actions, solved)
