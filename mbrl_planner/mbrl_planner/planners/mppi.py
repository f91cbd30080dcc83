"""Model predictive path integral control (Williams et al., 2017, https://arxiv.org/abs/1707.02342)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_planner.planners.noise import colored_noise
from mbrl_planner.planners.options import SamplingConfig
from mbrl_planner.planners.sampling import SamplingPlanner, Scored, Search
from mbrl_planner.planners.scoring import soft_weights


@config
class MPPIConfig(SamplingConfig):
    """Configuration of MPPI."""

    temperature: Annotated[
        float,
        Field(gt=0, description="of the weights, in standard deviations of the candidates' returns [1]"),
    ] = 0.3
    color: Annotated[
        float,
        Field(ge=0, description="exponent of the noise's spectrum along time: 0 white, 1 pink, 2 red [1]"),
    ] = 1.0


class MPPI(SamplingPlanner):
    """Averages perturbed plans, each weighted by the exponential of its return."""

    Config = MPPIConfig
    capturable = True

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """The mean itself and perturbations of it."""
        batch, horizon, width = search.mean.shape
        shape, color = (batch, self.config.candidates - 1, width), self.config.color
        draw = colored_noise(shape, horizon, color, noise, search.mean.device)
        mean, std = search.mean.mT[:, None], search.std.mT[:, None]
        return torch.cat([mean, torch.addcmul(mean, std, draw).clamp_(-1.0, 1.0)], dim=1).mT

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weighted mean of the clipped plans (equation 26)."""
        weights = soft_weights(scored.returns, self.config.temperature)
        return torch.einsum("bn,bnha->bha", weights, scored.actions), search.std, None

    def answer(self, search: Search) -> Tensor:
        """The weighted mean."""
        return search.mean
