"""Random clips of 224 px from a file: 64 clips of 4 frames at a stride of 5, one thread, page cache warm.

Frames are drawn by the worlds where they are installed, else the goldens'. The floor copies as many bytes.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lewm.config import DataConfig
from lewm.data.clips import ClipData, prepare_frames
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.overrides import make_config
from tests.benchmarks.plugin import Measure

GOLDENS = Path(__file__).parents[1] / "goldens" / "datasets"
WORLDS = {
    "two_room": ("expert", "published_tworoom"),
    "push_t": ("weak", "published_pusht"),
    "reacher": ("random", "published_reacher"),
    "cube": ("markov", "library_cube"),
}
NUM_EPISODES, LENGTH, BATCH, FRAMES = 40, 60, 64, 4


@lru_cache(maxsize=1)
def drawn(world: str) -> Any:
    policy, golden = WORLDS[world]
    try:
        data = DataConfig(env=world, policy=policy, max_steps=LENGTH, render_quality="exact")
        return collect_episode(data, 224, 0)["pixels"]
    except (ValueError, ImportError):
        with EpisodeFile(GOLDENS / f"{golden}.h5") as file:
            return file.read("pixels")


def episodes(world: str) -> list[dict[str, Any]]:
    """The drawn episode over and over, shifted, so that no two are alike."""
    frames, rng = drawn(world), np.random.default_rng(0)
    return [
        {
            "pixels": np.roll(frames, 7 * number % 224, axis=2)[np.arange(LENGTH) % len(frames)],
            "action": rng.uniform(-1, 1, (LENGTH, 2)).astype(np.float32),
        }
        for number in range(NUM_EPISODES)
    ]


def file_of(world: str, kind: str, folder: Path) -> Path:
    path = folder / f"{world}.{'lance' if kind == 'lance' else 'h5'}"
    if kind == "ours":
        write_episodes(path, episodes(world))
    else:
        from stable_worldmodel.data import get_format

        with get_format(kind).open_writer(path) as writer:
            writer.write_episodes({k: list(v) for k, v in e.items()} for e in episodes(world))
    return path


def num_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def parametrised(function: Any) -> Any:
    worlds = [pytest.param(w, marks=pytest.mark.benchmark(group=f"clips, {w}")) for w in WORLDS]
    return pytest.mark.parametrize("world", worlds)(function)


@parametrised
def bench_ours(world: str, measure: Measure, tmp_path: Path) -> None:
    path = file_of(world, "ours", tmp_path)
    config = make_config({"run.pixels_in_memory_gb": 0.0})
    rng = np.random.default_rng(1)
    with EpisodeFile(path) as file:
        clips = ClipData(file, config, "train")
        buffer = clips.make_buffer(BATCH)
        measure(
            lambda: clips.load(rng.integers(0, len(clips), BATCH), buffer),
            BATCH * FRAMES,
            "frames",
            bytes_per_frame=num_bytes(path) / (NUM_EPISODES * LENGTH),
        )


@pytest.mark.benchmark(group="a batch of `quick`")
@pytest.mark.parametrize("variant", ["", "normalised", "from the file"])
def bench_quick_ours(variant: str, measure: Measure, tmp_path: Path) -> None:
    """Taken from memory, as `quick` does; then normalised, which is the device's work, on a CPU the one that trains."""
    made = [{**e, "pixels": e["pixels"][:, :64, :64]} for e in episodes("two_room")]
    write_episodes(tmp_path / "quick.h5", made)
    memory = {"run.pixels_in_memory_gb": 0.0} if variant == "from the file" else {}
    config = make_config({"model.image_size": 64, "model.patch_size": 32, **memory})
    rng = np.random.default_rng(1)
    with EpisodeFile(tmp_path / "quick.h5") as file:
        clips = ClipData(file, config, "train")
        buffer = clips.make_buffer(32)

        def batch() -> None:
            frames = clips.load(rng.integers(0, len(clips), 32), buffer).frames_BTCHW
            if variant == "normalised":
                prepare_frames(frames)

        measure(batch, 1, "batches", 60, variant=variant)


@pytest.mark.benchmark(group="a batch of `quick`")
def bench_quick_floor(measure: Measure) -> None:
    frames = np.ones((32 * FRAMES, 3, 64, 64), np.uint8)
    out = np.full_like(frames, 2)
    measure(lambda: np.copyto(out, frames), 1, "batches", 60)


@parametrised
@pytest.mark.parametrize("kind", ["hdf5", "lance"])
def bench_rival(world: str, kind: str, measure: Measure, tmp_path: Path, rival: str) -> None:
    from stable_worldmodel.data import load_dataset

    path = file_of(world, kind, tmp_path)
    data = load_dataset(str(path), frameskip=5, num_steps=FRAMES, keys_to_load=["pixels", "action"])
    rng = np.random.default_rng(1)

    def batch() -> Any:
        indices = rng.integers(0, len(data), BATCH).tolist()
        many = getattr(data, "__getitems__", None)
        return many(indices) if many else [data[index] for index in indices]

    size = num_bytes(path) / (NUM_EPISODES * LENGTH)
    measure(batch, BATCH * FRAMES, "frames", 15, rival=rival, bytes_per_frame=size)


@parametrised
def bench_floor(world: str, measure: Measure) -> None:
    frames = np.ones((BATCH * FRAMES, 224, 224, 3), np.uint8)
    out = np.full_like(frames, 2)
    measure(lambda: np.copyto(out, frames), BATCH * FRAMES, "frames")
