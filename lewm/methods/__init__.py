"""What can be trained and planned with: the `Method` contract and the registry.

Shapes: B batch, T time, S plan samples, H horizon, D latent, A action block, Q proprioception, P patches,
C channels of a patch.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lewm.config import Config
from lewm.spelling import nearest

if TYPE_CHECKING:
    from lewm.data.clips import ClipData
    from lewm.data.episodes import EpisodeFile

Cost = Callable[[Tensor], Tensor]
"""`cost(actions_BSHA) -> (B, S)`; all that a planner sees."""


@dataclass(frozen=True)
class Batch:
    """Clips to learn from."""

    frames_BTCHW: Tensor
    """Normalised float32 frames, T = history + 1; uint8 until they are on the device."""
    actions_BTA: Tensor
    """z-scored action blocks, the one leaving each frame."""
    proprio_BTQ: Tensor | None = None
    """Raw proprioception at each frame, the method's `proprio` columns side by side."""
    codes_BTPC: Tensor | None = None
    """What a frozen encoder made of the frames before; they are then empty."""


class Method(nn.Module):
    """A trainable world model that can price action sequences; every method is one of these.

    Attributes:
        history: context frames the predictor can take.
        latent_dim: D.
        trains: whether it learns by gradient steps; else `fit` sees the training clips once.
        terms: names of the scalars that `loss` returns beside "loss", "pred_loss" and "sigreg_loss".
        pretrained: part of the method is read from a weights file that is not ours.
        random_weights: that part was drawn at random instead, which is good for timing and nothing else.
        can_collapse: whether training can make all embeddings alike; a frozen encoder's cannot be.
        proprio: columns of a data file that the method reads beside the frames, with their widths.
    """

    history: int
    latent_dim: int
    trains: bool = True
    terms: tuple[str, ...] = ()
    pretrained: bool = False
    random_weights: bool = False
    can_collapse: bool = True
    proprio: Mapping[str, int] = MappingProxyType({})

    @classmethod
    def unavailable(cls, config: Config) -> str | None:
        """Why the method cannot run on this machine, in one line with the mend; None if it can."""
        return None

    @property
    def num_params(self) -> int:
        """Number of parameters, frozen ones included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def prepare(self, file: "EpisodeFile", train: "ClipData", val: "ClipData") -> None:
        """Takes what it needs of the data before training, on its device; draws no random number."""

    def encode(self, frames_BTCHW: Tensor, proprio_BTQ: Tensor | None = None) -> dict[str, Tensor]:
        """Embeds normalised frames: "z" (B, T, D) and "cls" (B, T, encoder width).

        Args:
            proprio_BTQ: raw, the columns of `proprio` side by side; None for a method without them.
        """
        raise NotImplementedError

    def embed(self, batch: Batch) -> Tensor:
        """The "z" (B, T, D) of a batch of clips."""
        return self.encode(batch.frames_BTCHW)["z"]

    def pooled(self, z_BTD: Tensor) -> Tensor:
        """What stages measure and probe of embeddings (..., D); all of them, unless D is huge."""
        return z_BTD

    def predict(self, z_BTD: Tensor, actions_BTA: Tensor) -> Tensor:
        """Next embedding after each of T <= history frames, teacher forced and causal: (B, T, D)."""
        raise NotImplementedError

    def rollout(self, z_BTD: Tensor, actions_BSHA: Tensor) -> Tensor:
        """Imagined paths from T context frames under S action sequences each.

        Args:
            z_BTD: context embeddings.
            actions_BSHA: T - 1 blocks that led through the context, then the ones to imagine.

        Returns:
            (B, S, H + 1, D): the T context embeddings, then one prediction per further block.
        """
        raise NotImplementedError

    def plan_cost(
        self,
        start_BTCHW: Tensor,
        goal_B1CHW: Tensor,
        past_actions_BTA: Tensor | None = None,
        start_proprio_BTQ: Tensor | None = None,
        goal_proprio_B1Q: Tensor | None = None,
    ) -> Cost:
        """Prices action sequences by where they end; start and goal are encoded here, once.

        Args:
            start_BTCHW: T context frames, the last one being now.
            goal_B1CHW: the frame to reach.
            past_actions_BTA: the T - 1 z-scored blocks between the context frames; None for T = 1.
            start_proprio_BTQ, goal_proprio_B1Q: raw, for a method with `proprio`.

        Returns:
            `cost(actions_BSHA) -> (B, S)`, z-scored blocks in, squared L2 distance of the last
            imagined embedding to the goal's out.
        """
        raise NotImplementedError

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars "loss" (to minimise), "pred_loss" and the method's own terms, of a batch of clips."""
        raise NotImplementedError

    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """For a method that does not train: sets its parameters from training clips, without gradients.

        Args:
            batches: gives the clips of one pass; the same ones each time it is called.
        """
        raise NotImplementedError


METHODS: dict[str, str] = {
    "lewm": "lewm.methods.lewm:LeWM",
    "pldm": "lewm.methods.pldm:PLDM",
    "dino_wm": "lewm.methods.dino_wm:DinoWM",
    "random_encoder": "lewm.methods.baselines:RandomEncoder",
    "copy_last": "lewm.methods.baselines:CopyLast",
    "linear_dynamics": "lewm.methods.baselines:LinearDynamics",
}


def method_class(name: str) -> type[Method]:
    """The class of a method, imported on use.

    Raises:
        ValueError: unknown, naming the known ones and the nearest.
    """
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name!r}{nearest(name, METHODS)}; known: {', '.join(METHODS)}"
        )
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found


def make_method(config: Config, action_dim: int, random_weights: bool = False) -> Method:
    """A freshly initialised method, drawing from torch's global generator.

    Args:
        action_dim: of the environment; a block has `data.action_block` times as many numbers.
        random_weights: a `pretrained` method gets random weights instead of those of its file, and says so
            by its attribute `random_weights`; for timing. Others are as without it.

    Raises:
        ValueError: unknown `method`, or a weights file that is missing or of another kind.
    """
    method = method_class(config.method)
    options = {"random_weights": True} if random_weights and method.pretrained else {}
    make: Callable[..., Method] = method
    return make(config, action_dim, **options)
