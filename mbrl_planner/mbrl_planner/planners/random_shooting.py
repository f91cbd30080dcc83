"""Random shooting: plans drawn uniformly, of which the best is followed (Rao, 2009, "A Survey of Numerical
Methods for Optimal Control", and Nagabandi et al., 2018, https://arxiv.org/abs/1708.02596, section IV).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl_dynamics.spec import CONTINUOUS, DISCRETE
from mbrl_planner.planners.options import SamplingConfig
from mbrl_planner.planners.sampling import SamplingPlanner, Scored, Search


class RandomShooting(SamplingPlanner):
    """Draws plans uniformly, whatever `std` is; the best so far is tried again, also by the next plan.

    The only sampling planner for discrete actions. Few knots make it much better where smooth actions do:
    uniform numbers of many steps add up to almost nothing.
    """

    Config = SamplingConfig
    capturable = True
    kinds: ClassVar[tuple[str, ...]] = (CONTINUOUS, DISCRETE)

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """The best so far, and uniform draws: numbers in [-1, 1], or choices."""
        shape = (len(search.mean), self.config.candidates - 1, *search.mean.shape[1:])
        if search.discrete:
            choice = torch.randint(shape[-1], shape[:-1], generator=noise, device=search.mean.device)
            drawn = F.one_hot(choice, shape[-1]).to(search.mean.dtype)
        else:
            drawn = 2.0 * torch.rand(shape, generator=noise, device=search.mean.device) - 1.0
        return torch.cat([search.mean[:, None], drawn], dim=1)

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """The best."""
        return scored.top(1)[:, 0], search.std, None
