"""Cart-pole of PETS (Chua et al. 2018, arXiv:1805.12114), with the physics and reward of mbrl-lib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.spec import Element
from mbrl_sim.tasks.base import Array, MujocoTask, State

RAIL = 2.5  # the cart's way to either side; soft [m]
LENGTH = 0.6  # of the pole [m]
MAX_CONTROL, GEAR = 3.0, 100.0  # the reward's price is on the control, not on the force of gear x control [N]


class CartpolePets(MujocoTask):
    """Observation: cart position, cosine and sine of the pole's angle (0 = hanging), their velocities.

    200 steps of 0.04 s. Reward, once a step: exp(-d^2 / L^2) - 0.01 control^2 with d from the pole's tip to
    the point L = 0.6 m above the middle of the rail and control in [-3, 3].
    """

    name = "cartpole_pets"
    mjcf = Path(__file__).with_suffix(".xml")
    observation = (
        Element("cart_position", "m", -RAIL, RAIL),
        Element("pole_angle_cos", "1", -1.0, 1.0, "cos"),
        Element("pole_angle_sin", "1", -1.0, 1.0, "sin"),
        Element("cart_velocity", "m/s"),
        Element("pole_velocity", "rad/s"),
    )
    action = (Element("cart_force", "N", -MAX_CONTROL * GEAR, MAX_CONTROL * GEAR),)
    frame = 0.04  # two physics steps, rewarded once
    max_steps = 200

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """Near the middle, the pole nearly hanging, both moving a little."""
        return 0.1 * rng.standard_normal(2), 0.1 * rng.standard_normal(2)

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the class says: angles as cosine and sine."""
        position, angle = qpos[..., :1], qpos[..., 1:]
        return np.concatenate([position, np.cos(angle), np.sin(angle), qvel], axis=-1)

    def frame_reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Nearness of the pole's tip to its goal, less the price of the control."""
        sideways = next_obs[..., 0] - LENGTH * next_obs[..., 2]
        below = LENGTH + LENGTH * next_obs[..., 1]
        near = array_namespace(next_obs).exp((sideways**2 + below**2) / -(LENGTH**2))
        return near - 0.01 * MAX_CONTROL**2 * action[..., 0] ** 2

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
        tip = xp.stack([position - LENGTH * sin, 0.0 * sin, -LENGTH * cos], axis=-1)
        cart = xp.stack([position, 0.0 * sin, 0.0 * cos], axis=-1)
        return xp.stack([tip, cart], axis=-2)
