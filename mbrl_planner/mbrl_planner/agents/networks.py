"""The networks of policy learning: a squashed Gaussian policy, and an ensemble of critics in one product."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_STD = (-5.0, 2.0)  # bounds of the policy's log standard deviation
Layers = list[tuple[Tensor, Tensor]]


class Stack(nn.Module):
    """E multilayer perceptrons of the same shape, computed as one batched product a layer.

    Args:
        members: E.
        inputs, hidden, outputs: sizes of the layers.
        norm: whether a LayerNorm stands before each non-linearity; keeps critics tame at high replay ratios
            (Hiraoka et al., 2022, https://arxiv.org/abs/2110.02034).
        zero: whether the last layer starts at zero.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        norm: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden, outputs]
        self.norm = norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5
            self.weights.append(nn.Parameter(torch.empty(members, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, fan_out).uniform_(-bound, bound)))
        if zero:
            nn.init.zeros_(self.weights[-1])
            nn.init.zeros_(self.biases[-1])

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Inputs [M, I], or [E, M, I] where each member has its own; outputs [E, M, O].

        Args:
            members: [K] indices of those that are wanted, of which E = K; None = all.
        """
        pairs = list(zip(self.weights, self.biases, strict=True))
        layers: Layers = pairs if members is None else [(w[members], b[members]) for w, b in pairs]
        x = x.expand(len(layers[0][0]), -1, -1) if x.ndim == 2 else x
        for weight, bias in layers[:-1]:
            x = torch.baddbmm(bias, x, weight)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.norm else x)
        weight, bias = layers[-1]
        if weight.shape[-1] == 1:  # a batched product with a single column takes four times as long
            return (x * weight.mT).sum(-1, keepdim=True) + bias
        return torch.baddbmm(bias, x, weight)


class Critic(nn.Module):
    """E action values Q(feature, action), computed in units of `scale`, so that a network that has learned
    nothing is not orders of magnitude away from the values of a task.
    """

    scale: Tensor

    def __init__(
        self, members: int, features: int, actions: int, hidden: Sequence[int], *, norm: bool
    ) -> None:
        super().__init__()
        self.net = Stack(members, features + actions, hidden, 1, norm=norm)
        self.register_buffer("scale", torch.ones(()))  # [reward]

    def forward(self, feature: Tensor, action: Tensor) -> Tensor:
        """Values [E, M] for features [M, Z] and actions [M, A]."""
        return self.scale * self.net(torch.cat([feature, action], dim=-1)).squeeze(-1)


class GaussianPolicy(nn.Module):
    """A Gaussian squashed by tanh, so that actions stay within [-1, 1] (SAC, appendix C)."""

    def __init__(self, features: int, actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.actions = actions
        self.net = Stack(1, features, hidden, 2 * actions)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation [..., A] before the squashing, for features [..., Z]."""
        out = self.net(feature.reshape(-1, feature.shape[-1]))[0].view(*feature.shape[:-1], 2 * self.actions)
        mean, log_std = out.chunk(2, dim=-1)
        low, high = LOG_STD
        return mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1.0)

    def mode(self, feature: Tensor) -> Tensor:
        """The most likely action before squashing, squashed: [..., A]."""
        return torch.tanh(self(feature)[0])

    def draw(self, feature: Tensor, noise: torch.Generator) -> Tensor:
        """An action [..., A], as from `sample`, without its density."""
        mean, log_std = self(feature)
        normal = torch.randn(mean.shape, generator=noise, device=mean.device)
        return torch.tanh(torch.addcmul(mean, log_std.exp(), normal))

    def sample(self, feature: Tensor, noise: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """An action [..., A], differentiable in the policy, and its log density [...]."""
        shape = (*feature.shape[:-1], self.actions)
        return self.squash(feature, torch.randn(shape, generator=noise, device=feature.device))

    def squash(self, feature: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """`sample` with the standard normal numbers [..., A] that it draws."""
        mean, log_std = self(feature)
        raw = mean + log_std.exp() * normal
        return torch.tanh(raw), tanh_gaussian_log_prob(raw, normal, log_std)

    def log_prob(self, feature: Tensor, action: Tensor) -> Tensor:
        """Log density [...] of given actions [..., A]."""
        mean, log_std = self(feature)
        raw = torch.atanh(action.clamp(-1.0 + 1e-6, 1.0 - 1e-6))
        return tanh_gaussian_log_prob(raw, (raw - mean) * torch.exp(-log_std), log_std)


def tanh_gaussian_log_prob(raw: Tensor, normal: Tensor, log_std: Tensor) -> Tensor:
    """Log density [...] of tanh(raw), where raw = mean + exp(log_std) normal, all [..., A].

    The correction log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2 u)), which does not cancel
    where tanh saturates (Haarnoja et al., 2018, appendix C, equation 21).
    """
    gaussian = -0.5 * normal.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    correction = 2.0 * (math.log(2.0) - raw - F.softplus(-2.0 * raw))
    return (gaussian - correction).sum(-1)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move a target network towards its source: target += rate (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def adam(parameters: Sequence[Tensor] | nn.Module, rate: float, **options: float) -> torch.optim.Optimizer:
    """Adam in its fused form, which is several times faster on small networks."""
    values = list(parameters.parameters()) if isinstance(parameters, nn.Module) else list(parameters)
    return torch.optim.Adam(values, lr=rate, fused=True, **options)  # type: ignore[arg-type]


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float = 0.0) -> None:
    """One gradient step on the optimiser's own parameters only; others that the loss depends on get none.

    Args:
        clip: largest norm of the gradient; 0 = any.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    if clip:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def compile_methods(owner: Any, *names: str) -> None:
    """Let PyTorch compile methods of an object: worth its minutes where launching kernels is what costs."""
    for name in names:
        setattr(owner, name, torch.compile(getattr(owner, name)))


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """For the length of a block, gradients flow through a model, but not into its weights."""
    parameters = [p for p in model.parameters() if p.requires_grad] if hasattr(model, "parameters") else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
