import pytest
import torch

from lewm.config import PlanningConfig
from lewm.planners import PLANNERS, make_planner

CONFIG = PlanningConfig(num_samples=64, num_elites=8, num_iterations=6)
H, A = 5, 4


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + index) for index in range(count)]


def targets(count: int) -> torch.Tensor:
    return torch.randn(count, H, A, generator=torch.Generator().manual_seed(99)) * 2


def quadratic(goal_BHA: torch.Tensor):
    return lambda actions_BSHA: (actions_BSHA - goal_BHA.unsqueeze(1)).square().sum((2, 3))


def reference_cem(goal_HA: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """One episode, written from the published description."""
    mean, std = torch.zeros(H, A), torch.ones(H, A)
    for _ in range(CONFIG.num_iterations):
        samples = [mean + std * noise for noise in torch.randn(64, H, A, generator=rng)]
        samples[0] = mean
        ranked = sorted(samples, key=lambda plan: float((plan - goal_HA).square().sum()))
        elites = torch.stack(ranked[:8])
        mean = elites.sum(0) / 8
        std = ((elites - mean).square().sum(0) / 7).sqrt()
    return mean


def test_cem_is_the_published_loop():
    goal = targets(3)
    plan = make_planner(CONFIG).plan(quadratic(goal), generators(3), H, A)
    for episode, rng in enumerate(generators(3)):
        torch.testing.assert_close(plan[episode], reference_cem(goal[episode], rng))


def test_cem_plans_do_not_depend_on_company():
    goal = targets(50)
    together = make_planner(CONFIG).plan(quadratic(goal), generators(50), H, A)
    for episode in (0, 17, 49):
        alone = make_planner(CONFIG).plan(
            quadratic(goal[episode : episode + 1]), generators(1, episode), H, A
        )
        assert torch.equal(alone[0], together[episode])


def test_cem_beats_random_at_the_same_number_of_samples():
    goal = targets(20)
    cost = quadratic(goal)
    found = cost(make_planner(CONFIG).plan(cost, generators(20), H, A).unsqueeze(1))[:, 0]
    tried = torch.stack([torch.randn(64 * 6, H, A, generator=rng) for rng in generators(20)])
    assert (found < cost(tried).min(1).values).all()


def test_cem_keeps_the_current_mean_as_a_candidate_and_clips_nothing():
    seen = []

    def cost(actions_BSHA):
        seen.append(actions_BSHA)
        return (actions_BSHA - 5.0).square().sum((2, 3))

    settings = PlanningConfig(num_samples=64, num_elites=8, num_iterations=40)
    plan = make_planner(settings).plan(cost, generators(1), 1, 1)
    assert torch.equal(seen[0][0, 0], torch.zeros(1, 1))
    best = seen[0][0, cost(seen[0])[0].topk(8, largest=False).indices]
    torch.testing.assert_close(seen[1][0, 0], best.mean(0))
    assert plan.abs().max() > 3


def test_generators_are_advanced_so_that_a_second_plan_draws_anew():
    (rng,) = generators(1)
    planner = make_planner(CONFIG)
    first, second = (planner.plan(quadratic(targets(1)), [rng], H, A) for _ in range(2))
    assert not torch.equal(first, second)


def test_random_fills_the_raw_box_and_zero_is_zero():
    random = make_planner(PlanningConfig(planner="random"))
    plan = random.plan(None, generators(400), H, A)
    assert random.raw and plan.shape == (400, H, A)
    assert -1 <= plan.min() < -0.99 and 0.99 < plan.max() <= 1
    assert abs(float(plan.mean())) < 0.02 and abs(float(plan.var()) - 1 / 3) < 0.02
    assert torch.equal(random.plan(None, generators(1, 7), H, A)[0], plan[7])
    zero = make_planner(PlanningConfig(planner="zero"))
    assert zero.raw and torch.equal(zero.plan(None, generators(2), H, A), torch.zeros(2, H, A))


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_keeps_the_contract(name):
    planner = make_planner(PlanningConfig(planner=name, num_samples=8, num_elites=2))
    plan = planner.plan(None if planner.raw else quadratic(targets(3)), generators(3), H, A)
    assert plan.shape == (3, H, A) and plan.dtype == torch.float32 and plan.isfinite().all()


def test_unknown_planner_names_the_nearest_and_cem_wants_a_cost():
    with pytest.raises(ValueError, match=r"unknown planner 'cemm' \(did you mean 'cem'\?\)"):
        make_planner(PlanningConfig(planner="cemm"))
    with pytest.raises(ValueError, match="needs a cost"):
        make_planner(CONFIG).plan(None, generators(1), H, A)
