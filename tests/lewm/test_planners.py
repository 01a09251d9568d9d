"""Laws of every planner, and each planner against a reference written out in plain numbers."""

import math

import pytest
import torch

from lewm.config import PlanningConfig
from lewm.methods import make_method
from lewm.overrides import make_config
from lewm.planners import PLANNERS, make_planner
from lewm.planners.gradient import Gradient
from lewm.planners.icem import ICEM, noise_filter

H, A = 5, 4
BUDGET = {"num_samples": 64, "num_elites": 8, "num_iterations": 6, "gradient_num_starts": 12}
"""Laid over the defaults; the gradient planner takes its 30 steps."""
SEARCHING = [name for name in PLANNERS if name not in ("random", "zero")]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def planner(name, **settings):
    return make_planner(PlanningConfig(planner=name, **{**BUDGET, **settings}))


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + index) for index in range(count)]


def targets(count):
    return torch.randn(count, H, A, generator=torch.Generator().manual_seed(99)) * 2


def quadratic(goal_BHA):
    return lambda actions_BSHA: (actions_BSHA - goal_BHA.unsqueeze(1)).square().sum((2, 3))


def plan(name, cost, count=3, first=0, **settings):
    return planner(name, **settings).plan(cost, generators(count, first), H, A)


# every planner


@pytest.mark.parametrize("name", PLANNERS)
def test_plans_have_the_contracts_shape_and_dtype_and_carry_no_graph(name):
    found = plan(name, None if planner(name).raw else quadratic(targets(3)))
    assert found.shape == (3, H, A) and found.dtype == torch.float32
    assert found.isfinite().all() and not found.requires_grad


@pytest.mark.parametrize("name", PLANNERS)
def test_the_same_generator_state_gives_the_same_plan_and_the_next_another(name):
    cost, streams = quadratic(targets(3)), generators(3)
    first = planner(name).plan(cost, streams, H, A)
    assert torch.equal(plan(name, cost), first)
    second = planner(name).plan(cost, streams, H, A)
    assert torch.equal(first, second) == (name == "zero")


@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_does_not_depend_on_how_many_others_are_made_with_it(name):
    goal = targets(50)
    together = plan(name, quadratic(goal), count=50)
    for episode in (0, 17, 49):
        alone = plan(name, quadratic(goal[episode : episode + 1]), count=1, first=episode)
        assert torch.equal(alone[0], together[episode])


@pytest.mark.parametrize("name", ["random", "zero"])
def test_raw_planners_never_ask_for_a_cost(name):
    def cost(actions_BSHA):
        raise AssertionError("asked")

    assert planner(name).raw and torch.equal(plan(name, cost), plan(name, None))


@pytest.mark.parametrize("name", SEARCHING)
def test_searching_planners_ask_with_batches_of_samples_and_refuse_to_go_without(name):
    shapes, goal = [], targets(3)

    def cost(actions_BSHA):
        shapes.append(tuple(actions_BSHA.shape))
        return quadratic(goal)(actions_BSHA)

    assert not planner(name).raw
    plan(name, cost)
    assert {(shape[0], *shape[2:]) for shape in shapes} == {(3, H, A)}
    with pytest.raises(ValueError, match=f"planner '{name}' needs a cost"):
        plan(name, None)


@pytest.mark.parametrize("name", SEARCHING)
def test_searching_beats_as_many_random_samples(name):
    goal, counts = targets(20), []

    def cost(actions_BSHA):
        counts.append(actions_BSHA.shape[1])
        return quadratic(goal)(actions_BSHA)

    found = quadratic(goal)(plan(name, cost, count=20).unsqueeze(1))[:, 0]
    tried = torch.stack([torch.randn(sum(counts), H, A, generator=g) for g in generators(20)])
    assert (found < quadratic(goal)(tried).min(dim=1).values).all()


# costs that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", SEARCHING)
def test_candidates_without_a_finite_cost_are_never_chosen_and_trouble_no_other_episode(name, bad):
    goal = targets(3)
    goal[1, 0, 0] = 3.0

    def cost(actions_BSHA):
        costs_BS = quadratic(goal)(actions_BSHA)
        forbidden_BS = actions_BSHA[:, :, 0, 0] > 0.1
        forbidden_BS = forbidden_BS & torch.tensor([False, True, False]).unsqueeze(1)
        return costs_BS.where(~forbidden_BS, bad)

    free, found = plan(name, quadratic(goal)), plan(name, cost)
    assert torch.equal(found[[0, 2]], free[[0, 2]])
    assert free[1, 0, 0] > 0.2
    assert found[1].isfinite().all() and found[1, 0, 0] <= 0.1


