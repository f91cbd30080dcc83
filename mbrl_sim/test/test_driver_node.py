"""driver_node as a process of its own, over real DDS."""

import math
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool, Trigger

from mbrl_dynamics.ros.convert import doubles
from mbrl_dynamics.ros.testing import eventually, isolated_domain, peer, start_node

DRIVER = "mbrl_sim.ros.driver_node"


class Bridge:
    """The test in the place of a bridge."""

    def __init__(self, me, topic="effort_controller/commands"):
        self.me = me
        self.joints = me.listen(JointState, "joint_states", 10)
        self.diagnostics = me.listen(DiagnosticArray, "diagnostics", 10)
        self.publisher = me.publisher(Float64MultiArray, topic, 1)

    def send(self, *efforts):
        self.publisher.publish(Float64MultiArray(data=doubles(efforts)))

    @property
    def clock(self):
        return self.me.node.get_clock().now().nanoseconds

    def measured(self, condition, message):
        """The first measurement, of those still to come, that fulfils a condition."""
        seen = len(self.joints)
        eventually(lambda: any(map(condition, self.joints[seen:])), message)
        return next(filter(condition, self.joints[seen:]))

    def told(self, condition):
        """The newest diagnosis, once it fulfils a condition."""
        seen = len(self.diagnostics)
        found = []

        def look():
            found[:] = [array.status[0] for array in self.diagnostics[seen:] if condition(array.status[0])]
            return bool(found)

        eventually(look, "the diagnostics do not say so")
        return found[-1]


@contextmanager
def robot(namespace="", **parameters):
    with (
        isolated_domain(),
        start_node(DRIVER, parameters, namespace=namespace) as process,
        peer(namespace=namespace) as me,
    ):
        bridge = Bridge(me, parameters.get("command_topic", "effort_controller/commands"))
        bridge.process = process
        yield bridge


def stamp(message):
    return Time.from_msg(message.header.stamp).nanoseconds


def values(status):
    return {pair.key: pair.value for pair in status.values}


def test_a_command_moves_the_cart_and_home_brings_it_back():
    with robot(namespace="/robot1") as bridge:
        started = bridge.clock
        first = bridge.measured(lambda joints: stamp(joints) > started, "no joint_states")
        assert list(first.name) == ["slider", "hinge"]
        assert len(first.position) == len(first.velocity) == len(first.effort) == 2
        assert stamp(first) <= bridge.clock
        bridge.send(5.0)
        moved = bridge.measured(lambda joints: joints.position[0] > 0.5, "the cart does not move")
        assert moved.effort[0] == 5.0
        stamps = [stamp(joints) for joints in bridge.joints]
        assert stamps == sorted(set(stamps))
        bridge.send(math.nan)
        status = bridge.told(lambda status: values(status)["refused"] == "1")
        assert values(status)["accepted"] == "1"
        assert status.name == "/robot1/driver_node"
        answer = bridge.me.call(Trigger, "home", Trigger.Request())
        assert answer.success, answer.message
        home = bridge.measured(lambda joints: abs(joints.position[0]) < 0.2, "the cart is not at home")
        assert home.effort[0] == 0.0


def test_an_arm_follows_speeds_and_its_goal_goes_where_it_is_put():
    with robot(task="arm_reach", command_topic="velocity_controller/commands", command_timeout=0.5) as bridge:
        goals = bridge.me.listen(PoseStamped, "goal", 10)
        speeds = bridge.me.listen(TwistStamped, "goal_velocity", 10)
        bridge.measured(lambda joints: len(joints.name) == 6, "no joint_states")
        eventually(lambda: bool(goals) and bool(speeds), "nobody sees the goal")
        assert goals[0].header == speeds[0].header
        bridge.send(0.5, 0.0, 0.0, 0.0, 0.0, 0.0)
        bridge.measured(lambda joints: joints.velocity[0] > 0.4, "the arm does not turn")
        bridge.measured(lambda joints: abs(joints.velocity[0]) < 0.01, "it goes on without a command")
        mover = bridge.me.publisher(PoseStamped, "move_goal", 10)
        wanted = PoseStamped()
        wanted.pose.position.x, wanted.pose.position.z = 0.4, 0.25

        def moved():
            mover.publish(wanted)
            at, speed = goals[-1].pose.position, speeds[-1].twist.linear
            return np.allclose([at.x, at.y, at.z, speed.y], [0.4, 0.0, 0.25, 0.0], atol=1e-6)

        eventually(moved, "the goal is not moved")


def test_a_fault_stops_the_messages_until_it_is_over():
    with robot(command_topic="cart/efforts", command_timeout=0.1) as bridge:
        bridge.send(5.0)
        eventually(lambda: any(joints.effort[0] == 5.0 for joints in bridge.joints), "no command in force")
        bridge.measured(lambda joints: joints.effort[0] == 0.0, "the command does not time out")
        assert bridge.me.call(SetBool, "fault", SetBool.Request(data=True)).success
        begin = bridge.clock
        status = bridge.told(lambda status: values(status)["fault"] == "True")
        assert values(status)["timed_out"] == "True"
        assert (status.level, status.message) == (DiagnosticStatus.ERROR, "the drives have dropped out")
        answer = bridge.me.call(Trigger, "home", Trigger.Request())
        assert (answer.success, "dropped out" in answer.message) == (False, True)
        end = bridge.clock
        assert bridge.me.call(SetBool, "fault", SetBool.Request(data=False)).success
        bridge.measured(lambda joints: stamp(joints) > end, "no joint_states after the fault")
        assert not [joints for joints in bridge.joints if begin < stamp(joints) < end]
        assert bridge.process.stop(signal.SIGTERM) == 0
        assert "Traceback" not in bridge.process.output


@pytest.mark.parametrize(
    "parameter, sentence",
    [
        ({"task": "moonwalk"}, "unknown task 'moonwalk'; valid: "),
        ({"command_topic": "a b"}, "parameter 'command_topic' is 'a b', but it is no name of a topic"),
        ({"drop": 2.0}, "parameter 'drop' is 2.0, but it should be less than or equal to 1"),
    ],
)
def test_a_mistake_of_the_user_gets_one_sentence(parameter, sentence):
    with isolated_domain(), start_node(DRIVER, parameter) as process:
        assert process.wait() == 2
        assert sentence in process.output
        assert len(process.output.strip().splitlines()) == 1
