"""Arm: follow a moving goal with the tool of a six-joint arm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.spec import Element
from mbrl_sim.kinematics import read_chain
from mbrl_sim.tasks.base import Array, MujocoTask, State, gaussian

RANGES = {  # of the joints, either way [rad], and the speed that their drives follow [rad/s]
    "base_yaw": (2.8, 1.0),
    "shoulder_pitch": (1.9, 1.0),
    "elbow_pitch": (2.4, 1.0),
    "forearm_roll": (2.8, 1.5),
    "wrist_pitch": (2.0, 1.5),
    "tool_roll": (2.8, 1.5),
}
HOME = np.array([0.0, 0.1, 1.5, 0.0, 1.0, 0.0])  # the tool before the arm, pointing down [rad]
CENTRE = np.array([0.36, 0.0, 0.30])  # of the goal's paths [m]
EXTENT = np.array([0.10, 0.22, 0.10])  # how far they go to either side [m]
ANGULAR_FREQUENCY = np.sqrt([0.487, 0.326, 0.395])  # of the goal's springs, its mass being 1 kg [rad/s]
POINTS = {  # joint -> a telling point of what it turns: the tool's tip, the wrist, the elbow [m]
    "tool_roll": (0.0, 0.0, 0.07),
    "wrist_pitch": (0.0, 0.0, 0.0),
    "elbow_pitch": (0.0, 0.0, 0.0),
}
PRICE = 0.1  # of full speed in all joints: plans are drawn at random, and the arm would tremble without it
NEAR = 0.02  # the tool has reached the goal [m]
CLEARANCE = 0.08  # that elbow, wrist and tool keep from the table [m]

_ARM = len(RANGES)
_XYZ = ("x", "y", "z")


class ArmReach(MujocoTask):
    """Observation: angles and speeds of the six joints, position and velocity of the goal in the world.

    Actions are the speeds that the drives follow. 200 steps of 0.05 s. Reward: up to 1 for each frame of
    0.01 s; half of it for being near, half for being very near, less a price of speed and of coming too near
    to the table. 1000 frames an episode.

    The reward knows the arm's geometry from the MJCF, so that a planner can lead the tool to any goal with
    what was learned from others.
    """

    name = "arm_reach"
    mjcf = Path(__file__).with_name("arm_reach.xml")
    goal = "goal"
    observation = (
        *(Element(joint, "rad", -way, way) for joint, (way, _) in RANGES.items()),
        *(Element(f"{joint}_speed", "rad/s", -top, top) for joint, (_, top) in RANGES.items()),
        *(
            Element(f"goal_{axis}", "m", middle - way, middle + way)
            for axis, middle, way in zip(_XYZ, CENTRE.tolist(), EXTENT.tolist(), strict=True)
        ),
        *(Element(f"goal_{axis}_speed", "m/s") for axis in _XYZ),
    )
    action = tuple(Element(f"{joint}_target", "rad/s", -top, top) for joint, (_, top) in RANGES.items())
    frame = 0.01
    action_repeat = 5
    max_steps = 200

    def __init__(self, action_repeat: int | None = None) -> None:
        super().__init__(action_repeat)
        self._chain = read_chain(ArmReach.mjcf, "tool")

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """The arm at home, the goal anywhere on a path of its own."""
        way = EXTENT * rng.uniform(0.3, 1.0, 3)
        phase = rng.uniform(-math.pi, math.pi, 3)
        qpos = np.concatenate([HOME + 0.02 * rng.standard_normal(_ARM), way * np.cos(phase)])
        return qpos, np.concatenate([np.zeros(_ARM), -ANGULAR_FREQUENCY * way * np.sin(phase)])

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the class says."""
        goal = qpos[..., _ARM:] + CENTRE
        return np.concatenate([qpos[..., :_ARM], qvel[..., :_ARM], goal, qvel[..., _ARM:]], axis=-1)

    def distance(self, obs: Array) -> Array:
        """From the tool's tip to the goal [...], in m."""
        return norm(self.body(obs)[..., 0, :] - _goal(obs))

    def success(self, obs: Array) -> Array:
        """Whether the tool has reached the goal, bool [...]."""
        return self.distance(obs) < NEAR

    def body(self, obs: Array) -> Array:
        """Where the tool's tip, the wrist and the elbow are in the world [..., 3, 3], in m."""
        return self._chain.positions(obs[..., :_ARM], POINTS)

    def frame_reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Nearness at the end of the frame, less the prices."""
        body = self.body(next_obs)
        distance = norm(body[..., 0, :] - _goal(next_obs))
        near = (gaussian(distance, margin=0.4) + gaussian(distance, margin=0.05)) / 2.0
        haste = (action * action).mean(-1)
        return near - PRICE * haste - self.crowding(body)

    def crowding(self, body: Array) -> Array:
        """The price of coming too near to what stands about, for points of the body [..., K, 3]."""
        return shortfall(body[..., 2], CLEARANCE)

    def pose(self, obs: Array) -> Array:
        """The joint angles, and the goal from the middle of its paths."""
        xp = array_namespace(obs)
        centre = xp.asarray(CENTRE, dtype=obs.dtype)
        return xp.concat([obs[..., :_ARM], _goal(obs) - centre], axis=-1)

    def motion(self, obs: Array) -> Array:
        """Speeds of the joints, and of the goal."""
        return array_namespace(obs).concat([obs[..., _ARM : 2 * _ARM], obs[..., -3:]], axis=-1)

    def points(self, obs: Array) -> Array:
        """The tool's tip, the goal, the wrist and the elbow."""
        body, goal = self.body(obs), _goal(obs)[..., None, :]
        return array_namespace(obs).concat([body[..., :1, :], goal, body[..., 1:, :]], axis=-2)


def _goal(obs: Array) -> Array:
    return obs[..., 2 * _ARM : 2 * _ARM + 3]


def norm(x: Array) -> Array:
    """Length of vectors [..., 3]."""
    return ((x * x).sum(-1) + 1e-12) ** 0.5  # a gradient at the goal too


def shortfall(distance: Array, wanted: float) -> Array:
    """By how much distances [..., K] fall short of what is wanted, as a share of it, added up [...]."""
    return (1.0 - distance / wanted).clip(min=0.0, max=2.0).sum(-1)
