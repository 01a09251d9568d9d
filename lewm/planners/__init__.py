"""What searches for actions: the `Planner` contract and the registry.

Shapes: B episodes, S samples, H horizon in blocks, A action block (action_block x environment
action dim).
"""

import importlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.methods import Cost
from lewm.spelling import nearest


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
        """(B, H, A) float32 actions on the generators' device; no episode's depend on another's.

        A candidate whose cost is NaN or infinite is never chosen and moves nothing; an episode in
        which no candidate has a finite cost is given zeros. So plans are always finite.

        Args:
            cost: `cost(actions_BSHA) -> (B, S)`, for any S; None only where `raw`.
            generators: one per episode, advanced by the call.
            horizon: H, blocks to plan.
            action_dim: A, numbers in a block.
        """
        ...


PLANNERS: dict[str, str] = {
    "cem": "lewm.planners.cem:CEM",
    "icem": "lewm.planners.icem:ICEM",
    "mppi": "lewm.planners.mppi:MPPI",
    "gradient": "lewm.planners.gradient:Gradient",
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


def finite_cost(cost: Cost | None, planner: str) -> Cost:
    """The cost with +inf for whatever is not finite: such a candidate comes last.

    Args:
        planner: name of who asks.

    Raises:
        ValueError: no cost.
    """
    if cost is None:
        raise ValueError(f"planner {planner!r} needs a cost to search")

    def price(actions_BSHA: Tensor) -> Tensor:
        costs_BS = cost(actions_BSHA)
        return costs_BS.where(costs_BS.isfinite(), torch.inf)

    return price


def draw_normals(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) standard normals, each episode's from its own generator."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])
