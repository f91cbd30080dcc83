"""Pendulum swing-up: bring a weight on a rod upright and hold it. As pendulum-swingup of dm_control."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.spec import Element
from mbrl_sim.tasks.base import Array, MujocoTask, State, inside

UPRIGHT = math.cos(math.radians(8.0))  # cosine from which the rod counts as upright
LENGTH, HEIGHT = 0.5, 0.6  # of the rod, and of its hinge above the floor [m]


class PendulumSwingup(MujocoTask):
    """Observation: cosine and sine of the angle (0 = upright), angular velocity. 500 steps of 0.04 s.

    Reward: 1 for each frame of 0.02 s within 8 degrees of upright, else 0; 1000 frames an episode.
    """

    name = "pendulum_swingup"
    mjcf = Path(__file__).with_suffix(".xml")
    observation = (
        Element("angle_cos", "1", -1.0, 1.0, "cos"),
        Element("angle_sin", "1", -1.0, 1.0, "sin"),
        Element("velocity", "rad/s"),
    )
    action = (Element("torque", "N m", -1.0, 1.0),)
    frame = 0.02
    action_repeat = 2
    max_steps = 500

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """Anywhere on the circle, at rest."""
        return rng.uniform(-math.pi, math.pi, 1), np.zeros(1)

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the class says: angles as cosine and sine."""
        return np.concatenate([np.cos(qpos), np.sin(qpos), qvel], axis=-1)

    def frame_reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """1 if the frame ends upright."""
        return inside(next_obs[..., 0], UPRIGHT, math.inf)

    def pose(self, obs: Array) -> Array:
        """The angle."""
        return array_namespace(obs).atan2(obs[..., 1:2], obs[..., 0:1])

    def motion(self, obs: Array) -> Array:
        """The angular velocity."""
        return obs[..., 2:]

    def points(self, obs: Array) -> Array:
        """The weight at the end of the rod."""
        cos, sin = obs[..., 0], obs[..., 1]
        xp = array_namespace(obs)
        return xp.stack([LENGTH * sin, 0.0 * sin, HEIGHT + LENGTH * cos], axis=-1)[..., None, :]
