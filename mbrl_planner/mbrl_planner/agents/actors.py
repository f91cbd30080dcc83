"""Policies as DreamerV3 has them: a bounded normal where actions are continuous, else a categorical."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mbrl_dynamics.models.heads import NormedMLP
from mbrl_dynamics.models.recurrent import draw, exponential, mixed

STD = (0.1, 1.0)  # bounds of the normal's standard deviation
UNIMIX = 0.01  # uniform share of the categorical


class ActionDistribution(Protocol):
    """Distribution of actions [..., A]; all figures are [...]."""

    def mode(self) -> Tensor:
        """The likeliest action."""
        ...

    def sample(self, noise: torch.Generator) -> Tensor:
        """A draw, differentiable in the distribution; a continuous one may lie beyond [-1, 1]."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density, or log probability."""
        ...

    def entropy(self) -> Tensor:
        """Entropy [nat]."""
        ...


@dataclass(frozen=True)
class BoundedNormal:
    """A normal distribution whose mean lies within [-1, 1], and its standard deviation within bounds."""

    mean: Tensor
    std: Tensor

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def sample(self, noise: torch.Generator) -> Tensor:
        """Reparameterised."""
        normal = torch.randn(self.mean.shape, generator=noise, device=self.mean.device)
        return self.mean + self.std * normal

    def log_prob(self, action: Tensor) -> Tensor:
        """Of an action as drawn, not as clipped."""
        score = (action - self.mean) / self.std
        return (-0.5 * score.square() - self.std.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """In closed form."""
        return (self.std.log() + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1)


@dataclass(frozen=True)
class OneHot:
    """A categorical distribution over one-hot actions."""

    log_probs: Tensor

    def mode(self) -> Tensor:
        """The likeliest choice."""
        return draw(self.log_probs, None).detach()

    def sample(self, noise: torch.Generator) -> Tensor:
        """Straight-through."""
        shape = tuple(self.log_probs.shape)
        return draw(self.log_probs, exponential(shape, noise, self.log_probs.device))

    def log_prob(self, action: Tensor) -> Tensor:
        """Of a one-hot action."""
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Tensor:
        """In closed form."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


def divergence(p: ActionDistribution, q: ActionDistribution) -> Tensor:
    """KL divergence [...] of p from q, both of the same kind."""
    if isinstance(p, OneHot) and isinstance(q, OneHot):
        return (p.log_probs.exp() * (p.log_probs - q.log_probs)).sum(-1)
    assert isinstance(p, BoundedNormal) and isinstance(q, BoundedNormal)
    ratio, shift = p.std / q.std, (p.mean - q.mean) / q.std
    return (0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()).sum(-1)


class Actor(nn.Module):
    """Features [..., Z] to a distribution of actions; starts near the middle, and wide.

    Args:
        features, actions: Z and A.
        hidden: sizes of the hidden layers.
        discrete: whether actions are one-hot.
    """

    def __init__(self, features: int, actions: int, hidden: tuple[int, ...], *, discrete: bool) -> None:
        super().__init__()
        self.discrete = discrete
        self.net = NormedMLP(features, hidden, actions if discrete else 2 * actions)
        last = self.net.layers[-1].weight
        assert isinstance(last, Tensor)
        nn.init.trunc_normal_(last, std=0.01 * last.shape[1] ** -0.5)

    def forward(self, feature: Tensor) -> ActionDistribution:
        """The distribution."""
        out = self.net(feature)
        if self.discrete:
            return OneHot(mixed(out, UNIMIX))
        mean, std = out.chunk(2, -1)
        low, high = STD
        return BoundedNormal(torch.tanh(mean), low + (high - low) * torch.sigmoid(std + 2.0))
