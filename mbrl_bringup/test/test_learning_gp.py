"""It learns from three episodes, without ROS: a Gaussian process and iCEM, from no data. Seeded, one thread.

Random actions give about -1100.
"""

import numpy as np
import pytest
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.gp import GP, GPConfig
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.transition import Transition
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.small_worlds import typical_score
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.pendulum import Pendulum

THRESHOLD = -300.0


def last_return(seed: int) -> float:
    """Return of the third episode; the first is random, the second and third are planned."""
    task = Pendulum()
    simulator, buffer = Simulator(task, seed), ReplayBuffer(task.spec)
    model = GP(task.spec, GPConfig(points=150, features=64), seed=seed)
    planner = ICEM(ICEMConfig(horizon=15, candidates=32, iterations=2))
    rng, noise, total = np.random.default_rng(seed), torch.Generator().manual_seed(seed), 0.0
    for number in range(3):
        guess, total, obs = None, 0.0, simulator.reset(seed=10 * seed + number)
        buffer.add(Transition(bytes(16), number, 0, obs, np.zeros(1), first=True))
        for k in range(1, task.max_steps + 1):
            if number == 0:
                action = rng.uniform(task.spec.action_low, task.spec.action_high)
            else:
                state = model.observe(None, None, {"vector": torch.from_numpy(obs)[None]})
                plan = planner.plan(WithTask(model, task), state, guess, noise=noise)
                guess, action = plan.guess, task.spec.unscale_action(plan.actions[0, 0].numpy())
            result = simulator.step(action)
            obs, total = result.observation, total + result.reward
            buffer.add(
                Transition(bytes(16), number, k, obs, action, result.reward, truncated=k == task.max_steps)
            )
        model.fit(buffer, Budget())
    return total


@pytest.mark.slow
@pytest.mark.learning
def test_gaussian_process_and_icem_learn_the_pendulum() -> None:
    torch.set_num_threads(1)
    score = typical_score(last_return, THRESHOLD)
    assert score >= THRESHOLD, f"return {score:.0f}"
