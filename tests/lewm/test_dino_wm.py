"""DINOv2 against a float64 reference, its file's strictness, and DINO-WM as a method, with random weights."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lewm.block_causal import BlockCausal
from lewm.checkpoint import load_method, read_checkpoint
from lewm.control import felt
from lewm.data.clips import ClipData, prepare_frames
from lewm.data.episodes import EpisodeFile
from lewm.data.write import write_episodes
from lewm.dinov2 import URL, DINOv2, load_dinov2, random_dinov2, weights_sha256
from lewm.envs import ENVS, make_env
from lewm.identity import training_fields, trial_id
from lewm.methods import Batch, make_method, method_class
from lewm.overrides import make_config
from lewm.token_cache import keep_tokens
from lewm.train import main
from lewm.training import train

torch.set_num_threads(1)
SMALL = {
    "method": "dino_wm",
    "model.image_size": 28,
    "model.patch_size": 14,
    "dino.predictor_depth": 2,
    "dino.predictor_heads": 2,
    "dino.predictor_head_dim": 8,
    "dino.predictor_mlp": 16,
    "optim.lr": 1e-3,
    "optim.batch_size": 4,
    "optim.num_steps": 6,
    "optim.precision": "fp32",
    "optim.num_threads": 1,
    "optim.eval_every": 3,
    "optim.num_val_clips": 4,
    "run.checkpoint_every": 3,
    "run.device": "cpu",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth"
    torch.save(random_dinov2(1).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def settings(weights, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {**SMALL, "run.dino_weights": str(weights), "run.dino_cache": str(cache)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    rng = np.random.default_rng(0)

    def episodes():
        for _ in range(2):
            action = rng.uniform(-1, 1, (14, 2)).astype(np.float32)
            place = 14 + np.cumsum(action, axis=0)
            pixels = rng.integers(0, 256, (14, 28, 28, 3), dtype=np.uint8)
            yield {"pixels": pixels, "action": action, "proprio": place}

    write_episodes(path, episodes())
    return path


def small_dinov2(seed=0, **sizes):
    """A tiny DINOv2 with weights that leave no part without effect."""
    torch.manual_seed(seed)
    model = DINOv2(**{"width": 12, "depth": 2, "heads": 3, "patch": 4, "grid": 3} | sizes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def reference(state, image, heads, patch):
    """DINOv2 by its definition, token by token, in float64."""
    w = {name: tensor.detach().double().numpy() for name, tensor in state.items()}
    image = image.double().numpy()

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        var = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(var + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    side = image.shape[-1] // patch
    kernel = w["patch_embed.proj.weight"]
    tokens = [w["cls_token"][0, 0]]
    for row in range(side):
        for column in range(side):
            y, x = row * patch, column * patch
            window = image[:, y : y + patch, x : x + patch]
            tokens.append((kernel * window).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    x = np.stack(tokens) + w["pos_embed"][0]
    for block in range(sum(name.endswith("ls1.gamma") for name in w)):
        at = f"blocks.{block}"
        parts = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv")
        query, key, value = np.split(parts, 3, axis=-1)
        width = query.shape[-1] // heads
        mixed = np.zeros_like(query)
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            scores = query[:, own] @ key[:, own].T / np.sqrt(width)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, own] = share / share.sum(-1, keepdims=True) @ value[:, own]
        x = x + w[f"{at}.ls1.gamma"] * linear(mixed, f"{at}.attn.proj")
        hidden = linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
        hidden = F.gelu(torch.from_numpy(hidden)).numpy()
        x = x + w[f"{at}.ls2.gamma"] * linear(hidden, f"{at}.mlp.fc2")
    return norm(x, "norm")


def test_dinov2_equals_a_float64_reference():
    model = small_dinov2()
    image = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    expected = reference(model.state_dict(), image[0], heads=3, patch=4)
    np.testing.assert_allclose(model.double()(image.double())[0].detach(), expected, atol=1e-10)


def cubic(x):
    """Keys' kernel with a = -0.75, as PyTorch's bicubic."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_positions_are_interpolated_as_published():
    """Bicubic from the stored grid, at the places that a side of `side + 0.1` patches has."""
    model = small_dinov2(grid=7).double()
    side, grid = 4, 7
    stored = model.pos_embed[0, 1:].detach().numpy().reshape(grid, grid, -1)
    weights = np.zeros((side, grid))
    for place in range(side):
        source = (place + 0.5) * grid / (side + 0.1) - 0.5
        for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            weights[place, min(max(tap, 0), grid - 1)] += cubic(source - tap)
    expected = np.einsum("ai,bj,ijw->abw", weights, weights, stored).reshape(side * side, -1)
    found = model.positions(side)[0].detach().numpy()
    np.testing.assert_allclose(found[1:], expected, atol=1e-12)
    np.testing.assert_array_equal(found[0], model.pos_embed[0, 0].detach())
    assert model.positions(7) is model.pos_embed


