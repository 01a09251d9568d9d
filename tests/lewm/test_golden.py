"""The released model's arithmetic, reproduced (tests/goldens/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm.checkpoint import export_released, load_released
from lewm.loss import sigreg
from lewm.methods.lewm import LeWM

GOLDEN = Path(__file__).parents[1] / "goldens" / "lewm_small"
WEIGHTS = ["weights.pt", "weights_transformers5.pt"]

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module", params=WEIGHTS)
def method(request: pytest.FixtureRequest) -> LeWM:
    method = load_released(GOLDEN, request.param)[1]
    assert isinstance(method, LeWM)
    return method


def assert_golden(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_embeddings_and_predictions(method: LeWM, io: dict[str, torch.Tensor]) -> None:
    z = method.encode(io["pixels"])["z"]
    assert_golden(z, io["emb"])
    assert_golden(method.encode(io["goal"])["z"], io["goal_emb"])
    assert_golden(method.action_encoder(io["action"]), io["act_emb"])
    assert_golden(method.predict(io["emb"][:, :3], io["action"][:, :3]), io["pred"])


@torch.inference_mode()
def test_rollouts_and_costs(method: LeWM, io: dict[str, torch.Tensor]) -> None:
    candidates = io["candidates"]
    assert_golden(method.rollout(io["emb"][:, :1], candidates), io["rollout_h1"])
    past = io["action"][:, :2]
    known = past[:, None].expand(-1, candidates.shape[1], -1, -1)
    path = method.rollout(io["emb"][:, :3], torch.cat([known, candidates], dim=2))
    assert_golden(path, io["rollout_h3"])

    cost = method.plan_cost(io["pixels"][:, :1], io["goal"])
    assert_golden(cost(candidates), io["cost_h1"])
    cost_h3 = method.plan_cost(io["pixels"][:, :3], io["goal"], past)
    expected = (io["rollout_h3"][:, :, -1] - io["goal_emb"]).square().sum(-1)
    assert_golden(cost_h3(candidates), expected)


def test_sigreg_value(io: dict[str, torch.Tensor]) -> None:
    directions = io["sigreg_directions"]
    unit = directions / directions.norm(dim=0)
    assert_golden(sigreg(io["sigreg_z"], unit), io["sigreg_value"])


def test_export_is_what_was_imported(tmp_path: Path) -> None:
    config, method = load_released(GOLDEN)
    export_released(tmp_path, config, method)
    original = torch.load(GOLDEN / "weights.pt", weights_only=True)
    exported = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert list(exported) == list(original)
    assert all(torch.equal(exported[name], original[name]) for name in original)
    assert load_released(tmp_path)[0] == config
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN)
    )
    assert ours == theirs


def damage(folder: Path, change: dict[str, torch.Tensor | None]) -> Path:
    weights = torch.load(GOLDEN / "weights.pt", weights_only=True)
    for name, tensor in change.items():
        if tensor is None:
            del weights[name]
        else:
            weights[name] = tensor
    torch.save(weights, folder / "weights.pt")
    (folder / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    return folder


def test_import_is_strict(tmp_path: Path) -> None:
    wrong = {"encoder.layernorm.bias": None, "head.bias": torch.zeros(1)}
    wrong["predictor.pos_embedding"] = torch.zeros(1, 5, 32)
    with pytest.raises(ValueError, match=r"weights\.pt") as caught:
        load_released(damage(tmp_path, wrong))
    message = str(caught.value)
    assert "missing encoder.layernorm.bias" in message
    assert "unknown head.bias" in message
    assert "predictor.pos_embedding has shape (1, 5, 32), not (1, 3, 32)" in message
    assert "\n" not in message


def test_broken_release_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_released(tmp_path)
    damage(tmp_path, {})
    whole = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="broken or cut off") as caught:
        load_released(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "weights.pt").write_bytes(whole)
    (tmp_path / "config.json").write_text('{"encoder": {}}')
    with pytest.raises(ValueError, match="not a released config"):
        load_released(tmp_path)
