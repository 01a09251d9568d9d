import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm.agent import Agent
from lewm.config import Config, PlanningConfig
from lewm.control import run_planner, run_recorded
from lewm.data.clips import Normaliser
from lewm.envs.two_room import TwoRoomEnv
from lewm.manifest import Manifest, make_manifest
from lewm.methods import Method, make_method
from lewm.overrides import make_config
from lewm.planners import make_planner
from lewm.protocol import protocol_from_dict

TABLE = {
    "episodes": "held_out",
    "pre_solved": "dropped",
    "sampling": "one_per_episode",
    "options": {"collision": "swept"},
    "success": {"distance_px": 16.0},
    "hold": 1,
    "goal_offset": 25,
    "budget": 50,
}
SETTINGS = PlanningConfig(num_samples=16, num_elites=4, num_iterations=2, chunk=3)
NORMALISER = Normaliser(np.array([0.1, -0.2], np.float32), np.array([0.7, 0.6], np.float32))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def config() -> Config:
    return make_config(
        {
            "model.image_size": 16,
            "model.patch_size": 8,
            "model.width": 16,
            "model.depth": 1,
            "model.heads": 2,
            "model.mlp": 32,
            "model.latent_dim": 16,
            "model.projector_hidden": 32,
            "model.predictor_depth": 2,
            "model.predictor_heads": 2,
            "model.predictor_head_dim": 8,
            "model.predictor_mlp": 32,
        }
    )


@pytest.fixture(scope="module")
def agent(config) -> Agent:
    torch.manual_seed(0)
    method = make_method(config, 2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Agent(method, NORMALISER, torch.device("cpu"), 16, 16)


def manifest(num: int, **changes) -> Manifest:
    protocol = protocol_from_dict("two_room", "test", {**TABLE, **changes})
    return make_manifest(protocol, 42, num, Config().data, None)


def choose(whole: Manifest, ids: list[int]) -> Manifest:
    return dataclasses.replace(whole, pairs=tuple(whole.pairs[i] for i in ids))


def plan(pairs: Manifest, agent: Agent, settings: PlanningConfig = SETTINGS):
    return run_planner(pairs, make_planner(settings), settings, 5, agent)


@pytest.mark.parametrize("history", [1, 3])
def test_an_episode_does_not_depend_on_number_or_order_of_the_others(agent, history):
    settings = SETTINGS.model_copy(update={"history": history, "execute": 2})
    whole = manifest(7)
    together = plan(whole, agent, settings)
    assert len(set(together.final_distance.tolist())) == 7
    for ids in ([0], [4], [6, 2, 5, 0, 1, 3, 4], [5, 1]):
        part = plan(choose(whole, ids), agent, settings)
        for name in ("success", "final_distance", "steps_to_success", "initial_success"):
            np.testing.assert_array_equal(getattr(part, name), getattr(together, name)[ids])


def test_chunks_planned_in_turn_give_what_one_after_the_other_does(agent, monkeypatch):
    settings = SETTINGS.model_copy(update={"history": 3, "execute": 2})
    alone = plan(manifest(8), agent, settings)
    monkeypatch.setattr("lewm.control._chunks_at_once", lambda agent: 2)
    in_turn = plan(manifest(8), agent, settings)
    for name in ("success", "final_distance", "steps_to_success", "initial_success"):
        np.testing.assert_array_equal(getattr(in_turn, name), getattr(alone, name))


@pytest.mark.parametrize("planner", ["cem", "gradient"])
@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"compile": "default"}])
def test_costs_in_another_precision_or_compiled_are_near_the_plain_ones(
    agent, changes, planner, monkeypatch
):
    """Compiled for torch's own kernels: what the C++ ones round is `test_resume`'s to see, and slow."""
    compile_for = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("torch.compile", lambda call, mode: compile_for(call))
    actions = torch.randn(3, 7, 5, 10, generator=torch.Generator().manual_seed(3))
    costs = []
    for settings in (SETTINGS, SETTINGS.model_copy(update=changes)):
        settings = settings.model_copy(update={"planner": planner, "gradient_num_steps": 2})
        inner, priced = make_planner(settings), []

        def plan(cost, *given, inner=inner, priced=priced):
            priced.append(cost(actions))
            return inner.plan(cost, *given)

        outcome = run_planner(
            manifest(4), SimpleNamespace(plan=plan, raw=False), settings, 5, agent
        )
        assert np.isfinite(outcome.final_distance).all()
        costs.append(priced[0])
    tolerance = 0.05 if "precision" in changes else 1e-5
    torch.testing.assert_close(
        costs[1], costs[0], rtol=tolerance, atol=tolerance * costs[0].mean().item()
    )
    assert ("precision" in changes) == (not torch.allclose(costs[1], costs[0], rtol=1e-4))


