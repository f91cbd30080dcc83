"""A stand-in for a robot with ros2_control: `joint_states`, a topic of commands, `home` and `fault`.

Where there is something to be reached, `goal` and `goal_velocity` tell where it is, as a camera would,
and `move_goal` puts it elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.exceptions import InvalidTopicNameException
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool, Trigger

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.ros.convert import doubles, vector
from mbrl_dynamics.ros.node import BaseNode, run
from mbrl_dynamics.ros.params import Params
from mbrl_sim.driver import Driver, DriverConfig
from mbrl_sim.ros.goal import goal_messages, position_of

_STEADY = 0.02  # the physics is looked after this often, however seldom it is measured [s]

Response = TypeVar("Response", Trigger.Response, SetBool.Response)


class DriverNode(BaseNode):
    """A Driver with topics, in real time. It speaks standard messages only, as a robot would."""

    def __init__(self) -> None:
        super().__init__("driver_node")
        self.settings: DriverConfig = Params(self, {"": DriverConfig})[""]
        self.driver = Driver(self.settings, time.monotonic())
        self._joint_publisher = self.create_publisher(JointState, "joint_states", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        try:
            self.create_subscription(
                Float64MultiArray, self.settings.command_topic, self.guarded(self._on_command), 1
            )
        except InvalidTopicNameException:
            raise UserError(
                f"parameter 'command_topic' is '{self.settings.command_topic}', but it is no name of a topic"
            ) from None
        if self.driver.has_goal:
            self._goal_publisher = self.create_publisher(PoseStamped, "goal", 10)
            self._goal_velocity_publisher = self.create_publisher(TwistStamped, "goal_velocity", 10)
            self.create_subscription(PoseStamped, "move_goal", self.guarded(self._on_move_goal), 10)
        self.create_service(Trigger, "home", self._on_home)
        self.create_service(SetBool, "fault", self._on_fault_switch)
        self.steady_timer(1.0 / self.settings.rate, self._measure)
        self.steady_timer(_STEADY, lambda: self.driver.advance(time.monotonic()))
        self.steady_timer(1.0, self._diagnose)
        self.get_logger().info(
            f"robot {self.settings.task}: commands of {', '.join(self.driver.command_joints)} "
            f"on {self.settings.command_topic}"
        )

    def _on_command(self, msg: Float64MultiArray) -> None:
        why = self.driver.command(vector(msg.data), time.monotonic())
        if why:
            self.get_logger().warning(f"a command is refused: {why}", throttle_duration_sec=1.0)

    def _on_move_goal(self, msg: PoseStamped) -> None:
        why = self.driver.move_goal(position_of(msg), time.monotonic())
        if why:
            self.get_logger().warning(f"the goal is not moved: {why}", throttle_duration_sec=1.0)

    def _measure(self) -> None:
        now, clock = time.monotonic(), self.get_clock().now()
        measured = self.driver.measurement(now)
        if measured is None:
            return
        age = round((now - measured.taken) * 1e9)
        message = JointState(name=list(measured.names))
        message.header.stamp = Time(nanoseconds=max(0, clock.nanoseconds - age)).to_msg()
        message.position = doubles(measured.positions)
        message.velocity = doubles(measured.velocities)
        message.effort = doubles(measured.efforts)
        self._joint_publisher.publish(message)
        if measured.goal is not None:
            pose, twist = goal_messages(measured.goal, message.header.stamp)
            self._goal_publisher.publish(pose)
            self._goal_velocity_publisher.publish(twist)

    def _on_home(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._carry_out(lambda: self.driver.home(time.monotonic()), response, "the robot is home")

    def _on_fault_switch(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        said = "the drives have dropped out" if request.data else "the drives are back"
        return self._carry_out(lambda: self._switch(request.data), response, said)

    def _switch(self, fault: bool) -> None:
        self.driver.advance(time.monotonic())
        self.driver.fault(fault)

    def _carry_out(self, order: Callable[[], None], response: Response, said: str) -> Response:
        """Do what a service asks; why it cannot be done, in one sentence."""
        try:
            order()
        except UserError as error:
            response.message = str(error)
        except Exception as error:  # the caller gets an answer all the same
            self.fault(error)
            response.message = f"the driver failed: {error}"
        else:
            response.success, response.message = True, said
        return response

    def _diagnose(self) -> None:
        driver = self.driver
        level, text = DiagnosticStatus.OK, "ok"
        if driver.faulty or driver.problem:
            level, text = DiagnosticStatus.ERROR, driver.problem or "the drives have dropped out"
        elif driver.timed_out:
            level, text = DiagnosticStatus.WARN, "no command for too long"
        elif self.faults:
            level, text = DiagnosticStatus.WARN, f"{self.faults} exceptions in callbacks"
        values = {
            "accepted": driver.accepted,
            "refused": driver.refused,
            "clipped": driver.clipped,
            "last_refusal": driver.last_refusal,
            "timed_out": driver.timed_out,
            "fault": driver.faulty or bool(driver.problem),
            "dropped": driver.dropped,
            "stalled": round(driver.stalled, 3),
            "faults": self.faults,
        }
        self._diagnostics.publish(self.diagnosis(level, text, values, hardware_id=self.settings.task))

    def on_fault(self, error: Exception) -> None:
        """A driver that met an error takes the force off its motors, until the service `fault` ends that."""
        self.driver.fault(True)


def main() -> None:
    """Entry point of `driver_node`."""
    sys.exit(run(DriverNode))


if __name__ == "__main__":
    main()
