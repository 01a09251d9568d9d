"""LeWM's loss: total = pred + lam * SIGReg (paper Eq. 1-3, quadrature as in the authors' code).

This is the one convention; `(1 - lam) * pred + lam * sigreg` also circulates. SIGReg carries the
batch size as a factor, so a `lam` only means something with its batch size. It needs the whole
batch on one device.

Shapes: B batch, T time, D latent, M directions, K knots.
"""

import torch
from torch import Tensor

NUM_KNOTS = 17
KNOT_MAX = 3.0


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
    nodes_K, normal_K, weights_K = _quadrature(num_knots, knot_max, h)
    angles = h.unsqueeze(-1) * nodes_K
    real = angles.cos().mean(-2) - normal_K
    imag = angles.sin().mean(-2)
    return (real.square() + imag.square()) @ weights_K * h.shape[-1]


def _quadrature(num_knots: int, knot_max: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, N(0, 1)'s characteristic function and weights; the node 0 adds nothing and is left out."""
    nodes_K = torch.linspace(0, knot_max, num_knots, dtype=like.dtype, device=like.device)[1:]
    normal_K = torch.exp(-nodes_K.square() / 2)
    weights_K = 2 * knot_max / (num_knots - 1) * normal_K
    weights_K[-1] /= 2
    return nodes_K, normal_K, weights_K


def unit_directions(dim: int, num_directions: int, generator: torch.Generator) -> Tensor:
    """(D, M) random unit vectors in columns, uniform on the sphere, on the generator's device."""
    normal_DM = torch.randn(dim, num_directions, generator=generator, device=generator.device)
    return normal_DM / normal_DM.norm(dim=0, keepdim=True)


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
        directions_DM: unit vectors in columns, fresh in every step.

    Returns:
        Scalar >= 0, the Epps-Pulley statistic averaged over directions and time steps. About 1 for
        N(0, I) at any B.
    """
    with torch.autocast(z_TBD.device.type, enabled=False):
        h_TMB = (z_TBD.float() @ directions_DM.to(z_TBD.device)).transpose(1, 2)
        return epps_pulley(h_TMB, num_knots, knot_max).mean()
