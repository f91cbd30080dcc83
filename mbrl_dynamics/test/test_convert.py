"""Messages and records say the same, and a broken message makes a record that is refused."""

import array

import numpy as np
import pytest
from linear_model import LinearModel
from rclpy.serialization import deserialize_message, serialize_message
from worlds import CAMERA_SPEC, SPEC, WORLD, same, transition

from mbrl_dynamics.ros import convert
from mbrl_dynamics.snapshot import check, pack
from mbrl_dynamics.transition import Answer


def over_the_wire(msg):
    return deserialize_message(serialize_message(msg), type(msg))


@pytest.mark.parametrize("spec", [SPEC, CAMERA_SPEC], ids=["vector", "camera"])
def test_transition(spec) -> None:
    original = transition(4, 9, spec=spec, truncated=True)
    copy = convert.transition_from_msg(over_the_wire(convert.transition_to_msg(original, spec)))
    assert same(copy, original)
    assert copy.fault(spec) == ""


def test_large_fields_travel_as_arrays() -> None:
    """Lists and bytes would be up to a hundred times slower."""
    msg = convert.transition_to_msg(transition(spec=CAMERA_SPEC), CAMERA_SPEC)
    assert isinstance(msg.observation, array.array)
    assert isinstance(msg.images[0].data, array.array)
    assert isinstance(convert.snapshot_to_msg(snapshot(), convert.time_msg(0.0)).weights, array.array)


@pytest.mark.parametrize(
    "break_it, reason",
    [
        (lambda image: setattr(image, "data", image.data[:-1]), "is not 3 x 4 x 3"),
        (lambda image: setattr(image, "data", array.array("B")), "is not 3 x 4 x 3"),
        (lambda image: setattr(image, "height", 0), "is not 3 x 4 x 3"),
        (lambda image: setattr(image, "data", image.data[:12]), "is not 3 x 4 x 3"),
        (lambda image: setattr(image, "width", 5), "is not 3 x 4 x 3"),
        (lambda image: setattr(image.header, "frame_id", "nose"), "no image of camera 'eye'"),
    ],
)
def test_a_broken_image_is_refused(break_it, reason: str) -> None:
    msg = convert.transition_to_msg(transition(spec=CAMERA_SPEC), CAMERA_SPEC)
    break_it(msg.images[0])
    assert reason in convert.transition_from_msg(msg).fault(CAMERA_SPEC)


def test_answer() -> None:
    original = Answer(WORLD, 1, 2, "mpc", np.arange(6.0).reshape(3, 2), 0.5)
    copy = convert.answer_from_msg(over_the_wire(convert.answer_to_msg(original, convert.time_msg(1.5))))
    assert (copy.key, copy.controller_id, copy.disagreement) == (original.key, "mpc", 0.5)
    np.testing.assert_array_equal(copy.values, original.values)


@pytest.mark.parametrize("horizon", [0, 4, 5, 1000])
def test_an_answer_whose_values_do_not_fill_its_rows_is_empty(horizon: int) -> None:
    msg = convert.answer_to_msg(Answer(WORLD, 1, 2, "mpc", np.zeros((3, 2))), convert.time_msg(0.0))
    msg.horizon = horizon
    assert convert.answer_from_msg(msg).values.shape == (0, 0)


@pytest.mark.parametrize("spec", [SPEC, CAMERA_SPEC], ids=["vector", "camera"])
def test_spec(spec) -> None:
    assert convert.spec_from_msg(over_the_wire(convert.spec_to_msg(spec, WORLD))) == spec


def test_a_spec_that_is_not_what_its_hash_says_is_refused() -> None:
    msg = convert.spec_to_msg(SPEC, WORLD)
    msg.control_period = 0.5
    with pytest.raises(ValueError, match="not that of its content"):
        convert.spec_from_msg(msg)


def snapshot():
    return pack(
        LinearModel(SPEC),
        model_id="linear",
        run_id="run",
        version=7,
        trained_world_id=WORLD.hex(),
        trained_episode=3,
        metrics={"train_loss": 0.25, "holdout_error": 0.5},
    )


def test_snapshot() -> None:
    copy = convert.snapshot_from_msg(
        over_the_wire(convert.snapshot_to_msg(snapshot(), convert.time_msg(1.0)))
    )
    assert copy == snapshot()
    assert check(copy, SPEC, model_id="linear") == ""


@pytest.mark.parametrize("seconds", [0.0, 1.25, 1e9 + 0.125, -0.5])
def test_time(seconds: float) -> None:
    assert convert.seconds(convert.time_msg(seconds)) == pytest.approx(seconds, abs=1e-6)
