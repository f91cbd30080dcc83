"""The controller's side of the contract: which State is answered, and how. No ROS.

Shared by the node that plans and the node that runs a policy.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics.contract import ActionDesk
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Answer, Transition, WorldId

EXPLOIT, EXPLORE, RANDOM = "exploit", "explore", "random"


class Decider(Protocol):
    """An agent in two halves, so that a State can be taken in without being answered. See agents/mpc.py."""

    @property
    def ready(self) -> bool:
        """Whether it can decide yet."""
        ...

    def seed(self, seed: int) -> None:
        """Begin the random numbers anew."""
        ...

    def observe(
        self, obs: dict[str, Tensor], carry: Any, *, first: Tensor, prev_action: Tensor | None, steps: int = 1
    ) -> Any:
        """Take in a State; returns the new memory."""
        ...

    def choose(
        self, carry: Any, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Any]:
        """Decide on the newest State: actions [B, H, A] and the new memory."""
        ...


@dataclass
class Statistics:
    """What a controller has done since it started."""

    answered: int = 0  # States answered
    repeated: int = 0  # repeated States answered from the cache
    missed: int = 0  # States answered late or not at all [steps]
    refused: int = 0  # States refused (not finite, wrong length)
    stale: int = 0  # States older than one already heard, left out
    last_refusal: str = ""
    late_plans: int = 0  # decisions that the time budget cut short
    void_plans: int = 0  # decisions for which the model predicted nothing finite
    regularised: int = 0  # factorisations within decisions that failed at first
    planning_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # newest decisions [ms]
    answer_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # State taken to answer sent


@dataclass
class UnderWay:
    """The answers of one episode, as the world will execute them (see ActionDesk)."""

    spec: Spec
    tail_steps: int = ActionDesk.tail_steps
    _sent: dict[int, NDArray[np.float64]] = field(default_factory=dict)  # step answered -> [H, A]

    def sent(self, step: int, values: NDArray[np.float64]) -> None:
        """Remember the answer to the State of `step`."""
        self._sent[step] = values
        oldest = step - 2 * self.spec.action_delay_steps - self.tail_steps - 1
        for old in [s for s in self._sent if s < oldest]:
            del self._sent[old]

    def expected(self, step: int, without: int = -1) -> NDArray[np.float64]:
        """What the world executes over the period that begins with `step` [A], SI.

        Args:
            without: as if the State of this step had not been answered.
        """
        due = step - self.spec.action_delay_steps
        for tail in range(self.tail_steps + 1):
            plan = self._sent.get(due - tail) if due - tail != without else None
            if plan is not None and tail < len(plan):
                return plan[tail]
        return self.spec.safe_action()

    def pending(self, step: int) -> NDArray[np.float64]:
        """Actions [d, A], SI, that take effect between the State of `step` and its own answer."""
        return np.stack([self.expected(step + i) for i in range(self.spec.action_delay_steps)])

    def was_late(self, heard: Transition) -> bool:
        """Whether the answer that was due over the period before `heard` came too late to be executed."""
        period = heard.step - 1
        due = period - self.spec.action_delay_steps
        if due not in self._sent:
            return False
        bridge = self.expected(period, without=due)
        return not _close(self._sent[due][0], bridge) and _close(heard.action, bridge)


def _close(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """np.allclose of finite arrays, which takes longer than a small policy."""
    return bool((np.abs(a - b) <= 1e-9 + 1e-5 * np.abs(b)).all())


class Controller:
    """Hears every State in order, and answers the newest.

    A repeated State is answered from the cache, an older one only remembered, a terminal one not at all. A
    State that cannot be used is refused, as if none had come. Where a plan cannot be used, the answer is what
    the world does without one: the tail of the plans before, then the safe action.

    Args:
        decider: the agent.
        spec: of the world.
        controller_id: who answers.
        mode: EXPLOIT, EXPLORE or RANDOM.
        no_model: what to do while the agent is not ready: "random", "wait" or "safe".
        seed: of the random actions.
        statistics: to go on counting in; None = new.
    """

    def __init__(
        self,
        decider: Decider,
        spec: Spec,
        controller_id: str,
        *,
        mode: str = EXPLOIT,
        no_model: str = "random",
        seed: int = 0,
        statistics: Statistics | None = None,
    ) -> None:
        self.decider, self.spec, self.controller_id = decider, spec, controller_id
        self.mode, self.no_model = mode, no_model
        self.statistics = statistics or Statistics()
        self.newest: Transition | None = None
        self.memory: Any = None
        self.planning_ms = math.nan  # of the last decision; NaN = it was no plan
        self.disagreement = math.nan  # of the last decision
        self._answer: Answer | None = None
        self._open = False  # an answer to `newest` is wanted and has not been given
        self._former: set[WorldId] = set()
        self._under_way = UnderWay(spec)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begin all random numbers anew."""
        self._random = np.random.default_rng((seed, 1))  # a world seeded alike must not draw the same numbers
        self.decider.seed(seed)

    @property
    def answered(self) -> bool:
        """Whether the newest State has its answer."""
        return self._answer is not None

    @property
    def waits(self) -> bool:
        """Whether it answers nothing because there is no model."""
        return self.no_model == "wait" and self.mode != RANDOM and not self.decider.ready

    def use_spec(self, spec: Spec) -> None:
        """Take another world's spec."""
        self.spec = spec
        self.forget()

    def forget(self) -> None:
        """Begin afresh with the next State, as if none had come."""
        self.newest = self._answer = self.memory = None
        self._open, self._under_way = False, UnderWay(self.spec)

    def hear(self, state: Transition, *, wanted: bool = True) -> bool:
        """Take in a State.

        Args:
            wanted: whether it is to be answered, so that it counts as missed if it is not.

        Returns:
            Whether it is a new one.
        """
        fault = state.fault(self.spec)
        if fault:
            self.statistics.refused += 1
            self.statistics.last_refusal = f"State {state.step} of episode {state.episode}: {fault}"
            return False
        newest = self.newest
        if newest is not None and state.key == newest.key:
            self._open |= wanted and self._answer is None and not state.last
            return False
        if self._is_old(state):
            self.statistics.stale += 1
            return False
        same = newest is not None and state.key[:2] == newest.key[:2] and not state.first
        steps = state.step - newest.step if newest is not None and same else 1
        if same:
            self.statistics.missed += self._open + (steps - 1 if wanted else 0)
            self.statistics.missed += steps == 1 and self._under_way.was_late(state)
        else:
            self._under_way = UnderWay(self.spec)
            if newest is not None and state.world_id != newest.world_id:
                self._former.add(newest.world_id)
        self._remember(state, same, steps)
        self._open = wanted and not state.last
        return True

    def answer(self) -> Answer | None:
        """The answer to the newest State; None where none is due."""
        state = self.newest
        if state is None or state.last:
            return None
        self._open = False
        if self._answer is not None:
            self.statistics.repeated += 1
            return self._answer
        values = self._decide(state.step)
        if values is None:
            return None
        self._answer = Answer(*state.key, self.controller_id, values, self.disagreement)
        self._under_way.sent(state.step, values)
        self.statistics.answered += 1
        return self._answer

    def _is_old(self, state: Transition) -> bool:
        newest = self.newest
        if newest is None:
            return False
        if state.world_id != newest.world_id:
            return state.world_id in self._former
        return (state.episode, state.step) < (newest.episode, newest.step)

    def _remember(self, state: Transition, same: bool, steps: int) -> None:
        obs = {"vector": torch.from_numpy(state.observation.astype(np.float32))[None]}
        obs |= {name: torch.from_numpy(image)[None] for name, image in state.images.items()}
        action = self._inner(state.action[None]) if same else None
        first = torch.tensor([not same])
        self.memory = self.decider.observe(
            obs, self.memory if same else None, first=first, prev_action=action, steps=steps
        )
        self.newest, self._answer = state, None

    def _decide(self, step: int) -> NDArray[np.float64] | None:
        self.planning_ms = self.disagreement = math.nan
        if self.mode == RANDOM or (self.no_model == "random" and not self.decider.ready):
            return self._random_action()
        if self.waits:
            return None
        if not self.decider.ready:
            return self.spec.safe_action()[None]
        begin, before = time.perf_counter(), getattr(self.memory, "plan", None)
        delayed = self.spec.action_delay_steps > 0
        pending = self._inner(self._under_way.pending(step))[None] if delayed else None
        actions, self.memory = self.decider.choose(self.memory, pending=pending, explore=self.mode == EXPLORE)
        plan = getattr(self.memory, "plan", None)  # a policy has none
        if plan is None or plan is not before:  # else the last plan is followed
            self.planning_ms = 1e3 * (time.perf_counter() - begin)
            self.statistics.planning_ms.append(self.planning_ms)
        if plan is not None and plan is not before:
            self.statistics.late_plans += not plan.deadline_met
            self.statistics.regularised += 0 if plan.failures is None else int(plan.failures[0])
        if plan is not None:
            self.disagreement = math.nan if plan.disagreement is None else float(plan.disagreement[0])
            if plan.valid is not None and not plan.valid[0]:
                self.statistics.void_plans += 1
                return self._under_way.expected(step + self.spec.action_delay_steps)[None]
        values = self.spec.unscale_action(actions[0].detach().cpu().numpy())
        if not np.isfinite(values).all():
            raise ValueError("the plan is not finite")
        return values

    def _random_action(self) -> NDArray[np.float64]:
        if self.spec.discrete:
            return self._random.integers(self.spec.action[0].count, size=(1, 1)).astype(np.float64)
        return self._random.uniform(self.spec.action_low, self.spec.action_high)[None]

    def _inner(self, action: NDArray[np.float64]) -> Tensor:
        """SI [..., A] as the algorithms see it."""
        return torch.from_numpy(self.spec.scale_action(action).astype(np.float32))
