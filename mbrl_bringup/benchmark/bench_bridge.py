"""Control of the arm at 100 Hz through driver_node and robot_bridge: does the bridge keep its time?

python tools/bench.py --only bench_bridge
python mbrl_bringup/benchmark/bench_bridge.py --minutes 10 --out docs/results/bridge.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from diagnostic_msgs.msg import DiagnosticArray

from mbrl_bringup.result import atomic_write, commit_id, machine_name
from mbrl_bringup.stack import share
from mbrl_dynamics.ros.convert import answer_to_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS, BaseNode, drain, run
from mbrl_dynamics.ros.testing import NodeProcess, Peer, eventually, isolated_domain, peer, start_node
from mbrl_dynamics.transition import Answer
from mbrl_msgs.action import Reset
from mbrl_msgs.msg import Action, GuardStatus, State
from mbrl_msgs.srv import Arm

RATE = 100.0  # of control [Hz]
SENSOR_RATE = 100.0  # of joint_states [Hz]
BRIDGE, DRIVER = "mbrl_bringup.ros.robot_bridge_node", "mbrl_sim.ros.driver_node"
WINDOW = 10.0  # of the bridge's own percentiles: a thousand periods [s]
MINUTES, QUICK_MINUTES = 0.5, 0.2


class Waver(BaseNode):
    """A controller that answers at once, five steps ahead: all joints swing a little."""

    def __init__(self) -> None:
        super().__init__("waver")
        self._actions = self.create_publisher(Action, "action", STREAM_QOS)
        self._states = self.create_subscription(State, "state", self.guarded(self._on_state), STREAM_QOS)

    def _on_state(self, msg: State) -> None:
        newest = drain(self._states, msg)[-1]
        when = (newest.step + np.arange(5)) / RATE
        speeds = 0.2 * np.cos(2.0 * math.pi * 0.5 * when)
        rows = np.repeat(speeds[:, None], 6, axis=1)
        answer = Answer(bytes(newest.world_id), newest.episode, newest.step, "waver", rows)
        self._actions.publish(answer_to_msg(answer, self.get_clock().now().to_msg()))


@dataclass(frozen=True)
class Figures:
    """What ten minutes of control come to."""

    minutes: float
    periods: int
    missed_deadlines: int  # periods that the bridge began more than half of one late
    late_periods: int  # without an answer of their own
    command_ms_p99: float  # from when a period is due to its command sent: the worst thousand periods
    command_ms_p99_median: float  # the median over windows of a thousand
    period_late_ms_p99: float  # how late a period began, the worst thousand periods
    cpu: float  # of the bridge, share of a core


def measure(minutes: float) -> Figures:
    """Control the arm for so long.

    Raises:
        AssertionError: the robot did not begin to move, or stopped.
    """
    with tempfile.TemporaryDirectory() as folder, isolated_domain(), _robot(Path(folder)) as (me, bridge):
        diagnoses = me.listen(DiagnosticArray, "diagnostics", 10)
        guards = me.listen(GuardStatus, "guard_status", LATCHED_QOS)
        _begin(me, guards)
        time.sleep(WINDOW + 1.0)  # until the start is forgotten
        process = psutil.Process(bridge.pid)
        before, cpu, begin = _values(diagnoses), _cpu(process), time.monotonic()
        windows = []
        while (left := begin + 60.0 * minutes - time.monotonic()) > 0:
            time.sleep(min(left, WINDOW))
            windows.append(_values(diagnoses))
            assert guards[-1].phase == GuardStatus.RUNNING, guards[-1]
        seconds = time.monotonic() - begin
        spent = (_cpu(process) - cpu) / seconds
    sent = [float(window["command_ms_p99"]) for window in windows]
    return Figures(
        minutes=round(seconds / 60.0, 2),
        periods=int(windows[-1]["step"]) - int(before["step"]),
        missed_deadlines=int(windows[-1]["missed_deadlines"]) - int(before["missed_deadlines"]),
        late_periods=int(windows[-1]["late_periods"]) - int(before["late_periods"]),
        command_ms_p99=max(sent),
        command_ms_p99_median=float(np.median(sent)),
        period_late_ms_p99=max(float(window["period_late_ms_p99"]) for window in windows),
        cpu=round(spent, 4),
    )


@contextmanager
def _robot(folder: Path) -> Iterator[tuple[Peer, NodeProcess]]:
    """Driver, bridge and controller; a person, and the bridge's process."""
    content = yaml.safe_load(share("config/robots/arm.yaml").read_text())
    content |= {"action_repeat": 1, "max_steps": 1_000_000}
    content["description"] = str(share("config/robots/arm.urdf"))
    file = folder / "arm.yaml"
    file.write_text(yaml.safe_dump(content))
    driver = {
        "task": content["task"],
        "rate": SENSOR_RATE,
        "command_topic": content["commands"][0]["topic"],
        "command_timeout": content["guard"]["driver_timeout"],
    }
    with (
        start_node(DRIVER, driver),
        start_node(BRIDGE, {"robot": str(file)}) as bridge,
        NodeProcess([sys.executable, __file__, "--controller"]),
        peer("person") as me,
    ):
        yield me, bridge


def _begin(me: Peer, guards: list[GuardStatus]) -> None:
    """Arm, and begin an episode."""
    eventually(lambda: bool(guards) and not guards[-1].refusal, "the guard cannot be armed")
    assert me.call(Arm, "arm", Arm.Request(armed=True)).error_msg == ""
    goal = me.action_client(Reset, "reset").send_goal_async(Reset.Goal(seed=-1))
    eventually(goal.done, "the bridge does not answer")
    assert goal.result().accepted
    eventually(lambda: guards[-1].phase == GuardStatus.RUNNING, "no episode begins")


def _values(diagnoses: list[DiagnosticArray]) -> dict[str, str]:
    """What the bridge said last of itself."""
    eventually(lambda: any(_of_bridge(message) for message in diagnoses), "the bridge says nothing of itself")
    newest = next(message for message in reversed(diagnoses) if _of_bridge(message))
    return {pair.key: pair.value for pair in newest.status[0].values}


def _of_bridge(message: DiagnosticArray) -> bool:
    return "robot_bridge" in message.status[0].name


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Of half a minute."""
    got = measure(QUICK_MINUTES if quick else MINUTES)
    return [
        _figure("bridge_command_p99", got.command_ms_p99, "ms", "the goal", 2.0),
        _figure("bridge_missed_deadlines", got.missed_deadlines, "periods", "the goal", 0.0),
        _figure("bridge_cpu", got.cpu, "cores", "the goal", 0.15),
    ]


def _figure(name: str, value: float, unit: str, reference: str, reference_value: float) -> dict[str, Any]:
    told = {"name": name, "value": value, "unit": unit}
    return {**told, "reference": reference, "reference_value": reference_value}


def main() -> int:
    """Measure for long, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("bridge.json"))
    parser.add_argument("--controller", action="store_true", help=argparse.SUPPRESS)
    known, _ = parser.parse_known_args()
    if known.controller:
        return run(Waver)
    got = measure(known.minutes)
    command = f"python mbrl_bringup/benchmark/bench_bridge.py --minutes {known.minutes:g}"
    told = {
        **vars(got),
        "rate_hz": RATE,
        "sensor_rate_hz": SENSOR_RATE,
        "load": round(os.getloadavg()[0], 2),
        "commit": commit_id(),
        "machine": machine_name(),
        "command": command,
    }
    known.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(known.out, json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
