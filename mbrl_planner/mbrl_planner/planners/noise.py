"""Random numbers with a colour: a power-law spectrum along time."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

CPU = torch.device("cpu")


def colored_noise(
    shape: tuple[int, ...],
    length: int,
    exponent: float,
    generator: torch.Generator | None = None,
    device: torch.device = CPU,
) -> Tensor:
    """Gaussian noise of unit variance along the last dimension, [*shape, length].

    Its power falls with frequency as 1/f**exponent (Timmer and Koenig, 1995); 0 is white noise.
    """
    white = torch.randn(*shape, length, generator=generator, device=device)
    return white if exponent == 0 or length == 1 else white @ _basis(length, exponent, device)


def filtered_noise(
    shape: tuple[int, ...],
    length: int,
    beta: float,
    generator: torch.Generator | None = None,
    device: torch.device = CPU,
) -> Tensor:
    """Gaussian noise smoothed along the last dimension, [*shape, length]: n_t = beta u_t + (1 - beta) n_{t-1}
    with u_t of unit variance and nothing before the first (Nagabandi et al., 2019).
    """
    white = torch.randn(*shape, length, generator=generator, device=device)
    return white @ _filter(length, beta, device)


def truncated_noise(
    shape: tuple[int, ...],
    bound: float,
    generator: torch.Generator | None = None,
    device: torch.device = CPU,
) -> Tensor:
    """Gaussian noise of unit variance, of which only what is within -bound..bound is drawn, [*shape].

    By the inverse of its distribution: torch's own draws again what is beyond, and looks whether that is so.
    """
    uniform = torch.rand(shape, generator=generator, device=device).mul_(2.0).sub_(1.0)
    return uniform.mul_(math.erf(bound / math.sqrt(2.0))).erfinv_().mul_(math.sqrt(2.0))


@functools.lru_cache
def _filter(length: int, beta: float, device: torch.device) -> Tensor:
    """Rows that add up white numbers into filtered ones, [length, length]."""
    step = torch.arange(length)
    age = step - step[:, None]  # how long ago row's number was drawn, at column
    return torch.where(age >= 0, beta * (1.0 - beta) ** age.clamp(min=0), 0.0).float().to(device)


@functools.lru_cache
def _basis(length: int, exponent: float, device: torch.device) -> Tensor:
    """Rows that turn white numbers into coloured ones, [length, length].

    Real Fourier modes scaled by f**(-exponent/2); the constant mode is given the lowest frequency's scale, so
    that a whole plan can be shifted to one side.
    """
    n = torch.arange(length, dtype=torch.double)
    rows = [torch.ones(length, dtype=torch.double) * 2**-0.5]
    for k in range(1, length // 2 + 1):
        scale = float(k) ** (-exponent / 2)
        angle = 2 * torch.pi * k * n / length
        if 2 * k == length:
            rows.append(scale * torch.cos(angle) * 2**-0.5)
        else:
            rows += [scale * torch.cos(angle), scale * torch.sin(angle)]
    basis = torch.stack(rows)
    # cos² + sin² = 1 at each time, so that the variance is the same along the whole plan.
    return (basis / basis.square().sum(0).mean().sqrt()).float().to(device)