@pytest.mark.parametrize(("size", "num_patches"), [(224, 256), (196, 196), (518, 1369)])
def test_token_counts(size, num_patches):
    model = small_dinov2(depth=1, patch=14, grid=37)
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 1 + num_patches, 12)


def test_the_default_sizes_are_those_of_the_published_file():
    with torch.device("meta"):
        model = DINOv2()
    assert sum(p.numel() for p in model.parameters()) == 22_056_576
    assert len(model.state_dict()) == 175
    assert model.pos_embed.shape == (1, 1 + 37 * 37, 384)


@pytest.mark.parametrize("shape", [(30, 30), (28, 42), (0, 0)])
def test_frames_that_are_no_whole_number_of_patches_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 14"):
        random_dinov2()(torch.zeros(1, 3, *shape))


def test_a_frames_tokens_do_not_depend_on_its_company(weights):
    model = load_dinov2(weights)
    frames = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    together = model.encode(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = model.encode(frames[3:4])
    assert torch.equal(together[3:4], alone)
    assert torch.equal(together, together.half().float())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("width", "registers", "name"),
    [
        (768, False, "ViT-B/14"),
        (1024, False, "ViT-L/14"),
        (1536, False, "ViT-g/14"),
        (384, True, "ViT-S/14 with registers"),
        (768, True, "ViT-B/14 with registers"),
        (100, False, "of width 100"),
    ],
)
def test_another_size_is_refused_by_name(tmp_path, width, registers, name):
    state = {
        "cls_token": torch.zeros(1, 1, width),
        "patch_embed.proj.weight": torch.zeros(width, 3, 14, 14),
    }
    if registers:
        state["register_tokens"] = torch.zeros(1, 4, width)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError) as caught:
        load_dinov2(tmp_path / "other.pth")
    message = str(caught.value)
    assert f"holds DINOv2 {name}, dino_wm takes ViT-S/14" in message and URL in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("mask_token"), "missing mask_token"),
        (lambda s: s.update(head=torch.zeros(1)), "unknown head"),
        (lambda s: s.update(pos_embed=s["pos_embed"][:, :257]), "misshapen pos_embed"),
        (lambda s: s.update({"norm.bias": s["norm.bias"].half()}), "mistyped norm.bias"),
    ],
)
def test_a_file_that_differs_in_one_tensor_is_refused(weights, tmp_path, change, complaint):
    state = torch.load(weights, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=complaint):
        load_dinov2(tmp_path / "odd.pth")


def test_what_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "odd.pth"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        load_dinov2(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="not a state dict of DINOv2"):
        load_dinov2(path)


def predictor(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"history": 3, "num_patches": 4, "dim": 10, "depth": 2, "heads": 2, "head_dim": 6}
    return BlockCausal(**{**sizes, "mlp": 16, "dropout": 0.0, **changes}).double().eval()


def masked(model, x_BTPW):
    """The predictor over one sequence of all tokens under a block-causal mask."""
    num_frames, num_patches = x_BTPW.shape[1:3]
    x = (x_BTPW + model.pos_embedding[:, :num_frames]).flatten(1, 2)
    frame = torch.arange(num_frames).repeat_interleave(num_patches)
    hidden = frame[None, :] > frame[:, None]
    for layer in model.layers:
        attn = layer.attn
        heads = [
            part.unflatten(-1, (attn.heads, -1)) for part in attn.to_qkv(attn.norm(x)).chunk(3, -1)
        ]
        query, key, value = (part.transpose(1, 2) for part in heads)
        scores = query @ key.mT / key.shape[-1] ** 0.5
        share = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        x = x + attn.to_out((share @ value).transpose(1, 2).flatten(2))
        x = x + layer.mlp(x)
    return model.norm(x).reshape(x_BTPW.shape)


