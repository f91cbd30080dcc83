"""Configurations: what is wrong with one is told in one sentence."""

import dataclasses
from typing import Annotated, Literal

import pytest

from mbrl_dynamics.config import Field, build, config, describe, one_of
from mbrl_dynamics.errors import UserError


@config
class Example:
    horizon: Annotated[int, Field(ge=1, le=100, description="how far [steps]")] = 25
    rate: Annotated[float, Field(gt=0, description="how fast [1/s]")] = 0.5
    hidden: Annotated[tuple[int, ...], Field(min_length=1, description="units [1]")] = (8, 8)
    mode: Annotated[Literal["fast", "exact"], Field(description="how")] = "fast"


def test_values_of_other_types_are_understood() -> None:
    built = build(Example, {"rate": 2, "hidden": [16, 32], "mode": "exact"})
    assert built == Example(rate=2.0, hidden=(16, 32), mode="exact")
    assert isinstance(built.rate, float)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"horizn": 3},
            "unknown parameter 'cem.horizn' (did you mean 'horizon'?); valid: hidden, horizon, mode",
        ),
        ({"zzz": 3}, "unknown parameter 'cem.zzz'; valid: hidden, horizon, mode, rate"),
        ({"horizon": 0}, "parameter 'cem.horizon' is 0, but it should be greater than or equal to 1"),
        ({"horizon": 101}, "parameter 'cem.horizon' is 101, but it should be less than or equal to 100"),
        ({"horizon": "far"}, "parameter 'cem.horizon' is 'far', but it should be a valid integer"),
        ({"horizon": 2.5}, "parameter 'cem.horizon' is 2.5"),
        ({"rate": float("nan")}, "parameter 'cem.rate' is nan"),
        ({"rate": float("inf")}, "parameter 'cem.rate' is inf"),
        ({"hidden": []}, "parameter 'cem.hidden' is []"),
        ({"mode": "slow"}, "parameter 'cem.mode' is 'slow', but it should be 'fast' or 'exact'"),
    ],
)
def test_a_mistake_is_named_with_what_is_valid(values: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Example, values, "cem")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_configurations_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example().horizon = 3  # type: ignore[misc]


def test_a_default_is_checked_as_well() -> None:
    @config
    class Bad:
        size: Annotated[int, Field(ge=1)] = 0

    with pytest.raises(ValueError):
        Bad()


def test_description_is_what_documentation_needs() -> None:
    fields = {field.name: field for field in describe(Example)}
    assert list(fields) == ["horizon", "rate", "hidden", "mode"]
    assert (fields["horizon"].default, fields["horizon"].description) == (25, "how far [steps]")
    assert fields["hidden"].parse([4]) == (4,)
    with pytest.raises(UserError, match="parameter 'horizon' is 0, but it should be greater"):
        fields["horizon"].parse(0)


def test_one_of() -> None:
    assert one_of("task", "pendulum", ["pendulum", "cartpole"]) == "pendulum"
    with pytest.raises(UserError) as caught:
        one_of("task", "pendulm", ["pendulum", "cartpole"])
    assert str(caught.value) == "unknown task 'pendulm' (did you mean 'pendulum'?); valid: cartpole, pendulum"
