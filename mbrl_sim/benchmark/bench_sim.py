"""How fast sim_node is: free-running against a loop without ROS, and in lock-step with a trivial controller.

python mbrl_sim/benchmark/bench_sim.py [--quick] [FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from visualization_msgs.msg import MarkerArray

from mbrl_dynamics.ros.convert import doubles
from mbrl_dynamics.ros.node import STREAM_QOS
from mbrl_dynamics.ros.testing import NodeProcess, isolated_domain, start_node
from mbrl_msgs.msg import Action, State
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

WARM_UP = 1.0  # not measured [s]
FRAMES = CartpoleSwingup.action_repeat  # mj_steps in a control period


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Measure; each figure with what it is to be compared with."""
    seconds, rounds = (3.0, 1) if quick else (6.0, 3)
    free, loop = _free(seconds, rounds)
    bare = _with_context(lambda node: _answer(node, seconds), [sys.executable, __file__, "--echo"])
    lockstep = _with_context(
        lambda node: _answer(node, seconds), {"task": "cartpole_swingup", "max_steps": 10**9}
    )
    return [
        _figure("sim_free_running", free, "mj_step/s", "the same mj_step loop without ROS", loop),
        _figure("sim_lockstep", lockstep, "steps/s", "required: 500 control steps/s", 500.0),
        _figure("sim_lockstep_overhead", lockstep, "steps/s", "the same messages without a simulation", bare),
    ]


def _figure(name: str, value: float, unit: str, reference: str, reference_value: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "reference": reference,
        "reference_value": round(reference_value, 1),
    }


def _free(seconds: float, rounds: int) -> tuple[float, float]:
    """mj_steps a second of a free-running node with its topics heard, and of a plain loop, by turns."""
    nodes, loops = [], [_loop(seconds / 2)]
    for _ in range(rounds):
        nodes.append(
            _with_context(lambda node: _hear(node, seconds), {"task": "cartpole_swingup", "mode": "free"})
        )
        loops.append(_loop(seconds / 2))
    return statistics.median(nodes), statistics.median(loops)


def _loop(seconds: float) -> float:
    simulator = Simulator(CartpoleSwingup(), seed=0)
    model, data = simulator.model, simulator.data
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        mujoco.mj_step(model, data, 16 * FRAMES)
        steps += 16 * FRAMES
    return steps / (time.perf_counter() - begin)


def _with_context(measure: Any, world: dict[str, Any] | list[str]) -> float:
    """Measure with a node in a domain of its own, beside a sim_node (its parameters) or a command."""
    with isolated_domain():
        rclpy.init()
        node = Node("bench")
        process = (
            NodeProcess(world) if isinstance(world, list) else start_node("mbrl_sim.ros.sim_node", world)
        )
        try:
            with process:
                result: float = measure(node)
                return result
        finally:
            node.destroy_node()
            rclpy.shutdown()


def _hear(node: Node, seconds: float) -> float:
    """mj_steps a second of a free world, whose display topics are heard too."""
    seen: list[tuple[float, int]] = []
    node.create_subscription(
        State, "state", lambda msg: seen.append((time.perf_counter(), msg.step)), STREAM_QOS
    )
    node.create_subscription(JointState, "joint_states", lambda msg: None, 10)
    node.create_subscription(MarkerArray, "scene", lambda msg: None, 10)
    _spin(node, lambda: bool(seen) and seen[-1][0] - seen[0][0] > seconds + WARM_UP)
    seen = [entry for entry in seen if entry[0] - seen[0][0] > WARM_UP]
    (begin, first), (end, last) = seen[0], seen[-1]
    return (last - first) * FRAMES / (end - begin)


def _answer(node: Node, seconds: float) -> float:
    """Control steps a second of a lock-step world that always gets the same answer."""
    publisher = node.create_publisher(Action, "action", STREAM_QOS)
    answer = Action(controller_id="bench", horizon=1, values=doubles(np.zeros(1)))
    times: list[float] = []

    def on_state(msg: State) -> None:
        answer.world_id, answer.episode, answer.step = msg.world_id, msg.episode, msg.step
        publisher.publish(answer)
        times.append(time.perf_counter())

    node.create_subscription(State, "state", on_state, STREAM_QOS)
    _spin(node, lambda: bool(times) and times[-1] - times[0] > seconds + WARM_UP)
    times = [moment for moment in times if moment - times[0] > WARM_UP]
    return (len(times) - 1) / (times[-1] - times[0])


def _spin(node: Node, done: Any) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not done():
        executor.spin_once(timeout_sec=0.1)
    executor.remove_node(node)


def _echo() -> None:
    """The cheapest world there can be: a State for each Action."""
    rclpy.init()
    node = Node("echo")
    state = State(observation=doubles(np.zeros(5)), action=doubles(np.zeros(1)))
    publisher = node.create_publisher(State, "state", STREAM_QOS)
    answered = False

    def on_action(_: Action) -> None:
        nonlocal answered
        answered = True
        publisher.publish(state)

    def begin() -> None:
        if not answered:
            publisher.publish(state)

    node.create_subscription(Action, "action", on_action, STREAM_QOS)
    node.create_timer(0.25, begin)
    rclpy.spin(node)


def main() -> None:
    """Print the figures, and write them to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", nargs="?", type=Path, help="where to write the figures (JSON)")
    parser.add_argument("--quick", action="store_true", help="a shorter measurement")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    if arguments.echo:
        _echo()
        return
    text = json.dumps({"figures": figures(arguments.quick)}, indent=2)
    print(text)
    if arguments.file:
        arguments.file.write_text(text + "\n")


if __name__ == "__main__":
    main()
