"""The architecture that LeWM and PLDM share: encoder and predictor trained jointly from pixels.

Shapes: B batch, T time, S plan samples, H horizon, D latent, A action block.
"""

import torch
from torch import Tensor, nn

from lewm.config import Config, ModelConfig
from lewm.loss import squared_error
from lewm.methods import Cost, Method
from lewm.model import ActionEncoder, KeysValues, Predictor, Projector
from lewm.resnet import ResNet18
from lewm.vit import ViT


def make_encoder(model: ModelConfig) -> tuple[nn.Module, int]:
    """The encoder of single frames and the width of what it gives."""
    if model.encoder == "resnet18":
        resnet = ResNet18(model.image_size, model.resnet_channels)
        return resnet, resnet.width
    vit = ViT(model.image_size, model.patch_size, model.width, model.depth, model.heads, model.mlp)
    return vit, model.width


class JEPA(Method):
    """LeWM's published model without a loss, quirks included; its state dict has the released tensor names.

    Args:
        config: `model` and `data.action_block` are used.
        action_dim: of the environment.
    """

    def __init__(self, config: Config, action_dim: int) -> None:
        super().__init__()
        model = config.model
        self.history = model.history
        self.latent_dim = model.latent_dim
        self.encoder, encoder_width = make_encoder(model)
        self.predictor = Predictor(
            model.history,
            model.latent_dim,
            model.predictor_depth,
            model.predictor_heads,
            model.predictor_head_dim,
            model.predictor_mlp,
            model.dropout,
        )
        self.action_encoder = ActionEncoder(
            config.data.action_block * action_dim,
            model.action_hidden,
            model.latent_dim,
            model.action_mlp_ratio,
        )
        self.projector = Projector(encoder_width, model.projector_hidden, model.latent_dim)
        self.pred_proj = Projector(model.latent_dim, model.projector_hidden, model.latent_dim)

    def encode(self, frames_BTCHW: Tensor, proprio_BTQ: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.encode`; "cls" is the encoder's output, "z" its projection."""
        cls = self.encoder(frames_BTCHW.flatten(0, 1))
        cls_BTW = cls.reshape(*frames_BTCHW.shape[:2], -1)
        return {"z": self.projector(cls_BTW), "cls": cls_BTW}

    def predict(self, z_BTD: Tensor, actions_BTA: Tensor) -> Tensor:
        """See `Method.predict`.

        Raises:
            ValueError: more frames than `history`, or another number of actions than frames.
        """
        return self.pred_proj(self.predictor(z_BTD, self.action_encoder(actions_BTA)))

    def rollout(self, z_BTD: Tensor, actions_BSHA: Tensor) -> Tensor:
        """See `Method.rollout`. Each prediction sees the last `history` frames; no dropout.

        Raises:
            ValueError: fewer action blocks than context frames.
        """
        num_samples, num_blocks = actions_BSHA.shape[1:3]
        num_context = z_BTD.shape[1]
        if num_blocks < num_context:
            raise ValueError(
                f"{num_context} context frames need as many action blocks, got {num_blocks}"
            )
        modulations = self.predictor.modulations(self.action_encoder(actions_BSHA.flatten(0, 1)))
        context = z_BTD.repeat_interleave(num_samples, dim=0)
        path = list(context.unbind(1))
        past: list[KeysValues] | None = None
        done = 0
        for end in range(num_context, num_blocks + 1):
            begin = max(0, end - self.history)
            if begin > 0:  # the window has moved, and with it every frame's position
                past, done = None, begin
            new = slice(done, end)
            hidden, past = self.predictor.last(
                torch.stack(path[new], dim=1), [mod[:, new] for mod in modulations], past
            )
            done = end
            path.append(self.pred_proj(hidden))
        return torch.stack(path, dim=1).reshape(-1, num_samples, num_blocks + 1, self.latent_dim)

    def plan_cost(
        self,
        start_BTCHW: Tensor,
        goal_B1CHW: Tensor,
        past_actions_BTA: Tensor | None = None,
        start_proprio_BTQ: Tensor | None = None,
        goal_proprio_B1Q: Tensor | None = None,
    ) -> Cost:
        """See `Method.plan_cost` (facts §4.1). Call it in evaluation mode.

        Raises:
            ValueError: another number of past blocks than context frames less one.
        """
        num_context = start_BTCHW.shape[1]
        num_past = 0 if past_actions_BTA is None else past_actions_BTA.shape[1]
        if num_past != num_context - 1:
            raise ValueError(
                f"{num_context} context frames need {num_context - 1} past action blocks, "
                f"got {num_past}"
            )
        start_BTD = self.encode(start_BTCHW)["z"]
        goal_B1D = self.encode(goal_B1CHW)["z"]

        def cost(actions_BSHA: Tensor) -> Tensor:
            if past_actions_BTA is not None:
                past = past_actions_BTA.unsqueeze(1).expand(-1, actions_BSHA.shape[1], -1, -1)
                actions_BSHA = torch.cat([past, actions_BSHA], dim=2)
            last_BSD = self.rollout(start_BTD, actions_BSHA)[:, :, -1]
            return squared_error(last_BSD, goal_B1D).sum(-1)

        return cost
