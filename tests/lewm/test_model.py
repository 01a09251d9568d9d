from typing import TypeVar

import pytest
import torch
from torch import nn

from lewm.config import Config
from lewm.methods import METHODS, Batch, make_method
from lewm.methods.lewm import LeWM
from lewm.overrides import make_config

torch.set_num_threads(1)
Module = TypeVar("Module", bound=nn.Module)

TINY = {
    "model.image_size": 16,
    "model.patch_size": 8,
    "model.width": 12,
    "model.depth": 2,
    "model.heads": 2,
    "model.mlp": 16,
    "model.latent_dim": 8,
    "model.projector_hidden": 16,
    "model.predictor_depth": 2,
    "model.predictor_heads": 2,
    "model.predictor_head_dim": 4,
    "model.predictor_mlp": 16,
    "loss.num_directions": 16,
}


def make_tiny(**changes: object) -> LeWM:
    torch.manual_seed(0)
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return LeWM(make_config({**TINY, **overrides}), action_dim=2)


def shake(method: Module) -> Module:
    """Moves every parameter off its initial value, so that nothing is the identity by chance."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return method


@pytest.mark.parametrize(("action_dim", "expected"), [(2, 18_034_478), (5, 18_034_628)])
def test_published_sizes(action_dim: int, expected: int) -> None:
    method = make_method(Config(), action_dim)
    assert method.num_params == expected
    assert len(method.state_dict()) == 303
    parts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in method.named_children()
    }
    assert parts["encoder"] == 5_501_376
    assert parts["projector"] == parts["pred_proj"] == 792_768
    assert parts["predictor"] == 10_791_360


def test_unknown_method_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"'lewn' \(did you mean 'lewm'\?\); known: lewm"):
        make_method(make_config({"method": "lewn"}), 2)


@pytest.mark.parametrize("name", METHODS)
def test_contract_shapes(name: str) -> None:
    size = 14 if name == "dino_wm" else 16
    sizes = {**TINY, "model.image_size": size, "model.patch_size": size // 2}
    config = make_config({**sizes, "method": name})
    method = make_method(config, 2, random_weights=True).eval()
    frames, actions = torch.randn(3, 4, 3, size, size), torch.randn(3, 4, 10)
    latents = method.encode(frames)
    assert latents["z"].shape == (3, 4, method.latent_dim)
    assert latents["cls"].shape == (3, 4, 384 if name == "dino_wm" else 12)
    z = latents["z"]
    assert method.predict(z[:, :2], actions[:, :2]).shape == (3, 2, method.latent_dim)
    candidates = torch.randn(3, 5, 6, 10)
    assert method.rollout(z[:, :2], candidates).shape == (3, 5, 7, method.latent_dim)
    assert method.plan_cost(frames[:, :1], frames[:, 3:])(candidates).shape == (3, 5)
    if not method.trains:
        with torch.no_grad():
            method.fit(lambda: [Batch(frames, actions)])
        return
    terms = method.loss(Batch(frames, actions), torch.Generator().manual_seed(0))
    always = {"loss", "pred_loss"}
    assert always <= set(terms) <= always | {"sigreg_loss", *method.terms}
    assert all(term.shape == () for term in terms.values())


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_prediction_is_causal(num_frames: int) -> None:
    method = shake(make_tiny()).eval()
    z, actions = torch.randn(2, num_frames, 8), torch.randn(2, num_frames, 10)
    base = method.predict(z, actions)
    for step in range(num_frames):
        for changed in (z, actions):
            other = changed.clone()
            other[:, step] = torch.randn_like(other[:, step])  # a shift would be lost in a norm
            moved = method.predict(*((other, actions) if changed is z else (z, other)))
            assert torch.equal(moved[:, :step], base[:, :step])
            assert not torch.allclose(moved[:, step], base[:, step], atol=1e-6)
    with pytest.raises(ValueError, match="up to 3 frames"):
        method.predict(torch.randn(2, 4, 8), torch.randn(2, 4, 10))


def test_adaln_zero_is_the_identity_at_init() -> None:
    method = make_tiny().eval()
    x, actions = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    for block in method.predictor.transformer.blocks():
        assert torch.equal(block(x, actions), x)
        shake(block)
        assert not torch.allclose(block(x, actions), x)


def test_initial_values_are_the_published_ones() -> None:
    method = LeWM(Config(), 2)
    encoder = method.encoder
    for tensor in (
        encoder.embeddings.position_embeddings,
        encoder.embeddings.patch_embeddings.projection.weight,
        encoder.state_dict()["encoder.layer.3.attention.attention.key.weight"],
    ):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.03)
    assert not encoder.state_dict()["encoder.layer.3.output.dense.bias"].any()
    assert encoder.layernorm.eps == 1e-12
    assert method.predictor.pos_embedding.std().item() == pytest.approx(1.0, rel=0.1)


def test_rollout_equals_predicting_the_window_again_and_again() -> None:
    method = shake(make_tiny()).eval()
    for num_context in (1, 2, 3, 4):
        z, actions = torch.randn(2, num_context, 8), torch.randn(2, 3, 7, 10)
        path = list(z.repeat_interleave(3, dim=0).unbind(1))
        flat = actions.flatten(0, 1)
        for end in range(num_context, 8):
            begin = max(0, end - 3)
            window = torch.stack(path[begin:end], dim=1)
            path.append(method.predict(window, flat[:, begin:end])[:, -1])
        expected = torch.stack(path, dim=1).reshape(2, 3, 8, 8)
        torch.testing.assert_close(method.rollout(z, actions), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="2 context frames need as many action blocks"):
        method.rollout(torch.randn(2, 2, 8), torch.randn(2, 3, 1, 10))


@torch.inference_mode()
def test_costs_at_published_sizes_are_those_of_the_plain_path() -> None:
    """To 1e-5: every window predicted anew, every token encoded, squares summed."""
    torch.manual_seed(0)
    method = shake(LeWM(Config(), 2)).eval()
    frames, actions = torch.randn(1, 4, 3, 224, 224), torch.randn(1, 3, 5, 10)
    past = torch.randn(1, 2, 10)
    z_BTD = method.encode(frames)["z"]
    for num_context in (1, 3):
        known = past[:, : num_context - 1]
        path = list(z_BTD[:, :num_context].expand(3, -1, -1).unbind(1))
        blocks = torch.cat([known.expand(3, -1, -1), actions[0]], dim=1)
        for end in range(num_context, blocks.shape[1] + 1):
            begin = max(0, end - 3)
            window = torch.stack(path[begin:end], dim=1)
            path.append(method.predict(window, blocks[:, begin:end])[:, -1])
        expected = (path[-1] - z_BTD[0, 3]).square().sum(-1)
        cost = method.plan_cost(frames[:, :num_context], frames[:, 3:], known)(actions)
        torch.testing.assert_close(cost[0], expected, rtol=1e-5, atol=1e-5)


def test_plan_cost_has_gradients_for_gradient_planners() -> None:
    method = shake(make_tiny()).eval()
    frames = torch.randn(2, 2, 3, 16, 16)
    candidates = torch.randn(2, 3, 5, 10, requires_grad=True)
    cost = method.plan_cost(frames[:, :1], frames[:, 1:])(candidates)
    (grad,) = torch.autograd.grad(cost.sum(), candidates)
    assert (grad.abs().sum(-1) > 0).all()


def test_plan_cost_wants_the_actions_between_its_context_frames() -> None:
    method, frames = make_tiny().eval(), torch.randn(2, 3, 3, 16, 16)
    with pytest.raises(ValueError, match="3 context frames need 2 past action blocks, got 0"):
        method.plan_cost(frames, frames[:, :1])


def test_encoding_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    method = shake(make_tiny()).eval()
    frames = torch.randn(5, 4, 3, 16, 16)
    whole = method.encode(frames)["z"]
    monkeypatch.setattr("lewm.vit.CPU_CHUNK_TOKENS", 12)
    torch.testing.assert_close(method.encode(frames)["z"], whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="frames are 8x8 px, the model takes 16x16"):
        method.encode(torch.randn(1, 1, 3, 8, 8))


def test_loss_is_pred_plus_lam_sigreg_without_stop_gradient() -> None:
    batch = Batch(torch.randn(8, 4, 3, 16, 16), torch.randn(8, 4, 10))
    method = shake(make_tiny(loss__lam=0.3, model__dropout=0.0))
    terms = method.loss(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(terms["loss"], terms["pred_loss"] + 0.3 * terms["sigreg_loss"])

    z = method.encode(batch.frames_BTCHW)["z"]
    pred = method.predict(z[:, :-1], batch.actions_BTA[:, :-1])
    torch.testing.assert_close(terms["pred_loss"], (pred - z[:, 1:]).square().mean())
    (direct,) = torch.autograd.grad((pred.detach() - z[:, 1:]).square().mean(), z)
    (through,) = torch.autograd.grad(terms["pred_loss"], list(method.projector.parameters())[-1:])
    assert direct.abs().sum() > 0
    assert through.abs().sum() > 0


def test_lam_zero_still_measures_sigreg() -> None:
    batch = Batch(torch.randn(8, 4, 3, 16, 16), torch.randn(8, 4, 10))
    terms = {
        lam: make_tiny(loss__lam=lam, model__dropout=0.0).loss(
            batch, torch.Generator().manual_seed(0)
        )
        for lam in (0.0, 0.5)
    }
    assert terms[0.0]["sigreg_loss"] == terms[0.5]["sigreg_loss"] > 0
    assert terms[0.0]["loss"] == terms[0.0]["pred_loss"]
    assert not terms[0.0]["sigreg_loss"].requires_grad
