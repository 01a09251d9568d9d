"""Collects a dataset of behaviour in parallel: an HDF5 file in the published layout and a datasheet.

python -m pipeline.collect two_room --episodes 500                    into ./runs/datasets, 64 px
python -m pipeline.collect two_room --episodes 10000 --image-size 224 the published size
python -m pipeline.collect two_room --episodes 50 --workers 1         in this process, without Ray
python -m pipeline.collect two_room --episodes 500 --out data.h5      a file of your own choice
python -m pipeline.collect push_t --policy weak+pusher                each episode by one of the two
python -m pipeline.collect cube --render-quality fast                 several times faster
python -m pipeline.collect --repack published.h5                      rewrites a published file (HDF5
                                                                      or Lance) once, for fast reading

The same command again goes on where it was interrupted. Every episode is a pure function of the seed
and its number, so the content hash is the same for any number of workers. Train on a file with
`python -m pipeline.sweep lambda --dataset FILE`; a sweep collects what it needs by itself. A repacked file
has the content of its source, which is only read; JPEG frames of Lance copies are decoded for good.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lewm.config import RECIPE_VERSION, Config, DataConfig, dataset_id, make_config
from lewm.data.collect import collect_episode
from lewm.data.episodes import PIXELS, EpisodeFile, content_hash, write_episodes
from lewm.envs import ENVS, env_class, make_env
from pipeline.repack import file_state, repack_file
from pipeline.shipped import layers, load_profile
from pipeline.storage import Lease, Storage

PART_EPISODES = 25
"""Episodes per part file: what an interruption can lose per worker."""
POLL_S = 2.0
BAD_INPUT = 2

Stop = Callable[[], bool]


def ensure_dataset(
    config: Config, storage_dir: Path, num_workers: int = 1, stop: Stop | None = None
) -> Path:
    """The collected dataset of a config, collected now if it is missing or broken.

    Args:
        storage_dir: root of the storage; the file is `datasets/<dataset_id>.h5` in it.
        num_workers: 1 works in this process; more use a Ray that is already connected, whose nodes
            all see the storage.
        stop: asked now and then; once it says True the work ends, keeping the finished parts.

    Raises:
        ValueError: an unknown environment or policy, or a size it cannot draw.
        KeyboardInterrupt: `stop` said so.
    """
    target = Path(storage_dir) / "datasets" / f"{dataset_id(config)}.h5"
    collect(config, target, num_workers, stop)
    return target


def check_dataset(path: Path) -> str:
    """The content hash of a dataset, checked against its datasheet.

    A file of the size and time that the sheet recorded is not read again; without a sheet the hash is
    computed.

    Raises:
        ValueError: the file is broken, or its content is not what the sheet says.
    """
    sheet = read_sheet(path)
    if sheet is not None and path.is_file() and sheet["file"] == file_state(path):
        return str(sheet["content_hash"])
    found = content_hash(path)
    if sheet is not None and found != sheet["content_hash"]:
        raise ValueError(
            f"dataset {path}: content hash {found[:12]} is not the {sheet['content_hash'][:12]} of "
            "its datasheet; remove both files to collect it again"
        )
    return found


def read_sheet(path: Path) -> dict[str, Any] | None:
    """The datasheet beside a dataset; None if there is none or it is not whole."""
    sheet = Storage(path.parent).read_json(path.with_suffix(".json").name)
    return sheet if sheet and {"content_hash", "file", "dataset_id"} <= sheet.keys() else None


def collect(config: Config, target: Path, num_workers: int, stop: Stop | None = None) -> bool:
    """Makes `target` and its datasheet unless they are there; returns whether there was work to do.

    Raises:
        ValueError: bad settings, or `target` is a file that this did not write.
        KeyboardInterrupt: `stop` said so.
    """
    console = Console(stderr=True)
    name = dataset_id(config)
    _obey(stop)
    data = config.data
    env = make_env(data.env, image_size=config.model.image_size, render_quality=data.render_quality)
    env.make_behaviour(data.policy, np.random.default_rng(0))
    env.close()
    folder = Storage(target.parent)
    folder.check_writable()
    lease = Lease(folder, f"{name}.owner.json")
    _wait_for(lease, console, stop)
    try:
        if _is_there(config, target, console):
            return False
        parts = target.parent / f"{name}.parts"
        parts.mkdir(exist_ok=True)
        if not console.is_terminal:
            console.print(f"collecting {config.data.num_episodes} episodes: {name}")
        with _progress(console) as bar:
            task = bar.add_task(f"collecting {name}", total=config.data.num_episodes)
            files = _make_parts(config, parts, num_workers, bar, task, lease, stop)
            bar.update(task, description=f"writing {target.name}")
            digest = write_episodes(target, _episodes_of(files))
        folder.write_json(target.with_suffix(".json").name, _datasheet(config, target, digest))
        shutil.rmtree(parts)
        return True
    finally:
        lease.release()


def _wait_for(lease: Lease, console: Console, stop: Stop | None) -> None:
    """Takes the lease, waiting for another live process that collects the same."""
    told = False
    while (owner := lease.acquire()) is not None:
        if not told:
            console.print(f"waiting for process {owner['pid']} on {owner['host']}: same dataset")
            told = True
        _obey(stop)
        time.sleep(0.5)


def _obey(stop: Stop | None) -> None:
    if stop is not None and stop():
        raise KeyboardInterrupt


def _is_there(config: Config, target: Path, console: Console) -> bool:
    """Whether the target is whole; a broken one of ours is removed with a warning."""
    if not target.exists():
        return False
    sheet = read_sheet(target)
    if target.stem != dataset_id(config) and (
        sheet is None or sheet["dataset_id"] != dataset_id(config)
    ):
        raise ValueError(f"{target} exists and holds something else; remove it or choose another")
    if sheet is None:
        return False
    try:
        check_dataset(target)
    except ValueError as error:
        console.print(f"warning: {error}; collecting it again", soft_wrap=True, markup=False)
        target.unlink()
        return False
    return True


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes, left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _make_parts(
    config: Config,
    folder: Path,
    num_workers: int,
    bar: Progress,
    task: Any,
    lease: Lease,
    stop: Stop | None,
) -> list[Path]:
    """All part files in order, the missing ones made now."""
    count = config.data.num_episodes
    files, missing = [], []
    for first in range(0, count, PART_EPISODES):
        last = min(first + PART_EPISODES, count)
        file = folder / f"{first:06d}-{last:06d}.h5"
        files.append(file)
        if file.exists():
            bar.advance(task, last - first)
        else:
            missing.append((file, first, last))
    make = _parts_in_ray if num_workers > 1 else _parts_here
    for done in make(config.model_dump_json(), missing, num_workers):
        bar.advance(task, done)
        lease.renew()
        _obey(stop)
    return files


Missing = Sequence[tuple[Path, int, int]]


def _parts_here(config_json: str, missing: Missing, _: int) -> Iterator[int]:
    for file, first, last in missing:
        make_part(config_json, file, first, last)
        yield last - first


def _parts_in_ray(config_json: str, missing: Missing, num_workers: int) -> Iterator[int]:
    """Yields the number of episodes that became ready, at least every `POLL_S` seconds."""
    import ray

    assert ray.is_initialized()
    remote = ray.remote(num_cpus=1)(make_part)
    waiting = list(missing)
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                file, first, last = waiting.pop(0)
                running[remote.remote(config_json, file, first, last)] = last - first
            ready, _ = ray.wait(list(running), timeout=POLL_S)
            for reference in ready:
                ray.get(reference)
            yield sum(running.pop(reference) for reference in ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def make_part(config_json: str, file: Path, first: int, last: int) -> None:
    """Writes the episodes first .. last - 1 into a part file, atomically."""
    config = Config.model_validate_json(config_json)
    size = config.model.image_size
    write_episodes(file, (collect_episode(config.data, size, i) for i in range(first, last)))


def _episodes_of(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with EpisodeFile(file) as part:
            yield from part.episodes()


def _datasheet(config: Config, path: Path, digest: str) -> dict[str, Any]:
    """What the file holds, where it came from, and how well it covers the world."""
    data = config.data
    with EpisodeFile(path) as file:
        numeric = {name: file.read(name) for name in file.columns if name != PIXELS}
        coverage = env_class(data.env).coverage(numeric, file.ep_len)
        return {
            "dataset_id": dataset_id(config),
            "env": data.env,
            "policy": data.policy,
            "policy_shares": policy_shares(data.policy),
            "render_quality": data.render_quality,
            "collect_seed": data.collect_seed,
            "max_steps": data.max_steps,
            "recipe_version": RECIPE_VERSION,
            "num_episodes": file.num_episodes,
            "num_rows": file.num_rows,
            "mean_length": float(file.ep_len.mean()),
            "image_size": file.image_size,
            "action_dim": file.action_dim,
            "columns": list(file.columns),
            "coverage": coverage,
            "content_hash": digest,
            "file": file_state(path),
        }


def policy_shares(policy: str) -> dict[str, float]:
    """The probability with which each policy of a mixture `a+b` makes an episode."""
    parts = policy.split("+")
    return {name: parts.count(name) / len(parts) for name in dict.fromkeys(parts)}


def default_policy(env: str) -> str:
    """What the quick profile collects an environment with."""
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
    add("env", nargs="?", help=f"environment: {', '.join(sorted(ENVS))}")
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
    add("--storage", default="runs", help="folder for everything that is kept (default: runs)")
    add("--out", help="file to write, instead of <storage>/datasets/<name>.h5")
    add("--repack", metavar="FILE", help="rewrite this dataset instead of collecting one")
    args = parser.parse_args(argv)
    if (args.env is None) == (args.repack is None):
        parser.error("give either an environment or --repack FILE")
    return args


def _config_of(args: argparse.Namespace) -> Config:
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


def _tell(out: Console, target: Path, spent: str, sheet: dict[str, Any]) -> None:
    out.print(f"dataset       {target}  ({spent})", markup=False)
    for key in ("num_episodes", "num_rows", "mean_length", "content_hash"):
        out.print(f"{key:13s} {sheet[key]}", markup=False)


def _repack(args: argparse.Namespace, out: Console, err: Console, stop: Stop) -> int:
    source = Path(args.repack)
    name = f"datasets/{source.stem}-repacked.h5"
    target = Path(args.out).absolute() if args.out else Storage(args.storage).path(name)
    began = time.time()
    sheet, made = repack_file(source, target, err, stop)
    spent = f"repacked in {time.time() - began:.0f} s" if made else "there already"
    _tell(out, target, spent, sheet)
    out.print(f"frames        {sheet['frames']}", markup=False)
    if sheet["left_out"]:
        out.print(f"left out      {', '.join(sheet['left_out'])} (no numbers)", markup=False)
    out.print(f"train on it   python -m pipeline.sweep lambda --dataset {target}", markup=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True)
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, note)

    listen()
    try:
        args = parse(argv)
        if args.repack is not None:
            return _repack(args, out, err, lambda: bool(received))
        config = _config_of(args)
        name = f"datasets/{dataset_id(config)}.h5"
        target = Path(args.out).absolute() if args.out else Storage(args.storage).path(name)
        if args.workers > 1 and not target.exists():
            from pipeline.cluster import connect

            connect(args.address, args.workers)
            listen()  # Ray put handlers of its own in their place
        began = time.time()
        made = collect(config, target, args.workers, lambda: bool(received))
        sheet = read_sheet(target)
        assert sheet is not None
        spent = f"collected in {time.time() - began:.0f} s" if made else "there already"
        _tell(out, target, spent, sheet)
        out.print(f"coverage      {json.dumps(sheet['coverage'])}", markup=False)
        return 0
    except KeyboardInterrupt:
        err.print("interrupted; finished parts are kept, the same command goes on", markup=False)
        return 128 + received[0]
    except (ValueError, OSError) as error:
        err.print(f"error: {error}", markup=False, highlight=False)
        return BAD_INPUT


if __name__ == "__main__":
    from pipeline.collect import main as run  # by its own name, so that Ray's workers can import it

    sys.exit(run())
