"""PLDM's terms against float64 references written out by hand, and what each of them does to latents."""

import numpy as np
import pytest
import torch

from lewm.methods import Batch, make_method
from lewm.methods.pldm import covariance, time_covariance, time_similarity, variance
from lewm.overrides import make_config
from tests.small_model import SMALL_MODEL

torch.set_num_threads(1)
SMALL = {
    "method": "pldm",
    **SMALL_MODEL,
    "pldm.time_covariance": 0.3,
    "pldm.inverse_dynamics": 0.4,
}
TERMS = (
    *("variance", "covariance", "time_similarity"),
    *("time_variance", "time_covariance", "inverse_dynamics"),
)


def latents(seed=0, batch=7, time=4, dim=6):
    return torch.randn(batch, time, dim, generator=torch.Generator().manual_seed(seed)) * 0.7 + 0.3


def reference(z):
    """Every term by loops over its definition (facts §8.1)."""
    z = z.double().numpy()
    num_clips, num_frames, dim = z.shape
    hinge, off, hinge_t, off_t = [], [], [], []
    for t in range(num_frames):
        for d in range(dim):
            hinge.append(max(0.0, 1 - np.sqrt(z[:, t, d].var(ddof=1) + 1e-4)))
        found = np.cov(z[:, t].T)
        off.append((found**2).sum() - (np.diag(found) ** 2).sum())
    centred = z - z.mean(axis=0)
    for b in range(num_clips):
        for d in range(dim):
            hinge_t.append(max(0.0, 1 - np.sqrt(z[b, :, d].var(ddof=1) + 1e-4)))
        found = np.cov(centred[b].T)
        off_t.append((found**2).sum() - (np.diag(found) ** 2).sum())
    steps = [(z[b, t + 1] - z[b, t]) ** 2 for b in range(num_clips) for t in range(num_frames - 1)]
    pairs = dim**2 - dim
    return {
        "variance": np.mean(hinge),
        "covariance": np.mean(off) / pairs,
        "time_similarity": np.mean(steps),
        "time_variance": np.mean(hinge_t),
        "time_covariance": np.mean(off_t) / pairs,
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_terms_equal_their_definitions_in_float64(seed):
    z = latents(seed)
    expected = reference(z)
    wide = z.double()
    actual = {
        "variance": variance(wide),
        "covariance": covariance(wide),
        "time_similarity": time_similarity(wide),
        "time_variance": variance(wide.transpose(0, 1)),
        "time_covariance": time_covariance(wide),
    }
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(value, rel=1e-10), name


def batch_of(config, seed=0, size=5):
    generator = torch.Generator().manual_seed(seed)
    span = config.model.history + 1
    frames = torch.randn(size, span, 3, 16, 16, generator=generator)
    return Batch(frames, torch.randn(size, span, 10, generator=generator))


def test_the_loss_is_the_weighted_sum_of_its_terms():
    config = make_config(SMALL)
    torch.manual_seed(0)
    method = make_method(config, 2)
    batch = batch_of(config)
    terms = method.loss(batch, torch.Generator())
    assert set(terms) == {"loss", "pred_loss", *TERMS}
    z = method.encode(batch.frames_BTCHW)["z"].detach()
    for name, value in reference(z).items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name
    weighted = sum(getattr(config.pldm, name) * terms[name].item() for name in TERMS)
    assert terms["loss"].item() == pytest.approx(terms["pred_loss"].item() + weighted, rel=1e-5)
    pair = torch.cat([z[:, 1:], z[:, :-1]], dim=-1)
    read = (method.inverse_dynamics(pair) - batch.actions_BTA[:, :-1]).square().mean()
    assert terms["inverse_dynamics"].item() == pytest.approx(read.item(), rel=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_zero_is_measured_and_moves_nothing(name):
    others = dict.fromkeys((f"pldm.{term}" for term in TERMS), 0.0)
    config = make_config({**SMALL, **others})
    torch.manual_seed(0)
    method = make_method(config, 2)
    batch = batch_of(config)
    terms = method.loss(batch, torch.Generator())
    assert terms[name].item() > 0 and not terms[name].requires_grad
    assert terms["loss"].item() == pytest.approx(terms["pred_loss"].item())
    torch.manual_seed(0)
    moved = make_method(make_config({**SMALL, **others, f"pldm.{name}": 1.0}), 2)
    terms = moved.loss(batch, torch.Generator())
    torch.autograd.backward(terms["loss"] - terms["pred_loss"])
    gradients = [p.grad.abs().sum() for p in moved.encoder.parameters() if p.grad is not None]
    assert sum(gradients) > 0


def test_variance_stops_collapse_and_covariance_decorrelates():
    """Descending a term alone does what it is there for."""
    z = (0.05 * latents(2, batch=64)).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        torch.autograd.backward(variance(z))
        optimiser.step()
    assert z.std(dim=0).min() > 0.95
    mixed = (latents(3, batch=64) @ torch.ones(6, 6)).detach().requires_grad_()
    before = covariance(mixed).item()
    optimiser = torch.optim.Adam([mixed], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        torch.autograd.backward(covariance(mixed))
        optimiser.step()
    assert covariance(mixed).item() < 0.05 * before


def test_the_published_weights_are_the_defaults():
    weights = make_config({}).pldm
    published = (18.0, 12.0, 0.2, 0.7, 0.0, 0.0)
    assert tuple(getattr(weights, name) for name in TERMS) == published


def test_the_architecture_is_lewms():
    small = {key: value for key, value in SMALL.items() if not key.startswith("pldm")}
    pldm, lewm = (
        make_method(make_config(small), 2),
        make_method(make_config({**small, "method": "lewm"}), 2),
    )
    shapes = {name: tuple(value.shape) for name, value in pldm.state_dict().items()}
    ours = {name: tuple(value.shape) for name, value in lewm.state_dict().items()}
    extra = {name: shape for name, shape in shapes.items() if name not in ours}
    assert {**ours, **extra} == shapes
    assert all(name.startswith("inverse_dynamics.") for name in extra)
