"""Push-T: the authors' trajectories, frames and success, exact replay, its policies and rules."""

import math
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lewm.config import DataConfig
from lewm.data.collect import collect_episode
from lewm.data.episodes import EpisodeFile
from lewm.envs import make_env
from lewm.envs import push_t_scene as scene
from lewm.envs.push_t import PushTEnv
from lewm.protocol import protocol_from_dict
from pipeline.shipped import load_protocols

GOLDENS = Path(__file__).parent.parent / "goldens"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "push_t.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def env():
    return make_env("push_t")


def rule(name):
    return protocol_from_dict("push_t", name, load_protocols("push_t")[name])


def collected(policy, index=0, max_steps=100):
    data = DataConfig(env="push_t", policy=policy, max_steps=max_steps)
    return collect_episode(data, 64, index, render=False)


def test_states_follow_the_authors_trajectories(golden):
    """All but the last, which hangs on the contact cache of the reset before it (datasheet)."""
    env = make_env("push_t", setter="paper")
    errors = []
    for start, actions, states in zip(golden["init"], golden["actions"], golden["states"]):
        env.set_state(start)
        found = np.array([env.get_state(), *(env.step(action)[0] for action in actions)])
        errors.append(np.abs(found[:, :4] - states[:, :4]).max())
    assert max(errors[:7]) < 0.01 and errors[7] < 2


def test_frames_are_the_authors(golden, env):
    frames = np.stack(
        [
            [env.render_state(state) for state in states[golden["frame_steps"]]]
            for states in golden["states"]
        ]
    )
    near = np.abs(frames.astype(int) - golden["frames"]) <= 2
    assert near.mean(axis=(2, 3, 4)).min() > 0.9999


def test_success_is_the_published_rule(golden, env):
    paper = rule("paper")
    found = []
    for state, goal in zip(golden["case_state"], golden["case_goal"]):
        env.set_state(state)
        env.set_goal(goal)
        # angles beyond a full turn come back within 0..2 pi, as the authors' observation gives them
        found.append(env.success(paper))
    assert (np.array(found) == golden["case_success"]).all() and 0 < sum(found) < 400


def test_published_rows_are_drawn_as_published(env):
    with EpisodeFile(GOLDENS / "datasets" / "published_pusht.h5") as file:
        columns = {name: file.read(name) for name in file.columns if name != "pixels"}
        for row in (0, 30, 80):
            frame = env.render_state(env.state_from_columns(columns, row)).astype(int)
            stored = file.read("pixels", np.array([row]))[0]
            assert (np.abs(frame - stored) <= 2).mean() > 0.9999


def _touches_a_wall(state):
    points = np.array(
        [p for part in (scene.BAR, scene.STEM) for p in scene.corners(state[2:5], part)]
    )
    return points.min() < 8 or points.max() > 503


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("policy", ["weak", "pusher"])
def test_a_stored_row_replays(policy, published, env):
    """Away from the walls, also from the published columns: they do not hold the block's velocity.

    A block jammed between agent and wall amplifies the last bit.
    """
    errors = []
    for index in range(8):
        columns = collected(policy, index)
        states = [env.state_from_columns(columns, row) for row in range(101)]
        for row in (10, 40, 70):
            if any(_touches_a_wall(state) for state in states[row : row + 26]):
                continue
            start = states[row]
            if published:
                start = env.state_from_columns({"state": columns["state"]}, row)
            env.set_state(start)
            assert np.array_equal(env.get_state(), start)
            for step in range(row, row + 25):
                env.step(columns["action"][step])
            errors.append(np.abs(env.get_state()[:4] - states[row + 25][:4]).max())
    assert len(errors) > 8 and max(errors) < 1e-3


def test_setters(env):
    start = np.array([200.0, 200, 330, 200, 1.0, 100, 0])
    env.set_state(start)
    assert np.allclose(env.get_state()[:7], start, atol=1e-9) and not env.get_state()[7:].any()
    paper = make_env("push_t", setter="paper")
    paper.set_state(start)
    assert paper.get_state()[0] == pytest.approx(201)
    first = [env.step(np.array([0.3, 0.2]))[0] for _ in range(5)]
    env.set_state(start)
    assert np.array_equal(first, [env.step(np.array([0.3, 0.2]))[0] for _ in range(5)])


def test_gymnasium_contract_and_workers_without_rendering():
    check_env(gymnasium.make("lewm/PushT-v0").unwrapped, skip_render_check=True)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 2, 2)).astype(np.float32)
    vector = gymnasium.vector.AsyncVectorEnv([lambda: make_env("push_t")] * 2)
    start, _ = vector.reset(seed=[1, 2])
    for action in actions:
        found = vector.step(action)[0]
    vector.close()
    for slot in range(2):
        alone = make_env("push_t")
        assert np.array_equal(alone.reset(seed=slot + 1)[0], start[slot])
        for action in actions:
            state = alone.step(action[slot])[0]
        assert np.array_equal(state, found[slot]) and alone._painter is None


