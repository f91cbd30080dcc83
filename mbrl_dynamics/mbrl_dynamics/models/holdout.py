"""The held-out error of models that do not go through the trainer, comparable with that of those that do."""

from __future__ import annotations

import numpy as np
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.trainer import is_held_out


@torch.no_grad()
def holdout_error(model: Model, buffer: ReplayBuffer) -> float:
    """Mean absolute error of one step on the held-out steps, in standard deviations of the changes.

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
    batch = buffer.slices(index[held_out] if held_out.any() else index)
    before, after = batch.obs["vector"][:, 0], batch.obs["vector"][:, 1]
    predicted = model.step(model.observe(None, None, {"vector": before}), batch.action[:, 0]).obs
    assert predicted is not None
    return float(((predicted - after) / scale.std).abs().mean())