@pytest.mark.parametrize("name", SEARCHING)
def test_an_episode_with_few_finite_costs_is_planned_with_those_and_with_none_gets_zeros(name):
    goal, seen = targets(3), []

    def cost(actions_BSHA):
        costs_BS = quadratic(goal)(actions_BSHA)
        allowed_BS = torch.ones_like(costs_BS, dtype=torch.bool)
        allowed_BS[1, 3:], allowed_BS[2] = False, False
        seen.append(actions_BSHA[1, :3].detach().clone())
        return costs_BS.where(allowed_BS, math.nan)

    settings = {"num_iterations": 1, "icem_momentum": 0.0, "mppi_temperature": 20.0}
    found = plan(name, cost, **settings)
    assert torch.equal(found[0], plan(name, quadratic(goal), **settings)[0])
    assert torch.equal(found[2], torch.zeros(H, A))
    costs = quadratic(goal[1:2])(seen[-1].unsqueeze(0))[0]
    weights = torch.softmax(-costs / 20, dim=0)
    expected = {
        "cem": seen[-1].mean(0),
        "mppi": (weights[:, None, None] * seen[-1]).sum(0),
        "icem": seen[-1][costs.argmin()],
        "gradient": seen[-1][costs.argmin()],
    }
    torch.testing.assert_close(found[1], expected[name])


def test_one_elite_moves_the_mean_and_leaves_the_spread():
    seen = []

    def cost(actions_BSHA):
        seen.append(actions_BSHA)
        costs_BS = torch.full(actions_BSHA.shape[:2], math.nan)
        costs_BS[:, 5] = 1.0
        return costs_BS

    plan("cem", cost, count=1, num_iterations=2, num_samples=5000)
    torch.testing.assert_close(seen[1][0, 0], seen[0][0, 5])
    torch.testing.assert_close(seen[1][0].std(0), torch.ones(H, A), atol=0.05, rtol=0)


# CEM


def scalar_cem(goal, rng, num_samples, num_elites, num_iterations):
    """One episode, written from the published description with nothing but numbers."""
    places = [(h, a) for h in range(H) for a in range(A)]
    mean, std = dict.fromkeys(places, 0.0), dict.fromkeys(places, 1.0)
    for _ in range(num_iterations):
        noise = torch.randn(num_samples, H, A, generator=rng).tolist()
        candidates = [{p: mean[p] + std[p] * n[p[0]][p[1]] for p in places} for n in noise]
        candidates[0] = dict(mean)
        elites = sorted(
            candidates, key=lambda c: sum((c[p] - goal[p[0]][p[1]]) ** 2 for p in places)
        )
        elites = elites[:num_elites]
        for p in places:
            mean[p] = sum(elite[p] for elite in elites) / num_elites
            square = sum((elite[p] - mean[p]) ** 2 for elite in elites)
            std[p] = math.sqrt(square / (num_elites - 1))
    return torch.tensor([[mean[h, a] for a in range(A)] for h in range(H)])


def test_cem_is_the_published_loop():
    goal = targets(3)
    found = plan("cem", quadratic(goal))
    for episode, rng in enumerate(generators(3)):
        expected = scalar_cem(goal[episode].tolist(), rng, 64, 8, 6)
        torch.testing.assert_close(found[episode], expected, atol=1e-5, rtol=1e-5)


def test_cem_keeps_the_current_mean_as_a_candidate_and_clips_nothing():
    seen = []

    def cost(actions_BSHA):
        seen.append(actions_BSHA)
        return (actions_BSHA - 5.0).square().sum((2, 3))

    found = planner("cem", num_iterations=40).plan(cost, generators(1), 1, 1)
    assert torch.equal(seen[0][0, 0], torch.zeros(1, 1))
    best = seen[0][0, cost(seen[0])[0].topk(8, largest=False).indices]
    torch.testing.assert_close(seen[1][0, 0], best.mean(0))
    assert found.abs().max() > 3


# iCEM


@pytest.mark.parametrize("horizon", [1, 2, 5, 8])
def test_noise_has_variance_one_and_more_beta_makes_it_slower(horizon):
    white, coloured = noise_filter(horizon, 0.0), noise_filter(horizon, 2.0)
    torch.testing.assert_close(white, torch.eye(horizon))
    for matrix in (coloured, noise_filter(horizon, 0.5)):
        torch.testing.assert_close((matrix @ matrix.T).diagonal(), torch.ones(horizon))
    if horizon > 2:
        lagged = [
            float((m @ m.T).diagonal(1).mean())
            for m in (white, noise_filter(horizon, 1.0), coloured, noise_filter(horizon, 4.0))
        ]
        assert lagged == sorted(lagged) and lagged[0] == pytest.approx(0, abs=1e-6)


