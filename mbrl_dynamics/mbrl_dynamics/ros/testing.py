"""Helpers for tests that run real nodes as real processes over real DDS, each test in its own ROS domain."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import rclpy
import yaml
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS, wait_until

M = TypeVar("M")

DOMAINS = range(1, 102)  # beyond 101 the ports that DDS derives may be taken by others
HANG = 60.0  # guards against a hang [s]; nothing is asserted about time


@contextmanager
def isolated_domain() -> Iterator[int]:
    """Lend a ROS domain id that no other test run on this machine uses, and put it into the environment.

    Nodes started inside (`start_node`, `peer`) talk to one another and to nobody else.

    Raises:
        RuntimeError: all domains are taken.
    """
    folder = Path(tempfile.gettempdir()) / f"mbrl_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for domain in DOMAINS:
        with (folder / str(domain)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            with _environment(ROS_DOMAIN_ID=str(domain), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST"):
                yield domain
            return
    raise RuntimeError(f"all of {len(DOMAINS)} ROS domains are in use")


class NodeProcess:
    """A node in a process (and process group) of its own. As a context manager it leaves nothing behind.

    Attributes:
        pid: its process id.
    """

    def __init__(self, command: list[str], parameters: Mapping[str, Any] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mbrl_node_"))
        if parameters:
            file = self._folder / "params.yaml"
            file.write_text(yaml.safe_dump({"/**": {"ros__parameters": dict(parameters)}}))
            command = [*command, "--params-file", str(file)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"PYTHONFAULTHANDLER": "1"},
            )
        self.pid = self._process.pid

    @property
    def _log(self) -> Path:
        return self._folder / "output.log"

    @property
    def output(self) -> str:
        """What it has printed so far, stdout and stderr together."""
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process; nothing happens if it has ended already."""
        if self.alive:
            os.kill(self.pid, number)

    def wait(self, timeout: float = HANG) -> int:
        """Wait for its end; returns the exit code (-9 after SIGKILL).

        Raises:
            AssertionError: it is still there after `timeout` [s]; holds what it printed, and where its
                threads stood.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGABRT)  # faulthandler writes where each thread stands
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
            raise AssertionError(f"still running after {timeout} s:\n{self.output}") from None

    def stop(self, number: int = signal.SIGINT, timeout: float = HANG) -> int:
        """Send a signal and wait; returns the exit code."""
        self.kill(number)
        return self.wait(timeout)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(f"--- output of process {self.pid}:\n{self.output}", file=sys.stderr)
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder)


def start_node(
    module: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    namespace: str = "",
    remappings: Mapping[str, str] | None = None,
) -> NodeProcess:
    """Start a node, for example `start_node("mbrl_sim.ros.sim_node", {"task": "pendulum"})`.

    Use it as a context manager, inside `isolated_domain`.
    """
    command = [sys.executable, "-m", module, "--ros-args"]
    command += ["-r", f"__node:={name}"] if name else []
    command += ["-r", f"__ns:={namespace}"] if namespace else []
    for source, target in (remappings or {}).items():
        command += ["-r", f"{source}:={target}"]
    return NodeProcess(command, parameters)


class Peer:
    """A node inside the test itself, spun by a thread; publishes, listens and calls."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def listen(self, kind: type[M], topic: str, qos: QoSProfile = STREAM_QOS) -> list[M]:
        """Messages of a topic, in a list that grows as they come."""
        messages: list[M] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def publisher(self, kind: type, topic: str, qos: QoSProfile = STREAM_QOS, *, wait_for: int = 1) -> Any:
        """A publisher, handed out once `wait_for` subscribers are matched."""
        publisher = self.node.create_publisher(kind, topic, qos)
        eventually(lambda: publisher.get_subscription_count() >= wait_for, f"no subscriber of {topic}")
        return publisher

    def action_client(self, kind: type, name: str) -> ActionClient:
        """A client of an action, made in the thread that spins.

        rclpy shows an action client to the executor before it is complete, which may end the executor.
        """
        task = self.node.executor.create_task(ActionClient, self.node, kind, name)
        eventually(task.done, f"no client of {name}")
        return task.result()

    def call(self, kind: type, service: str, request: Any) -> Any:
        """Call a service and wait for its response."""
        client = self.node.create_client(kind, service)
        assert client.wait_for_service(timeout_sec=HANG), f"no service {service}"
        future = client.call_async(request)
        eventually(future.done, f"no response from {service}")
        return future.result()


@contextmanager
def peer(name: str = "test_peer", namespace: str = "") -> Iterator[Peer]:
    """A node of the test's own, in the domain of `isolated_domain`."""
    context = Context()
    rclpy.init(context=context)
    node = Node(name, context=context, namespace=namespace or None)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=_spin, args=(executor,), daemon=True)
    thread.start()
    try:
        yield Peer(node)
    finally:
        executor.shutdown()
        thread.join(HANG)
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def eventually(condition: Callable[[], bool], message: str, timeout: float = HANG) -> None:
    """Wait until a condition comes true.

    Raises:
        AssertionError: it did not, within `timeout` [s] (a hang guard).
    """
    assert wait_until(condition, timeout), f"{message} (within {timeout} s)"


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        with suppress(ExternalShutdownException):
            executor.spin()
    except InvalidHandle:  # a callback ended while the executor was being shut down
        if not executor._is_shutdown:
            raise


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


__all__ = [
    "HANG",
    "LATCHED_QOS",
    "STREAM_QOS",
    "NodeProcess",
    "Peer",
    "eventually",
    "isolated_domain",
    "peer",
    "start_node",
]
