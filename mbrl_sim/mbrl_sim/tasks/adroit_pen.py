"""Adroit: turn a pen in a hand with 24 joints. AdroitHandPen of gymnasium-robotics, whose MJCF it is
(Rajeswaran et al., 2018, https://arxiv.org/abs/1709.10087).
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Element
from mbrl_sim.tasks.base import Array, MujocoTask, State

RANGES = {  # of the angles that the hand's drives are told [rad]
    "WRJ1": (-0.524, 0.175),  # wrist, sideways
    "WRJ0": (-0.79, 0.61),
    **{  # forefinger, middle and ring finger: sideways, then their three hinges from the palm to the tip
        f"{finger}J{joint}": (-0.44, 0.44) if joint == 3 else (0.0, 1.6)
        for finger in ("FF", "MF", "RF")
        for joint in (3, 2, 1, 0)
    },
    "LFJ4": (0.0, 0.7),  # the little finger's palm
    "LFJ3": (-0.44, 0.44),
    "LFJ2": (0.0, 1.6),
    "LFJ1": (0.0, 1.6),
    "LFJ0": (0.0, 1.6),
    "THJ4": (-1.0, 1.0),  # thumb
    "THJ3": (0.0, 1.3),
    "THJ2": (-0.26, 0.26),
    "THJ1": (-0.52, 0.52),
    "THJ0": (-1.571, 0.0),
}
CENTRE = (0.0, -0.2, 0.25)  # where the pen begins, and should be [m]
TURN = 1.57  # about the world's y axis, of the frame that the pen's slides and hinges are in [rad]
HALF = 0.065  # length of the pen [m]
TARGET = (0.2, -0.2, 0.25)  # where the target is shown [m]
LATE = 0.002  # the pen is seen so late: MuJoCo places bodies at the beginning of a step of its physics [s]
NEAR = 0.075  # the pen is where it should be [m]
ALIKE, ALMOST = 0.95, 0.9  # cosines from which the pen points as it should, or nearly
LOST = 0.075  # height below which it has been dropped [m]

_PACKAGE = "gymnasium_robotics"
_J = len(RANGES)
_XYZ = ("x", "y", "z")
_AT, _MOVES = slice(2 * _J, 2 * _J + 3), slice(2 * _J + 3, 2 * _J + 6)  # of the pen, in an observation
_COS, _SIN = slice(2 * _J + 6, 2 * _J + 12, 2), slice(2 * _J + 7, 2 * _J + 12, 2)
_TURNS, _TARGET = slice(2 * _J + 12, 2 * _J + 15), slice(2 * _J + 15, 2 * _J + 17)


def _folder() -> Path:
    """Of the package, which is not imported for it."""
    found = find_spec(_PACKAGE)
    return Path(_PACKAGE if found is None or found.origin is None else found.origin).parent


class AdroitPen(MujocoTask):
    """Observation: angles and speeds of 24 joints; the pen's place, velocity, three hinges that turn it and
    their speeds; the two angles of the target.

    Actions are the angles that the drives go to. 200 steps of 0.01 s (5 of the physics). Reward: cosine of
    the angle between pen and target, less the pen's distance from its place, with bonuses (10 and 50) for
    being right and a penalty (5) for having dropped it. All as in AdroitHandPen-v1, which sees the pen 2 ms
    late, but that the target, which is only shown, cannot be touched: it is on two hinges, so that the state
    tells how it is turned.

    Raises:
        UserError: gymnasium-robotics is not installed.
    """

    name = "adroit_pen"
    mjcf = _folder() / "envs" / "assets" / "adroit_hand" / "adroit_pen.xml"
    observation = (
        *(Element(joint, "rad") for joint in RANGES),
        *(Element(f"{joint}_speed", "rad/s") for joint in RANGES),
        *(Element(f"pen_{axis}", "m") for axis in _XYZ),
        *(Element(f"pen_{axis}_speed", "m/s") for axis in _XYZ),
        *(Element(f"pen_turn_{axis}_{e}", "1", -1.0, 1.0, e) for axis in _XYZ for e in ("cos", "sin")),
        *(Element(f"pen_turn_{axis}_speed", "rad/s") for axis in _XYZ),
        Element("target_roll", "rad", -1.0, 1.0),
        Element("target_pitch", "rad", -1.0, 1.0),
    )
    action = tuple(Element(f"{joint}_target", "rad", *limits) for joint, limits in RANGES.items())
    frame = 0.01
    max_steps = 200

    def __init__(self, action_repeat: int | None = None) -> None:
        super().__init__(action_repeat)
        if not self.mjcf.is_file():
            raise UserError(
                f"task '{self.name}' needs the package gymnasium-robotics, which is not installed here: "
                "install the extra mbrl_sim[adroit]"
            )

    def edit(self, mjcf: Any) -> None:
        """Put the target on two hinges, on which it stays as it is: nothing pulls at it or touches it."""
        target = mjcf.body("target")
        for joint, axis in (("target_roll", [1, 0, 0]), ("target_pitch", [0, 1, 0])):
            limits = [-math.pi, math.pi]
            target.add_joint(name=joint, axis=axis, limited=True, range=limits, armature=0, frictionloss=0)
        target.explicitinertial, target.mass = True, 1e-9  # so little that the solver does as without it
        target.ipos, target.inertia = [0, 0, 0], [1e-12, 1e-12, 1e-12]
        for geom in target.geoms:
            geom.contype = geom.conaffinity = 0

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """The hand open, the pen above the palm, the target up to 1 rad about x and y from upright."""
        qpos = np.zeros(_J + 8)
        qpos[-2:] = rng.uniform(-1.0, 1.0, 2)
        return qpos, np.zeros(_J + 8)

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the class says."""
        speed = qvel[..., _J:-2]
        pen = qpos[..., _J:-2] - LATE * speed  # exactly, since MuJoCo moves by the new velocities
        turn = pen[..., 3:]
        circles = np.stack([np.cos(turn), np.sin(turn)], axis=-1).reshape(*turn.shape[:-1], 6)
        place, velocity = about_y(pen[..., :3], TURN) + CENTRE, about_y(speed[..., :3], TURN)
        hand = qpos[..., :_J], qvel[..., :_J]
        return np.concatenate([*hand, place, velocity, circles, speed[..., 3:], qpos[..., -2:]], axis=-1)

    def distance(self, obs: Array) -> Array:
        """Of the pen from its place [...], in m."""
        away = obs[..., _AT] - _like(CENTRE, obs)
        xp = array_namespace(obs)
        return xp.sqrt(xp.sum(away * away, axis=-1) + 1e-18)  # a gradient at the place too

    def likeness(self, obs: Array) -> Array:
        """Cosine of the angle between pen and target [...]."""
        return array_namespace(obs).sum(pen_axis(obs) * target_axis(obs), axis=-1)

    def success(self, obs: Array) -> Array:
        """Whether the pen is at its place and points as it should, bool [...]."""
        return (self.distance(obs) < NEAR) & (self.likeness(obs) > ALIKE)

    def frame_reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """As the class says, at the end of the frame."""
        xp = array_namespace(next_obs)
        distance, alike = self.distance(next_obs), self.likeness(next_obs)
        near = distance < NEAR

        def when(condition: Array) -> Array:
            return xp.astype(condition, next_obs.dtype)

        bonus = 10.0 * when(near & (alike > ALMOST)) + 50.0 * when(near & (alike > ALIKE))
        return alike - distance + bonus - 5.0 * when(next_obs[..., _AT][..., 2] < LOST)

    def pose(self, obs: Array) -> Array:
        """Angles of the joints, the pen's slides and hinges, those of the target."""
        xp = array_namespace(obs)
        slides = about_y(obs[..., _AT] - _like(CENTRE, obs), -TURN)
        pen = xp.concat([slides, xp.atan2(obs[..., _SIN], obs[..., _COS])], axis=-1)
        return xp.concat([obs[..., :_J], pen + LATE * self._pen_speed(obs), obs[..., _TARGET]], axis=-1)

    def motion(self, obs: Array) -> Array:
        """Their speeds; the target rests."""
        xp = array_namespace(obs)
        return xp.concat([obs[..., _J : 2 * _J], self._pen_speed(obs), 0.0 * obs[..., _TARGET]], axis=-1)

    def points(self, obs: Array) -> Array:
        """The ends of the pen and of the target."""
        xp = array_namespace(obs)
        pen, target = HALF * pen_axis(obs), HALF * target_axis(obs)
        at, shown = obs[..., _AT], _like(TARGET, obs)
        return xp.stack([at + pen, at - pen, shown + target, shown - target], axis=-2)

    def _pen_speed(self, obs: Array) -> Array:
        slides = about_y(obs[..., _MOVES], -TURN)
        return array_namespace(obs).concat([slides, obs[..., _TURNS]], axis=-1)


