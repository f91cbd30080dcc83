"""Diagonal Gaussians, and what keeps a variational autoencoder from leaving its latent unused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics import draws
from mbrl_dynamics.interfaces import Noise
from mbrl_dynamics.models.heads import MLP

ACTIVE = 0.01  # variance of a unit's mean over the data above which it is active (Burda et al., 2016)
LEAST_STD, FIRST_STD = 0.01, 0.1  # of a latent: never less, and about so much at first
LEAST_MISSED = 0.01  # what a decoder misses at least [standard deviations of the data]
_NEWEST = 0.05  # share of the newest batch in the variance of what is missed


class Gaussian(NamedTuple):
    """Independent normal distributions; leading dimensions [...] of any kind."""

    mean: Tensor  # [..., Z]
    std: Tensor  # [..., Z]; 0 = certain

    def draw(self, noise: Tensor | None) -> Tensor:
        """A draw [..., Z] made of standard normal noise [..., Z], with gradients to mean and deviation
        (Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114, section 2.4); the mean without noise.
        """
        return self.mean if noise is None else self.mean + self.std * noise

    def detach(self) -> Gaussian:
        """The same without gradients."""
        return Gaussian(self.mean.detach(), self.std.detach())

    def where(self, condition: Tensor, other: Gaussian) -> Gaussian:
        """Itself where a condition, bool [...], holds, and another one elsewhere."""
        rows = condition.unsqueeze(-1)
        return Gaussian(*(torch.where(rows, a, b) for a, b in zip(self, other, strict=True)))


class Conditional(nn.Module):
    """A Gaussian that a network tells from its inputs.

    Args:
        inputs, hidden, size: sizes of the layers; the last is Z.
        spread: whether it has any; if not, all deviations are zero.
        zero: whether its mean is zero at first.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], size: int, *, spread: bool, zero: bool = False
    ) -> None:
        super().__init__()
        self.spread = spread
        self.network = MLP(inputs, hidden, size * (1 + spread), zero=zero)

    def forward(self, *inputs: Tensor) -> Gaussian:
        """The Gaussian [..., Z] for inputs [..., I], in as many parts as one likes."""
        out = self.network(torch.cat(inputs, -1))
        if not self.spread:
            return Gaussian(out, torch.zeros_like(out))
        mean, raw = out.chunk(2, -1)
        return Gaussian(mean, LEAST_STD + (FIRST_STD / math.log(2.0)) * F.softplus(raw))


def normal(like: Tensor, noise: Noise) -> Tensor | None:
    """Standard normal numbers in the shape of a tensor; None without a generator."""
    if noise is None:
        return None
    return draws.normal(like.shape, noise, noise.device).to(like)


def standard(like: Tensor) -> Gaussian:
    """The standard normal distribution in the shape of a tensor."""
    return Gaussian(torch.zeros_like(like), torch.ones_like(like))


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL divergence [...] of p from q [nat], summed over the last dimension."""
    ratio, gap = p.std / q.std, (p.mean - q.mean) / q.std
    return (0.5 * (ratio.square() + gap.square() - 1.0) - ratio.log()).sum(-1)


def free_kl(posterior: Gaussian, prior: Gaussian, free_nats: float) -> Tensor:
    """What is minimised of a KL [...]: max(KL, free_nats), whose gradient below that is the prior's alone.

    So the latent may say something without a price (Kingma et al., 2016, https://arxiv.org/abs/1606.04934),
    while the dynamics go on learning what it says. Above, the gradient is that of the KL.
    """
    learned = kl(posterior.detach(), prior)
    paid = kl(posterior, prior.detach()).clamp(min=free_nats)
    return paid + learned - learned.detach()


def nll(x: Tensor, told: Gaussian) -> Tensor:
    """Negative log likelihood [...] of x [..., Z], summed over the last dimension [nat]."""
    score = (x - told.mean) / told.std
    return (0.5 * score.square() + told.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def warm_up(step: int, steps: int) -> float:
    """Share of the KL's weight in a gradient step (0, 1 ...): a straight line to 1 over so many steps
    (Sønderby et al., 2016, https://arxiv.org/abs/1602.02282).
    """
    return min(1.0, step / steps) if steps else 1.0


def active_units(mean: Tensor, other: Tensor) -> int:
    """How many units of a latent tell observations apart: those whose mean varies over the data by more than
    0.01 (Burda et al., 2016, https://arxiv.org/abs/1509.00519, section 5).

    Args:
        mean, other: [M, Z] of the latent, for observations that were drawn twice, all else being equal;
            half of the mean squared difference is the variance.
    """
    return int(((mean - other).square().mean(0) > 2.0 * ACTIVE).sum())


class Missed(nn.Module):
    """How far a decoder is off: a Gaussian whose variances are the likeliest ones for the newest batches, so
    that reconstruction and KL need no weights (Rybkin et al., 2021, https://arxiv.org/abs/2006.13202).

    Args:
        size: D, elements with a variance of their own.
    """

    variance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(size))

    @property
    def std(self) -> Tensor:
        """Standard deviations [D], never below a hundredth."""
        return self.variance.sqrt().clamp(min=LEAST_MISSED)

    def nll(self, error: Tensor, used: Tensor) -> Tensor:
        """Negative log likelihood [nat] of errors [..., D], summed over D, mean over what is `used`, bool
        [...]; while gradients are recorded, the variances follow the errors.
        """
        count = used.sum().clamp(min=1)
        if torch.is_grad_enabled() and used.any():
            square = error.detach().square() * used.unsqueeze(-1)
            self.variance.lerp_(square.flatten(0, -2).sum(0) / count, _NEWEST)
        told = Gaussian(torch.zeros_like(error), self.std.expand_as(error))
        return (nll(error, told) * used).sum() / count
