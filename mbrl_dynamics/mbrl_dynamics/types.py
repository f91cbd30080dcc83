"""The tensors that models, planners and agents exchange. Batch first; B batch, T time, N candidates,
P particles, H horizon, A action, D observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

ModelState = Any  # a PyTree of tensors with leading [B]; opaque to planners
Metrics = dict[str, float]


@dataclass(frozen=True)
class Trajectory:
    """A batch of slices of real or imagined experience.

    Attributes:
        obs: "vector" and/or camera names -> [B, T+1, ...]; vectors in SI units.
        action: [B, T, A] the action EXECUTED, scaled to [-1, 1] or one-hot.
        reward: [B, T]; NaN where unknown.
        terminated: [B, T] bool, the task ended with this step.
        first: [B, T] bool, an episode begins with this step's observation.
        valid: [B, T] bool, False on the padding of short episodes.
        extras: further tensors [B, T, ...], among them "index": position of the step in the buffer.
    """

    obs: Mapping[str, Tensor]
    action: Tensor
    reward: Tensor
    terminated: Tensor
    first: Tensor
    valid: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Trajectory:
        """The same on a device."""
        moved = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for name, value in moved.items():
            many = isinstance(value, Mapping)
            moved[name] = {k: v.to(device) for k, v in value.items()} if many else value.to(device)
        return Trajectory(**moved)


@dataclass(frozen=True)
class Prediction:
    """What one step of a model predicts; leading dimensions as in the state that went in.

    Attributes:
        state: the next ModelState.
        obs: [..., D] predicted observation, SI; None where the model does not decode.
        reward: [...]; None where the model does not predict it.
        alive: [...] probability that the episode goes on; None where it cannot end.
        disagreement: [...] spread of the model's members [normalised]; None where it has one member.
    """

    state: ModelState
    obs: Tensor | None
    reward: Tensor | None = None
    alive: Tensor | None = None
    disagreement: Tensor | None = None


@dataclass(frozen=True)
class Rollout:
    """What a model imagines for candidate plans.

    Attributes:
        reward: [B, N, P, H]; already zero where no longer alive.
        alive: [B, N, P, H] probability that step h happens at all.
        disagreement: [B, N, H] spread of the model's members [normalised]; None where it has one member.
        last: ModelState after the last step, opaque.
        obs: [B, N, P, H+1, D] predicted observations, SI, from the start on; None unless kept.
        action: [B, N, P, H, A] the actions taken; None unless kept.
    """

    reward: Tensor
    alive: Tensor
    disagreement: Tensor | None
    last: ModelState
    obs: Tensor | None = None
    action: Tensor | None = None

    def returns(self) -> Tensor:
        """Sum of rewards [B, N, P]."""
        return self.reward.sum(dim=-1)
