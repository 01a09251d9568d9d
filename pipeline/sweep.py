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
from typing import TYPE_CHECKING

from pipeline.options import BAD_INPUT, COMPLETE, SOME_FAILED, Options
from pipeline.redact import redact

if TYPE_CHECKING:
    from pipeline.spec import Request


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


def make_request(args: argparse.Namespace) -> "Request":
    """The request of a command line."""
    from pipeline.arguments import parse_assignment, parse_axis, parse_seeds
    from pipeline.datasets.cache import absolute
    from pipeline.spec import Request

    return Request(
        sweep=args.sweep,
        profile=args.profile,
        envs=tuple(args.env.split(",")) if args.env else None,
        seeds=parse_seeds(args.seeds) if args.seeds else None,
        grid=dict(parse_axis(text) for text in args.grid),
        overrides=dict(parse_assignment(text) for text in args.set),
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
        return _run(args, command)
    except (ValueError, OSError) as error:
        if os.environ.get("LEWM_TRACEBACK"):
            raise
        print(f"error: {redact(str(error))}", file=sys.stderr)
        if isinstance(error, ValueError):
            return BAD_INPUT
        print("everything finished is kept; the same command goes on from there", file=sys.stderr)
        return SOME_FAILED


def _run(args: argparse.Namespace, command: str) -> int:
    from pipeline.arguments import check_stages
    from pipeline.resolve import resolve
    from pipeline.storage import Storage

    request = make_request(args)
    fingerprint = None
    if request.dataset is not None:
        from lewm.data.digest import fingerprint as fingerprint_of
        from pipeline.datasets.cache import local_copy

        fingerprint = fingerprint_of(local_copy(request.dataset))
    spec = resolve(request, fingerprint)
    storage = Storage(args.storage)
    if args.dry_run:
        from pipeline.dry_run import print_plan

        print_plan(spec, storage)
        return COMPLETE
    storage.check_writable()
    options = Options(
        command,
        args.address,
        only=check_stages(args.only, spec.stages),
        retry_failed=args.retry == "failed",
        per_gpu=args.trials_per_gpu,
        per_node=args.trials_per_node,
    )
    from pipeline import driver

    return driver.run(spec, storage, options)


def _check_programme_options(args: argparse.Namespace) -> None:
    for name in ("sweeps", "gpus"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} goes with `paper`, the programme of all sweeps")


if __name__ == "__main__":
    sys.exit(main())
