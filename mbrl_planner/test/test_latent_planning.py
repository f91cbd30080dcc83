"""Planning in a latent that was learned: the velocity is never seen, and the reward is learned as well.

Mutations that this test notices: the filter forgets what it believed before (`observe` without `expect`); the
dynamics do not hear the action; the reward's head does not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.latent import Latent, LatentConfig
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.small_worlds import (
    HiddenVelocityWorld,
    chooser,
    point_mass_score,
    random_action,
    run_episode,
    typical_score,
)

SMALL = LatentConfig(latent=6, hidden=(32,), length=12, rewards=True, batch_size=64, learning_rate=4e-3)


@pytest.mark.slow
@pytest.mark.learning
def test_finds_a_hidden_velocity_and_plans_with_it() -> None:
    """Twelve random episodes, then three that it plans itself; LQR, which sees the velocity, scores 1, and
    random actions 0.

    Scores with seeds 0 and 1: 0.984, 0.990.
    """
    torch.set_num_threads(1)
    world = HiddenVelocityWorld()

    def one(seed: int) -> float:
        rng, buffer = np.random.default_rng(seed), ReplayBuffer(world.spec)
        model = Latent(world.spec, SMALL, seed=seed)
        agent = MPC(ICEM(ICEMConfig(horizon=12, candidates=32, iterations=2)), model, seed=seed)
        for episode in range(12):
            run_episode(world, lambda obs, first: random_action(world.spec, rng), rng, buffer.add, episode)
        model.fit(buffer, Budget(400))
        for episode in range(12, 15):
            run_episode(world, chooser(agent, world.spec, rng, explore=False), rng, buffer.add, episode)
        model.fit(buffer, Budget(200))
        return point_mass_score(agent, world, episodes=4)

    assert typical_score(one, 0.9) >= 0.9
