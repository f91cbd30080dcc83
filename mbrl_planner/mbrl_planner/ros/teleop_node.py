"""The node through which a person acts: answers each State with what a joystick says."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from sensor_msgs.msg import Joy

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.ros.node import run
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import WorldId
from mbrl_msgs.msg import LearnerStatus
from mbrl_planner.ros.controller_node import ControllerNode, ControllerNodeConfig
from mbrl_planner.teleoperation import Teleoperation


@config
class TeleopNodeConfig(ControllerNodeConfig):
    """Parameters of TeleopNode. What it records counts as a demonstration by its `controller_id`."""

    axes: Annotated[
        tuple[int, ...], Field(description="axis of the joystick for each element of the action, from 0")
    ] = (0,)
    gains: Annotated[
        tuple[float, ...],
        Field(description="of each axis: 1 = the action's whole range, negative = the other way round [1]"),
    ] = (1.0,)
    button: Annotated[int, Field(description="that must be held for anything to move; negative = none")] = 4
    silence: Annotated[
        float, Field(gt=0, description="without a message for so long, nobody is at the joystick [s]")
    ] = 0.5
    no_model: Annotated[
        Literal["random", "wait", "safe"],
        Field(description="what to do while nobody acts: random actions, no answer, or the safe action"),
    ] = "safe"
    controller_id: Annotated[str, Field(min_length=1, description="who answers")] = "person"


class Nobody:
    """Models of a controller that needs none (see controller_node.Models)."""

    swaps = refused = version = 0
    text = "a person"
    awaits_learner = False

    def covers(self, world_id: WorldId, episode: int) -> bool:
        """Nothing is waited for."""
        return True

    def rests(self, learner: LearnerStatus | None) -> bool:
        """Nothing is waited for."""
        return True

    def use_spec(self, spec: Spec) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class TeleopNode(ControllerNode):
    """Teleoperation over ROS. Subscribes `joy` (sensor_msgs/Joy), beside what every controller does.

    Raises:
        UserError: a parameter is unknown, of the wrong type or out of range, or does not fit the task.
    """

    Config = TeleopNodeConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("teleop_node", **kwargs)
        self.create_subscription(Joy, "joy", self.guarded(self._on_joy), 1)

    def make_decider(self) -> Teleoperation:
        """The person."""
        own = self.params[""]
        self.person = Teleoperation(self.task.spec, own.axes, own.gains, own.button, own.silence)
        return self.person

    def make_models(self) -> Nobody:
        """None."""
        return Nobody()

    def trouble(self) -> str:
        """What is wrong with the joystick."""
        return self.person.fault

    def _on_joy(self, msg: Joy) -> None:
        self.person.hear(msg.axes, msg.buttons)
        if self.person.fault:
            self.get_logger().error(self.person.fault, throttle_duration_sec=5.0)


def main() -> int:
    """Run the node."""
    return run(TeleopNode)


if __name__ == "__main__":
    sys.exit(main())
