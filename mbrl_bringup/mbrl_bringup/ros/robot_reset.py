"""Serves `reset` on a robot: an episode begins with a service, a motion, or a person who confirms."""

from __future__ import annotations

import math
import time
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from std_srvs.srv import Trigger

from mbrl_bringup.guard import Phase
from mbrl_bringup.robot_world import RobotWorld, Status
from mbrl_dynamics.ros.convert import world_id_field
from mbrl_dynamics.ros.node import BaseNode
from mbrl_msgs.action import Reset

ACQUAINTED = 0.5  # a driver known for so long knows us, too; before, its answer may reach nobody [s]


class ResetServer:
    """One reset at a time; a newer one takes the place of an older. Nothing waits inside a callback.

    Attributes:
        active: whether there may be episodes.
    """

    def __init__(self, node: BaseNode, world: RobotWorld) -> None:
        self._node, self._world, self._begin = node, world, world.robot.beginning
        self.active = False
        self._handle: Any = None  # of the goal under way
        self._asked = 0  # goals; the answer to an older one's service is ignored
        self._deadline = math.inf  # of the service or the motion, steady clock [s]
        self._phase = ""
        self._confirmed = False
        self._called = True  # the driver was asked to bring the robot home
        self._known = math.inf  # since when its service has been there, steady clock [s]
        self._home = node.create_client(Trigger, self._begin.service) if self._begin.by == "service" else None
        node.create_service(Trigger, "confirm", self._on_confirm)
        self._server = ActionServer(
            node,
            Reset,
            "reset",
            execute_callback=_unused,
            handle_accepted_callback=node.guarded(self._on_accepted),
            cancel_callback=node.guarded(self._on_cancel),
        )

    def give_up(self, reason: str) -> None:
        """End the episode that is going on, or the reset that leads to one."""
        self._world.stop(reason)
        if self._handle is not None:
            self._fail(reason)

    def tick(self) -> None:
        """Look how the reset goes on. Call once a period."""
        if self._handle is None:
            return
        if self._world.status is Status.RUNNING:
            self._finish(Reset.Result.OK, "")
            return
        self._advance()
        phase = self._what()
        if self._handle is not None and phase != self._phase:
            self._phase = phase
            self._handle.publish_feedback(Reset.Feedback(phase=phase))

    def _advance(self) -> None:
        now = time.monotonic()
        if self._begin.by == "motion" and self._world.at_home:
            self._deadline = math.inf
            self._world.ready(now)
        elif self._begin.by == "motion" and self._world.guard.phase is not Phase.RUNNING:
            self._deadline = now + self._begin.timeout  # it begins when the guard is armed
        elif self._begin.by == "service" and not self._called:
            self._call()
            if not self._called and now > self._deadline:
                self._fail(f"the service '{self._begin.service}' that brings the robot home is not there")
                return
        if now > self._deadline:
            self._fail(f"the robot did not come home within {self._begin.timeout} s")

    def _what(self) -> str:
        """What the reset waits for, in words."""
        guard, world = self._world.guard, self._world
        if self._begin.by == "person" and not self._confirmed:
            return "waiting for a person to confirm that the robot is ready"
        if self._deadline < math.inf and self._begin.by == "service":
            return "homing" if self._called else f"waiting for the service '{self._begin.service}'"
        if not world.passive and guard.phase in (Phase.DISARMED, Phase.TRIPPED):
            why = f", which tripped: {guard.reason}" if guard.phase is Phase.TRIPPED else ""
            return f"waiting for the guard to be armed{why}"
        return "homing" if self._deadline < math.inf else "resting"

    def _on_accepted(self, handle: Any) -> None:
        if self._handle is not None:
            self._finish(Reset.Result.FAILED, "another reset was asked for")
        self._handle, self._phase, self._confirmed = handle, "", False
        self._asked += 1
        self._deadline = math.inf
        if not self.active:
            self._finish(Reset.Result.FAILED, "the bridge is not active: a lifecycle manager says when it is")
            return
        if len(handle.request.initial_state):
            self._finish(Reset.Result.BAD_REQUEST, "a robot cannot be put into an initial_state")
            return
        now = time.monotonic()
        self._world.reset(now)
        if self._begin.by == "nothing":
            self._world.ready(now)
        elif self._begin.by == "motion":
            self._world.move_home()
        elif self._home is not None:
            self._deadline, self._called = now + self._begin.timeout, False  # the driver may be just starting
            self._call()

    def _call(self) -> None:
        """Ask the driver to bring the robot home, if it is there."""
        if self._home is None or not self._home.service_is_ready():
            self._known = math.inf
            return
        now = time.monotonic()
        self._known = min(self._known, now)
        if now - self._known < ACQUAINTED:
            return
        self._called = True
        number = self._asked
        future = self._home.call_async(Trigger.Request())
        future.add_done_callback(self._node.guarded(lambda done: self._on_home(done.result(), number)))

    def _on_home(self, response: Trigger.Response | None, number: int) -> None:
        if number != self._asked or self._handle is None:
            return
        self._deadline = math.inf
        if response is None or not response.success:
            why = "no answer" if response is None else response.message
            self._fail(f"the service '{self._begin.service}' could not bring the robot home: {why}")
            return
        self._world.ready(time.monotonic())

    def _on_confirm(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._handle is None or self._begin.by != "person" or self._confirmed:
            response.message = "no reset waits for a person"
            return response
        self._confirmed = response.success = True
        self._world.ready(time.monotonic())
        return response

    def _on_cancel(self, handle: Any) -> CancelResponse:
        if handle is self._handle:
            self._world.give_up("the reset was canceled")
            self._finish(Reset.Result.CANCELED, "canceled")
        return CancelResponse.ACCEPT

    def _fail(self, reason: str) -> None:
        self._world.give_up(reason)
        self._finish(Reset.Result.FAILED, reason)

    def _finish(self, code: int, reason: str) -> None:
        """Answer the goal; the executor calls `execute`, which sends the result."""
        handle, self._handle, self._deadline = self._handle, None, math.inf
        result = Reset.Result(error_code=code, error_msg=reason, episode=self._world.episode)
        result.world_id = world_id_field(self._world.world_id)

        def execute(handle: Any) -> Reset.Result:
            if code == Reset.Result.OK:
                handle.succeed()
            elif handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
            return result

        handle.execute(execute)


def _unused(handle: Any) -> None:
    raise AssertionError("each goal is executed by a function of its own")
