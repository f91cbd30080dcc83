"""An MJCF that is wrong, fitted to one random episode, solves the pendulum; an ensemble has hardly begun."""

import numpy as np
import pytest
import torch

from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.with_task import WithTask
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.small_worlds import typical_score
from mbrl_sim.models.physics import FittedPhysics
from mbrl_sim.simulator import Simulator
from mbrl_sim.stranger import play, stranger
from mbrl_sim.tasks.pendulum import Pendulum

WRONG = {"mass:rod": 0.4}  # of a rod of 1 kg; planning with it gives about -900


def mean_return(model, seed, episodes=3):
    """Of iCEM in the real pendulum, after a fit to one random episode."""
    task = Pendulum()
    model.fit(play(task, seed, episodes=1, hold=1), Budget(600))
    known, planner = WithTask(model, task), ICEM(ICEMConfig(horizon=20, candidates=40, iterations=2))
    simulator, noise, returns = Simulator(task), torch.Generator().manual_seed(seed), []
    for episode in range(episodes):
        obs, guess, total = simulator.reset(seed=100 + 10 * seed + episode), None, 0.0
        for _ in range(task.max_steps):
            state = model.observe(None, None, {"vector": torch.from_numpy(obs)[None].float()})
            plan = planner.plan(known, state, guess, noise=noise)
            guess, result = plan.guess, simulator.step(task.spec.unscale_action(plan.actions[0, 0].numpy()))
            obs, total = result.observation, total + result.reward
        returns.append(total)
    return float(np.mean(returns))


@pytest.mark.learning
def test_fitted_physics_solves_the_pendulum_after_one_episode(tmp_path):
    """Two mutations that make it fail, both tried: the fit is thrown away, and it begins at its own end."""
    torch.set_num_threads(1)
    spec, wrong = Pendulum().spec, stranger(Pendulum, WRONG, tmp_path)
    assert typical_score(lambda seed: mean_return(FittedPhysics(spec, task=wrong), seed), -300.0) >= -300.0


@pytest.mark.learning
def test_an_ensemble_does_not_yet():
    torch.set_num_threads(1)
    small = EnsembleConfig(members=3, hidden=(64, 64))
    assert mean_return(Ensemble(Pendulum().spec, small, seed=0), seed=0, episodes=1) < -500.0