def test_noise_has_the_power_spectrum_it_is_named_after():
    white = torch.randn(64, 20_000, generator=torch.Generator().manual_seed(0))
    power = torch.fft.rfft(noise_filter(64, 2.0) @ white, dim=0).abs().square().mean(1)
    for low, high in ((1, 2), (2, 8), (4, 32)):
        assert float(power[low] / power[high]) == pytest.approx((high / low) ** 2, rel=0.1)


def test_icem_asks_for_fewer_samples_each_time_and_never_fewer_than_twice_the_elites():
    def counts(**settings):
        asked = []

        def cost(actions_BSHA):
            asked.append(actions_BSHA.shape[1])
            return actions_BSHA.square().sum((2, 3))

        plan("icem", cost, **settings)
        return asked

    assert counts() == [64, 51, 40, 32, 26, 20]
    assert counts(icem_decay=2.0) == [64, 32, 16, 16, 16, 16]
    assert counts(icem_decay=1.0) == [64] * 6
    assert counts(num_elites=40) == [64] * 6


def reference_icem(goal_HA, rng, settings):
    """One episode, step by step as in Algorithm 1 of the publication."""
    mean, std = torch.zeros(H, A), torch.ones(H, A)
    kept, priced = [], []
    for iteration in range(6):
        count = max(int(64 / settings["icem_decay"] ** iteration), 2 * 8)
        noise = torch.randn(count, H, A, generator=rng)
        noise = torch.einsum("ht,sta->sha", noise_filter(H, settings["icem_beta"]), noise)
        fresh = [mean + std * one for one in noise]
        if iteration == 5:
            fresh[0] = mean
        priced += fresh
        ranked = sorted(kept + fresh, key=lambda one: float((one - goal_HA).square().sum()))
        elites, kept = torch.stack(ranked[:8]), ranked[: int(8 * settings["icem_keep_frac"])]
        old = settings["icem_momentum"]
        mean = old * mean + (1 - old) * elites.mean(0)
        std = old * std + (1 - old) * elites.std(0)
    return min(priced, key=lambda one: float((one - goal_HA).square().sum()))


@pytest.mark.parametrize(
    "settings",
    [
        {"icem_beta": 2.0, "icem_keep_frac": 0.3, "icem_decay": 1.25, "icem_momentum": 0.1},
        {"icem_beta": 0.5, "icem_keep_frac": 1.0, "icem_decay": 1.6, "icem_momentum": 0.5},
        {"icem_beta": 0.0, "icem_keep_frac": 0.0, "icem_decay": 1.0, "icem_momentum": 0.0},
    ],
)
def test_icem_is_the_published_loop(settings):
    goal = targets(2)
    found = plan("icem", quadratic(goal), count=2, **settings)
    for episode, rng in enumerate(generators(2)):
        expected = reference_icem(goal[episode], rng, settings)
        torch.testing.assert_close(found[episode], expected, atol=1e-5, rtol=1e-5)


def recording(cost, seen):
    def recorded(actions_BSHA):
        seen.append(actions_BSHA.detach().clone())
        return cost(actions_BSHA)

    return recorded


def test_icem_carries_elites_over_without_pricing_them_again():
    """After one look, the best of the first iteration are the only ones with a finite cost."""
    goal, seen = targets(1), []

    def cost(actions_BSHA):
        seen.append(actions_BSHA)
        costs_BS = quadratic(goal)(actions_BSHA)
        return costs_BS if len(seen) == 1 else torch.full_like(costs_BS, math.nan)

    plan("icem", cost, count=1, num_iterations=3, icem_keep_frac=0.5, icem_momentum=0.0)
    ranked = seen[0][0, quadratic(goal)(seen[0])[0].argsort()]
    torch.testing.assert_close(seen[2][0, 0], ranked[:4].mean(0))


def test_icem_momentum_holds_on_to_the_old_mean():
    goal = targets(1)
    seen = {0.0: [], 0.25: []}
    for momentum, into in seen.items():
        cost = recording(quadratic(goal), into)
        plan("icem", cost, count=1, num_iterations=2, icem_momentum=momentum)
    torch.testing.assert_close(seen[0.25][1][0, 0], 0.75 * seen[0.0][1][0, 0])


