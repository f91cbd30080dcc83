"""Both estimators against the analytic gradient of a linear-quadratic problem.

Mutations that these tests notice: the reward to go begun a step late; the sampled action not detached in
`likelihood_ratio` (it vanishes); the path detached midway (the pathwise gradient is short of what later
rewards owe to earlier actions); `discount` left out of the weights.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from mbrl_dynamics.interfaces import Noise
from mbrl_dynamics.testing import PointMass
from mbrl_dynamics.types import Prediction
from mbrl_planner.agents.gradients import Paths, likelihood_ratio, pathwise, reward_to_go, roll

torch.set_num_threads(1)
GAIN = np.array([[0.6, 0.5]])  # of the policy u = -K x + sigma e


class Exact(PointMass):
    """The point mass in double precision, with a random force if told so."""

    def __init__(self, force: float = 0.0) -> None:
        super().__init__()
        self.force = force
        self._a, self._b = torch.from_numpy(self.A), torch.from_numpy(self.B)

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        push = 0.0
        if self.force and noise is not None:
            push = self.force * torch.randn(action.shape, generator=noise, dtype=torch.float64)
        after = state @ self._a.T + (action + push) @ self._b.T
        return Prediction(after, after, reward=self.reward(state, action, after))


class Linear(torch.nn.Module):
    """The policy N(-K x, sigma^2)."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.from_numpy(GAIN).clone())
        self.sigma = sigma

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = -obs @ self.gain.T
        return mean, torch.full_like(mean, math.log(self.sigma))


def analytic(
    second_moment: np.ndarray, sigma: float, force: float, horizon: int, discount: float = 1.0
) -> tuple[float, np.ndarray]:
    """Expected return and its gradient [1, 2] in K.

    The second moments obey S' = M S M' + (sigma^2 + force^2) B B' with M = A - B K; the costs to go obey
    P = Q + K' R K + discount M' P' M. Then dJ/dK = -2 sum_t discount^t (R K - discount B' P' M) S.
    """
    A, B, Q, R, K = PointMass.A, PointMass.B, PointMass.Q, PointMass.R, GAIN
    M = A - B @ K
    moments, costs = [second_moment], [np.zeros((2, 2))]
    for _ in range(horizon - 1):
        moments.append(M @ moments[-1] @ M.T + (sigma**2 + force**2) * B @ B.T)
    for _ in range(horizon):
        costs.append(Q + K.T @ R @ K + discount * M.T @ costs[-1] @ M)
    value, gradient = 0.0, np.zeros((1, 2))
    for t, S in enumerate(moments):
        after = costs[horizon - 1 - t]
        value -= discount**t * (np.trace((Q + K.T @ R @ K) @ S) + sigma**2 * R[0, 0])
        gradient -= 2 * discount**t * (R @ K - discount * B.T @ after @ M) @ S
    return value, gradient


def starts(count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def moment(x: Tensor) -> np.ndarray:
    return (x.T @ x / len(x)).numpy()


def test_the_analytic_gradient_is_that_of_its_value() -> None:
    """By finite differences, so that the yardstick itself is measured."""
    second, width = np.array([[1.0, 0.2], [0.2, 0.5]]), 1e-5
    _, gradient = analytic(second, 0.3, 0.2, 12, 0.9)
    for i in range(2):
        values = []
        for sign in (1, -1):
            GAIN[0, i] += sign * width
            values.append(analytic(second, 0.3, 0.2, 12, 0.9)[0])
            GAIN[0, i] -= sign * width
        assert_allclose((values[0] - values[1]) / (2 * width), gradient[0, i], rtol=1e-6)


@pytest.mark.parametrize("horizon, discount", [(1, 1.0), (5, 1.0), (40, 0.95)])
def test_the_pathwise_gradient_is_the_analytic_one(horizon: int, discount: float) -> None:
    state, policy = starts(16), Linear(0.3)
    paths = roll(Exact(), state, policy, horizon, None, torch.nn.Identity())
    (gradient,) = torch.autograd.grad(pathwise(paths, discount).mean(), [policy.gain])
    _, expected = analytic(moment(state), 0.0, 0.0, horizon, discount)
    assert_allclose(gradient.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("force", [0.0, 0.4])
@pytest.mark.parametrize("horizon, discount", [(1, 1.0), (5, 0.9), (20, 1.0)])
@pytest.mark.parametrize("which", ["likelihood ratio", "pathwise"])
def test_both_are_unbiased(which: str, horizon: int, discount: float, force: float) -> None:
    """Within three standard errors, from 100 batches of 64 paths."""
    state, policy, sigma = starts(64), Linear(0.5), 0.5
    noise, samples = torch.Generator().manual_seed(horizon), []
    for _ in range(100):
        if which == "pathwise":
            values = pathwise(
                roll(Exact(force), state, policy, horizon, noise, torch.nn.Identity()), discount
            )
        else:
            with torch.no_grad():
                paths = roll(Exact(force), state, policy, horizon, noise, torch.nn.Identity())
            baseline = -paths.obs[:-1].square().sum(-1)  # any function of the state will do
            advantage = reward_to_go(paths.reward, discount) - baseline
            values = likelihood_ratio(paths, policy, advantage, discount)
        samples.append(torch.autograd.grad(values.mean(), [policy.gain])[0])
    gradients = torch.stack(samples)[:, 0]
    error = gradients.std(0) / len(gradients) ** 0.5
    _, expected = analytic(moment(state), sigma, force, horizon, discount)
    assert ((gradients.mean(0) - torch.from_numpy(expected[0])).abs() < 3 * error + 1e-9).all()
    assert (error > 0).all()


def test_a_good_baseline_takes_variance_away() -> None:
    state, policy = starts(64), Linear(0.5)
    spread = []
    for weight in (0.0, 1.0):
        noise, samples = torch.Generator().manual_seed(0), []
        for _ in range(100):
            with torch.no_grad():
                paths = roll(Exact(), state, policy, 20, noise, torch.nn.Identity())
            gain = reward_to_go(paths.reward, 1.0)
            advantage = gain - weight * gain.mean(1, keepdim=True)
            values = likelihood_ratio(paths, policy, advantage)
            samples.append(torch.autograd.grad(values.mean(), [policy.gain])[0])
        spread.append(float(torch.stack(samples).var(0).sum()))
    assert spread[1] < 0.8 * spread[0]


def test_reward_to_go() -> None:
    reward = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0]])
    assert reward_to_go(reward, 0.5).tolist() == [[3.0, 0.25], [4.0, 0.5], [4.0, 1.0]]
    assert reward_to_go(reward, 0.5, torch.tensor([8.0, 0.0]))[0].tolist() == [4.0, 0.25]


def test_nothing_is_earned_after_the_end() -> None:
    class Ending(Exact):
        def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
            ahead = super().step(state, action, noise)
            return Prediction(
                ahead.state, ahead.obs, torch.ones(len(action)), torch.full((len(action),), 0.5)
            )

    paths: Paths = roll(Ending(), starts(3), Linear(0.5), 3, None)
    assert paths.reward[:, 0].tolist() == [1.0, 0.5, 0.25]
    assert paths.alive[:, 0].tolist() == [1.0, 0.5, 0.25, 0.125]
