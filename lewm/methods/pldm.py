"""PLDM as LeWM's paper compares it: the same JEPA, held up by VICReg-like terms with six weights.

Sobal et al. 2025 (arXiv 2502.14819), in the form of the comparison (arXiv 2603.19312, Table 2 and its
library; facts §8.1).

Shapes: B batch, T time, D latent, A action block.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.config import Config
from lewm.loss import prediction_loss
from lewm.methods import Batch
from lewm.methods.jepa import JEPA

EPSILON = 1e-4
TERMS = (
    *("variance", "covariance", "time_similarity"),
    *("time_variance", "time_covariance", "inverse_dynamics"),
)


class PLDM(JEPA):
    """Encoder, predictor and planner are LeWM's; the loss has seven terms.

    Args:
        config: `model`, `pldm` and `data.action_block` are used.
        action_dim: of the environment.
    """

    terms = TERMS

    def __init__(self, config: Config, action_dim: int) -> None:
        super().__init__(config, action_dim)
        self.config = config.pldm
        self.inverse_dynamics = nn.Sequential(
            nn.Linear(2 * self.latent_dim, self.config.inverse_hidden),
            nn.LayerNorm(self.config.inverse_hidden),
            nn.GELU(),
            nn.Linear(self.config.inverse_hidden, config.data.action_block * action_dim),
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Prediction + six weighted terms; a term of weight 0 is measured but moves nothing.

        Returns:
            Beside "loss" and "pred_loss" the terms by the names of their weights, unweighted.
        """
        z_BTD = self.encode(batch.frames_BTCHW)["z"]
        pred_BTD = self.predict(z_BTD[:, :-1], batch.actions_BTA[:, :-1])
        pred_loss = prediction_loss(pred_BTD, z_BTD[:, 1:])
        with torch.autocast(z_BTD.device.type, enabled=False):
            wide = z_BTD.float()
            actions = self._inferred_actions(wide), batch.actions_BTA[:, :-1]
            measures: dict[str, Callable[[], Tensor]] = {
                "variance": lambda: variance(wide),
                "covariance": lambda: covariance(wide),
                "time_similarity": lambda: time_similarity(wide),
                "time_variance": lambda: variance(wide.transpose(0, 1)),
                "time_covariance": lambda: time_covariance(wide),
                "inverse_dynamics": lambda: F.mse_loss(actions[0].float(), actions[1]),
            }
            terms = {}
            total = pred_loss
            for name, measured in measures.items():
                weight = getattr(self.config, name)
                with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                    terms[name] = measured()
                total = total + weight * terms[name]
        return {"loss": total, "pred_loss": pred_loss, **terms}

    def _inferred_actions(self, z_BTD: Tensor) -> Tensor:
        """The blocks that led from frame to frame, read off both embeddings: (B, T - 1, A)."""
        actions: Tensor = self.inverse_dynamics(torch.cat([z_BTD[:, 1:], z_BTD[:, :-1]], dim=-1))
        return actions


def variance(z_NKD: Tensor) -> Tensor:
    """How far standard deviations over the first axis fall short of 1 (VICReg's hinge).

    mean over the rest of ReLU(1 - sqrt(Var_N + 1e-4)), Var with N - 1: over the batch per time step, or with
    time first over time per clip. 0 where every dimension spreads by 1 or more.
    """
    return F.relu(1 - (z_NKD.var(dim=0) + EPSILON).sqrt()).mean()


def covariance(z_BTD: Tensor) -> Tensor:
    """Squared covariances between dimensions over the batch, mean over pairs and time steps.

    Per time step the sum of squared off-diagonals of the covariance (B - 1) over D^2 - D.
    """
    return _off_diagonal(z_BTD.transpose(0, 1))


def time_covariance(z_BTD: Tensor) -> Tensor:
    """`covariance` over the time of each clip, of embeddings centred over the batch first (facts §8.1)."""
    return _off_diagonal(z_BTD - z_BTD.mean(dim=0))


def _off_diagonal(z_KND: Tensor) -> Tensor:
    """Of K sets of N samples: mean squared covariance between different dimensions."""
    num_samples, dim = z_KND.shape[1:]
    centred = z_KND - z_KND.mean(dim=1, keepdim=True)
    covariance_KDD = centred.transpose(1, 2) @ centred / (num_samples - 1)
    squares_K = covariance_KDD.square().sum(dim=(1, 2))
    diagonal_K = covariance_KDD.diagonal(dim1=1, dim2=2).square().sum(dim=1)
    return ((squares_K - diagonal_K) / (dim**2 - dim)).mean()


def time_similarity(z_BTD: Tensor) -> Tensor:
    """Mean squared step between consecutive embeddings."""
    return z_BTD.diff(dim=1).square().mean()
