"""The released model's arithmetic, reproduced: every array of `io.npz` (tests/goldens/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lewm.loss import sigreg
from lewm.methods.lewm import LeWM
from lewm.released_weights import load_released

GOLDEN = Path(__file__).parents[1] / "goldens" / "lewm_small"
WEIGHTS = ["weights.pt", "weights_transformers5.pt"]

INPUTS = {"pixels", "action", "candidates", "goal", "sigreg_z", "sigreg_directions"}
OUTPUTS = {"emb", "act_emb", "goal_emb", "pred", "rollout_h1", "rollout_h3", "cost_h1"}
OUTPUTS |= {"sigreg_value"}

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


def test_every_array_has_a_part_here(io: dict[str, torch.Tensor]) -> None:
    assert set(io) == INPUTS | OUTPUTS
    assert all(tensor.dtype == torch.float32 for tensor in io.values())


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
