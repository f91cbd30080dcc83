"""Heads of world models: numbers of any size learned by classification (symlog and two-hot)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(|x| + 1): the identity near zero, a logarithm far from it (DreamerV3, equation 9)."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


def two_hot(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Weights [..., bins] on the two bins around x [...], whose weighted mean is x (DreamerV3, equation 10).

    The bins' centres are evenly spaced from `low` to `high`; what lies beyond is moved to the ends.
    """
    place = (x.clamp(low, high) - low) * ((bins - 1) / (high - low))
    centres = torch.arange(bins, device=x.device, dtype=x.dtype)
    return (1.0 - (place.unsqueeze(-1) - centres).abs()).clamp_(min=0.0)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy [...] of a categorical distribution [..., K] with a target distribution [..., K]."""
    return torch.logsumexp(logits, -1) - (logits * target).sum(-1)


class TwoHot:
    """A number as a distribution over bins in symlog space, so that its scale never needs to be known.

    Args:
        low, high: first and last bin [symlog].
        bins: how many.
    """

    def __init__(self, low: float = -10.0, high: float = 10.0, bins: int = 101) -> None:
        self.low, self.high, self.bins = low, high, bins

    def encode(self, x: Tensor) -> Tensor:
        """The target [..., bins] of a number [...]."""
        return two_hot(symlog(x), self.low, self.high, self.bins)

    def decode(self, logits: Tensor) -> Tensor:
        """The number [...] of logits [..., bins]: symexp of the mean bin, as TD-MPC2 has it."""
        centres = torch.linspace(self.low, self.high, self.bins, device=logits.device)
        return symexp(torch.softmax(logits, -1) @ centres)

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy [...] of logits [..., bins] with a number [...]."""
        return cross_entropy(logits, self.encode(x))


class ExponentialTwoHot(TwoHot):
    """As `TwoHot`, but a number is the mean of the bins themselves, symexp(low) .. symexp(high): unbiased
    where the same state has many returns (DreamerV3, equations 9 to 11).
    """

    def centres(self, like: Tensor) -> Tensor:
        """The bins [bins], in the number's own unit."""
        return symexp(torch.linspace(self.low, self.high, self.bins, device=like.device, dtype=like.dtype))

    def place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bin [...] above each number [...], and its weight [...]; the bin below gets the rest."""
        centres = self.centres(x)
        x = x.clamp(centres[0], centres[-1])
        above = torch.searchsorted(centres, x.contiguous(), right=True).clamp(1, self.bins - 1)
        low, high = centres[above - 1], centres[above]
        return above, (x - low) / (high - low)

    def encode(self, x: Tensor) -> Tensor:
        """The target [..., bins] of a number [...]."""
        above, weight = (v.unsqueeze(-1) for v in self.place(x))
        target = x.new_zeros(*x.shape, self.bins)
        return target.scatter_(-1, above - 1, 1.0 - weight).scatter_(-1, above, weight)

    def decode(self, logits: Tensor) -> Tensor:
        """The number [...] of logits [..., bins]: the mean of the bins."""
        half = self.bins // 2  # in pairs, so that huge bins cancel exactly
        weight, centres = torch.softmax(logits, -1), self.centres(logits)
        if self.low != -self.high:
            return weight @ centres
        return (weight[..., -half:] - weight[..., :half].flip(-1)) @ centres[-half:]

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy [...] of logits [..., bins] with a number [...]; only the two bins are looked at."""
        above, weight = self.place(x)
        pair = logits.gather(-1, torch.stack([above - 1, above], -1))
        return torch.logsumexp(logits, -1) - torch.lerp(pair[..., 0], pair[..., 1], weight)


class NormedMLP(nn.Module):
    """A multilayer perceptron with LayerNorm before each SiLU; its last layer is plain.

    Args:
        inputs, hidden, outputs: sizes of the layers.
        zero: whether the last layer starts at zero.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, *, zero: bool = False) -> None:
        super().__init__()
        sizes = [inputs, *hidden, outputs]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        if zero:
            nn.init.zeros_(layers[-1].weight)
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [..., I] to outputs [..., O]."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = F.silu(norm(layer(x)))
        out: Tensor = self.layers[-1](x)
        return out


class MLP(NormedMLP):
    """The same without LayerNorm, beside a linear map: far from the data it goes on in straight lines."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, *, zero: bool = False) -> None:
        super().__init__(inputs, hidden, outputs, zero=zero)
        self.norms = nn.ModuleList(nn.Identity() for _ in hidden)
        self.straight = nn.Linear(inputs, outputs, bias=False)
        nn.init.zeros_(self.straight.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [..., I] to outputs [..., O]."""
        return super().forward(x) + self.straight(x)
