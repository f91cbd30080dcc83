"""The protocols that make models and tasks exchangeable; `mbrl_dynamics.testing` has their contract tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, ModelState, Prediction, Rollout

Array = Any  # a numpy array or a torch tensor
Policy = Callable[[Tensor], Tensor]  # features [..., Z] -> actions [..., A]
Noise = torch.Generator | None  # None = the mean


@runtime_checkable
class Task(Protocol):
    """What is wanted. Needs no simulator, so that a robot can have one.

    Reward and termination take numpy arrays and torch tensors alike (see `array_api_compat`), with any
    leading dimensions: observations [..., D] in SI units, actions [..., A] scaled to [-1, 1] or one-hot.
    """

    spec: Spec
    max_steps: int  # control steps until an episode is truncated

    def reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Reward of one control period, [...]. NotImplementedError where only the world knows it."""
        ...

    def terminated(self, next_obs: Array) -> Array | None:
        """Whether the task ended, bool [...]; None where it never does."""
        ...


@dataclass(frozen=True)
class Capabilities:
    """What a model can do."""

    differentiable: bool = False
    stochastic: bool = False
    recurrent: bool = False
    decodes: bool = True  # predicts observations
    rewards: bool = False  # predicts rewards by itself, rather than through a Task
    discrete: bool = False


@dataclass(frozen=True)
class Budget:
    """How long a fit may take: whichever ends first."""

    steps: int = 1500  # gradient steps
    seconds: float = float("inf")  # wall time [s]


class Model(Protocol):
    """What happens next."""

    capabilities: Capabilities
    spec: Spec

    def observe(
        self,
        state: ModelState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> ModelState:
        """Filter one real step.

        Args:
            state: what was believed before, or None at the start.
            action: [B, A] executed since then; None at the start.
            obs: name -> [B, ...] what was seen, SI.
            first: [B] bool, an episode begins here: forget `state` and `action`.
        """
        ...

    def step(self, state: ModelState, action: Tensor, noise: Noise = None) -> Prediction:
        """Predict one step; `noise` None = the mean, pure and differentiable. action [B, A]."""
        ...

    def imagine(
        self,
        state: ModelState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Roll candidate plans [B, N, H, A] (or a policy, for `horizon` steps) through the model.

        Args:
            particles: P a candidate; None = as many as the model likes (an ensemble: one a member).
            keep: fields of Rollout to fill beside reward: "obs", "action".
        """
        ...

    def spread(self, state: ModelState, particles: int) -> ModelState:
        """The state [B, ...] as particles [B, P, ...], for `imagine_by_steps`."""
        ...

    def feature(self, state: ModelState) -> Tensor:
        """What a policy or value function sees, [..., Z]."""
        ...

    def decode(self, state: ModelState) -> Tensor | None:
        """The observation of a state [..., D], SI; None where the model has no decoder."""
        ...

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train on a buffer. Returns at least "train_loss" and "holdout_error"."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that a planner needs, as tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any:
        """The inverse of `state_dict`."""
        ...
