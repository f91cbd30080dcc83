"""A robot's file against what is heard of the robot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sensor_msgs.msg import JointState

from mbrl_bringup.cli import main
from mbrl_bringup.robot_check import Heard, compare
from mbrl_bringup.robot_config import find
from mbrl_dynamics.ros.testing import eventually, isolated_domain, peer, start_node
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

ROBOT, SPEC = find("cartpole"), CartpoleSwingup().spec
JOINTS, COMMANDS = "joint_states", "effort_controller/commands"


def joint_state(**changes: Any) -> SimpleNamespace:
    values = {"name": ["hinge", "slider"], "position": [0.0, 0.1], "velocity": [0.0, 0.0], "effort": []}
    return SimpleNamespace(**{**values, **changes})


def all_well() -> dict[str, Heard]:
    arrivals = [0.01 * k for k in range(200)]
    joints = Heard(("sensor_msgs/JointState",), 1, 0, True, arrivals, joint_state(), skew=-0.01)
    return {JOINTS: joints, COMMANDS: Heard(("std_msgs/Float64MultiArray",), 0, 1)}


def wrong(heard: dict[str, Heard], services: tuple[str, ...] = ("home",), **options: Any) -> list[str]:
    rows = compare(options.get("robot", ROBOT), SPEC, heard, services, options.get("bridge", False))
    return [f"{row.what}: {row.found}" for row in rows if not row.ok]


def test_nothing_is_wrong_where_all_is_well() -> None:
    assert wrong(all_well()) == []


@pytest.mark.parametrize(
    ("topic", "changes", "told"),
    [
        (JOINTS, {"types": ("sensor_msgs/Imu",)}, "joint_states: type: sensor_msgs/Imu"),
        (JOINTS, {"publishers": 2}, "joint_states: publishers: 2"),
        (JOINTS, {"arrivals": [0.0, *(0.39 + 0.01 * k for k in range(99))]}, "longest gap: 390 ms"),
        (JOINTS, {"newest": joint_state(name=["hinge", "cart"])}, "values: joints hinge, cart"),
        (JOINTS, {"newest": joint_state(velocity=[])}, "not finite: slider.velocity, hinge.velocity"),
        (JOINTS, {"skew": 40.0}, "joint_states: clock: +40.00 s"),
        (COMMANDS, {"subscribers": 0}, "effort_controller/commands: subscribers: 0"),
        (COMMANDS, {"publishers": 1}, "effort_controller/commands: publishers: 1"),
        (COMMANDS, {"types": ()}, "effort_controller/commands: type: no such topic"),
    ],
)  # fmt: skip
def test_each_fault_is_told_and_nothing_else(topic: str, changes: dict[str, Any], told: str) -> None:
    heard = all_well()
    heard[topic] = replace(heard[topic], **changes)
    (found,) = wrong(heard)
    assert told in found


def test_messages_that_come_too_seldom_are_told_by_their_rate_too() -> None:
    heard = all_well()
    heard[JOINTS] = replace(heard[JOINTS], arrivals=[0.1 * k for k in range(20)])
    rate, gap = wrong(heard)
    assert rate == "joint_states: rate: 10.0 Hz" and "longest gap: 100 ms" in gap


def test_a_missing_service_and_an_undeclared_timeout_are_told() -> None:
    assert wrong(all_well(), services=()) == ["home: service: none"]
    robot = replace(ROBOT, guard=replace(ROBOT.guard, driver_timeout=0.0))
    assert wrong(all_well(), robot=robot) == ["guard.driver_timeout: none"]


def test_the_publisher_of_a_running_bridge_is_no_other() -> None:
    heard = all_well()
    heard[COMMANDS] = replace(heard[COMMANDS], publishers=1)
    assert wrong(heard, bridge=True) == []


def test_a_running_robot_is_compared_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    text = (Path(__file__).parents[1] / "config" / "robots" / "cartpole.yaml").read_text()
    other.write_text(text.replace("hinge.", "elbow.").replace("home,", "go_home,"))
    with isolated_domain(), start_node("mbrl_sim.ros.driver_node"), peer() as me:
        joints = me.listen(JointState, "joint_states", 10)
        eventually(lambda: len(joints) > 0, "there is no robot")
        assert main(["check-robot", str(other), "--wait=3"]) == 1
        shown = capsys.readouterr().out
        assert "joints slider, hinge" in shown and "are not as the file says" in shown
        rows = [line for line in shown.splitlines() if "WRONG" in line]
        assert any("go_home" in row for row in rows) and not any("type" in row for row in rows)
    assert main(["check-robot", "cartpol"]) == 2
    assert "did you mean 'cartpole'" in capsys.readouterr().err
