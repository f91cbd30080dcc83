"""Writes down all that a robot is told and says, and when; a process of its own that nothing disturbs.

python -m mbrl_bringup.ros.faults.recorder FILE [--ros-args -r __ns:=/robot]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from mbrl_dynamics.ros.convert import seconds
from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS, BaseNode, Polled, arrivals, run
from mbrl_msgs.msg import GuardStatus, State

COMMANDS = "effort_controller/commands"
LOOK = 0.01  # between two looks at what has come [s]
STALL = 0.02  # a look that is later by this much was held up by the machine [s]


class Recorder(BaseNode):
    """One line of JSON a message: kind, arrival at the middleware [s, steady clock], what it says."""

    def __init__(self, file: TextIO) -> None:
        super().__init__("fault_recorder")
        self._file, self._looked = file, time.monotonic()
        group = Polled()
        listen = self.create_subscription
        self._sources = [
            (listen(Float64MultiArray, COMMANDS, print, 1000, callback_group=group), "c", _command),
            (listen(JointState, "joint_states", print, 1000, callback_group=group), "j", _joints),
            (listen(State, "state", print, STREAM_QOS, callback_group=group), "s", _state),
            (listen(GuardStatus, "guard_status", print, LATCHED_QOS, callback_group=group), "g", _guard),
        ]
        self.steady_timer(LOOK, self._look)
        self._write("p", self._looked, 0.0)

    def _look(self) -> None:
        now = time.monotonic()
        late, self._looked = now - self._looked - LOOK, now
        if late > STALL:
            self._write("p", now, late)
        for subscription, kind, say in self._sources:
            for message, arrival in arrivals(subscription):
                self._write(kind, arrival, say(message))
        self._file.flush()

    def _write(self, kind: str, when: float, said: Any) -> None:
        self._file.write(json.dumps([kind, when, said]) + "\n")

    def on_stop(self) -> None:
        """Whatever has come until the end."""
        self._look()


def _command(message: Float64MultiArray) -> list[float]:
    return list(message.data)


def _joints(message: JointState) -> list[float]:
    i = message.name.index("slider")
    return [message.velocity[i], message.effort[i], seconds(message.header.stamp)]


def _state(message: State) -> list[Any]:
    world, last = bytes(message.world_id).hex(), message.terminated or message.truncated
    stamp = seconds(message.header.stamp)
    flags, action = [message.first, last], list(message.action)
    return [world, message.episode, message.step, stamp, *flags, action, message.controller_id]


def _guard(message: GuardStatus) -> list[Any]:
    return [message.phase, message.reason]


def main() -> int:
    """Record until a signal comes."""
    with Path(sys.argv[1]).open("w") as file:
        return run(lambda: Recorder(file))


if __name__ == "__main__":
    sys.exit(main())
