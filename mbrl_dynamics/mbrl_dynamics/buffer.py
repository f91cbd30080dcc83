"""The replay buffer: what a robot did, ready to be sampled as slices that never cross an episode."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition, WorldId
from mbrl_dynamics.types import Trajectory

Fit = Literal["all", "half", "latest"]  # see ReplayBuffer.strata


class ReplayBuffer:
    """Grows without limit in main memory; one row a State.

    A *step* is a pair of States that follow each other without a gap. Several worlds may be added side by
    side, one State of each in turn: every row knows which row it follows.

    Args:
        spec: of the world.
        capacity: rows to begin with.
        demonstrators: ids of controllers whose steps are demonstrations.
        fit_on: what models are fitted on, see `strata`.
    """

    def __init__(
        self,
        spec: Spec,
        capacity: int = 1024,
        *,
        demonstrators: Collection[str] = (),
        fit_on: Fit = "all",
    ) -> None:
        self.spec, self.fit_on = spec, fit_on
        self._demonstrators = frozenset(demonstrators)
        self._rows = 0
        self._length = 0
        self._newest: dict[WorldId, tuple[Transition, int]] = {}  # of each world: its last State and row
        self._steps: NDArray[np.int64] = np.zeros(capacity, np.int64)  # rows that end a step
        self._before: NDArray[np.int64] = np.zeros(
            capacity, np.int64
        )  # row that a row follows; itself = none
        self._after: NDArray[np.int64] = np.zeros(capacity, np.int64)  # row that follows it; itself = none
        self._obs: NDArray[np.float32] = np.zeros((capacity, spec.observation_dim), np.float32)
        self._action: NDArray[np.float32] = np.zeros((capacity, spec.inner_action_dim), np.float32)
        self._reward: NDArray[np.float32] = np.zeros(capacity, np.float32)
        self._terminated: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self._demonstrated: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self._run: NDArray[np.int64] = np.zeros(capacity, np.int64)  # unbroken run that a row belongs to
        self._images: dict[str, list[NDArray[np.uint8]]] = {camera.name: [] for camera in spec.cameras}
        self.episodes = 0  # unbroken runs of States seen so far
        self.gaps = 0  # States that neither began an episode nor followed the one before

    def __len__(self) -> int:
        """Number of steps (transitions) that can be learned from."""
        return self._length

    def add(self, transition: Transition) -> bool:
        """Append a State.

        Returns:
            Whether it completed a step, that is, whether it follows the State added before.

        Raises:
            ValueError: it does not fit the spec (see `Transition.fault`).
        """
        fault = transition.fault(self.spec)
        if fault:
            raise ValueError(fault)
        last, before = self._newest.get(transition.world_id, (None, 0))
        if last is not None and transition.key == last.key:
            return False  # a repeated State
        joined = transition.follows(last)
        self.episodes += transition.first
        self.gaps += not joined and not transition.first
        row = self._rows
        self._grow(row + 1)
        self._obs[row] = transition.observation
        if joined:
            self._action[row] = self.spec.scale_action(transition.action)
            self._reward[row] = transition.reward
            self._terminated[row] = transition.terminated
            self._demonstrated[row] = transition.controller_id in self._demonstrators
            self._steps[self._length] = row
            self._length += 1
        for name, image in transition.images.items():
            self._images[name].append(image)
        self._before[row], self._after[row] = before if joined else row, row
        self._run[row] = self._run[before] if joined else row
        if joined:
            self._after[before] = row
        self._newest[transition.world_id] = transition, row
        self._rows += 1
        return joined

    def newest(self, world_id: WorldId) -> Transition | None:
        """The last State of a world that was added; None = none yet."""
        return self._newest.get(world_id, (None, 0))[0]

    def sample(self, batch: int, length: int = 1, *, generator: torch.Generator | None = None) -> Trajectory:
        """Draw slices of `length` steps, uniformly over the steps that end them.

        Slices that would reach back beyond the beginning of their episode are padded in front with
        copies of its first State, and masked by `valid`.

        Raises:
            ValueError: there is nothing to sample.
        """
        if not self._length:
            raise ValueError("the replay buffer holds no steps yet")
        return self.slices(torch.randint(self._length, (batch,), generator=generator).numpy(), length)

    def slices(self, steps: NDArray[np.int64], length: int = 1) -> Trajectory:
        """The slices of `length` steps that end with the given steps (0 .. len(self)-1)."""
        rows = np.empty((len(steps), length + 1), np.int64)  # [B, T+1]
        rows[:, -1] = self._steps[: self._length][steps]
        for t in reversed(range(length)):
            rows[:, t] = self._before[rows[:, t + 1]]
        done = rows[:, 1:]
        valid = rows[:, :-1] != done
        obs = {"vector": _tensor(self._obs[rows])}
        for name, images in self._images.items():
            obs[name] = _tensor(
                np.stack([images[row] for row in rows.flat]).reshape(*rows.shape, *images[0].shape)
            )
        return Trajectory(
            obs=obs,
            action=_tensor(self._action[done]),
            reward=_tensor(self._reward[done]),
            terminated=_tensor(self._terminated[done] & valid),
            first=_tensor(self._before[rows[:, :-1]] == rows[:, :-1]),
            valid=_tensor(valid),
            extras={"index": _tensor(np.searchsorted(self._steps[: self._length], done))},
        )

    def later(self, steps: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The steps that come so many after the given ones, or the last of their episode if it ends before.

        Slices that end at a step drawn uniformly hardly ever hold the end of an episode; those that end some
        steps later, drawn from 0 .. length - 1, hold it as often as anything else.
        """
        rows = self._steps[: self._length][steps]
        for count in range(int(counts.max(initial=0))):
            rows = np.where(counts > count, self._after[rows], rows)
        return np.searchsorted(self._steps[: self._length], rows)

    def strata(self) -> list[NDArray[np.int64]]:
        """Steps (0 .. len(self)-1) that a model is fitted on: it sees as much of each stratum.

        As `fit_on` says: "all" that was seen (no-regret model learning), one "half" demonstrations and the
        other one not (agnostic system identification), or the "latest" episode only, for comparison (Ross &
        Bagnell, 2012, https://arxiv.org/abs/1203.1007). A stratum that would be empty is left out.
        """
        rows = self._steps[: self._length]
        if self.fit_on == "half":
            shown = self._demonstrated[rows]
            parts = [np.flatnonzero(~shown), np.flatnonzero(shown)]
        elif self.fit_on == "latest" and len(rows):
            parts = [np.flatnonzero(self._run[rows] == self._run[rows[-1]])]
        else:
            parts = [np.arange(self._length)]
        return [part for part in parts if len(part)]

    def all(self) -> Trajectory:
        """Every step, as slices of length one."""
        return self.slices(np.arange(self._length))

    def _grow(self, rows: int) -> None:
        capacity = len(self._obs)
        if rows > capacity:
            for name in (
                "_obs",
                "_action",
                "_reward",
                "_terminated",
                "_demonstrated",
                "_run",
                "_steps",
                "_before",
                "_after",
            ):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
