"""The world's side of the contract: which action is executed, and which is refused.

Shared by the simulator and by the bridge to real robots. numpy only.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Answer, WorldId


class World(Protocol):
    """What every world tells of itself, simulated or not."""

    world_id: WorldId
    desk: ActionDesk
    missed_steps: int  # periods without an answer of their own
    last_fault: str

    @property
    def status(self) -> int:
        """One of mbrl_msgs/WorldStatus."""
        ...

    @property
    def episode(self) -> int:
        """The current one."""
        ...

    @property
    def step(self) -> int:
        """Of the newest State."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether a State is out and its answer has not come yet."""
        ...


@dataclass(frozen=True)
class Choice:
    """What a world executes over one period."""

    action: NDArray[np.float64]  # [A], SI, within the limits
    controller_id: str  # empty = the world's own safe action
    tail: int  # 0 = the answer itself, j = row j of a late plan, -1 = the safe action
    disagreement: float = math.nan  # of the plan; NaN = unknown


@dataclass
class ActionDesk:
    """Takes answers, refuses the invalid ones, and says what to execute.

    An answer to State `s` takes effect over the period that begins `action_delay_steps` after it. Where
    none came in time, the tail of the newest plan bridges up to `tail_steps` periods; then the safe action.
    One controller at a time: the first valid one is bound until `release`.

    Attributes:
        tail_steps: how many periods the tail of a late plan may bridge [steps].
        controller_id: who is bound; empty = nobody yet.
        accepted: answers taken.
        refused: answers refused, by reason.
        last_refusal: one sentence about the newest refusal.
    """

    spec: Spec
    tail_steps: int = 5
    controller_id: str = ""
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    last_refusal: str = ""
    _world_id: WorldId = b""
    _episode: int = -1
    _plans: dict[int, Answer] = field(default_factory=dict)  # step -> its answer, within the limits

    def begin(self, world_id: WorldId, episode: int) -> None:
        """Begin an episode: answers to any other are refused from now on."""
        self._world_id, self._episode = world_id, episode
        self._plans.clear()

    def release(self) -> None:
        """Let another controller take over."""
        self.controller_id = ""

    def offer(self, answer: Answer, newest_step: int) -> str:
        """Take or refuse an answer; `newest_step` is the step of the last State that was published.

        Returns:
            An empty string if the answer was taken, else the reason in one sentence.
        """
        kind, reason = self._judge(answer, newest_step)
        if reason:
            return self.refuse(kind, reason)
        self.controller_id = answer.controller_id
        if answer.step not in self._plans:  # an answer to a repeated State comes from the controller's cache
            self.accepted += 1
            self._plans[answer.step] = replace(answer, values=self._limited(answer.values))
        return ""

    def refuse(self, kind: str, reason: str) -> str:
        """Count a refusal and keep its reason, which is returned."""
        self.refused[kind] += 1
        self.last_refusal = reason
        return reason

    def answered(self, step: int) -> bool:
        """Whether the State of `step` has its answer."""
        return step in self._plans

    def choose(self, step: int) -> Choice:
        """What to execute over the period that begins with the State of `step`."""
        due = step - self.spec.action_delay_steps  # the State whose answer takes effect now
        for stale in [s for s in self._plans if s < due - self.tail_steps]:
            del self._plans[stale]
        for tail in range(self.tail_steps + 1):
            plan = self._plans.get(due - tail)
            if plan is not None and tail < len(plan.values):
                return Choice(plan.values[tail], plan.controller_id, tail, plan.disagreement)
        return Choice(self.spec.safe_action(), "", -1)

    def _judge(self, answer: Answer, newest_step: int) -> tuple[str, str]:
        if answer.world_id != self._world_id:
            return "world", "the action answers a State of another (earlier) world"
        if answer.episode != self._episode:
            return "episode", f"the action answers episode {answer.episode}, but this is {self._episode}"
        if not answer.controller_id:
            return "controller", "the action has no controller_id"
        if self.controller_id and answer.controller_id != self.controller_id:
            return "controller", (
                f"controller '{answer.controller_id}' is refused, since '{self.controller_id}' is in control"
            )
        if (
            answer.values.ndim != 2
            or len(answer.values) < 1
            or answer.values.shape[1] != self.spec.action_dim
        ):
            return "length", f"the action must be H x {self.spec.action_dim} values with H at least 1"
        if not np.isfinite(answer.values).all():
            return "finite", "the action is not finite"
        if answer.step > newest_step:
            return "step", f"the action answers step {answer.step}, but the newest State is {newest_step}"
        if answer.step < newest_step - self.spec.action_delay_steps - self.tail_steps:
            return "late", f"the action answers step {answer.step}, too late at step {newest_step}"
        return "", ""

    def _limited(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.spec.discrete:
            return np.clip(np.round(values), 0, self.spec.action[0].count - 1)
        return np.clip(values, self.spec.action_low, self.spec.action_high)