def test_the_predictor_is_block_causal_attention():
    model = predictor()
    x = torch.randn(2, 3, 4, 10, dtype=torch.float64)
    torch.testing.assert_close(model(x), masked(model, x), rtol=0, atol=1e-12)
    later = x.clone()
    later[:, 2] = torch.randn(2, 4, 10)
    assert torch.equal(model(later)[:, :2], model(x)[:, :2])
    same_frame = x.clone()
    same_frame[:, 1, 3] = torch.randn(2, 10)
    assert not torch.allclose(model(same_frame)[:, 1, 0], model(x)[:, 1, 0])
    with pytest.raises(ValueError, match="4 frames; the predictor takes up to 3"):
        model(torch.zeros(1, 4, 4, 10, dtype=torch.float64))


def test_the_last_frame_from_kept_keys_and_values():
    model = predictor()
    x = torch.randn(2, 3, 4, 10, dtype=torch.float64)
    first, past = model.last(x[:, :2], None)
    last, _ = model.last(x[:, 2:], past)
    torch.testing.assert_close(first, model(x[:, :2])[:, -1], rtol=0, atol=1e-12)
    torch.testing.assert_close(last, model(x)[:, -1], rtol=0, atol=1e-12)


def make(settings, **changes):
    config = make_config({**settings, **{k.replace("__", "."): v for k, v in changes.items()}})
    torch.manual_seed(0)
    return make_method(config, 2)


