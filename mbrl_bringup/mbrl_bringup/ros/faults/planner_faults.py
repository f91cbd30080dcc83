"""The controller dies, stands still, or is late."""

from __future__ import annotations

import math
import signal
import time

import numpy as np

from mbrl_bringup.ros.faults.judge import after, histogram, stale, stale_states
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import PLANNER, Rig, rig
from mbrl_bringup.ros.faults.stand_in import Order
from mbrl_msgs.msg import GuardStatus


def killed(outcome: Outcome, trials: int, seed: int) -> None:
    """SIGKILL or SIGSTOP to the stand-in, at random moments."""
    random = np.random.default_rng(seed)
    with rig() as (robot, processes):
        pid = 0
        times: list[float] = []
        for number in outcome.rounds(trials):
            pid = pid or processes.start(Order(seed=number))
            robot.moving()
            time.sleep(random.uniform(0.0, 4 * robot.period))
            which = (signal.SIGKILL, signal.SIGSTOP)[number % 2]
            hit = time.monotonic()
            processes.kill(pid, which)
            outcome.tried(*_ended(robot, hit, times, outcome))
            if which == signal.SIGSTOP:
                processes.kill(pid, signal.SIGCONT)
            else:
                pid = 0
    outcome.figures["safe_after_s"] = histogram(times)


def killed_real(outcome: Outcome, trials: int, seed: int) -> None:
    """The same with planner_node, which acts at random for want of a model: one in twelve is a SIGKILL."""
    random = np.random.default_rng(seed)
    parameters = {"task": "cartpole_swingup", "no_model": "random", "follow": True}
    times: list[float] = []
    with rig() as (robot, _):
        planner = robot.start(PLANNER, parameters)
        for number in outcome.rounds(trials):
            robot.moving(coded=False)
            time.sleep(random.uniform(0.0, 4 * robot.period))
            which = signal.SIGKILL if number % 12 == 11 else signal.SIGSTOP
            hit = time.monotonic()
            planner.kill(which)
            outcome.tried(*_ended(robot, hit, times, outcome))
            if which == signal.SIGSTOP:
                planner.kill(signal.SIGCONT)
            else:
                planner = robot.start(PLANNER, parameters)
    outcome.figures["safe_after_s"] = histogram(times)


def _ended(robot: Rig, hit: float, times: list[float], outcome: Outcome) -> list[str]:
    """What is wrong with how motion ended after a blow; at most one sentence."""
    allowed = robot.robot.guard.trip_after + robot.period
    robot.need(lambda: robot.phase != GuardStatus.RUNNING, "motion goes on", 20.0)
    robot.wait_periods(3)
    faults = robot.limits.faults(robot.commands(hit))
    took = max(robot.settled(hit) - hit, 0.0)
    times.append(took)
    if math.isinf(took):
        faults.append("the last command is not safe")
    elif took > allowed:
        stall = robot.record.stalled(hit, hit + took)
        faults.append(
            f"safe after {took:.3f} s, not {allowed:.3f} s; {robot.record.account(hit, hit + took)}"
        )
        outcome.figures["late_by_stall"] = outcome.figures.get("late_by_stall", 0) + (took - stall <= allowed)
    return faults[:1]


def late(outcome: Outcome, seconds: float, seed: int) -> None:
    """Half of the answers come 0 to 5 s late; the guard waits longer than that, or trips after 0.5 s."""
    for trip_after in (6.0, 0.5):
        with rig(trip_after=trip_after) as (robot, processes):
            processes.start(Order(late=5.0 if trip_after > 5.0 else 1.0, share=0.5, seed=seed))
            begin = end = time.monotonic()
            while end - begin < seconds / 2:
                robot.need(robot.keep_moving, "no episode begins")
                time.sleep(0.2)
                end = time.monotonic()
            commands = robot.commands(begin)
            states = after(robot.record.states, begin)
            tail = robot.robot.guard.tail_steps
            faults = stale(commands, tail) + stale_states(states, robot.robot.action_delay_steps)
            outcome.tried(*robot.limits.faults(commands), *faults, trials=len(commands))
            led = sum(bool(stale([command], -1)) for command in commands)
            name = f"commands_of_plans_trip_after_{trip_after:g}s"
            outcome.figures[name] = led
