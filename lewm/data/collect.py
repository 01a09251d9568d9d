"""One episode of behaviour data, a pure function of its specification and its number."""

from typing import Any

import numpy as np
import numpy.typing as npt

from lewm.config import DataConfig
from lewm.envs import make_env

Array = npt.NDArray[Any]


def collect_episode(
    data: DataConfig,
    image_size: int,
    index: int,
    *,
    render: bool = True,
    stream: int | None = None,
    **options: Any,
) -> dict[str, Array]:
    """One episode of `data.policy` in `data.env`, the same on any machine and for any order of calls.

    The episode ends where the world says so (Two-Room: at the goal) or after `data.max_steps` steps, so
    it has at most `max_steps` + 1 rows.

    Args:
        image_size: pixels per side of the frames.
        index: number of the episode; with `data.collect_seed` it seeds everything random in it.
        render: False leaves `pixels` out, for episodes that only lend their starts and goals.
        stream: None is the training data; any other number names an independent stream of episodes,
            such as the eval seed's held-out ones.
        options: of the environment's constructor, such as Two-Room's `collision`.

    Returns:
        Columns (T, ...): the environment's state columns, `action` (T, A) float32, where action[t]
        leaves frame t and the last is NaN, and `pixels` (T, image_size, image_size, 3) uint8.

    Raises:
        ValueError: an unknown environment or policy, or a size it cannot draw.
    """
    key = () if stream is None else (stream,)
    seeds = np.random.SeedSequence((data.collect_seed, index), spawn_key=key).spawn(2)
    task_rng, behaviour_rng = (np.random.Generator(np.random.PCG64(seed)) for seed in seeds)
    env = make_env(data.env, image_size=image_size, render_quality=data.render_quality, **options)
    env.np_random = task_rng
    behaviour = env.make_behaviour(data.policy, behaviour_rng)
    env.reset()
    behaviour.reset(env)
    rows: list[dict[str, Array]] = []
    frames: list[Array] = []
    actions: list[Array] = []
    for step in range(data.max_steps + 1):
        rows.append(env.state_columns(env.get_state()))
        if render:
            frames.append(env.render())
        if step == data.max_steps or env.episode_over():
            break
        actions.append(behaviour.act(env))
        env.step(actions[-1])
    actions.append(np.full(env.action_dim, np.nan, dtype=np.float32))
    env.close()
    episode = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    episode["action"] = np.stack(actions)
    if render:
        episode["pixels"] = np.stack(frames)
    return episode
