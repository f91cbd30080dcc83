"""ROS parameters: the same validation at the start and at run time, and no name that nobody knows."""

from collections.abc import Iterator
from typing import Annotated

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.ros.params import Params
from mbrl_dynamics.ros.testing import isolated_domain


@config
class Own:
    rate: Annotated[float, Field(gt=0, description="how often [Hz]")] = 10.0
    name: Annotated[str, Field(description="of the thing")] = ""


@config
class Search:
    horizon: Annotated[int, Field(ge=1, le=50, description="how far [steps]")] = 25
    hidden: Annotated[tuple[int, ...], Field(description="units [1]")] = (8, 8)


@pytest.fixture
def context() -> Iterator[Context]:
    with isolated_domain():
        context = Context()
        rclpy.init(context=context)
        yield context
        context.try_shutdown()


def node(context: Context, **given) -> Node:
    overrides = [Parameter(name.replace("__", "."), value=value) for name, value in given.items()]
    return Node(
        "params_test",
        context=context,
        parameter_overrides=overrides,
        automatically_declare_parameters_from_overrides=True,
    )


GROUPS = {"": Own, "search": Search}


def test_defaults_are_declared_with_their_description_and_range(context: Context) -> None:
    one = node(context)
    params = Params(one, GROUPS)
    assert (params[""], params["search"]) == (Own(), Search())
    assert one.get_parameter("search.hidden").value == [8, 8]
    descriptor = one.describe_parameter("search.horizon")
    assert (descriptor.description, descriptor.read_only) == ("how far [steps]", True)
    assert (descriptor.integer_range[0].from_value, descriptor.integer_range[0].to_value) == (1, 50)


def test_what_is_given_counts_as_it_is_understood(context: Context) -> None:
    one = node(context, rate=5, search__horizon=3, search__hidden=[4])
    params = Params(one, GROUPS)
    assert (params[""].rate, params["search"]) == (5.0, Search(horizon=3, hidden=(4,)))
    assert one.get_parameter("rate").value == 5.0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"raet": 5.0}, "unknown parameter 'raet'"),
        ({"serach__horizon": 5}, "unknown parameter 'serach.horizon'"),
        ({"search__horizon": 51}, "parameter 'search.horizon' is 51"),
        ({"search__horizon": "far"}, "parameter 'search.horizon' is 'far'"),
        ({"rate": 0.0}, "parameter 'rate' is 0.0"),
    ],
)
def test_a_mistake_at_the_start(context: Context, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Params(node(context, **given), GROUPS)


def test_run_time_changes_are_checked_and_told(context: Context) -> None:
    one, told = node(context), []
    params = Params(one, GROUPS, mutable=["search"], changed=told.append)
    (result,) = one.set_parameters([Parameter("search.horizon", value=5)])
    assert result.successful and params["search"].horizon == 5 and told == ["search"]
    for value in (0, 51, "far"):
        (result,) = one.set_parameters([Parameter("search.horizon", value=value)])
        assert not result.successful and "search.horizon" in result.reason
    (result,) = one.set_parameters([Parameter("rate", value=1.0)])
    assert not result.successful  # read-only
    assert params["search"].horizon == one.get_parameter("search.horizon").value == 5
    assert told == ["search"]
