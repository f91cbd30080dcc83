"""How long policy_node takes to answer a State, alone and while it learns: its own step, from the State taken
to the Action published (the goal is a median under 2 ms), and the way there and back over DDS.

python tools/bench.py --only bench_policy
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.convert import spec_to_msg, transition_to_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS
from mbrl_dynamics.ros.testing import NodeProcess, isolated_domain, start_node
from mbrl_dynamics.transition import Transition
from mbrl_msgs.msg import Action, PolicyStatus, Spec, State
from mbrl_planner.agent_trainer import save
from mbrl_planner.agents.sac import SAC, SACConfig

TASK = "cartpole_swingup"


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds of a step in the node, and from sending a State to having its Action."""
    count = 300 if quick else 3000
    times = _answers_of_nobody(count)
    bare, goal = "a bare node that answers at once", "the goal"
    least = statistics.median(times), sorted(times)[int(0.99 * (count - 1))]
    result = []
    for suffix, learn in (("", False), ("_while_learning", True)):
        times, (median, p99) = _answers(count, learn=learn)
        result.append(_figure(f"policy_step{suffix}_median", median, goal, 2.0))
        result.append(_figure(f"policy_step{suffix}_p99", p99, None, None))
        result.append(_figure(f"policy_round_trip{suffix}_median", statistics.median(times), bare, least[0]))
        late = sorted(times)[int(0.99 * (count - 1))]
        result.append(_figure(f"policy_round_trip{suffix}_p99", late, bare, least[1]))
    return result


def _answers_of_nobody(count: int) -> list[float]:
    """Times of answers without a policy, by the least that rclpy needs [ms]."""
    with isolated_domain(), NodeProcess([sys.executable, __file__, "--echo"]):
        rclpy.init()
        try:
            return _World(make_task(TASK).spec).play(count, learn=False)
        finally:
            rclpy.try_shutdown()


def _echo() -> None:
    """A node that answers each State with nothing in it."""
    rclpy.init()
    node = Node("echo")
    actions = node.create_publisher(Action, "action", STREAM_QOS)
    answer = Action(horizon=1, values=[0.0])

    def on_state(msg: State) -> None:
        answer.world_id, answer.episode, answer.step = msg.world_id, msg.episode, msg.step
        actions.publish(answer)

    node.create_subscription(State, "state", on_state, STREAM_QOS)
    rclpy.spin(node)


def _answers(count: int, *, learn: bool) -> tuple[list[float], tuple[float, float]]:
    """Times of answers of a feed-forward policy of 256 x 256 units [ms]; and of its own newest thousand steps
    the median and 99 %, as the node's diagnostics say.
    """
    spec = make_task(TASK).spec
    agent = SAC(spec, SACConfig())
    agent.updates = 1  # as if it had learned
    with tempfile.TemporaryDirectory() as folder, isolated_domain():
        save(Path(folder), agent, "sac", 0, 0, {})
        node = {"task": TASK, "agent": "sac", "checkpoint": folder, "follow": True, "learn": learn}
        node |= {"sac.random_steps": 100, "sac.replay_ratio": 1000.0}  # it always has something to learn
        with start_node("mbrl_planner.ros.policy_node", node):
            rclpy.init()
            try:
                world = _World(spec)
                return world.play(count, learn=learn), world.own_steps()
            finally:
                rclpy.try_shutdown()


class _World:
    """A world that only asks, and takes the time."""

    def __init__(self, spec: Any) -> None:
        self.spec, self.id = spec, uuid.uuid4().bytes
        self.node = Node("bench_world")
        self.answered = -1
        self.updates = 0
        self.diagnostics: dict[str, str] = {}  # the newest of policy_node
        specs = self.node.create_publisher(Spec, "spec", LATCHED_QOS)
        self.states = self.node.create_publisher(State, "state", STREAM_QOS)
        self.node.create_subscription(Action, "action", self._on_action, STREAM_QOS)
        self.node.create_subscription(PolicyStatus, "policy_status", self._on_status, LATCHED_QOS)
        self.node.create_subscription(DiagnosticArray, "diagnostics", self._on_diagnostics, 10)
        specs.publish(spec_to_msg(spec, self.id))
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def play(self, count: int, *, learn: bool) -> list[float]:
        """Ask so many times, once it answers (and learns)."""
        rng = np.random.default_rng(0)
        while self.answered < 0:
            self._ask(0, rng, patience=0.5)
        step = 1
        while step < 200 or (learn and self.updates < 100):
            self._ask(step, rng)
            step += 1
        return [self._ask(step + i, rng) for i in range(count)]

    def own_steps(self) -> tuple[float, float]:
        """Median and 99 % of the node's own steps, of diagnostics yet to come [ms]."""
        self.diagnostics = {}
        while not self.diagnostics:
            self.executor.spin_once(timeout_sec=0.1)
        median, p99 = (float(self.diagnostics[f"State to answer {name} [ms]"]) for name in ("median", "p99"))
        return median, p99

    def _ask(self, step: int, rng: np.random.Generator, patience: float = 60.0) -> float:
        spec = self.spec
        obs, action = rng.normal(size=spec.observation_dim), np.zeros(spec.action_dim)
        state = Transition(self.id, 1, step, obs, action, 0.0, first=step == 0)
        msg = transition_to_msg(state, spec)
        begin = time.perf_counter()
        self.states.publish(msg)
        while self.answered != step and time.perf_counter() - begin < patience:
            self.executor.spin_once(timeout_sec=0.1)
        took = 1e3 * (time.perf_counter() - begin)
        time.sleep(0.002)  # what the node does after an answer is not counted
        return took

    def _on_action(self, msg: Action) -> None:
        self.answered = msg.step

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name.endswith("policy_node"):
                self.diagnostics = {value.key: value.value for value in status.values}

    def _on_status(self, msg: PolicyStatus) -> None:
        self.updates = msg.updates


def _figure(name: str, value: float, reference: str | None, reference_value: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 3),
        "unit": "ms",
        "reference": reference,
        "reference_value": reference_value,
    }


if __name__ == "__main__":
    if "--echo" in sys.argv:
        _echo()
    for figure in figures():
        print(figure)
