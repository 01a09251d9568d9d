"""Windows of recorded episodes: the starts and goals from which a manifest's pairs are drawn."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lewm.config import DataConfig
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.data.frames import PIXELS
from lewm.envs import Env
from lewm.protocol import Protocol

Array = npt.NDArray[Any]
State = npt.NDArray[np.float64]

BARREN_EPISODES = 200
"""Generated episodes in a row without a window after which a protocol is given up."""


@dataclass(frozen=True, eq=False)
class Window:
    """A start, a goal `goal_offset` steps later, and what was done in between.

    Attributes:
        episode_id: number of the file's or of the generated episode.
        start_row: row of the file, or step within the generated episode.
        actions: (goal_offset, A) recorded raw actions from start to goal.
    """

    episode_id: int
    start_row: int
    start: State
    goal: State
    actions: npt.NDArray[np.float32]


class FileColumns(Mapping[str, Array]):
    """Numeric columns of some rows, all by default; read when asked for, as files have many more."""

    def __init__(self, file: EpisodeFile, rows: Array | None = None) -> None:
        self._file = file
        self._rows = rows
        self._names = tuple(name for name in file.columns if name != PIXELS)

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._file.read(name, self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


Episode = tuple[int, int, Mapping[str, Array]]
"""Number, first row, columns."""


def generated_windows(
    protocol: Protocol, env: Env, eval_seed: int, data: DataConfig
) -> Iterator[Window | None]:
    """One window, or None, of each episode that the data's policy generates under the protocol.

    Ends after `BARREN_EPISODES` Nones in a row.
    """
    spec = data.model_copy(update={"collect_seed": DataConfig().collect_seed})

    def collect(index: int) -> Episode:
        options = protocol.options
        return index, 0, collect_episode(spec, 64, index, render=False, stream=eval_seed, **options)

    barren = 0
    for window in _one_per_episode(protocol, env, eval_seed, map(collect, itertools.count())):
        yield window
        barren = 0 if window else barren + 1
        if barren == BARREN_EPISODES:
            return


def episode_windows(
    protocol: Protocol, env: Env, eval_seed: int, data: DataConfig, file: EpisodeFile
) -> Iterator[Window | None]:
    """One window, or None, of each of the file's (held-out) episodes, in an order of the eval seed's."""
    chosen = np.arange(file.num_episodes)
    if protocol.episodes == "held_out":
        from lewm.data.clips import split_episodes  # that module needs torch

        _, chosen = split_episodes(file.num_episodes, data.holdout_frac, data.split_seed)
    order = np.random.default_rng(eval_seed).permutation(chosen).tolist()
    episodes = ((e, int(file.ep_offset[e]), FileColumns(file, file.rows(e))) for e in order)
    return _one_per_episode(protocol, env, eval_seed, episodes)


def _one_per_episode(
    protocol: Protocol, env: Env, eval_seed: int, episodes: Iterable[Episode]
) -> Iterator[Window | None]:
    """For each episode a qualifying window, uniform over all of them, or None.

    Of a window every state must be one that the world allows under the protocol's options: the published
    Two-Room file has episodes that cut through walls, where a `swept` disc cannot follow.
    """
    offset = protocol.goal_offset
    anywhere = replace(protocol, success={})
    for number, first_row, columns in episodes:
        action = columns["action"]
        rng = np.random.default_rng(np.random.SeedSequence((eval_seed, number)))
        found = None
        for step in rng.permutation(max(0, len(action) - offset)).tolist():
            start = env.state_from_columns(columns, step)
            goal = env.state_from_columns(columns, step + offset)
            between = (env.state_from_columns(columns, step + i) for i in range(1, offset))
            if _qualifies(env, protocol, start, goal) and all(
                env.admits(anywhere, state, goal) for state in between
            ):
                recorded = action[step : step + offset].astype(np.float32)
                found = Window(number, first_row + step, start, goal, recorded)
                break
        yield found


def row_windows(
    protocol: Protocol, env: Env, eval_seed: int, num_pairs: int, file: EpisodeFile
) -> Iterator[Window]:
    """Rows drawn as published, ascending.

    Under a success rule that is not the world's published one, or with `pre_solved = "dropped"`, rows that
    do not qualify are left out of the draw; that looks at every row of the file.

    Raises:
        ValueError: fewer rows than pairs.
    """
    offset, columns = protocol.goal_offset, FileColumns(file)

    def states_at(row: int) -> tuple[State, State]:
        return env.state_from_columns(columns, row), env.state_from_columns(columns, row + offset)

    valid = valid_rows(file, offset)
    asks_more = any(env.success_rule[key] != value for key, value in protocol.success.items())
    if protocol.pre_solved == "dropped" or asks_more:
        wanted = [_qualifies(env, protocol, *states_at(row)) for row in valid.tolist()]
        valid = valid[np.array(wanted, dtype=bool)]
    reachable = len(valid) - (protocol.sampling == "rows_old")
    if reachable < num_pairs:
        raise ValueError(
            f"protocol {protocol.name}: {num_pairs} pairs asked for, {max(reachable, 0)} rows of "
            f"{file.path} qualify"
        )
    for row in valid[draw_as_published(reachable, num_pairs, eval_seed)].tolist():
        episode = int(np.searchsorted(file.ep_offset, row, side="right")) - 1
        actions = file.read("action", np.arange(row, row + offset)).astype(np.float32)
        yield Window(episode, row, *states_at(row), actions)


def valid_rows(file: EpisodeFile, offset: int) -> npt.NDArray[np.int64]:
    """The published code's valid starts: rows that `offset` more rows of their episode follow."""
    spans = [
        np.arange(begin, begin + length - offset)
        for begin, length in zip(file.ep_offset, file.ep_len, strict=True)
        if length > offset
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *spans])


def draw_as_published(reachable: int, num_pairs: int, eval_seed: int) -> npt.NDArray[np.int64]:
    """Positions among the valid rows, ascending; the draw of the publication's evaluation code."""
    drawn = np.random.default_rng(eval_seed).choice(reachable, size=num_pairs, replace=False)
    return np.sort(drawn)


def _qualifies(env: Env, protocol: Protocol, start: State, goal: State) -> bool:
    if not env.admits(protocol, start, goal):
        return False
    return protocol.pre_solved == "kept" or not is_solved(env, protocol, start, goal)


def is_solved(env: Env, protocol: Protocol, start: State, goal: State) -> bool:
    """Whether a start satisfies the success rule already; leaves `env` there."""
    env.set_goal(goal)
    env.set_state(start)
    return bool(env.success(protocol))