def pen_axis(obs: Array) -> Array:
    """Where the pen points in the world [..., 3], as a unit vector; its third hinge only rolls it."""
    cos, sin = obs[..., _COS], obs[..., _SIN]
    return about_y(_tilted(cos[..., 0], sin[..., 0], cos[..., 1], sin[..., 1]), TURN)


def target_axis(obs: Array) -> Array:
    """Where the target points in the world [..., 3], as a unit vector."""
    xp, angles = array_namespace(obs), obs[..., _TARGET]
    cos, sin = xp.cos(angles), xp.sin(angles)
    return _tilted(cos[..., 0], sin[..., 0], cos[..., 1], sin[..., 1])


def about_y(vector: Array, angle: float) -> Array:
    """Vectors [..., 3] turned about the y axis by an angle [rad]."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y, z = vector[..., 0], vector[..., 1], vector[..., 2]
    return array_namespace(vector).stack([cos * x + sin * z, y, cos * z - sin * x], axis=-1)


def _tilted(cos_x: Array, sin_x: Array, cos_y: Array, sin_y: Array) -> Array:
    """The z axis turned about y, then about x [..., 3]."""
    return array_namespace(cos_x).stack([sin_y, -sin_x * cos_y, cos_x * cos_y], axis=-1)


def _like(values: tuple[float, ...], obs: Array) -> Array:
    return array_namespace(obs).asarray(values, dtype=obs.dtype)
