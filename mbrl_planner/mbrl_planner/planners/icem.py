"""Improved cross-entropy method (Pinneri et al., 2020, https://arxiv.org/abs/2008.06389)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_planner.planners.noise import colored_noise
from mbrl_planner.planners.options import SamplingConfig, at_most
from mbrl_planner.planners.sampling import SamplingPlanner, Scored, Search


@config
class ICEMConfig(SamplingConfig):
    """Configuration of ICEM."""

    elites: Annotated[
        int, Field(ge=1, description="best candidates that the next iteration is fitted to [1]")
    ] = 8
    momentum: Annotated[float, Field(ge=0, lt=1, description="weight of the old mean and deviation [1]")] = (
        0.1
    )
    color: Annotated[
        float,
        Field(ge=0, description="exponent of the noise's spectrum along time: 0 white, 1 pink, 2 red [1]"),
    ] = 2.5
    keep: Annotated[float, Field(ge=0, le=1, description="share of the elites tried again [1]")] = 0.5
    decay: Annotated[float, Field(ge=1, description="candidates shrink by this factor an iteration [1]")] = (
        1.25
    )

    def __post_init__(self) -> None:
        """Elites are candidates."""
        super().__post_init__()
        at_most("elites", self.elites, "candidates", self.candidates)


class ICEM(SamplingPlanner):
    """CEM with coloured noise, a shrinking population and a memory of elites; runs the best candidate."""

    Config = ICEMConfig
    capturable = True

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """Coloured noise about the mean, elites kept from before and, in the last iteration, the mean."""
        config = self.config
        batch, horizon, width = search.mean.shape
        count = max(int(config.candidates * config.decay**-iteration), 2 * config.elites)  # section 3
        draw = colored_noise((batch, count, width), horizon, config.color, noise, search.mean.device).mT
        candidates = [(search.mean[:, None] + search.std[:, None] * draw).clamp(-1.0, 1.0)]
        if search.elites is not None:
            candidates.append(search.elites[:, : round(config.keep * config.elites)])
        if iteration == config.iterations - 1:
            candidates.append(search.mean[:, None])
        return torch.cat(candidates, dim=1)

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean and deviation of the elites, smoothed; the elites stay."""
        elites, keep = scored.top(self.config.elites), self.config.momentum
        mean = keep * search.mean + (1 - keep) * elites.mean(1)
        std = keep * search.std + (1 - keep) * elites.std(1, correction=0)
        return mean, std, elites
