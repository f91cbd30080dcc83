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
    capturable: bool = False  # predicts without waiting for the processor: can be part of a CUDA graph


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


class Belief(Protocol):
    """A distribution of vectors [..., O], with any leading dimensions."""

    def expected(self) -> Tensor:
        """Its mean [..., O]; of one-hot actions, their probabilities."""
        ...

    def draw(self, noise: Noise) -> Tensor:
        """A sample [..., O]."""
        ...

    def log_prob(self, target: Tensor) -> Tensor:
        """Log density [...] of vectors [..., O]; of one-hot actions, their log probability."""
        ...


class InverseModel(Protocol):
    """Which actions lead there: what a Model answers, asked the other way round."""

    spec: Spec

    def infer(self, obs: Mapping[str, Tensor], later: Mapping[str, Tensor], steps: int = 1) -> Belief:
        """The action [..., A] executed in `obs`, if `later` was seen so many steps after it.

        Args:
            obs, later: name -> [..., D] or images, SI, with any leading dimensions.
            steps: how far apart they are [steps].

        Raises:
            UserError: that is further than what was learned.
        """
        ...

    def represent(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Features [..., Z] of an observation, learned for nothing but `infer`."""
        ...

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """As a Model's; "holdout_error" is of size one where nothing is known of the action."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that `infer` needs, as tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any:
        """The inverse of `state_dict`."""
        ...


class ActionFreeModel(Protocol):
    """What happens under whatever behaviour made the data: no action is asked for, nor needed to learn."""

    spec: Spec

    def predict(self, obs: Mapping[str, Tensor]) -> Belief:
        """The next observation [..., D], SI; obs: name -> [..., D]."""
        ...

    def fill(
        self, obs: Mapping[str, Tensor], later: Mapping[str, Tensor], steps: int, noise: Noise = None
    ) -> Tensor:
        """What lies between: observations [..., n+1, D], SI, from `obs` to `later`, n = `steps` apart.

        Args:
            obs, later: name -> [..., D], SI.
            steps: n [steps].
            noise: draws a path; None = the likely one, pure.

        Raises:
            UserError: `steps` is more than what was learned.
        """
        ...

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """As a Model's."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that predictions need, as tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any:
        """The inverse of `state_dict`."""
        ...
