"""The policy gradient in a model learns the point mass.

Mutations that the learning test notices: the sign of the advantage; the reward of the step alone instead of
the reward to go (the policy is lazy); the score taken of other actions than those rewarded.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose

from mbrl_dynamics.interfaces import Noise
from mbrl_dynamics.testing import PointMass
from mbrl_dynamics.types import Metrics, Prediction
from mbrl_planner.agents.gradients import Paths
from mbrl_planner.agents.pg import PG, PGConfig
from mbrl_planner.small_worlds import PointMassWorld, point_mass_score, train, typical_score

torch.set_num_threads(1)


class Known(PointMass):
    """The point mass as a model that need not be fitted; its episodes end with probability `ending`."""

    def __init__(self, ending: float = 0.0) -> None:
        super().__init__()
        self.ending = ending

    def fit(self, *_: Any, **__: Any) -> Metrics:
        return {}

    def step(self, state: torch.Tensor, action: torch.Tensor, noise: Noise = None) -> Prediction:
        ahead = super().step(state, action, noise)
        return Prediction(ahead.state, ahead.obs, ahead.reward, torch.full(state.shape[:-1], 1 - self.ending))


def agent(seed: int = 0, **options: Any) -> PG:
    return PG(PointMassWorld().spec, PGConfig(random_steps=240, **options), seed=seed)


@pytest.mark.slow
@pytest.mark.learning
def test_it_learns_the_point_mass() -> None:
    """Seeds 0 to 5 reach 0.96, 0.26, 0.99, 1.00, 1.00 and 1.00: with only 64 paths, one overshot."""
    world = PointMassWorld()

    def one(seed: int) -> float:
        learner = agent(seed, paths=64)
        train(learner, world, 480, seed=seed, model=Known())
        return point_mass_score(learner, world)

    assert typical_score(one, 0.9) >= 0.9


def paths_of(learner: PG, ending: float) -> tuple[Paths, torch.Tensor, torch.Tensor]:
    buffer = train(agent(seed=1, paths=2, horizon=1), PointMassWorld(), 30)
    learner.begin(buffer)
    with torch.no_grad():
        for weight in learner.baseline.weights:
            weight.fill_(0.01)
    return learner.imagine(buffer, Known(ending))


def test_an_advantage_is_what_a_path_earns_beyond_the_baseline() -> None:
    learner = agent(horizon=2, paths=5, discount=0.5)
    paths, gain, advantage = paths_of(learner, 0.1)
    value = learner.value(paths.obs[:-1]).detach()
    assert torch.equal(gain[1], paths.reward[1])
    assert_allclose(gain[0], paths.reward[0] + 0.5 * gain[1], rtol=1e-5)
    assert_allclose(advantage[1].detach(), gain[1] - 0.9 * value[1], rtol=1e-5)


def test_the_baseline_learns_the_reward_to_go() -> None:
    learner = agent(horizon=5, paths=200, baseline_steps=300)
    paths, gain, _ = paths_of(learner, 0.0)
    spread = float(gain.std())
    learner.fit_baseline(paths, gain)
    assert float((learner.value(paths.obs[:-1]) - gain).detach().std()) < 0.7 * spread
