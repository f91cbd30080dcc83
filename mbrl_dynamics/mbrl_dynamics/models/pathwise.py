"""Gaussian processes as sums of functions: kernels about some points, and waves (pathwise conditioning,
Wilson et al., 2020, https://arxiv.org/abs/2002.09309), with inducing points (Titsias, 2009,
https://proceedings.mlr.press/v5/titsias09a.html).

D outputs, I inputs, N transitions, M inducing points, F frequencies, S draws; everything is standardised and,
but for predictions, float64.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.types import Metrics

JITTER = 1e-8  # on the diagonal of a matrix, relative to it; ten times more as often as that is not enough
RAISES = 6  # how often
CHUNK = 1024  # transitions that are conditioned on at a time
CANDIDATES = 4096  # inducing points are chosen among so many transitions
KNOWN = 1e-8  # a share of the prior variance below which nothing is left to choose
REPORT_EVERY = 10  # steps between two calls of `progress`


class Kernel(NamedTuple):
    """Squared exponential, with a length scale for each output and input (ARD).

    Attributes:
        scale: [D, I] length scales.
        amplitude: [D] prior variance.
        noise: [D] variance of the observation noise.
    """

    scale: Tensor
    amplitude: Tensor
    noise: Tensor

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """Prior covariance [D, N, M] of inputs [N, I] and [M, I]."""
        a, b = x / self.scale.unsqueeze(1), z / self.scale.unsqueeze(1)
        return self.amplitude[:, None, None] * torch.exp(-0.5 * torch.cdist(a, b).square())


class Functions:
    """S functions drawn from the posterior, and its mean: one product for all terms, and one for the sums.

    Args:
        scale: [D, I] length scales.
        frequency: [F, I] of the waves, for length scales of one.
        points: [M, I] that the kernels are about.
        weight: [D, 2 F + M, S + 1] of cosines, sines and kernels of amplitude one; the mean comes last.
    """

    def __init__(self, scale: Tensor, frequency: Tensor, points: Tensor, weight: Tensor) -> None:
        self.waves, wide = len(frequency), scale.unsqueeze(-1)
        centre = points.T / wide
        self.slope = torch.cat([frequency.T / wide, centre / wide], dim=-1)
        self.offset = torch.zeros_like(self.slope[:, :1])
        self.offset[..., self.waves :] = -0.5 * centre.square().sum(1, keepdim=True)
        self.scale, self.weight = scale.unsqueeze(1), weight

    def __call__(self, x: Tensor) -> Tensor:
        """Values [D, N, S + 1] at inputs [N, I]."""
        near = 0.5 * (x / self.scale).square().sum(-1, keepdim=True)
        raw = torch.baddbmm(self.offset, x.expand(len(self.slope), -1, -1), self.slope)
        kernels = torch.exp(raw[..., self.waves :] - near)
        return torch.cat([waves(raw[..., : self.waves]), kernels], dim=-1) @ self.weight


def waves(phase: Tensor) -> Tensor:
    """Cosines and sines [..., 2 F] of phases [..., F]; the squares of each pair add up to one."""
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


def inducing_points(kernel: Kernel, x: Tensor, count: int) -> Tensor:
    """Inputs [M, I] of [N, I], M ≤ count, each where those before it leave the largest variance (Burt et al.,
    2020, section 4.2, https://jmlr.org/papers/v21/19-1015.html): a Cholesky factorisation with pivots.

    Of several outputs, the shares of their prior variances that are left are added up. What many transitions
    have in common is told by a few of them; drawn at random, most points would tell it again.
    """
    share = kernel._replace(amplitude=torch.ones_like(kernel.amplitude))
    left = x.new_ones(len(kernel.scale), len(x))
    factor = x.new_zeros(len(kernel.scale), count, len(x))
    chosen: list[int] = []
    while len(chosen) < count:
        total = left.sum(0)
        best, row = int(total.argmax()), len(chosen)
        if total[best] < KNOWN * len(left):
            break
        before = factor[:, :row]
        column = share(x[best : best + 1], x)[:, 0] - (before[..., best, None] * before).sum(1)
        factor[:, row] = column / left[:, best, None].clamp(min=KNOWN).sqrt()
        left = (left - factor[:, row].square()).clamp(min=0.0)
        left[:, best] = 0.0
        chosen.append(best)
    return x[chosen]


def condition(
    kernel: Kernel,
    x: Tensor,
    y: Tensor,
    points: Tensor,
    frequency: Tensor,
    draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """Condition on data: the weights of `Functions`, and how often the jitter had to be raised.

    With L Lᵀ = k(z, z) and A = L⁻¹ k(z, x) / σ, the whitened values at the points z have the posterior
    precision B = 1 + A Aᵀ and mean B⁻¹ A y / σ (Titsias, section 3). A function drawn from the prior, whose
    whitened values are e, becomes one from the posterior by adding k(·, z) L⁻ᵀ B⁻¹ A (y / σ - Aᵀ e - ε) with
    ε ~ N(0, 1) (Matheron's rule; Wilson et al., section 3). Where z is x, both are exact.

    Args:
        kernel: with the observation noise σ².
        x, y: inputs [N, I] and outputs [N, D].
        points: z [M, I].
        frequency: [F, I] standard normal.
        draws: S.
        generator: of the draws.
    """
    lower, raised = cholesky(kernel(points, points))
    deviation = kernel.noise.sqrt()[:, None, None]
    gram = torch.zeros_like(lower)  # A Aᵀ
    told = x.new_zeros(len(lower), len(points), draws + 1)  # A (y / σ - ε), and last without ε
    for some, outputs in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        a = torch.linalg.solve_triangular(lower, kernel(points, some), upper=False) / deviation
        seen = (outputs.T.unsqueeze(-1) / deviation).repeat(1, 1, draws + 1)
        seen[..., :-1] -= torch.randn(seen[..., :-1].shape, generator=generator, dtype=x.dtype)
        gram += a @ a.mT
        told += a @ seen
    count = 2 * len(frequency)
    prior = torch.randn(len(lower), count, draws, generator=generator, dtype=x.dtype)
    prior *= (2 * kernel.amplitude / count).sqrt()[:, None, None]
    values = waves((points / kernel.scale.unsqueeze(1)) @ frequency.T) @ prior
    told[..., :-1] -= gram @ torch.linalg.solve_triangular(lower, values, upper=False)
    precision, more = cholesky(gram + torch.eye(len(points), dtype=x.dtype))
    update = torch.linalg.solve_triangular(lower.mT, torch.cholesky_solve(told, precision), upper=True)
    mean = torch.zeros_like(prior[..., :1])
    update *= kernel.amplitude[:, None, None]
    return torch.cat([torch.cat([prior, mean], dim=-1), update], dim=1), raised + more


def cholesky(matrix: Tensor) -> tuple[Tensor, int]:
    """Lower factors of positive matrices [D, M, M], with as little more on the diagonal as it takes.

    Returns:
        The factors, and how often more than JITTER had to be added.

    Raises:
        ValueError: a hundredth of the diagonal is not enough.
    """
    diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    for raised in range(RAISES + 1):
        lower, failed = torch.linalg.cholesky_ex(matrix + JITTER * 10.0**raised * diagonal)
        if not failed.any():
            return lower, raised
    raise ValueError("the kernel's matrix has no Cholesky factor: are the data finite?")


def learn_kernel(
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    rate: float,
    noise_floor: float,
    budget: Budget,
    progress: Callable[[Metrics], None] | None = None,
) -> tuple[Kernel, Metrics]:
    """The kernel of the largest evidence, by Adam.

    Args:
        x, y: inputs [N, I] and outputs [N, D].
        steps, rate: of Adam; it begins anew each time, since the best for little data may be far from it.
        noise_floor: least deviation of the noise.
        budget: ends it earlier.
        progress: called now and then; an exception that it raises ends the search.

    Returns:
        The kernel; "train_loss", the mean negative log evidence of a number [nat], "steps", and "jitter": how
        often a matrix had to be regularised.

    Raises:
        UserError: GPyTorch is not installed.
    """
    begin, done, loss = time.monotonic(), 0, math.nan
    process, evidence = _process(x, y, noise_floor**2)
    optimizer = torch.optim.Adam(process.parameters(), lr=rate)
    with warnings.catch_warnings(record=True) as caught, torch.enable_grad():
        warnings.simplefilter("always")
        while done < min(steps, budget.steps) and time.monotonic() - begin < budget.seconds:
            optimizer.zero_grad()
            value = -evidence(process(*process.train_inputs), process.train_targets).mean()
            value.backward()
            optimizer.step()
            done, loss = done + 1, float(value.detach())
            if progress is not None and done % REPORT_EVERY == 0:
                progress({"steps": done, "train_loss": loss})
    covariance, noise = process.covariance, process.likelihood.noise.squeeze(-1)
    found = (covariance.base_kernel.lengthscale.squeeze(-2), covariance.outputscale, noise)
    jitter = sum("jitter" in str(warning.message) for warning in caught)
    kernel = Kernel(*(value.detach().clone() for value in found))
    return kernel, {"train_loss": loss, "steps": done, "jitter": jitter}


def _process(x: Tensor, y: Tensor, least_noise: float) -> tuple[Any, Any]:
    """GPyTorch's exact processes, one an output, and their log evidence of a number."""
    try:
        import gpytorch  # takes seconds, and only a fit needs it
    except ImportError:
        raise UserError(
            "a Gaussian process learns by GPyTorch, which is missing: pip install gpytorch"
        ) from None
    batch = torch.Size([y.shape[-1]])

    class Process(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            noise = gpytorch.constraints.GreaterThan(least_noise)
            likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=noise, batch_shape=batch)
            super().__init__(x.expand(*batch, -1, -1), y.T, likelihood)
            base = gpytorch.kernels.RBFKernel(ard_num_dims=x.shape[-1], batch_shape=batch)
            self.covariance = gpytorch.kernels.ScaleKernel(base, batch_shape=batch)

        def forward(self, x: Tensor) -> Any:
            zero = x.new_zeros(x.shape[:-1])
            return gpytorch.distributions.MultivariateNormal(zero, self.covariance(x))

    process = Process().double()
    process.likelihood.noise = 0.1
    process.covariance.base_kernel.lengthscale = math.sqrt(x.shape[-1])
    return process.train(), gpytorch.mlls.ExactMarginalLogLikelihood(process.likelihood, process)
