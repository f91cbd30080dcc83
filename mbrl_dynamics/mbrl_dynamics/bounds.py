"""What a wrong model costs at most, beside what it does cost; for tabular problems.

The simulation lemma (Kearns and Singh, 2002, https://doi.org/10.1023/A:1017984413808) and the decomposition
of Ross and Bagnell (2012, https://arxiv.org/abs/1203.1007). The same error is measured in two ways, with a
factor of two between them: the L1 distance of two distributions, 0 to 2, and the total variation, which is
half of it. With deterministic continuous dynamics both are as large as they can be wherever the model is
wrong at all, so that the bounds say nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbrl_dynamics.models.tabular import evaluate_policy, policy_iteration
from mbrl_dynamics.types import Metrics

Array = NDArray[np.floating[Any]]
Choices = NDArray[np.int64]  # the action of each state [S]


class Tables(NamedTuple):
    """A tabular problem, as `Tabular.tables` gives it; S states, A actions."""

    going: Array  # [S, A, S] probability of going on in a state; what is missing to one is the end
    reward: Array  # [S, A] mean


@dataclass(frozen=True)
class ReturnGap:
    """Why a policy falls short of an expert: J(expert) - J(policy) in three terms that add up to it exactly
    (Ross and Bagnell, 2012); J is a return in the world, or as the model has it.

    Attributes:
        expert_error: J_true(expert) - J_model(expert), what the model thinks too little of the expert.
        planning_error: J_model(expert) - J_model(policy), what the search missed; negative = it found better.
        policy_error: J_model(policy) - J_true(policy), what the model promised too much.
    """

    expert_error: float
    planning_error: float
    policy_error: float

    @property
    def total(self) -> float:
        """J_true(expert) - J_true(policy)."""
        return self.expert_error + self.planning_error + self.policy_error


def return_gap(expert_true: float, expert_model: float, policy_model: float, policy_true: float) -> ReturnGap:
    """The three terms of four returns."""
    return ReturnGap(expert_true - expert_model, expert_model - policy_model, policy_model - policy_true)


def transition_error(true: Tables, model: Tables) -> Array:
    """L1 distance [S, A] of where the two lead, 0 to 2; the end is a state. Half of it is total variation."""
    difference = true.going - model.going
    return np.abs(difference).sum(-1) + np.abs(difference.sum(-1))


def reward_error(true: Tables, model: Tables) -> Array:
    """Distance [S, A] of the mean rewards."""
    return np.abs(true.reward - model.reward)


def simulation_bound(l1: float, horizon: int, largest_reward: float, reward_error: float = 0.0) -> float:
    """How far two returns of any policy over H steps can be apart: H eps_R + H (H - 1) / 2 eps R_max.

    Args:
        l1: eps, largest L1 distance of the transitions (not total variation).
        horizon: H [steps].
        largest_reward: R_max, largest absolute reward of either.
        reward_error: eps_R, largest distance of the rewards.
    """
    return horizon * reward_error + 0.5 * horizon * (horizon - 1) * l1 * largest_reward


def discounted_bound(
    total_variation: float, discount: float, largest_value: float, reward_error: float = 0.0
) -> float:
    """How far the two values of any policy can be apart: (eps_R + 2 gamma eps V_max) / (1 - gamma).

    A policy that is optimal in the model can lose twice as much: where the model thinks too much of what it
    does and too little of what is best.

    Args:
        total_variation: eps, largest total variation of the transitions (half of the L1 distance).
        discount: gamma, less than 1.
        largest_value: V_max, largest absolute value of either; at most R_max / (1 - gamma).
        reward_error: eps_R, largest distance of the rewards.
    """
    return (reward_error + 2.0 * discount * total_variation * largest_value) / (1.0 - discount)


def finite_values(tables: Tables, policy: Choices, horizon: int) -> Array:
    """Returns [S] of a policy over `horizon` steps, without discount."""
    s, value = np.arange(len(policy)), np.zeros(len(policy))
    for _ in range(horizon):
        value = tables.reward[s, policy] + tables.going[s, policy] @ value
    return value


def gap_by_pair(true: Tables, model: Tables, discount: float, policy: Choices, start: Array) -> Array:
    """Where a policy's value gap comes from: shares [S, A] that add up to start . (V_true - V_model) exactly.

    Each is how often the policy comes by in the world, discounted, times what the model has wrong there, in
    reward and in the value of what follows (Ross and Bagnell's form of the simulation lemma).

    Args:
        policy: [S].
        start: [S] probabilities of the first state.
    """
    s = np.arange(len(policy))
    value = evaluate_policy(model.going, model.reward, discount, policy)
    wrong = (true.reward - model.reward + discount * (true.going - model.going) @ value)[s, policy]
    shares = np.zeros_like(true.reward)
    shares[s, policy] = visits(true, discount, policy, start) * wrong
    return shares


def visits(tables: Tables, discount: float, policy: Choices, start: Array) -> Array:
    """How often a policy comes by each state [S], discounted; 1 / (1 - gamma) in all if it never ends."""
    s = np.arange(len(policy))
    return np.linalg.solve((np.eye(len(policy)) - discount * tables.going[s, policy]).T, start)


def visited_bound(true: Tables, model: Tables, discount: float, policy: Choices, start: Array) -> float:
    """As `discounted_bound`, but with the mean errors over what the policy visits: what is wrong elsewhere
    costs nothing.
    """
    s = np.arange(len(policy))
    value = np.append(evaluate_policy(model.going, model.reward, discount, policy), 0.0)  # the end is worth 0
    apart = 0.5 * transition_error(true, model)[s, policy] * np.ptp(value)
    each = reward_error(true, model)[s, policy] + discount * apart
    return float(visits(true, discount, policy, start) @ each)


def compare(true: Tables, model: Tables, discount: float, horizon: int) -> Metrics:
    """The errors of a model, what they can cost and what they do cost the policy that is optimal in it.

    Returns:
        "l1_max" and "l1_mean" over states and actions, "reward_error"; "return_gap", over `horizon` steps,
        with "return_bound"; "value_gap" with "value_bound"; "policy_loss" with "policy_loss_bound". Gaps are
        those of the worst state.
    """
    optimal, _ = policy_iteration(*true, discount)
    promised, policy = policy_iteration(*model, discount)
    kept = evaluate_policy(*true, discount, policy)
    l1, wrong = transition_error(true, model), float(reward_error(true, model).max())
    largest = float(np.abs(true.reward).max())
    value_bound = discounted_bound(0.5 * float(l1.max()), discount, largest / (1.0 - discount), wrong)
    finite = finite_values(true, policy, horizon) - finite_values(model, policy, horizon)
    return {
        "l1_max": float(l1.max()),
        "l1_mean": float(l1.mean()),
        "reward_error": wrong,
        "return_gap": float(np.abs(finite).max()),
        "return_bound": simulation_bound(float(l1.max()), horizon, largest, wrong),
        "value_gap": float(np.abs(kept - promised).max()),
        "value_bound": value_bound,
        "policy_loss": float((optimal - kept).max()),
        "policy_loss_bound": 2.0 * value_bound,
    }
