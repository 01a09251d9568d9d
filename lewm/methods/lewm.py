"""LeWM (arXiv 2603.19312): a JEPA held up by SIGReg alone.

Shapes: B batch, T time, D latent, A action block.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lewm.config import Config
from lewm.decoder import Decoder
from lewm.loss import prediction_loss, sigreg, unit_directions
from lewm.methods import Batch
from lewm.methods.jepa import JEPA


class LeWM(JEPA):
    """The published model with its two losses.

    Args:
        config: `model`, `loss` and `data.action_block` are used.
        action_dim: of the environment.
    """

    def __init__(self, config: Config, action_dim: int) -> None:
        super().__init__(config, action_dim)
        self.config = config.loss
        if self.config.reconstruction > 0:
            self.terms = ("reconstruction_loss",)
            self.decoder = Decoder(self.latent_dim, config.model.image_size, config.decoder)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Prediction loss on the last `history` frames + `lam` * SIGReg on all (paper Eq. 3).

        No stop-gradient: the targets send gradients to the encoder too. With `lam` = 0 SIGReg is
        measured but moves nothing. With `loss.reconstruction` above 0 the mean squared error of frames
        drawn from their embeddings is added, times that weight (paper Table 7).
        """
        z_BTD = self.encode(batch.frames_BTCHW)["z"]
        pred_BTD = self.predict(z_BTD[:, :-1], batch.actions_BTA[:, :-1])
        directions = unit_directions(
            self.latent_dim, self.config.num_directions, generator, z_BTD.device
        )
        pred_loss = prediction_loss(pred_BTD, z_BTD[:, 1:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.lam > 0):
            sigreg_loss = sigreg(
                z_BTD.transpose(0, 1), directions, self.config.num_knots, self.config.knot_max
            )
        total = pred_loss + self.config.lam * sigreg_loss
        terms = {"pred_loss": pred_loss, "sigreg_loss": sigreg_loss}
        if self.config.reconstruction > 0:
            drawn = self.decoder(z_BTD.flatten(0, 1))
            terms["reconstruction_loss"] = F.mse_loss(drawn, batch.frames_BTCHW.flatten(0, 1))
            total = total + self.config.reconstruction * terms["reconstruction_loss"]
        return {"loss": total, **terms}
