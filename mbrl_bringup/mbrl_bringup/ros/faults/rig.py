"""A robot to do harm to: driver, bridge, recorder, controller, a process each; and a person who arms."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from std_srvs.srv import Trigger

from mbrl_bringup.robot_config import RobotConfig, load
from mbrl_bringup.ros.faults.judge import Heard, Limits, Record, after, decoded, settled
from mbrl_bringup.ros.faults.stand_in import Order
from mbrl_bringup.stack import share
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.node import LATCHED_QOS, wait_until
from mbrl_dynamics.ros.testing import NodeProcess, Peer, isolated_domain, peer, start_node
from mbrl_msgs.action import Reset
from mbrl_msgs.msg import GuardStatus, LearnerStatus, WorldStatus
from mbrl_msgs.srv import Arm

BRIDGE, DRIVER = "mbrl_bringup.ros.robot_bridge_node", "mbrl_sim.ros.driver_node"
PLANNER, LEARNER = "mbrl_planner.ros.planner_node", "mbrl_dynamics.ros.dynamics_node"
PATIENCE = 90.0  # a hang guard [s]
DAMPING = 2.0  # of the safe command, as in the cart-pole's file


class HangError(Exception):
    """The robot did not come to where a trial can begin."""


def robot_file(folder: Path, robot: str = "cartpole", **guard: float) -> Path:
    """An installed robot's file, armed again sooner, with some settings of the guard changed."""
    original = share(f"config/robots/{robot}.yaml")
    content = yaml.safe_load(original.read_text())
    if "description" in content:
        content["description"] = str(original.with_name(content["description"]))
    content["guard"] |= {"healthy_for": 0.2, **guard}
    content["beginning"]["settle"] = 0.0
    path = folder / "robot.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def limits_of(robot: RobotConfig) -> Limits:
    """What every command to a robot must be."""
    actuators = robot.action.values()
    return Limits(np.array([a.low for a in actuators]), np.array([a.high for a in actuators]))


class Processes:
    """Stand-ins from one `stand_in` process; all are killed at the end."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "mbrl_bringup.ros.faults.stand_in"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._pids: set[int] = set()

    def start(self, order: Order) -> int:
        """Fork one; its process id."""
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(json.dumps(asdict(order)) + "\n")
        self._parent.stdin.flush()
        pid = int(self._parent.stdout.readline())
        self._pids.add(pid)
        return pid

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one that was started here."""
        assert pid in self._pids
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if number == signal.SIGKILL:
            self._pids.discard(pid)

    def close(self) -> None:
        """End all of them."""
        for pid in list(self._pids):
            self.kill(pid)
        self._parent.kill()
        self._parent.wait()


