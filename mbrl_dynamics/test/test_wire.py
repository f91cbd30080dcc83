"""The bytes on disk are those that ROS itself would write."""

import re
from pathlib import Path

import numpy as np
import pytest
from ament_index_python.packages import get_package_share_directory
from rclpy.serialization import deserialize_message, serialize_message
from worlds import CAMERA_SPEC, SPEC, WORLD, same, transition

from mbrl_dynamics import wire
from mbrl_dynamics.ros.convert import answer_from_msg, spec_from_msg, transition_from_msg, transition_to_msg
from mbrl_dynamics.transition import Answer
from mbrl_msgs.msg import Action, Spec, State


def _plain(text: str) -> list[str]:
    lines = (" ".join(line.split("#")[0].split()) for line in text.splitlines())
    return [re.sub(r"\s*=\s*", "=", line) for line in lines if line]


@pytest.mark.parametrize("name", wire.DEFINITIONS)
def test_definitions_equal_the_msg_files(name: str) -> None:
    package, folder, message = name.split("/")
    installed = Path(get_package_share_directory(package)) / folder / f"{message}.msg"
    assert _plain(wire.DEFINITIONS[name]) == _plain(installed.read_text())


@pytest.mark.parametrize("spec", [SPEC, CAMERA_SPEC], ids=["vector", "camera"])
def test_transition_is_read_by_ros_and_back(spec) -> None:
    original = transition(3, 7, spec=spec, terminated=True)
    msg = deserialize_message(wire.encode_transition(original, spec), State)
    assert same(transition_from_msg(msg), original)
    assert same(wire.decode_transition(serialize_message(transition_to_msg(original, spec))), original)


def test_nan_reward_survives() -> None:
    assert np.isnan(wire.decode_transition(wire.encode_transition(transition(reward=np.nan), SPEC)).reward)


def test_answer_is_read_by_ros() -> None:
    original = Answer(WORLD, 2, 5, "mpc", np.arange(6.0).reshape(3, 2), 0.25)
    data = wire.encode_answer(original, 12.5)
    for read in (answer_from_msg(deserialize_message(data, Action)), wire.decode_answer(data)):
        assert (read.key, read.controller_id, read.disagreement) == (original.key, "mpc", 0.25)
        assert np.array_equal(read.values, original.values)


def test_spec_is_read_by_ros() -> None:
    data = wire.encode_spec(CAMERA_SPEC, WORLD)
    assert spec_from_msg(deserialize_message(data, Spec)) == CAMERA_SPEC
    assert wire.decode_spec(data) == (CAMERA_SPEC, WORLD)
