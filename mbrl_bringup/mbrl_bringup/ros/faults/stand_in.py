"""Controllers without torch, and rogues, each a process of its own that starts at once.

    python -m mbrl_bringup.ros.faults.stand_in

It has everything imported, forks for each line (JSON of an `Order`) that it reads, and answers with the
process id.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import dataclass

import numpy as np
import rclpy
from std_msgs.msg import Float64MultiArray

from mbrl_bringup.ros.faults.judge import ROWS, coded
from mbrl_bringup.ros.faults.recorder import COMMANDS
from mbrl_bringup.ros.robot_commands import COMMAND_QOS
from mbrl_dynamics.ros.convert import answer_to_msg, doubles
from mbrl_dynamics.ros.node import STREAM_QOS, BaseNode, drain, run
from mbrl_dynamics.transition import Answer
from mbrl_msgs.msg import Action, State

ROGUE = 0.28125  # what a rogue commands; exact in binary, and no controller's code
_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


@dataclass(frozen=True)
class Order:
    """What to start."""

    kind: str = "controller"  # or "rogue"
    namespace: str = ""
    robot: int = 0  # which its commands say that they are for
    late: float = 0.0  # longest delay of an answer [s]
    share: float = 0.0  # of the answers that are late
    seed: int = 0


class StandIn(BaseNode):
    """Pushes the cart back to the middle; each effort says which row of which plan it is."""

    def __init__(self, order: Order) -> None:
        super().__init__("stand_in", namespace=order.namespace or None)
        self._order, self._random = order, np.random.default_rng(order.seed)
        self._actions = self.create_publisher(Action, "action", STREAM_QOS)
        self._states = self.create_subscription(State, "state", self.guarded(self._on_state), STREAM_QOS)

    def _on_state(self, msg: State) -> None:
        newest = drain(self._states, msg)[-1]
        if newest.terminated or newest.truncated:
            return
        if self._random.random() < self._order.share:
            time.sleep(self._random.uniform(0.0, self._order.late))  # as a plan that takes so long
        sign = -(newest.observation[0] + newest.observation[3])  # position and velocity of the cart
        rows = [[coded(newest.step, row, sign, self._order.robot)] for row in range(ROWS)]
        who = f"stand_in_{self._order.robot}"
        answer = Answer(bytes(newest.world_id), newest.episode, newest.step, who, np.array(rows))
        self._actions.publish(answer_to_msg(answer, self.get_clock().now().to_msg()))


class Rogue(BaseNode):
    """Commands the robot although that is the bridge's."""

    def __init__(self, order: Order) -> None:
        super().__init__("rogue", namespace=order.namespace or None)
        self._commands = self.create_publisher(Float64MultiArray, COMMANDS, COMMAND_QOS)
        self.steady_timer(0.01, lambda: self._commands.publish(Float64MultiArray(data=doubles([ROGUE]))))


def main() -> None:
    """Fork for each line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    for line in sys.stdin:
        order = Order(**json.loads(line))
        parent, child = os.getpid(), os.fork()
        if child == 0:
            _become(order, parent)
        print(child, flush=True)


def die_with(parent: int) -> None:
    """Tie this process, a fork of `parent`, to its life."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _become(order: Order, parent: int) -> None:
    code = 1
    try:
        die_with(parent)
        kind = Rogue if order.kind == "rogue" else StandIn
        if kind is Rogue:  # a stranger, whose middleware does not announce it as often as our nodes do
            os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = ""
        code = run(lambda: kind(order))
    finally:
        os._exit(code)


assert rclpy  # loaded before the first fork

if __name__ == "__main__":
    main()
