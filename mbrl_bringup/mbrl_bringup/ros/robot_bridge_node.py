"""A robot as a world: standard messages on one side, `state`, `action`, `spec` and `reset` on the other.

It is a process of its own, never loads torch, and is the only one that publishes commands to the robot.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from nav_msgs.msg import Odometry
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, Imu, JointState
from std_msgs.msg import Bool, Empty
from std_srvs.srv import Trigger

from mbrl_bringup.robot_config import CameraTopic, Source, find, task_of
from mbrl_bringup.robot_world import RobotWorld
from mbrl_bringup.ros.robot_commands import Commands
from mbrl_bringup.ros.robot_reset import ResetServer
from mbrl_bringup.ros.robot_status import StatusReporter
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.ros.convert import answer_from_msg, seconds, spec_to_msg, transition_to_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS, BaseNode, Polled, arrivals, run
from mbrl_dynamics.ros.params import Params
from mbrl_msgs.msg import Action, Spec, State
from mbrl_msgs.srv import Arm, Pause, SingleStep

LAST_WORDS = 2.0  # longest ramp to a safe command at the end [s]
SERVED_EVERY = 0.05  # services and the timers of reports [s]: to ask all of them takes a third of a period
ANSWERS = 10  # the newest that are looked at in a period: a flood must not delay the period
MESSAGES = {  # of sources
    "sensor_msgs/JointState": JointState,
    "sensor_msgs/Imu": Imu,
    "nav_msgs/Odometry": Odometry,
    "geometry_msgs/PoseStamped": PoseStamped,
    "geometry_msgs/TwistStamped": TwistStamped,
    "geometry_msgs/WrenchStamped": WrenchStamped,
}


Transition = Callable[["RobotBridge", LifecycleState], TransitionCallbackReturn]


@config
class BridgeConfig:
    """The parameters of `robot_bridge`."""

    robot: Annotated[
        str, Field(description="the robot's file (YAML), or the name of one that is installed")
    ] = "cartpole"
    limits: Annotated[
        float, Field(gt=0, le=1, description="share of the file's limits that is allowed [1]")
    ] = 1.0
    passive: Annotated[bool, Field(description="a dry run: episodes run, but nothing is commanded")] = False
    autostart: Annotated[
        bool, Field(description="become active at once; false = a lifecycle manager says when")
    ] = True


def _told(transition: Transition) -> Transition:
    """A transition of the lifecycle whose error is not swallowed, as rclpy does, but logged and made safe."""

    @wraps(transition)
    def wrapper(self: RobotBridge, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.fault(error)
            return TransitionCallbackReturn.ERROR

    return wrapper


class RobotBridge(LifecycleNodeMixin, BaseNode):
    """A RobotWorld with topics. Its time is the steady clock; stamps of States are the robot's own.

    A managed node (https://design.ros2.org/articles/node_lifecycle.html): configured, it hears the robot;
    active, it has episodes. The guard owns motion in every state: its period never stops, its commands go out
    by plain publishers, and each way down leads to the safe command first.
    """

    def __init__(self) -> None:
        BaseNode.__init__(self, "robot_bridge")
        LifecycleNodeMixin.__init__(self)
        self.settings: BridgeConfig = Params(self, {"": BridgeConfig})[""]
        robot = find(self.settings.robot)
        self.world = RobotWorld(
            robot,
            task_of(robot),
            time.monotonic(),
            share=self.settings.limits,
            passive=self.settings.passive,
        )
        self._spec_publisher = self.create_publisher(Spec, "spec", LATCHED_QOS)
        self._state_publisher = self.create_publisher(State, "state", STREAM_QOS)
        self._commands = None if self.settings.passive else Commands(self, robot, self.world.spec)
        self._status = StatusReporter(self, self.world, self._state_publisher)
        self._reset = ResetServer(self, self.world)
        self._polled = Polled()  # sensors may be much faster than the control period, and who answers too
        self._sources: list[tuple[str, Any]] = []
        self._cameras: list[tuple[str, Any]] = []
        self._make_subscriptions()
        self._period = self.world.spec.control_period
        self._due = time.monotonic() + self._period
        self._served = time.monotonic()
        self._spec_publisher.publish(spec_to_msg(self.world.spec, self.world.world_id))
        self.get_logger().info(f"robot {Path(self.settings.robot).stem}, task {robot.task}")
        if self.settings.autostart:
            for trigger in (self.trigger_configure, self.trigger_activate):
                if trigger() is not TransitionCallbackReturn.SUCCESS:
                    raise RuntimeError("robot_bridge could not be started; its log says why")

    def _make_subscriptions(self) -> None:
        qos = QoSProfile(depth=ANSWERS, reliability=ReliabilityPolicy.RELIABLE)
        self._answers = self.create_subscription(
            Action, "action", lambda _: None, qos, callback_group=self._polled
        )
        self._emergency_stop, self._heartbeat = (
            self.create_subscription(kind, topic, lambda _: None, 10, callback_group=self._polled)
            for kind, topic in ((Bool, "emergency_stop"), (Empty, "emergency_stop/heartbeat"))
        )
        self.create_service(Arm, "arm", self._on_arm)
        self.create_service(Trigger, "stop", self._on_stop_service)
        self.create_service(Pause, "pause", self._on_pause)
        self.create_service(SingleStep, "single_step", self._on_single_step)

    def _sensor(self, kind: type, source: Source | CameraTopic, depth: int) -> Any:
        """A subscription that keeps so many messages until the bridge takes them."""
        reliable = ReliabilityPolicy.RELIABLE if source.reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=depth, reliability=reliable)
        group = self._polled
        return self.create_subscription(kind, source.topic, lambda _: None, qos, callback_group=group)

    # Lifecycle ----------------------------------------------------------------------------------------------

    @_told
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hear the robot; from now on it can be armed."""
        robot = self.world.robot
        self._sources = [
            (name, self._sensor(MESSAGES[source.type], source, 50)) for name, source in robot.sources.items()
        ]
        self._cameras = [  # of which only the newest image counts
            (name, self._sensor(Image, camera, 1)) for name, camera in robot.cameras.items()
        ]
        return TransitionCallbackReturn.SUCCESS

    @_told
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From now on there are episodes, if they are asked for."""
        self._reset.active = True
        return TransitionCallbackReturn.SUCCESS

    @_told
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """No more episodes; the robot is led to the safe command, and held there if it is armed."""
        self._reset.active = False
        self._reset.give_up("the bridge was deactivated")
        self.on_stop()
        return TransitionCallbackReturn.SUCCESS

    @_told
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The robot is commanded no more, and not heard."""
        self.on_stop()
        self.world.guard.disarm()
        for _, subscription in (*self._sources, *self._cameras):
            self.destroy_subscription(subscription)
        self._sources, self._cameras = [], []
        return TransitionCallbackReturn.SUCCESS

    @_told
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As when the node ends."""
        self.on_deactivate(state)
        return self.on_cleanup(state)

    # Once a period ------------------------------------------------------------------------------------------

    def spin_once(self, executor: Executor) -> None:
        """A period if it is due, else what services ask for, or a nap.

        The period does not wait for an executor, which asks each of some 25 services whenever it wakes.
        """
        now = time.monotonic()
        if now >= self._due:
            self.guarded(self._tick)()
        elif now >= self._served + SERVED_EVERY:
            self._served = now
            executor.spin_once(timeout_sec=0.0)
        else:
            time.sleep(min(self._due, self._served + SERVED_EVERY) - now)

    def _tick(self) -> None:
        due = self._keep_time(time.monotonic())
        self._listen()
        now = time.monotonic()
        if self._commands is not None:
            self.world.guard.publishers(self._commands.others(), now)
        command = self.world.decide(now)
        if command is not None and self._commands is not None:
            self._commands.send(command.values)
            self._status.sent.append(max(time.monotonic() - due, 0.0))
        state = self.world.tell()
        if state is not None:
            self._state_publisher.publish(transition_to_msg(state, self.world.spec))
        self._reset.tick()
        self._status.changed()

    def _listen(self) -> None:
        """Take what the sensors and the controller have sent since the last period."""
        for name, subscription in self._sources:
            for message, arrival in arrivals(subscription):
                self.world.senses.take(name, message, seconds(message.header.stamp), arrival)
        for name, subscription in self._cameras:
            for message, arrival in arrivals(subscription):
                self.world.senses.images.take(name, message, arrival)
        for message, arrival in arrivals(self._answers):
            self.world.offer(answer_from_msg(message), arrival)
        for message, arrival in arrivals(self._emergency_stop):
            self.world.guard.stop(message.data, arrival)
        for _, arrival in arrivals(self._heartbeat):
            self.world.guard.heartbeat(arrival)

    def _keep_time(self, now: float) -> float:
        """When this period was due to begin [s]. One that begins more than half a period late is missed, and
        so is each whose time has passed altogether: time lost is not caught up.
        """
        due, late = self._due, now - self._due
        left_out = int(late / self._period)
        self._due += (1 + left_out) * self._period
        self._status.lateness.append(late)
        self._status.missed_deadlines += left_out + (left_out == 0 and late > self._period / 2)
        return due

    # What comes in ------------------------------------------------------------------------------------------

    def _on_arm(self, request: Arm.Request, response: Arm.Response) -> Arm.Response:
        if request.armed and not self._sources:
            response.error_msg = "the bridge is not configured, and does not hear the robot"
        elif request.armed:
            without = bool(request.without_timeout)
            response.error_msg = self.world.arm(time.monotonic(), without_timeout=without)
        else:
            self.world.guard.disarm()
        if response.error_msg:
            response.error_code = Arm.Response.REFUSED
        what = response.error_msg or ("armed" if request.armed else "disarmed")
        self.get_logger().info(f"arm: {what}")
        self._status.changed()
        return response

    def _on_stop_service(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.world.guard.trip("a person stopped it", time.monotonic())
        response.success, response.message = True, self.world.guard.phase.name.lower()
        self._status.changed()
        return response

    def _on_pause(self, _: Pause.Request, response: Pause.Response) -> Pause.Response:
        response.error_code, response.error_msg = Pause.Response.UNSUPPORTED, "a robot cannot be paused"
        return response

    def _on_single_step(self, _: SingleStep.Request, response: SingleStep.Response) -> SingleStep.Response:
        response.error_code, response.error_msg = SingleStep.Response.NOT_PAUSED, "a robot cannot be stepped"
        return response

    # When something is wrong, and at the end ----------------------------------------------------------------

    def on_fault(self, error: Exception) -> None:
        """Motion ends with an error in the bridge itself."""
        self.world.guard.trip(f"an error in the bridge: {error}", time.monotonic())

    def on_stop(self) -> None:
        """Lead the robot to the safe command, and leave it as the last one."""
        if self._commands is None:
            return
        self.world.guard.rest()
        end, before = time.monotonic() + LAST_WORDS, None
        while time.monotonic() < end:
            command = self.world.guard.tick(None, time.monotonic())
            if command is None:
                return
            self._commands.send(command.values)
            if before is not None and (command.values == before).all():
                return
            before = command.values
            time.sleep(self._period)


def main() -> None:
    """Entry point of `robot_bridge`."""
    sys.exit(run(RobotBridge))


if __name__ == "__main__":
    main()
