"""The decoder: what it draws, the auxiliary loss of paper Table 7, and that it leaves no trace at weight 0."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lewm.config import Config, DecoderConfig
from lewm.decoder import Decoder, _Block, patch_of
from lewm.identity import trial_id
from lewm.methods import Batch, make_method
from lewm.overrides import make_config
from lewm.released_weights import export_released, load_released
from tests.small_model import SMALL_MODEL

torch.set_num_threads(1)
SMALL = {
    **SMALL_MODEL,
    "decoder.width": 16,
    "decoder.depth": 1,
}


def config_of(**changes: object) -> Config:
    return make_config(SMALL | {key.replace("__", "."): value for key, value in changes.items()})


def batch_of(size: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(size, 4, 3, 16, 16, generator=generator)
    return Batch(frames, torch.randn(size, 4, 10, generator=generator))


@pytest.mark.parametrize(
    ("image_size", "patch"), [(224, 16), (112, 14), (64, 8), (42, 3), (16, 2), (7, 1)]
)
def test_patches_tile_the_frame(image_size: int, patch: int) -> None:
    assert patch_of(image_size) == patch
    drawn = Decoder(6, image_size, DecoderConfig(width=8, depth=1))(torch.zeros(2, 6))
    assert drawn.shape == (2, 3, image_size, image_size)


def test_each_query_draws_its_own_patch() -> None:
    decoder = Decoder(6, 16, DecoderConfig(width=8, depth=1))
    z = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = decoder(z)
        decoder.queries_PW[11] += torch.arange(8.0)  # 8 x 8 patches of 2 px: row 1, column 3
        changed = (decoder(z) != before).any(dim=1)[0]
    assert changed[2:4, 6:8].all()
    changed[2:4, 6:8] = False
    assert not changed.any()


def test_attention_to_a_single_key_is_one_linear_map() -> None:
    """What stands for cross-attention equals torch's own, whatever its queries."""
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True).double()
    block = _Block(6, 8).double()
    z, queries = torch.randn(3, 6).double(), torch.randn(3, 5, 8).double()
    normed = block.norm(z).unsqueeze(1)
    theirs, _ = attention(queries, normed, normed)
    with torch.no_grad():
        value_bias = attention.in_proj_bias[16:]
        block.attended.weight.copy_(attention.out_proj.weight @ attention.v_proj_weight)
        block.attended.bias.copy_(attention.out_proj.weight @ value_bias + attention.out_proj.bias)
    ours = block.attended(block.norm(z)).unsqueeze(1).expand_as(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_term_is_the_mean_squared_error_of_every_frame_times_its_weight() -> None:
    torch.manual_seed(0)
    config = config_of(loss__reconstruction=0.3, loss__lam=0.1)
    method = make_method(config, 2).double().eval()
    batch = batch_of()
    batch = Batch(batch.frames_BTCHW.double(), batch.actions_BTA.double())
    with torch.no_grad():
        terms = method.loss(batch, torch.Generator().manual_seed(1))
        z = method.encode(batch.frames_BTCHW)["z"]
        errors = [
            (method.decoder(z[b, t : t + 1])[0].numpy() - batch.frames_BTCHW[b, t].numpy()) ** 2
            for b in range(5)
            for t in range(4)
        ]
    assert float(terms["reconstruction_loss"]) == pytest.approx(float(np.mean(errors)), rel=1e-10)
    total = terms["pred_loss"] + 0.1 * terms["sigreg_loss"] + 0.3 * terms["reconstruction_loss"]
    assert float(terms["loss"]) == pytest.approx(float(total), rel=1e-12)


def test_drawing_teaches_the_encoder() -> None:
    torch.manual_seed(0)
    method = make_method(config_of(loss__reconstruction=1.0, loss__lam=0.0), 2)
    terms = method.loss(batch_of(), torch.Generator().manual_seed(1))
    terms["reconstruction_loss"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in method.encoder.parameters()
        if p.ndim > 1
    )


def test_at_weight_0_there_is_no_decoder_and_its_sizes_are_no_part_of_a_trial() -> None:
    assert not any(
        name.startswith("decoder") for name, _ in make_method(config_of(), 2).named_parameters()
    )
    assert trial_id(config_of()) == trial_id(config_of(decoder__width=32))
    drawn = config_of(loss__reconstruction=1.0)
    assert trial_id(drawn) != trial_id(config_of())
    assert trial_id(drawn) != trial_id(config_of(loss__reconstruction=1.0, decoder__width=32))


def test_an_embedding_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match="draws embeddings of 6 numbers, got 7"):
        Decoder(6, 16, DecoderConfig(width=8, depth=1))(torch.zeros(2, 7))


@pytest.mark.parametrize("method", ["pldm", "dino_wm"])
def test_other_methods_have_no_such_term(method: str) -> None:
    with pytest.raises(
        ValueError, match=f"loss.reconstruction 1 is a term of lewm's loss; method '{method}'"
    ):
        make_config({"method": method, "loss.reconstruction": 1.0})


def test_a_release_leaves_the_decoder_behind(tmp_path: Path) -> None:
    config = make_config({"loss.reconstruction": 1.0})
    method = make_method(config, 2).eval()
    export_released(tmp_path / "release", config, method)
    _, loaded = load_released(tmp_path / "release")
    ours = method.state_dict()
    theirs = loaded.state_dict()
    assert set(ours) - set(theirs) == {name for name in ours if name.startswith("decoder.")}
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
