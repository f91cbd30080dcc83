"""Running whole episodes: reset, wait for the model, answer until the end, and again. No ROS.

The runner is told what happens (`heard`, `decided`, `reset_done`, `world_heard`, `tick`) and speaks to
its host, so that nothing in it blocks and every wait can be cancelled.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np

from mbrl_dynamics.transition import Transition, WorldId

FEEDBACK_PERIOD = 0.1  # least time between two feedbacks [s]
IDLE_FEEDBACK_PERIOD = 1.0  # a wait is told of this often [s]
LEARNER_PATIENCE = 10.0  # a learner that rests so long does not know the episode that is waited for [s]
RETRY_PERIOD = 0.5  # pause before a refused reset is asked for again [s]


class Phase(StrEnum):
    """What the runner is doing, in the words of RunEpisodes' feedback."""

    RESETTING = "resetting"
    WAITING = "waiting for the model"
    RUNNING = "running"
    DONE = "done"


class Outcome(StrEnum):
    """How a run ended; the names of RunEpisodes' error codes."""

    OK = "OK"
    CANCELED = "CANCELED"
    RESET_FAILED = "RESET_FAILED"
    NO_WORLD = "NO_WORLD"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Goal:
    """What to run.

    Attributes:
        episodes: how many; None = without end.
        seed: episode k is reset with seed + k; negative = the world's own sequence.
        max_steps: end an episode after this many steps [steps]; 0 = the world's own limit.
        wait_for_model: before each episode, wait for a model that was trained on the last one.
        world_timeout: give up after no world was there for this long [s].
    """

    episodes: int | None
    seed: int = -1
    max_steps: int = 0
    wait_for_model: bool = False
    world_timeout: float = 30.0


@dataclass(frozen=True)
class Ended:
    """An episode that is over."""

    world_id: WorldId
    episode: int
    cut: bool  # by max_steps rather than by the world


@dataclass
class Progress:
    """Where a run stands; the core of RunEpisodes' feedback."""

    episode: int = 0  # index within this goal
    step: int = 0  # [steps]
    done: bool = False
    return_so_far: float = 0.0
    planning_ms: float = math.nan
    disagreement: float = math.nan
    phase: Phase = Phase.RESETTING


@dataclass
class Result:
    """What came of a run."""

    outcome: Outcome = Outcome.OK
    message: str = ""
    returns: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    planning_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1_000_000))

    def planning(self) -> tuple[float, float]:
        """Median and 99th percentile of the planning time [ms]; NaN = no decision."""
        if not self.planning_ms:
            return math.nan, math.nan
        return statistics.median(self.planning_ms), float(np.percentile(self.planning_ms, 99))


class Host(Protocol):
    """What the runner needs from the node around it. No method may block or call the runner back."""

    def world_ready(self) -> bool:
        """Whether a world is there to be reset."""
        ...

    def reset_world(self, seed: int) -> None:
        """Ask for a new episode; `reset_done` tells the runner what came of it."""
        ...

    def cancel_reset(self) -> None:
        """Take back the last `reset_world`."""
        ...

    def model_covers(self, world_id: WorldId, episode: int) -> bool:
        """Whether the model in use was trained on that episode."""
        ...

    def learner_rests(self) -> bool:
        """Whether there is a learner, and it does not train."""
        ...

    def warn(self, text: str) -> None:
        """Tell people about something odd."""
        ...

    def begin_episode(self, index: int) -> None:
        """Episode `index` of the goal begins."""
        ...

    def feedback(self, progress: Progress) -> None:
        """Tell how it goes."""
        ...

    def finished(self, result: Result) -> None:
        """The run is over."""
        ...