def frames_of(*shape, seed=0):
    return torch.randn(*shape, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def method(settings):
    return make(settings).eval()


@pytest.fixture(scope="module")
def with_proprio(settings):
    made = make(settings, dino__proprio=True).eval()
    made.get_buffer("proprio_mean").fill_(10.0)
    made.get_buffer("proprio_std").fill_(5.0)
    return made


@torch.no_grad()
def test_latents_are_the_frozen_patch_tokens(method, weights):
    frames = frames_of(2, 3)
    codes = method.encode(frames)
    tokens = load_dinov2(weights).encode(frames[1, 2:])
    assert codes["z"].shape == (2, 3, 4 * 384) and method.latent_dim == 4 * 384
    assert torch.equal(codes["z"][1, 2], tokens[0, 1:].flatten())
    assert torch.equal(codes["cls"][1, 2], tokens[0, 0])
    pooled = method.pooled(codes["z"])
    torch.testing.assert_close(pooled[1, 2], tokens[0, 1:].mean(dim=0))


def test_only_the_predictor_and_the_embeddings_are_trained_and_stored(method):
    names = {name.split(".")[0] for name, _ in method.named_parameters()}
    assert names == {"predictor", "action_encoder"}
    assert all(p.requires_grad for p in method.parameters())
    assert sum(x.numel() for x in method.state_dict().values()) < 1e6


@torch.no_grad()
def test_a_rollout_is_repeated_prediction(method):
    z = method.encode(frames_of(2, 2))["z"]
    actions = torch.randn(2, 3, 6, 10)
    path = method.rollout(z, actions)
    assert path.shape == (2, 3, 7, method.latent_dim)
    for b, s in [(0, 0), (1, 2)]:
        expected = [*z[b]]
        for end in range(2, 7):
            begin = max(0, end - 3)
            window = torch.stack(expected[begin:end])[None]
            expected.append(method.predict(window, actions[b, s, None, begin:end])[0, -1])
        torch.testing.assert_close(path[b, s], torch.stack(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="2 context frames need as many action blocks, got 1"):
        method.rollout(z, actions[:, :, :1])


@torch.no_grad()
def test_the_cost_is_the_mean_squared_error_of_the_last_frame(method, monkeypatch):
    start, goal = frames_of(2, 1), frames_of(2, 1, seed=1)
    actions = torch.randn(2, 5, 4, 10)
    cost = method.plan_cost(start, goal)(actions)
    last = method.rollout(method.encode(start)["z"], actions)[:, :, -1]
    expected = (last - method.encode(goal)["z"]).square().mean(-1)
    torch.testing.assert_close(cost, expected)
    monkeypatch.setattr("lewm.methods.dino_wm.CPU_TOKENS", 3 * 3 * 4)
    pieces = method.plan_cost(start, goal)(actions)
    torch.testing.assert_close(pieces, cost)
    with pytest.raises(ValueError, match="2 context frames need 1 past action blocks, got 0"):
        method.plan_cost(frames_of(2, 2), goal)


@torch.no_grad()
def test_past_actions_lead_through_the_context(method):
    start, goal = frames_of(1, 2), frames_of(1, 1, seed=1)
    past, plan = torch.randn(1, 1, 10), torch.randn(1, 1, 3, 10)
    cost = method.plan_cost(start, goal, past)(plan)
    whole = torch.cat([past[:, None], plan], dim=2)
    last = method.rollout(method.encode(start)["z"], whole)[:, :, -1]
    torch.testing.assert_close(cost, (last - method.encode(goal)["z"]).square().mean(-1))


def test_a_gradient_planner_gets_gradients(method):
    actions = torch.randn(1, 2, 3, 10, requires_grad=True)
    torch.autograd.backward(
        method.plan_cost(frames_of(1, 1), frames_of(1, 1, seed=1))(actions).sum()
    )
    assert (actions.grad.abs().sum(dim=(0, 1, 3)) > 0).all()


def batch_of(proprio=False):
    generator = torch.Generator().manual_seed(3)
    felt_BTQ = torch.randn(2, 4, 2, generator=generator) * 5 + 10 if proprio else None
    return Batch(frames_of(2, 4), torch.randn(2, 4, 10, generator=generator), felt_BTQ)


def test_the_loss_is_the_error_of_the_next_tokens(method):
    batch = batch_of()
    z = method.encode(batch.frames_BTCHW)["z"]
    terms = method.loss(batch, torch.Generator())
    pred = method.predict(z[:, :-1], batch.actions_BTA[:, :-1])
    assert set(terms) == {"loss", "pred_loss"} and method.terms == ()
    assert terms["loss"].item() == pytest.approx((pred - z[:, 1:]).square().mean().item())


def test_proprioception_is_seen_predicted_and_planned_with(with_proprio):
    method, batch = with_proprio, batch_of(proprio=True)
    z = method.embed(batch)
    assert z.shape[-1] == method.latent_dim == 4 * 394
    tokens = z.reshape(2, 4, 4, 394)
    expected = method.proprio_encoder((batch.proprio_BTQ - 10) / 5)
    for patch in range(4):
        torch.testing.assert_close(tokens[:, :, patch, 384:], expected)
    method.zero_grad()
    terms = method.loss(batch, torch.Generator())
    torch.autograd.backward(terms["loss"])
    assert method.proprio_encoder.weight.grad.abs().sum() > 0
    share = (384 * terms["visual_loss"] + 10 * terms["proprio_loss"]) / 394
    assert terms["loss"].item() == pytest.approx(share.item(), rel=1e-5)
    with torch.no_grad():
        target = z[:, 1:].detach()
        method.zero_grad()
    start, goal = frames_of(1, 1), frames_of(1, 1, seed=1)
    felt_start, felt_goal = torch.full((1, 1, 2), 8.0), torch.full((1, 1, 2), 12.0)
    actions = torch.randn(1, 2, 3, 10)
    with torch.no_grad():
        cost = method.plan_cost(start, goal, None, felt_start, felt_goal)(actions)
        path = method.rollout(method.encode(start, felt_start)["z"], actions)[:, :, -1]
        goal_z = method.encode(goal, felt_goal)["z"]
    error = (path - goal_z[:, 0]).square().reshape(1, 2, 4, 394)
    expected = error[..., :384].mean(dim=(2, 3)) + error[..., 384:].mean(dim=(2, 3))
    torch.testing.assert_close(cost, expected)
    assert not target.requires_grad


def test_proprioception_missing_or_not_asked_for_is_refused(method, with_proprio):
    with pytest.raises(ValueError, match=r"dino.proprio is True: encoding needs proprioception"):
        with_proprio.encode(frames_of(1, 1))
    with pytest.raises(ValueError, match=r"dino.proprio is False: encoding takes no"):
        method.encode(frames_of(1, 1), torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.ci] * (name == "cube")) for name in sorted(ENVS)]
)
def test_worlds_say_what_their_files_hold_of_proprioception(name):
    env = make_env(name, image_size=28)
    env.reset(seed=0)
    stored = env.state_columns(env.get_state())
    widths = {key: np.size(value) for key, value in stored.items() if key.startswith("proprio")}
    assert dict(env.proprio) == widths
    if widths:
        row = felt(env, env.get_state(), env.proprio)
        np.testing.assert_array_equal(
            row, np.concatenate([np.ravel(stored[key]) for key in widths]).astype(np.float32)
        )
    env.close()


