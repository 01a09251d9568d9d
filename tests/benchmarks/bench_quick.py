"""Speed of the `quick` profile's parts on one thread; run by hand: python tests/benchmarks/bench_quick.py

Prints one line per part with the best of several repetitions, so that a change can be judged as a ratio
of two runs on the same machine.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lewm.config import DataConfig
from lewm.data.clips import ClipData, prepare_frames
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.envs import make_env
from lewm.methods import Batch, make_method
from pipeline.resolve import resolve
from pipeline.spec import Request


def best(repetitions, call):
    """Fastest wall time of `call`, in seconds."""
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def show(what, value, unit):
    print(f"{what:44s} {value:10.2f} {unit}")


def main():
    torch.set_num_threads(1)
    config = next(
        trial.config for trial in resolve(Request("lambda")).trials if trial.config.loss.lam == 0.1
    )
    size = config.model.image_size
    data = DataConfig(num_episodes=40)
    show("collect, rendered", 1 / best(3, lambda: collect_episode(data, size, 0)), "episodes/s")
    for pixels in (size, 224):
        env = make_env("two_room", image_size=pixels)
        env.reset(seed=0)
        took = best(3, lambda env=env: [env.render() for _ in range(200)])
        show(f"render {pixels} px", 200 / took, "frames/s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.h5"
        write_episodes(path, (collect_episode(data, size, i) for i in range(data.num_episodes)))
        with EpisodeFile(path) as episodes:
            clips = ClipData(episodes, config, "train")
            indices = np.random.default_rng(0).integers(0, len(clips), config.optim.batch_size)
            took = best(20, lambda: clips.get(indices))
            show("clips from memory", len(indices) / took, "clips/s")
            frames, actions = clips.get(indices)
    batch = Batch(prepare_frames(frames), actions)
    method = make_method(config, 2)
    optimiser = torch.optim.AdamW(method.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)

    def step():
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(method.loss(batch, generator)["loss"])
        optimiser.step()

    show("training step", 1e3 * best(20, step), "ms")
    method.eval()
    with torch.inference_mode():
        one = batch.frames_BTCHW[:10, :1]
        cost = method.plan_cost(one, one)
        plans = torch.randn(10, config.planning.num_samples, config.planning.horizon, 10)
        took = best(10, lambda: cost(plans))
        show(f"cost of {plans[:, :, 0, 0].numel()} candidates x 5 blocks", 1e3 * took, "ms")


if __name__ == "__main__":
    main()