class EpisodeRunner:
    """Runs the episodes of one goal.

    An episode that breaks off, because the world restarted or somebody else reset it, is run again. An
    episode that was cut by `max_steps` ends for the learner only with the reset that follows; its wait for
    the model therefore comes after that reset, with the first State held back.

    Args:
        goal: what to run.
        host: the node.
        last: the last episode of the goal before; None = there was none.
        world_id: of the world that is there now; None = none yet.
    """

    def __init__(
        self,
        goal: Goal,
        host: Host,
        *,
        last: Ended | None = None,
        world_id: WorldId | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.goal, self.host, self.last = goal, host, last
        self.progress, self.result = Progress(), Result()
        self._clock = clock
        self._world_id = world_id
        self._episode: tuple[WorldId, int] | None = None  # the one that runs
        self._asked = False  # a reset is under way
        self._retry_at = -math.inf
        self._world_seen = clock()
        self._told = -math.inf
        self._resting_since = math.inf
        self._return, self._step = 0.0, -1

    @property
    def phase(self) -> Phase:
        """What the runner is doing."""
        return self.progress.phase

    def wants(self, state: Transition) -> bool:
        """Whether a State is to be answered now."""
        return self.phase is Phase.RUNNING and state.key[:2] == self._episode and not self._at_end(state)

    def start(self) -> None:
        """Begin."""
        self._next_episode()

    def cancel(self) -> None:
        """End now, in whatever phase."""
        self._finish(Outcome.CANCELED, "canceled")

    def fail(self, reason: str) -> None:
        """End now, because it cannot go on."""
        self._finish(Outcome.FAILED, reason)

    def tick(self) -> None:
        """Call at least ten times a second, and whenever the model changed."""
        if self.phase is Phase.DONE:
            return
        now = self._clock()
        if self.host.world_ready():
            self._world_seen = now
        elif now - self._world_seen > self.goal.world_timeout:
            self._finish(Outcome.NO_WORLD, f"no world answered for {self.goal.world_timeout:.0f} s")
            return
        if self.phase is Phase.WAITING and (self._covered() or self._in_vain(now)):
            self._enter(Phase.RUNNING if self._episode else Phase.RESETTING)
        if self.phase is Phase.RESETTING and not self._asked and now >= self._retry_at:
            self._ask()
        if now - self._told >= IDLE_FEEDBACK_PERIOD:
            self._tell()

    def world_heard(self, world_id: WorldId) -> None:
        """A world spoke. If it is another than before, what ran there, or was asked of it, is abandoned."""
        former, self._world_id = self._world_id, world_id
        if self.phase is Phase.DONE or former in (None, world_id):
            return
        if self._episode is not None or self._asked:
            self._repeat()
        else:
            self.tick()

    def reset_done(self, world_id: WorldId, episode: int, error: str = "", *, retry: bool = False) -> None:
        """The last reset came back.

        Args:
            error: why it failed; empty = it did not.
            retry: whether to ask again after a failure (the world was busy, or went away).
        """
        if self.phase is Phase.DONE or not self._asked:
            return
        self._asked = False
        if not error:
            self._world_id, self._episode = world_id, (world_id, episode)
            self._return, self._step = 0.0, -1
            self.host.begin_episode(len(self.result.returns))
            self._enter(Phase.WAITING if self._must_wait() else Phase.RUNNING)
        elif retry:
            self._retry_at = self._clock() + RETRY_PERIOD
        else:
            self._finish(Outcome.RESET_FAILED, error)

    def heard(self, state: Transition) -> None:
        """A new State came (each exactly once, in order)."""
        self.world_heard(state.world_id)
        if self.phase is Phase.DONE or self._episode is None:
            return
        if state.key[:2] == self._episode:
            self._count(state)
        else:  # somebody else reset the world
            self._repeat()

    def decided(self, planning_ms: float, disagreement: float) -> None:
        """The newest State was answered."""
        if not math.isnan(planning_ms):
            self.result.planning_ms.append(planning_ms)
        self.progress.planning_ms, self.progress.disagreement = planning_ms, disagreement

    def _next_episode(self) -> None:
        self.progress = Progress(episode=len(self.result.returns))
        if self.goal.episodes is not None and len(self.result.returns) >= self.goal.episodes:
            self._finish(Outcome.OK, "")
        elif self._must_wait() and self.last is not None and not self.last.cut:
            self._enter(Phase.WAITING)
        else:
            self._enter(Phase.RESETTING)
            self._ask()

    def _ask(self) -> None:
        if not self.host.world_ready():
            return  # `tick` asks again
        self._asked = True
        seed = self.goal.seed + len(self.result.returns) if self.goal.seed >= 0 else -1
        self.host.reset_world(seed)

    def _count(self, state: Transition) -> None:
        if state.step <= self._step:
            return
        self._step = state.step
        self._return += 0.0 if state.first else state.reward
        self.progress.step, self.progress.return_so_far = state.step, self._return
        if self._at_end(state):
            self._end(cut=not state.last)
        elif self._clock() - self._told >= FEEDBACK_PERIOD:
            self._tell()

    def _end(self, *, cut: bool) -> None:
        self.result.returns.append(self._return)
        self.result.steps.append(self._step)
        self.progress.done = True
        self._tell()
        assert self._episode is not None
        self.last = Ended(*self._episode, cut)
        self._episode = None
        self._next_episode()

    def _repeat(self) -> None:
        """The episode broke off: run it again."""
        self._episode, self._asked = None, False
        self._next_episode()

    def _at_end(self, state: Transition) -> bool:
        return state.last or (self.goal.max_steps > 0 and state.step >= self.goal.max_steps)

    def _must_wait(self) -> bool:
        return self.goal.wait_for_model and not self._covered()

    def _covered(self) -> bool:
        """Whether the model has seen the last episode, or none will: its world is gone."""
        last = self.last
        gone = last is not None and self._world_id is not None and self._world_id != last.world_id
        return last is None or gone or self.host.model_covers(last.world_id, last.episode)

    def _in_vain(self, now: float) -> bool:
        """Whether the learner missed the last episode (it was down, say): no model will ever cover it."""
        self._resting_since = min(self._resting_since, now) if self.host.learner_rests() else math.inf
        if now - self._resting_since < LEARNER_PATIENCE or self.last is None:
            return False
        self.host.warn(f"the learner rests and has not seen episode {self.last.episode}: going on without")
        self.last = None
        return True

    def _enter(self, phase: Phase) -> None:
        changed = phase is not self.progress.phase
        self.progress.phase, self._resting_since = phase, math.inf
        if changed and self._clock() - self._told >= FEEDBACK_PERIOD:
            self._tell()

    def _tell(self) -> None:
        self._told = self._clock()
        self.host.feedback(self.progress)

    def _finish(self, outcome: Outcome, message: str) -> None:
        if self.phase is Phase.DONE:
            return
        if self._asked:
            self.host.cancel_reset()
        self.result.outcome, self.result.message = outcome, message
        self.progress.phase, self._asked = Phase.DONE, False
        self.host.finished(self.result)
