"""Floors that need no model: uniformly random actions, and no action at all.

Shapes: B episodes, H horizon, A action block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.methods import Cost


class Random:
    """Uniform over the environment's action box [-1, 1], a fresh draw for every step."""

    raw = True

    def __init__(self, config: PlanningConfig) -> None:
        pass

    def plan(
        self,
        cost: Cost | None,
        generators: Sequence[torch.Generator],
        horizon: int,
        action_dim: int,
    ) -> Tensor:
        """See `Planner.plan`; in raw units."""
        shape = (horizon, action_dim)
        draws = [torch.rand(shape, generator=rng, device=rng.device) for rng in generators]
        return 2 * torch.stack(draws) - 1


class Zero:
    """Raw zeros. In z-scored units zero would be the mean training action instead."""

    raw = True

    def __init__(self, config: PlanningConfig) -> None:
        pass

    def plan(
        self,
        cost: Cost | None,
        generators: Sequence[torch.Generator],
        horizon: int,
        action_dim: int,
    ) -> Tensor:
        """See `Planner.plan`; in raw units."""
        return torch.zeros(len(generators), horizon, action_dim, device=generators[0].device)
