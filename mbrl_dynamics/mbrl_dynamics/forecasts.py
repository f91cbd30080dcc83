"""What a model foretells from recorded States on, given the executed actions, beside what happened."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import is_held_out
from mbrl_dynamics.transition import Transition, WorldId
from mbrl_dynamics.types import Trajectory

Array = NDArray[np.floating[Any]]
Steps = NDArray[np.int64]  # positions in a buffer
PARTICLES = 60  # futures drawn from each start
CONTEXT = 16  # steps that a model with a memory sees before it foretells
CHUNK = 64  # starts that are foretold at once


class Recorded:
    """A replay buffer that knows of each step which episode it belongs to and who chose its action."""

    def __init__(self, spec: Spec) -> None:
        self.buffer = ReplayBuffer(spec)
        self.worlds: list[WorldId] = []  # in the order in which they were first seen
        self._keys: list[tuple[int, int]] = []  # of each step: position of its world in `worlds`, episode
        self._choosers: list[str] = []

    def __len__(self) -> int:
        return len(self.buffer)

    def add(self, transition: Transition) -> None:
        """Append a State that fits the spec."""
        if transition.world_id not in self.worlds:
            self.worlds.append(transition.world_id)
        if self.buffer.add(transition):
            self._keys.append((self.worlds.index(transition.world_id), transition.episode))
            self._choosers.append(transition.controller_id)

    @property
    def episodes(self) -> Steps:
        """Number of each step's episode [N], from 0, in the order of time."""
        return np.unique(np.array(self._keys).reshape(-1, 2), axis=0, return_inverse=True)[1].reshape(-1)

    def chosen_by(self, controllers: Collection[str]) -> NDArray[np.bool_]:
        """Which steps were chosen by one of these [N]."""
        return np.array([chooser in controllers for chooser in self._choosers], dtype=np.bool_)

    def after(self, world_id: WorldId, episode: int) -> NDArray[np.bool_]:
        """Which steps belong to a later episode of that world, or to a later world [N]; all, if it is none of
        these worlds.
        """
        if world_id not in self.worlds:
            return np.ones(len(self), np.bool_)
        known = (self.worlds.index(world_id), episode)
        return np.array([key > known for key in self._keys], dtype=np.bool_)

    def keys_of(self, episodes: Collection[int]) -> set[tuple[WorldId, int]]:
        """World id and number there of some `episodes`."""
        mine = np.isin(self.episodes, list(episodes))
        return {
            (self.worlds[world], episode) for (world, episode), of in zip(self._keys, mine, strict=True) if of
        }

    def held_out(self) -> NDArray[np.bool_]:
        """Which steps no fit to this buffer has seen [N], whenever it was made."""
        return is_held_out(np.arange(len(self)))


@dataclass(frozen=True)
class Forecasts:
    """What a model foretold from M starts on; H horizon, D observation elements, SI.

    Attributes:
        starts: [M] the first step of each.
        happened: [M, H+1, D].
        mean: [M, H+1, D].
        std: [M, H+1, D] of the drawn futures; zero where the model draws none.
        reward: [M, H] that was recorded, NaN where it is not known.
        disagreement: [M, H] spread of its members without noise [normalised]; None = it has one.
        promised: [M, H] mean reward that it foretold; None = it foretells none.
        lost: starts that are left out, since what it foretold from there is not finite.
    """

    starts: Steps
    happened: Array
    mean: Array
    std: Array
    reward: Array
    disagreement: Array | None = None
    promised: Array | None = None
    lost: int = 0

    @property
    def error(self) -> Array:
        """What happened less what was foretold, [M, H+1, D]."""
        return self.happened - self.mean


@torch.no_grad()
def forecast(
    model: Model,
    buffer: ReplayBuffer,
    starts: Steps,
    horizon: int = 1,
    *,
    particles: int = PARTICLES,
    seed: int = 0,
) -> Forecasts:
    """Foretell `horizon` steps from the States before some steps on.

    Args:
        model: predicts observations.
        buffer: what happened.
        starts: the first step of each forecast; those with fewer steps left in their episode are left out.
        particles: futures drawn from each start.
        seed: of the draws.

    Raises:
        ValueError: none of them has so many left.
    """
    context = CONTEXT if model.capabilities.recurrent else 0
    noise = torch.Generator().manual_seed(seed)
    starts = starts[steps_left(buffer, starts, horizon)]
    if not len(starts):
        raise ValueError(f"no episode has {horizon} steps left to foretell")
    ends = buffer.later(starts, np.full(len(starts), horizon - 1))
    parts = [
        _foretold(model, buffer.slices(ends[i : i + CHUNK], context + horizon), context, particles, noise)
        for i in range(0, len(starts), CHUNK)
    ]
    told = {name: torch.cat([part[name] for part in parts]).double().numpy() for name in parts[0]}
    fine = np.isfinite(np.concatenate([told["mean"], told["std"]], axis=-1)).all((1, 2))
    kept: dict[str, Any] = {name: x[fine] for name, x in told.items()}
    return Forecasts(starts=starts[fine], lost=int((~fine).sum()), **kept)


def steps_left(buffer: ReplayBuffer, starts: Steps, horizon: int) -> NDArray[np.bool_]:
    """Which of these steps have so many left in their episode, with themselves [M]."""
    ends, before = (buffer.later(starts, np.full(len(starts), max(n, 0))) for n in (horizon - 1, horizon - 2))
    return (ends != before) | (horizon < 2)


def _foretold(
    model: Model, seen: Trajectory, context: int, particles: int, noise: torch.Generator
) -> dict[str, Tensor]:
    """The fields of Forecasts for a batch of slices, as far as there are any."""
    state: Any = None
    for t in range(context + 1):
        obs = {name: x[:, t] for name, x in seen.obs.items()}
        state = model.observe(state, seen.action[:, t - 1] if t else None, obs, seen.first[:, t])
    plan, can = seen.action[:, None, context:], model.capabilities
    options: dict[str, Any] = {"particles": particles, "noise": noise} if can.stochastic else {}
    drawn = model.imagine(state, plan, keep=("obs",), **options)
    assert drawn.obs is not None
    futures = drawn.obs[:, 0].double()  # [B, P, H+1, D]
    told = {
        "happened": seen.obs["vector"][:, context:],
        "mean": futures.mean(1),
        "std": futures.std(1, correction=int(futures.shape[1] > 1)),
        "reward": seen.reward[:, context:],
    }
    bare = None if can.recurrent else model.imagine(state, plan).disagreement
    if bare is not None:
        told["disagreement"] = bare[:, 0]
    if can.rewards:
        told["promised"] = drawn.reward[:, 0].mean(1)
    return told
