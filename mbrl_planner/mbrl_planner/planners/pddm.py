"""The planner of PDDM: filtering and reward-weighted refinement (Nagabandi et al., 2019,
https://arxiv.org/abs/1909.11652, section 4.2).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_planner.planners.noise import filtered_noise
from mbrl_planner.planners.options import SamplingConfig
from mbrl_planner.planners.sampling import SamplingPlanner, Scored, Search
from mbrl_planner.planners.scoring import soft_weights


@config
class PDDMConfig(SamplingConfig):
    """Configuration of PDDM."""

    std: Annotated[
        float,
        Field(gt=0, description="spread of the noise before it is filtered, which makes it smaller [1]"),
    ] = 1.0
    beta: Annotated[
        float,
        Field(gt=0, le=1, description="share of new noise in each step's; 1 = no filter, small = smooth [1]"),
    ] = 0.6
    gamma: Annotated[
        float,
        Field(gt=0, description="weight of returns, in units of one by their standard deviation [1]"),
    ] = 10.0


class PDDM(SamplingPlanner):
    """Perturbs its plan by noise that is filtered along time, and averages by exp(gamma return).

    The paper's gamma belongs to returns as they are, and is tuned to each task's rewards; ours to returns in
    units of the candidates' standard deviation. Its filter shrinks the noise: to `beta` of `std` in the first
    step, to sqrt(beta / (2 - beta)) of it later.
    """

    Config = PDDMConfig
    capturable = True

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """Perturbations of the mean (equations 4 and 5)."""
        batch, horizon, width = search.mean.shape
        shape, beta = (batch, self.config.candidates, width), self.config.beta
        draw = filtered_noise(shape, horizon, beta, noise, search.mean.device)
        perturbed = torch.addcmul(search.mean[:, None], search.std[:, None], draw.mT)
        return perturbed.clamp_(-1.0, 1.0)

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """The mean of the clipped plans, weighted by their returns (equation 3)."""
        weights = soft_weights(scored.returns, 1.0 / self.config.gamma)
        return torch.einsum("bn,bnha->bha", weights, scored.actions), search.std, None

    def answer(self, search: Search) -> Tensor:
        """The weighted mean."""
        return search.mean
