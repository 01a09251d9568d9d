"""The closed loop: plan, act, observe, over a manifest's pairs, in chunks of fixed size.

A pair's slot within its chunk follows from its `pair_id` alone, and empty slots are padded, so an
episode's result depends neither on how many others are run nor on their order. Frames are drawn only
when a plan is made, and where an accelerator plans, the worlds of one chunk move while it plans for
another.

Shapes: B slots of a chunk, E episodes, T context frames, H planned blocks, A action block.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lewm.agent import Agent, frozen, price_plans
from lewm.config import PlanningConfig
from lewm.envs import Env
from lewm.envs.frame_cache import FrameCache
from lewm.manifest import Manifest, Pair
from lewm.methods import Cost
from lewm.planners import Planner
from lewm.protocol import Protocol

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Outcomes:
    """What became of a manifest's pairs, in the manifest's order; all arrays (E,).

    Attributes:
        initial_success: the start satisfied the success rule.
        success: the rule held `protocol.hold` steps in a row at some time within the budget.
        steps_to_success: environment steps until it had; -1 where it never did.
        final_distance: to the goal at the end of the episode (success or budget), in the
            environment's unit (Two-Room: px).
        plan_s: seconds of encoding and planning, the episode's share of its chunk's.
        paths: per episode the states at block boundaries, start and end included (P, state).
    """

    initial_success: npt.NDArray[np.bool_]
    success: npt.NDArray[np.bool_]
    steps_to_success: npt.NDArray[np.int64]
    final_distance: npt.NDArray[np.float64]
    plan_s: npt.NDArray[np.float64]
    paths: tuple[Array, ...]

    def first(self, count: int | None) -> "Outcomes":
        """Those of the manifest's first pairs; of all if None."""
        return Outcomes(**{field.name: getattr(self, field.name)[:count] for field in fields(self)})


def run_planner(
    manifest: Manifest,
    planner: Planner,
    config: PlanningConfig,
    action_block: int,
    agent: Agent | None = None,
) -> Outcomes:
    """Every pair planned and executed in closed loop (paper §4.1; facts §4).

    Each plan starts from the current frame(s) and the goal's frame, both rendered, and its first
    `execute` blocks are executed before the next. Plans are made in z-scored action space and brought
    back to the environment's units, which clips what it executes. Success is looked at after each
    step, as published, and ends the episode.

    Args:
        config: `horizon`, `execute`, `history`, `chunk`, `precision` and `compile` are used.
        action_block: environment steps in a planned block.
        agent: the model; None for planners in raw units, which ask for no cost.

    Raises:
        ValueError: a planner that needs a model got none.
    """
    if agent is None and not planner.raw:
        raise ValueError("this planner searches with a model, and none is given")
    if agent is not None:
        agent.method.eval()

    history = 0 if planner.raw else config.history or manifest.protocol.history

    def plan(chunk: "_Chunk") -> Array:
        begin = time.perf_counter()
        cost = (
            None
            if agent is None or chunk.seen is None
            else _make_cost(chunk, agent, config, *chunk.seen)
        )
        width = action_block * chunk.action_dim
        plan_BHA = planner.plan(cost, chunk.generators, config.horizon, width)[:, : config.execute]
        chunk.past_blocks.append(plan_BHA)
        chunk.plan_s += time.perf_counter() - begin
        steps = plan_BHA.numpy().reshape(len(plan_BHA), -1, chunk.action_dim)
        return steps if planner.raw or agent is None else agent.normaliser.invert(steps)

    play = _Play(manifest, manifest.protocol.budget, action_block, history)
    with torch.no_grad(), nullcontext() if agent is None else frozen(agent.method):
        return _run(play, plan, config.chunk, agent)


def run_recorded(manifest: Manifest) -> Outcomes:
    """The oracle: the recorded actions from start to goal are replayed, then the episode ends.

    Where success must last, `hold` - 1 raw zeros follow, within the budget. That shows which pairs can be
    solved, not which cannot: the recorded episode may have rushed through its goal, and a planner has
    the rest of the budget to stop there.
    """
    protocol = manifest.protocol
    steps = min(protocol.goal_offset + protocol.hold - 1, protocol.budget)

    def replay(chunk: "_Chunk") -> Array:
        recorded_BTA = np.stack([episode.pair.actions for episode in chunk.padded])
        return np.pad(recorded_BTA, ((0, 0), (0, protocol.hold - 1), (0, 0)))

    return _run(_Play(manifest, steps, action_block=steps, history=0), replay, chunk_size=1)


