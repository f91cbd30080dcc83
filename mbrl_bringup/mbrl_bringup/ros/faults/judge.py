"""Judges what a recorder heard. Knows of the guard only its limits and its safe command. numpy only."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 8  # of the stand-in's plans, more than any guard lets a late plan bridge
ROBOTS = 2  # whose commands can be told apart
LOST = 0.03  # between two readings of which none in between has reached the recorder [s]
_STEPS = 64  # after which the code of a step repeats
_UNIT = 1.0 / 1024.0  # codes are exact in binary
AGE = 0.3  # a safe command damps a velocity that was read this long ago at most [s]


def coded(step: int, row: int, sign: float, robot: int = 0) -> float:
    """The effort [N] that says which row of the plan for which State it is; 1 to 2 in size."""
    return math.copysign(1.0 + ((row * _STEPS + step % _STEPS) * ROBOTS + robot) * _UNIT, sign)


def decoded(value: float) -> tuple[int, int, int] | None:
    """(step modulo 64, row, robot) of a coded effort; None = it is none."""
    number = (abs(value) - 1.0) / _UNIT
    if not 0.0 <= number < ROWS * _STEPS * ROBOTS or number != int(number):
        return None
    rest, robot = divmod(int(number), ROBOTS)
    row, step = divmod(rest, _STEPS)
    return step, row, robot


@dataclass(frozen=True)
class Heard:
    """One message: when it arrived [s, steady clock], and what it said."""

    time: float
    said: Any


@dataclass
class Record:
    """What a recorder has written so far; `update` reads on.

    Attributes:
        commands: on the command topic [A].
        joints: (velocity, effort, stamp) of the driven joint.
        states: (world id, episode, step, stamp, first, last, executed action, controller).
        guards: (phase, reason).
        stalls: how long the machine did not let the recorder run [s].
    """

    path: Path
    commands: list[Heard] = field(default_factory=list)
    joints: list[Heard] = field(default_factory=list)
    states: list[Heard] = field(default_factory=list)
    guards: list[Heard] = field(default_factory=list)
    stalls: list[Heard] = field(default_factory=list)
    _read: int = 0  # bytes

    def update(self) -> Record:
        """Take in whole lines that are new."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._read += whole
        kinds = {"c": self.commands, "j": self.joints, "s": self.states, "g": self.guards, "p": self.stalls}
        for line in data[:whole].splitlines():
            kind, time, said = json.loads(line)
            kinds[kind].append(Heard(time, said))
        return self

    def stalled(self, begin: float, end: float) -> float:
        """The longest time in which the recorder could not run, between two times [s]."""
        return max(
            (stall.said for stall in self.stalls if begin <= stall.time <= end + stall.said), default=0.0
        )

    def account(self, begin: float, end: float) -> str:
        """What else is known about a time in which something took too long, in words."""
        times = [begin, *(c.time for c in self.commands if begin < c.time <= end), end]
        silence = max(b - a for a, b in pairwise(times))
        guards = [
            f"{g.time - begin:.2f} s: {g.said[0]} {g.said[1]}"
            for g in self.guards
            if begin < g.time <= end + 1.0
        ]
        stall, told = self.stalled(begin, end), "; ".join(guards)
        return f"recorder held up for {stall:.3f} s, commands silent for {silence:.3f} s, guard: {told}"


def after(heard: Sequence[Heard], time: float) -> list[Heard]:
    """Those that came later."""
    return [one for one in heard if one.time > time]


@dataclass(frozen=True)
class Limits:
    """What every command must be: finite, of this length, within the limits."""

    low: np.ndarray  # [A]
    high: np.ndarray  # [A]

    def fault(self, values: Sequence[float]) -> str:
        """What is wrong with a command, in one sentence; empty if nothing is."""
        if len(values) != len(self.low):
            return f"a command has {len(values)} elements, not {len(self.low)}"
        array = np.array(values)
        if not np.isfinite(array).all():
            return f"a command is not finite: {values}"
        if (array < self.low).any() or (array > self.high).any():
            return f"a command is outside its limits: {values}"
        return ""

    def faults(self, commands: Sequence[Heard]) -> list[str]:
        """What is wrong with commands, a sentence each."""
        return [fault for fault in (self.fault(command.said) for command in commands) if fault]


def is_safe(command: Heard, joints: Sequence[Heard], damping: float) -> bool:
    """Whether an effort is the safe one: none, or damping x a velocity that the joint had a moment before.

    Where readings did not reach the recorder, one between its neighbours will do.
    """
    value = command.said[0]
    if value == 0.0:
        return True
    recent = []
    for one in reversed(joints):
        if one.time < command.time - AGE:
            break
        if one.time <= command.time + AGE:
            recent.append(one)
    damped = [-damping * one.said[0] for one in recent]
    if value in damped:
        return True
    lost = any(b.time - a.time > LOST for b, a in pairwise(recent))
    return lost and decoded(value) is None and min(damped) <= value <= max(damped)


def settled(commands: Sequence[Heard], joints: Sequence[Heard], damping: float) -> float:
    """Arrival of the first command from which on all are safe; infinite if the last one is not."""
    since = math.inf
    for command in reversed(commands):
        if not is_safe(command, joints, damping):
            break
        since = command.time
    return since


def stale(commands: Sequence[Heard], tail_steps: int) -> list[str]:
    """Commands that are a row of a plan which the guard may not use any more."""
    found = []
    for command in commands:
        code = decoded(command.said[0])
        if code is not None and code[1] > tail_steps:
            found.append(f"row {code[1]} of the plan for step {code[0]} (modulo {_STEPS}) was commanded")
    return found


def stale_states(states: Sequence[Heard], delay: int) -> list[str]:
    """Executed actions that are not the row which their step wanted."""
    found = []
    for state in states:
        step, action = state.said[2], state.said[6]
        code = decoded(action[0]) if action else None
        if code is not None and (code[0] + code[1] + delay - (step - 1)) % _STEPS:
            found.append(
                f"step {step} executed row {code[1]} of the plan for step {code[0]} (modulo {_STEPS})"
            )
    return found


def joined_across(states: Sequence[Heard]) -> list[str]:
    """Transitions that follow one another although time went back between them."""
    found = []
    for i in range(1, len(states)):
        a, b = states[i - 1].said, states[i].said
        follows = a[:2] == b[:2] and b[2] == a[2] + 1 and not b[4] and not a[5]
        if follows and b[3] < a[3]:
            found.append(
                f"step {b[2]} of episode {b[1]} follows although its stamp is {a[3] - b[3]:.3f} s earlier"
            )
    return found


def histogram(seconds: Sequence[float], width: float = 0.05) -> dict[str, int]:
    """How many values lie in each bin; named by its upper end [s]."""
    bins: dict[str, int] = {}
    for value in sorted(seconds):
        name = "never" if math.isinf(value) else f"{(math.floor(value / width) + 1) * width:.2f}"
        bins[name] = bins.get(name, 0) + 1
    return bins
