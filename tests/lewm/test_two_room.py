"""Two-Room: golden recordings, collision laws, the Gymnasium contract, behaviour."""

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lewm.config import DataConfig
from lewm.data.collect import collect_episode
from lewm.envs import ENVS, env_class, make_env
from lewm.envs import two_room_scene as scene
from lewm.envs.two_room import TwoRoomEnv

GOLDEN = Path(__file__).parents[1] / "goldens" / "two_room.npz"
PLACES = [(172.5, 180.2), (112.0, 49.0), (101.3, 40.7), (22.0, 30.5), (203.0, 203.0)]


def rule(**success):
    return SimpleNamespace(success=success)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


def test_golden_states_and_success(golden):
    env = make_env("two_room")
    for e, actions in enumerate(golden["actions"]):
        env.reset(seed=e)
        env.set_state(golden["init"][e])
        env.set_goal(golden["goal"][e])
        for t, action in enumerate(actions):
            np.testing.assert_allclose(env.get_state(), golden["states"][e, t], atol=1e-3)
            env.step(action)
            assert env.success(rule()) == golden["success"][e, t]
        np.testing.assert_allclose(env.get_state(), golden["states"][e, -1], atol=1e-3)


def test_golden_frames(golden):
    env = make_env("two_room")
    for e, frames in enumerate(golden["frames"]):
        for t, frame in zip(golden["frame_steps"], frames, strict=True):
            drawn = env.render_state(golden["states"][e, t]).astype(int)
            assert np.mean(np.abs(drawn - frame) <= 2) >= 0.999


@pytest.mark.parametrize("size", [112, 98, 64, 56])
def test_smaller_frames_are_the_area_average(size):
    edges = np.arange(size + 1) * 224 / size
    k = np.arange(224)
    weights = np.clip(np.minimum(edges[1:, None], k + 1) - np.maximum(edges[:-1, None], k), 0, None)
    weights *= size / 224
    large, small = make_env("two_room"), make_env("two_room", image_size=size)
    for place in PLACES:
        full = large.render_state(np.array(place)).astype(float)
        rows = np.tensordot(weights, full, (1, 0))
        mean = np.moveaxis(np.tensordot(rows, weights, (1, 1)), 2, 1)
        drawn = small.render_state(np.array(place))
        assert drawn.shape == (size, size, 3)
        assert np.abs(drawn - mean).max() < 1.01


def test_frame_shows_the_agent_not_the_goal():
    env = make_env("two_room", image_size=64)
    env.reset(seed=0)
    before = env.render()
    env.set_goal(np.array([150.0, 150.0]))
    assert np.array_equal(env.render(), before)
    env.step(np.ones(2, np.float32))
    assert not np.array_equal(env.render(), before)


def slide(start, target, parts=500):
    """Reference for swept motion: very small moves, each projected back to the clear region."""
    step = (np.array(target) - start) / parts
    at = tuple(start)
    for _ in range(parts):
        at = scene.push_out((at[0] + step[0], at[1] + step[1]))
    return at


def test_swept_motion_equals_many_small_projected_moves():
    """Along faces exactly; round a corner the slide is along the tangent at the contact."""
    rng = np.random.default_rng(0)
    near_door = rng.uniform((96, 20), (128, 78), (4000, 2))
    starts = [tuple(p) for p in near_door.tolist() if scene.is_clear(tuple(p))][:400]
    faces, corners = [], []
    for start in starts:
        target = tuple((np.array(start) + rng.uniform(-5, 5, 2)).tolist())
        end = scene.move_swept(start, target)
        if math.dist(end, target) > 1e-6:
            beside_door = {start[1] <= 35, target[1] <= 35} == {start[1] < 63, target[1] < 63}
            found = faces if beside_door else corners
            found.append(math.dist(end, slide(start, target)))
    assert len(faces) > 10 and max(faces) < 1e-6
    assert len(corners) > 10 and max(corners) < 2.0


def test_swept_never_overlaps_and_crosses_only_through_the_door():
    env = make_env("two_room", collision="swept")
    rng = np.random.default_rng(1)
    crossings = 0
    for episode in range(6):
        env.reset(seed=episode)
        env.set_state(np.array([104.0 if episode % 2 else 121.0, 49.0]))
        for _ in range(400):
            before = env.get_state()
            pull = np.array([0.0, np.clip((49 - before[1]) / 30, -1, 1)])
            after = env.step(rng.uniform(-1.5, 1.5, 2) + pull)[0]
            assert TwoRoomEnv.is_clear(after)
            if (before[0] < 112) != (after[0] < 112):
                t = (112 - before[0]) / (after[0] - before[0])
                assert 42 - 1e-6 <= before[1] + t * (after[1] - before[1]) <= 56 + 1e-6
                crossings += 1
    assert crossings > 20


def test_the_collision_rules_differ_at_the_corner_of_the_door():
    states = {}
    for collision in ("endpoint", "swept"):
        env = make_env("two_room", collision=collision)
        env.set_state(np.array([99.5, 34.0]))
        states[collision] = env.step(np.array([1.0, 0.5]))[0]
    assert states["endpoint"][0] == 104.5
    assert not TwoRoomEnv.is_clear(states["endpoint"])
    assert TwoRoomEnv.is_clear(states["swept"])


def test_swept_repairs_an_overlapping_start():
    env = make_env("two_room", collision="swept")
    for start in [(112.0, 36.0), (110.0, 20.0), (115.0, 100.0), (5.0, 230.0), (106.0, 34.0)]:
        env.set_state(np.array(start))
        assert TwoRoomEnv.is_clear(env.step(np.zeros(2))[0])


