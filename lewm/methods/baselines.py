"""Baselines that cost nothing: what a number is worth is seen beside them.

All three see frames through LeWM's encoder and projector at their random initialisation; only the batch
norm of the projector takes its mean and variance from data, or random embeddings would differ in scale
from seed to seed. None of them uses a label.

Shapes: B batch, T time, S plan samples, H horizon, D latent, A action block.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from lewm.config import Config
from lewm.loss import prediction_loss
from lewm.methods import Batch
from lewm.methods.jepa import JEPA

RIDGE = 1e-3
"""Of the linear dynamics, per clip frame: keeps the solution finite where inputs are collinear."""


class FrozenEncoder(JEPA):
    """A JEPA whose encoder and projector stay as they were drawn.

    Args:
        config: `model` and `data.action_block` are used.
        action_dim: of the environment.
    """

    can_collapse = False

    def __init__(self, config: Config, action_dim: int) -> None:
        super().__init__(config, action_dim)
        self.encoder.requires_grad_(False)
        self.projector.requires_grad_(False)


class RandomEncoder(FrozenEncoder):
    """LeWM's predictor trained on the embeddings of an untrained encoder."""

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The prediction loss alone: a frozen encoder cannot collapse."""
        z_BTD = self.encode(batch.frames_BTCHW)["z"]
        pred_BTD = self.predict(z_BTD[:, :-1], batch.actions_BTA[:, :-1])
        pred_loss = prediction_loss(pred_BTD, z_BTD[:, 1:])
        return {"loss": pred_loss, "pred_loss": pred_loss}


class OneStep(FrozenEncoder):
    """A frozen encoder with a predictor that reads the last embedding only and is fitted, not trained."""

    trains = False

    def __init__(self, config: Config, action_dim: int) -> None:
        super().__init__(config, action_dim)
        del self.predictor, self.action_encoder, self.pred_proj

    def step(self, z_BD: Tensor, actions_BA: Tensor) -> Tensor:
        """The next embedding after one action block: (..., D) and (..., A) → (..., D)."""
        raise NotImplementedError

    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Takes the projector's batch statistics as the mean over all batches."""
        norm = cast(nn.BatchNorm1d, self.projector.net[1])
        norm.reset_running_stats()
        norm.momentum = None
        self.train()
        for batch in batches():
            self.encode(batch.frames_BTCHW)

    def predict(self, z_BTD: Tensor, actions_BTA: Tensor) -> Tensor:
        """See `Method.predict`; every frame by itself."""
        return self.step(z_BTD, actions_BTA)

    def rollout(self, z_BTD: Tensor, actions_BSHA: Tensor) -> Tensor:
        """See `Method.rollout`.

        Raises:
            ValueError: fewer action blocks than context frames.
        """
        num_samples, num_blocks = actions_BSHA.shape[1:3]
        num_context = z_BTD.shape[1]
        if num_blocks < num_context:
            raise ValueError(
                f"{num_context} context frames need as many action blocks, got {num_blocks}"
            )
        path = list(z_BTD[:, None].expand(-1, num_samples, -1, -1).unbind(2))
        for block in range(num_context - 1, num_blocks):
            path.append(self.step(path[-1], actions_BSHA[:, :, block]))
        return torch.stack(path, dim=2)


class CopyLast(OneStep):
    """Nothing ever changes: the next embedding is the last one, whatever is done."""

    def step(self, z_BD: Tensor, actions_BA: Tensor) -> Tensor:
        """See `OneStep.step`."""
        return z_BD


class LinearDynamics(OneStep):
    """z' = W (z, a, 1), the ridge solution over all pairs of consecutive frames, in float64."""

    weight_IO: Tensor

    def __init__(self, config: Config, action_dim: int) -> None:
        super().__init__(config, action_dim)
        num_inputs = self.latent_dim + config.data.action_block * action_dim + 1
        self.register_buffer("weight_IO", torch.zeros(num_inputs, self.latent_dim))

    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Two passes: batch statistics, then the normal equations, summed batch by batch."""
        super().fit(batches)
        self.eval()
        num_inputs = len(self.weight_IO)
        gram_II = torch.zeros(num_inputs, num_inputs, dtype=torch.float64)
        cross_IO = torch.zeros_like(self.weight_IO, dtype=torch.float64, device="cpu")
        num_pairs = 0
        for batch in batches():
            z_BTD = self.encode(batch.frames_BTCHW)["z"].double().cpu()
            inputs_NI = _inputs(z_BTD[:, :-1], batch.actions_BTA[:, :-1].double().cpu()).flatten(
                0, 1
            )
            gram_II += inputs_NI.T @ inputs_NI
            cross_IO += inputs_NI.T @ z_BTD[:, 1:].flatten(0, 1)
            num_pairs += len(inputs_NI)
        gram_II += RIDGE * num_pairs * torch.eye(num_inputs, dtype=torch.float64)
        self.weight_IO.copy_(torch.linalg.solve(gram_II, cross_IO))

    def step(self, z_BD: Tensor, actions_BA: Tensor) -> Tensor:
        """See `OneStep.step`."""
        return _inputs(z_BD, actions_BA) @ self.weight_IO


def _inputs(z_BD: Tensor, actions_BA: Tensor) -> Tensor:
    """Embedding, action block and a one, side by side."""
    return torch.cat([z_BD, actions_BA, torch.ones_like(z_BD[..., :1])], dim=-1)
