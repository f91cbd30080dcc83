"""The world's side of the contract as a state machine: no ROS, and no clock but the one it is given.

Each method that can bring something about returns the State to publish, or None.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.contract import ActionDesk
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.transition import Answer, Transition
from mbrl_sim.physics import Physics


class Status(IntEnum):
    """How a world is doing, with the numbers of mbrl_msgs/WorldStatus."""

    NEEDS_RESET = 0
    RUNNING = 1
    PAUSED = 2


@config
class WorldConfig:
    """How a world keeps time and whom it obeys."""

    mode: Annotated[
        Literal["lockstep", "realtime", "free"],
        Field(description="the world waits for each answer, does not wait, or is controlled by nobody"),
    ] = "lockstep"
    action_delay_steps: Annotated[
        int, Field(ge=0, le=100, description="an answer takes effect this much later [steps]")
    ] = 0
    tail_steps: Annotated[
        int, Field(ge=0, le=1000, description="a late plan's tail bridges at most this many periods [steps]")
    ] = 5
    repeat_period: Annotated[
        float,
        Field(gt=0, description="lock-step: an unanswered State is repeated this often [s, steady clock]"),
    ] = 0.25
    release_after: Annotated[
        float, Field(gt=0, description="a controller that is silent so long loses control [s, steady clock]")
    ] = 10.0
    max_steps: Annotated[
        int,
        Field(
            ge=0, description="an episode is truncated after this many steps [steps]; 0 = as the task says"
        ),
    ] = 0


class World:
    """A simulated world that keeps every rule of the contract.

    - Lock-step: a period is simulated when the newest State has its answer (`offer`); until then the State
      is repeated (`repeat`).
    - Real time: a period is simulated whenever one has passed (`tick`), with the answer if there is one.
    - Free: nobody controls, physics run as fast as they can (`coast`), and only some States are published.
      There is no time limit then, since episodes would end faster than anyone could reset them.

    Only `reset` begins an episode. The first controller with a valid answer is bound. A controller that was
    restarted under its old id goes on; another one is refused until the bound one has given no valid answer
    for `release_after` although it was expected to. A pause, and the time between episodes, do not count.

    Args:
        simulator: the physics; nobody else may step it.
        settings: see WorldConfig.
        now: the steady clock [s], here and in all methods.
    """

    def __init__(self, simulator: Physics, settings: WorldConfig, now: float = 0.0) -> None:
        self.simulator, self.settings = simulator, settings
        self.spec = replace(
            simulator.task.spec, action_delay_steps=settings.action_delay_steps, cameras=simulator.cameras
        )
        self.world_id = uuid.uuid4().bytes
        self.desk = ActionDesk(self.spec, settings.tail_steps)
        self.max_steps = settings.max_steps or simulator.task.max_steps
        self.state: Transition | None = None  # the newest, published or not
        self.repeated = 0  # States sent again
        self.missed_steps = 0  # periods without an answer of their own
        self.last_fault = ""
        self.paused = False
        self._live = False  # an episode is going on
        self._credit = 0  # periods that a paused world may still simulate
        self._sent = self._heard = now  # the last State; the last valid answer
        self._chunk = 1  # periods simulated at once in free mode
        self._epoch = self.spec.control_period  # stamp of the episode's beginning; a clock at 0 means "unset"

    @property
    def status(self) -> Status:
        """Whether an episode is going on, or why not."""
        if not self._live:
            return Status.NEEDS_RESET
        return Status.PAUSED if self.paused else Status.RUNNING

    @property
    def waiting(self) -> bool:
        """Whether a State is out and its answer has not come yet."""
        return self._live and self.settings.mode != "free" and not self.desk.answered(self.step)

    @property
    def episode(self) -> int:
        """The current episode; 0 before the first."""
        return self.state.episode if self.state else 0

    @property
    def step(self) -> int:
        """The newest State's step."""
        return self.state.step if self.state else 0

    @property
    def time(self) -> float:
        """Simulated time since the world began [s]; never goes back, not even at a reset."""
        return self._epoch + self.simulator.time

    def reset(
        self, now: float, seed: int | None = None, initial_state: ArrayLike | None = None
    ) -> Transition:
        """Begin the next episode; a paused world stays paused.

        Raises:
            UserError: `initial_state` (qpos, then qvel) has the wrong length or is not finite.
        """
        ended = self.simulator.time
        observation = self.simulator.reset(seed, initial_state)
        if self.state is not None:
            self._epoch += ended + self.spec.control_period
        self._live, self._credit, self._heard = True, 0, now
        episode = 0 if self.state is None else self.episode + 1
        self.desk.begin(self.world_id, episode)
        return self._publish(
            Transition(
                world_id=self.world_id,
                episode=episode,
                step=0,
                observation=observation,
                action=np.zeros(self.spec.action_dim),
                first=True,
                stamp=self.time,
                images=self.simulator.images(),
            ),
            now,
        )

    def offer(self, answer: Answer, now: float) -> Transition | None:
        """Take or refuse a controller's answer; in lock-step the answer brings about the next State."""
        if self._refused(answer):
            return None
        self._heard = now
        return self._proceed(now) if self.settings.mode == "lockstep" else None

    def repeat(self, now: float) -> Transition | None:
        """Look after a lock-step world: the State again, if its answer is overdue. Call often."""
        if self.settings.mode != "lockstep" or not self.waiting:
            return None
        self._release_silent(now)
        if now < self._sent + self.settings.repeat_period:  # a difference of times would round
            return None
        self._sent = now
        self.repeated += 1
        return self.state

    def tick(self, now: float) -> Transition | None:
        """A control period of a real-time world is over. Call once a period; a stall is not caught up."""
        self._release_silent(now)
        return self._proceed(now)

    def coast(self, seconds: float, clock: Callable[[], float]) -> Transition | None:
        """Let a free world run for so long on `clock` [s]; its State at the end."""
        if not self._live or self.state is None:
            return None
        action, begin = self.spec.safe_action(), clock()
        end, fault = begin + seconds, ""
        while begin < end and not fault:
            fault = self.simulator.coast(action, self._chunk)
            self.state = replace(self.state, step=self.step + self._chunk)
            now = clock()
            if now - begin < 0.0005:
                self._chunk *= 2
            elif now - begin > 0.004:
                self._chunk = max(1, self._chunk // 2)
            begin = now
        return self._simulate(begin)  # the last period is observed and rewarded, if nothing is wrong

    def pause(self, paused: bool, now: float) -> Transition | None:
        """Withhold the next State, or go on.

        Raises:
            UserError: a free-running world cannot pause.
        """
        if self.settings.mode == "free":
            raise UserError("a free-running world cannot pause")
        self.paused, self._credit, self._heard = paused, 0, now
        return self._proceed(now) if self.settings.mode == "lockstep" else None

    def single_step(self, steps: int, now: float) -> Transition | None:
        """Let a paused world simulate so many periods, each of which needs its answer in lock-step.

        Raises:
            UserError: the world is not paused.
        """
        if not self.paused:
            raise UserError("only a paused world can be stepped")
        self._credit += steps
        self._heard = now
        return self._proceed(now) if self.settings.mode == "lockstep" else None

    def abort(self, reason: str, now: float) -> Transition | None:
        """End the episode where it is, because the world cannot go on."""
        self.last_fault = f"episode {self.episode}, step {self.step}: {reason}"
        if not self._live or self.state is None:
            return None
        self._live = False
        ending = replace(
            self.state,
            step=self.step + 1,
            action=self.spec.safe_action(),
            reward=math.nan,
            first=False,
            truncated=True,
            controller_id="",
        )
        return self._publish(ending, now)

    def _refused(self, answer: Answer) -> str:
        if self.settings.mode == "free":
            return self.desk.refuse("mode", "nobody controls a free-running world")
        if self.state is None:
            return self.desk.refuse("episode", "no episode has begun")
        if not self._live and answer.key == self.state.key:
            return self.desk.refuse(
                "step", f"the episode ended with step {answer.step}, which needs no answer"
            )
        return self.desk.offer(answer, self.step)

    def _proceed(self, now: float) -> Transition | None:
        """Simulate one period, if it may begin."""
        if not self._live or (self.paused and not self._credit):
            return None
        if self.settings.mode == "lockstep" and not self.desk.answered(self.step):
            return None
        if self.paused:
            self._credit -= 1
        return self._simulate(now)

    def _simulate(self, now: float) -> Transition:
        choice = self.desk.choose(self.step)
        if choice.tail and self.settings.mode != "free":
            self.missed_steps += self.step >= self.spec.action_delay_steps
        result = self.simulator.step(choice.action)
        step = self.step + 1
        over = self.settings.mode != "free" and step >= self.max_steps
        if result.fault:
            self.last_fault = f"episode {self.episode}, step {step}: {result.fault}"
        self._live = not (over or result.terminated or result.truncated)
        state = Transition(
            world_id=self.world_id,
            episode=self.episode,
            step=step,
            observation=result.observation,
            action=choice.action,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated or (over and not result.terminated),
            controller_id=choice.controller_id,
            stamp=self.time,
            images=self.simulator.images(),
        )
        return self._publish(state, now)

    def _publish(self, state: Transition, now: float) -> Transition:
        self.state, self._sent = state, now
        return state

    def _release_silent(self, now: float) -> None:
        expected = self._live and (not self.paused or self._credit > 0)
        if not expected:
            self._heard = now
        elif self.desk.controller_id and now - self._heard > self.settings.release_after:
            self.desk.release()