@pytest.mark.parametrize("keep_frac", [0.0, 0.3])
def test_icem_returns_the_cheapest_of_all_it_priced(keep_frac):
    goal, seen = targets(3), []
    found = plan("icem", recording(quadratic(goal), seen), icem_keep_frac=keep_frac)
    cheapest = quadratic(goal)(torch.cat(seen, dim=1)).min(dim=1).values
    torch.testing.assert_close(quadratic(goal)(found.unsqueeze(1))[:, 0], cheapest)


# MPPI


def scalar_mppi(goal, rng, num_samples, num_iterations, temperature, std):
    places = [(h, a) for h in range(H) for a in range(A)]
    mean = dict.fromkeys(places, 0.0)
    for _ in range(num_iterations):
        noise = torch.randn(num_samples, H, A, generator=rng).tolist()
        candidates = [{p: mean[p] + std * n[p[0]][p[1]] for p in places} for n in noise]
        candidates[0] = dict(mean)
        costs = [sum((c[p] - goal[p[0]][p[1]]) ** 2 for p in places) for c in candidates]
        weights = [math.exp((min(costs) - cost) / temperature) for cost in costs]
        mean = {
            p: sum(w * c[p] for w, c in zip(weights, candidates, strict=True)) / sum(weights)
            for p in places
        }
    return torch.tensor([[mean[h, a] for a in range(A)] for h in range(H)])


@pytest.mark.parametrize(("temperature", "std"), [(0.5, 1.0), (10.0, 0.7)])
def test_mppi_is_the_softmax_average(temperature, std):
    goal = targets(2)
    settings = {"mppi_temperature": temperature, "mppi_std": std}
    found = plan("mppi", quadratic(goal), count=2, **settings)
    for episode, rng in enumerate(generators(2)):
        expected = scalar_mppi(goal[episode].tolist(), rng, 64, 6, temperature, std)
        torch.testing.assert_close(found[episode], expected, atol=1e-4, rtol=1e-4)


def test_a_cold_mppi_follows_the_best_sample_and_a_hot_one_the_average():
    goal, seen = targets(1), []
    cost = recording(quadratic(goal), seen)
    cold, hot = (
        plan("mppi", cost, count=1, num_iterations=1, mppi_temperature=t) for t in (1e-4, 1e6)
    )
    torch.testing.assert_close(cold[0], seen[0][0, quadratic(goal)(seen[0])[0].argmin()])
    torch.testing.assert_close(hot[0], seen[1][0].mean(0), atol=1e-4, rtol=1e-3)


# gradient


def scalar_adam(start, goal, num_steps, lr):
    x, first, second = start, 0.0, 0.0
    for step in range(1, num_steps + 1):
        slope = 2 * (x - goal)
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        x -= lr * first / (1 - 0.9**step) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return x


def test_gradient_is_adam_from_zero_and_from_normal_starts():
    goal, seen = targets(2), []
    cost = recording(quadratic(goal), seen)
    settings = {"gradient_num_starts": 3, "gradient_num_steps": 6, "gradient_lr": 0.05}
    found = plan("gradient", cost, count=2, **settings)
    assert len(seen) == 6 + 1
    assert torch.equal(seen[0][:, 0], torch.zeros(2, H, A))
    drawn = torch.stack([torch.randn(3, H, A, generator=g) for g in generators(2)])
    assert torch.equal(seen[0][:, 1:], drawn[:, 1:])
    expected = torch.tensor(
        [
            scalar_adam(start, end, 6, 0.05)
            for start, end in zip(
                seen[0].flatten().tolist(),
                goal.unsqueeze(1).expand_as(drawn).flatten().tolist(),
                strict=True,
            )
        ]
    ).reshape(2, 3, H, A)
    torch.testing.assert_close(seen[-1], expected, atol=1e-5, rtol=1e-5)
    best = quadratic(goal)(seen[-1]).argmin(dim=1)
    assert torch.equal(found, seen[-1][torch.arange(2), best])


def test_gradient_is_enabled_inside_no_grad_and_only_there():
    with torch.no_grad():
        found = plan("gradient", quadratic(targets(3)), gradient_num_steps=100)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, targets(3), atol=0.3, rtol=0)


def test_a_gradient_that_is_not_finite_counts_as_zero():
    goal = targets(2)

    def cost(actions_BSHA):
        cusp_BS = actions_BSHA[:, :, 0, 0].abs().sqrt()
        return quadratic(goal)(actions_BSHA) + cusp_BS

    found = plan("gradient", cost, count=2, gradient_num_starts=1)
    assert torch.equal(found[:, 0, 0], torch.zeros(2))
    moved = plan("gradient", quadratic(goal), count=2, gradient_num_starts=1)
    torch.testing.assert_close(found.flatten(1)[:, 1:], moved.flatten(1)[:, 1:])


