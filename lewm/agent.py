"""The trained model as a planner uses it: what it sees, and what it says that plans cost.

Shapes: B episodes, S plan samples, T context frames, H planned blocks, A action block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.data.clips import Normaliser, prepare_frames
from lewm.envs import Env
from lewm.methods import Cost, Method
from lewm.protocol import Protocol


@dataclass(frozen=True)
class Agent:
    """What a planner that looks at frames needs to price actions: the trained model and what it sees.

    Attributes:
        normaliser: units of the actions that the model was trained on.
        image_size: pixels per side that the model sees.
        frame_size: pixels per side of its training frames, as its worlds are drawn.
        render_quality: how its training frames were drawn.
    """

    method: Method
    normaliser: Normaliser
    device: torch.device
    image_size: int
    frame_size: int
    render_quality: str = "exact"

    def world(self, protocol: Protocol) -> Env:
        """A world of the protocol that draws as the training frames were drawn."""
        return protocol.make_env(self.frame_size, render_quality=self.render_quality)

    def see(self, frames_BTHWC: npt.NDArray[Any]) -> Tensor:
        """Drawn frames as the model takes them, (B, T, 3, image_size, image_size) on its device."""
        frames = torch.from_numpy(frames_BTHWC).to(self.device).movedim(-1, -3)
        return prepare_frames(frames, self.image_size)


@contextmanager
def frozen(method: Method) -> Iterator[None]:
    """Meanwhile no gradient of a planner's cost reaches the weights, nor is anything kept for it."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def price_plans(
    method: Method,
    config: PlanningConfig,
    device: torch.device,
    start_BTCHW: Tensor,
    goal_B1CHW: Tensor,
    past_actions_BTA: Tensor | None = None,
    *proprio: Tensor,
) -> Cost:
    """`Method.plan_cost` in the precision, and compiled as, the settings say; takes and gives CPU tensors.

    Args:
        config: `precision` and `compile` are used.
        device: the method's, and of everything given here.
        proprio: at start and goal, for a method that has it.
    """
    in_precision = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"
    )
    with in_precision:
        price = method.plan_cost(start_BTCHW, goal_B1CHW, past_actions_BTA, *proprio)
    if config.compile != "off":
        price = torch.compile(price, mode=config.compile)

    def cost(actions_BSHA: Tensor) -> Tensor:
        with in_precision:
            return price(actions_BSHA.to(device)).float().cpu()

    return cost
