"""The last stage before the motors: a state machine without ROS, and no clock but the one it is given.

Its specification is docs/safety.md. numpy only: nothing that learns or plans is loaded beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mbrl_bringup.guard_config import GuardConfig, check
from mbrl_bringup.workspace import Workspace

Array = NDArray[np.float64]


class Phase(IntEnum):
    """Who moves the robot."""

    DISARMED = 0  # somebody else: nothing is commanded
    ARMED = 1  # nobody: the safe command is sent
    RUNNING = 2  # the controller, within the limits
    TRIPPED = 3  # nobody, until it is armed again


@dataclass(frozen=True)
class Reading:
    """What the robot says of itself; NaN where it does not say it."""

    position: Array  # [A] of each joint
    velocity: Array  # [A]
    watched: Array  # [M] in the order of `bounds`
    unknown: str = ""  # what of the observation is not finite, in one sentence; empty = nothing


@dataclass(frozen=True)
class Wanted:
    """What a controller wants over the next period."""

    values: Array  # [A]
    tail: int = 0  # 0 = an answer to the newest State, j = row j of a late plan
    disagreement: float = math.nan  # NaN = unknown


@dataclass(frozen=True)
class Command:
    """What is to be sent."""

    values: Array  # [A], finite and within all limits
    safe: bool  # whether it is the safe command rather than what was wanted


SHARES = np.array([1.0, 0.75, 0.5, 0.25, 0.0])  # of what is wanted, tried where it leads out of the workspace
SLOWEST = 0.1  # speed just below the disagreement at which motion ends, as a share of full speed


class Guard:
    """Lets a controller move the robot only while everything is well.

    *Late* (no answer in time) is bridged by the tail of the last plan, then by the safe command, and passes
    by itself; *wrong* trips, and only a person arms again. All times are of one steady clock, given as `now`
    [s].

    Args:
        settings: see GuardConfig.
        workspace: where the robot must stay; None = anywhere within its limits.

    Attributes:
        phase: who moves the robot.
        reason: why it tripped last, in one sentence; kept until it is armed again.
        late_periods: periods so far in which the controller was wanted and had no answer of its own.
        speed: share of full speed that the disagreement allows.
        held_back: periods so far in which the workspace allowed only a part of what was wanted.

    Raises:
        UserError: the settings contradict each other.
    """

    def __init__(self, settings: GuardConfig, workspace: Workspace | None = None) -> None:
        self.settings = c = settings
        self.workspace, self.held_back = workspace, 0
        check(c)
        self.phase, self.reason, self.late_periods, self.speed = Phase.DISARMED, "", 0, 1.0
        self._low, self._high, self._rate, self._damping = (
            np.array([getattr(joint, name) for joint in c.joints])
            for name in ("low", "high", "rate", "damping")
        )
        self._holds = np.array([joint.kind == "position" for joint in c.joints])
        self._sent = np.zeros(len(c.joints))  # the last command; without meaning while disarmed
        self._reading: Reading | None = None  # the newest, if it was good
        self._clearance = -math.inf  # of the workspace's points in it [m]
        self._read = self._ticked = self._beat = -math.inf  # when there was a reading, a tick, a heartbeat
        self._healthy = math.inf  # since when all is well
        self._late = math.inf  # since when the controller is late
        self._stopped, self._others = False, 0
        self._answered = False  # whether the controller has answered since `run`

    # What comes in ------------------------------------------------------------------------------------------

    def read(self, reading: Reading, now: float) -> None:
        """Take what the robot says of itself."""
        fault = self._fault(reading)
        if fault:
            self._reading = None
            self.trip(fault, now)
            return
        if self._reading is None or now - self._read > self.settings.max_age:
            self._healthy = now
        self._reading, self._read = reading, now

    def heartbeat(self, now: float) -> None:
        """The e-stop says that it is there."""
        self._beat = now

    def stop(self, pressed: bool, now: float) -> None:
        """The e-stop is pressed or released."""
        self._stopped = pressed
        if pressed:
            self.trip("the emergency stop was pressed", now)

    def publishers(self, others: int, now: float) -> None:
        """So many others publish commands to the robot."""
        self._others = others
        if others:
            self.trip(self._crowd(), now)

    def trip(self, reason: str, now: float) -> None:
        """Something is wrong: end all motion, and hold."""
        self._healthy = now if self._reading is not None else math.inf
        if self.phase in (Phase.ARMED, Phase.RUNNING):
            self.phase, self.reason = Phase.TRIPPED, reason

    # Who moves the robot ------------------------------------------------------------------------------------

    def arm(self, now: float, *, without_timeout: bool = False) -> str:
        """Let the safe command be sent from now on.

        Args:
            without_timeout: whether the person who arms knows that nothing stops the robot if this process
                dies.

        Returns:
            Why this is refused, in one sentence; empty if it is not.
        """
        refused = self.unfit(now, without_timeout)
        if refused:
            return refused
        assert self._reading is not None
        self._sent = np.where(self._holds, self._reading.position, 0.0)
        self.phase, self.reason, self._ticked = Phase.ARMED, "", now
        return ""

    def run(self) -> str:
        """Let the controller move the robot; its first answer has time. Returns why this is refused."""
        if self.phase is not Phase.ARMED:
            return f"it is {self.phase.name.lower()}, and must be armed first"
        self.phase, self._late, self.speed = Phase.RUNNING, math.inf, 1.0
        self._answered = False
        return ""

    def rest(self) -> None:
        """The controller has nothing to do until `run`."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.ARMED

    def disarm(self) -> None:
        """Command nothing from now on."""
        self.phase = Phase.DISARMED

    # What goes out ------------------------------------------------------------------------------------------

    def tick(self, wanted: Wanted | None, now: float) -> Command | None:
        """Call once a period; returns what to send, or None while it is disarmed.

        Args:
            wanted: what the controller wants; None = it has no answer.
        """
        self._watch(now)
        if self.phase is Phase.DISARMED:
            return None
        elapsed = min(max(now - self._ticked, 0.0), self.settings.period)
        self._ticked = now
        usable = self.phase is Phase.RUNNING and self._usable(wanted, now)
        if usable:
            assert wanted is not None
            self._sent = self._inside(self._limited(wanted.values, self.speed, elapsed), elapsed)
        else:
            self._sent = self._limited(self._safe(now), 1.0, elapsed)
        return Command(self._sent.copy(), safe=not usable)

    def _watch(self, now: float) -> None:
        """What nobody reports, since it is a silence."""
        c = self.settings
        if c.heartbeat and now - self._beat > c.heartbeat:
            self.trip("the heartbeat of the emergency stop is lost", now)
        if self.phase is Phase.RUNNING and now - self._ticked > c.trip_after:
            self.trip(f"nothing was commanded for {now - self._ticked:.2f} s", now)

    def _usable(self, wanted: Wanted | None, now: float) -> bool:
        """Whether what is wanted may be sent; trips where it is wrong, or too late."""
        c = self.settings
        fault = "" if wanted is None else self._wrong(wanted)
        if fault:
            self.trip(fault, now)
            return False
        fresh = now - self._read <= c.max_age
        if wanted is not None and wanted.tail == 0 and fresh:
            self._answered, self._late = True, math.inf
            return True
        self.late_periods += 1
        if self._answered:
            self._late = min(self._late, now)
        if now - self._late > c.trip_after:
            self.trip(f"the controller is late for more than {c.trip_after} s", now)
            return False
        return wanted is not None and fresh and 0 <= wanted.tail <= c.tail_steps

    def _wrong(self, wanted: Wanted) -> str:
        """Why motion must end; also sets the speed that the disagreement allows."""
        c = self.settings
        if wanted.values.shape != self._sent.shape:
            return f"the action has {wanted.values.size} elements, but there are {len(self._sent)} joints"
        if not np.isfinite(wanted.values).all():
            return "the action is not finite"
        if not c.trip_above or math.isnan(wanted.disagreement):
            self.speed = 1.0
        elif wanted.disagreement >= c.trip_above:
            return f"the disagreement is {wanted.disagreement:.3g}, and {c.trip_above:.3g} ends motion"
        else:
            share = (wanted.disagreement - c.slow_above) / (c.trip_above - c.slow_above)
            self.speed = 1.0 - (1.0 - SLOWEST) * min(max(share, 0.0), 1.0)
        return ""

    def _safe(self, now: float) -> Array:
        """Hold positions as they were commanded, end velocities, damp with efforts."""
        target = np.where(self._holds, self._sent, 0.0)
        if self._reading is not None and now - self._read <= self.settings.max_age:
            target = np.where(self._damping > 0, -self._damping * self._reading.velocity, target)
        return target

    def _limited(self, target: Array, speed: float, elapsed: float) -> Array:
        """Within the limits, and no further from the last command than the rates allow.

        Slowing down means smaller steps of a position, and a smaller velocity or effort.
        """
        target = np.where(self._holds, target, speed * target)
        step = self._rate * elapsed * np.where(self._holds, speed, 1.0)
        near: Array = np.clip(target, self._sent - step, self._sent + step)
        return np.clip(near, self._low, self._high)

    def _inside(self, command: Array, elapsed: float) -> Array:
        """The command, or as much of it as keeps the robot within its workspace; where it is nearly out of it
        already, also what leads back.
        """
        if self.workspace is None:
            return command
        assert self._reading is not None
        c, here = self.workspace.settings, self._reading.position
        wanted = np.where(self._holds, command, here + c.look_ahead * command)
        if self._clearance - self.workspace.travel(wanted - here) >= c.margin:
            return command  # no point can come near to a side: what follows takes twenty times as long
        stopped = self._limited(np.where(self._holds, self._sent, 0.0), 1.0, elapsed)
        tried = stopped + SHARES[:, None] * (command - stopped)  # each within limits and rates, as both are
        ahead = np.where(self._holds, tried, here + c.look_ahead * tried)
        ahead = self.workspace.reachable(here, ahead)
        clearance = self.workspace.clearance(np.vstack([here, ahead]))
        fine = (clearance[1:] >= c.margin) | (clearance[1:] > clearance[0])
        fine[-1] = True
        best = int(np.argmax(fine))
        self.held_back += best > 0
        return tried[best]

    # What is wrong ------------------------------------------------------------------------------------------

    def _fault(self, reading: Reading) -> str:
        if reading.unknown:
            return reading.unknown
        for i, actuator in enumerate(self.settings.joints):
            needed = self._holds[i] or self.workspace is not None
            if needed and not math.isfinite(reading.position[i]):
                return f"the position of '{actuator.joint}' is not finite"
            if self._damping[i] and not math.isfinite(reading.velocity[i]):
                return f"the velocity of '{actuator.joint}' is not finite"
        for bound, value in zip(self.settings.bounds, reading.watched, strict=True):
            if not bound.low <= value <= bound.high:  # also if it is NaN
                return f"'{bound.name}' is {value:.4g}, not within {bound.low:.4g} and {bound.high:.4g}"
        if self.workspace is None:
            return ""
        self._clearance = float(self.workspace.clearance(reading.position[None])[0])
        return "" if self._clearance >= 0.0 else self.workspace.outside(reading.position)

    def _crowd(self) -> str:
        return f"{self._others} other publisher{'s' * (self._others > 1)} on a command topic"

    def unfit(self, now: float, without_timeout: bool = False) -> str:
        """Why it cannot be armed now, in one sentence; empty if it can."""
        c = self.settings
        if self.phase in (Phase.ARMED, Phase.RUNNING):
            return "it is armed already"
        dangerous = [joint for joint in c.joints if joint.kind != "position"]
        if dangerous and not c.driver_timeout and not without_timeout:
            first = dangerous[0]
            return (
                f"'{first.joint}' is commanded by {first.kind} and its driver has no timeout: if this "
                "process died, the robot would go on moving; arm without a timeout if you can stop it "
                "yourself"
            )
        if self._stopped:
            return "the emergency stop is pressed"
        if self._others:
            return self._crowd()
        if c.heartbeat and now - self._beat > c.heartbeat:
            return "the emergency stop sends no heartbeat"
        if self._reading is None or now - self._read > c.max_age:
            return "there is no good reading of the robot"
        if now - self._healthy < c.healthy_for:
            return f"all must have been well for {c.healthy_for} s, and is for {now - self._healthy:.1f} s"
        position = self._reading.position
        outside = self._holds & ~((self._low <= position) & (position <= self._high))
        if outside.any():
            i = int(np.flatnonzero(outside)[0])
            a = c.joints[i]
            return (
                f"'{a.joint}' stands at {position[i]:.4g}, not within {a.low:.4g} and {a.high:.4g}: "
                "move it there by hand"
            )
        return ""
