"""Standard scores for a network's inputs and targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Mean and standard deviation of a vector, measured on data.

    Args:
        size: length of the vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def measure(self, data: Tensor, *, center: bool = True) -> None:
        """Take mean and standard deviation from data [M, size]; a constant element keeps scale 1."""
        data = data.double()
        mean = data.mean(0) if center else torch.zeros(data.shape[1], dtype=torch.double)
        std = (data - mean).square().mean(0).sqrt()
        std = torch.where(std > 1e-6 * (1.0 + mean.abs()), std, torch.ones_like(std))
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor) -> Tensor:
        """Standard scores of x [..., size]."""
        return (x - self.mean) / self.std