def test_gradient_wants_a_cost_that_can_be_differentiated():
    with pytest.raises(ValueError, match="needs a cost that can be differentiated"):
        plan("gradient", lambda actions_BSHA: actions_BSHA.detach().square().sum((2, 3)))


@pytest.mark.parametrize("history", [1, 3])
def test_gradients_of_a_models_cost_are_those_of_small_steps(history):
    """Through action encoder, modulations and the moving window of `rollout`."""
    method = make_method(
        make_config(
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
        ),
        action_dim=2,
    )
    method = method.double().eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng).double() * 0.2)
        frames = torch.randn(1, history + 1, 3, 16, 16, generator=rng).double()
        past = torch.randn(1, history - 1, 10, generator=rng).double() if history > 1 else None
        cost = method.plan_cost(frames[:, :-1], frames[:, -1:], past)
    actions = torch.randn(1, 2, H, 10, generator=rng).double().requires_grad_()
    assert torch.autograd.gradcheck(cost, (actions,), fast_mode=True)


# random and zero


def test_random_fills_the_raw_box_and_zero_is_zero():
    drawn = plan("random", None, count=400)
    assert -1 <= drawn.min() < -0.99 and 0.99 < drawn.max() <= 1
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.var()) - 1 / 3) < 0.02
    assert torch.equal(plan("zero", None), torch.zeros(3, H, A))


# settings


def test_an_unknown_planner_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown planner 'cemm' \(did you mean 'cem'\?\)"):
        planner("cemm")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_elites": 31, "num_samples": 30}, "num_elites 31 is above planning.num_samples 30"),
        ({"icem_beta": -1.0}, "planning.icem_beta: .*greater than or equal to 0, got -1.0"),
        ({"icem_keep_frac": 1.5}, "planning.icem_keep_frac: .*less than or equal to 1, got 1.5"),
        ({"icem_keep_frac": -0.1}, "planning.icem_keep_frac: .*or equal to 0, got -0.1"),
        ({"icem_decay": 0.5}, "planning.icem_decay: .*greater than or equal to 1, got 0.5"),
        ({"icem_momentum": 1.0}, "planning.icem_momentum: .*less than 1, got 1.0"),
        ({"mppi_temperature": 0.0}, "planning.mppi_temperature: .*greater than 0, got 0.0"),
        ({"mppi_temperature": math.nan}, "planning.mppi_temperature: .*finite"),
        ({"mppi_std": 0.0}, "planning.mppi_std: .*greater than 0, got 0.0"),
        ({"gradient_num_starts": 0}, "planning.gradient_num_starts: .*equal to 1, got 0"),
        ({"gradient_num_steps": 0}, "planning.gradient_num_steps: .*equal to 1, got 0"),
        ({"gradient_lr": -0.1}, "planning.gradient_lr: .*greater than 0, got -0.1"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_key(settings, says):
    with pytest.raises(ValueError, match=says) as error:
        make_config({f"planning.{key}": value for key, value in settings.items()})
    assert "\n" not in str(error.value)


def test_the_publications_settings_are_the_defaults():
    settings = PlanningConfig()
    assert (settings.num_samples, settings.num_elites, settings.num_iterations) == (300, 30, 30)
    assert (settings.gradient_num_starts, settings.gradient_num_steps) == (100, 30)
    assert settings.gradient_lr == 0.1
    assert (settings.icem_keep_frac, settings.icem_decay, settings.icem_momentum) == (
        0.3,
        1.25,
        0.1,
    )
    assert ICEM(settings).num_kept == 9


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_descent_takes_the_steps_of_torchs_optimisers(name: str) -> None:
    classes = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
    target = torch.linspace(-1, 1, 6).reshape(1, 1, 3, 2)
    config = PlanningConfig(
        gradient_optimiser=name, gradient_num_starts=1, gradient_num_steps=7, gradient_lr=0.05
    )
    plan = Gradient(config).plan(
        lambda a: (a - target).square().sum((2, 3)), [torch.Generator()], 3, 2
    )
    wanted = torch.zeros(3, 2, requires_grad=True)
    optimiser = classes[name]([wanted], lr=0.05)
    for _ in range(7):
        optimiser.zero_grad()
        (wanted - target[0, 0]).square().sum().backward()
        optimiser.step()
    assert torch.allclose(plan[0], wanted.detach(), atol=1e-6)
