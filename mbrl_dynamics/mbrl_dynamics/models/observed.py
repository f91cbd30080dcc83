"""A base for models whose state is the observation: `step` and `fit` are all that is left to write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import config
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise, Policy
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, Prediction, Rollout


def project(obs: Tensor, spec: Spec) -> Tensor:
    """Put predicted (cos, sin) pairs of observations [..., D] back on the unit circle."""
    for i in spec.circles:
        pair = F.normalize(obs[..., i : i + 2], dim=-1)
        obs = torch.cat([obs[..., :i], pair, obs[..., i + 2 :]], dim=-1)
    return obs


@config
class NoConfig:
    """Nothing to configure."""


class ObservationModel(nn.Module):
    """Predicts observations from observations, for users' models; see README.

    Args:
        spec: the interface whose dynamics are learned.
        config: of the class in `Config`.
        seed: of whatever is random.
    """

    Config: type = NoConfig
    capabilities = Capabilities(differentiable=True)

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.config = spec, config or self.Config()

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        """Predict the observation after `action` [..., A], given the one before [..., D], SI."""
        raise NotImplementedError

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train on a buffer; returns at least "train_loss" and "holdout_error"."""
        raise NotImplementedError

    def observe(
        self,
        state: Tensor | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> Tensor:
        """The observation is the state."""
        return obs["vector"].float()

    def imagine(
        self,
        state: Tensor,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Step by step."""
        return imagine_by_steps(self, state, actions, particles or 1, horizon, noise, keep)

    def spread(self, state: Tensor, particles: int) -> Tensor:
        """The observation for each particle."""
        return state.unsqueeze(1).expand(-1, particles, -1)

    def feature(self, state: Tensor) -> Tensor:
        """The observation."""
        return state

    def decode(self, state: Tensor) -> Tensor:
        """The observation."""
        return state

    def training_state(self) -> dict[str, Tensor]:
        """What a fit goes on with after a restart, beside the weights: nothing."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
