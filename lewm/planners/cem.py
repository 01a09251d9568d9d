"""The cross-entropy method as the publication's planner (paper §3.3, App. D; facts §4.1).

Shapes: B episodes, S samples, K elites, H horizon, A action block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.methods import Cost


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
        if cost is None:
            raise ValueError("planner 'cem' needs a cost to search")
        device = generators[0].device
        mean_BHA = torch.zeros(len(generators), horizon, action_dim, device=device)
        std_BHA = torch.ones_like(mean_BHA)
        shape = (self.num_samples, horizon, action_dim)
        for _ in range(self.num_iterations):
            noise_BSHA = torch.stack(
                [torch.randn(shape, generator=rng, device=device) for rng in generators]
            )
            actions_BSHA = mean_BHA.unsqueeze(1) + std_BHA.unsqueeze(1) * noise_BSHA
            actions_BSHA[:, 0] = mean_BHA
            costs_BS = cost(actions_BSHA)
            best_BK = costs_BS.topk(self.num_elites, dim=1, largest=False).indices
            elites_BKHA = actions_BSHA[torch.arange(len(generators)).unsqueeze(1), best_BK]
            mean_BHA, std_BHA = elites_BKHA.mean(dim=1), elites_BKHA.std(dim=1)
        return mean_BHA
