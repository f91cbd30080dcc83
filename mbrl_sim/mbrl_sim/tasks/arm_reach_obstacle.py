"""Arm with an obstacle: follow a moving goal, and keep away from a ball that hangs in the air."""

from __future__ import annotations

from pathlib import Path

from array_api_compat import array_namespace

from mbrl_sim.tasks.arm_reach import ArmReach, norm, shortfall
from mbrl_sim.tasks.base import Array

OBSTACLE = (0.32, 0.14, 0.47)  # middle of the ball, of 0.05 m radius [m]
DISTANCE = 0.13  # that tool, wrist and elbow keep from it [m]


class ArmReachObstacle(ArmReach):
    """As ArmReach, with the same dynamics: what was learned there can be used here at once.

    The tool's tip, wrist and elbow keep away from the ball; the links between them are not watched.
    """

    name = "arm_reach_obstacle"
    mjcf = Path(__file__).with_suffix(".xml")

    def crowding(self, body: Array) -> Array:
        """The price of coming too near to the table or to the ball."""
        xp = array_namespace(body)
        ball = xp.asarray(OBSTACLE, dtype=body.dtype)
        return super().crowding(body) + shortfall(norm(body - ball), DISTANCE)
