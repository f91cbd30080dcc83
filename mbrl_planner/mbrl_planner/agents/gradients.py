"""Two estimators of the gradient of a policy's return in a model, on the same rollouts.

Both are unbiased. The likelihood ratio asks only for rewards; the pathwise gradient differentiates the model.
`mbrl_planner/benchmark/gradients.py` compares their variance against the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import ModelState

Gaussian = Callable[[Tensor], tuple[Tensor, Tensor]]  # observations [..., D] -> mean, log std, both [..., A]


@dataclass(frozen=True)
class Paths:
    """What a policy brought about in a model; leading dimensions [...] as in the state it began in.

    Attributes:
        obs: [H + 1, ..., D], SI.
        raw: [H, ..., A] actions before they are squashed.
        reward: [H, ...]; zero after the end of an episode.
        alive: [H + 1, ...] probability that the episode goes on until here.
    """

    obs: Tensor
    raw: Tensor
    reward: Tensor
    alive: Tensor


def roll(
    model: Model,
    state: ModelState,
    policy: Gaussian,
    horizon: int,
    noise: torch.Generator | None,
    squash: Callable[[Tensor], Tensor] = torch.tanh,
) -> Paths:
    """Follow a Gaussian policy through a model for `horizon` steps.

    Where gradients are enabled, the paths are differentiable in the policy, with all noise held fixed.

    Args:
        model: predicts observations and rewards.
        state: where the paths begin.
        policy: mean and log standard deviation of an action before it is squashed.
        horizon: steps.
        noise: of policy and model; None = the means of both.
        squash: what makes an action of it.
    """
    first = model.decode(state)
    assert first is not None, "policy gradients need a model that predicts observations"
    obs, raws, rewards, alive = [first], [], [], [torch.ones_like(first[..., 0])]
    for _ in range(horizon):
        mean, log_std = policy(obs[-1])
        raw = mean
        if noise is not None:
            raw = mean + log_std.exp() * torch.randn(mean.shape, generator=noise, device=mean.device).to(mean)
        ahead = model.step(state, squash(raw), noise)
        assert ahead.obs is not None and ahead.reward is not None
        raws.append(raw)
        rewards.append(ahead.reward * alive[-1])
        alive.append(alive[-1] if ahead.alive is None else alive[-1] * ahead.alive)
        obs.append(ahead.obs)
        state = ahead.state
    return Paths(*(torch.stack(x) for x in (obs, raws, rewards, alive)))


def reward_to_go(reward: Tensor, discount: float, last: Tensor | float = 0.0) -> Tensor:
    """Discounted sum of this and all later rewards, [H, ...]; `last` [...] is the value after the end."""
    going, result = last, []
    for now in reward.flip(0):
        going = now + discount * going
        result.append(going)
    return torch.stack(result[::-1])


def log_density(policy: Gaussian, obs: Tensor, raw: Tensor) -> Tensor:
    """Log density [...] of actions before squashing [..., A]; squashing does not change its gradient."""
    mean, log_std = policy(obs)
    normal = (raw - mean) * torch.exp(-log_std)
    return (-0.5 * normal.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def likelihood_ratio(paths: Paths, policy: Gaussian, advantage: Tensor, discount: float = 1.0) -> Tensor:
    """What has the policy gradient as its gradient, one number a path [...] (Sutton et al., 2000,
    https://papers.nips.cc/paper/1713; Williams, 1992): sum_t discount^t log pi(a_t | s_t) advantage_t.

    Args:
        paths: from `roll`; they are taken as data.
        policy: that made them.
        advantage: [H, ...] reward to go, less any baseline that does not depend on the action (and is
            zero after the end of an episode, as rewards are).
        discount: of rewards a step later.
    """
    density = log_density(policy, paths.obs[:-1].detach(), paths.raw.detach())
    weight = discount ** torch.arange(len(advantage), device=advantage.device, dtype=advantage.dtype)
    weight = weight.reshape(-1, *[1] * (advantage.ndim - 1))
    return (weight * advantage.detach() * density).sum(0)


def pathwise(paths: Paths, discount: float = 1.0) -> Tensor:
    """The return of each path [...], to be differentiated (Heess et al., 2015, arXiv:1510.09142)."""
    return reward_to_go(paths.reward, discount)[0]
