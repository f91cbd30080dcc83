"""Messages that no honest sender would send, as many as wanted: Actions, States and sensor readings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState

from mbrl_dynamics.ros.convert import answer_to_msg, doubles, time_msg, transition_to_msg
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Answer, Transition
from mbrl_msgs.msg import Action, State

ODD = (math.nan, math.inf, -math.inf, 1e308, -1e308, 1e9, -1e9, 5e-324, -0.0, 0.0, 9.99, -9.99)
BIG = (1 << 64) - 1  # the largest step and episode that a message holds
TRIPPING = 0.01  # share of Actions that end motion, so that most meet a robot that moves


class Generator:
    """Seeded. What it makes is about the robot as it is now: `state` is the newest State."""

    def __init__(self, spec: Spec, controller: str, seed: int) -> None:
        self.spec, self.controller = spec, controller
        self._random = np.random.default_rng(seed)
        self._sent: list[Action] = []

    def _one_of(self, things: Any) -> Any:
        return things[int(self._random.integers(len(things)))]

    def _values(self, rows: int, columns: int) -> np.ndarray:
        values = self._random.uniform(-20.0, 20.0, (rows, columns))
        odd = self._random.random(values.shape) < 0.2
        values[odd] = self._random.choice([x for x in ODD if math.isfinite(x)], int(odd.sum()))
        return values

    # Actions ------------------------------------------------------------------------------------------------

    def action(self, state: Transition) -> Action:
        """One that answers this State, or nearly so."""
        if self._random.random() < TRIPPING:
            return self._one_of((self._not_finite, self._wrong_length, self._contradicts))(state)
        kinds: tuple[Callable[[Transition], Action], ...] = (
            *(self._extreme, self._extreme, self._extreme, self._other_step, self._earlier),
            *(self._other_world, self._other_controller, self._again, self._odd_disagreement),
        )
        message = self._one_of(kinds)(state)
        self._sent = [*self._sent[-63:], message]
        return message

    def _extreme(self, state: Transition) -> Action:
        rows = self._values(int(self._random.integers(1, 9)), self.spec.action_dim)
        answer = Answer(state.world_id, state.episode, state.step, self.controller, rows)
        return answer_to_msg(answer, time_msg(self._one_of((0.0, 1.0, 2.0**30))))  # stale and future stamps

    def _other_step(self, state: Transition) -> Action:
        message = self._extreme(state)
        message.step = max(0, state.step + int(self._random.integers(-20, 20)))
        return message

    def _earlier(self, state: Transition) -> Action:
        message = self._extreme(state)
        message.episode = self._one_of((0, max(state.episode - 1, 0), state.episode + 1, BIG))
        message.step = self._one_of((0, state.step, BIG))
        return message

    def _other_world(self, state: Transition) -> Action:
        message = self._extreme(state)
        message.world_id = self._random.integers(0, 256, 16, dtype=np.uint8)
        return message

    def _other_controller(self, state: Transition) -> Action:
        message = self._extreme(state)
        message.controller_id = self._one_of(("", "another", "x" * 10_000, "\u0001"))
        return message

    def _again(self, state: Transition) -> Action:
        """One of before, once more or out of order."""
        return self._one_of(self._sent) if self._sent else self._extreme(state)

    def _odd_disagreement(self, state: Transition) -> Action:
        message = self._extreme(state)
        message.disagreement = float(self._one_of(ODD))
        return message

    def _not_finite(self, state: Transition) -> Action:
        message = self._extreme(state)
        values = np.array(message.values)
        values[self._random.integers(values.size)] = self._one_of(ODD[:3])
        message.values = doubles(values)
        return message

    def _wrong_length(self, state: Transition) -> Action:
        message = self._extreme(state)
        message.values = doubles(np.zeros(self._one_of((0, 2, 7, 1000))))
        message.horizon = self._one_of((0, 1, 3))
        return message

    def _contradicts(self, state: Transition) -> Action:
        message = self._extreme(state)
        message.horizon = self._one_of((0, BIG >> 32, message.horizon + 1))
        return message

    # States -------------------------------------------------------------------------------------------------

    def state(self, state: Transition) -> State:
        """One that pretends to come from the world."""
        if self._random.random() < 0.3:
            state = replace(state, world_id=self._random.bytes(16))
        step = self._one_of((0, state.step, state.step + 1, max(state.step - 3, 0), state.step + 10_000))
        state = replace(
            state,
            step=step,
            episode=self._one_of((0, state.episode, state.episode + 1)),
            observation=self._vector(self.spec.observation_dim),
            action=self._vector(self.spec.action_dim),
            first=bool(self._random.random() < 0.1),
            truncated=bool(self._random.random() < 0.1),
            reward=float(self._one_of(ODD)),
            stamp=self._one_of((0.0, 1.0, 2.0**30)),
        )
        return transition_to_msg(state, self.spec)

    def _vector(self, size: int) -> np.ndarray:
        if self._random.random() < 0.2:
            size = self._one_of((0, 1, size + 1, 1000))
        values = self._random.standard_normal(size)
        if self._random.random() < 0.5:
            values[self._random.random(size) < 0.3] = self._one_of(ODD)
        return values

    # Readings -----------------------------------------------------------------------------------------------

    def reading(self, stamp: float, honest: bool = False) -> JointState:
        """What a driver might say: joints in any order, some lacking, some strange, numbers of all kinds."""
        names = ["hinge", "slider", "elbow"]
        self._random.shuffle(names)
        if honest or self._random.random() < 0.7:
            values = self._random.uniform(-1.0, 1.0, (3, 3))
        else:
            values = self._random.choice(ODD, (3, 3))
            names = names[: int(self._random.integers(0, 4))]
            stamp = self._one_of((0.0, stamp - 5.0, stamp, stamp + 5.0, 2.0**30))
        message = JointState(name=names)
        message.header.stamp = time_msg(max(stamp, 0.0))
        sizes = (3, 3, 3) if honest else self._random.choice([3, 3, 3, 3, 3, 3, 3, 1, 0], 3)
        for field, row, size in zip(("position", "velocity", "effort"), values, sizes, strict=True):
            setattr(message, field, doubles(row[:size]))
        return message
