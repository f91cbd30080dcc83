"""Gaussian mixtures as what a network says: mixture density networks (Bishop, 1994,
https://publications.aston.ac.uk/id/eprint/373/).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics import draws
from mbrl_dynamics.interfaces import Noise


class Mixture(NamedTuple):
    """K Gaussians over O outputs, with diagonal covariances.

    Attributes:
        mean: [..., K, O].
        log_var: [..., K, O].
        logit: [..., K] log of the weights, but for a constant; of no meaning where there is one component.
    """

    mean: Tensor
    log_var: Tensor
    logit: Tensor

    def expected(self) -> Tensor:
        """Mean of the mixture [..., O]."""
        if self.mean.shape[-2] == 1:
            return self.mean.squeeze(-2)
        return (torch.softmax(self.logit, -1).unsqueeze(-1) * self.mean).sum(-2)

    def variance(self) -> Tensor:
        """Variance of each output [..., O]: within the components, and of their means."""
        share = torch.softmax(self.logit, -1).unsqueeze(-1) if self.mean.shape[-2] > 1 else 1.0
        apart = self.mean - self.expected().unsqueeze(-2)
        return (share * (self.log_var.exp() + apart.square())).sum(-2)

    def draw(self, noise: Noise) -> Tensor:
        """A sample [..., O]."""
        mean, std = self.component(noise)
        return mean + std * torch.randn(mean.shape, generator=noise, device=mean.device)

    def scaled(self, mean: Tensor, std: Tensor) -> Mixture:
        """The mixture of `mean` + `std` times what this one is of, both [..., O]."""
        mean, std = mean.unsqueeze(-2), std.unsqueeze(-2)
        return Mixture(mean + std * self.mean, self.log_var + 2.0 * std.log(), self.logit)

    def log_prob(self, target: Tensor) -> Tensor:
        """Log density [...] of targets [..., O]."""
        return -0.5 * target.shape[-1] * (self.nll(target) + math.log(2.0 * math.pi))

    def nll(self, target: Tensor) -> Tensor:
        """Twice the negative log likelihood [...] of targets [..., O], an output, without the constant.

        Outputs whose target is NaN do not count.
        """
        each = self._each(target)
        if each.shape[-1] == 1:
            return each.squeeze(-1)
        half = 0.5 * target.shape[-1]
        return -torch.logsumexp(torch.log_softmax(self.logit, -1) - half * each, -1) / half

    def miss(self, target: Tensor) -> Tensor:
        """Absolute error [..., O], each component's in proportion to how well it explains the target; NaN
        where that is.
        """
        miss = (self.mean - target.unsqueeze(-2)).abs()
        if self.mean.shape[-2] == 1:
            return miss.squeeze(-2)
        share = torch.softmax(self.logit - 0.5 * target.shape[-1] * self._each(target), -1)
        return (share.unsqueeze(-1) * miss).sum(-2)

    def component(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [..., O] of one component each, drawn by its weight."""
        if self.mean.shape[-2] == 1:
            mean, log_var = self.mean.squeeze(-2), self.log_var.squeeze(-2)
        else:
            bound = torch.softmax(self.logit, -1).cumsum(-1)[..., :-1]
            shape = bound.shape[:-1]
            drawn = draws.uniform(shape, noise, bound.device, before=len(shape) - 1)  # rows come last
            at = (bound <= drawn.unsqueeze(-1)).sum(-1)[..., None, None]
            at = at.expand(*at.shape[:-1], self.mean.shape[-1])
            mean, log_var = (x.gather(-2, at).squeeze(-2) for x in (self.mean, self.log_var))
        return mean, torch.exp(0.5 * log_var)

    def _each(self, target: Tensor) -> Tensor:
        """As `nll`, of each component by itself [..., K]."""
        target = target.unsqueeze(-2)
        each = (self.mean - target.nan_to_num()).square() * torch.exp(-self.log_var) + self.log_var
        return (each * ~target.isnan()).mean(-1)
