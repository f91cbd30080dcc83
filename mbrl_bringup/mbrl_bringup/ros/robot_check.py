"""`mbrl check-robot`: listens to a robot, and prints where its file is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import Image

from mbrl_bringup.robot_check import Heard, Row, compare
from mbrl_bringup.robot_config import RobotConfig, check_robot, find, task_of
from mbrl_bringup.ros.robot_bridge_node import MESSAGES
from mbrl_bringup.ros.visit import visiting
from mbrl_dynamics.ros.convert import seconds

WRONG = 1  # exit code
DISCOVERY = 2.0  # until all topics are known [s]


def check(name: str, namespace: str, wait: float) -> int:
    """Listen for so long [s] and print the table; returns the exit code, 1 if something is wrong.

    Raises:
        UserError: the file is not what it should be.
    """
    robot = find(name)
    spec = task_of(robot).spec
    check_robot(robot, spec)
    with visiting("mbrl_check_robot", namespace) as node:
        ear = _Ear(node, robot)
        ear.listen(DISCOVERY + wait)
        rows = compare(robot, spec, ear.heard(), ear.services(), ear.bridge())
    _print(rows)
    return 0 if all(row.ok for row in rows) else WRONG


class _Ear:
    """Subscribes all sources; counts what comes after discovery."""

    def __init__(self, node: Node, robot: RobotConfig) -> None:
        self._node = node
        kinds = {source.topic: MESSAGES[source.type] for source in robot.sources.values()}
        kinds |= {camera.topic: Image for camera in robot.cameras.values()}
        self._topics = {topic: Heard() for topic in kinds}
        self._topics |= {command.topic: Heard() for command in robot.commands}
        self._service = robot.beginning.service
        self._begin = time.monotonic() + DISCOVERY
        qos = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        for topic, kind in kinds.items():
            node.create_subscription(kind, topic, self._hearing(topic), qos)

    def _hearing(self, topic: str) -> Callable[[Any], None]:
        heard = self._topics[topic]

        def hear(message: Any) -> None:
            now = time.monotonic()
            if now >= self._begin:
                heard.arrivals.append(now)
            heard.newest = message
            stamp = seconds(message.header.stamp)
            if stamp:
                heard.skew = stamp - time.time()

        return hear

    def listen(self, wait: float) -> None:
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        end = time.monotonic() + wait
        while (left := end - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=min(left, 0.1))
        executor.shutdown()

    def heard(self) -> dict[str, Heard]:
        """What became of each topic."""
        types = dict(self._node.get_topic_names_and_types())
        for topic, heard in self._topics.items():
            full = self._node.resolve_topic_name(topic)
            heard.types = tuple(name.replace("/msg/", "/") for name in types.get(full, ()))
            infos = self._node.get_publishers_info_by_topic(full)
            heard.publishers = len(infos)
            heard.subscribers = self._node.count_subscribers(full)
            reliable = [info.qos_profile.reliability is ReliabilityPolicy.RELIABLE for info in infos]
            heard.reliable = all(reliable) if reliable else None
        return self._topics

    def services(self) -> list[str]:
        """The homing service, if it is there."""
        full = self._node.resolve_service_name(self._service) if self._service else ""
        there = full in dict(self._node.get_service_names_and_types())
        return [self._service] if there else []

    def bridge(self) -> bool:
        """Whether a bridge runs."""
        return "robot_bridge" in self._node.get_node_names()


def _print(rows: list[Row]) -> None:
    table = Table(title="the robot's file against the robot", title_justify="left")
    for column in ("", "what", "wanted", "found"):
        table.add_column(column)
    for row in rows:
        table.add_row("ok" if row.ok else "WRONG", row.what, row.wanted, row.found)
    Console().print(table)
    wrong = sum(not row.ok for row in rows)
    print("all is as the file says" if not wrong else f"{wrong} of {len(rows)} are not as the file says")
