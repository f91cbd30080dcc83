"""Time goes wrong: the robot's clock jumps or stands still, an episode is broken off by a reset."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rosgraph_msgs.msg import Clock

from mbrl_bringup.ros.faults.judge import Heard, after, decoded, histogram, joined_across
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import Processes, Rig, quiet_domain, robot_in
from mbrl_bringup.ros.faults.stand_in import Order
from mbrl_dynamics.ros.convert import time_msg
from mbrl_dynamics.ros.testing import peer
from mbrl_msgs.msg import GuardStatus


class SimulatedClock:
    """Publishes `/clock`, which can be set and stopped."""

    def __init__(self, publisher: object) -> None:
        self._publisher, self._offset, self._stopped_at = publisher, 1000.0, math.nan
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def jump(self, seconds: float) -> None:
        """Set it by so much."""
        self._offset += seconds

    def pause(self, paused: bool) -> None:
        """Let it stand still, or go on from where it would be."""
        self._stopped_at = time.monotonic() if paused else math.nan

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(0.005):
            now = time.monotonic() if math.isnan(self._stopped_at) else self._stopped_at
            self._publisher.publish(Clock(clock=time_msg(now + self._offset)))  # type: ignore[attr-defined]


@contextmanager
def clocked() -> Iterator[tuple[Rig, Processes, SimulatedClock]]:
    """A robot whose driver and bridge live by `/clock`."""
    with quiet_domain(), peer("clock") as keeper:
        clock = SimulatedClock(keeper.node.create_publisher(Clock, "/clock", 10))
        try:
            with robot_in(driver={"use_sim_time": True}) as (robot, processes):
                yield robot, processes, clock
        finally:
            clock.close()


def clock(outcome: Outcome, trials: int, seed: int) -> None:
    """In turn: the clock jumps back, ahead, an episode is reset, the clock pauses, the planner with it."""
    random = np.random.default_rng(seed)
    times: list[float] = []
    with clocked() as (robot, processes, clock):
        pid = processes.start(Order())
        for number in outcome.rounds(trials):
            robot.moving()
            time.sleep(random.uniform(0.0, 4 * robot.period))
            begin, jumps = time.monotonic(), (-random.uniform(1.5, 100.0), random.uniform(1.5, 100.0))
            if number % 5 < 2:
                clock.jump(jumps[number % 5])
                outcome.tried(*_over_at_once(robot, begin))
            elif number % 5 == 2:
                outcome.tried(*_reset(robot, begin))
            else:
                outcome.tried(*_paused(robot, processes, clock, pid if number % 5 == 4 else 0, times))
    outcome.figures["safe_after_pause_s"] = histogram(times)


def _over_at_once(robot: Rig, begin: float) -> list[str]:
    """What is wrong with how an episode ended when the clock was set."""
    robot.need(
        lambda: any(one.said[5] for one in after(robot.record.update().states, begin)), "it goes on", 20.0
    )
    return _judged(robot, begin)


def _reset(robot: Rig, begin: float) -> list[str]:
    before = robot.record.states[-1].said[1]
    robot.need(robot.reset, "no episode begins", 20.0)
    robot.need(lambda: robot.record.update().states[-1].said[1] > before, "it is the same episode", 20.0)
    return _judged(robot, begin)


def _judged(robot: Rig, begin: float) -> list[str]:
    robot.wait_periods(3)
    robot.record.update()
    commands, states = (
        after(robot.record.commands, begin),
        after(robot.record.states, begin - 4 * robot.period),
    )
    return (robot.limits.faults(commands) + joined_across(states))[:1]


def _paused(
    robot: Rig, processes: Processes, clock: SimulatedClock, pid: int, times: list[float]
) -> list[str]:
    """What is wrong with how motion ended while the clock stood still, and with it `pid`, unless it is 0."""
    begin = time.monotonic()
    clock.pause(True)
    if pid:
        processes.kill(pid, signal.SIGSTOP)
    robot.need(lambda: robot.phase != GuardStatus.RUNNING, "the watchdog waits for the clock", 20.0)
    robot.wait_periods(3)
    since = begin if pid else _last_reading(robot, begin)
    took = max(robot.settled(begin) - since, 0.0)
    times.append(took)
    faults = _judged(robot, begin)
    allowed = robot.robot.guard.trip_after + robot.period
    if took > allowed:
        what = robot.record.account(begin, begin + took)
        faults.append(f"safe after {took:.3f} s, not {allowed:.3f} s; {what}")
    clock.pause(False)
    if pid:
        processes.kill(pid, signal.SIGCONT)
    return faults[:1]


def _last_reading(robot: Rig, begin: float) -> float:
    """When a reading came last that is newer than those before.

    A driver whose clock stands still takes the age of a measurement off it, so that stamps go back and forth
    by some milliseconds, and now and then one is the newest so far.
    """
    last, stamp = begin, -math.inf
    for joint in after(robot.record.update().joints, begin):
        if joint.said[2] > stamp:
            last, stamp = joint.time, joint.said[2]
    return last


def namespaces(outcome: Outcome, seconds: float, seed: int) -> None:
    """Two robots side by side: whose each command and State is can be told from what it says."""
    with quiet_domain(), robot_in("/one") as (one, first), robot_in("/two") as (two, second):
        for number, (robot, processes) in enumerate(((one, first), (two, second))):
            processes.start(Order(namespace=robot.namespace, robot=number, seed=seed))
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            one.moving()
            two.moving()
            time.sleep(0.5)
        worlds = []
        for number, robot in enumerate((one, two)):
            commands = robot.commands(0.0)
            outcome.tried(*robot.limits.faults(commands), *_foreign(commands, number), trials=len(commands))
            worlds.append({state.said[0] for state in robot.record.states})
            outcome.tried(trials=len(robot.record.states))
        shared = worlds[0] & worlds[1]
        outcome.tried(*[f"States of world {world} were heard by both" for world in shared], trials=0)
        outcome.figures["worlds"] = [len(world) for world in worlds]


def _foreign(commands: list[Heard], robot: int) -> list[str]:
    codes = [decoded(command.said[0]) for command in commands]
    return [
        f"a command for robot {code[2]} reached robot {robot}" for code in codes if code and code[2] != robot
    ]
