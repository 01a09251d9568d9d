"""Clips: which exist, what they hold, how they are split and normalised."""

import numpy as np
import pytest
import torch

from lewm.data.clips import ClipData, Normaliser, prepare_frames, resize, split_episodes
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.identity import dataset_id, trial_id
from lewm.overrides import make_config
from lewm.training import train
from tests.lewm.test_train import make_episodes, read_curve, tiny

torch.set_num_threads(1)

LENGTHS = (20, 19, 33, 25, 40, 22, 21, 30, 26, 28)
SIZE = 8


def config(**overrides):
    small = {"model.image_size": SIZE, "model.patch_size": SIZE, "data.holdout_frac": 0.3}
    return make_config(small | {k.replace("__", "."): v for k, v in overrides.items()})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Ten episodes whose pixels and actions tell episode and step."""
    episodes = []
    for number, length in enumerate(LENGTHS):
        pixels = np.zeros((length, SIZE, SIZE, 3), dtype=np.uint8)
        pixels[..., 0] = number
        pixels[..., 1] = np.arange(length)[:, None, None]
        pixels[:, 2, 5, 2] = 255
        steps = np.arange(length, dtype=np.float32)
        action = np.stack([steps, 100.0 * number - steps], axis=1).astype(np.float32)
        action[-1] = np.nan
        episodes.append({"pixels": pixels, "action": action})
    file = tmp_path_factory.mktemp("clips") / "data.h5"
    write_episodes(file, episodes)
    return file


@pytest.fixture
def file(path):
    with EpisodeFile(path) as opened:
        yield opened


def test_split_is_fixed_disjoint_and_complete():
    train, held_out = split_episodes(100, 0.1, 3072)
    assert len(held_out) == 10 and not set(train) & set(held_out)
    assert sorted([*train, *held_out]) == list(range(100))
    np.testing.assert_array_equal(split_episodes(100, 0.1, 3072)[1], held_out)
    assert not np.array_equal(split_episodes(100, 0.1, 1)[1], held_out)
    assert len(split_episodes(2, 0.01, 0)[1]) == 1
    with pytest.raises(ValueError, match="needs 2 episodes"):
        split_episodes(1, 0.5, 0)


def test_split_does_not_depend_on_the_training_seed(file):
    starts = [ClipData(file, config(seed=seed), "val").starts for seed in (0, 1)]
    np.testing.assert_array_equal(*starts)


@pytest.mark.parametrize("part", ["train", "val"])
def test_every_start_of_every_long_episode(file, part):
    cfg = config()
    train, held_out = split_episodes(10, 0.3, cfg.data.split_seed)
    episodes = train if part == "train" else held_out
    clips = ClipData(file, cfg, part)
    assert len(clips) == sum(max(LENGTHS[e] - 19, 0) for e in episodes)
    frames, _ = clips.get(np.arange(len(clips)))
    assert set(frames[:, :, 0].unique().tolist()) <= set(episodes.tolist())


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_a_clip_holds_its_frames_and_actions(file, memory):
    clips = ClipData(file, config(run__pixels_in_memory_gb=memory), "train")
    assert clips.in_memory == (memory > 0)
    indices = np.array([len(clips) - 1, 0, 7, 7])
    frames, actions = clips.get(indices)
    assert frames.shape == (4, 4, 3, SIZE, SIZE) and frames.dtype == torch.uint8
    assert actions.shape == (4, 4, 10) and actions.dtype == torch.float32
    assert prepare_frames(frames).is_contiguous() and not actions.isnan().any()
    assert (frames[:, :, 2, 2, 5] == 255).all() and frames[:, :, 2].sum() == 16 * 255
    steps = frames[:, :, 1, 0, 0].numpy()
    np.testing.assert_array_equal(np.diff(steps, axis=1), 5)
    raw = clips.normaliser.invert(actions.reshape(4, 20, 2).numpy())
    for clip in range(4):
        episode, first = int(frames[clip, 0, 0, 0, 0]), int(steps[clip, 0])
        row = np.arange(first, first + 20)
        known = row < LENGTHS[episode] - 1
        np.testing.assert_allclose(raw[clip, known, 0], row[known], atol=1e-3)
        np.testing.assert_allclose(raw[clip, known, 1], 100 * episode - row[known], atol=1e-2)
        assert (actions.reshape(4, 20, 2)[clip, ~known] == 0).all()


def test_last_clip_of_an_episode_ends_in_a_zero_action(file):
    clips = ClipData(file, config(), "train")
    _, actions = clips.get(np.array([len(clips) - 1]))
    assert (actions[0, -1, -2:] == 0).all() and (actions[0, -1, :-2] != 0).any()


def test_normaliser_is_fitted_on_train_episodes_only(file):
    cfg = config()
    train, _ = split_episodes(10, 0.3, cfg.data.split_seed)
    action = file.read("action")
    rows = np.concatenate([action[file.rows(e)] for e in train])
    expected = Normaliser.fit(rows)
    for part in ("train", "val"):
        found = ClipData(file, cfg, part).normaliser
        np.testing.assert_array_equal(found.mean, expected.mean)
    assert not np.array_equal(expected.mean, Normaliser.fit(action).mean)


def test_normaliser_round_trip_and_errors():
    rng = np.random.default_rng(0)
    actions = rng.normal(3.0, 2.0, (500, 2))
    actions[10] = np.nan
    fitted = Normaliser.fit(actions)
    scores = fitted.apply(actions)
    clean = scores[np.isfinite(scores).all(axis=1)]
    np.testing.assert_allclose(clean.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(clean.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(fitted.invert(clean), np.delete(actions, 10, axis=0), atol=1e-5)
    back = Normaliser.from_dict(fitted.to_dict())
    np.testing.assert_array_equal(back.mean, fitted.mean)
    np.testing.assert_array_equal(back.std, fitted.std)
    with pytest.raises(ValueError, match="no finite actions"):
        Normaliser.fit(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="dimension 1 is constant"):
        Normaliser.fit(np.array([[0.0, 1.0], [1.0, 1.0]]))


def test_clip_split_overlaps_in_episodes_but_not_in_clips(file):
    cfg = config(data__split="clip")
    train, val = (ClipData(file, cfg, part) for part in ("train", "val"))
    assert not set(train.starts) & set(val.starts)
    assert len(train) + len(val) == sum(max(n - 19, 0) for n in LENGTHS)
    owner = np.repeat(np.arange(10), LENGTHS)
    assert set(owner[train.starts]) & set(owner[val.starts])


def order_of(clips, *key):
    return clips.order(np.random.default_rng(key))


def test_full_shuffling_is_a_permutation_of_all(file):
    clips = ClipData(file, config(), "train")
    expected = np.random.default_rng((7, 2)).permutation(len(clips))
    np.testing.assert_array_equal(order_of(clips, 7, 2), expected)


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """Forty episodes of 131 steps: 53 blocks of 100 rows."""
    pixels = np.zeros((131, SIZE, SIZE, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    made = ({"pixels": pixels, "action": rng.random((131, 2), np.float32)} for _ in range(40))
    path = tmp_path_factory.mktemp("long") / "data.h5"
    write_episodes(path, made)
    with EpisodeFile(path) as opened:
        yield opened


def test_block_shuffling_mixes_few_blocks_at_a_time(long_file):
    cfg = config(data__shuffle="block", data__holdout_frac=0.1)
    clips = ClipData(long_file, cfg, "train")
    order = order_of(clips, 7, 2)
    np.testing.assert_array_equal(order, order_of(clips, 7, 2))
    assert sorted(order) == list(range(len(clips)))
    assert not np.array_equal(order, order_of(clips, 8, 2))
    assert not np.array_equal(order, order_of(clips, 7, 3))
    blocks = clips.starts[order] // 100
    first = np.flatnonzero(~np.isin(blocks, blocks[: len(blocks) // 2]))[0]
    before, after = set(blocks[:first]), set(blocks[first:])
    assert len(before) == 32 and not before & after
    assert len(set(blocks[:64])) > 16 and len(np.unique(np.diff(blocks[:64]))) > 16


def test_block_order_does_not_depend_on_where_the_frames_are(long_file):
    orders = []
    for memory in (1.0, 0.0):
        cfg = config(data__shuffle="block", run__pixels_in_memory_gb=memory)
        orders.append(order_of(ClipData(long_file, cfg, "train"), 1, 1))
    np.testing.assert_array_equal(*orders)


def test_the_way_of_shuffling_is_part_of_a_trial_only_if_chosen():
    assert trial_id(config()) == trial_id(config(data__shuffle="full"))
    assert trial_id(config()) != trial_id(config(data__shuffle="block"))


def test_training_on_blocks_resumes_exactly(tmp_path):
    write_episodes(tmp_path / "data.h5", make_episodes(4, 60))  # 15 steps per epoch
    settings = {"data__shuffle": "block", "run__pixels_in_memory_gb": 0.0}
    cfg = tiny(**settings, optim__num_steps=24, run__checkpoint_every=5)

    def stop_at(step, _):
        if step >= 20:
            raise InterruptedError

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(cfg, whole, tmp_path / "data.h5")
    with pytest.raises(InterruptedError):
        train(cfg, broken, tmp_path / "data.h5", stop_at)
    train(cfg, broken, tmp_path / "data.h5")
    assert read_curve(whole) == read_curve(broken)


def test_errors(file):
    with pytest.raises(ValueError, match=r"frames of 8 px, 16 are expected"):
        ClipData(file, config(model__image_size=16), "train")
    with pytest.raises(ValueError, match="no val episode has the 80 steps"):
        ClipData(file, config(data__action_block=20), "val")


def test_the_device_resizes_frames_after_normalising_them():
    frames = torch.randint(0, 256, (5, 2, 3, 24, 24), dtype=torch.uint8)
    small = prepare_frames(frames, 8)
    assert small.shape == (5, 2, 3, 8, 8) and small.is_contiguous()
    whole = prepare_frames(frames)
    assert torch.equal(prepare_frames(frames, 24), whole)
    torch.testing.assert_close(small.flatten(0, 1), resize(whole.flatten(0, 1), 8))
    torch.testing.assert_close(small.mean(dim=(-2, -1)), whole.mean(dim=(-2, -1)), atol=0.1, rtol=0)
    flat = torch.full((1, 3, 24, 24), 77, dtype=torch.uint8)
    torch.testing.assert_close(prepare_frames(flat, 8), prepare_frames(flat)[..., :8, :8])
    assert prepare_frames(torch.empty(2, 4, 3, 0, 0, dtype=torch.uint8), 8).shape == (2, 4, 3, 0, 0)


def test_frames_of_another_size_train_where_the_config_says_so(path, tmp_path):
    resized, plain = tiny(data__frame_size=SIZE), tiny()
    assert resized.model.image_size == 16
    assert train(resized, tmp_path / "resized", path).status == "done"
    with pytest.raises(ValueError, match=r"frames of 8 px, 16 .*data\.frame_size=8"):
        train(plain, tmp_path / "plain", path)
    assert trial_id(resized) != trial_id(plain) and dataset_id(resized) != dataset_id(plain)
    said = tiny(data__frame_size=16)
    assert trial_id(said) == trial_id(plain) and dataset_id(said) == dataset_id(plain)


def test_prepare_frames():
    frames = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 2, 2)
    out = prepare_frames(frames)
    assert out.dtype == torch.float32 and out.shape == frames.shape
    low, high = out[0, 0, :, 0, 0], out[0, 1, :, 0, 0]
    torch.testing.assert_close(low, torch.tensor([-2.1179, -2.0357, -1.8044]), atol=1e-4, rtol=0)
    torch.testing.assert_close(high, torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4, rtol=0)
