"""MPPI as it is usually written (Williams et al., 2017, algorithm 2): the reference of bench_planning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

Function = Callable[[Tensor, Tensor], Tensor]  # states [K, S], actions [K, A] -> states, or costs [K]


class PlainMPPI:
    """One loop over the horizon that calls dynamics and cost for all samples.

    Args:
        dynamics, cost: of a step.
        covariance: [A, A] of the noise.
        samples: K perturbed plans.
        horizon: T [steps].
        temperature: lambda.
    """

    def __init__(
        self,
        dynamics: Function,
        cost: Function,
        covariance: Tensor,
        samples: int,
        horizon: int,
        temperature: float,
    ) -> None:
        self.dynamics, self.cost, self.temperature = dynamics, cost, temperature
        self.noise = MultivariateNormal(torch.zeros(len(covariance)), covariance)
        self.inverse = torch.linalg.inv(covariance)
        self.plan = torch.zeros(horizon, len(covariance))
        self.samples = samples

    @torch.no_grad()
    def command(self, start: Tensor) -> Tensor:
        """The first action [A] of the plan from a state [S], which is shifted from the last one."""
        self.plan = torch.cat([self.plan[1:], torch.zeros_like(self.plan[:1])])
        noise = self.noise.rsample((self.samples, len(self.plan)))
        actions = (self.plan + noise).clamp(-1.0, 1.0)
        noise = actions - self.plan  # what is left of it within the bounds
        state, total = start.expand(self.samples, -1), torch.zeros(self.samples)
        for t in range(len(self.plan)):
            action = actions[:, t]
            state = self.dynamics(state, action)
            total = total + self.cost(state, action)
        total = total + (self.temperature * noise @ self.inverse * self.plan).sum((1, 2))
        weight = torch.softmax(-(total - total.min()) / self.temperature, dim=0)
        self.plan = self.plan + (weight[:, None, None] * noise).sum(0)
        return self.plan[0]
