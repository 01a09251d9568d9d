"""Baselines: what they may not learn, what they fit, and that they are methods like any other."""

import numpy as np
import pytest
import torch

from lewm.identity import trial_id
from lewm.methods import Batch, make_method
from lewm.methods.baselines import RIDGE, OneStep
from lewm.overrides import make_config

TINY = {
    "model.image_size": 32,
    "model.patch_size": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.mlp": 32,
    "model.latent_dim": 8,
    "model.projector_hidden": 32,
    "model.predictor_depth": 1,
    "model.predictor_mlp": 16,
    "data.action_block": 2,
}
ONE_STEP = ("copy_last", "linear_dynamics")


def batches(number: int = 6, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randn(size, 4, 3, 32, 32, generator=generator),
            torch.randn(size, 4, 4, generator=generator),
        )
        for _ in range(number)
    ]


def made(name: str, seed: int = 0) -> OneStep:
    torch.manual_seed(seed)
    method = make_method(make_config({**TINY, "method": name}), 2)
    assert isinstance(method, OneStep)
    return method


def fitted(name: str, data: list[Batch]) -> OneStep:
    method = made(name)
    with torch.no_grad():
        method.fit(lambda: data)
    return method.eval()


@torch.no_grad()
def test_the_linear_dynamics_are_the_ridge_solution() -> None:
    data = batches()
    method = fitted("linear_dynamics", data)
    inputs, targets = [], []
    for batch in data:
        z = method.encode(batch.frames_BTCHW)["z"].double()
        rows = torch.cat([z[:, :-1], batch.actions_BTA[:, :-1].double()], dim=2).flatten(0, 1)
        inputs.append(np.concatenate([rows.numpy(), np.ones((len(rows), 1))], axis=1))
        targets.append(z[:, 1:].flatten(0, 1).numpy())
    x, y = np.concatenate(inputs), np.concatenate(targets)
    penalty = np.sqrt(RIDGE * len(x)) * np.eye(x.shape[1])
    wanted = np.linalg.lstsq(
        np.concatenate([x, penalty]), np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
    )[0]
    assert np.allclose(method.weight_IO.numpy(), wanted, atol=1e-5)


def test_it_does_not_matter_in_which_batches_the_clips_come() -> None:
    data = batches(6, 8)
    frames = torch.cat([batch.frames_BTCHW for batch in data])
    actions = torch.cat([batch.actions_BTA for batch in data])
    method = made("linear_dynamics")
    norm = method.projector.net[1]
    whole = fitted("linear_dynamics", [Batch(frames, actions)])
    with torch.no_grad():
        method.fit(lambda: data)
    assert torch.allclose(norm.running_mean, whole.projector.net[1].running_mean, atol=1e-6)


@pytest.mark.parametrize("name", ONE_STEP)
@torch.no_grad()
def test_a_rollout_is_the_predictor_step_by_step(name: str) -> None:
    method = fitted(name, batches(2))
    z, actions = torch.randn(3, 2, 8), torch.randn(3, 5, 6, 4)
    path = method.rollout(z, actions)
    assert path.shape == (3, 5, 7, 8)
    assert torch.equal(path[:, :, :2], z[:, None].expand(-1, 5, -1, -1))
    last = z[:, None, -1].expand(-1, 5, -1)
    for block in range(1, 6):
        last = method.predict(last, actions[:, :, block])
        assert torch.allclose(path[:, :, block + 1], last)
    with pytest.raises(ValueError, match="2 context frames need as many action blocks, got 1"):
        method.rollout(z, actions[:, :, :1])


@torch.no_grad()
def test_copying_prices_all_plans_alike() -> None:
    method = fitted("copy_last", batches(2))
    frames = torch.randn(2, 1, 3, 32, 32)
    cost = method.plan_cost(frames, torch.randn(2, 1, 3, 32, 32))(torch.randn(2, 9, 5, 4))
    assert (cost == cost[:, :1]).all() and (cost > 0).all()


def test_a_random_encoder_learns_nothing_but_its_predictor() -> None:
    torch.manual_seed(0)
    method = make_method(make_config({**TINY, "method": "random_encoder"}), 2).train()
    before = {name: value.clone() for name, value in method.named_parameters()}
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2, weight_decay=0.1)
    for batch in batches(3):
        terms = method.loss(batch, torch.Generator())
        assert terms["loss"] is terms["pred_loss"]
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
    for name, value in method.named_parameters():
        frozen = name.startswith(("encoder.", "projector."))
        assert torch.equal(value, before[name]) == frozen, name


def test_all_of_a_seed_look_through_the_same_encoder() -> None:
    encoders = []
    for name in ("lewm", "random_encoder", *ONE_STEP):
        torch.manual_seed(3)
        encoders.append(make_method(make_config({**TINY, "method": name}), 2).encoder.state_dict())
    for other in encoders[1:]:
        assert all(torch.equal(value, other[key]) for key, value in encoders[0].items())


def test_weights_of_a_loss_they_do_not_have_are_no_identity() -> None:
    def identity(**more: float) -> str:
        return trial_id(make_config({**TINY, "method": "copy_last", **more}))

    assert identity() == identity(**{"loss.lam": 0.5}) == identity(**{"pldm.variance": 3.0})
    assert make_config({"method": "copy_last"}).lam is None
