"""A controller that wants the arm in the table, at full speed, and may fall silent on the way."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import JointState

from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import DRIVER, Rig, quiet_domain
from mbrl_dynamics.ros.convert import answer_to_msg
from mbrl_dynamics.ros.node import STREAM_QOS
from mbrl_dynamics.ros.testing import Peer, peer
from mbrl_dynamics.transition import Answer
from mbrl_msgs.msg import Action, GuardStatus, State
from mbrl_sim.tasks.arm_reach import ArmReach

MOTION = 4.0  # of a trial [s]
TRIED = 200  # directions among which the worst is found [1]
ROWS = 6  # of an answer: the guard may go on with its tail [steps]
AHEAD = 0.1  # [s]
WAYS = ("worst", "held", "switching")


def table(outcome: Outcome, trials: int, seed: int) -> None:
    """Half of the controllers fall silent while the arm moves. Judged is where its joints say that it is."""
    with quiet_domain(), peer("person") as me, tempfile.TemporaryDirectory() as folder:
        robot = Rig(me, Path(folder), "", {}, robot="arm")
        try:
            robot.start(DRIVER, _driver(robot))
            robot.start_bridge()
            controller, lowest, tripped = Downhill(me, seed), list[float](), 0
            heard = me.listen(JointState, "joint_states", 10)
            for number in outcome.rounds(trials):
                robot.need(lambda: robot.keep_moving(), "it does not move")
                heard.clear()
                controller.begin(WAYS[number % len(WAYS)], silent=number % 2 == 1)
                time.sleep(MOTION)
                lowest.append(min(controller.lowest(np.array(m.position)) for m in list(heard)))
                tripped += robot.phase == GuardStatus.TRIPPED
                outcome.tried(*_low(lowest[-1], robot.robot.workspace.low[2]))
                controller.begin("", silent=True)
                robot.stop()
        finally:
            robot.close()
    outcome.figures |= {"lowest_point_m": [round(x, 4) for x in lowest], "tripped": tripped}


def _driver(robot: Rig) -> dict[str, object]:
    (commands,) = robot.robot.commands
    timeout = robot.robot.guard.driver_timeout
    return {
        "task": robot.robot.task,
        "command_topic": commands.topic,
        "command_timeout": timeout,
        "latency": 0.01,
        "velocity_noise": 0.01,
    }


def _low(height: float, floor: float) -> list[str]:
    return [f"a point of the arm was {height:.4f} m above the table, not {floor} m"] * (height < floor)


class Downhill:
    """Answers each State with speeds that lead down.

    Args:
        me: the node that it speaks by.
        seed: of what it tries.
    """

    def __init__(self, me: Peer, seed: int) -> None:
        self._task, self._random, self._me = ArmReach(), np.random.default_rng(seed), me
        self._way, self._until, self._held = "", 0.0, np.zeros(6)
        self._actions = me.publisher(Action, "action", STREAM_QOS)
        me.node.create_subscription(State, "state", self._on_state, STREAM_QOS)

    def begin(self, way: str, *, silent: bool) -> None:
        """Push from now on in one of WAYS; if silent, only for some of the time."""
        self._held = self._extreme(1)[0]
        share = self._random.uniform(0.1, 0.8) if silent else 1.0
        self._way, self._until = way, time.monotonic() + share * MOTION if way else 0.0

    def lowest(self, joints: NDArray[np.float64]) -> float:
        """Height of the lowest point for joint positions [6], by the MJCF, not the bridge's URDF [m]."""
        return float(self._task.body(joints)[..., 2].min())

    def _extreme(self, count: int) -> NDArray[np.float64]:
        signs = self._random.choice([-1.0, 1.0], (count, 6))
        return signs * self._task.spec.action_high

    def _on_state(self, state: State) -> None:
        if state.terminated or state.truncated or time.monotonic() > self._until:
            return
        if self._way == "worst":
            tried = self._extreme(TRIED)
            ahead = np.array(state.observation[:6]) + AHEAD * tried
            self._held = tried[self._task.body(ahead)[..., 2].min(-1).argmin()]
        elif self._way == "switching" and self._random.random() < 0.2:
            self._held = self._extreme(1)[0]
        rows = np.tile(self._held, (ROWS, 1))
        answer = Answer(bytes(state.world_id), state.episode, state.step, "downhill", rows)
        self._actions.publish(answer_to_msg(answer, self._me.node.get_clock().now().to_msg()))
