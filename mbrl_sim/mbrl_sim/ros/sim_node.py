"""The simulated world as a node: `state`, `action`, `spec`, `world_status`, `reset`, and a scene to see."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionServer
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from visualization_msgs.msg import MarkerArray

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.convert import answer_from_msg, spec_to_msg, time_msg, transition_to_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS, BaseNode, run
from mbrl_dynamics.ros.params import Params
from mbrl_dynamics.transition import Transition
from mbrl_msgs.action import Reset
from mbrl_msgs.msg import Action, Spec, State
from mbrl_msgs.srv import Pause, SingleStep
from mbrl_sim.physics import make_simulator
from mbrl_sim.ros.goal import position_of
from mbrl_sim.ros.scene import Joints, Scene
from mbrl_sim.ros.status import StatusReporter
from mbrl_sim.world import World, WorldConfig


@config
class SimConfig(WorldConfig):
    """The parameters of `sim_node`."""

    task: Annotated[str, Field(description="an installed task, family/name, or package.module:Class")] = (
        "cartpole_swingup"
    )
    seed: Annotated[int, Field(ge=0, description="of the initial states")] = 0
    action_repeat: Annotated[
        int, Field(ge=0, description="frames of the task in a control period [1]; 0 = as the task says")
    ] = 0
    image_size: Annotated[
        int, Field(ge=0, le=1024, description="height and width of an image in the State; 0 = none [px]")
    ] = 0
    camera: Annotated[str, Field(description="of the image; empty = the first one of the world")] = ""
    real_time_factor: Annotated[
        float, Field(gt=0, description="real time: speed of the simulated clock [1]")
    ] = 1.0
    start: Annotated[
        bool, Field(description="whether the first episode begins by itself, rather than with a Reset")
    ] = True
    display_rate: Annotated[
        float, Field(gt=0, le=1000, description="of joint_states and scene, and of state in free mode [Hz]")
    ] = 60.0
    frame_id: Annotated[str, Field(min_length=1, description="frame of the scene")] = "world"


class SimNode(BaseNode):
    """A World with topics. Its time is the steady clock; the stamps that it sends are simulated time."""

    def __init__(self) -> None:
        super().__init__("sim_node")
        self.settings: SimConfig = Params(self, {"": SimConfig})[""]
        own = self.settings
        simulator = make_simulator(
            make_task(own.task, own.action_repeat), own.seed, own.image_size, own.camera
        )
        self.world = World(simulator, own, time.monotonic())
        self._scene = Scene(self.world.simulator, self.settings.frame_id)
        self._joints = Joints(self.world.simulator)
        self._clock_message = Clock()
        self._moved = True  # since the last display
        self._next_display = 0.0  # steady clock [s]
        self._make_publishers()
        self._status = StatusReporter(self, self.world, self._state_publisher)
        self._make_subscriptions()
        self._tick_timer = self._make_timers()
        self._spec_publisher.publish(spec_to_msg(self.world.spec, self.world.world_id))
        if self.settings.start:
            self._emit(self.world.reset(time.monotonic()))
        self._display()
        self.get_logger().info(f"task {self.settings.task}, {self.settings.mode}")

    def _make_publishers(self) -> None:
        self._spec_publisher = self.create_publisher(Spec, "spec", LATCHED_QOS)
        self._state_publisher = self.create_publisher(State, "state", STREAM_QOS)
        self._clock_publisher = self.create_publisher(Clock, "clock", 1)
        self._joint_publisher = self.create_publisher(JointState, "joint_states", 10)
        self._scene_publisher = self.create_publisher(MarkerArray, "scene", LATCHED_QOS)

    def _make_subscriptions(self) -> None:
        self.create_subscription(Action, "action", self.guarded(self._on_action), STREAM_QOS)
        if getattr(self.world.simulator, "goal", None) is not None:
            self.create_subscription(PoseStamped, "move_goal", self.guarded(self._on_move_goal), 10)
        self.create_service(Pause, "pause", self._on_pause)
        self.create_service(SingleStep, "single_step", self._on_single_step)
        self._reset_server = ActionServer(self, Reset, "reset", self._on_reset)

    def _make_timers(self) -> Any:
        display_period = 1.0 / self.settings.display_rate
        if self.settings.mode == "free":
            return self.steady_timer(display_period, self._coast)
        self.steady_timer(display_period, self._display)
        if self.settings.mode == "lockstep":
            return self.steady_timer(
                min(0.05, self.settings.repeat_period / 5),
                lambda: self._resend(self.world.repeat(time.monotonic())),
            )
        period = self.world.spec.control_period / self.settings.real_time_factor
        return self.steady_timer(period, lambda: self._emit(self.world.tick(time.monotonic())))

    def _on_action(self, msg: Action) -> None:
        self._emit(self.world.offer(answer_from_msg(msg), time.monotonic()))

    def _on_move_goal(self, msg: PoseStamped) -> None:
        """From the next State on, what is to be reached is elsewhere, and stays there."""
        simulator: Any = self.world.simulator
        try:
            simulator.goal.move(position_of(msg))
        except UserError as error:
            self.get_logger().warning(f"the goal is not moved: {error}")

    def _on_pause(self, request: Pause.Request, response: Pause.Response) -> Pause.Response:
        why = self._carry_out(lambda: self.world.pause(request.paused, time.monotonic()))
        if why:
            response.error_code, response.error_msg = Pause.Response.UNSUPPORTED, why
        return response

    def _on_single_step(
        self, request: SingleStep.Request, response: SingleStep.Response
    ) -> SingleStep.Response:
        if not request.steps:
            response.error_code, response.error_msg = (
                SingleStep.Response.BAD_REQUEST,
                "steps must be at least 1",
            )
            return response
        why = self._carry_out(lambda: self.world.single_step(request.steps, time.monotonic()))
        if why:
            response.error_code, response.error_msg = SingleStep.Response.NOT_PAUSED, why
        return response

    def _on_reset(self, goal: Any) -> Reset.Result:
        request, result, faults = goal.request, Reset.Result(), self.faults
        goal.publish_feedback(Reset.Feedback(phase="placing the world in its initial state"))
        seed = request.seed if request.seed >= 0 else None
        state = request.initial_state or None
        result.error_msg = self._carry_out(lambda: self.world.reset(time.monotonic(), seed, state))
        if result.error_msg:
            failed = self.faults > faults
            result.error_code = Reset.Result.FAILED if failed else Reset.Result.BAD_REQUEST
            goal.abort()
        else:
            self._tick_timer.reset()  # so that the first period of a real-time episode is a whole one
            goal.succeed()
        result.world_id, result.episode = self._status.world_id, self.world.episode
        return result

    def _carry_out(self, order: Callable[[], Transition | None]) -> str:
        """Do what a service or an action asks; why it cannot be done, in one sentence."""
        try:
            self._emit(order())
        except UserError as error:
            return str(error)
        except Exception as error:  # the caller gets an answer all the same
            self.fault(error)
            return f"the world failed: {error}"
        return ""

    def _coast(self) -> None:
        """Run free physics until the next display is due."""
        now = time.monotonic()
        self._next_display = max(self._next_display, now) + 1.0 / self.settings.display_rate
        self._emit(self.world.coast(self._next_display - now, time.monotonic))
        self._display()

    def _emit(self, state: Transition | None) -> None:
        """Publish a new State, and the time that it happened at to whom it may concern."""
        if state is not None:
            self._state_publisher.publish(transition_to_msg(state, self.world.spec))
            if self._clock_publisher.get_subscription_count():
                self._clock_message.clock = time_msg(state.stamp)
                self._clock_publisher.publish(self._clock_message)
            self._moved = True
        self._status.changed()

    def _resend(self, state: Transition | None) -> None:
        """Publish a State again, unchanged."""
        if state is not None:
            self._state_publisher.publish(transition_to_msg(state, self.world.spec))
        self._status.changed()

    def _display(self) -> None:
        """Show where things are, if they moved and to whom it may concern."""
        if not self._moved:
            return
        self._moved = False
        if self._joint_publisher.get_subscription_count():
            self._joint_publisher.publish(self._joints.message(self.world.time))
        if self._scene_publisher.get_subscription_count():
            self._scene_publisher.publish(self._scene.message())

    def on_fault(self, error: Exception) -> None:
        """An episode that met an error in the task or the simulator cannot go on."""
        self._emit(self.world.abort(str(error), time.monotonic()))


def main() -> None:
    """Entry point of `sim_node`."""
    sys.exit(run(SimNode))


if __name__ == "__main__":
    main()
