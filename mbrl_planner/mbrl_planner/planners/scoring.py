"""What predicted futures are worth to a planner: risk, constraints, and weights by return."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics.config import one_of
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Rollout
from mbrl_planner.interfaces import Heads

_BOUND = re.compile(r"\s*(\S.*?)\s*([<>])\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


class Bound(NamedTuple):
    """A limit on one observation element, SI."""

    element: str
    sign: float  # 1: must stay below the limit, -1: above
    limit: float

    def excess(self, obs: Tensor, spec: Spec) -> Tensor:
        """How far observations [..., D] are beyond the limit, [...]; 0 = within."""
        return (self.sign * (obs[..., spec.index(self.element)] - self.limit)).clamp(min=0.0)


def bounds_of(constraints: Iterable[str]) -> tuple[Bound, ...]:
    """Read constraints such as "cart_position<0.5" or "speed > -1e-1".

    Raises:
        UserError: one is not of that form.
    """
    bounds = []
    for text in constraints:
        match = _BOUND.fullmatch(text)
        if match is None:
            raise UserError(f"constraint '{text}' is not of the form 'element<number' or 'element>number'")
        bounds.append(Bound(match[1], 1.0 if match[2] == "<" else -1.0, float(match[3])))
    return tuple(bounds)


def check_bounds(bounds: Iterable[Bound], spec: Spec) -> None:
    """Look whether all bounds are on observation elements of a spec.

    Raises:
        UserError: one is not; the sentence lists what there is.
    """
    for bound in bounds:
        one_of("observation element", bound.element, [element.name for element in spec.observation])


def violation(obs: Tensor, alive: Tensor, bounds: Sequence[Bound], spec: Spec) -> Tensor:
    """By how much candidates break bounds [B, N]: added up over steps and bounds, mean over futures, SI.

    Args:
        obs: [B, N, P, H+1, D]; where a plan starts is not its fault.
        alive: [B, N, P, H].
        bounds: at least one.
        spec: whose elements they name.
    """
    total = torch.stack([bound.excess(obs[..., 1:, :], spec) for bound in bounds]).sum(0)
    return (total * alive).sum(-1).mean(-1)


def returns_of(rollout: Rollout, discount: float, heads: Heads | None) -> Tensor:
    """Discounted sum of rewards and, if there is one, terminal value of each future, [B, N, P]."""
    horizon = rollout.reward.shape[-1]
    if discount == 1.0:
        returns = rollout.returns()
    else:
        returns = rollout.reward @ discount ** torch.arange(horizon, device=rollout.reward.device)
    if heads is not None:
        returns = returns + discount**horizon * heads.value(rollout.last) * rollout.alive[..., -1]
    return returns


def members(disagreement: Tensor | None, caution: float) -> Tensor:
    """The disagreement that `caution` is about.

    Raises:
        UserError: there is none.
    """
    if disagreement is None:
        raise UserError(f"caution is {caution}, but the model has no members that could disagree")
    return disagreement


def wary(returns: Tensor, rollout: Rollout, caution: float) -> Tensor:
    """Returns [B, N] less `caution` for each unit of disagreement on the way.

    Raises:
        UserError: there is caution, but nobody who could disagree.
    """
    if not caution:
        return returns
    spread = members(rollout.disagreement, caution)
    return returns - caution * (spread * rollout.alive.mean(2)).sum(-1)


def worst_mean(returns: Tensor, share: float) -> Tensor:
    """Mean of the worst share of returns [..., P]: conditional value at risk, [...] (Rockafellar and Uryasev,
    2000, for a sample; a future that is only partly within the share counts by that part).

    Raises:
        UserError: a single future has no worst share.
    """
    if share == 1.0:
        return returns.mean(-1)
    particles = returns.shape[-1]
    if particles == 1:
        raise UserError(
            f"worst_share is {share}, but a candidate has a single imagined future: "
            "set particles to 2 or more with a model that draws them, or worst_share to 1"
        )
    count = max(share * particles, 1.0)
    weight = (count - torch.arange(particles, device=returns.device)).clamp(0.0, 1.0) / count
    return (returns.sort(-1).values * weight).sum(-1)


def soft_weights(returns: Tensor, temperature: float) -> Tensor:
    """Softmax over candidates [B, N], relative to the best, so that nothing overflows.

    The temperature is in standard deviations of the returns, so that the reward's scale does not matter. A
    candidate of return -inf has weight 0, unless all have.
    """
    finite = returns.isfinite()
    known = torch.where(finite, returns, torch.finfo(returns.dtype).min / 2)
    return torch.softmax((known - known.amax(1, keepdim=True)) / (temperature * _std(returns, finite)), dim=1)


def _std(returns: Tensor, finite: Tensor) -> Tensor:
    """Standard deviation over the candidates that have a return, [B, 1]; never zero."""
    count = finite.sum(1, keepdim=True).clamp(min=1)
    known = torch.where(finite, returns, 0.0)
    mean = known.sum(1, keepdim=True) / count
    variance = (torch.where(finite, returns - mean, 0.0)).square().sum(1, keepdim=True) / count
    return variance.sqrt().clamp(min=1e-8)