def test_check_env_is_clean_for_every_registered_size_and_rule():
    for options in ({}, {"image_size": 64, "collision": "swept"}):
        env = gymnasium.make("lewm/TwoRoom-v0", **options).unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env)


def test_state_is_exact():
    env = make_env("two_room")
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    state, actions = env.get_state(), rng.uniform(-1, 1, (30, 2))
    first = [env.step(a)[0] for a in actions]
    other = make_env("two_room")
    other.reset(seed=9)
    columns = {k: v[None] for k, v in env.state_columns(state).items()}
    other.set_state(other.state_from_columns(columns, 0))
    np.testing.assert_array_equal([other.step(a)[0] for a in actions], first)


def test_sixty_together_equal_sixty_alone():
    envs = gymnasium.vector.SyncVectorEnv(
        [lambda: make_env("two_room", collision="swept", image_size=64)] * 60
    )
    observed, _ = envs.reset(seed=5)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 60, 2)).astype(np.float32)
    together = [observed, *(envs.step(a)[0] for a in actions)]
    frames = envs.render()
    for i in range(60):
        env = make_env("two_room", collision="swept", image_size=64)
        alone = [env.reset(seed=5 + i)[0], *(env.step(a[i])[0] for a in actions)]
        np.testing.assert_array_equal(alone, [t[i] for t in together])
        np.testing.assert_array_equal(env.render(), frames[i])


def test_reset_draws_goal_in_the_other_room():
    env = make_env("two_room")
    for seed in range(50):
        start, _ = env.reset(seed=seed)
        assert TwoRoomEnv.is_clear(start) and TwoRoomEnv.is_clear(env.goal)
        assert (start[0] < 112) != (env.goal[0] < 112)
    env.reset(seed=1, options={"state": np.array([50.0, 60.0]), "goal": np.array([70.0, 60.0])})
    assert env.get_state().tolist() == [50.0, 60.0]
    assert env.goal_distance() == 20.0


def test_success_rule():
    env = make_env("two_room")
    env.set_goal(np.array([118.0, 49.0]))
    env.set_state(np.array([111.0, 49.0]))
    assert env.success(rule()) and env.success(rule(distance_px=8.0))
    assert not env.success(rule(distance_px=7.0))
    assert not env.success(rule(distance_px=16.0, goal_side=True))


def test_admits():
    left, right, wall = np.array([50.0, 50.0]), np.array([150.0, 50.0]), np.array([112.0, 38.0])
    env = make_env("two_room")
    assert env.admits(rule(cross_room=True), left, right)
    assert not env.admits(rule(cross_room=True), left, left)
    assert env.admits(rule(), left, wall) and env.admits(rule(), wall, right)
    swept = make_env("two_room", collision="swept")
    assert swept.admits(rule(cross_room=True), left, right)
    assert not swept.admits(rule(), left, wall) and not swept.admits(rule(), wall, right)


def test_violations():
    env = make_env("two_room", image_size=64)
    state, rng = np.array([60.0, 60.0]), np.random.default_rng(0)
    kinds = {name: kind for name, (kind, _) in env.violations().items()}
    assert kinds == {"teleport": "physical", "colour": "visual"}
    for _ in range(20):
        moved, options = env.violations()["teleport"][1](state, rng)
        assert TwoRoomEnv.is_clear(moved) and math.dist(moved, state) >= 80 and not options
    same, options = env.violations()["colour"][1](state, rng)
    assert np.array_equal(same, state)
    red, blue = env.render_state(state), env.render_state(state, **options)
    assert np.array_equal(red[..., ::-1], blue) and not np.array_equal(red, blue)


def test_physical_state_reads_our_and_published_names():
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    for name in ("proprio", "pos_agent", "state"):
        found = env_class("two_room").physical_state({name: rows})
        np.testing.assert_array_equal(found["agent_position"], rows)


def test_expert_covers_the_world_as_published():
    """Published: mean length 92 of 100 steps; measured before: 98 % of cells visited."""
    data = DataConfig()
    episodes = [collect_episode(data, 64, i, render=False) for i in range(150)]
    lengths = np.array([len(e["action"]) for e in episodes])
    columns = {k: np.concatenate([e[k] for e in episodes]) for k in episodes[0]}
    figures = env_class("two_room").coverage(columns, lengths)
    assert 88 < lengths.mean() < 95 and lengths.max() == 101
    assert 0.33 < figures["reached_goal"] < 0.57
    assert figures["cells_visited"] > 0.93
    assert figures["crossed_door"] > 0.7


def test_random_is_uniform():
    env = make_env("two_room")
    policy = env.make_behaviour("random", np.random.default_rng(0))
    actions = np.array([policy.act(env) for _ in range(2000)])
    assert np.abs(actions).max() <= 1
    np.testing.assert_allclose(actions.std(axis=0), 1 / math.sqrt(3), atol=0.03)


def test_errors_name_what_is_known():
    with pytest.raises(ValueError, match=r"unknown env 'two_rom'.*'two_room'.*known: .*two_room"):
        make_env("two_rom")
    with pytest.raises(ValueError, match=r"image_size must be within 8\.\.224, got 300"):
        make_env("two_room", image_size=300)
    with pytest.raises(ValueError, match="collision must be endpoint or swept"):
        make_env("two_room", collision="soft")
    with pytest.raises(ValueError, match=r"'exprt'.*'expert'.*known: expert, random"):
        make_env("two_room").make_behaviour("exprt", np.random.default_rng(0))
    with pytest.raises(ValueError, match="must be finite"):
        make_env("two_room").step(np.array([np.nan, 0.0]))
    assert set(ENVS) >= {"two_room"}
