"""Cross-entropy method, with the truncated sampling of PETS (Chua et al., 2018, appendix A.3).

Rubinstein and Kroese, "The Cross-Entropy Method", 2004.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_planner.planners.noise import truncated_noise
from mbrl_planner.planners.options import SamplingConfig, at_most
from mbrl_planner.planners.sampling import SamplingPlanner, Scored, Search


@config
class CEMConfig(SamplingConfig):
    """Configuration of CEM."""

    elites: Annotated[
        int, Field(ge=1, description="best candidates that the next iteration is fitted to [1]")
    ] = 8
    momentum: Annotated[float, Field(ge=0, lt=1, description="weight of the old mean and variance [1]")] = 0.1

    def __post_init__(self) -> None:
        """Elites are candidates."""
        super().__post_init__()
        at_most("elites", self.elites, "candidates", self.candidates)


class CEM(SamplingPlanner):
    """Fits a Gaussian to the elites and samples again; answers with its mean."""

    Config = CEMConfig
    capturable = True

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """Independent Gaussians, no wider than half the distance to the nearer bound, cut at two sigma."""
        shape = (len(search.mean), self.config.candidates, *search.mean.shape[1:])
        distance = (1.0 - search.mean.abs()).clamp(min=1e-3)
        std = torch.minimum(search.std, distance / 2)
        draw = truncated_noise(shape, 2.0, noise, search.mean.device)
        return (search.mean[:, None] + std[:, None] * draw).clamp(-1.0, 1.0)

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean and variance of the elites, smoothed."""
        elites, keep = scored.top(self.config.elites), self.config.momentum
        mean = keep * search.mean + (1 - keep) * elites.mean(1)
        variance = keep * search.std.square() + (1 - keep) * elites.var(1, correction=0)
        return mean, variance.sqrt(), None

    def answer(self, search: Search) -> Tensor:
        """The mean: the maximum of noisy values would be an optimist's choice."""
        return search.mean
