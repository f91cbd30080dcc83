"""Commands as the messages that ros2_control and mobile bases take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from mbrl_bringup.robot_config import CommandTopic, RobotConfig
from mbrl_bringup.robot_readings import Array
from mbrl_dynamics.ros.convert import doubles
from mbrl_dynamics.spec import Spec

COMMAND_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
_FIELDS = {"position": "positions", "velocity": "velocities", "effort": "effort"}  # of a trajectory's point

Fill = Callable[[Any, Array], None]  # writes the values of a topic's joints into a message


class Commands:
    """The command topics of a robot, which belong to the bridge alone.

    Args:
        node: whose publishers they are.
        robot: its file, checked.
        spec: of its task.
    """

    def __init__(self, node: Node, robot: RobotConfig, spec: Spec) -> None:
        actuators = [robot.action[element.name] for element in spec.action]
        order = {actuator.joint: i for i, actuator in enumerate(actuators)}
        kinds = {actuator.joint: actuator.kind for actuator in actuators}
        self._node = node
        self._topics = [
            _Topic(node, topic, [order[joint] for joint in topic.joints], kinds, spec.control_period)
            for topic in robot.commands
        ]

    def send(self, values: Array) -> None:
        """Publish one command [A], in the order of the Spec's action."""
        stamp = self._node.get_clock().now().to_msg()
        for topic in self._topics:
            topic.send(values, stamp)

    def others(self) -> int:
        """How many publishers beside ours the command topics have."""
        return sum(max(self._node.count_publishers(topic.name) - 1, 0) for topic in self._topics)


class _Topic:
    def __init__(
        self, node: Node, topic: CommandTopic, places: list[int], kinds: Mapping[str, str], period: float
    ) -> None:
        kind, self._fill = _FORMS[topic.type](topic.joints, kinds, period)
        self._message, self._places = kind(), places
        self._publisher = node.create_publisher(kind, topic.topic, COMMAND_QOS)
        self.name = node.resolve_topic_name(topic.topic)

    def send(self, values: Array, stamp: Any) -> None:
        if hasattr(self._message, "header"):
            self._message.header.stamp = stamp
        self._fill(self._message, values[self._places])
        self._publisher.publish(self._message)


def _array(joints: tuple[str, ...], kinds: Mapping[str, str], period: float) -> tuple[type, Fill]:
    def fill(message: Any, values: Array) -> None:
        message.data = doubles(values)

    return Float64MultiArray, fill


def _trajectory(joints: tuple[str, ...], kinds: Mapping[str, str], period: float) -> tuple[type, Fill]:
    """One point, to be reached at the end of the period."""
    wait = Duration(sec=int(period), nanosec=round(period % 1.0 * 1e9))

    def fill(message: Any, values: Array) -> None:
        message.joint_names = list(joints)
        point = JointTrajectoryPoint(time_from_start=wait)
        setattr(point, _FIELDS[kinds[joints[0]]], doubles(values))
        message.points = [point]

    return JointTrajectory, fill


def _joint_state(joints: tuple[str, ...], kinds: Mapping[str, str], period: float) -> tuple[type, Fill]:
    def fill(message: Any, values: Array) -> None:
        message.name = list(joints)
        setattr(message, kinds[joints[0]], doubles(values))

    return JointState, fill


def _twist(joints: tuple[str, ...], kinds: Mapping[str, str], period: float) -> tuple[type, Fill]:
    return Twist, _into_twist(joints, lambda message: message)


def _twist_stamped(joints: tuple[str, ...], kinds: Mapping[str, str], period: float) -> tuple[type, Fill]:
    return TwistStamped, _into_twist(joints, lambda message: message.twist)


def _into_twist(joints: tuple[str, ...], twist: Callable[[Any], Any]) -> Fill:
    """The joints are the twist's components, for example "linear.x" and "angular.z"."""
    parts = [joint.split(".") for joint in joints]

    def fill(message: Any, values: Array) -> None:
        for (part, axis), value in zip(parts, values.tolist(), strict=True):
            setattr(getattr(twist(message), part), axis, value)

    return fill


_FORMS: dict[str, Callable[[tuple[str, ...], Mapping[str, str], float], tuple[type, Fill]]] = {
    "std_msgs/Float64MultiArray": _array,
    "trajectory_msgs/JointTrajectory": _trajectory,
    "sensor_msgs/JointState": _joint_state,
    "geometry_msgs/Twist": _twist,
    "geometry_msgs/TwistStamped": _twist_stamped,
}
