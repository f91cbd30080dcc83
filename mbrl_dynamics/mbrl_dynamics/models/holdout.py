"""Errors on held-out data: of models that do not go through the trainer, comparable with that of those that
do; and what models share that learn from slices.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.trainer import is_held_out
from mbrl_dynamics.types import Trajectory


@torch.no_grad()
def holdout_error(model: Model, buffer: ReplayBuffer) -> float:
    """Mean absolute error of one step on the held-out steps, in standard deviations of the changes.

    A model with a memory is shown one more step before.

    Raises:
        ValueError: the buffer is empty.
    """
    if not len(buffer):
        raise ValueError("there is nothing to compare with: the replay buffer is empty")
    every = buffer.all().obs["vector"]
    scale = Normalizer(every.shape[-1])
    scale.measure(every[:, 1] - every[:, 0])
    index = np.arange(len(buffer))
    held_out = is_held_out(index)
    memory = int(model.capabilities.recurrent)
    batch = buffer.slices(index[held_out] if held_out.any() else index, 1 + memory)
    seen, after = batch.obs["vector"], batch.obs["vector"][:, -1]
    state = model.observe(None, None, {"vector": seen[:, 0]})
    if memory:
        state = model.observe(state, batch.action[:, 0], {"vector": seen[:, 1]}, batch.first[:, 1])
    predicted = model.step(state, batch.action[:, -1]).obs
    assert predicted is not None
    return float(((predicted - after) / scale.std).abs().mean())


def mean_over(loss: Tensor, used: Tensor) -> Tensor:
    """Mean of a loss [T, B] over what is used, bool [T, B]; zero where nothing is."""
    return (loss * used).sum() / used.sum().clamp(min=1)


def relative(error: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error [1] of [M, K] in standard deviations of the truth [M, K]."""
    std = truth.std(0, correction=0)
    return (error.abs() / torch.where(std > 1e-6, std, 1.0)).mean().reshape(1)


def thin(batch: Trajectory, most: int) -> Trajectory:
    """At most so many slices of a batch, spread over it."""
    count = len(batch.valid)
    if count <= most:
        return batch
    rows = torch.linspace(0, count - 1, most).long()
    return Trajectory(
        obs={name: x[rows] for name, x in batch.obs.items()},
        action=batch.action[rows],
        reward=batch.reward[rows],
        terminated=batch.terminated[rows],
        first=batch.first[rows],
        valid=batch.valid[rows],
        extras={name: x[rows] for name, x in batch.extras.items()},
    )
