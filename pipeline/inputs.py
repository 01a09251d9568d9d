"""What a sweep is refused for before anything is written or started."""

import os
from pathlib import Path

import numpy as np

from lewm.config import Config
from pipeline.datasets.cache import local_copy
from pipeline.spec import Spec


def check_inputs(spec: Spec, here_only: bool) -> None:
    """Refuses what can be known to fail, before anything is written or started.

    Args:
        here_only: whether the trials train on this machine, and so with its CPUs.

    Raises:
        ValueError: one line with what, where and what is allowed.
    """
    from lewm.envs import make_env

    configs = {(c.data, c.frame_size): c for c in (trial.config for trial in spec.trials)}
    for config in configs.values():
        if config.data.dataset is None:
            env = make_env(
                config.data.env,
                image_size=config.frame_size,
                render_quality=config.data.render_quality,
            )
            env.make_behaviour(config.data.policy, np.random.default_rng(0))
            env.close()
        else:
            check_fits(local_copy(config.data.dataset), config)
    threads = max((trial.config.optim.num_threads for trial in spec.trials), default=1)
    here = os.cpu_count() or 1
    if here_only and threads > here:
        raise ValueError(
            f"profile {spec.profile} gives a trial {threads} CPUs (optim.num_threads), this machine "
            f"has {here}: choose another profile, a cluster (--address), or --set optim.num_threads"
        )


def check_fits(path: Path, config: Config) -> None:
    """Refuses a named dataset whose frames or actions are not those of the config.

    Raises:
        ValueError: one line with what is expected and what the file has.
    """
    from lewm.data.episodes import EpisodeFile
    from lewm.envs import env_class

    with EpisodeFile(path) as episodes:
        episodes.check_frame_size(config)
        action_dim = env_class(config.data.env).action_dim
        if episodes.action_dim != action_dim:
            raise ValueError(
                f"dataset {path} has {episodes.action_dim}-d actions, {config.data.env} takes "
                f"{action_dim}-d ones"
            )
