"""What searches for actions: the `Planner` contract and the registry.

Shapes: B episodes, S samples, H horizon in blocks, A action block (action_block x environment
action dim).
"""

import importlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lewm.config import PlanningConfig, nearest
from lewm.methods import Cost


class Planner(Protocol):
    """Finds action sequences of low cost, seeing nothing of the world but the cost.

    A class in `PLANNERS` is built from the `PlanningConfig`.

    Attributes:
        raw: plans are in the environment's units and the cost is never asked for, so that no model
            is needed; otherwise they are in the z-scored units of the training actions.
    """

    raw: bool

    def plan(
        self,
        cost: Cost | None,
        generators: Sequence[torch.Generator],
        horizon: int,
        action_dim: int,
    ) -> Tensor:
        """(B, H, A) actions on the generators' device; no episode's plan depends on another's.

        Args:
            cost: `cost(actions_BSHA) -> (B, S)`; None only where `raw`.
            generators: one per episode, advanced by the call.
            horizon: H, blocks to plan.
            action_dim: A, numbers in a block.
        """
        ...


PLANNERS: dict[str, str] = {
    "cem": "lewm.planners.cem:CEM",
    "random": "lewm.planners.random:Random",
    "zero": "lewm.planners.random:Zero",
}


def make_planner(config: PlanningConfig) -> Planner:
    """The planner that `planning.planner` names.

    Raises:
        ValueError: unknown name, with the known ones and the nearest.
    """
    if config.planner not in PLANNERS:
        raise ValueError(
            f"unknown planner {config.planner!r}{nearest(config.planner, PLANNERS)}; "
            f"known: {', '.join(PLANNERS)}"
        )
    module, _, name = PLANNERS[config.planner].partition(":")
    planner: Planner = getattr(importlib.import_module(module), name)(config)
    return planner
