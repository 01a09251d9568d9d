import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lewm.loss import epps_pulley, prediction_loss, sigreg, unit_directions

torch.set_num_threads(1)
B, D, M = 512, 8, 64


def draw(seed: int = 0, batch: int = B) -> torch.Tensor:
    return torch.randn(2, batch, D, generator=torch.Generator().manual_seed(seed))


def score(z_TBD: torch.Tensor) -> float:
    directions = unit_directions(D, M, torch.Generator().manual_seed(1))
    return sigreg(z_TBD, directions).item()


@pytest.mark.parametrize("batch", [32, 128, 512])
def test_of_order_one_on_a_standard_normal_at_any_batch_size(batch: int) -> None:
    scores = [score(draw(seed, batch)) for seed in range(8)]
    assert 0.3 < np.mean(scores) < 2.0


def shifted(z: torch.Tensor, by: float) -> torch.Tensor:
    return z + by


def grown(z: torch.Tensor, by: float) -> torch.Tensor:
    return z * (1 + by)


def shrunk(z: torch.Tensor, by: float) -> torch.Tensor:
    return z / (1 + by)


def collapsed(z: torch.Tensor, by: float) -> torch.Tensor:
    scale = torch.ones(D)
    scale[: D // 2] = 1 / (1 + 2 * by)
    return z * scale


def correlated(z: torch.Tensor, by: float) -> torch.Tensor:
    weight = min(0.9, by)
    shared = z[..., :1].expand_as(z)
    return math.sqrt(1 - weight**2) * z + weight * shared


def heavy_tailed(z: torch.Tensor, by: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    scale = torch.exp(by * torch.randn(*z.shape[:2], 1, generator=generator))
    return z * scale / scale.square().mean().sqrt()


@pytest.mark.parametrize("bend", [shifted, grown, shrunk, collapsed, correlated, heavy_tailed])
def test_grows_with_the_distance_from_normal(
    bend: Callable[[torch.Tensor, float], torch.Tensor],
) -> None:
    scores = [score(bend(draw(), by)) for by in (0.0, 0.4, 0.8)]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 2 * scores[0]


def test_a_collapsed_batch_scores_most_and_scales_with_its_size() -> None:
    point = torch.zeros(1, B, D)
    assert score(point) > score(shrunk(draw(), 3.0)) > score(draw())
    assert score(point) == pytest.approx(4 * score(torch.zeros(1, B // 4, D)), rel=1e-5)


@pytest.mark.parametrize(("num_knots", "knot_max"), [(17, 3.0), (9, 5.0)])
def test_equals_the_trapezoid_sum_in_float64(num_knots: int, knot_max: float) -> None:
    h = draw()[0].double().numpy().T * 1.3 + 0.2
    t = np.linspace(0, knot_max, num_knots)
    phi = np.exp(1j * t[:, None, None] * h).mean(-1)
    gap = np.abs(phi - np.exp(-(t**2) / 2)[:, None]) ** 2 * np.exp(-(t**2) / 2)[:, None]
    expected = 2 * np.trapezoid(gap, t, axis=0) * B
    actual = epps_pulley(torch.from_numpy(h), num_knots, knot_max)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10)
    actual32 = epps_pulley(torch.from_numpy(h).float(), num_knots, knot_max)
    np.testing.assert_allclose(actual32.numpy(), expected, rtol=1e-3)


def test_value_and_slope_in_float32_are_those_of_float64() -> None:
    """The rotation from knot to knot loses nothing, far tails included."""
    h = (4 * draw()[0]).T
    values, slopes = [], []
    for dtype in (torch.float32, torch.float64):
        samples = h.to(dtype).requires_grad_()
        values.append(epps_pulley(samples))
        slopes.append(torch.autograd.grad(values[-1].sum(), samples)[0].double())
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-5, atol=0)
    assert (slopes[0] - slopes[1]).norm() < 1e-5 * slopes[1].norm()


def test_the_quadrature_is_close_to_the_integral() -> None:
    h = torch.linspace(-3, 2, 100, dtype=torch.float64)
    fine = epps_pulley(h, num_knots=1001)
    assert epps_pulley(h).item() == pytest.approx(fine.item(), rel=1e-3)


def test_each_time_step_is_tested_by_itself() -> None:
    z = draw()
    directions = unit_directions(D, M, torch.Generator().manual_seed(1))
    apart = torch.stack([sigreg(step[None], directions) for step in z]).mean()
    torch.testing.assert_close(sigreg(z, directions), apart)


def test_directions_are_unit_fresh_and_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (unit_directions(D, M, generator) for _ in range(2))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(M))
    assert not torch.equal(first, second)
    assert torch.equal(first, unit_directions(D, M, torch.Generator().manual_seed(0)))
    assert first.mean().abs() < 0.1


def test_gradient_of_sigreg_is_right() -> None:
    z = draw(batch=4).double().requires_grad_()
    directions = unit_directions(D, 3, torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(
        lambda x: epps_pulley((x @ directions).transpose(1, 2)).mean(), z
    )


def test_prediction_loss() -> None:
    pred, target = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]], requires_grad=True)
    loss = prediction_loss(pred, target)
    assert loss.item() == 2.5
    (grad,) = torch.autograd.grad(loss, target)
    torch.testing.assert_close(grad, torch.tensor([[[-1.0, 2.0]]]))
    with pytest.raises(ValueError, match="shapes differ"):
        prediction_loss(pred, target[:, :, :1])
