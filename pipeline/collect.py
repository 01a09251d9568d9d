"""Collects a dataset of behaviour in parallel: an HDF5 file in the published layout and a datasheet.

python -m pipeline.collect two_room --episodes 500                    into ./runs/datasets, 64 px
python -m pipeline.collect two_room --episodes 10000 --image-size 224 the published size
python -m pipeline.collect two_room --episodes 50 --workers 1         in this process, without Ray
python -m pipeline.collect two_room --episodes 500 --out data.h5      a file of your own choice
python -m pipeline.collect push_t --policy weak+pusher                each episode by one of the two
python -m pipeline.collect cube --render-quality fast                 several times faster
python -m pipeline.collect --repack published.h5                      rewrites a published file (HDF5
                                                                      or Lance) once, for fast reading
python -m pipeline.collect --repack packed.h5 --layout published      back: `pixels` for any reader

The same command again goes on where it was interrupted. Every episode is a pure function of the seed
and its number, so the content hash is the same for any number of workers. Train on a file with
`python -m pipeline.sweep lambda --dataset FILE`; a sweep collects what it needs by itself. A repacked file
has the content of its source, which is only read; JPEG frames of Lance copies are decoded for good.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.options import BAD_INPUT
from pipeline.shipped import env_names, layers, load_profile

if TYPE_CHECKING:
    from rich.console import Console

    from lewm.config import Config

Stop = Callable[[], bool]
LAYOUTS = ("packed", "published")
"""Of `lewm.data.frames`, which takes a second to import."""


def default_policy(env: str) -> str:
    """What the quick profile collects an environment with."""
    from lewm.config import DataConfig

    chosen: dict[str, Any] = {}
    for layer in layers(load_profile("quick"), env, "lewm"):
        chosen |= layer
    return str(chosen.get("data.policy", DataConfig().policy))


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line like any other bad input: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(
        prog="python -m pipeline.collect",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="Exit codes: 0 complete, 2 bad input, 130/143 interrupted.",
    )
    add = parser.add_argument
    add("env", nargs="?", help=f"environment: {', '.join(env_names())}")
    add("--episodes", type=int, default=500, help="number of episodes (default: 500)")
    add("--policy", help="behaviour policy, or a mixture a+b (default: that of the quick profile)")
    add(
        "--render-quality",
        default="exact",
        help="exact, or fast: reacher and cube without antialiasing, cube without shadows",
    )
    add("--image-size", type=int, default=64, help="pixels per side of a frame (default: 64)")
    add("--max-steps", type=int, default=100, help="longest episode, in steps (default: 100)")
    add("--seed", type=int, default=3072, help="seed of the collection (default: 3072)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes; 1 needs no Ray")
    add("--address", help="an existing Ray cluster (auto or host:port); default: one of our own")
    add("--storage", default="runs", help="folder or s3://bucket/prefix (default: runs)")
    add("--out", help="file to write, instead of <storage>/datasets/<name>.h5")
    add("--repack", metavar="FILE", help="rewrite this dataset instead of collecting one")
    add(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="with --repack: packed stores frames as differences where that takes less room; published "
        "is read by any HDF5 reader (default: packed)",
    )
    args = parser.parse_args(argv)
    if (args.env is None) == (args.repack is None):
        parser.error("give either an environment or --repack FILE")
    return args


def _config_of(args: argparse.Namespace) -> "Config":
    from lewm.envs import env_class
    from lewm.overrides import make_config

    env_class(args.env)
    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}")
    return make_config(
        {
            "data.env": args.env,
            "data.policy": args.policy or default_policy(args.env),
            "data.render_quality": args.render_quality,
            "data.num_episodes": args.episodes,
            "data.max_steps": args.max_steps,
            "data.collect_seed": args.seed,
            "model.image_size": args.image_size,
            # the model's patches have no part in a dataset; one whole-image patch fits any size
            "model.patch_size": args.image_size,
        }
    )


def _tell(out: "Console", target: Path | str, spent: str, sheet: dict[str, Any]) -> None:
    out.print(f"dataset       {target}  ({spent})", markup=False)
    for key in ("num_episodes", "num_rows", "mean_length", "content_hash"):
        out.print(f"{key:13s} {sheet[key]}", markup=False)


def _repack(args: argparse.Namespace, out: "Console", err: "Console", stop: Stop) -> int:
    from pipeline.datasets.repack import repack_file
    from pipeline.storage import Storage

    source = Path(args.repack)
    name = f"datasets/{source.stem}-{'repacked' if args.layout == 'packed' else args.layout}.h5"
    target = Path(args.out).absolute() if args.out else Storage(args.storage).path(name)
    began = time.time()
    sheet, made = repack_file(source, target, err, stop, args.layout)
    spent = f"repacked in {time.time() - began:.0f} s" if made else "there already"
    _tell(out, target, spent, sheet)
    out.print(f"frames        {sheet['frames']}", markup=False)
    if sheet["left_out"]:
        out.print(f"left out      {', '.join(sheet['left_out'])} (no numbers)", markup=False)
    out.print(f"train on it   python -m pipeline.sweep lambda --dataset {target}", markup=False)
    return 0


def _collect(
    args: argparse.Namespace, out: "Console", listen: Callable[[], None], stop: Stop
) -> int:
    from lewm.identity import dataset_id
    from pipeline.datasets.collected import collect, read_sheet
    from pipeline.storage import Storage

    config = _config_of(args)
    storage, key = Storage(args.storage), f"datasets/{dataset_id(config)}.h5"
    if args.out:
        target = Path(args.out).absolute()
        storage, key = Storage(target.parent), target.name
    if args.workers > 1 and not storage.exists(key):
        from pipeline.cluster import connect

        connect(args.address, args.workers)
        listen()  # Ray put handlers of its own in their place
    began = time.time()
    made = collect(config, storage, key, args.workers, stop)
    sheet = read_sheet(storage, key)
    assert sheet is not None
    spent = f"collected in {time.time() - began:.0f} s" if made else "there already"
    _tell(out, storage.where(key), spent, sheet)
    out.print(f"coverage      {json.dumps(sheet['coverage'])}", markup=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, note)

    def stop() -> bool:
        return bool(received)

    listen()
    try:
        args = parse(argv)
        from rich.console import Console

        out = Console(soft_wrap=True, highlight=False)
        if args.repack is not None:
            return _repack(args, out, Console(stderr=True, soft_wrap=True), stop)
        return _collect(args, out, listen, stop)
    except KeyboardInterrupt:
        print("interrupted; finished parts are kept, the same command goes on", file=sys.stderr)
        return 128 + received[0]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    from pipeline.collect import main as run  # by its own name, so that Ray's workers can import it

    sys.exit(run())
