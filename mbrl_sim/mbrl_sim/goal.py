"""The goal of a task that has one in its world, and what of an MJCF is the robot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_sim.drawing import mujoco

_HINGE, _SLIDE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)


class Goal:
    """A body on three slides along x, y and z of the world, which shows where the robot should be.

    It moves as the MJCF says, until somebody says where it should be.

    Args:
        model, data: mujoco.MjModel and its MjData.
        body: its name.

    Raises:
        UserError: it is not on three such slides.
    """

    def __init__(self, model: Any, data: Any, body: str) -> None:
        self._model, self._data = model, data
        at = model.body(body)
        joints = np.arange(at.jntadr[0], at.jntadr[0] + at.jntnum[0])
        slides = (model.jnt_type[joints] == _SLIDE).all()
        if not slides or not np.array_equal(model.jnt_axis[joints], np.eye(3)):
            raise UserError(f"body '{body}' must be on three slides along x, y and z")
        self._positions, self._velocities = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._origin = at.pos.copy()
        self._place: NDArray[np.float64] | None = None  # where it rests [3]; None = it moves as the MJCF says

    def state(self) -> NDArray[np.float64]:
        """Position and velocity in the world [6], m and m/s."""
        data = self._data
        return np.concatenate([self._origin + data.qpos[self._positions], data.qvel[self._velocities]])

    def move(self, position: ArrayLike) -> None:
        """Put it somewhere in the world [3], where it rests from now on, in later episodes too.

        Raises:
            UserError: the position is not three finite numbers.
        """
        place = np.asarray(position, dtype=np.float64)
        if place.shape != (3,) or not np.isfinite(place).all():
            raise UserError("the position of a goal must be three finite numbers")
        self._place = place - self._origin
        self._model.qpos_spring[self._positions] = self._place  # its springs hold it there
        self.rest()

    def rest(self) -> None:
        """An episode begins: if it was moved, it is where it was moved to."""
        if self._place is not None:
            self._data.qpos[self._positions], self._data.qvel[self._velocities] = self._place, 0.0


def robot_joints(model: Any, goal: str = "") -> NDArray[np.int64]:
    """Numbers of the hinges and slides [J] of an MJCF, but for those of the goal's body."""
    simple = np.isin(model.jnt_type, [_HINGE, _SLIDE])
    if goal:
        simple &= model.jnt_bodyid != model.body(goal).id
    return np.flatnonzero(simple)
