"""Gradient descent on the actions through the model (paper Table 10, v3; facts §4.1 and §4.5).

Shapes: B episodes, S starts, H horizon, A action block.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.methods import Cost
from lewm.planners import draw_normals, finite_cost

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's published constants. The steps are written out here because the first optimiser a process makes
loads torch's compiler: three seconds that would be counted as planning."""
ALPHA = 0.99
"""RMSProp's memory of squared slopes, torch's default; the publication's is unknown (facts §11)."""


class Gradient:
    """Descent from several initial plans at once; returns the one that ends cheapest.

    Start 0 is zero, the others are standard normal. Plans are neither clipped nor penalised, as
    published; a gradient that is not finite counts as zero. The released settings name AdamW, whose
    weight decay of 0.01 would besides shrink a plan by 0.1 % per step; the publication says Adam.

    Args:
        config: the `gradient_*` are used.
    """

    raw = False

    def __init__(self, config: PlanningConfig) -> None:
        self.num_steps = config.gradient_num_steps
        self.num_starts = config.gradient_num_starts
        self.lr = config.gradient_lr
        self.optimiser = config.gradient_optimiser

    def plan(
        self,
        cost: Cost | None,
        generators: Sequence[torch.Generator],
        horizon: int,
        action_dim: int,
    ) -> Tensor:
        """See `Planner.plan`; grad mode may be off. Each generator is asked for S x H x A normals.

        Costs are priced `num_steps` times with a graph, then once more to choose. Memory grows with
        B x S; weights that require gradients make it larger still, but collect none.

        Raises:
            ValueError: no cost, or one through which no gradient comes back.
        """
        price = finite_cost(cost, "gradient")
        actions_BSHA = draw_normals(generators, (self.num_starts, horizon, action_dim))
        actions_BSHA[:, 0] = 0
        step = _optimiser(self.optimiser, self.lr, actions_BSHA)
        for _ in range(self.num_steps):
            actions_BSHA = actions_BSHA - step(_gradient(price, actions_BSHA))
        with torch.no_grad():
            lowest_B, best_B = price(actions_BSHA).min(dim=1)
        plan_BHA = actions_BSHA[torch.arange(len(generators), device=best_B.device), best_B]
        return plan_BHA.where(lowest_B.isfinite()[:, None, None], 0)


def _optimiser(name: str, lr: float, like: Tensor) -> Callable[[Tensor], Tensor]:
    if name == "adam":
        return Adam(lr, like)
    return SGD(lr) if name == "sgd" else RMSProp(lr, like)


class Adam:
    """Steps of Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1)."""

    def __init__(self, lr: float, like: Tensor) -> None:
        self.lr = lr
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.num_steps = 0

    def __call__(self, slope: Tensor) -> Tensor:
        """What to subtract from the plans."""
        self.num_steps += 1
        self.first.lerp_(slope, 1 - BETA_1)
        self.second.lerp_(slope.square(), 1 - BETA_2)
        scale = (self.second / (1 - BETA_2**self.num_steps)).sqrt() + EPSILON
        return self.lr * self.first / (1 - BETA_1**self.num_steps) / scale


class SGD:
    """Steps along the slope, without momentum."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def __call__(self, slope: Tensor) -> Tensor:
        """What to subtract from the plans."""
        return self.lr * slope


class RMSProp:
    """Slopes over the root of their running mean square (Tieleman and Hinton 2012, lecture 6.5)."""

    def __init__(self, lr: float, like: Tensor) -> None:
        self.lr = lr
        self.second = torch.zeros_like(like)

    def __call__(self, slope: Tensor) -> Tensor:
        """What to subtract from the plans."""
        self.second.lerp_(slope.square(), 1 - ALPHA)
        return self.lr * slope / (self.second.sqrt() + EPSILON)


def _gradient(price: Cost, actions_BSHA: Tensor) -> Tensor:
    """Of every candidate's own cost, zero where it is not finite."""
    actions_BSHA = actions_BSHA.detach().requires_grad_()
    with torch.enable_grad():
        costs_BS = price(actions_BSHA)
        if not costs_BS.requires_grad:
            raise ValueError("planner 'gradient' needs a cost that can be differentiated")
        (slope_BSHA,) = torch.autograd.grad(costs_BS.sum(), actions_BSHA)
    return slope_BSHA.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
