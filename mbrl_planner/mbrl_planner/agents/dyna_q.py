"""Dyna-Q (Sutton, 1991, https://doi.org/10.1145/122344.122377; Sutton and Barto, 2018, section 8.2): learning
from what happens, and by planning from what a table says would happen. For discrete states and actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.tabular import Tabular
from mbrl_dynamics.spec import DISCRETE, Spec
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.base import Observation, PolicyAgent


@config
class DynaQConfig:
    """Configuration of DynaQ; the defaults are the book's."""

    planning_steps: Annotated[
        int, Field(ge=0, description="imagined transitions learned from after each real one, n [1]")
    ] = 50
    learning_rate: Annotated[float, Field(gt=0, le=1, description="step size of Q-learning, alpha [1]")] = 0.1
    discount: Annotated[float, Field(ge=0, le=1, description="of rewards a step later, gamma [1]")] = 0.95
    exploration: Annotated[float, Field(ge=0, le=1, description="share of random actions, epsilon [1]")] = 0.1
    random_steps: Annotated[
        int, Field(ge=1, description="steps of random actions before learning begins [steps]")
    ] = 1


class DynaQ(PolicyAgent):
    """Tabular Q-learning, and n steps of it on the tabular model after each real step.

    Learning is online: each transition of the buffer is learned from once, in order. Only pairs of state and
    action that were tried are planned with, and equal values are chosen among at random.

    The tables stay on the CPU whatever `device` says.
    """

    Config = DynaQConfig
    kinds = (DISCRETE,)
    q: Tensor

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device="cpu")
        self.table = Tabular(spec)
        self.register_buffer("q", torch.zeros(self.table.states, self.table.actions, dtype=torch.float64))
        self._tried = torch.zeros(self.q.numel(), 2, dtype=torch.int64)  # pairs, in order of their first time
        self._pairs = 0  # how many
        self._heard = 0  # steps of the buffer learned from
        self._one_hot = torch.eye(self.table.actions)

    # Acting -------------------------------------------------------------------------------------------------

    def choose(
        self, carry: Observation, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Observation]:
        """A best action one-hot [B, 1, A], or with probability epsilon any, if it explores."""
        values = self.q[self.table.state_index(carry["vector"].cpu())]
        draw = torch.rand(values.shape, generator=self.noise)
        best = torch.where(values == values.amax(-1, keepdim=True), draw, -1.0)
        if explore:
            wild = torch.rand(len(values), generator=self.noise) < self.config.exploration
            best[wild] = torch.rand(int(wild.sum()), values.shape[-1], generator=self.noise)
        return self._one_hot[best.argmax(-1)].unsqueeze(1), carry

    def acting_state(self) -> dict[str, Tensor]:
        """The values."""
        return {"q": self.q}

    # Learning -----------------------------------------------------------------------------------------------

    def owed(self, env_steps: int) -> int:
        """Transitions that were not learned from yet."""
        return max(env_steps - self._heard, 0) if env_steps >= self.config.random_steps else 0

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Learn from `count` further transitions, each followed by its planning steps.

        Where there are no further ones (as when learning offline), only the planning steps are made.
        """
        fresh = min(count, len(buffer) - self._heard)
        errors = [abs(e) for step in self._fresh(buffer, fresh) for e in self._real(step)]
        for _ in range(count - fresh):
            self._plan()
        return {
            "td_error": float(np.mean(errors)) if errors else 0.0,
            "value": float(self.q.max()),
            "pairs": float(self._pairs),
        }

    def _fresh(self, buffer: ReplayBuffer, count: int) -> list[tuple[int, int, float, int, bool]]:
        """The next transitions (s, a, r, s', ended) of the buffer."""
        data = buffer.slices(np.arange(self._heard, self._heard + count))
        obs = data.obs["vector"]
        s, a, after = self.table.indices(obs[:, 0], data.action[:, 0], obs[:, 1])
        columns = (s, a, data.reward[:, 0], after, data.terminated[:, 0])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _real(self, step: tuple[int, int, float, int, bool]) -> list[float]:
        """Learn from what happened, remember it, then plan (figure of section 8.2, steps d to f)."""
        s, a, reward, after, ended = step
        self._heard += 1
        if not np.isfinite(reward):
            return []
        error = self._backup(s, a, reward, after, 0.0 if ended else 1.0)
        if not self.table.counts[s, a].any():
            self._tried[self._pairs] = torch.tensor((s, a))
            self._pairs += 1
        self.table.add(s, a, reward, after, ended)
        self._plan()
        return [error]

    def _plan(self) -> None:
        """Learn from n imagined transitions."""
        if not self._pairs or not self.config.planning_steps:
            return
        which = torch.randint(self._pairs, (self.config.planning_steps,), generator=self.generator)
        pairs = self._tried[which]
        obs, action = pairs[:, :1].float(), self._one_hot[pairs[:, 1]]
        ahead = self.table.step(obs, action, self.generator)
        assert ahead.obs is not None and ahead.reward is not None and ahead.alive is not None
        steps = (*pairs.unbind(-1), ahead.reward, ahead.obs[:, 0].long(), ahead.alive)
        for s, a, reward, after, alive in zip(*(x.tolist() for x in steps), strict=True):
            self._backup(s, a, reward, after, alive)

    def _backup(self, s: int, a: int, reward: float, after: int, alive: float) -> float:
        """Q-learning (equation 6.8); the error of the value before."""
        q = self._values
        error = reward + self.config.discount * alive * float(q[after].max()) - float(q[s, a])
        q[s, a] += self.config.learning_rate * error
        return error

    @property
    def _values(self) -> NDArray[np.float64]:
        """The values [S, A]; shares memory with `q`, and single entries are faster to reach."""
        values: NDArray[np.float64] = self.q.numpy()
        return values

    # Keeping ------------------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """And how much of the buffer was learned from, and which pairs were tried, in order."""
        counters = {"heard": torch.tensor(self._heard), "pairs": torch.tensor(self._pairs)}
        return {**super().training_state(), **counters, "tried": self._tried.clone()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        super().load_training_state(state)
        self._heard, self._pairs = int(state["heard"]), int(state["pairs"])
        self._tried.copy_(state["tried"])