class Rig:
    """One robot in a namespace of the current domain. Use `rig` to make one.

    Attributes:
        me: the person, as a node.
        record: what the recorder heard.
        limits: what every command must be.
        robot: the robot's file.
        guards, worlds: statuses, newest last.
    """

    def __init__(
        self, me: Peer, folder: Path, namespace: str, settings: Mapping[str, float], robot: str = "cartpole"
    ) -> None:
        self.me, self.folder, self.namespace = me, folder, namespace
        self.file = robot_file(folder, robot, **settings)
        self.robot: RobotConfig = load(self.file)
        self.limits = limits_of(self.robot)
        self.period: float = make_task(self.robot.task).spec.control_period
        self.guards = me.listen(GuardStatus, "guard_status", LATCHED_QOS)
        self.worlds = me.listen(WorldStatus, "world_status", LATCHED_QOS)
        self.learners = me.listen(LearnerStatus, "learner_status", LATCHED_QOS)
        self._arm = me.node.create_client(Arm, "arm")
        self._stop = me.node.create_client(Trigger, "stop")
        self._reset = me.action_client(Reset, "reset")
        self._started = ExitStack()
        self.driver: NodeProcess | None = None
        self.bridge: NodeProcess | None = None

    # Processes ----------------------------------------------------------------------------------------------

    def start(self, module: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> NodeProcess:
        """A node of this robot."""
        node = start_node(module, parameters, namespace=self.namespace, **more)
        return self._started.enter_context(node)

    def start_robot(self, **driver: Any) -> None:
        """Driver, bridge and recorder."""
        path = self.folder / "record.jsonl"
        command = [sys.executable, "-m", "mbrl_bringup.ros.faults.recorder", str(path), "--ros-args"]
        command += ["-r", f"__ns:={self.namespace}"] if self.namespace else []
        self._started.enter_context(NodeProcess(command))
        timeout = self.robot.guard.driver_timeout
        self.driver = self.start(DRIVER, {"command_timeout": timeout, **driver})
        sim = {key: value for key, value in driver.items() if key == "use_sim_time"}
        self.start_bridge(**sim)
        self.need(path.exists, "the recorder does not start")
        self.record = Record(path)
        self.need(lambda: bool(self.record.update().joints), "the driver says nothing")

    def start_bridge(self, **parameters: Any) -> NodeProcess:
        """The bridge, or another one after it."""
        self.guards.clear()
        self.bridge = self.start(BRIDGE, {"robot": str(self.file), **parameters})
        return self.bridge

    def close(self) -> None:
        """End everything."""
        self._started.close()

    # A person -----------------------------------------------------------------------------------------------

    def need(self, condition: Callable[[], bool], message: str, patience: float = PATIENCE) -> None:
        """Wait for a condition.

        Raises:
            HangError: it does not come true.
        """
        if not wait_until(condition, patience, 0.005):
            said = self.guards[-1] if self.guards else None
            raise HangError(f"{message} (guard: {said}, worlds: {self.worlds[-1:]})")

    @property
    def phase(self) -> int:
        """Of the guard; -1 = it has said nothing."""
        return self.guards[-1].phase if self.guards else -1

    def arm(self, *, armed: bool = True) -> str:
        """Ask the bridge; why it refuses."""
        answer = self._done(self._arm, Arm.Request(armed=armed))
        return answer.error_msg if answer is not None else "no answer"

    def stop(self) -> None:
        """End motion."""
        self._done(self._stop, Trigger.Request())

    def _done(self, client: Any, request: Any, patience: float = 5.0) -> Any:
        if not client.wait_for_service(timeout_sec=patience):
            return None
        future = client.call_async(request)
        return future.result() if wait_until(future.done, patience, 0.002) else None

    def reset(self) -> bool:
        """Ask for an episode; whether it began."""
        if not self._reset.wait_for_server(timeout_sec=5.0):
            return False
        goal = self._reset.send_goal_async(Reset.Goal(seed=-1))
        if not wait_until(goal.done, 5.0, 0.002) or not goal.result().accepted:
            return False
        result = goal.result().get_result_async()
        return wait_until(result.done, 3.0, 0.002) and result.result().result.error_code == Reset.Result.OK

    def armed(self) -> None:
        """Armed, and at rest."""
        self.need(self._try_to_arm, "it cannot be armed")

    def _try_to_arm(self) -> bool:
        if self.phase in (GuardStatus.ARMED, GuardStatus.RUNNING):
            return True
        if self.phase >= 0 and self.arm() == "":
            wait_until(lambda: self.phase in (GuardStatus.ARMED, GuardStatus.RUNNING), 1.0, 0.002)
        return self.phase in (GuardStatus.ARMED, GuardStatus.RUNNING)

    def moving(self, *, coded: bool = True, patience: float = PATIENCE) -> None:
        """Have a controller move the robot: its last three commands are a controller's."""
        self.need(partial(self._try_to_move, coded), "nothing moves", patience)

    def _try_to_move(self, coded: bool) -> bool:
        if not self._try_to_arm():
            return False
        if self.phase == GuardStatus.ARMED and not self.reset():
            return False
        wait_until(lambda: self.led(coded) or self.phase != GuardStatus.RUNNING, 2.0)
        return self.phase == GuardStatus.RUNNING and self.led(coded)

    def keep_moving(self) -> bool:
        """Arm and ask for episodes where that is needed, without waiting; whether an episode is going on."""
        return self._try_to_arm() and (self.phase == GuardStatus.RUNNING or self.reset())

    def led(self, coded: bool = True) -> bool:
        """Whether the last three commands are a controller's answers."""
        record = self.record.update()
        since = time.monotonic() - 8 * self.period
        if not coded:
            states = after(record.states[-3:], since)
            return len(states) == 3 and all(state.said[7] for state in states)
        newest = after(record.commands[-3:], since)
        if len(newest) < 3:
            return False
        codes = [decoded(command.said[0]) for command in newest]
        return all(code is not None and code[1] == 0 for code in codes)

    # Judging ------------------------------------------------------------------------------------------------

    def commands(self, since: float) -> list[Heard]:
        """Those that have come since then."""
        return after(self.record.update().commands, since)

    def settled(self, since: float) -> float:
        """When the commands after a moment have become safe for good."""
        return settled(self.commands(since), self.record.joints, DAMPING)

    def wait_periods(self, periods: float) -> None:
        """Let so many control periods pass."""
        time.sleep(periods * self.period)


def _company(me: Peer) -> bool:
    return len(me.node.get_node_names()) > 1


@contextmanager
def quiet_domain() -> Iterator[None]:
    """A ROS domain in which nobody speaks, not even what an earlier run may have left behind."""
    with ExitStack() as noisy:
        while True:
            domain = noisy.enter_context(isolated_domain())
            with peer("listener") as me:
                alone = not wait_until(partial(_company, me), 1.0)
            if alone:
                yield
                return
            print(f"domain {domain} is not quiet", flush=True)


@contextmanager
def robot_in(
    namespace: str = "", driver: Mapping[str, Any] | None = None, **settings: float
) -> Iterator[tuple[Rig, Processes]]:
    """A robot in the domain that is current, and a source of stand-ins.

    Args:
        namespace: of the robot.
        driver: parameters of the stand-in for its driver.
        settings: of the guard.
    """
    with peer("person", namespace) as me, tempfile.TemporaryDirectory() as folder:
        processes = Processes()
        robot = Rig(me, Path(folder), namespace, settings)
        try:
            robot.start_robot(**(driver or {}))
            yield robot, processes
        finally:
            processes.close()
            robot.close()


@contextmanager
def rig(driver: Mapping[str, Any] | None = None, **settings: Any) -> Iterator[tuple[Rig, Processes]]:
    """A robot in a domain of its own; see `robot_in`."""
    with quiet_domain(), robot_in(driver=driver, **settings) as both:
        yield both
