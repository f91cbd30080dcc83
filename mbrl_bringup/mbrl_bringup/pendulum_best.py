"""How well the pendulum can be swung up at all: dynamic programming on a fine grid of its exact world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbrl_sim.rollouts import Rollouts
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.pendulum import MAX_SPEED, MAX_TORQUE, Pendulum

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Where values are kept: angles around the circle, and speeds; linear in between.

    Attributes:
        angles: A of them.
        speeds: V of them, both limits included.
        torques: tried in each state, both limits included.
    """

    angles: int = 301
    speeds: int = 201
    torques: int = 15

    def states(self) -> Array:
        """All of them [A * V, 2]: angle and speed."""
        angle = -np.pi + 2.0 * np.pi * np.arange(self.angles) / self.angles
        speed = np.linspace(-MAX_SPEED, MAX_SPEED, self.speeds)
        return np.stack(np.meshgrid(angle, speed, indexing="ij"), axis=-1).reshape(-1, 2)

    def weights(self, states: Array) -> tuple[NDArray[np.int64], Array]:
        """The four neighbours of states [M, 2] in the list of all [M, 4], and their weights."""
        turn = (states[:, 0] + np.pi) / (2.0 * np.pi) * self.angles
        pace = (states[:, 1] + MAX_SPEED) / (2.0 * MAX_SPEED) * (self.speeds - 1)
        low = np.minimum(np.floor(pace).astype(np.int64), self.speeds - 2)
        left = np.floor(turn).astype(np.int64)
        at, beside = left % self.angles, (left + 1) % self.angles
        u, v = turn - left, pace - low
        index = [at * self.speeds + low, at * self.speeds + low + 1]
        index += [beside * self.speeds + low, beside * self.speeds + low + 1]
        return np.stack(index, 1), np.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v], 1)


class Best:
    """The best way to act in each of an episode's steps, as far as the grid tells it.

    Attributes:
        values: [T + 1, A * V] of the steps that are left, by their number.
    """

    def __init__(self, grid: Grid | None = None) -> None:
        self.task, self.grid = Pendulum(), grid or Grid()
        self._rollouts = Rollouts(self.task)
        self._torques = np.linspace(-MAX_TORQUE, MAX_TORQUE, self.grid.torques)
        states = self.grid.states()
        reward, index, weight = self._ahead(states, self._torques)
        self.values = np.zeros((self.task.max_steps + 1, len(states)))
        for left in range(1, self.task.max_steps + 1):
            self.values[left] = self._worth(self.values[left - 1], reward, index, weight).max(1)

    def _ahead(self, states: Array, torques: Array) -> tuple[Array, NDArray[np.int64], Array]:
        """Rewards [M, U] of torques in states [M, 2]; where they lead: neighbours and weights [M, U, 4]."""
        count = len(torques)
        start = np.repeat(states, count, axis=0)
        action = np.tile(torques, len(states))[:, None]
        after = self._rollouts(start, action[:, None])[:, 0]
        obs, scaled = self._rollouts.observe(start), self.task.spec.scale_action(action)
        reward = self.task.reward(obs, scaled, self._rollouts.observe(after))
        index, weight = self.grid.weights(after)
        return reward.reshape(-1, count), index.reshape(-1, count, 4), weight.reshape(-1, count, 4)

    @staticmethod
    def _worth(values: Array, reward: Array, index: NDArray[np.int64], weight: Array) -> Array:
        worth: Array = reward + (values[index] * weight).sum(-1)
        return worth

    def act(self, observation: Array, left: int) -> float:
        """The torque [N m] for an observation [3] with so many steps left, of a finer choice."""
        torques = np.linspace(-MAX_TORQUE, MAX_TORQUE, 8 * self.grid.torques + 1)
        ahead = self._ahead(self._rollouts.restore(observation[None]), torques)
        return float(torques[self._worth(self.values[left - 1], *ahead)[0].argmax()])

    def play(self, seed: int) -> float:
        """The return of an episode in the world itself, which begins as the simulator does with this seed."""
        simulator, total = Simulator(self.task), 0.0
        obs = simulator.reset(seed=seed)
        for left in range(self.task.max_steps, 0, -1):
            result = simulator.step([self.act(obs, left)])
            obs, total = result.observation, total + result.reward
        return total
