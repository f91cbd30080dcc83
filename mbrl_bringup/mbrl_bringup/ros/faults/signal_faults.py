"""SIGINT, doubled as launch sends it, and SIGTERM, whatever is going on."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from mbrl_bringup.ros.faults.judge import histogram
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import HangError, Rig, quiet_domain, rig, robot_file
from mbrl_bringup.ros.faults.stand_in import Order
from mbrl_dynamics.episodes import read
from mbrl_dynamics.ros.node import LATCHED_QOS, wait_until
from mbrl_dynamics.ros.testing import NodeProcess, peer
from mbrl_msgs.msg import GuardStatus, State
from mbrl_msgs.srv import Arm

WITHIN = 5.0  # everything has ended [s]
SIGNALS = (
    (signal.SIGINT,),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGTERM,),
    (signal.SIGINT, signal.SIGTERM),
)


def bridge(outcome: Outcome, trials: int, seed: int) -> None:
    """To the bridge alone, from its first word on: disarmed, at rest, moving, tripped."""
    random = np.random.default_rng(seed)
    times: list[float] = []
    with rig() as (robot, processes):
        processes.start(Order())
        for number in outcome.rounds(trials):
            assert robot.bridge is not None
            robot.need(lambda: robot.phase >= 0, "the bridge says nothing")
            _bring(robot, ("moving", "disarmed", "moving", "armed", "moving", "tripped")[number % 6])
            time.sleep(random.uniform(0.0, 3 * robot.period))
            begin = time.monotonic()
            code, took = _end(robot.bridge, SIGNALS[number % len(SIGNALS)], random.uniform(0.0, 0.1))
            times.append(took)
            outcome.tried(*_judged(robot, begin, code, took))
            robot.start_bridge()
    outcome.figures["ended_after_s"] = histogram(times, 0.25)


def _bring(robot: Rig, where: str) -> None:
    if where == "moving":
        robot.moving()
    elif where == "armed":
        robot.armed()
    elif where == "tripped":
        robot.moving()
        robot.stop()
        robot.need(lambda: robot.phase == GuardStatus.TRIPPED, "it does not trip")


def _end(process: NodeProcess, signals: tuple[int, ...], pause: float) -> tuple[int, float]:
    """The exit code, and how long the end took [s]."""
    begin = time.monotonic()
    for number in signals:
        process.kill(number)
        time.sleep(pause)
    return process.wait(), time.monotonic() - begin


def _judged(robot: Rig, begin: float, code: int, took: float) -> list[str]:
    robot.wait_periods(2)
    commands = robot.commands(0.0)
    faults = robot.limits.faults(commands[-100:])
    if code != 0:
        faults.append(f"exit code {code}")
    if took > WITHIN:
        stall = robot.record.stalled(begin, begin + took)
        faults.append(f"ended after {took:.1f} s; the machine stood still for {stall:.3f} s")
    if commands and robot.settled(commands[-1].time - 1e-6) == float("inf"):
        faults.append(f"the last command is {commands[-1].said}, which is not safe")
    return faults[:1]


def stack(outcome: Outcome, trials: int, seed: int) -> None:
    """To `mbrl up` with learner and planner, at moments from its start to learning in full motion."""
    random = np.random.default_rng(seed)
    times: list[float] = []
    for number in outcome.rounds(trials):
        with quiet_domain(), tempfile.TemporaryDirectory() as folder, peer() as me:
            file, runs = robot_file(Path(folder), trip_after=5.0), Path(folder, "run")
            command = [sys.executable, "-m", "mbrl_bringup.cli", "up", f"robot:={file}", "no_model:=random"]
            command += [f"run_dir:={runs}"]
            guards = me.listen(GuardStatus, "guard_status", LATCHED_QOS)
            states = me.listen(State, "state")
            with NodeProcess(command) as up:
                if number % 3:
                    _set_going(me, guards, states)
                    time.sleep(random.uniform(0.0, 5.0))
                else:
                    wait_until(partial(bool, guards), 60.0)
                    time.sleep(random.uniform(0.0, 10.0))
                family = psutil.Process(up.pid).children(recursive=True)
                code, took = _end(up, SIGNALS[number % len(SIGNALS)], random.uniform(0.0, 0.1))
                times.append(took)
                outcome.tried(*_left(family, runs, code, took))
    outcome.figures["ended_after_s"] = histogram(times, 0.5)


def _set_going(me, guards: list[GuardStatus], states: list[State]) -> None:  # type: ignore[no-untyped-def]
    def moves() -> bool:
        if guards and guards[-1].phase in (GuardStatus.DISARMED, GuardStatus.TRIPPED):
            me.call(Arm, "arm", Arm.Request(armed=True))
        return len(states) > 10

    if not wait_until(moves, 120.0, 0.2):
        raise HangError("the stack does not move the robot")


def _left(family: list[psutil.Process], runs: Path, code: int, took: float) -> list[str]:
    """What is wrong with what a stack leaves."""
    faults = []
    if code != 0:
        faults.append(f"exit code {code}")
    alive = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    if alive:
        faults.append(f"{len(alive)} processes are left")
    if took > WITHIN:
        faults.append(f"ended after {took:.1f} s")
    try:
        for _ in read(runs / "dataset"):
            pass
    except Exception as error:
        faults.append(f"the dataset cannot be read: {error}")
    return faults[:1]
