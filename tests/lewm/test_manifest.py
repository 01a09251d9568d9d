import dataclasses
import itertools
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lewm.config import DataConfig
from lewm.control import run_recorded
from lewm.data.clips import split_episodes
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.envs.two_room import TwoRoomEnv
from lewm.manifest import Manifest, check_manifest, make_manifest
from lewm.protocol import Protocol, protocol_from_dict
from lewm.windows import BARREN_EPISODES, draw_as_published

TOML = Path(__file__).parents[2] / "sweeps/protocols/two_room.toml"
TABLES = tomllib.loads(TOML.read_text())
DATA = DataConfig()
NAMED = DataConfig(dataset="episodes.h5", holdout_frac=0.75, split_seed=5)


def protocol(name: str, **changes) -> Protocol:
    return protocol_from_dict("two_room", name, {**TABLES[name], **changes})


def columns(num: int, **options):
    return [collect_episode(DATA, 8, index, **options) for index in range(num)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "episodes.h5"
    write_episodes(path, columns(24))
    with EpisodeFile(path) as episodes:
        yield episodes


def test_strict_pairs_are_clean_and_one_per_episode():
    rule = protocol("strict")
    manifest = make_manifest(rule, 42, 20, DATA, None)
    env = rule.make_env(64)
    assert [pair.pair_id for pair in manifest.pairs] == list(range(20))
    assert len({pair.episode_id for pair in manifest.pairs}) == 20
    for pair in manifest.pairs:
        assert not pair.initial_success
        assert (pair.start_state[0] < 112) != (pair.goal_state[0] < 112)
        assert pair.actions.shape == (25, 2)
        env.set_state(pair.start_state)
        for action in pair.actions:
            env.step(action)
        np.testing.assert_array_equal(env.get_state(), pair.goal_state)


def test_held_out_pairs_are_prefix_stable_and_depend_on_the_eval_seed_only():
    rule = protocol("moderate")
    long, short = (make_manifest(rule, 7, n, DATA, None) for n in (12, 5))
    assert [pair.to_dict() for pair in long.pairs[:5]] == [pair.to_dict() for pair in short.pairs]
    other_data = DataConfig(num_episodes=3, collect_seed=7, split_seed=1)
    assert make_manifest(rule, 7, 5, other_data, None).hash == short.hash
    assert make_manifest(rule, 8, 5, DATA, None).hash != short.hash


def test_held_out_episodes_are_not_training_episodes():
    rule = protocol("moderate")
    manifest = make_manifest(rule, DATA.collect_seed, 10, DATA, None)
    training = {
        tuple(row) for episode in columns(40, render=False) for row in episode["proprio"].tolist()
    }
    assert not any(tuple(pair.start_state.tolist()) in training for pair in manifest.pairs)


def test_held_out_pairs_of_a_named_file_are_of_its_held_out_episodes(file):
    rule = protocol("moderate", options={"collision": "endpoint"}, hold=2)
    _, held_out = split_episodes(24, NAMED.holdout_frac, NAMED.split_seed)
    long, short = (make_manifest(rule, 42, n, NAMED, file, dataset_hash="abc") for n in (6, 3))
    assert [pair.to_dict() for pair in long.pairs[:3]] == [pair.to_dict() for pair in short.pairs]
    episodes = [pair.episode_id for pair in long.pairs]
    assert len(set(episodes)) == 6 and set(episodes) <= set(held_out.tolist())
    assert episodes != sorted(episodes)
    other = make_manifest(rule, 43, 6, NAMED, file)
    assert [pair.episode_id for pair in other.pairs] != episodes
    position, action = file.read("proprio"), file.read("action")
    for pair in long.pairs:
        rows = file.rows(pair.episode_id)
        assert rows[0] <= pair.start_row and pair.start_row + 25 <= rows[-1]
        np.testing.assert_array_equal(pair.start_state, position[pair.start_row])
        np.testing.assert_array_equal(pair.goal_state, position[pair.start_row + 25])
        assert (pair.start_state[0] < 112) != (pair.goal_state[0] < 112)
        assert not pair.initial_success and pair.actions.shape == (25, 2)
        np.testing.assert_array_equal(pair.actions, action[pair.start_row :][:25])


def test_windows_of_a_named_file_are_legal_under_the_protocol(tmp_path):
    """Recorded where walls can be cut; CLEAR-LeWM finds 14 % of the published episodes eligible."""
    path = tmp_path / "endpoint.h5"
    write_episodes(path, columns(60))
    rule, data = protocol("strict"), NAMED.model_copy(update={"holdout_frac": 0.9})
    with EpisodeFile(path) as named:
        manifest = make_manifest(rule, 42, 6, data, named)
        for pair in manifest.pairs:
            for place in named.read("proprio", np.arange(pair.start_row, pair.start_row + 26)):
                assert TwoRoomEnv.is_clear(place)
        with pytest.raises(ValueError, match="held-out"):
            make_manifest(rule, 42, 30, data, named)
    assert run_recorded(manifest).success.all()


def test_one_per_episode_of_the_training_file_takes_any_episode(file):
    rule = protocol("paper", sampling="one_per_episode")
    manifest = make_manifest(rule, 42, 20, NAMED, file)
    assert len({pair.episode_id for pair in manifest.pairs}) == 20
    _, held_out = split_episodes(24, NAMED.holdout_frac, NAMED.split_seed)
    assert not {pair.episode_id for pair in manifest.pairs} <= set(held_out.tolist())


def test_starts_are_uniform_over_the_qualifying_ones(file):
    rule = protocol("paper", sampling="one_per_episode", goal_offset=85)
    starts = [
        (pair.episode_id, pair.start_row - file.ep_offset[pair.episode_id])
        for seed in range(150)
        for pair in make_manifest(rule, seed, 1, NAMED, file).pairs
    ]
    longest = [step for episode, step in starts if file.ep_len[episode] == 101]
    assert len(longest) > 50 and set(longest) == set(range(16))


def test_paper_draws_as_published(file):
    valid = [
        row
        for begin, length in zip(file.ep_offset, file.ep_len)
        for row in range(begin, begin + length - 25)
    ]
    for sampling, reachable in (("rows_old", len(valid) - 1), ("rows", len(valid))):
        manifest = make_manifest(protocol("paper", sampling=sampling), 42, 30, DATA, file)
        drawn = np.random.default_rng(42).choice(reachable, size=30, replace=False)
        assert [pair.start_row for pair in manifest.pairs] == sorted(np.array(valid)[drawn])
    position = file.read("proprio")
    for pair in manifest.pairs:
        begin = file.ep_offset[pair.episode_id]
        assert begin <= pair.start_row < begin + file.ep_len[pair.episode_id] - 25
        np.testing.assert_array_equal(pair.start_state, position[pair.start_row])
        np.testing.assert_array_equal(pair.goal_state, position[pair.start_row + 25])
        gap = np.linalg.norm(pair.start_state - pair.goal_state)
        assert pair.initial_success == (gap < 16)
        np.testing.assert_array_equal(pair.actions, file.read("action")[pair.start_row :][:25])


def test_the_old_form_gives_the_published_push_t_starts():
    """Starts that CLEAR-LeWM's `official` manifest (pusht, seed 42, 100 pairs) took from the authors' code.

    All 18,685 episodes are longer than 25, so (episode, row) is valid start number row - 25 * episode.
    """
    published = {0: (855, 103269), 37: (8291, 1024570), 50: (10117, 1237188), 86: (15700, 1962433)}
    published |= {1: (1235, 150184), 91: (16531, 2083016), 99: (18053, 2275272)}
    num_valid = 2_336_736 - 25 * 18_685
    old, current = (draw_as_published(n, 100, 42) for n in (num_valid - 1, num_valid))
    assert {i: old[i] for i in published} == {i: row - 25 * e for i, (e, row) in published.items()}
    assert (old != current).sum() == 49


def test_pre_solved_rows_are_dropped_when_asked(file):
    kept = make_manifest(protocol("paper"), 42, 60, DATA, file)
    dropped = make_manifest(protocol("paper", pre_solved="dropped"), 42, 60, DATA, file)
    assert any(pair.initial_success for pair in kept.pairs)
    assert not any(pair.initial_success for pair in dropped.pairs)


def test_too_few_pairs_and_missing_file_are_one_line(file):
    with pytest.raises(ValueError, match=r"paper: 100000 pairs asked for, \d+ rows of .*\.h5"):
        make_manifest(protocol("paper"), 42, 100_000, DATA, file)
    for name, data in (("paper", DATA), ("strict", NAMED)):
        with pytest.raises(ValueError, match=f"{name} needs the training file"):
            make_manifest(protocol(name), 42, 3, data, None)
    with pytest.raises(
        ValueError, match=r"only \d+ of 19 pairs; no other of the held-out episodes"
    ):
        make_manifest(protocol("moderate"), 42, 19, NAMED, file)
    with pytest.raises(ValueError, match=r"two_room.paper does not fit env 'push_t'"):
        make_manifest(protocol("paper"), 42, 1, DataConfig(env="push_t"), file)


def test_generation_gives_up_after_many_barren_episodes_and_tells_its_progress():
    seen = []
    with pytest.raises(ValueError, match="only 0 of 1 pairs; 200 episodes of policy 'expert'"):
        make_manifest(
            protocol("strict"),
            42,
            1,
            DataConfig(max_steps=20),
            None,
            progress=lambda *counts: seen.append(counts),
        )
    assert seen == [(0, 1)] * BARREN_EPISODES
    seen.clear()
    make_manifest(
        protocol("strict"), 42, 30, DATA, None, progress=lambda *counts: seen.append(counts)
    )
    assert seen[-1] == (30, 30) and len(seen) > 30
    assert all(b[0] - a[0] in (0, 1) for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize("name", ["start_state", "goal_state", "actions"])
def test_what_is_not_finite_is_named(name):
    pair = make_manifest(protocol("moderate"), 42, 1, DATA, None).pairs[0]
    values = getattr(pair, name).copy()
    values[-1] = np.nan
    with pytest.raises(ValueError, match=rf"pair 0 \(episode \d+, row \d+\): {name} is not fin"):
        dataclasses.replace(pair, **{name: values})


def test_the_oracle_holds_the_goal():
    """It arrives with step 25; where success must last three steps, it has to stay there for two more."""
    rule = protocol("strict", hold=3, success={"distance_px": 4.0})
    pair = make_manifest(rule, 42, 1, DATA, None).pairs[0]
    walk = np.zeros((25, 2), np.float32)
    walk[:, 1] = 1.0
    start, goal = np.array([40.0, 40.0]), np.array([40.0, 165.0])
    pair = dataclasses.replace(pair, start_state=start, goal_state=goal, actions=walk)
    outcome = run_recorded(Manifest(rule, 42, (pair,)))
    assert outcome.steps_to_success.tolist() == [27] and outcome.final_distance.tolist() == [0.0]
    short = dataclasses.replace(rule, budget=26)
    assert run_recorded(Manifest(short, 42, (pair,))).success.tolist() == [False]
    first = dataclasses.replace(rule, hold=1)
    assert run_recorded(Manifest(first, 42, (pair,))).steps_to_success.tolist() == [25]


def test_manifest_survives_json_exactly(file):
    for rule, source in ((protocol("paper"), file), (protocol("strict", hold=2), None)):
        manifest = make_manifest(rule, 42, 5, DATA, source, dataset_hash="abc")
        read = Manifest.from_json(manifest.to_json())
        assert read.to_dict() == manifest.to_dict() and read.hash == manifest.hash
        assert len(read.hash) == 12 and read.protocol == rule and read.source == manifest.source
        for before, after in zip(manifest.pairs, read.pairs):
            np.testing.assert_array_equal(before.start_state, after.start_state)
            np.testing.assert_array_equal(before.actions, after.actions)
            assert before.actions.dtype == after.actions.dtype == np.float32
    assert dataclasses.replace(manifest, eval_seed=43).hash != manifest.hash
    assert dataclasses.replace(manifest, source="other").hash != manifest.hash


def test_a_manifest_of_another_dataset_is_refused(file):
    paper = make_manifest(protocol("paper"), 42, 2, DATA, file, dataset_hash="abc")
    check_manifest(paper, "abc")
    with pytest.raises(ValueError, match=r"two_room\.paper.* from abc, not from dataset def"):
        check_manifest(paper, "def")
    with pytest.raises(ValueError, match="a dataset that it does not name"):
        check_manifest(make_manifest(protocol("paper"), 42, 2, DATA, file), "abc")
    generated = make_manifest(protocol("moderate"), 42, 2, DATA, file, dataset_hash="abc")
    assert generated.source == "generated by expert, at most 100 steps"
    check_manifest(generated, "def")


def test_pairs_that_do_not_fit_their_protocol_are_refused():
    manifest = make_manifest(protocol("strict"), 42, 2, DATA, None)
    with pytest.raises(ValueError, match=r"strict: pair 0 needs 24 recorded actions.*\(25, 2\)"):
        Manifest(protocol("strict", goal_offset=24), 42, manifest.pairs)
    with pytest.raises(ValueError, match="same pair_id"):
        Manifest(manifest.protocol, 42, (manifest.pairs[0], manifest.pairs[0]))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "{",
        '{"schema_version": "lewm-manifest-v1", "protocol": {"env": "two_room"}}',
        '{"schema_version": "lewm-manifest-v0"}',
    ],
)
def test_other_texts_are_no_manifest(text):
    with pytest.raises(ValueError, match="manifest") as caught:
        Manifest.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_manifest_with_a_hole_is_refused():
    data = json.loads(make_manifest(protocol("strict"), 42, 1, DATA, None).to_json())
    data["pairs"][0]["goal_state"][0] = float("nan")
    with pytest.raises(ValueError, match="goal_state is not finite"):
        Manifest.from_json(json.dumps(data))
    del data["pairs"][0]["actions"]
    with pytest.raises(ValueError, match="not a manifest: KeyError 'actions'"):
        Manifest.from_json(json.dumps(data))
