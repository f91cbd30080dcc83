"""One deterministic network: the baseline of Nagabandi et al. (2018, https://arxiv.org/abs/1708.02596)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor

from mbrl_dynamics.config import config
from mbrl_dynamics.interfaces import Capabilities, Noise, Policy
from mbrl_dynamics.models.ensemble import Ensemble, MLPConfig
from mbrl_dynamics.models.mixture import Mixture
from mbrl_dynamics.models.propagation import EnsembleState
from mbrl_dynamics.types import Prediction, Rollout


@config
class NetworkConfig(MLPConfig):
    """Configuration of Network."""

    # An ensemble of one, seen from where they share code.
    members: ClassVar[int] = 1
    elites: ClassVar[int] = 1
    components: ClassVar[int] = 1
    propagation: ClassVar[str] = "expectation"
    bound_penalty: ClassVar[float] = 0.0


class Network(Ensemble):
    """An MLP that predicts the change of the observation, trained on the squared error of standard scores.

    It is an ensemble of one member whose variance is not learned: a Gaussian of variance one has the squared
    error as its likelihood. It draws nothing, and nobody could disagree.

    Args:
        spec: the interface whose dynamics are learned.
        config: see NetworkConfig.
        seed: of weights and batches.
    """

    Config = NetworkConfig
    capabilities = Capabilities(differentiable=True, capturable=True)

    def mixture(self, raw: Tensor) -> Mixture:
        """The mean alone; its log variance is zero."""
        said = super().mixture(raw)
        return said._replace(log_var=torch.zeros_like(said.log_var))

    def step(self, state: EnsembleState, action: Tensor, noise: Noise = None) -> Prediction:
        """One step; there is nothing to draw."""
        return super().step(state, action)

    def imagine(
        self,
        state: EnsembleState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Roll candidates [B, N, H, A] through the network; one particle is as good as many."""
        return super().imagine(state, actions, particles=particles, horizon=horizon, keep=keep)
