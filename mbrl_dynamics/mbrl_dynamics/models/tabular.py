"""The tabular model of Dyna (Sutton, 1991, https://doi.org/10.1145/122344.122377; Sutton and Barto, 2018,
chapter 8): it counts what followed what. For worlds with few, discrete states.

A world has discrete states if its observation is a single element with a `count`: the state is an integer
0 .. count - 1, and the observation is that integer as a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics import draws
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, Prediction

LARGEST = 50_000_000  # entries of a table

Array = NDArray[np.floating[Any]]


def states_of(spec: Spec) -> int:
    """Number of discrete states, S.

    Raises:
        UserError: states or actions are not discrete.
    """
    if not spec.discrete or len(spec.observation) != 1 or not spec.observation[0].count:
        raise UserError(
            f"a table needs a discrete action and a single observation element with a count, "
            f"but task '{spec.task}' has {len(spec.observation)} observation elements "
            f"({spec.observation[0].kind if spec.observation else 'none'}) and "
            f"{'a discrete action' if spec.discrete else 'continuous actions'}"
        )
    return spec.observation[0].count


class Tabular(ObservationModel):
    """N(s, a, s'), with the mean reward and the share of terminations of each.

    With noise, an outcome is drawn in proportion to the counts, with its own mean reward. Without, it is
    the most frequent one (the lowest state, of several), with the mean reward of the pair. A pair that was
    never tried stays where it is, without reward.

    Args:
        spec: with discrete states and actions.
        config, seed: not needed.

    Raises:
        UserError: the states or actions of `spec` are not discrete, or are too many.
    """

    capabilities = Capabilities(stochastic=True, rewards=True, discrete=True)
    counts: Tensor
    rewards: Tensor
    endings: Tensor

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0) -> None:
        super().__init__(spec, config, seed=seed)
        self.states, self.actions = states_of(spec), spec.inner_action_dim
        shape = (self.states, self.actions, self.states)
        if np.prod(shape, dtype=np.float64) > LARGEST:
            raise UserError(f"a table of {self.states} states and {self.actions} actions is too large")
        self.register_buffer("counts", torch.zeros(shape))
        self.register_buffer("rewards", torch.zeros(shape, dtype=torch.float64))  # sums
        self.register_buffer("endings", torch.zeros(shape))

    # Learning -----------------------------------------------------------------------------------------------

    def add(self, state: Any, action: Any, reward: Any, after: Any, ended: Any) -> None:
        """Count transitions: integers `state`, `action`, `after`, rewards and terminations, all [M]."""
        at = tuple(torch.as_tensor(x, dtype=torch.int64).reshape(-1) for x in (state, action, after))
        for table, value in (
            (self.counts, torch.ones(len(at[0]))),
            (self.rewards, torch.as_tensor(reward, dtype=torch.float64).reshape(-1)),
            (self.endings, torch.as_tensor(ended, dtype=torch.float32).reshape(-1)),
        ):
            table.index_put_(at, value, accumulate=True)

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Count a buffer anew.

        Returns:
            "train_loss", mean negative log probability of what was seen [nat], and "holdout_error": one
            minus the probability that the other transitions give each of them (leave one out).
        """
        for table in (self.counts, self.rewards, self.endings):
            table.zero_()
        data = buffer.all()
        state, action, after = self.indices(
            data.obs["vector"][:, 0], data.action[:, 0], data.obs["vector"][:, 1]
        )
        self.add(state, action, data.reward[:, 0].nan_to_num(), after, data.terminated[:, 0])
        seen, tried = self.counts[state, action, after], self.counts.sum(-1)[state, action]
        others = (seen - 1) / (tried - 1).clamp(min=1)
        return {
            "train_loss": float((tried / seen).log().mean()),
            "holdout_error": float(1.0 - others.mean()),
        }

    def indices(self, obs: Tensor, action: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integers s, a, s' [...] of observations [..., 1] and one-hot actions [..., A]."""
        return self.state_index(obs), action.argmax(-1), self.state_index(after)

    def state_index(self, obs: Tensor) -> Tensor:
        """The integer [...] of an observation [..., 1]."""
        return obs[..., 0].round().long().clamp(0, self.states - 1)

    # Prediction ---------------------------------------------------------------------------------------------

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        """As the class says; state [..., 1], action one-hot [..., A]."""
        s, a = self.state_index(state), action.argmax(-1)
        counts = self.counts[s, a]
        tried = counts.sum(-1)
        if noise is None:
            after = counts.argmax(-1)
            of, gain, ended = tried, self.rewards[s, a].sum(-1), self.endings[s, a].sum(-1)
        else:
            drawn = draws.uniform(tried.shape, noise, tried.device) * tried
            after = (counts.cumsum(-1) <= drawn.unsqueeze(-1)).sum(-1).clamp(max=self.states - 1)
            of, gain, ended = (x[s, a, after] for x in (self.counts, self.rewards, self.endings))
        known, of = tried > 0, of.clamp(min=1)
        obs = torch.where(known, after, s).to(state.dtype).unsqueeze(-1)
        return Prediction(
            obs, obs, reward=(gain / of).to(state.dtype), alive=(1 - ended / of).to(state.dtype)
        )

    def tables(self) -> tuple[Array, Array]:
        """For planning: P [S, A, S], the probability of going on in s', and mean rewards R [S, A].

        The rows of P add up to the probability that the episode goes on. A pair that was never tried stays
        where it is, without reward, which looks good where all else costs something.
        """
        counts, rewards, endings = (x.double().numpy() for x in (self.counts, self.rewards, self.endings))
        tried = counts.sum(-1)
        number = np.maximum(tried, 1.0)
        going = (counts - endings) / number[..., None]
        s, a = np.nonzero(tried == 0)
        going[s, a, s] = 1.0
        return going, rewards.sum(-1) / number


def value_iteration(
    going: Array, reward: Array, discount: float, *, tolerance: float = 1e-9, sweeps: int = 100_000
) -> tuple[Array, NDArray[np.int64]]:
    """Optimal values [S] and a greedy policy [S], by Bellman's optimality equation as an assignment
    (Sutton and Barto, section 4.4).

    Args:
        going: [S, A, S] probability of going on in a state (rows may add up to less than one).
        reward: [S, A] mean.
        discount: of rewards a step later.
        tolerance: the values are within this of the optimal ones, if `discount` < 1.
        sweeps: at most.
    """
    value = np.zeros(len(reward))
    stop = tolerance * (1.0 - discount) / discount if 0.0 < discount < 1.0 else tolerance
    for _ in range(sweeps):
        action_value = reward + discount * going @ value
        change, value = np.abs(action_value.max(-1) - value).max(), action_value.max(-1)
        if change <= stop:
            break
    return value, (reward + discount * going @ value).argmax(-1)


def evaluate_policy(going: Array, reward: Array, discount: float, policy: NDArray[np.int64]) -> Array:
    """Values [S] of a policy [S]: the solution of v = r + discount P v (section 4.1).

    Raises:
        numpy.linalg.LinAlgError: without discount, and the policy never ends an episode.
    """
    s = np.arange(len(policy))
    system = np.eye(len(policy)) - discount * going[s, policy]
    return np.linalg.solve(system, reward[s, policy])


def policy_iteration(
    going: Array, reward: Array, discount: float, policy: NDArray[np.int64] | None = None
) -> tuple[Array, NDArray[np.int64]]:
    """Optimal values [S] and policy [S], by evaluating and improving in turn (section 4.3).

    An action is kept unless another is better by more than rounding, so that ties cannot go on for ever.

    Args:
        going, reward, discount: as in `value_iteration`.
        policy: to begin with; None = the first action everywhere.
    """
    policy = np.zeros(len(reward), np.int64) if policy is None else policy
    s = np.arange(len(policy))
    while True:
        value = evaluate_policy(going, reward, discount, policy)
        action_value = reward + discount * going @ value
        slack = 1e-10 * (1.0 + np.abs(action_value).max())
        better = action_value.max(-1) > action_value[s, policy] + slack
        if not better.any():
            return value, policy
        policy = np.where(better, action_value.argmax(-1), policy)
