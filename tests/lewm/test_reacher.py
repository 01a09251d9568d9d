"""Reacher: the authors' trajectories and frames, exact replay, its policies and rules."""

import os
import subprocess
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
from lewm.envs.reacher import ReacherEnv, fingertip
from lewm.protocol import protocol_from_dict
from pipeline.shipped import load_protocols

GOLDENS = Path(__file__).parent.parent / "goldens"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "reacher.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def env():
    made = make_env("reacher")
    yield made
    made.close()


def rule(name):
    return protocol_from_dict("reacher", name, load_protocols("reacher")[name])


def test_states_follow_the_authors_trajectories(golden, env):
    for start, actions, states in zip(golden["init"], golden["actions"], golden["states"]):
        env.set_state(start)
        found = [env.get_state(), *(env.step(action)[0] for action in actions)]
        np.testing.assert_allclose(found, states, atol=1e-6)


def test_success_is_the_published_rule(golden, env):
    paper = rule("paper")
    found = np.zeros_like(golden["success"])
    for k, states in enumerate(golden["states"]):
        env.set_goal(np.concatenate([golden["goal"][k], [0, 0]]))
        for t, state in enumerate(states[1:]):
            env.set_state(state)
            found[k, t] = env.success(paper)
    assert (found == golden["success"]).all()


def test_frames_are_the_authors(golden, env):
    for k in (0, 3):
        for state, frame in zip(golden["states"][k][golden["frame_steps"]], golden["frames"][k]):
            drawn = env.render_state(state).astype(int)
            assert np.abs(drawn - frame).mean() < 2


def test_fast_frames_differ_little_and_sizes_are_as_asked(golden, env):
    state = golden["states"][0][7]
    fast = make_env("reacher", render_quality="fast")
    assert np.abs(fast.render_state(state).astype(int) - env.render_state(state)).mean() < 2
    small = make_env("reacher", image_size=64)
    small.set_state(state)
    assert small.render().shape == (64, 64, 3) and small.render().std() > 10
    fast.close(), small.close()


def test_published_rows_are_drawn_as_published(env):
    with EpisodeFile(GOLDENS / "datasets" / "published_reacher.h5") as file:
        columns = {name: file.read(name) for name in file.columns if name != "pixels"}
        for row in (0, 60):
            frame = env.render_state(env.state_from_columns(columns, row)).astype(int)
            assert np.abs(frame - file.read("pixels", np.array([row]))[0]).mean() < 2
        np.testing.assert_allclose(fingertip(columns["qpos"]), columns["finger_pos"], atol=1e-6)


def test_a_stored_state_replays_bit_for_bit(env):
    """Also at the wrist's limit, where the solver's warm start would matter."""
    env.reset(seed=3)
    env.set_state(np.array([0.3, 2.75, 0.0, 4.0]))
    rng = np.random.default_rng(0)
    for _ in range(10):
        env.step(rng.uniform(-1, 1, 2))
    start, actions = env.get_state(), rng.uniform(-1, 1, (25, 2))
    actions[:5, 1] = 1.0
    first = [env.step(action)[0] for action in actions]
    other = make_env("reacher")
    columns = {name: value[None] for name, value in env.state_columns(start).items()}
    other.set_state(ReacherEnv.state_from_columns(columns, 0))
    assert np.array_equal(first, [other.step(action)[0] for action in actions])


def test_gymnasium_contract_and_workers_without_rendering():
    single = gymnasium.make("lewm/Reacher-v0")
    check_env(single.unwrapped, skip_render_check=True)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 2, 2)).astype(np.float32)
    vector = gymnasium.vector.AsyncVectorEnv([lambda: make_env("reacher")] * 2)
    start, _ = vector.reset(seed=[1, 2])
    for action in actions:
        found = vector.step(action)[0]
    vector.close()
    for slot in range(2):
        alone = make_env("reacher")
        assert np.array_equal(alone.reset(seed=slot + 1)[0], start[slot])
        for action in actions:
            state = alone.step(action[slot])[0]
        assert np.array_equal(state, found[slot])


def test_rules_of_the_protocols(env):
    goal = np.array([0.5, 1.0, 0.0, 0.0])
    env.set_goal(goal)
    turned = goal + np.array([2 * np.pi, 0, 0, 0])
    for name, pose, expected in (
        ("paper", goal + np.array([0.04, -0.04, 1, 1]), True),
        ("paper", goal + np.array([0.06, 0, 0, 0]), False),
        ("paper", turned, False),
        ("moderate", turned, True),
        ("moderate", goal + np.array([0, 2 * np.pi, 0, 0]), False),
        ("strict", turned, True),
        ("strict", goal + np.array([0.05, 0.0, 0, 0]), False),
    ):
        env.set_state(pose)
        assert env.success(rule(name)) is expected, (name, pose)


