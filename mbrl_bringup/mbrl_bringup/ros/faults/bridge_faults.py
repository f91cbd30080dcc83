"""The bridge dies or stands still; somebody else commands the robot."""

from __future__ import annotations

import math
import signal
import time

import numpy as np

from mbrl_bringup.ros.faults.judge import after, histogram, settled
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import DAMPING, Rig, rig
from mbrl_bringup.ros.faults.stand_in import ROGUE, Order
from mbrl_msgs.msg import GuardStatus


def killed(outcome: Outcome, trials: int, seed: int) -> None:
    """SIGKILL or SIGSTOP to the bridge while the robot moves: the driver's own timeout must end the force."""
    random = np.random.default_rng(seed)
    times: list[float] = []
    with rig() as (robot, processes):
        processes.start(Order())
        for number in outcome.rounds(trials):
            robot.moving()
            time.sleep(random.uniform(0.0, 4 * robot.period))
            assert robot.bridge is not None
            which = signal.SIGKILL if number % 3 == 0 else signal.SIGSTOP
            hit = time.monotonic()
            robot.bridge.kill(which)
            outcome.tried(*_released(robot, hit, times))
            if which == signal.SIGSTOP:
                robot.bridge.kill(signal.SIGCONT)
                # It stood still for about as long as T_trip: it may go on, or not.
            else:
                robot.start_bridge()
    outcome.figures["without_force_after_s"] = histogram(times)


def _released(robot: Rig, hit: float, times: list[float]) -> list[str]:
    """What is wrong with the force after the bridge has fallen silent."""
    timeout, tick = robot.robot.guard.driver_timeout, 0.03  # the driver's physics is looked after each 20 ms
    time.sleep(timeout + 0.2)
    robot.need(
        lambda: bool(after(robot.record.update().joints, hit + timeout + 0.15)), "the driver is silent"
    )
    commands, joints = robot.commands(0.0), after(robot.record.joints, hit)
    last = commands[-1].time
    pushed = [one.time for one in joints if one.said[1] != 0.0]
    if joints[-1].said[1] != 0.0:
        times.append(math.inf)
        return ["the driver goes on pushing"]
    times.append(max(pushed, default=last) - last)
    allowed = timeout + tick
    if times[-1] <= allowed:
        return []
    what = robot.record.account(last, last + times[-1])
    return [f"force for {times[-1]:.3f} s after the last command; {what}"]


def undeclared(outcome: Outcome, trials: int, seed: int) -> None:
    """A driver that declares no timeout: the bridge must refuse to arm, and command nothing."""
    with rig(driver_timeout=0.0) as (robot, processes):
        processes.start(Order(seed=seed))
        robot.need(lambda: robot.phase == GuardStatus.DISARMED, "the guard says nothing")
        for _ in outcome.rounds(trials):
            refused = robot.arm()
            fault = [] if "has no timeout" in refused else [f"arming is answered with '{refused}'"]
            outcome.tried(*fault)
        robot.wait_periods(5)
        outcome.tried(*["a command was sent" for _ in robot.commands(0.0)[:1]])


def rogue(outcome: Outcome, trials: int, seed: int) -> None:
    """Another publisher on the command topic, while it moves, rests or is disarmed."""
    random = np.random.default_rng(seed)
    times: list[float] = []
    with rig() as (robot, processes):
        processes.start(Order())
        for number in outcome.rounds(trials):
            moves = number % 4 != 0
            robot.moving() if moves else robot.armed()
            time.sleep(random.uniform(0.0, 4 * robot.period))
            begin = time.monotonic()
            pid = processes.start(Order(kind="rogue"))
            outcome.tried(*_tripped(robot, begin, times, moves))
            # A killed one is known as a publisher for as long as DDS waits for a sign of life, 20 s.
            processes.kill(pid, signal.SIGKILL if number == trials - 1 else signal.SIGTERM)
    outcome.figures["safe_after_first_rogue_command_s"] = histogram(times)


def _tripped(robot: Rig, begin: float, times: list[float], moves: bool) -> list[str]:
    """What is wrong with how the bridge answered a rogue; its own commands are told from the rogue's."""

    def rogues() -> list[float]:
        return [one.time for one in robot.commands(begin) if list(one.said) == [ROGUE]]

    robot.need(lambda: bool(rogues()), "the rogue says nothing", 20.0)
    robot.need(lambda: robot.phase == GuardStatus.TRIPPED, "it does not trip", 20.0)
    robot.wait_periods(3)
    heard, tripped = rogues()[0], [g for g in after(robot.record.guards, begin) if g.said[0] == 3]
    if "other publisher" not in (tripped[0].said[1] if tripped else ""):
        return [f"it tripped for another reason: {tripped[0].said[1] if tripped else 'none is told'}"]
    own = [one for one in robot.commands(begin) if list(one.said) != [ROGUE]]
    since = settled(own, robot.record.joints, DAMPING)
    faults = robot.limits.faults(own)
    took = max(since - heard, 0.0)
    times.append(took)
    if "other publisher" not in robot.arm():
        faults.append("it can be armed although somebody else publishes")
    allowed = 2 * robot.period
    if moves and took > allowed:
        faults.append(f"safe after {took:.3f} s, not {allowed:.3f} s; {robot.record.account(heard, since)}")
    return faults[:1]
