"""Collected datasets: made once in parallel, resumable, checked against their datasheets.

A dataset is `<name>.h5` with `<name>.json` beside it, in a folder or a bucket. Its parts, `PART_EPISODES`
episodes each, are pure functions of config and episode numbers, so any worker may make any of them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lewm.config import Config
from lewm.data.collect import collect_episode
from lewm.data.digest import content_hash
from lewm.data.episodes import EpisodeFile
from lewm.data.frames import PIXELS
from lewm.data.write import write_episodes
from lewm.envs import env_class, make_env
from lewm.identity import RECIPE_VERSION, dataset_id
from pipeline.datasets.repack import file_state
from pipeline.storage import Storage
from pipeline.storage.lease import Heartbeat, Lease

PART_EPISODES = 25
"""Episodes per part file: what an interruption can lose per worker."""
POLL_S = 2.0
RETRIES = 3
"""New starts of a part after process death, node loss or an I/O error."""

Stop = Callable[[], bool]


def ensure_dataset(
    config: Config, storage: Storage, num_workers: int = 1, stop: Stop | None = None
) -> str:
    """The key of the collected dataset of a config, collected now if it is missing or broken.

    Args:
        num_workers: 1 works in this process; more use a Ray that is already connected, whose nodes
            all reach the storage.
        stop: asked now and then; once it says True the work ends, keeping the finished parts.

    Raises:
        ValueError: an unknown environment or policy, or a size it cannot draw.
        KeyboardInterrupt: `stop` said so.
    """
    key = f"datasets/{dataset_id(config)}.h5"
    collect(config, storage, key, num_workers, stop)
    return key


def check_dataset(storage: Storage, key: str) -> str:
    """The content hash of a dataset, checked against its datasheet.

    What has the size (and in a folder the time) that the sheet recorded is not read again; without a
    sheet the hash is computed.

    Raises:
        ValueError: the file is broken, or its content is not what the sheet says.
    """
    sheet = read_sheet(storage, key)
    if sheet is not None and storage.exists(key) and sheet["file"] == _state(storage, key):
        return str(sheet["content_hash"])
    with storage.reading(key) as folder:
        found = content_hash(folder / PurePosixPath(key).name)
    if sheet is not None and found != sheet["content_hash"]:
        raise ValueError(
            f"dataset {storage.where(key)}: content hash {found[:12]} is not the "
            f"{sheet['content_hash'][:12]} of its datasheet; remove both files to collect it again"
        )
    return found


def read_sheet(storage: Storage, key: str) -> dict[str, Any] | None:
    """The datasheet beside a dataset; None if there is none or it is not whole."""
    sheet = storage.read_json(_sheet_key(key))
    return sheet if sheet and {"content_hash", "file", "dataset_id"} <= sheet.keys() else None


def _sheet_key(key: str) -> str:
    return f"{key.removesuffix('.h5')}.json"


def _state(storage: Storage, key: str) -> dict[str, int]:
    return file_state(storage.path(key)) if storage.is_local else {"size": storage.size(key)}


def collect(
    config: Config, storage: Storage, key: str, num_workers: int, stop: Stop | None = None
) -> bool:
    """Makes a dataset and its datasheet unless they are there; returns whether there was work to do.

    Raises:
        ValueError: bad settings, or the key holds something that this did not write.
        KeyboardInterrupt: `stop` said so.
    """
    console = Console(stderr=True)
    name = dataset_id(config)
    _obey(stop)
    data = config.data
    env = make_env(data.env, image_size=config.frame_size, render_quality=data.render_quality)
    env.make_behaviour(data.policy, np.random.default_rng(0))
    env.close()
    storage.check_writable()
    folder = str(PurePosixPath(key).parent)
    lease = Lease(storage, f"{folder}/{name}.owner.json")
    _wait_for(lease, console, stop)
    with Heartbeat(lease):
        if _is_there(config, storage, key, console):
            return False
        if not console.is_terminal:
            console.print(f"collecting {config.data.num_episodes} episodes: {name}")
        with _progress(console) as bar:
            task = bar.add_task(f"collecting {name}", total=config.data.num_episodes)
            parts = _make_parts(
                config, storage, f"{folder}/{name}.parts", num_workers, bar, task, stop
            )
            bar.update(task, description=f"writing {PurePosixPath(key).name}")
            with storage.writing(key) as file:
                digest = write_episodes(file, _episodes_of(storage, parts))
                sheet = _datasheet(config, file, digest)
        storage.write_json(_sheet_key(key), {**sheet, "file": _state(storage, key)})
        for part in parts:
            storage.remove(part)
        if storage.is_local:
            storage.path(f"{folder}/{name}.parts").rmdir()
        return True


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


def _is_there(config: Config, storage: Storage, key: str, console: Console) -> bool:
    """Whether the dataset is whole; a broken one of ours is removed with a warning."""
    if not storage.exists(key):
        return False
    sheet = read_sheet(storage, key)
    if PurePosixPath(key).stem != dataset_id(config) and (
        sheet is None or sheet["dataset_id"] != dataset_id(config)
    ):
        raise ValueError(
            f"{storage.where(key)} exists and holds something else; remove it or choose another"
        )
    if sheet is None:
        return False
    try:
        check_dataset(storage, key)
    except ValueError as error:
        console.print(f"warning: {error}; collecting it again", soft_wrap=True, markup=False)
        storage.remove(key)
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
    storage: Storage,
    folder: str,
    num_workers: int,
    bar: Progress,
    task: Any,
    stop: Stop | None,
) -> list[str]:
    """The keys of all parts in order, the missing ones made now."""
    count = config.data.num_episodes
    there = set(storage.list(folder))
    keys, missing = [], []
    for first in range(0, count, PART_EPISODES):
        last = min(first + PART_EPISODES, count)
        name = f"{first:06d}-{last:06d}.h5"
        keys.append(f"{folder}/{name}")
        if name in there:
            bar.advance(task, last - first)
        else:
            missing.append((f"{folder}/{name}", first, last))
    make = _parts_in_ray if num_workers > 1 else _parts_here
    for done in make(config.model_dump_json(), storage, missing, num_workers):
        bar.advance(task, done)
        _obey(stop)
    return keys


Missing = Sequence[tuple[str, int, int]]


def _parts_here(config_json: str, storage: Storage, missing: Missing, _: int) -> Iterator[int]:
    for key, first, last in missing:
        make_part(config_json, storage.uri, key, first, last)
        yield last - first


def _parts_in_ray(
    config_json: str, storage: Storage, missing: Missing, num_workers: int
) -> Iterator[int]:
    """Yields the number of episodes that became ready, at least every `POLL_S` seconds."""
    import ray

    assert ray.is_initialized()
    remote = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError])(make_part)
    waiting = list(missing)
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                key, first, last = waiting.pop(0)
                part = remote.remote(config_json, storage.uri, key, first, last)
                running[part] = last - first
            ready, _ = ray.wait(list(running), timeout=POLL_S)
            for reference in ready:
                ray.get(reference)
            yield sum(running.pop(reference) for reference in ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def make_part(config_json: str, storage_uri: str, key: str, first: int, last: int) -> None:
    """Writes the episodes first .. last - 1 into a part, atomically."""
    config = Config.model_validate_json(config_json)
    size = config.frame_size
    with Storage(storage_uri).writing(key) as file:
        write_episodes(file, (collect_episode(config.data, size, i) for i in range(first, last)))


def _episodes_of(storage: Storage, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    for key in parts:
        with storage.reading(key) as folder, EpisodeFile(folder / PurePosixPath(key).name) as part:
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
        }


def policy_shares(policy: str) -> dict[str, float]:
    """The probability with which each policy of a mixture `a+b` makes an episode."""
    parts = policy.split("+")
    return {name: parts.count(name) / len(parts) for name in dict.fromkeys(parts)}
