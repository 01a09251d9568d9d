import tomllib
from pathlib import Path

import numpy as np
import pytest

from lewm.config import DataConfig
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile, write_episodes
from lewm.protocol import Manifest, Protocol, make_manifest, protocol_from_dict

TOML = Path(__file__).parents[2] / "sweeps/protocols/two_room.toml"
TABLES = tomllib.loads(TOML.read_text())
DATA = DataConfig()


def protocol(name: str, **changes) -> Protocol:
    return protocol_from_dict("two_room", name, {**TABLES[name], **changes})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "episodes.h5"
    write_episodes(path, (collect_episode(DATA, 16, index) for index in range(12)))
    with EpisodeFile(path) as episodes:
        yield episodes


def test_shipped_protocols_say_what_the_design_says():
    paper, moderate, strict = (protocol(name) for name in ("paper", "moderate", "strict"))
    assert (paper.episodes, paper.pre_solved, paper.sampling) == ("train", "kept", "rows_old")
    assert paper.options == {"collision": "endpoint"} and paper.success == {"distance_px": 16.0}
    for closed, distance in ((moderate, 16.0), (strict, 8.0)):
        assert (closed.episodes, closed.pre_solved) == ("held_out", "dropped")
        assert closed.options == {"collision": "swept"} and closed.success["cross_room"] is True
        assert closed.success["distance_px"] == distance
    assert strict.success["goal_side"] is True
    assert {(p.goal_offset, p.budget, p.hold) for p in (paper, moderate, strict)} == {(25, 50, 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_solvd": "kept"}, r"two_room\.strict.*'pre_solvd'.*did you mean 'pre_solved'"),
        (
            {"sampling": "row"},
            r"sampling must be one of rows, rows_old, one_per_episode, got 'row'",
        ),
        ({"hold": 0}, r"hold must be a whole number >= 1, got 0"),
        ({"budget": 50.0}, r"budget must be a whole number"),
        ({"success": {"distance_pxx": 8.0}}, r"strict\.success.*did you mean 'distance_px'"),
        ({"success": {"goal_side": 1}}, r"goal_side must be true or false, got 1"),
        ({"success": {"distance_px": True}}, r"distance_px must be a number, got True"),
        ({"success": {"distance_px": 0.0}}, r"distance_px must be above 0"),
        ({"success": 8.0}, r"success must be a table"),
        ({"options": {"collision": "sweep"}}, r"collision must be endpoint or swept, got 'sweep'"),
        ({"sampling": "rows"}, r"one_per_episode goes with episodes held_out"),
    ],
)
def test_bad_tables_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        protocol("strict", **changes)
    assert "\n" not in str(caught.value)


def test_missing_keys_and_unknown_env_are_named():
    with pytest.raises(ValueError, match=r"two_room\.x: missing .*budget"):
        protocol_from_dict("two_room", "x", {"episodes": "train"})
    with pytest.raises(ValueError, match="two_room"):
        protocol_from_dict("two_rom", "paper", TABLES["paper"])


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
        tuple(row)
        for index in range(40)
        for row in collect_episode(DATA, 16, index, render=False)["proprio"].tolist()
    }
    assert not any(tuple(pair.start_state.tolist()) in training for pair in manifest.pairs)


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


def test_pre_solved_rows_are_dropped_when_asked(file):
    kept = make_manifest(protocol("paper"), 42, 60, DATA, file)
    dropped = make_manifest(protocol("paper", pre_solved="dropped"), 42, 60, DATA, file)
    assert any(pair.initial_success for pair in kept.pairs)
    assert not any(pair.initial_success for pair in dropped.pairs)


def test_too_few_pairs_and_missing_file_are_errors(file):
    with pytest.raises(ValueError, match=r"paper: 100000 pairs asked for, \d+ rows of .*\.h5"):
        make_manifest(protocol("paper"), 42, 100_000, DATA, file)
    with pytest.raises(ValueError, match="needs the training file"):
        make_manifest(protocol("paper"), 42, 3, DATA, None)
    with pytest.raises(ValueError, match="only 0 of 1 pairs"):
        make_manifest(protocol("strict"), 42, 1, DataConfig(max_steps=20), None)


def test_manifest_survives_json_exactly(file):
    for rule, source in ((protocol("paper"), file), (protocol("strict"), None)):
        manifest = make_manifest(rule, 42, 5, DATA, source)
        read = Manifest.from_json(manifest.to_json())
        assert read.to_dict() == manifest.to_dict() and read.hash == manifest.hash
        assert len(read.hash) == 12 and read.protocol == rule
        for before, after in zip(manifest.pairs, read.pairs):
            np.testing.assert_array_equal(before.start_state, after.start_state)
            np.testing.assert_array_equal(before.actions, after.actions)
            assert before.actions.dtype == after.actions.dtype == np.float32
    changed = Manifest(protocol("strict", hold=2), 42, manifest.pairs)
    assert changed.hash != manifest.hash


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"protocol": {"env": "two_room"}}'])
def test_other_texts_are_no_manifest(text):
    with pytest.raises(ValueError):
        Manifest.from_json(text)
