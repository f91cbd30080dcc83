"""A robot's drives with MuJoCo behind them: no ROS, and no clock but the one it is given.

It knows nothing of episodes, steps or rewards: it stands where a robot with ros2_control would be, so that a
bridge can be tried without hardware.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_sim.drawing import mujoco
from mbrl_sim.goal import robot_joints
from mbrl_sim.physics import make_simulator
from mbrl_sim.simulator import Simulator

CATCH_UP = 0.1  # longest stall that is caught up; in a longer one the robot stood still for the rest [s]
_LONGEST_STEP = 0.002  # of the physics; a command waits for the next step [s]
_ROUNDING = 1e-9  # of the clock [s]


@dataclass(frozen=True)
class Measurement:
    """What the drives measured at one moment, in the order of `names`."""

    taken: float  # steady clock [s]
    names: tuple[str, ...]  # of the joints [J]
    positions: NDArray[np.float64]  # [J], rad or m
    velocities: NDArray[np.float64]  # [J], rad/s or m/s
    efforts: NDArray[np.float64]  # [J], of the motor, without friction and gravity, N m or N
    goal: NDArray[np.float64] | None = None  # [6], its position [m] and velocity [m/s]; None = no goal


@config
class DriverConfig:
    """A robot, and what is imperfect about it."""

    task: Annotated[
        str, Field(description="whose MJCF is the robot: an installed task, or package.module:Class")
    ] = "cartpole_swingup"
    seed: Annotated[int, Field(ge=0, description="of the initial states, the noise and what is lost")] = 0
    rate: Annotated[float, Field(gt=0, le=1000, description="of joint_states [Hz]")] = 100.0
    command_topic: Annotated[
        str,
        Field(
            min_length=1,
            description="of the efforts or speeds that are wanted, in the order of the actuators",
        ),
    ] = "effort_controller/commands"
    position_noise: Annotated[
        float, Field(ge=0, description="standard deviation of a measured position [rad or m]")
    ] = 0.0
    velocity_noise: Annotated[
        float, Field(ge=0, description="standard deviation of a measured velocity [rad/s or m/s]")
    ] = 0.0
    latency: Annotated[
        float, Field(ge=0, le=10, description="a measurement is published this much after it was taken [s]")
    ] = 0.0
    drop: Annotated[float, Field(ge=0, le=1, description="share of joint_states that is lost [1]")] = 0.0
    command_timeout: Annotated[
        float,
        Field(ge=0, description="a command is in force for so long [s]; 0 = until the next one, for ever"),
    ] = 0.0


class Driver:
    """Takes commands and measures joints, in real time.

    A command is an effort [N m or N], or a speed [rad/s or m/s] where the drives of the MJCF follow speeds;
    without a command it is zero.

    Each method that is given `now` first simulates what has passed until then, so that a command takes effect
    at the first step of the physics after it came. The physics is the task's in finer steps, 2 ms at most.

    In a fault, ordered (`fault`) or of the physics itself (`problem`), the motors are without force, nothing
    is measured and commands are refused. In an ordered one the robot goes on moving.

    Args:
        settings: see DriverConfig.
        now: the steady clock [s], here and in all methods.

    Attributes:
        names: of the measured joints [J].
        command_joints: which joint each element of a command drives [A].
        force: the command that is in force now [A].
        accepted, refused, clipped: commands; those that were clipped are accepted.
        dropped: measurements that were lost.
        stalled: time that was not caught up [s].
        problem: why the physics cannot go on, in one sentence; empty if it can. `home` ends it.

    Raises:
        UserError: there is no such task, or its world is no robot with motors at its joints.
    """

    def __init__(self, settings: DriverConfig, now: float = 0.0) -> None:
        self.settings = settings
        self._simulator = _robot(settings)
        self._step = self._simulator.refine(min(_LONGEST_STEP, 0.5 / settings.rate))
        model = self._simulator.model
        joints = robot_joints(model, self._simulator.task.goal)
        self.names = tuple(model.joint(joint).name for joint in joints)
        self._positions, self._velocities = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self.command_joints = _driven_joints(model, settings.task)
        self.force = np.zeros(len(self.command_joints))
        self.accepted = self.refused = self.clipped = self.dropped = 0
        self.last_refusal, self.problem = "", ""
        self.stalled = 0.0
        self.timed_out = self.faulty = False
        self._expires = math.inf  # when the command in force ends [s]
        self._start, self._steps = now, 0  # of the physics
        self._noise, self._luck = (np.random.default_rng([settings.seed, stream]) for stream in (1, 2))
        self._taken: deque[Measurement] = deque()  # not given to anyone yet, the oldest first
        self._measure()

    @property
    def time(self) -> float:
        """How far the physics is, on the steady clock [s]."""
        return self._start + self._steps * self._step

    def command(self, values: ArrayLike, now: float) -> str:
        """Take a command [A], clipped to the range of its actuator, or refuse it.

        Returns:
            Why it is refused, in one sentence; empty if it is not.
        """
        self.advance(now)
        why, wanted = self._refusal(values)
        if why:
            self.refused += 1
            self.last_refusal = why
            return why
        spec = self._simulator.task.spec
        self.force = np.clip(wanted, spec.action_low, spec.action_high)
        self.accepted += 1
        self.clipped += bool((self.force != wanted).any())
        self.timed_out = False
        self._expires = now + (self.settings.command_timeout or math.inf)
        return ""

    def advance(self, now: float) -> None:
        """Simulate the physics up to `now`."""
        lost = now - CATCH_UP - self.time
        if lost > 0:
            self._start += lost
            self.stalled += lost
        for _ in range(math.floor((now - self.time + _ROUNDING) / self._step)):
            if self.time >= self._expires - _ROUNDING:
                self._release()
                self.timed_out = True
            self.problem = self.problem or self._simulator.substep(self.force)
            self._steps += 1
            self._measure()
        while len(self._taken) > 1 and self._ripe(self._taken[1], now):
            self._taken.popleft()

    def measurement(self, now: float) -> Measurement | None:
        """The newest measurement that is at least `latency` old, each one only once.

        Returns:
            None if there is none, if it is lost, or in a fault.
        """
        self.advance(now)
        if not self._taken or not self._ripe(self._taken[0], now):
            return None
        newest = self._taken.popleft()
        if self._luck.random() < self.settings.drop:
            self.dropped += 1
            return None
        position_noise, velocity_noise = self._noise.standard_normal((2, len(self.names)))
        return replace(
            newest,
            positions=newest.positions + self.settings.position_noise * position_noise,
            velocities=newest.velocities + self.settings.velocity_noise * velocity_noise,
        )

    def home(self, now: float) -> None:
        """Put the robot into the next of the task's initial states, without a command.

        Measurements that were taken before may still come, as long as `latency`.

        Raises:
            UserError: its drives have dropped out.
        """
        self.advance(now)
        if self.faulty:
            raise UserError("the robot cannot move home while its drives have dropped out")
        self._simulator.reset()
        self._release()
        self.timed_out, self.problem = False, ""
        self._measure()

    @property
    def has_goal(self) -> bool:
        """Whether there is a goal in the robot's world."""
        return self._simulator.goal is not None

    def move_goal(self, position: ArrayLike, now: float) -> str:
        """Put the goal somewhere in the world [3], where it stays.

        Returns:
            Why it cannot be, in one sentence; empty if it is.
        """
        self.advance(now)
        if self._simulator.goal is None:
            return f"task '{self.settings.task}' has no goal to be moved"
        try:
            self._simulator.goal.move(position)
        except UserError as error:
            return str(error)
        return ""

    def fault(self, on: bool) -> None:
        """Let the drives drop out, or bring them back; they come back without a command."""
        if on != self.faulty:
            self.faulty = on
            self._release()
            self._taken.clear()

    def _refusal(self, values: ArrayLike) -> tuple[str, NDArray[np.float64]]:
        wanted = np.ravel(np.asarray(values, dtype=np.float64))
        if self.faulty or self.problem:
            return self.problem or "the drives have dropped out", wanted
        if wanted.shape != self.force.shape:
            return f"a command has {wanted.size} values, but must have {self.force.size}", wanted
        if not np.isfinite(wanted).all():
            return "a command is not finite", wanted
        return "", wanted

    def _release(self) -> None:
        """Take the force off the motors."""
        self.force = np.zeros_like(self.force)
        self._expires = math.inf

    def _measure(self) -> None:
        if self.problem:
            self._release()
            self._taken.clear()
        elif not self.faulty:
            data, at, dof = self._simulator.data, self._positions, self._velocities
            efforts = data.qfrc_actuator[dof]
            goal = None if self._simulator.goal is None else self._simulator.goal.state()
            self._taken.append(
                Measurement(self.time, self.names, data.qpos[at], data.qvel[dof], efforts, goal)
            )

    def _ripe(self, measurement: Measurement, now: float) -> bool:
        return measurement.taken + self.settings.latency <= now + _ROUNDING


def _robot(settings: DriverConfig) -> Simulator:
    simulator = make_simulator(make_task(settings.task), settings.seed)
    if not isinstance(simulator, Simulator):
        raise UserError(
            f"task '{settings.task}' is no robot to drive: its world is not an MJCF with motors at its joints"
        )
    return simulator


def _driven_joints(model: mujoco.MjModel, task: str) -> tuple[str, ...]:
    """Names of the joints that the actuators drive [A]."""
    driven = model.actuator_trnid[:, 0]
    at_joints = model.actuator_trntype == int(mujoco.mjtTrn.mjTRN_JOINT)
    if not (at_joints & np.isin(driven, robot_joints(model))).all():
        raise UserError(f"task '{task}' is no robot to drive: not each actuator drives a hinge or a slide")
    return tuple(model.joint(joint).name for joint in driven)
