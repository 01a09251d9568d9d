"""LeWM's loss: total = pred + lam * SIGReg (paper Eq. 1-3, quadrature as in the authors' code).

This is the one convention; `(1 - lam) * pred + lam * sigreg` also circulates. SIGReg carries the
batch size as a factor, so a `lam` only means something with its batch size. It needs the whole
batch on one device.

Shapes: B batch, T time, D latent, M directions, K knots.
"""

import math
from typing import Any

import torch
from torch import Tensor

NUM_KNOTS = 17
KNOT_MAX = 3.0


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Squares of differences, element by element, in float32 at least: bfloat16 would round their sum."""
    at_least = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return (a.to(at_least) - b.to(at_least)).square()


def prediction_loss(pred_BTD: Tensor, target_BTD: Tensor) -> Tensor:
    """Mean squared error between predicted and encoded next embeddings (paper Eq. 1).

    Args:
        pred_BTD: predictor output for steps 1..T.
        target_BTD: encoder output for the same steps; gradients flow through it.

    Returns:
        Scalar >= 0. A collapsed encoder also scores 0, so never read it without `sigreg`.

    Raises:
        ValueError: the shapes differ.
    """
    if pred_BTD.shape != target_BTD.shape:
        raise ValueError(f"shapes differ: {tuple(pred_BTD.shape)}, {tuple(target_BTD.shape)}")
    return (pred_BTD.float() - target_BTD.float()).square().mean()


def epps_pulley(h: Tensor, num_knots: int = NUM_KNOTS, knot_max: float = KNOT_MAX) -> Tensor:
    """Epps-Pulley distance of samples to N(0, 1), times their number (facts §2, code version).

    B * sum_k w_k [(mean_b cos(t_k h_b) - exp(-t_k^2/2))^2 + (mean_b sin(t_k h_b))^2], nodes t_k
    even on [0, knot_max], w_k the trapezoid weights (doubled, for the half line left out) times
    the gaussian window exp(-t_k^2/2).

    Args:
        h: (..., B) samples along the last axis, one test per leading index.

    Returns:
        (...) statistics >= 0, of order 1 for samples of N(0, 1) at any B; divide by B to compare
        different B. A point mass at 0 scores the most, B times a constant.
    """
    statistic: Tensor = _EppsPulley.apply(h, num_knots, knot_max)  # type: ignore[no-untyped-call]
    return statistic


class _EppsPulley(torch.autograd.Function):
    """Value and slope in one pass over the knots, in memory that does not grow with their number.

    Nodes are even, so each one's cosines and sines come from the last one's by a rotation; only the
    first are computed as such. Against float64: relative error of value and slope below 1e-5.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, num_knots: int, knot_max: float) -> Tensor:
        spacing = knot_max / (num_knots - 1)
        cos_1, sin_1 = (h * spacing).cos(), (h * spacing).sin()
        cos, sin = cos_1, sin_1
        slope = torch.zeros_like(h)
        statistic = h.new_zeros(*h.shape[:-1], 1)
        for k in range(1, num_knots):  # the node 0 adds nothing
            if k > 1:
                cos, sin = (
                    torch.mul(cos, cos_1).addcmul_(sin, sin_1, value=-1),
                    torch.mul(sin, cos_1).addcmul_(cos, sin_1),
                )
            node = k * spacing
            normal = math.exp(-(node**2) / 2)
            weight = spacing * normal * (1 if k == num_knots - 1 else 2)
            real = cos.mean(-1, keepdim=True) - normal
            imag = sin.mean(-1, keepdim=True)
            statistic += weight * (real.square() + imag.square())
            slope.addcmul_(cos, imag, value=2 * weight * node)
            slope.addcmul_(sin, real, value=-2 * weight * node)
        ctx.save_for_backward(slope)
        return statistic.squeeze(-1) * h.shape[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0].unsqueeze(-1), None, None


@torch.compiler.disable  # a generator is none of a graph's inputs
def unit_directions(
    dim: int, num_directions: int, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """(D, M) random unit vectors in columns, uniform on the sphere.

    Args:
        generator: draws on its own device, so that the draw is the same wherever the vectors are used.
        device: where they are wanted; a GPU is not waited for. None: the generator's.
    """
    normal_DM = torch.randn(dim, num_directions, generator=generator, device=generator.device)
    directions_DM = normal_DM / normal_DM.norm(dim=0, keepdim=True)
    if device is None or device == generator.device:
        return directions_DM
    if device.type == "cuda":
        directions_DM = directions_DM.pin_memory()
    return directions_DM.to(device, non_blocking=True)


def sigreg(
    z_TBD: Tensor,
    directions_DM: Tensor,
    num_knots: int = NUM_KNOTS,
    knot_max: float = KNOT_MAX,
) -> Tensor:
    """Sketched isotropic-gaussian regulariser: is each time step's batch N(0, I)? (paper Eq. 2-3)

    Each of the T batches is tested by itself, over B, along every direction; time stays free.

    Args:
        z_TBD: projected embeddings, time first.
        directions_DM: unit vectors in columns, fresh in every step, on the same device.

    Returns:
        Scalar >= 0, the Epps-Pulley statistic averaged over directions and time steps. About 1 for
        N(0, I) at any B.
    """
    with torch.autocast(z_TBD.device.type, enabled=False):
        h_TMB = (z_TBD.float() @ directions_DM).transpose(1, 2)
        return epps_pulley(h_TMB, num_knots, knot_max).mean()
