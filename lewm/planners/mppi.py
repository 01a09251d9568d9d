"""Model predictive path integral control (Williams et al. 2017, arXiv 1707.02342).

Shapes: B episodes, S samples, H horizon, A action block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.methods import Cost
from lewm.planners import draw_normals, finite_cost


class MPPI:
    """Moves a mean to the samples' average, weighted by softmax(-cost / temperature); returns it.

    Mean 0 at first, candidate 0 the current mean, noise of a fixed standard deviation: unlike CEM it
    never narrows down, so how near it comes to a minimum depends on `mppi_std`, and how many samples
    count on `mppi_temperature`, which is in units of the cost and so of the model's latent space. The
    published weights' term for the control effort is left out: no planner here is charged for it.

    Args:
        config: `num_samples`, `num_iterations` and `mppi_*` are used.
    """

    raw = False

    def __init__(self, config: PlanningConfig) -> None:
        self.num_samples = config.num_samples
        self.num_iterations = config.num_iterations
        self.temperature = config.mppi_temperature
        self.std = config.mppi_std

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
        price = finite_cost(cost, "mppi")
        shape = (horizon, action_dim)
        mean_BHA = torch.zeros(len(generators), *shape, device=generators[0].device)
        for _ in range(self.num_iterations):
            noise_BSHA = draw_normals(generators, (self.num_samples, *shape))
            actions_BSHA = mean_BHA.unsqueeze(1) + self.std * noise_BSHA
            actions_BSHA[:, 0] = mean_BHA
            costs_BS = price(actions_BSHA)
            weights_BS = torch.softmax(-costs_BS / self.temperature, dim=1)
            average_BHA = (weights_BS[:, :, None, None] * actions_BSHA).sum(dim=1)
            some_B = costs_BS.isfinite().any(dim=1)
            mean_BHA = torch.where(some_B[:, None, None], average_BHA, mean_BHA)
        return mean_BHA
