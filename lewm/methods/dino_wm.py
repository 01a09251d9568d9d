"""DINO-WM (Zhou et al. 2024, arXiv 2411.04983): a predictor of frozen DINOv2 patch tokens (facts §8.2).

A frame is its P patch tokens of 384 channels. To every token the embedded action block that leaves the
frame is concatenated, and with `dino.proprio` embedded proprioception too. The predictor is a
transformer over the tokens of up to `history` frames, each of which sees all tokens of its own frame and
of those before; its output at a frame is the next one's tokens, action channels left out. Only
the predictor and the two embeddings are trained.

"z" is all tokens of a frame side by side, (P x channels): what is predicted, planned with and
surprised by, since DINO-WM compares patch with patch. At the published size these are 98,304 numbers, too
many for a covariance or a ridge probe on them, so `pooled` gives stages the mean over patches instead: the
common summary of patch tokens, as wide as the CLS token, which stages see too ("cls"). What a probe
finds there is a lower bound on what the tokens hold.

Shapes: B batch, T time, S plan samples, H horizon, D latent = P x C, A action block, P patches,
C channels of a predicted token (visual, then proprioceptive), Q proprioception, K roll-outs, F new frames,
W channels of an input token (C and the action's).
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lewm.block_causal import BlockCausal
from lewm.config import DINO_PATCH, Config
from lewm.data.clips import ClipData
from lewm.data.episodes import EpisodeFile
from lewm.dinov2 import (
    WIDTH,
    DINOv2,
    load_dinov2,
    missing_weights,
    random_dinov2,
    weights_path,
    weights_sha256,
)
from lewm.envs import env_class
from lewm.loss import prediction_loss, squared_error
from lewm.methods import Batch, Cost, Method
from lewm.model import KeysValues
from lewm.token_cache import keep_tokens

CPU_TOKENS, GPU_TOKENS = 8192, 131072
"""About how many tokens are rolled out at a time when plans are priced."""


class DinoWM(Method):
    """Frozen DINOv2 ViT-S/14, trained predictor.

    The encoder is no submodule: it is in no checkpoint, trains nothing and counts for nothing; its file's
    hash is, and another file's weights are refused when a checkpoint is read.

    Args:
        config: `dino`, `model.image_size`, `model.history`, `data`, `run.dino_*` are used.
        action_dim: of the environment.
        random_weights: DINOv2 with random weights, for timing.

    Raises:
        ValueError: the weights file is missing or of another kind, or proprioception is asked for in an
            environment without.
    """

    pretrained = True
    can_collapse = False

    @classmethod
    def unavailable(cls, config: Config) -> str | None:
        """Where the weights come from and where to put them, if they are not there."""
        return None if weights_path(config) is not None else missing_weights(config)

    def __init__(self, config: Config, action_dim: int, random_weights: bool = False) -> None:
        super().__init__()
        dino = config.dino
        self.config = config
        self.random_weights = random_weights
        self.history = config.model.history
        self.num_patches = (config.model.image_size // DINO_PATCH) ** 2
        self.proprio = dict(env_class(config.data.env).proprio) if dino.proprio else {}
        num_proprio = sum(self.proprio.values())
        self.num_channels = WIDTH + (dino.proprio_embed if dino.proprio else 0)
        self.latent_dim = self.num_patches * self.num_channels
        self.terms = ("visual_loss", "proprio_loss") if dino.proprio else ()
        encoder, digest = _make_encoder(config, random_weights)
        self._frozen = (encoder,)  # in a tuple it is no submodule
        self.register_buffer(
            "weights_sha256", torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
        )
        self.action_encoder = nn.Linear(config.data.action_block * action_dim, dino.action_embed)
        if dino.proprio:
            self.proprio_encoder = nn.Linear(num_proprio, dino.proprio_embed)
            self.register_buffer("proprio_mean", torch.zeros(num_proprio))
            self.register_buffer("proprio_std", torch.ones(num_proprio))
        self.predictor = BlockCausal(
            self.history,
            self.num_patches,
            self.num_channels + dino.action_embed,
            dino.predictor_depth,
            dino.predictor_heads,
            dino.predictor_head_dim,
            dino.predictor_mlp,
            dino.dropout,
        )

    def _apply(self, *given: Any) -> Any:
        """Moves the encoder along with what is trained."""
        for module in self._frozen:
            cast(Any, module)._apply(*given)
        return cast(Any, super())._apply(*given)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        stored = state_dict.get(f"{prefix}weights_sha256")
        if stored is not None and not self.random_weights and not stored.cpu().equal(self._digest):
            raise ValueError(
                f"trained on DINOv2 weights {_hex(stored)[:12]}, but the file given now has "
                f"{_hex(self._digest)[:12]} (SHA-256)"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def _digest(self) -> Tensor:
        digest = self.get_buffer("weights_sha256")
        return digest.cpu()

    def prepare(self, file: EpisodeFile, train: ClipData, val: ClipData) -> None:
        """Fits the proprioception's units to the training episodes and keeps DINOv2's tokens on disk.

        Raises:
            ValueError: the file lacks a column of proprioception, or it has another width.
        """
        if self.proprio:
            values = read_proprio(file, self.proprio)
            seen = values[train.fitted_rows].astype(np.float64)
            std = np.where(seen.std(axis=0) > 0, seen.std(axis=0), 1.0)
            self.get_buffer("proprio_mean").copy_(torch.from_numpy(seen.mean(axis=0)))
            self.get_buffer("proprio_std").copy_(torch.from_numpy(std))
            train.proprio = val.proprio = torch.from_numpy(values)
        if not self.random_weights:
            codes = keep_tokens(file, self.config, self._frozen[0], _hex(self._digest))
            if codes is not None:
                train.use_codes(codes)
                val.use_codes(codes)

    def encode(self, frames_BTCHW: Tensor, proprio_BTQ: Tensor | None = None) -> dict[str, Tensor]:
        """See `Method.encode`; "z" is all tokens of a frame side by side, "cls" DINOv2's CLS token.

        Raises:
            ValueError: proprioception is missing, or not asked for.
        """
        tokens = self._frozen[0].encode(frames_BTCHW.flatten(0, 1))
        tokens = tokens.reshape(*frames_BTCHW.shape[:2], *tokens.shape[1:])
        return {"z": self._join(tokens[:, :, 1:], proprio_BTQ), "cls": tokens[:, :, 0]}

    def embed(self, batch: Batch) -> Tensor:
        """See `Method.embed`; takes the kept tokens where there are some."""
        if batch.codes_BTPC is None:
            return self.encode(batch.frames_BTCHW, batch.proprio_BTQ)["z"]
        return self._join(
            batch.codes_BTPC.to(self.predictor.pos_embedding.dtype), batch.proprio_BTQ
        )

    def _join(self, visual_BTPC: Tensor, proprio_BTQ: Tensor | None) -> Tensor:
        if bool(self.proprio) != (proprio_BTQ is not None):
            wanted = "needs" if self.proprio else "takes no"
            raise ValueError(
                f"dino.proprio is {bool(self.proprio)}: encoding {wanted} proprioception"
            )
        if proprio_BTQ is not None:
            mean, std = self.get_buffer("proprio_mean"), self.get_buffer("proprio_std")
            embedded = self.proprio_encoder((proprio_BTQ.float() - mean) / std)
            wide = embedded[:, :, None].expand(-1, -1, self.num_patches, -1)
            visual_BTPC = torch.cat([visual_BTPC, wide.to(visual_BTPC.dtype)], dim=-1)
        return visual_BTPC.flatten(2)

    def pooled(self, z_BTD: Tensor) -> Tensor:
        """Mean over the patches, (..., C)."""
        return self._tokens(z_BTD).mean(dim=-2)

    def predict(self, z_BTD: Tensor, actions_BTA: Tensor) -> Tensor:
        """See `Method.predict`.

        Raises:
            ValueError: more frames than `history`, or another number of actions than frames.
        """
        if z_BTD.shape[1] != actions_BTA.shape[1]:
            raise ValueError(f"{z_BTD.shape[1]} frames and {actions_BTA.shape[1]} actions")
        tokens = self._with_actions(self._tokens(z_BTD), self.action_encoder(actions_BTA))
        return self.predictor(tokens)[..., : self.num_channels].flatten(2)

    def _tokens(self, z_BTD: Tensor) -> Tensor:
        return z_BTD.reshape(*z_BTD.shape[:-1], self.num_patches, self.num_channels)

    def _with_actions(self, tokens_BTPC: Tensor, embedded_BTE: Tensor) -> Tensor:
        wide = embedded_BTE[:, :, None].expand(-1, -1, self.num_patches, -1)
        return torch.cat([tokens_BTPC, wide.to(tokens_BTPC.dtype)], dim=-1)

    def rollout(self, z_BTD: Tensor, actions_BSHA: Tensor) -> Tensor:
        """See `Method.rollout`. Each prediction sees the last `history` frames; no dropout in evaluation.

        Raises:
            ValueError: fewer action blocks than context frames.
        """
        num_samples = actions_BSHA.shape[1]
        context = self._tokens(z_BTD.repeat_interleave(num_samples, dim=0))
        path = [*context.unbind(1), *self._imagine(context, actions_BSHA.flatten(0, 1))]
        return torch.stack(path, dim=1).reshape(
            -1, num_samples, actions_BSHA.shape[2] + 1, self.latent_dim
        )

    def _imagine(self, context_KTPC: Tensor, actions_KHA: Tensor) -> Iterator[Tensor]:
        """The frames (K, P, C) after the context, one per action block from the context's last on."""
        num_context, num_blocks = context_KTPC.shape[1], actions_KHA.shape[1]
        if num_blocks < num_context:
            raise ValueError(
                f"{num_context} context frames need as many action blocks, got {num_blocks}"
            )
        embedded = self.action_encoder(actions_KHA)
        window = list(context_KTPC.unbind(1))
        past: list[KeysValues] | None = None
        done = 0
        for end in range(num_context, num_blocks + 1):
            begin = max(0, end - self.history)
            if begin > 0:  # the window has moved, and with it every frame's position
                past, done = None, begin
            new = torch.stack(window[done:end], dim=1)
            output, past = self.predictor.last(self._with_actions(new, embedded[:, done:end]), past)
            done = end
            window.append(output[..., : self.num_channels])
            yield window[-1]

    def plan_cost(
        self,
        start_BTCHW: Tensor,
        goal_B1CHW: Tensor,
        past_actions_BTA: Tensor | None = None,
        start_proprio_BTQ: Tensor | None = None,
        goal_proprio_B1Q: Tensor | None = None,
    ) -> Cost:
        """See `Method.plan_cost`; the cost is a mean, not a sum (facts §8.2).

        Mean squared error of the last imagined frame's visual channels, over patches, plus
        `dino.proprio_weight` times that of the proprioceptive ones. Roll-outs are made in pieces of a fixed
        size. Call it in evaluation mode.

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
        start = self._tokens(self.encode(start_BTCHW, start_proprio_BTQ)["z"])
        goal = self._tokens(self.encode(goal_B1CHW, goal_proprio_B1Q)["z"])[:, 0]
        limit = CPU_TOKENS if start.device.type == "cpu" else GPU_TOKENS
        piece = max(1, limit // (self.history * self.num_patches))

        def cost(actions_BSHA: Tensor) -> Tensor:
            num_samples = actions_BSHA.shape[1]
            if past_actions_BTA is not None:
                before = past_actions_BTA.unsqueeze(1).expand(-1, num_samples, -1, -1)
                actions_BSHA = torch.cat([before, actions_BSHA], dim=2)
            which = torch.arange(len(start), device=start.device).repeat_interleave(num_samples)
            costs = []
            actions_KHA = actions_BSHA.flatten(0, 1)
            for begin in range(0, len(which), piece):
                index = which[begin : begin + piece]
                *_, last = self._imagine(start[index], actions_KHA[begin : begin + piece])
                costs.append(self._distance(last, goal[index]))
            return torch.cat(costs).reshape(-1, num_samples)

        return cost

    def _distance(self, reached_KPC: Tensor, goal_KPC: Tensor) -> Tensor:
        error = squared_error(reached_KPC, goal_KPC)
        visual = error[..., :WIDTH].mean(dim=(1, 2))
        if not self.proprio:
            return visual
        return visual + self.config.dino.proprio_weight * error[..., WIDTH:].mean(dim=(1, 2))

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the next frames' visual and proprioceptive channels; targets are detached."""
        z_BTD = self.embed(batch)
        pred_BTD = self.predict(z_BTD[:, :-1], batch.actions_BTA[:, :-1])
        target_BTD = z_BTD[:, 1:].detach()
        pred_loss = prediction_loss(pred_BTD, target_BTD)
        if not self.proprio:
            return {"loss": pred_loss, "pred_loss": pred_loss}
        pred, target = self._tokens(pred_BTD.detach()), self._tokens(target_BTD)
        parts = {"visual_loss": slice(0, WIDTH), "proprio_loss": slice(WIDTH, None)}
        terms = {
            name: prediction_loss(pred[..., part], target[..., part])
            for name, part in parts.items()
        }
        return {"loss": pred_loss, "pred_loss": pred_loss, **terms}


def read_proprio(file: EpisodeFile, columns: Mapping[str, int]) -> npt.NDArray[np.float32]:
    """(rows, Q) float32 proprioception of a data file.

    Raises:
        ValueError: a column is missing or of another width.
    """
    parts = []
    for name, width in columns.items():
        values = file.read(name)
        values = values.reshape(len(values), -1)
        if values.shape[1] != width:
            raise ValueError(
                f"dataset {file.path}: {name} has {values.shape[1]} numbers a row, expected {width}"
            )
        parts.append(values.astype(np.float32))
    return np.concatenate(parts, axis=1)


def _make_encoder(config: Config, random_weights: bool) -> tuple[DINOv2, str]:
    """DINOv2 and the SHA-256 of its file (zeros for random weights)."""
    if random_weights:
        return random_dinov2(), "0" * 64
    path = weights_path(config)
    if path is None:
        raise ValueError(missing_weights(config))
    digest, wanted = weights_sha256(path), config.dino.weights_sha256
    if wanted is not None and digest != wanted:
        raise ValueError(
            f"{path}: SHA-256 is {digest[:12]}..., dino.weights_sha256 asks for {wanted[:12]}..."
        )
    return load_dinov2(path), digest


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist()).hex()
