"""The pieces that papers define exactly."""

import math

import torch
from torch import nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from mbrl_planner.agents.networks import (
    Critic,
    GaussianPolicy,
    Stack,
    adam,
    descend,
    follow,
    tanh_gaussian_log_prob,
)


def test_log_density_of_a_squashed_gaussian_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, normal = (torch.randn(50, 3, generator=generator, dtype=torch.double) for _ in range(3))
    raw = mean + log_std.exp() * normal
    squashed = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    action = squashed.transforms[0](raw)  # whose inverse it remembers
    expected = squashed.log_prob(action).sum(-1)
    torch.testing.assert_close(tanh_gaussian_log_prob(raw, normal, log_std), expected, rtol=1e-6, atol=1e-6)


def test_log_density_does_not_cancel_where_tanh_saturates() -> None:
    raw = torch.tensor([[20.0], [-20.0]])
    value = tanh_gaussian_log_prob(raw, torch.zeros(2, 1), torch.zeros(2, 1))
    exact = -0.5 * math.log(2 * math.pi) - 2.0 * (math.log(2.0) - 20.0)  # log(1 - tanh(u)^2) -> log 4 - 2 |u|
    torch.testing.assert_close(value, torch.full((2,), exact))


def test_the_density_of_given_actions_is_that_of_drawn_ones() -> None:
    torch.manual_seed(0)
    policy = GaussianPolicy(4, 2, (16,))
    feature = torch.randn(30, 4)
    action, log_prob = policy.sample(feature, torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.log_prob(feature, action.detach()), log_prob, rtol=1e-3, atol=1e-3)


def test_actions_are_within_bounds_and_the_mode_is_the_squashed_mean() -> None:
    policy = GaussianPolicy(3, 2, (8,))
    feature = 100.0 * torch.randn(5, 7, 3)
    action, log_prob = policy.sample(feature)
    assert action.shape == (5, 7, 2) and log_prob.shape == (5, 7) and action.abs().max() <= 1.0
    torch.testing.assert_close(policy.mode(feature), torch.tanh(policy(feature)[0]))


def test_a_stack_is_its_members_side_by_side() -> None:
    torch.manual_seed(0)
    stack = Stack(3, 5, (7, 6), 2, norm=True)
    x = torch.randn(11, 5)
    for member in range(3):
        y = x
        for layer, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
            y = y @ weight[member] + bias[member, 0]
            if layer < 2:
                y = torch.relu(nn.functional.layer_norm(y, y.shape[-1:]))
        torch.testing.assert_close(stack(x)[member], y)


def test_values_are_in_units_of_the_scale() -> None:
    critic = Critic(2, 3, 1, (8,), norm=True)
    feature, action = torch.randn(4, 3), torch.randn(4, 1)
    before = critic(feature, action)
    critic.scale.fill_(50.0)
    torch.testing.assert_close(critic(feature, action), 50.0 * before)


def test_a_target_follows_by_the_given_share() -> None:
    target, source = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = target.weight + 0.25 * (source.weight - target.weight)
    follow(target, source, 0.25)
    torch.testing.assert_close(target.weight, expected)


def test_descending_moves_only_the_optimisers_parameters() -> None:
    mine, others = nn.Linear(2, 2), nn.Linear(2, 2)
    before = [p.clone() for p in others.parameters()]
    descend(others(mine(torch.ones(1, 2))).square().sum(), adam(mine, 0.1))
    assert all(p.grad is None for p in others.parameters())
    assert all(torch.equal(p, q) for p, q in zip(others.parameters(), before, strict=True))
