"""What observations and actions mean, and the hash that says whether two worlds mean the same."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import CAMERA_SPEC, OTHER_SPEC, SPEC

from mbrl_dynamics.spec import Camera, Element, Spec

CHOICE = Spec("choose", (Element("x"),), (Element("button", count=3),), 0.1)


@pytest.mark.parametrize(
    "spec, digest",
    [
        (SPEC, "006b91219921d9ff56762d86629c62645a0a592d7dac3e5c8b463b6e75f97eaa"),
        (OTHER_SPEC, "fdc9fe73ad0f1d09f414b1c2993a9acd67d03d9cd7c9b8df336fba66828c14a0"),
        (CAMERA_SPEC, "26bcb4150b83dded68a33287549de8753fd9265108cdd2b3e08172df66482308"),
    ],
)
def test_the_hash_stays_what_it_was(spec: Spec, digest: str) -> None:
    """A changed digest would make every model and dataset that exists worthless."""
    assert spec.dynamics_hash == digest


def changed_elements(element: Element) -> list[Element]:
    return [
        replace(element, name="other"),
        replace(element, unit="km"),
        replace(element, low=-3.0),
        replace(element, high=3.0),
        replace(element, encoding="cos"),
    ]


@pytest.mark.parametrize(
    "other",
    [
        *(replace(SPEC, observation=(e, SPEC.observation[1])) for e in changed_elements(SPEC.observation[0])),
        *(replace(SPEC, action=(e,)) for e in changed_elements(SPEC.action[0])),
        replace(SPEC, observation=SPEC.observation[::-1]),
        replace(SPEC, observation=SPEC.observation[:1]),
        replace(SPEC, control_period=0.051),
        replace(SPEC, action_delay_steps=1),
        *(replace(SPEC, cameras=(Camera("eye", *size),)) for size in ((5, 4), (4, 3))),
        replace(SPEC, cameras=(Camera("nose", 3, 4),)),
        replace(SPEC, cameras=(Camera("eye", 3, 4, "bgr8"),)),
    ],
)
def test_whatever_a_model_depends_on_changes_the_hash(other: Spec) -> None:
    assert other.dynamics_hash not in (SPEC.dynamics_hash, CAMERA_SPEC.dynamics_hash)


def test_the_task_and_the_way_a_number_is_written_do_not() -> None:
    assert replace(SPEC, task="another").dynamics_hash == SPEC.dynamics_hash
    integers = replace(SPEC.action[0], low=-2, high=2)
    assert replace(SPEC, action=(integers,)).dynamics_hash == SPEC.dynamics_hash
    zero, negative = (replace(SPEC.observation[0], low=value) for value in (0.0, -0.0))
    assert (
        replace(SPEC, observation=(zero,)).dynamics_hash
        == replace(SPEC, observation=(negative,)).dynamics_hash
    )


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_scaling_is_undone_by_unscaling(values: list[float]) -> None:
    spec = replace(SPEC, action=(Element("a", "N", -2.0, 6.0), Element("b", "N", 1.0, 1.5)))
    inner = np.array(values)
    outer = spec.unscale_action(inner)
    assert (outer >= spec.action_low).all() and (outer <= spec.action_high).all()
    np.testing.assert_allclose(spec.scale_action(outer), inner, atol=1e-12)


def test_limits_are_applied() -> None:
    np.testing.assert_array_equal(SPEC.unscale_action(np.array([[5.0], [-5.0]])), [[2.0], [-2.0]])


def test_a_choice_is_one_hot_inside() -> None:
    assert (CHOICE.discrete, CHOICE.action_dim, CHOICE.inner_action_dim) == (True, 1, 3)
    np.testing.assert_array_equal(CHOICE.scale_action(np.array([[2.0], [0.0]])), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(CHOICE.unscale_action(np.array([0.1, 0.7, 0.2])), [1.0])


def test_the_safe_action_is_nearest_to_zero() -> None:
    spec = replace(SPEC, action=(Element("a", "N", 0.5, 2.0), Element("b", "N", -1.0, 1.0)))
    np.testing.assert_array_equal(spec.safe_action(), [0.5, 0.0])
    np.testing.assert_array_equal(CHOICE.safe_action(), [0.0])


def test_circles() -> None:
    elements = tuple(Element(n, encoding=e) for n, e in [("x", "identity"), ("c", "cos"), ("s", "sin")])
    assert replace(SPEC, observation=elements).circles == (1,)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"observation": (Element("x"), Element("x"))}, "'x' appears twice"),
        ({"control_period": 0.0}, "must be positive"),
        ({"control_period": float("nan")}, "must be positive"),
        ({"action_delay_steps": -1}, "at least 0"),
        ({"action": ()}, "at least one action"),
        ({"action": (Element("u"),)}, "needs finite limits"),
        ({"action": (Element("u", "N", 1.0, 1.0),)}, "needs finite limits"),
        ({"action": (Element("u", count=2), Element("v", "N", -1, 1))}, "must be the only element"),
    ],
)
def test_a_spec_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **changes)