_Row = tuple[bool, int, float, float, Array]
"""success, steps_to_success, final_distance, plan_s and path of one pair."""


class _Episode:
    """One pair under way: its world, the states at block boundaries, its count of success.

    `frames` draws for all of them: one renderer, however many episodes.
    """

    def __init__(self, pair: Pair, env: Env, frames: FrameCache | None, protocol: Protocol) -> None:
        self.pair = pair
        self.env = env
        self.frames = frames
        self.protocol = protocol
        self.held = 0
        self.solved_at = -1
        env.set_goal(pair.goal_state)
        env.set_state(pair.start_state)
        self.boundary_states = [env.get_state()]

    @property
    def solved(self) -> bool:
        return self.solved_at >= 0

    def draw(self, state: Array) -> Array:
        """The frame (H, W, 3) of a state."""
        assert self.frames is not None
        return self.frames.draw(state)

    def context(self, history: int) -> Array:
        """(T, H, W, 3) frames at up to `history` last block boundaries."""
        return np.stack([self.draw(state) for state in self.boundary_states[-history:]])

    def execute(self, actions: Array, done: int, action_block: int) -> None:
        """Steps through raw actions (steps, A) after `done` earlier ones; a solved episode stays put."""
        for step, action in enumerate(actions, start=done + 1):
            if not self.solved:
                self.env.step(action)
                self.held = self.held + 1 if self.env.success(self.protocol) else 0
                if self.held == self.protocol.hold:
                    self.solved_at = step
            if step % action_block == 0:
                self.boundary_states.append(self.env.get_state())


@dataclass(frozen=True)
class _Play:
    """What is played, the same for all chunks; `history` frames are seen before a plan, or none."""

    manifest: Manifest
    budget: int
    action_block: int
    history: int


class _Chunk:
    """Pairs planned together, by slot; `padded` fills the empty slots with one of them.

    Attributes:
        done: environment steps so far.
        seen: context (B, T, H, W, 3) and goal (B, 1, H, W, 3) frames for the next plan; None where none
            are looked at or the chunk is over.
    """

    def __init__(
        self,
        play: _Play,
        pairs: Mapping[int, Pair],
        envs: Sequence[Env],
        frames: FrameCache | None,
    ) -> None:
        self.play = play
        self.envs = envs
        self.episodes = {
            slot: _Episode(pair, envs[slot], frames, play.manifest.protocol)
            for slot, pair in pairs.items()
        }
        self.action_dim = envs[0].action_dim
        filler = next(iter(self.episodes.values()))
        self.padded = [self.episodes.get(slot, filler) for slot in range(len(envs))]
        self.generators = [
            _generator(play.manifest.eval_seed, pairs[slot].pair_id if slot in pairs else None)
            for slot in range(len(envs))
        ]
        self.past_blocks: list[Tensor] = []
        self.plan_s = 0.0
        self.done = 0
        self.seen: tuple[Array, Array] | None = None
        self._look()

    @property
    def over(self) -> bool:
        """Whether its budget is spent or all of its episodes are solved."""
        return self.done >= self.play.budget or all(e.solved for e in self.episodes.values())

    def move(self, actions_BTA: Array) -> "_Chunk":
        """Executes actions as far as the budget goes, and looks; returns itself."""
        actions = actions_BTA[:, : self.play.budget - self.done]
        for slot, episode in self.episodes.items():
            episode.execute(actions[slot], self.done, self.play.action_block)
        self.done += actions.shape[1]
        self._look()
        return self

    def _look(self) -> None:
        """Draws the last block boundaries, now included, and the goals."""
        self.seen = None
        if self.play.history and not self.over:
            context = np.stack([e.context(self.play.history) for e in self.padded])
            self.seen = context, np.stack([[e.draw(e.pair.goal_state)] for e in self.padded])

    def rows(self) -> "dict[int, _Row]":
        """What became of each pair, by `pair_id`."""
        share_s = self.plan_s / len(self.episodes)
        return {
            e.pair.pair_id: (
                e.solved,
                e.solved_at,
                e.env.goal_distance(),
                share_s,
                np.stack(e.boundary_states),
            )
            for e in self.episodes.values()
        }

    def proprio(self, columns: Iterable[str], history: int) -> tuple[Array, ...]:
        """Proprioception (B, T, Q) at the context's frames and (B, 1, Q) at the goal; nothing of no columns."""
        names = tuple(columns)
        if not names:
            return ()
        states = [[*e.boundary_states[-history:], e.pair.goal_state] for e in self.padded]
        env = self.padded[0].env
        felt_BTQ = np.stack([[felt(env, state, names) for state in row] for row in states])
        return felt_BTQ[:, :-1], felt_BTQ[:, -1:]


