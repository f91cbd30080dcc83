"""A robot's side of the contract as a state machine: no ROS, and no clock but the one it is given.

It is to a robot what `mbrl_sim.world` is to a simulator, in real time. numpy only.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from mbrl_bringup.guard import Command, Guard, Phase, Wanted
from mbrl_bringup.robot_config import RobotConfig, check_robot, guard_config, workspace
from mbrl_bringup.robot_readings import Array
from mbrl_bringup.robot_senses import Look, Senses
from mbrl_dynamics.contract import ActionDesk, Choice
from mbrl_dynamics.transition import Answer, Transition


class Status(IntEnum):
    """How a world is doing, with the numbers of mbrl_msgs/WorldStatus."""

    NEEDS_RESET = 0
    RUNNING = 1
    RESETTING = 3


@dataclass(frozen=True)
class Beat:
    """What one period brings."""

    state: Transition | None  # to publish
    command: Command | None  # to send


class RobotWorld:
    """A robot that keeps every rule of the contract, with the guard as its last stage.

    Once a period (`tick`) it looks at the robot, tells what the command of the last period has led to, and
    decides on the next command: the answer to the State `action_delay_steps` before, or the tail of a late
    plan; then the guard has the last word. What is recorded is what was sent.

    A reset leads through RESETTING, until somebody says that the robot is ready (`ready`) and the guard is
    armed. An episode ends with the task, with its time, or when the guard ends motion. A period in which
    the robot was not seen has no State, so that nothing is learned across it.

    Args:
        robot: its file.
        task: what is wanted.
        now: the steady clock [s], here and in all methods.
        share: of the limits that is allowed [1].
        passive: whether nothing is ever commanded: episodes run, and show what would be done.

    Raises:
        UserError: the file does not fit the task.
    """

    def __init__(
        self, robot: RobotConfig, task: Any, now: float = 0.0, *, share: float = 1.0, passive: bool = False
    ) -> None:
        check_robot(robot, task.spec)
        self.robot, self.task, self.passive = robot, task, passive
        self.spec = replace(task.spec, action_delay_steps=robot.action_delay_steps)
        self.world_id = uuid.uuid4().bytes
        self.desk = ActionDesk(self.spec, robot.guard.tail_steps)
        self.senses = Senses(robot, self.spec)
        self.guard = Guard(guard_config(robot, self.spec, share), workspace(robot, self.spec))
        self.max_steps = robot.max_steps or task.max_steps
        self.state: Transition | None = None  # the newest
        self.missed_steps = 0  # periods without an answer of their own
        self.last_fault = ""
        self.status = Status.NEEDS_RESET
        self._step = 0  # periods since the episode began
        self._episode = -1
        self._look: Look | None = None  # of this period
        self._unknown = ""  # what was seen in it and is not finite, in one sentence
        self._home: Array | None = None  # where a motion leads to
        self._ready_at = math.inf  # when the robot has come to rest
        self._heard = now  # the last valid answer
        self._executed: tuple[Array, str] = self.spec.safe_action(), ""  # in this period, and whose it is
        self._jumps = 0
        self._stopped = ""  # why the episode is to end
        self._news: tuple[Transition | None, Transition | None] = None, None  # of this period, and before

    @property
    def episode(self) -> int:
        """The current episode; 0 before the first."""
        return max(self._episode, 0)

    @property
    def step(self) -> int:
        """Periods since the episode began."""
        return self._step

    @property
    def waiting(self) -> bool:
        """Whether a State is out and its answer has not come yet."""
        return self.status is Status.RUNNING and not self.desk.answered(self._step)

    # What comes in ------------------------------------------------------------------------------------------

    def offer(self, answer: Answer, now: float) -> str:
        """Take or refuse a controller's answer; returns why it is refused. An invalid one trips the guard."""
        if self.status is not Status.RUNNING:
            return self.desk.refuse("episode", "no episode is going on")
        invalid = self._invalid
        reason = self.desk.offer(answer, self._step)
        if self._invalid > invalid:
            self.guard.trip(reason, now)
        if not reason:
            self._heard = now
        return reason

    @property
    def _invalid(self) -> int:
        return self.desk.refused["length"] + self.desk.refused["finite"]

    def arm(self, now: float, *, without_timeout: bool = False) -> str:
        """Let commands be sent; why that is refused, in one sentence, empty if it is not. See `Guard.arm`."""
        if self.passive:
            return "this is a dry run, in which nothing is commanded"
        return self.guard.arm(now, without_timeout=without_timeout)

    def reset(self, now: float) -> None:
        """End the episode that is going on, and wait for the robot to be `ready` for the next."""
        self.guard.rest()
        self.status, self._home, self._ready_at = Status.RESETTING, None, math.inf

    def move_home(self) -> None:
        """While resetting: move to the home position, as fast as the guard allows. `at_home` tells."""
        home = self.robot.beginning.home
        self._home = np.array([home[self.robot.action[e.name].joint] for e in self.spec.action])

    @property
    def at_home(self) -> bool:
        """Whether the robot was seen where the motion leads to."""
        if self._home is None or self._look is None:
            return False
        miss = np.abs(self._look.reading.position - self._home).max()
        return bool(miss <= self.robot.beginning.tolerance)

    def ready(self, now: float) -> None:
        """The robot is where an episode begins; it does so after a rest, once the guard is armed."""
        self._home, self._ready_at = None, now + self.robot.beginning.settle
        self.guard.rest()

    def stop(self, reason: str) -> None:
        """End the episode that is going on, if any; its last State comes with the next period."""
        self._stopped = reason
        self.guard.rest()

    def give_up(self, reason: str) -> None:
        """The reset failed."""
        self.status, self.last_fault, self._home = Status.NEEDS_RESET, reason, None
        self.guard.rest()

    # Once a period ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Beat:
        """Look, decide, tell."""
        command = self.decide(now)
        return Beat(self.tell(), command)

    def decide(self, now: float) -> Command | None:
        """The first half of a period: look at the robot, and say what to send, since that cannot wait."""
        look, self._unknown = self.senses.look(now), ""
        if look is not None:
            self.guard.read(look.reading, now)
            self._unknown = look.reading.unknown
            look = None if self._unknown else look  # nobody is told what is not finite
        self._look = look
        before = self.state
        self._news = self._advance(look, now), before
        choice, wanted = self._wanted()
        command = self.guard.tick(wanted, now)
        if self.passive:
            command = None
        self._note(command, choice)
        return command

    def tell(self) -> Transition | None:
        """The second half: the State that the period ended with, and its reward; None if it has none."""
        state, before = self._news
        if state is None or before is None or state.first:
            return state
        return replace(state, reward=self._reward(before, state))

    def _advance(self, look: Look | None, now: float) -> Transition | None:
        """The State that this period ends with."""
        if self.status is Status.RESETTING:
            return self._begin(look, now)
        if self.status is not Status.RUNNING:
            return None
        self._release_silent(now)
        self._step += 1
        fault = self._fault(now)
        if look is None and not fault:
            return None
        if self.senses.jumps > self._jumps:
            look = None  # what is seen by another clock does not follow what was seen before
        state = self._transition(look, fault)
        if state.last:
            self.guard.rest()
            self.status = Status.NEEDS_RESET
        self.state = state
        return state

    def _begin(self, look: Look | None, now: float) -> Transition | None:
        moving = self._home is not None and self.guard.phase is Phase.ARMED
        if moving:
            self.guard.run()
        if look is None or now < self._ready_at or not self._may_begin():
            return None
        self.senses.begin()
        again = self.senses.look(now)  # with filters that know nothing yet
        assert again is not None
        self._episode, self._step, self._heard, self._jumps = self._episode + 1, 0, now, self.senses.jumps
        self._stopped = ""
        self.desk.begin(self.world_id, self._episode)
        self.guard.run()
        self.status = Status.RUNNING
        self.state = Transition(
            world_id=self.world_id,
            episode=self._episode,
            step=0,
            observation=again.observation,
            action=np.zeros(self.spec.action_dim),
            first=True,
            stamp=self.senses.stamp,
            images=again.images,
        )
        return self.state

    def _may_begin(self) -> bool:
        return self.passive or self.guard.phase is Phase.ARMED

    def _fault(self, now: float) -> str:
        """Why the episode cannot go on, in one sentence."""
        if self._stopped:
            return self._stopped
        if self.senses.jumps > self._jumps:
            return "the robot's clock was set"
        if self.guard.phase is Phase.TRIPPED:
            return self.guard.reason
        if self._unknown:
            return self._unknown
        if self.guard.phase is not Phase.RUNNING and not self.passive:
            return "the robot was disarmed"
        assert self.state is not None
        lost = (self._step - self.state.step) * self.spec.control_period
        if lost <= self.robot.guard.trip_after:
            return ""
        silent = self.senses.silent(now)
        if silent:
            self.guard.trip(silent, now)
        return silent

    def _transition(self, look: Look | None, fault: str) -> Transition:
        before = self.state
        assert before is not None
        if fault:
            self.last_fault = f"episode {self.episode}, step {self._step}: {fault}"
        if look is None:  # nothing was seen: the end stands apart, so that nobody joins it to what was before
            self._step = max(self._step, before.step + 2)
            ending = replace(before, step=self._step, first=False, truncated=True, reward=math.nan)
            return replace(ending, action=self._executed[0], controller_id="")
        seen = look.observation
        over = self._step >= self.max_steps
        terminated = self._terminated(seen)
        return Transition(
            world_id=self.world_id,
            episode=self._episode,
            step=self._step,
            observation=seen,
            action=self._executed[0],
            terminated=terminated,
            truncated=(over or bool(fault)) and not terminated,
            controller_id=self._executed[1],
            stamp=self.senses.stamp,
            images=look.images,
        )

    def _reward(self, before: Transition, state: Transition) -> float:
        """As the task says; NaN where only the world would know, or the state before was not seen."""
        if state.step != before.step + 1:
            return math.nan
        scaled = np.clip(self.spec.scale_action(state.action), -1.0, 1.0)
        try:
            told = self.task.reward(before.observation[None], scaled[None], state.observation[None])
            return float(told[0])
        except NotImplementedError:
            return math.nan

    def _terminated(self, seen: Array) -> bool:
        ended = self.task.terminated(seen[None])
        return ended is not None and bool(ended[0])

    def _wanted(self) -> tuple[Choice | None, Wanted | None]:
        """What is to be done over the next period."""
        if self.status is Status.RESETTING and self._home is not None:
            return None, Wanted(self._home)
        if self.status is not Status.RUNNING:
            return None, None
        choice = self.desk.choose(self._step)
        if choice.tail:
            self.missed_steps += self._step >= self.spec.action_delay_steps
        if choice.tail < 0:
            return choice, None
        return choice, Wanted(choice.action, choice.tail, choice.disagreement)

    def _note(self, command: Command | None, choice: Choice | None) -> None:
        """What is executed from now on, and whose decision it is."""
        if command is None:
            self._executed = self.spec.safe_action(), ""
        else:
            who = choice.controller_id if choice is not None and not command.safe else ""
            self._executed = command.values, who

    def _release_silent(self, now: float) -> None:
        if self.desk.controller_id and now - self._heard > self.robot.release_after:
            self.desk.release()
