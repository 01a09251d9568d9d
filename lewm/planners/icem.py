"""The improved cross-entropy method (Pinneri et al. 2020, arXiv 2008.06389).

Shapes: B episodes, S samples, K elites, H horizon, A action block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm.config import PlanningConfig
from lewm.methods import Cost
from lewm.planners import draw_normals, finite_cost
from lewm.planners.cem import cheapest, refit


class ICEM:
    """CEM with coloured noise, elites that compete again, fewer samples each time; returns the best.

    As published: noise correlated over time, `icem_keep_frac` of the elites carried into the next
    iteration, max(S / decay^i, 2 K) samples in iteration i, momentum, and the mean among the
    candidates of the last iteration. The plan is the cheapest sequence ever priced.

    Otherwise than published: no clipping to bounds (actions are z-scored; the environment clips), the
    first standard deviation is 1 as in `CEM`, never more than S samples, and elites are not shifted
    from one plan to the next, because a planner sees nothing but the cost of the plan at hand.
    Correlation is over the H blocks: each number of a block has a coloured sequence of its own.

    Args:
        config: `num_samples`, `num_elites`, `num_iterations` and `icem_*` are used.
    """

    raw = False

    def __init__(self, config: PlanningConfig) -> None:
        self.num_samples = config.num_samples
        self.num_elites = config.num_elites
        self.num_iterations = config.num_iterations
        self.beta = config.icem_beta
        self.num_kept = int(config.icem_keep_frac * config.num_elites)
        self.decay = config.icem_decay
        self.momentum = config.icem_momentum

    def plan(
        self,
        cost: Cost | None,
        generators: Sequence[torch.Generator],
        horizon: int,
        action_dim: int,
    ) -> Tensor:
        """See `Planner.plan`. Each generator is asked for S x H x A normals, S of the iteration.

        Raises:
            ValueError: no cost.
        """
        price = finite_cost(cost, "icem")
        shape, device = (horizon, action_dim), generators[0].device
        mean_BHA = torch.zeros(len(generators), *shape, device=device)
        std_BHA = torch.ones_like(mean_BHA)
        best_BHA = mean_BHA
        lowest_B = torch.full((len(generators),), torch.inf, device=device)
        kept_BKHA = torch.zeros(len(generators), 0, *shape, device=device)
        kept_BK = torch.zeros(len(generators), 0, device=device)
        colour_HH = noise_filter(horizon, self.beta).to(device)
        for iteration in range(self.num_iterations):
            white_BSHA = draw_normals(generators, (self.samples_in(iteration), *shape))
            # one episode at a time: a product's bits may depend on how many rows it has
            noise_BSHA = torch.stack([colour_HH @ white_SHA for white_SHA in white_BSHA])
            actions_BSHA = mean_BHA.unsqueeze(1) + std_BHA.unsqueeze(1) * noise_BSHA
            if iteration == self.num_iterations - 1:
                actions_BSHA[:, 0] = mean_BHA
            pool_BSHA = torch.cat([kept_BKHA, actions_BSHA], dim=1)
            costs_BS = torch.cat([kept_BK, price(actions_BSHA)], dim=1)
            elites_BKHA, costs_BK = cheapest(pool_BSHA, costs_BS, self.num_elites)
            fit_mean_BHA, fit_std_BHA = refit(elites_BKHA, costs_BK, mean_BHA, std_BHA)
            mean_BHA = fit_mean_BHA.lerp(mean_BHA, self.momentum)
            std_BHA = fit_std_BHA.lerp(std_BHA, self.momentum)
            kept_BKHA, kept_BK = elites_BKHA[:, : self.num_kept], costs_BK[:, : self.num_kept]
            better_B = costs_BK[:, 0] < lowest_B
            best_BHA = torch.where(better_B[:, None, None], elites_BKHA[:, 0], best_BHA)
            lowest_B = torch.where(better_B, costs_BK[:, 0], lowest_B)
        return best_BHA

    def samples_in(self, iteration: int) -> int:
        """Number of fresh samples; never below the elites."""
        shrunk = int(self.num_samples / self.decay**iteration)
        return min(self.num_samples, max(shrunk, 2 * self.num_elites))


def noise_filter(horizon: int, beta: float) -> Tensor:
    """(H, H) matrix that turns white noise over time into noise of power f^-beta and variance 1.

    The mean over time has the power of the lowest frequency, 1/H.
    """
    frequencies = torch.fft.fftfreq(horizon, dtype=torch.float64).abs().clamp(min=1 / horizon)
    amplitudes = frequencies.pow(-beta / 2)
    amplitudes = amplitudes / amplitudes.square().mean().sqrt()
    white = torch.fft.fft(torch.eye(horizon, dtype=torch.float64), dim=0)
    return torch.fft.ifft(amplitudes.unsqueeze(1) * white, dim=0).real.float()
