"""Pendulum: hold a rod upright with a motor too weak to lift it at once. As Gymnasium's Pendulum-v1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.spec import Element
from mbrl_sim.tasks.base import Array, MujocoTask, State

MAX_SPEED = 8.0  # [rad/s]
MAX_TORQUE = 2.0  # [N m]
LENGTH = 1.0  # of the rod [m]


class Pendulum(MujocoTask):
    """Observation: cosine and sine of the angle (0 = upright), angular velocity. 200 steps of 0.05 s.

    Reward: -(angle^2 + 0.1 velocity^2 + 0.001 torque^2), measured before the step.
    """

    name = "pendulum"
    mjcf = Path(__file__).with_suffix(".xml")
    observation = (
        Element("angle_cos", "1", -1.0, 1.0, "cos"),
        Element("angle_sin", "1", -1.0, 1.0, "sin"),
        Element("velocity", "rad/s", -MAX_SPEED, MAX_SPEED),
    )
    action = (Element("torque", "N m", -MAX_TORQUE, MAX_TORQUE),)
    frame = 0.05
    max_steps = 200

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """Anywhere on the circle, turning at up to 1 rad/s."""
        return rng.uniform(-math.pi, math.pi, 1), rng.uniform(-1.0, 1.0, 1)

    def after_step(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64], timestep: float) -> None:
        """Limit the speed before it moves the rod, as Gymnasium does."""
        limited = qvel.clip(-MAX_SPEED, MAX_SPEED)
        qpos += (limited - qvel) * timestep
        qvel[...] = limited

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the class says: angles as cosine and sine."""
        return np.concatenate([np.cos(qpos), np.sin(qpos), qvel], axis=-1)

    def frame_reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Minus the cost of the state before the step and of the torque."""
        angle = array_namespace(obs).atan2(obs[..., 1], obs[..., 0])
        torque = MAX_TORQUE * action[..., 0]
        return -(angle**2 + 0.1 * obs[..., 2] ** 2 + 0.001 * torque**2)

    def pose(self, obs: Array) -> Array:
        """The angle."""
        return array_namespace(obs).atan2(obs[..., 1:2], obs[..., 0:1])

    def motion(self, obs: Array) -> Array:
        """The angular velocity."""
        return obs[..., 2:]

    def points(self, obs: Array) -> Array:
        """The tip of the rod."""
        cos, sin = obs[..., 0], obs[..., 1]
        xp = array_namespace(obs)
        return xp.stack([LENGTH * sin, 0.0 * sin, LENGTH * cos], axis=-1)[..., None, :]