def test_bad_configs():
    with pytest.raises(ValueError, match=r"^model.image_size 64 is not a multiple of 14.*56 or 70"):
        make_config({"method": "dino_wm", "model.image_size": 64, "model.patch_size": 8})
    with pytest.raises(ValueError, match=r"dino.proprio: environment 'reacher' has no proprio"):
        make_config({"method": "dino_wm", "data.env": "reacher", "dino.proprio": True})


def test_the_path_of_the_weights_is_no_identity_and_their_hash_is():
    plain = make_config({"method": "dino_wm"})
    moved = make_config({"method": "dino_wm", "run.dino_weights": "/elsewhere/w.pth"})
    named = make_config({"method": "dino_wm", "dino.weights_sha256": "0" * 64})
    assert trial_id(plain) == trial_id(moved) != trial_id(named)
    assert "dino" not in training_fields("lewm") and "loss" not in training_fields("dino_wm")


def test_without_weights_it_says_where_they_come_from(monkeypatch, tmp_path, weights):
    monkeypatch.delenv("LEWM_DINOV2_WEIGHTS", raising=False)
    unavailable = method_class("dino_wm").unavailable
    config = make_config(SMALL)
    reason = unavailable(config)
    assert URL in reason and "LEWM_DINOV2_WEIGHTS or run.dino_weights" in reason
    assert "\n" not in reason
    with pytest.raises(ValueError, match="needs the DINOv2 ViT-S/14 weights"):
        make_method(config, 2)
    missing = make_config({**SMALL, "run.dino_weights": str(tmp_path / "no.pth")})
    assert "no.pth is not there" in unavailable(missing)
    monkeypatch.setenv("LEWM_DINOV2_WEIGHTS", str(weights))
    assert unavailable(config) is None and unavailable(missing) is None


def test_weights_other_than_those_asked_for_are_refused(settings, weights):
    digest = weights_sha256(weights)
    make(settings, dino__weights_sha256=digest)
    with pytest.raises(ValueError, match=r"dino.weights_sha256 asks for 000000000000"):
        make(settings, dino__weights_sha256="0" * 64)


def test_random_weights_need_no_file_and_are_marked(monkeypatch):
    monkeypatch.delenv("LEWM_DINOV2_WEIGHTS", raising=False)
    config = make_config(SMALL)
    torch.manual_seed(0)
    method = make_method(config, 2, random_weights=True)
    assert method.random_weights
    lewm = make_method(make_config({}), 2, random_weights=True)
    assert not lewm.random_weights
    with torch.no_grad():
        cost = method.eval().plan_cost(frames_of(1, 1), frames_of(1, 1, seed=1))
        assert cost(torch.randn(1, 2, 3, 10)).isfinite().all()


def state_of(run_dir):
    state = read_checkpoint(run_dir / "checkpoint.pt")
    return state["method"], state["curve"]


@pytest.mark.parametrize("proprio", [pytest.param(False, marks=pytest.mark.ci), True])
def test_training_has_the_same_bits_with_kept_tokens_and_without(
    settings, dataset, tmp_path, proprio
):
    cache = tmp_path / "cache"
    shared = {
        **settings,
        "model.history": 1,
        "optim.num_steps": 3,
        "dino.proprio": proprio,
        "run.dino_cache": str(cache),
    }
    results = []
    for name, changes in {"none": {"run.dino_cache_gb": 0.0}, "made": {}, "kept": {}}.items():
        config = make_config({**shared, **changes})
        train(config, tmp_path / name, dataset)
        results.append(state_of(tmp_path / name))
        kept = list(cache.glob("*.npy")) if cache.exists() else []
        assert len(kept) == (name != "none")
    for weights_now, curve in results[1:]:
        assert all(torch.equal(weights_now[key], value) for key, value in results[0][0].items())
        assert torch.equal(curve.nan_to_num(), results[0][1].nan_to_num())
    assert not list(cache.glob("*.tmp"))
    codes = np.load(next(cache.glob("*.npy")), mmap_mode="r")
    assert codes.shape == (28, 4, 384) and codes.dtype == np.float16


