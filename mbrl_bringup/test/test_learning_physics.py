"""An MJCF that is wrong, fitted to one random episode, solves the pendulum; an ensemble has hardly begun."""

import numpy as np
import pytest
import torch

from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.with_task import WithTask
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.small_worlds import typical_score
from mbrl_sim.models.physics import FittedPhysics, PhysicsConfig
from mbrl_sim.simulator import Simulator
from mbrl_sim.stranger import play, stranger
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup
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


def test_a_plan_begins_with_the_action_that_is_still_in_force():
    """Whatever model comes in between: a new one sees the last States again, with their actions."""
    torch.set_num_threads(1)
    task, config = CartpoleSwingup(), PhysicsConfig(parameters=("delay:force",))
    models = []
    for share in (0.4, 0.6):
        model = FittedPhysics(task.spec, config)
        model.draws[:, 0] = share
        models.append(WithTask(model, task))
    agent = MPC(ICEM(ICEMConfig(horizon=8, candidates=20, iterations=2)), models[0])
    carry, action, first = None, None, torch.tensor([True])
    simulator = Simulator(task)
    obs = simulator.reset(seed=0)
    for step in range(6):
        if step == 3:
            agent.swap(models[1])
        seen = {"vector": torch.from_numpy(obs)[None].float()}
        rows, carry = agent.act(seen, carry, first=first & (step == 0), prev_action=action, explore=False)
        assert torch.isfinite(rows).all() and rows.abs().max() <= 1.0
        assert torch.equal(carry.state.before, torch.zeros(1, 1) if action is None else action)
        action = rows[:, 0]
        obs = simulator.step(task.spec.unscale_action(action[0].numpy())).observation
