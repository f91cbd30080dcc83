"""How good an agent is: deterministic episodes on seeds of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.base import PolicyAgent
from mbrl_sim.worlds import Worlds

FIRST_SEED = 1_000_000  # of the evaluation's episodes; training never draws it


@dataclass(frozen=True)
class Evaluation:
    """One look at an agent."""

    env_steps: int  # steps of experience that it has learned from
    frames: int  # the same in frames of the world
    wall_s: float  # since the training began [s]
    returns: list[float] = field(default_factory=list)  # of the episodes
    updates: int = 0  # gradient steps that the agent had made

    @property
    def score(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns)) if self.returns else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation over the episodes."""
        return float(np.std(self.returns)) if self.returns else float("nan")


def evaluate(agent: PolicyAgent, worlds: Worlds) -> tuple[list[float], list[float]]:
    """One episode in each world, all at once; returns their returns and the times of the decisions [ms].

    A batch of decisions for all worlds counts as one, since a robot has one world.
    """
    count = len(worlds)
    driver = Driver(agent, worlds.spec, count)
    states = worlds.reset_all([FIRST_SEED + i for i in range(count)])
    returns, over, times = np.zeros(count), np.zeros(count, bool), []
    while not over.all():
        begin = time.perf_counter()
        actions = driver.decide(states, explore=False)
        times.append(1e3 * (time.perf_counter() - begin))
        states = worlds.step(actions)
        returns += np.where(over, 0.0, [state.reward for state in states])
        for i, state in enumerate(states):
            over[i] |= state.last
            if state.last and not over.all():
                states[i] = worlds.reset(i)  # worlds go on together; what follows does not count
    return returns.tolist(), times


class Driver:
    """An agent that answers the States of several worlds at once, with its memory.

    Args:
        agent: decides; at random until it is ready, if it explores.
        spec: of the worlds.
        count: how many there are.
        seed: of the random actions.
    """

    def __init__(self, agent: PolicyAgent, spec: Any, count: int, seed: int = 0) -> None:
        self.agent, self.spec = agent, spec
        self._carry: Any = None
        self._action: Tensor | None = None
        self._rng = np.random.default_rng((seed, 2))
        self._count = count

    def decide(self, states: Sequence[Transition], *, explore: bool) -> np.ndarray:
        """Actions [count, A] in SI units for the newest State of each world."""
        agent = self.agent
        obs = {"vector": torch.from_numpy(np.stack([s.observation for s in states]).astype(np.float32))}
        for camera in self.spec.cameras:
            obs[camera.name] = torch.from_numpy(np.stack([s.images[camera.name] for s in states]))
        first = torch.tensor([state.first for state in states])
        carry = agent.observe(obs, self._carry, first=first, prev_action=self._executed(states))
        if explore and not agent.ready:
            inner = self.random()
        else:
            with torch.no_grad():
                plans, carry = agent.choose(carry, explore=explore)
            inner = plans[:, 0].cpu().numpy()
        self._carry = carry
        return self.spec.unscale_action(inner)

    def random(self) -> np.ndarray:
        """Scaled actions drawn uniformly, or one-hot ones."""
        width = self.spec.inner_action_dim
        if self.spec.discrete:
            return np.eye(width)[self._rng.integers(width, size=self._count)]
        return self._rng.uniform(-1.0, 1.0, (self._count, width))

    def _executed(self, states: Sequence[Transition]) -> Tensor | None:
        if self._carry is None:
            return None
        return torch.from_numpy(
            self.spec.scale_action(np.stack([s.action for s in states])).astype(np.float32)
        )