@pytest.mark.ci
def test_an_interrupted_run_resumes_to_the_same_bits(settings, dataset, tmp_path):
    class Stop(Exception):
        pass

    def stop(step, _):
        if step == 3:
            raise Stop

    config = make_config({**settings, "model.history": 1, "dino.proprio": True})
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", dataset, stop)
    for name in ("cut", "whole"):
        train(config, tmp_path / name, dataset)
    cut, whole = (state_of(tmp_path / name)[0] for name in ("cut", "whole"))
    assert all(torch.equal(cut[key], value) for key, value in whole.items())


def test_a_checkpoint_is_read_with_the_weights_it_was_trained_on(
    settings, dataset, tmp_path, monkeypatch
):
    changes = {"model.history": 1, "dino.proprio": True, "optim.num_steps": 1}
    config = make_config({**settings, **changes})
    train(config, tmp_path / "run", dataset)
    with EpisodeFile(dataset) as file:
        seen = ClipData(file, config, "train").fitted_rows
        place = file.read("proprio")[seen]
    path = tmp_path / "run" / "checkpoint.pt"
    _, method, _, info = load_method(path)
    np.testing.assert_allclose(method.proprio_mean, place.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(method.proprio_std, place.std(axis=0), rtol=1e-6)
    assert info["num_params"] == sum(p.numel() for p in method.parameters()) < 1e6
    other = tmp_path / "other.pth"
    torch.save(random_dinov2(2).state_dict(), other)
    state = read_checkpoint(path)
    stored = json.loads(state["config"])
    stored["run"]["dino_weights"] = str(other)
    torch.save({**state, "config": json.dumps(stored)}, path)
    with pytest.raises(ValueError, match="trained on DINOv2 weights"):
        load_method(path)


@pytest.mark.ci
def test_the_tokens_of_other_data_or_weights_are_others(settings, dataset, tmp_path):
    config = make_config({**settings, "run.dino_cache": str(tmp_path)})
    model = random_dinov2(1)
    with EpisodeFile(dataset) as file:
        first = keep_tokens(file, config, model, "a" * 64)
        assert first is not None and not first.flags.writeable
        frame = torch.from_numpy(file.read("pixels", [20])).movedim(-1, -3)
        expected = model.encode(prepare_frames(frame))[0, 1:]
        assert np.array_equal(first[20].astype(np.float32), expected)
        held = np.array(first)
        keep_tokens(file, config, model, "a" * 64)
        assert len(list(tmp_path.glob("*.npy"))) == 1
        keep_tokens(file, config, model, "b" * 64)
        assert len(list(tmp_path.glob("*.npy"))) == 2
        for path in tmp_path.glob("*.npy"):
            path.write_bytes(path.read_bytes()[:1000])
        again = keep_tokens(file, config, model, "a" * 64)
        assert np.array_equal(again, held)
        blocked = tmp_path / "file"
        blocked.write_text("")
        config = replace_cache(config, blocked)
        with pytest.warns(UserWarning, match="are not kept"):
            assert keep_tokens(file, config, model, "a" * 64) is None


def replace_cache(config, folder):
    run = config.run.model_copy(update={"dino_cache": str(folder / "below")})
    return config.model_copy(update={"run": run})


def test_the_command_line_refuses_in_one_line(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LEWM_DINOV2_WEIGHTS", raising=False)
    chosen = [f"--set={key}={value}" for key, value in SMALL.items()]
    chosen += ["--set=optim.num_epochs=none", "--set=model.history=1"]
    arguments = [f"--dataset={dataset}", f"--run-dir={tmp_path / 'run'}", *chosen]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and URL in error
