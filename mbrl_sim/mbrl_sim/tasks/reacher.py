"""The world of dm_control's reacher, so that planners can simulate it: see `AdaptedTask.twin`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.spec import Element
from mbrl_sim.tasks.base import Array, MujocoTask, State

LINK = 0.12  # from shoulder to wrist, and from wrist to finger [m]


class Reacher(MujocoTask):
    """Observation: cosine and sine of the shoulder's angle, the wrist's; from finger to target; velocities.

    It is named as the adapter names what dm_control observes. Positions are those of shoulder, wrist and
    target [rad, m], so that the target, which dm_control keeps in the MJCF, can be told from an observation.
    What is wanted, easy or hard, the adapted task says.
    """

    name = "reacher"
    mjcf = Path(__file__).with_suffix(".xml")
    observation = (
        Element("position[0]_cos", "1", -1.0, 1.0, "cos"),
        Element("position[0]_sin", "1", -1.0, 1.0, "sin"),
        *(Element(name) for name in ("position[1]", "to_target[0]", "to_target[1]")),
        *(Element(f"velocity[{i}]") for i in range(2)),
    )
    action = tuple(Element(f"action[{i}]", low=-1.0, high=1.0) for i in range(2))
    frame = 0.02

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """Anywhere, at rest, with a target within reach."""
        turn, radius = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.05, 0.2)
        arm = rng.uniform([-math.pi, math.radians(-160)], [math.pi, math.radians(160)])
        return np.array([*arm, radius * math.sin(turn), radius * math.cos(turn)]), np.zeros(4)

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the class says."""
        shoulder, wrist = qpos[..., :1], qpos[..., 1:2]
        circle = np.concatenate([np.cos(shoulder), np.sin(shoulder)], axis=-1)
        to_target = qpos[..., 2:] - finger(circle, wrist)
        return np.concatenate([circle, wrist, to_target, qvel[..., :2]], axis=-1)

    def pose(self, obs: Array) -> Array:
        """Angles of shoulder and wrist, and where the target is."""
        xp = array_namespace(obs)
        shoulder = xp.atan2(obs[..., 1:2], obs[..., :1])
        target = finger(obs[..., :2], obs[..., 2:3]) + obs[..., 3:5]
        return xp.concat([shoulder, obs[..., 2:3], target], axis=-1)

    def motion(self, obs: Array) -> Array:
        """Angular velocities; the target rests."""
        return array_namespace(obs).concat([obs[..., 5:], 0.0 * obs[..., 5:]], axis=-1)

    def points(self, obs: Array) -> Array:
        """The finger."""
        xp, at = array_namespace(obs), finger(obs[..., :2], obs[..., 2:3])
        return xp.concat([at, 0.0 * at[..., :1]], axis=-1)[..., None, :]


def finger(circle: Array, wrist: Array) -> Array:
    """Where it is [..., 2], for cosine and sine of the shoulder's angle [..., 2] and the wrist's [..., 1]."""
    xp = array_namespace(circle)
    cos, sin = circle[..., :1], circle[..., 1:]
    along, across = 1.0 + xp.cos(wrist), xp.sin(wrist)
    return LINK * xp.concat([cos * along - sin * across, sin * along + cos * across], axis=-1)
