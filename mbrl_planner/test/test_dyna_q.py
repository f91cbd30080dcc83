"""Dyna-Q on a corridor; its classic figure is in mbrl_bringup/test/test_maze.py.

Mutations that these tests notice: planning over all pairs instead of those tried; ties broken by the lowest
action; the outcome of a planned step taken for the state it began in; the last transition learned from again.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.models.tabular import value_iteration
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import point_mass_spec
from mbrl_planner.agents.dyna_q import DynaQ, DynaQConfig
from mbrl_planner.small_worlds import mean_return, train

torch.set_num_threads(1)


class Corridor:
    """Six cells in a row; a step costs 1, the right end ends the episode."""

    cells, steps = 6, 100

    def __init__(self, reward: float = -1.0) -> None:
        self.reward = reward
        observation = (Element("cell", low=0.0, high=self.cells - 1.0, count=self.cells),)
        self.spec = Spec("corridor", observation, (Element("move", count=2),), 0.1)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(1)

    def step(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        after = np.clip(state + (1 if action.argmax() else -1), 0, self.cells - 1)
        return after, self.reward, bool(after[0] == self.cells - 1)

    def observe(self, state: np.ndarray) -> np.ndarray:
        return state


def agent(seed: int = 0, **options: float) -> DynaQ:
    return DynaQ(Corridor().spec, DynaQConfig(**options), seed=seed)


def experience(steps: int = 60, seed: int = 0, reward: float = -1.0) -> ReplayBuffer:
    """Of random actions."""
    return train(agent(random_steps=10_000), Corridor(reward), steps, seed=seed)


def by_hand(buffer: ReplayBuffer, alpha: float = 0.1, gamma: float = 0.95) -> np.ndarray:
    q, data = np.zeros((6, 2)), buffer.all()
    for i in range(len(buffer)):
        s, after = (int(x) for x in data.obs["vector"][i, :, 0])
        a = int(data.action[i, 0].argmax())
        ahead = 0.0 if data.terminated[i, 0] else q[after].max()
        q[s, a] += alpha * (data.reward[i, 0].item() + gamma * ahead - q[s, a])
    return q


def test_without_planning_it_is_q_learning() -> None:
    buffer, learner = experience(), agent(planning_steps=0)
    learner.update(buffer, env_steps=len(buffer))
    assert_allclose(learner.q.numpy(), by_hand(buffer), atol=1e-12)
    assert learner.update(buffer, env_steps=len(buffer)) == {}, "each transition is learned from once"


@pytest.mark.parametrize("planning_steps", [0, 7])
def test_what_is_learned_does_not_depend_on_when(planning_steps: int) -> None:
    buffer = experience()
    whole, parts = (agent(planning_steps=planning_steps) for _ in range(2))
    whole.update(buffer, env_steps=len(buffer))
    for steps in range(1, len(buffer) + 1):
        parts.update(buffer, env_steps=steps)
    assert torch.equal(whole.q, parts.q)
    assert whole.updates == parts.updates == len(buffer)


def test_only_tried_pairs_are_planned_with() -> None:
    """Where rewards are good, staying put would be worth something in a pair that was never tried."""
    buffer, learner = experience(100, reward=1.0), agent(planning_steps=200)
    learner.update(buffer, env_steps=4)
    tried = learner.table.counts.sum(-1) > 0
    assert 0 < tried.sum() < 12
    assert (learner.q[~tried] == 0).all()
    assert (learner.q[tried] > 0).all()


def test_equal_values_are_chosen_among_at_random() -> None:
    learner = agent(exploration=0.0)
    obs = {"vector": torch.zeros(400, 1)}
    actions, _ = learner.choose(obs)
    assert actions.shape == (400, 1, 2)
    assert 150 < actions[:, 0, 1].sum() < 250
    learner.q[0, 1] = 1e-9
    assert learner.choose(obs, explore=True)[0][:, 0, 1].all()


def test_it_explores_as_often_as_it_is_told() -> None:
    learner = agent(exploration=0.5)
    learner.q[0, 1] = 1.0
    wild = 1.0 - learner.choose({"vector": torch.zeros(2000, 1)}, explore=True)[0][:, 0, 1].mean().item()
    assert abs(wild - 0.25) < 0.04


def test_planning_reaches_the_values_of_value_iteration() -> None:
    buffer, learner = experience(300), agent()
    learner.advance(buffer, None, 600)  # 300 real ones, then planning alone
    value, _ = value_iteration(*learner.table.tables(), 0.95)
    assert_allclose(learner.q.numpy().max(-1)[:5], value[:5], atol=0.05)


def test_it_learns_the_corridor_and_goes_on_after_a_restart() -> None:
    learner, twin = agent(), agent(seed=5)
    buffer = train(learner, Corridor(), 150)
    assert mean_return(learner, Corridor(), 3) == -5.0
    twin.load_state_dict(learner.state_dict())
    twin.load_training_state(learner.training_state())
    assert twin.owed(len(buffer)) == 0
    for one in (learner, twin):
        one.advance(buffer, None, 3)
    assert torch.equal(learner.q, twin.q)
    actor = agent(seed=9)
    actor.load_acting_state(learner.acting_state())
    assert mean_return(actor, Corridor(), 3) == -5.0


def test_continuous_worlds_get_one_sentence() -> None:
    with pytest.raises(UserError, match="agent 'dynaq' needs discrete actions"):
        DynaQ(point_mass_spec())
    with pytest.raises(UserError, match="a table needs a discrete action and a single observation element"):
        DynaQ(Spec("switch", (Element("x"),), (Element("side", count=2),), 0.1))
