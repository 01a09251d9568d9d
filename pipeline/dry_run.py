"""The dry run: what would be trained, what is there already, how long it would take."""

import os

from lewm.config import Config
from pipeline.progress import duration
from pipeline.search.settings import Bisect, Optuna
from pipeline.spec import Spec, World
from pipeline.storage import Storage, read_marker


def print_plan(spec: Spec, storage: Storage) -> None:
    """The dry run: what would be trained, what is there already, how long it would take."""
    done = {
        t.trial_id
        for t in spec.trials
        if (read_marker(storage, t.trial_id) or {}).get("status") == "done"
    }
    print(f"sweep     {spec.folder}  ({spec.profile} profile, {', '.join(spec.envs)})")
    print(f"question  {spec.question}")
    worlds = f"{len(spec.worlds)} worlds x " if len(spec.worlds) > 1 else ""
    print(f"points    {worlds}{len(spec.points)} points x seeds {spec.seeds} = {len(spec.trials)} trials, "
          f"{len(done)} done in {storage.uri}")  # fmt: skip
    for world in spec.worlds:
        _print_world(spec, world, done)


def _print_world(spec: Spec, world: World, done: set[str]) -> None:
    own = [t for t in spec.trials if spec.world(t) == world]
    print(f"world     {world.env}, {world.method}")
    for point in dict.fromkeys(t.point for t in own):
        marks = "  ".join(
            f"seed {t.config.seed}: {t.trial_id}{' done' if t.trial_id in done else ''}"
            for t in own
            if t.point == point
        )
        print(f"  {point or '(one point)':24s} {marks}")
    variants = [point or "one setting" for point, _ in world.variants]
    print(f"stages    {', '.join(spec.stages)}  (evaluation: {'; '.join(variants)})")
    print(f"protocols {', '.join(world.protocols)}")
    num_missing = sum(t.trial_id not in done for t in own)
    if isinstance(spec.search, Bisect | Optuna):
        num_open = max(spec.search.budget - len(own), 0)
        print(f"search    {spec.search.strategy}: {num_open} further trials at most, each round chosen from "
              "the results of those before it")  # fmt: skip
        num_missing += num_open
    print(f"estimate  {estimate(world, own[0].config, num_missing)}")


def estimate(world: World, config: Config, num_missing: int) -> str:
    """How long the missing trials of a world would take, as far as the profile knows; says where from."""
    if num_missing == 0:
        return "nothing to train"
    steps = num_steps(config)
    if "seconds_per_step" not in world.estimate:
        return f"{steps:,} steps per trial; no speed measured for this profile yet"
    per_trial = steps * world.estimate["seconds_per_step"] + world.estimate["evaluate_s"]
    each = f"about {duration(per_trial)} per trial ({steps:,} steps)"
    source = world.estimate["source"]
    if world.estimate["unit"] == "gpu":
        return f"{each} on one GPU, {per_trial * num_missing / 3600:.0f} GPU-hours in all; {source}"
    workers = max((os.cpu_count() or 1) // config.optim.num_threads, 1)
    rounds = -(-num_missing // workers)
    total = duration(rounds * per_trial)
    return f"{each}, {workers} at once here: about {total} in all; {source}"


def num_steps(config: Config) -> int:
    """Optimiser steps of a trial; an upper bound where epochs are asked for."""
    return config.optim.num_steps or _epoch_steps(config) * (config.optim.num_epochs or 1)


def _epoch_steps(config: Config) -> int:
    """Steps of an epoch if every episode has its full length; an upper bound."""
    data = config.data
    span = data.action_block * (config.model.history + 1)
    clips = data.num_episodes * (1 - data.holdout_frac) * max(data.max_steps - span + 1, 1)
    return max(int(clips) // config.optim.batch_size, 1)