def felt(env: Env, state: Array, columns: Iterable[str]) -> npt.NDArray[np.float32]:
    """The proprioception (Q,) of a state, the columns side by side as a data file has them."""
    stored = env.state_columns(state)
    return np.concatenate([np.ravel(stored[name]) for name in columns]).astype(np.float32)


def _generator(eval_seed: int, pair_id: int | None) -> torch.Generator:
    """The planner's stream of one pair, the same in whatever company it is planned."""
    key = (eval_seed,) if pair_id is None else (eval_seed, pair_id)
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def _make_cost(
    chunk: _Chunk, agent: Agent, config: PlanningConfig, context_BTHWC: Array, goal_B1HWC: Array
) -> Cost:
    """The method's cost for these frames, taking and giving CPU tensors."""
    num_past = context_BTHWC.shape[1] - 1
    past_BTA = None
    if num_past:
        past_BTA = torch.cat(chunk.past_blocks, dim=1)[:, -num_past:].to(agent.device)
    body = [
        torch.from_numpy(x).to(agent.device)
        for x in chunk.proprio(agent.method.proprio, context_BTHWC.shape[1])
    ]
    return price_plans(
        agent.method,
        config,
        agent.device,
        agent.see(context_BTHWC),
        agent.see(goal_B1HWC),
        past_BTA,
        *body,
    )


def _run(
    play: _Play,
    act: Callable[[_Chunk], Array],
    chunk_size: int,
    agent: Agent | None = None,
) -> Outcomes:
    """All chunks, each until it is over; worlds move and are drawn in a thread of their own."""
    protocol = play.manifest.protocol
    num_chunks = sum(1 for _ in _chunks(play.manifest, chunk_size))
    env_sets = [
        [protocol.make_env() for _ in range(chunk_size)]
        for _ in range(min(_chunks_at_once(agent), num_chunks))
    ]
    frames = None
    if agent is not None:
        frames = FrameCache(agent.world(protocol))
    rows: dict[int, _Row] = {}
    waiting = _chunks(play.manifest, chunk_size)
    with ThreadPoolExecutor(1) as worlds:
        moving: deque[Future[_Chunk]] = deque()
        for envs, pairs in zip(env_sets, waiting, strict=False):
            moving.append(worlds.submit(_Chunk, play, pairs, envs, frames))
        while moving:
            chunk = moving.popleft().result()
            if not chunk.over:
                moving.append(worlds.submit(chunk.move, act(chunk)))
                continue
            rows |= chunk.rows()
            for pairs in islice(waiting, 1):
                moving.append(worlds.submit(_Chunk, play, pairs, chunk.envs, frames))
        for env in chain(*env_sets, [frames.env] if frames else []):
            worlds.submit(env.close).result()
    success, steps, final, plan_s, paths = zip(
        *(rows[pair.pair_id] for pair in play.manifest.pairs), strict=True
    )
    return Outcomes(
        initial_success=np.array(
            [pair.initial_success for pair in play.manifest.pairs], dtype=np.bool_
        ),
        success=np.array(success, dtype=np.bool_),
        steps_to_success=np.array(steps, dtype=np.int64),
        final_distance=np.array(final, dtype=np.float64),
        plan_s=np.array(plan_s, dtype=np.float64),
        paths=paths,
    )


def _chunks_at_once(agent: Agent | None) -> int:
    """While an accelerator plans for one chunk the worlds of another move; a CPU's cores are all taken."""
    return 1 if agent is None or agent.device.type == "cpu" else 2


def _chunks(manifest: Manifest, chunk_size: int) -> Iterator[dict[int, Pair]]:
    """Pairs by slot; pair p always sits in slot p % size of chunk p // size."""
    chunks: dict[int, dict[int, Pair]] = {}
    for pair in manifest.pairs:
        number, slot = divmod(pair.pair_id, chunk_size)
        chunks.setdefault(number, {})[slot] = pair
    yield from chunks.values()
