"""Evaluates every trained trial of a sweep, or a released checkpoint; trains nothing.

python -m pipeline.evaluate lambda                 what is missing of the sweep's stages
python -m pipeline.evaluate lambda --only probing  one stage
python -m pipeline.evaluate --weights DIR --env push_t --protocol paper,strict --dataset FILE
                                                   a released checkpoint, without any sweep
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.options import BAD_INPUT, Options

if TYPE_CHECKING:
    from pipeline.spec import Spec
    from pipeline.storage import Storage


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Evaluates what is missing of a sweep that was begun, or a released checkpoint "
        "(a folder with config.json and weights.pt); trains nothing.",
        epilog="DIR comes from the authors, or from `python -m lewm.released export`; the latter carries "
        "the units of its actions (normaliser.json) and what it was trained on (training.json).",
    )
    add = parser.add_argument
    add("sweep", nargs="?", help="a sweep's folder name, or the start of it")
    add(
        "--storage",
        default="runs",
        help="where the sweep lives: a folder or s3://… (default: runs)",
    )
    add("--only", help="comma-separated stages")
    add("--address", help="an existing Ray cluster: auto or host:port")
    add("--weights", metavar="DIR", type=Path, help="a released checkpoint instead of a sweep")
    add("--env", help="its environment")
    add("--profile", help="settings of data and planner (default: paper)")
    add("--protocol", metavar="NAME,...", help="protocols to plan under (default: the profile's)")
    add("--manifest", metavar="FILE", type=Path, help="pairs of ours or CLEAR-LeWM's instead")
    add("--dataset", metavar="FILE", help="the file it was trained on, or its URI")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any config field")
    return parser.parse_args(argv)


FOR_WEIGHTS = ("env", "profile", "protocol", "manifest", "dataset", "set")


def _spec_of(args: argparse.Namespace, storage: "Storage") -> "Spec":
    """The sweep to evaluate: a stored one, or the one made of a released checkpoint."""
    from pipeline import record, released
    from pipeline.arguments import parse_assignment
    from pipeline.survey import find_sweep

    if args.weights is None:
        for name in FOR_WEIGHTS:
            if getattr(args, name):
                raise ValueError(f"--{name} goes with --weights; a sweep brings its own")
        if args.sweep is None:
            raise ValueError("name a sweep, or a released checkpoint with --weights DIR --env NAME")
        return record.load(storage, find_sweep(args.sweep, storage))
    if args.sweep is not None or args.env is None:
        raise ValueError("--weights needs --env NAME, and no sweep beside it")
    request = released.Request(
        weights=args.weights,
        env=args.env,
        profile=args.profile or "paper",
        protocols=tuple(args.protocol.split(",")) if args.protocol else None,
        dataset=args.dataset,
        manifest=args.manifest,
        overrides=dict(parse_assignment(text) for text in args.set),
    )
    spec, manifest = released.resolve(request)
    storage.check_writable()
    released.store(spec, storage, args.weights, manifest)
    return spec


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    args = parse(argv)
    from pipeline import driver
    from pipeline.arguments import check_stages
    from pipeline.storage import Storage

    command = " ".join(["python -m pipeline.evaluate", *(sys.argv[1:] if argv is None else argv)])
    try:
        storage = Storage(args.storage)
        spec = _spec_of(args, storage)
        only = check_stages(args.only, spec.stages)
        options = Options(command, args.address, only=only, train=False)
        return driver.run(spec, storage, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
