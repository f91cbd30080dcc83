"""Cart-pole swing-up: swing a hanging pole up and balance it. As cartpole-swingup of dm_control."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.spec import Element
from mbrl_sim.tasks.base import Array, MujocoTask, State, gaussian, quadratic

RAIL = 1.8  # the cart's way to either side; soft, so that it is passed by a little [m]
LENGTH, HEIGHT = 1.0, 1.0  # of the pole, and of the rail above the floor [m]


class CartpoleSwingup(MujocoTask):
    """Observation: cart position, cosine and sine of the pole's angle (0 = upright), their velocities.

    200 steps of 0.05 s. Reward: up to 1 for each frame of 0.01 s, the product of upright, small control,
    slow and centred; 1000 frames an episode.
    """

    name = "cartpole_swingup"
    mjcf = Path(__file__).with_suffix(".xml")
    observation = (
        Element("cart_position", "m", -RAIL, RAIL),
        Element("pole_angle_cos", "1", -1.0, 1.0, "cos"),
        Element("pole_angle_sin", "1", -1.0, 1.0, "sin"),
        Element("cart_velocity", "m/s"),
        Element("pole_velocity", "rad/s"),
    )
    action = (Element("cart_force", "N", -10.0, 10.0),)
    frame = 0.01
    action_repeat = 5
    max_steps = 200

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """The cart in the middle, the pole hanging, both nearly at rest."""
        return 0.01 * rng.standard_normal(2) + np.array([0.0, math.pi]), 0.01 * rng.standard_normal(2)

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the class says: angles as cosine and sine."""
        position, angle = qpos[..., :1], qpos[..., 1:]
        return np.concatenate([position, np.cos(angle), np.sin(angle), qvel], axis=-1)

    def frame_reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Upright x centred x small control x slow, at the end of the frame."""
        upright = (1.0 + next_obs[..., 1]) / 2.0
        centred = (1.0 + gaussian(next_obs[..., 0], margin=2.0)) / 2.0
        small_control = (4.0 + quadratic(action[..., 0], margin=1.0)) / 5.0
        slow = (1.0 + gaussian(next_obs[..., 4], margin=5.0)) / 2.0
        return upright * centred * small_control * slow

    def pose(self, obs: Array) -> Array:
        """Cart position and angle."""
        xp = array_namespace(obs)
        return xp.stack([obs[..., 0], xp.atan2(obs[..., 2], obs[..., 1])], axis=-1)

    def motion(self, obs: Array) -> Array:
        """Speeds of the cart and of the angle."""
        return obs[..., 3:]

    def points(self, obs: Array) -> Array:
        """The tip of the pole, and the cart."""
        position, cos, sin = obs[..., 0], obs[..., 1], obs[..., 2]
        xp = array_namespace(obs)
        tip = xp.stack([position + LENGTH * sin, 0.0 * sin, HEIGHT + LENGTH * cos], axis=-1)
        cart = xp.stack([position, 0.0 * sin, HEIGHT + 0.0 * cos], axis=-1)
        return xp.stack([tip, cart], axis=-2)
