"""The main job: trains, evaluates and reports a sweep; the same command again does only what is missing.

python -m pipeline.sweep lambda                          the λ sweep, quick profile, on this machine
python -m pipeline.sweep lambda --dry-run                what that means: points, trials, estimate
python -m pipeline.sweep lambda --seeds 0-4              two seeds more; only the new trials train
python -m pipeline.sweep lambda --grid loss.lam=0.05     a point more
python -m pipeline.sweep lambda --set optim.lr=5e-4      another sweep, beside the first
python -m pipeline.sweep paper --dry-run                 every sweep about a published claim, with its hours
python -m pipeline.sweep paper --sweeps lambda,seeds     some of them, then the page of all claims
"""

import argparse
import os
import sys
from collections.abc import Sequence

from lewm.config import Config
from pipeline import arguments, driver
from pipeline.arguments import check_stages
from pipeline.datasets.cache import absolute, local_copy
from pipeline.options import Options
from pipeline.progress import duration
from pipeline.redact import redact
from pipeline.resolve import resolve
from pipeline.search.settings import Bisect, Optuna
from pipeline.spec import Request, Spec, World
from pipeline.storage import Storage, read_marker


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="Shipped sweeps and profiles are TOML files in sweeps/. Exit codes: 0 complete, 1 some "
        "trials failed, 2 bad input, 3 already running, 130/143 interrupted. LEWM_TRACEBACK=1 shows where "
        "an error line came from.",
    )
    add = parser.add_argument
    add("sweep", help="a shipped sweep's name, or a .toml file")
    add("--profile", default="quick", help="quick (a laptop), small (one GPU), paper (published)")
    add("--env", metavar="NAME,...", help="environments, instead of the sweep's")
    add("--seeds", help="training seeds: 0,1,2 or 0-4")
    add("--grid", action="append", default=[], metavar="KEY=V1,V2", help="replaces or adds an axis")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any config field")
    add("--dataset", help="a file in the published layout, or its URI, instead of collecting one")
    add("--storage", default="runs", help="folder or s3://bucket/prefix (default: runs)")
    add("--address", help="an existing Ray cluster (auto or host:port); default: one of our own")
    add("--trials-per-gpu", type=_count, default=1, metavar="K", help="trials that share a GPU")
    add(
        "--trials-per-node",
        type=_count,
        metavar="K",
        help="trials that share a machine without a GPU (default: as many as it has CPUs for); each "
        "gets its share of the memory, and K is lowered if that is not enough",
    )
    add("--retry", choices=["failed"], help="train failed trials again")
    add("--only", metavar="STAGE,...", help="evaluate these stages only; the rest stays to be done")
    add("--dry-run", action="store_true", help="print points, trials and an estimate; do nothing")
    add("--sweeps", metavar="NAME,...", help="with `paper`: these of the programme only")
    add(
        "--gpus",
        type=_count,
        metavar="N",
        help="with `paper --dry-run`: hours on N GPUs too (default: 8)",
    )
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def make_request(args: argparse.Namespace) -> Request:
    """The request of a command line."""
    return Request(
        sweep=args.sweep,
        profile=args.profile,
        envs=tuple(args.env.split(",")) if args.env else None,
        seeds=arguments.parse_seeds(args.seeds) if args.seeds else None,
        grid=dict(arguments.parse_axis(text) for text in args.grid),
        overrides=dict(arguments.parse_assignment(text) for text in args.set),
        dataset=absolute(args.dataset) if args.dataset else None,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse(argv)
    command = " ".join(["python -m pipeline.sweep", *(sys.argv[1:] if argv is None else argv)])
    try:
        if args.sweep == "paper":
            from pipeline import programme

            return programme.main(args)
        _check_programme_options(args)
        request = make_request(args)
        fingerprint = None
        if request.dataset is not None:
            from lewm.data.episodes import fingerprint as fingerprint_of

            fingerprint = fingerprint_of(local_copy(request.dataset))
        spec = resolve(request, fingerprint)
        storage = Storage(args.storage)
        if args.dry_run:
            print_plan(spec, storage)
            return driver.COMPLETE
        storage.check_writable()
        options = Options(
            command,
            args.address,
            only=check_stages(args.only, spec.stages),
            retry_failed=args.retry == "failed",
            per_gpu=args.trials_per_gpu,
            per_node=args.trials_per_node,
        )
        return driver.run(spec, storage, options)
    except (ValueError, OSError) as error:
        if os.environ.get("LEWM_TRACEBACK"):
            raise
        print(f"error: {redact(str(error))}", file=sys.stderr)
        if isinstance(error, ValueError):
            return driver.BAD_INPUT
        print("everything finished is kept; the same command goes on from there", file=sys.stderr)
        return driver.SOME_FAILED


def _check_programme_options(args: argparse.Namespace) -> None:
    for name in ("sweeps", "gpus"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} goes with `paper`, the programme of all sweeps")


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


if __name__ == "__main__":
    sys.exit(main())
