"""The cross-entropy method as the publication's planner (paper §3.3, App. D; facts §4.1).

Shapes: B episodes, S samples, K elites, H horizon, A action block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.methods import Cost
from lewm.planners import draw_normals, finite_cost


class CEM:
    """Refits a diagonal gaussian over z-scored actions to the cheapest samples; returns its mean.

    Mean 0 and standard deviation 1 at first; in every iteration candidate 0 is the current mean,
    and both are replaced by the elites' (unbiased) mean and standard deviation. No smoothing, no
    floor, no clipping: the environment clips what it executes.

    Args:
        config: `num_samples`, `num_elites` and `num_iterations` are used.
    """

    raw = False

    def __init__(self, config: PlanningConfig) -> None:
        self.num_samples = config.num_samples
        self.num_elites = config.num_elites
        self.num_iterations = config.num_iterations

    def plan(
        self,
        cost: Cost | None,
        generators: Sequence[torch.Generator],
        horizon: int,
        action_dim: int,
    ) -> Tensor:
        """See `Planner.plan`. Each generator is asked for S x H x A normals per iteration.

        Raises:
            ValueError: no cost.
        """
        price = finite_cost(cost, "cem")
        shape = (horizon, action_dim)
        mean_BHA = torch.zeros(len(generators), *shape, device=generators[0].device)
        std_BHA = torch.ones_like(mean_BHA)
        for _ in range(self.num_iterations):
            noise_BSHA = draw_normals(generators, (self.num_samples, *shape))
            actions_BSHA = mean_BHA.unsqueeze(1) + std_BHA.unsqueeze(1) * noise_BSHA
            actions_BSHA[:, 0] = mean_BHA
            elites_BKHA, costs_BK = cheapest(actions_BSHA, price(actions_BSHA), self.num_elites)
            mean_BHA, std_BHA = refit(elites_BKHA, costs_BK, mean_BHA, std_BHA)
        return mean_BHA


def cheapest(actions_BSHA: Tensor, costs_BS: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` samples of lowest cost per episode, ascending, (B, count, H, A), and their costs."""
    costs_BK, best_BK = costs_BS.topk(count, dim=1, largest=False)
    episodes = torch.arange(len(actions_BSHA), device=actions_BSHA.device)
    return actions_BSHA[episodes.unsqueeze(1), best_BK], costs_BK


def refit(
    elites_BKHA: Tensor, costs_BK: Tensor, mean_BHA: Tensor, std_BHA: Tensor
) -> tuple[Tensor, Tensor]:
    """The elites' mean and unbiased standard deviation, without those of infinite cost.

    An episode left with no elite keeps its mean, one left with fewer than two its standard deviation.
    """
    new_mean_BHA, new_std_BHA = elites_BKHA.mean(dim=1), elites_BKHA.std(dim=1)
    for episode in costs_BK.isinf().any(dim=1).nonzero()[:, 0].tolist():
        left_KHA = elites_BKHA[episode, costs_BK[episode].isfinite()]
        new_mean_BHA[episode] = left_KHA.mean(dim=0) if len(left_KHA) else mean_BHA[episode]
        new_std_BHA[episode] = left_KHA.std(dim=0) if len(left_KHA) > 1 else std_BHA[episode]
    return new_mean_BHA, new_std_BHA
