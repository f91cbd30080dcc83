"""The tabular model counts rightly; value and policy iteration against closed forms and a linear solver.

Mutations that these tests notice: endings not taken off in `tables` (the chain); the pair's mean reward for a
drawn outcome instead of the outcome's own; `fit` without zeroing the tables.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.tabular import (
    Tabular,
    evaluate_policy,
    policy_iteration,
    states_of,
    value_iteration,
)
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import point_mass_spec
from mbrl_dynamics.transition import Transition

torch.set_num_threads(1)


def spec(states: int = 4, actions: int = 2) -> Spec:
    observation = (Element("cell", low=0.0, high=states - 1.0, count=states),)
    return Spec("chain", observation, (Element("move", count=actions),), 0.1)


def chain(length: int = 4) -> Tabular:
    """Action 0 goes left, 1 right; the last state ends the episode with reward 1."""
    model = Tabular(spec(length))
    for s in range(length - 1):
        model.add(s, 0, 0.0, max(s - 1, 0), False)
        end = s + 1 == length - 1
        model.add(s, 1, float(end), s + 1, end)
    return model


def one_hot(*actions: int, count: int = 2) -> torch.Tensor:
    return torch.eye(count)[list(actions)]


def random_mdp(seed: int, states: int, actions: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    going = rng.dirichlet(np.ones(states), (states, actions)) * rng.uniform(0.5, 1.0, (states, actions, 1))
    return going, rng.normal(size=(states, actions))


def recorded(steps: int = 200) -> ReplayBuffer:
    rng, buffer, cell = np.random.default_rng(0), ReplayBuffer(spec()), 0
    buffer.add(Transition(bytes(16), 0, 0, np.zeros(1), np.zeros(1), first=True))
    for k in range(1, steps + 1):
        action = rng.integers(2)
        slip = rng.random() < 0.25
        cell = int(np.clip(cell + (0 if slip else (1 if action else -1)), 0, 3))
        buffer.add(Transition(bytes(16), 0, k, np.array([float(cell)]), np.array([float(action)]), -1.0))
    return buffer


def test_it_counts() -> None:
    model = Tabular(spec())
    model.add([0, 0, 0], [1, 1, 1], [1.0, 3.0, 8.0], [1, 1, 2], [False, False, True])
    assert model.counts[0, 1].tolist() == [0, 2, 1, 0]
    mean = model.step(torch.zeros(1, 1), one_hot(1))
    assert mean.obs.tolist() == [[1.0]]
    assert_allclose([mean.reward.item(), mean.alive.item()], [4.0, 2 / 3], rtol=1e-6)


def test_outcomes_are_drawn_in_proportion_with_their_own_rewards() -> None:
    model = Tabular(spec())
    model.add([0] * 4, [1] * 4, [1.0, 1.0, 1.0, 5.0], [3, 3, 3, 2], [False] * 3 + [True])
    drawn = model.step(torch.zeros(4000, 1), one_hot(1).expand(4000, -1), torch.Generator().manual_seed(0))
    ends = drawn.obs[:, 0] == 2.0
    assert abs(ends.float().mean().item() - 0.25) < 3 * (0.25 * 0.75 / 4000) ** 0.5
    assert (drawn.obs[~ends] == 3.0).all()
    assert (drawn.reward == torch.where(ends, 5.0, 1.0)).all()
    assert (drawn.alive == torch.where(ends, 0.0, 1.0)).all()


def test_what_was_never_tried_stays() -> None:
    never = Tabular(spec()).step(torch.tensor([[2.0]]), one_hot(0), torch.Generator())
    assert (never.obs.item(), never.reward.item(), never.alive.item()) == (2.0, 0.0, 1.0)


def test_fit_counts_a_buffer_however_often() -> None:
    buffer, model = recorded(), Tabular(spec())
    metrics = [model.fit(buffer, Budget()) for _ in range(2)]
    assert metrics[0] == metrics[1]
    assert model.counts.sum() == len(buffer) == 200
    assert 0.0 < metrics[0]["holdout_error"] < 0.5
    assert model.step(torch.tensor([[1.0]]), one_hot(1)).reward.item() == -1.0


def test_contract_of_a_model() -> None:
    model = Tabular(spec())
    model.fit(recorded(), Budget())
    state = model.observe(None, None, {"vector": torch.tensor([[0.0], [2.0]])})
    plans = torch.eye(2)[torch.randint(2, (2, 5, 6), generator=torch.Generator().manual_seed(0))]
    rollout = model.imagine(state, plans, keep=("obs", "action"))
    plain = imagine_by_steps(model, state, plans, 1, None, None, ("obs",))
    assert rollout.reward.shape == (2, 5, 1, 6)
    assert torch.equal(rollout.obs, plain.obs)
    copy = Tabular(spec())
    copy.load_state_dict(model.state_dict())
    draws = [m.step(state, one_hot(1, 0), torch.Generator().manual_seed(3)).obs for m in (model, copy)]
    assert torch.equal(*draws)


def test_the_chain_in_closed_form() -> None:
    model = chain(6)
    model.add(5, 0, 1.0, 5, False)  # what could be had after the end
    going, reward = model.tables()
    for solve in (value_iteration, policy_iteration):
        value, policy = solve(going, reward, 0.9)
        assert_allclose(value[:5], 0.9 ** np.arange(4, -1, -1), atol=1e-8)
        assert policy[:5].tolist() == [1] * 5


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 7),
    st.integers(1, 4),
    st.floats(0.0, 0.95),
)
def test_both_solve_any_problem(seed: int, states: int, actions: int, discount: float) -> None:
    going, reward = random_mdp(seed, states, actions)
    value, policy = policy_iteration(going, reward, discount)
    s = np.arange(states)
    system = np.eye(states) - discount * going[s, policy]
    assert_allclose(value, scipy.linalg.solve(system, reward[s, policy]), atol=1e-8)
    assert_allclose((reward + discount * going @ value).max(-1), value, atol=1e-8)
    assert_allclose(value_iteration(going, reward, discount)[0], value, atol=1e-7)


def test_a_policy_is_worth_what_monte_carlo_says() -> None:
    going, reward = random_mdp(1, 3, 2)
    value = evaluate_policy(going, reward, 0.8, np.array([0, 1, 0]))
    total, weight = np.zeros(3), np.eye(3)
    for _ in range(200):  # the Neumann series
        total += weight @ reward[np.arange(3), [0, 1, 0]]
        weight = 0.8 * weight @ going[np.arange(3), [0, 1, 0]]
    assert_allclose(value, total, atol=1e-10)


def test_continuous_worlds_get_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"task 'point_mass' has 2 observation elements .* continuous actions"
    ):
        states_of(point_mass_spec())
    with pytest.raises(UserError, match="too large"):
        Tabular(spec(10_000, 4))