def test_planning_again_gives_the_same_and_another_eval_seed_does_not(agent):
    pairs = manifest(3)
    first, second = (plan(pairs, agent).final_distance for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = plan(dataclasses.replace(pairs, eval_seed=43), agent).final_distance
    assert (first != other).all()


class Scripted:
    """Plans the same block of z-scored or raw actions for everybody."""

    def __init__(self, action: tuple[float, float], raw: bool) -> None:
        self.action, self.raw = action, raw
        self.calls = 0

    def plan(self, cost, generators, horizon, action_dim):
        self.calls += 1
        assert (cost is None) == self.raw
        block = torch.tensor(self.action).repeat(action_dim // 2)
        return block.expand(len(generators), horizon, action_dim).contiguous()


def test_plans_are_brought_back_from_z_scores_and_raw_ones_are_not(agent, monkeypatch):
    far, stepped = manifest(1, success={"distance_px": 1e-6}, budget=10), []
    monkeypatch.setattr(TwoRoomEnv, "step", lambda self, action: stepped.append(action))
    run_planner(far, Scripted((1.0, 2.0), raw=False), SETTINGS, 5, agent)
    np.testing.assert_allclose(np.array(stepped), np.tile([0.8, 1.0], (10, 1)), rtol=1e-6)
    stepped.clear()
    run_planner(far, Scripted((1.0, 2.0), raw=True), SETTINGS, 5)
    np.testing.assert_array_equal(np.array(stepped), np.tile([1.0, 2.0], (10, 1)))


def walk(hold: int = 1, budget: int = 50, gap: float = 30.0):
    """One pair whose goal lies `gap` px to the right of the start, walked at 5 px per step, and past it."""
    pairs = manifest(1, hold=hold, budget=budget)
    start, goal = np.array([30.0, 150.0]), np.array([30.0 + gap, 150.0])
    pair = dataclasses.replace(pairs.pairs[0], start_state=start, goal_state=goal)
    planner = Scripted((1.0, 0.0), raw=True)
    outcome = run_planner(dataclasses.replace(pairs, pairs=(pair,)), planner, SETTINGS, 5)
    return outcome, planner.calls


def test_success_is_the_first_step_within_the_distance_and_ends_the_episode():
    outcome, calls = walk()
    assert outcome.success.tolist() == [True]
    assert outcome.steps_to_success.tolist() == [3]
    assert outcome.final_distance.tolist() == [15.0]
    assert calls == 1


def test_hold_counts_consecutive_steps():
    outcome, _ = walk(hold=7)
    assert outcome.steps_to_success.tolist() == [9]
    outcome, calls = walk(hold=8)
    assert outcome.success.tolist() == [False] and outcome.steps_to_success.tolist() == [-1]
    assert calls == 2


def test_the_budget_ends_an_episode_in_the_middle_of_a_plan():
    outcome, calls = walk(budget=8, gap=60.0)
    assert outcome.success.tolist() == [False] and calls == 1
    assert outcome.final_distance.tolist() == [20.0]
    outcome, _ = walk(budget=9, gap=60.0)
    assert outcome.steps_to_success.tolist() == [9]


def test_oracle_solves_every_pair_and_standing_still_none():
    pairs = manifest(8, success={"distance_px": 8.0, "cross_room": True, "goal_side": True})
    oracle = run_recorded(pairs)
    assert oracle.success.all() and (oracle.steps_to_success <= 25).all()
    zero = PlanningConfig(planner="zero")
    still = run_planner(pairs, make_planner(zero), zero, 5)
    gaps = [np.linalg.norm(p.start_state - p.goal_state) for p in pairs.pairs]
    assert not still.success.any()
    np.testing.assert_allclose(still.final_distance, gaps)


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient"])
def test_a_known_world_model_reaches_the_goal(name):
    """The loop closed with the true dynamics as the cost: planning must work if the model does."""

    class Oracle(Method):
        def plan_cost(self, start_BTCHW, goal_B1CHW, past_actions_BTA=None):
            here, there = (_red_centre(x[:, -1]) for x in (start_BTCHW, goal_B1CHW))

            def cost(actions_BSHA):
                steps = actions_BSHA.unflatten(-1, (5, 2)).clamp(-1, 1)
                end = here.unsqueeze(1) + 5 * steps.sum((2, 3))
                return (end - there.unsqueeze(1)).square().sum(-1)

            return cost

    unit = Normaliser(np.zeros(2, np.float32), np.ones(2, np.float32))
    agent = Agent(Oracle(), unit, torch.device("cpu"), 64, 64)
    budget = {"num_samples": 64, "num_elites": 8, "num_iterations": 8, "gradient_num_starts": 16}
    settings = SETTINGS.model_copy(update={"planner": name, **budget})
    pairs = manifest(4)
    near = [
        dataclasses.replace(
            p, start_state=np.array([40.0 + 9 * i, 120.0]), goal_state=np.array([60.0, 170.0])
        )
        for i, p in enumerate(pairs.pairs)
    ]
    pairs = dataclasses.replace(pairs, pairs=tuple(near))
    outcome = run_planner(pairs, make_planner(settings), settings, 5, agent)
    assert outcome.success.all()


def test_gradients_stop_at_the_actions_and_weights_stay_trainable(agent, monkeypatch):
    """The closed loop runs without gradients; the planner that needs them gets them, weights none."""
    needed = []
    rollout = type(agent.method).rollout

    def watch(self, z_BTD, actions_BSHA):
        needed.append([p.requires_grad for p in self.parameters()])
        return rollout(self, z_BTD, actions_BSHA)

    monkeypatch.setattr(type(agent.method), "rollout", watch)
    frozen = next(agent.method.parameters())
    monkeypatch.setattr(frozen, "requires_grad", False)
    settings = SETTINGS.model_copy(update={"planner": "gradient", "gradient_num_starts": 4})
    first, second = (plan(manifest(3), agent, settings).final_distance for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(needed) > 60 and not np.any(needed)
    rest = list(agent.method.parameters())[1:]
    assert not frozen.requires_grad and all(p.requires_grad for p in rest)
    assert all(p.grad is None for p in rest)


def _red_centre(frames_BCHW: torch.Tensor) -> torch.Tensor:
    """Centre of the red disc in px of the 224-px picture."""
    red = (frames_BCHW[:, 0] - frames_BCHW[:, 2]).clamp(min=0)
    red = torch.where(red > 0.5, red, 0.0)
    grid = (torch.arange(red.shape[-1]) + 0.5) * 224 / red.shape[-1]
    total = red.sum((1, 2))
    return torch.stack(
        [(red.sum(1) * grid).sum(-1) / total, (red.sum(2) * grid).sum(-1) / total], -1
    )


def test_a_model_planner_without_a_model_is_refused():
    with pytest.raises(ValueError, match="searches with a model"):
        run_planner(manifest(1), make_planner(SETTINGS), SETTINGS, 5)
