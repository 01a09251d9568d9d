"""Reading ahead changes nothing: same batches, same order, none overwritten by the next."""

import numpy as np
import pytest
import torch

from lewm.data.clips import ClipData, prepare_frames
from lewm.data.episodes import EpisodeFile
from lewm.data.loader import load_batches
from lewm.data.write import write_episodes
from lewm.overrides import make_config
from tests.lewm.test_episodes import make_episode


@pytest.fixture(params=[0.0, 1.0], ids=["from the file", "in memory"])
def data(request, tmp_path):
    write_episodes(tmp_path / "data.h5", [make_episode(30, seed) for seed in range(4)])
    settings = {"model.image_size": 16, "model.patch_size": 8}
    config = make_config({**settings, "run.pixels_in_memory_gb": request.param})
    with EpisodeFile(tmp_path / "data.h5") as file:
        yield ClipData(file, config, "train")


@pytest.mark.parametrize("num_threads", [0, 1, 3, 50])
def test_batches_come_whole_and_in_order(data, num_threads):
    order = np.random.default_rng(0).permutation(len(data))
    parts = np.split(order, range(4, len(order), 4))
    batches = list(load_batches(data, parts, torch.device("cpu"), num_threads))
    assert len(batches) == len(parts)
    for indices, batch in zip(parts, batches, strict=True):
        frames, actions = data.get(indices)
        assert torch.equal(batch.frames_BTCHW, prepare_frames(frames))
        assert torch.equal(batch.actions_BTA, actions)


def test_what_is_not_asked_for_is_not_read(data):
    asked = []

    def endless():
        while True:
            asked.append(0)
            yield np.arange(4)

    batches = load_batches(data, endless(), torch.device("cpu"), 2)
    next(batches)
    batches.close()
    assert len(asked) == 3


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_while_reading_reaches_the_reader(data, num_threads):
    parts = [np.arange(4), np.array([0, 1, len(data), 2])]
    batches = load_batches(data, parts, torch.device("cpu"), num_threads)
    next(batches)
    with pytest.raises(IndexError):
        next(batches)
