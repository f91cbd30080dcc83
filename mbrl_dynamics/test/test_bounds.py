"""The bounds hold on random problems, are tight where they should be, and the identities are exact.

Mutations that these tests notice: half the L1 distance where the simulation lemma wants all of it, or H
squared for H (H - 1) (no longer tight); the end left out of the distance (the discounted bound is
violated); visits by the model instead of the world (the shares no longer add up).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from mbrl_dynamics.bounds import (
    Tables,
    compare,
    discounted_bound,
    finite_values,
    gap_by_pair,
    return_gap,
    reward_error,
    simulation_bound,
    transition_error,
    visited_bound,
    visits,
)
from mbrl_dynamics.models.tabular import evaluate_policy, policy_iteration

SEEDS = st.integers(0, 2**32 - 1)


def problem(rng: np.random.Generator, states: int, actions: int, ends: bool) -> Tables:
    going = rng.dirichlet(np.full(states, 0.3), (states, actions))
    if ends:
        going = going * rng.uniform(0.3, 1.0, (states, actions, 1))
    return Tables(going, rng.uniform(-1.0, 1.0, (states, actions)))


def pair(seed: int, states: int, actions: int, share: float, ends: bool) -> tuple[Tables, Tables]:
    """A problem, and one that is so far towards another."""
    rng = np.random.default_rng(seed)
    true, other = (problem(rng, states, actions, ends) for _ in range(2))
    going = (1.0 - share) * true.going + share * other.going
    return true, Tables(going, (1.0 - share) * true.reward + share * other.reward)


PROBLEMS = given(
    SEEDS, st.integers(1, 5), st.integers(1, 3), st.sampled_from([1e-3, 0.1, 0.5, 1.0]), st.booleans()
)


@settings(max_examples=150, deadline=None)
@PROBLEMS
def test_no_gap_is_larger_than_its_bound(
    seed: int, states: int, actions: int, share: float, ends: bool
) -> None:
    true, model = pair(seed, states, actions, share, ends)
    rng = np.random.default_rng(seed)
    discount, horizon = rng.uniform(0.0, 0.99), int(rng.integers(1, 30))
    found = compare(true, model, discount, horizon)
    slack = 1e-9 * (1.0 + found["value_bound"])
    for gap, bound in (
        ("return_gap", "return_bound"),
        ("value_gap", "value_bound"),
        ("policy_loss", "policy_loss_bound"),
    ):
        assert found[gap] <= found[bound] + slack, gap
    policy, start = rng.integers(actions, size=states), rng.dirichlet(np.ones(states))
    values = [evaluate_policy(*tables, discount, policy) for tables in (true, model)]
    gap = abs(float(start @ (values[0] - values[1])))
    assert gap <= visited_bound(true, model, discount, policy, start) + slack
    largest = max(np.abs(tables.reward).max() for tables in (true, model)) / (1.0 - discount)
    worst = discounted_bound(0.5 * found["l1_max"], discount, largest, found["reward_error"])
    assert visited_bound(true, model, discount, policy, start) <= worst + slack


@settings(max_examples=100, deadline=None)
@PROBLEMS
def test_shares_and_terms_add_up_to_the_gap(
    seed: int, states: int, actions: int, share: float, ends: bool
) -> None:
    true, model = pair(seed, states, actions, share, ends)
    rng = np.random.default_rng(seed)
    policy, start, discount = rng.integers(actions, size=states), rng.dirichlet(np.ones(states)), 0.9
    at = [float(start @ evaluate_policy(*tables, discount, policy)) for tables in (true, model)]
    shares = gap_by_pair(true, model, discount, policy, start)
    assert_allclose(shares.sum(), at[0] - at[1], atol=1e-9)
    expert = policy_iteration(*true, discount)[1]
    best = [float(start @ evaluate_policy(*tables, discount, expert)) for tables in (true, model)]
    gap = return_gap(best[0], best[1], at[1], at[0])
    assert_allclose(gap.total, best[0] - at[0], atol=1e-9)
    assert_allclose(gap.expert_error, gap_by_pair(true, model, discount, expert, start).sum(), atol=1e-9)
    assert gap.total >= -1e-9, "nobody is better than the expert"


def fall(chance: float) -> Tables:
    """From state 0, worth 1 a step, one falls to state 1, worth -1 a step for ever."""
    going = np.array([[[1.0 - chance, chance]], [[0.0, 1.0]]])
    return Tables(going, np.array([[1.0], [-1.0]]))


def test_both_bounds_are_tight_to_first_order() -> None:
    true, chance, policy = fall(0.0), 1e-6, np.zeros(2, np.int64)
    model = fall(chance)
    l1 = transition_error(true, model)
    assert_allclose(l1, [[2.0 * chance], [0.0]])
    for horizon in (2, 10, 50):
        gap = finite_values(true, policy, horizon) - finite_values(model, policy, horizon)
        assert_allclose(gap[0], simulation_bound(l1.max(), horizon, 1.0), rtol=1e-4)
    for discount in (0.5, 0.9, 0.99):
        gap = evaluate_policy(*true, discount, policy) - evaluate_policy(*model, discount, policy)
        bound = discounted_bound(0.5 * l1.max(), discount, 1.0 / (1.0 - discount))
        assert_allclose(gap[0], bound, rtol=1e-3)


def test_a_policy_can_lose_twice_the_value_error() -> None:
    """Two ways that never meet: the model thinks too little of the better and too much of the worse."""
    error, discount = 1e-3, 0.9
    stay = np.zeros((3, 2, 3))
    stay[0, 0, 1] = stay[0, 1, 2] = stay[1, :, 1] = stay[2, :, 2] = 1.0
    true = Tables(stay, np.array([[0.0, 0.0], [1.0, 1.0], [1.0 - 2 * error + 1e-9, 1.0 - 2 * error + 1e-9]]))
    model = Tables(stay, true.reward + np.array([[0.0, 0.0], [-error, -error], [error, error]]))
    found = compare(true, model, discount, 10)
    assert_allclose(found["value_bound"], error / (1.0 - discount), rtol=1e-9)
    assert_allclose(found["value_gap"], found["value_bound"], rtol=1e-6)
    assert_allclose(found["policy_loss"], discount * found["policy_loss_bound"], rtol=1e-5)


def test_an_exact_model_costs_nothing() -> None:
    true, _ = pair(0, 4, 2, 0.5, True)
    found = compare(true, true, 0.9, 10)
    assert found["policy_loss"] == pytest.approx(0.0, abs=1e-12)
    assert {found[name] for name in ("l1_max", "return_bound", "value_bound", "policy_loss_bound")} == {0.0}


def test_the_end_is_a_state() -> None:
    ends, goes = Tables(np.zeros((1, 1, 1)), np.ones((1, 1))), Tables(np.ones((1, 1, 1)), np.ones((1, 1)))
    assert transition_error(ends, goes).item() == 2.0
    assert reward_error(ends, goes).item() == 0.0


def test_visits_are_a_geometric_series() -> None:
    assert_allclose(visits(fall(0.0), 0.9, np.zeros(2, np.int64), np.array([1.0, 0.0])), [10.0, 0.0])
