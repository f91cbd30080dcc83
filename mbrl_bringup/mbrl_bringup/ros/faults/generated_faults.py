"""Generated messages against the bridge: in its core, which is fast, and as a process over DDS."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bringup.guard import Phase
from mbrl_bringup.robot_config import load
from mbrl_bringup.robot_world import RobotWorld, Status
from mbrl_bringup.ros.faults.generated import Generator
from mbrl_bringup.ros.faults.judge import after
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import Rig, limits_of, rig, robot_file
from mbrl_bringup.ros.faults.stand_in import Order
from mbrl_dynamics.intake import Intake
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.convert import answer_from_msg, seconds, transition_from_msg
from mbrl_dynamics.transition import Transition
from mbrl_msgs.msg import Action, GuardStatus, State

WHO = "stand_in_0"  # pretends to be the stand-in, which a bridge has bound
BURST = 20  # messages between two looks at the robot


def core(outcome: Outcome, messages: int, seed: int) -> None:
    """Actions and readings into the bridge's core, with a clock of their own; the rate is judged too.

    States go to what a learner takes: nothing that is not finite may pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = load(robot_file(Path(folder)))
    world = RobotWorld(file, make_task(file.task), 0.0)
    limits, period = limits_of(file), world.spec.control_period
    generator, intake = Generator(world.spec, WHO, seed), Intake(world.spec)
    rate = next(iter(file.action.values())).rate
    now, before, armed, commands, random = 0.0, math.nan, 0, 0, np.random.default_rng(seed)
    made = 0
    while made < messages and time.monotonic() < outcome.deadline:
        now += period * random.uniform(0.5, 1.5)
        armed += _person(world, now)
        made += _pour(world, generator, intake, now, random)
        beat = world.tick(now)
        if beat.command is None:
            before = math.nan
            continue
        commands += 1
        values = beat.command.values.tolist()
        fault = limits.fault(values)
        if not fault and abs(values[0] - before) > rate * period + 1e-9:
            fault = f"a command changes from {before} to {values[0]} within a period"
        before = values[0]
        outcome.tried(*[fault] * bool(fault), trials=0)
    outcome.tried(trials=made)
    outcome.figures |= {
        "commands": commands,
        "armed": armed,
        "states_taken": intake.steps,
        "episodes": world.episode,
    }


def _person(world: RobotWorld, now: float) -> bool:
    """Arms whenever that is possible, and asks for episodes; whether it was armed."""
    armed = world.guard.phase in (Phase.DISARMED, Phase.TRIPPED) and world.arm(now) == ""
    if world.guard.phase is Phase.ARMED and world.status is Status.NEEDS_RESET:
        world.reset(now)
        world.ready(now)
    return armed


def _pour(world: RobotWorld, generator: Generator, intake: Intake, now: float, random: Any) -> int:
    """Messages of one period; how many."""
    odd = random.random() < 0.02  # else hardly any episode would begin
    for _ in range(3):
        reading = generator.reading(now + 1.0, honest=not odd)
        world.senses.take("joints", reading, seconds(reading.header.stamp), now)
    state = world.state
    if state is None:
        return 3
    for _ in range(BURST):
        world.offer(answer_from_msg(generator.action(state)), now)
        heard = transition_from_msg(generator.state(state))
        intake.judge(heard)
        last = intake.last
        assert last is None or np.isfinite(last.observation).all()
    return 3 + 2 * BURST


def over_dds(outcome: Outcome, messages: int, seed: int) -> None:
    """Actions and States to the bridge's process, beside a controller that means well."""
    with rig() as (robot, processes):
        task = make_task(robot.robot.task)
        generator = Generator(task.spec, WHO, seed)
        processes.start(Order())
        robot.moving()
        actions = robot.me.publisher(Action, "action")
        states = robot.me.publisher(State, "state")
        heard: list[State] = robot.me.listen(State, "state")
        made = restarts = 0
        while made < messages and time.monotonic() < outcome.deadline:
            if robot.phase != GuardStatus.RUNNING:
                robot.need(robot.keep_moving, "no episode begins")
                restarts += 1
            state = _newest(robot, heard)
            for _ in range(BURST):
                actions.publish(generator.action(state))
                if made % 10 == 0:
                    states.publish(generator.state(state))
                made += 1
            time.sleep(0.01)  # so that the bridge can keep up
        robot.wait_periods(5)
        commands = robot.commands(0.0)
        outcome.tried(*robot.limits.faults(commands), trials=made)
        outcome.figures |= {"commands": len(commands), "episodes": restarts}


def _newest(robot: Rig, heard: list[State]) -> Transition:
    """The newest State that the robot's own world has sent."""
    said = robot.record.update().states
    own = robot.worlds[-1].world_id if robot.worlds else None
    for one in reversed(after(said, 0.0)[-50:]):
        world, episode, step = one.said[:3]
        if own is None or bytes(own).hex() == world:
            return Transition(bytes.fromhex(world), episode, min(step, 1 << 40), np.zeros(5), np.zeros(1))
    heard.clear()
    return Transition(bytes(16), 0, 0, np.zeros(5), np.zeros(1))