def test_policies_are_functions_of_the_seed_and_explore():
    data = DataConfig(env="reacher", policy="random+ik", max_steps=100)
    episodes = [collect_episode(data, 16, index, render=False) for index in range(12)]
    again = collect_episode(data, 16, 5, render=False)
    assert all(np.array_equal(again[k], episodes[5][k], equal_nan=True) for k in again)
    assert all(len(e["action"]) == 101 and np.abs(e["action"][:-1]).max() <= 1 for e in episodes)
    columns = {k: np.concatenate([e[k] for e in episodes]) for k in episodes[0]}
    figures = ReacherEnv.coverage(columns, np.full(12, 101))
    assert figures["joint_cells_visited"] > 0.5 and figures["tip_cells_visited"] > 0.6
    targets = ReacherEnv.physical_state(columns)
    assert {k: v.shape[1] for k, v in targets.items()} == {
        "joint_angles": 4,
        "joint_velocities": 2,
        "fingertip": 2,
    }


def test_inverse_kinematics_reaches_its_places():
    """Touched to 1.5 cm, the suite's own success, within 20 steps; given up only rarely."""
    env = make_env("reacher")
    policy = env.make_behaviour("ik", np.random.default_rng(0))
    env.reset(seed=0)
    policy.reset(env)
    touched, last = [], None
    for _ in range(3000):
        action = policy.act(env)
        if policy._wanted is not last:
            last = policy._wanted
            touched.append(False)
        env.step(action)
        tips = fingertip(np.stack([last, env.get_state()[:2]]))
        if policy._steps <= 20 and np.linalg.norm(tips[0] - tips[1]) < 0.015:
            touched[-1] = True
    assert len(touched) > 3000 / 22 and np.mean(touched[:-1]) > 0.85


def test_violations(env):
    rng = np.random.default_rng(0)
    state = np.array([0.2, 0.4, 1.0, 1.0])
    after, options = env.violations()["teleport"][1](state, rng)
    tips = fingertip(np.stack([state[:2], after[:2]]))
    assert np.linalg.norm(tips[0] - tips[1]) >= 0.1 and options == {}
    same, options = env.violations()["colour"][1](state, rng)
    assert np.array_equal(same, state)
    usual, red = env.render_state(state).astype(int), env.render_state(same, **options).astype(int)
    changed = np.abs(usual - red).max(-1) > 20
    assert 0.005 < changed.mean() < 0.2
    assert np.array_equal(env.render_state(state), usual)


DRAW = """
import ctypes, ctypes.util, os, tempfile
hidden = os.environ["HIDDEN"].split()
find, load = ctypes.util.find_library, ctypes.CDLL.__init__
def init(self, name, *args, **options):
    if any(part in str(name) for part in hidden):
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *args, **options)
ctypes.util.find_library = lambda name: None if any(part in name for part in hidden) else find(name)
ctypes.CDLL.__init__ = init
folder = tempfile.TemporaryDirectory()  # cleaned at exit, in an order that a context must survive
import numpy as np
from lewm.envs import make_env
env = make_env("reacher", image_size=32)
env.reset(seed=0), env.step(np.zeros(2))
try: print("drawn", env.render().std() > 10)
except ValueError as error: print(error)
"""


@pytest.mark.parametrize(
    ("hidden", "asked", "says"),
    [
        ("EGL OSMesa", None, "neither egl nor osmesa gives it here"),
        ("EGL", "egl", "MUJOCO_GL=egl does not give it here"),
        ("OSMesa", "osmesa", "MUJOCO_GL=osmesa does not give it here"),
        ("none", "disabled", "MUJOCO_GL=disabled does not give it here"),
        ("none", "nonsense", "MUJOCO_GL=nonsense does not give it here"),
        ("EGL", None, "drawn True"),
        ("none", None, "drawn True"),
    ],
)
def test_it_steps_without_opengl_and_says_in_one_line_what_drawing_needs(hidden, asked, says):
    """Libraries are hidden from a process; OSMesa draws where EGL is missing; nothing is said at exit."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    }
    environment |= {"HIDDEN": hidden} | ({"MUJOCO_GL": asked} if asked else {})
    done = subprocess.run(
        [sys.executable, "-c", DRAW], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert says in done.stdout
    if "drawn" not in says:
        assert "libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6" in done.stdout
        assert "set MUJOCO_GL" in done.stdout


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_env("reacher", image_size=300), "image_size must be within"),
        (lambda: make_env("reacher", render_quality="best"), "exact or fast"),
        (lambda: make_env("reacher").step(np.zeros(3)), "2 finite numbers"),
        (lambda: make_env("reacher").step(np.array([0.0, np.nan])), "2 finite numbers"),
        (lambda: make_env("reacher").set_state(np.zeros(3)), "4 finite numbers"),
        (lambda: make_env("reacher").set_state(np.full(4, np.nan)), "4 finite numbers"),
        (lambda: make_env("reacher").set_goal(np.zeros(2)), "4 finite numbers"),
        (lambda: make_env("reacher").render_state(np.zeros(4), colour=1), "render options"),
        (lambda: ReacherEnv.state_from_columns({"qpos": np.zeros((3, 2))}, 0), "no column qvel"),
        (
            lambda: make_env("reacher").make_behaviour("random+ki", np.random.default_rng(0)),
            "did you mean 'ik'",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_missing_simulator_names_the_extra():
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['mujoco'] = None\n"
            "from lewm.envs import make_env\n"
            "try: make_env('reacher')\n"
            "except ValueError as error: print(error)",
        ],
        capture_output=True,
        text=True,
    )
    assert "lewm-sweep[envs]" in found.stdout and "mujoco" in found.stdout, found.stderr