def test_rules_of_the_protocols(env):
    goal = np.array([100.0, 100, 300, 300, 0.05, 0, 0])
    env.set_goal(goal)
    for name, change, expected in (
        ("paper", (12, 0, 12, 0, 0), True),
        ("paper", (15, 0, 15, 0, 0), False),
        ("paper", (0, 0, 0, 0, math.radians(-19)), True),
        ("paper", (0, 0, 0, 0, math.radians(21)), False),
        ("strict", (200, 0, 6, 6, 0), True),
        ("strict", (0, 0, 8, 8, 0), False),
        ("strict", (0, 0, 0, 0, math.radians(11)), False),
    ):
        env.set_state(goal + np.array([*change, 0, 0]))
        assert env.success(rule(name)) is expected, (name, change)


def test_the_weak_policy_stays_near_the_block_and_moves_it():
    episodes = [collected("weak", index) for index in range(10)]
    columns = {k: np.concatenate([e[k] for e in episodes]) for k in episodes[0]}
    assert PushTEnv.coverage(columns, np.full(10, 101))["windows_moved"] > 0.6
    gap = np.abs(columns["state"][:, :2] - columns["state"][:, 2:4]).max(axis=1)
    assert np.mean(gap < 110) > 0.8
    again = collected("weak", 3)
    assert all(np.array_equal(again[k], episodes[3][k], equal_nan=True) for k in again)


def test_the_pusher_reaches_random_poses(env):
    reached = 0
    for seed in range(10):
        env.reset(seed=seed)
        policy = env.make_behaviour("pusher", np.random.default_rng(seed))
        policy.reset(env)
        x, y, angle = policy._goal
        for _ in range(150):
            action = policy.act(env)
            assert np.abs(action).max() <= 1
            state = env.step(action)[0]
            turn = (state[4] - angle + math.pi) % (2 * math.pi) - math.pi
            if math.hypot(state[2] - x, state[3] - y) < 20 and abs(turn) < math.radians(20):
                reached += 1
                break
    assert reached >= 8


def test_mixtures_follow_one_policy_per_episode(env):
    kinds = {type(env.make_behaviour("weak+pusher", np.random.default_rng(i))) for i in range(20)}
    assert {kind.__name__ for kind in kinds} == {"Weak", "Pusher"}


def test_physical_state_and_violations(env):
    columns = collected("weak", max_steps=30)
    targets = PushTEnv.physical_state(columns)
    assert {name: array.shape for name, array in targets.items()} == dict.fromkeys(
        ("agent_position", "block_position", "block_angle"), (31, 2)
    )
    np.testing.assert_allclose((targets["block_angle"] ** 2).sum(axis=1), 1)
    rng = np.random.default_rng(0)
    state = env.state_from_columns(columns, 5)
    after, options = env.violations()["teleport"][1](state, rng)
    assert min(np.linalg.norm((after - state)[i : i + 2]) for i in (0, 2)) >= 100 and options == {}
    same, options = env.violations()["colour"][1](state, rng)
    small = make_env("push_t", image_size=64)
    usual = small.render_state(state).astype(int)
    changed = np.abs(small.render_state(same, **options).astype(int) - usual).max(-1) > 20
    assert usual.shape == (64, 64, 3) and 0.01 < changed.mean() < 0.1
    assert np.array_equal(small.render_state(state), usual)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_env("push_t", image_size=300), "image_size must be within"),
        (lambda: make_env("push_t", render_quality="fast"), "must be exact"),
        (lambda: make_env("push_t", setter="quick"), "exact or paper"),
        (lambda: make_env("push_t").step(np.zeros(3)), "2 finite numbers"),
        (lambda: make_env("push_t").step(np.full(2, np.nan)), "2 finite numbers"),
        (lambda: make_env("push_t").set_state(np.zeros(3)), "10 numbers"),
        (lambda: make_env("push_t").set_state(np.full(7, np.nan)), "must be finite"),
        (lambda: PushTEnv.physical_state({}), "no column state"),
        (
            lambda: make_env("push_t").make_behaviour("week", np.random.default_rng(0)),
            "did you mean 'weak'.*weak, pusher, random",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_without_the_simulator_the_extra_is_named(monkeypatch):
    for module in ("push_t", "push_t_scene", "push_t_policies"):
        monkeypatch.delitem(sys.modules, f"lewm.envs.{module}")
    monkeypatch.setitem(sys.modules, "pymunk", None)
    with pytest.raises(ValueError, match=r"'push_t' needs pymunk.*lewm-sweep\[envs\]"):
        make_env("push_t")
