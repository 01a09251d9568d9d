"""Clips per second from files at 224 px; run by hand: python tests/benchmarks/bench_data.py [--rows N]

A clip is what training takes: 4 frames at a stride of 5 rows (uint8, still in the order of the file) and
20 actions, read with `ClipData.get` by one process on one thread: in batches of 64, but from published
files at random one by one, because the clips of a batch would share chunks in files as short as these.
The files are made of frames rendered by the worlds where they are
installed, else of the goldens', and repeated with shifts; they are read from the page cache.

`per wall` is what came of it here; `per CPU` is per second of this process's own work, which a busy
machine changes little. The ratio is `per wall` to the floor.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import torch

from lewm.config import DataConfig
from lewm.data.clips import ClipData
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.overrides import make_config

GOLDENS = Path(__file__).parents[1] / "goldens" / "datasets"
WORLDS = {"push_t": "published_pusht.h5", "cube": "library_cube.h5"}
FLOORS = {  # issue 3
    ("push_t", "repacked", "full"): 2500,
    ("cube", "repacked", "full"): 1300,
    ("push_t", "published", "full"): 60,
    ("cube", "published", "full"): 60,
    ("push_t", "published", "block"): 300,
    ("cube", "published", "block"): 300,
}
RUNS = (  # file, order, clips, clips at once
    ("repacked", "full", 6_400, 64),
    ("published", "full", 400, 1),
    ("published", "block", 12_800, 64),
)
LENGTH = 125


def rendered(world):
    """Some frames (T, 224, 224, 3) of a world, and where they are from."""
    data = DataConfig(env=world, policy="random", max_steps=60, render_quality="exact")
    try:
        return collect_episode(data, 224, 0)["pixels"], "rendered"
    except ValueError:
        with EpisodeFile(GOLDENS / WORLDS[world]) as file:
            return file.read("pixels"), "goldens"


def episodes(frames, num_rows):
    rng = np.random.default_rng(0)
    for number in range(num_rows // LENGTH):
        pixels = np.roll(frames, 7 * number % 224, axis=2)[np.arange(LENGTH) % len(frames)]
        action = rng.uniform(-1, 1, (LENGTH, 2)).astype(np.float32)
        yield {"pixels": pixels, "action": action}


def write_published(source, target):
    """The file in the published layout: 100 frames per chunk."""
    with EpisodeFile(source) as file, h5py.File(target, "w") as new:
        for name in (*file.columns, "ep_len", "ep_offset"):
            if name != "pixels":
                new[name] = file.read(name)
        pixels = new.create_dataset(
            "pixels",
            (file.num_rows, 224, 224, 3),
            "u1",
            chunks=(100, 224, 224, 3),
            compression=hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=1),
        )
        for first in range(0, file.num_rows, 100):
            rows = np.arange(first, min(first + 100, file.num_rows))
            pixels[rows[0] : rows[-1] + 1] = file.read("pixels", rows)


def measure(path, shuffle, num_clips, batch):
    """(clips, wall seconds, CPU seconds) of the epoch's first clips."""
    config = make_config({"data.shuffle": shuffle, "run.pixels_in_memory_gb": 0.0})
    with EpisodeFile(path) as file:
        clips = ClipData(file, config, "train")
        order = clips.order(np.random.default_rng(1))
        order = order[:num_clips]
        wall, cpu = time.perf_counter(), time.process_time()
        for first in range(0, len(order), batch):
            clips.get(order[first : first + batch])
        return len(order), time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of each file (default: 20000)")
    num_rows = parser.parse_args().rows
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before")
    print(
        f"{'world':8s}{'file':12s}{'order':8s}{'per wall':>10s}{'per CPU':>10s}{'floor':>8s}  ratio"
    )
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        for world in WORLDS:
            frames, origin = rendered(world)
            files = {
                kind: Path(folder) / f"{world}-{kind}.h5" for kind in ("repacked", "published")
            }
            write_episodes(files["repacked"], episodes(frames, num_rows))
            write_published(files["repacked"], files["published"])
            sizes = [f"{path.stat().st_size / num_rows:,.0f}" for path in files.values()]
            for kind, shuffle, num_clips, batch in RUNS:
                count, wall, cpu = measure(files[kind], shuffle, num_clips, batch)
                floor = FLOORS[world, kind, shuffle]
                print(
                    f"{world:8s}{kind:12s}{shuffle:8s}{count / wall:10,.0f}{count / cpu:10,.0f}"
                    f"{floor:8,d}{count / wall / floor:7.1f}"
                )
            print(f"{'':8s}{origin} frames, {' and '.join(sizes)} bytes each", flush=True)
            for path in files.values():
                path.unlink()
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
