"""ROS parameters from configurations: one a field, with the same validation at start and at run time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import annotated_types
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from mbrl_dynamics.config import FieldDescription, build, describe
from mbrl_dynamics.errors import UserError

_BUILT_IN = ("use_sim_time", "start_type_description_service")


class Params:
    """A node's configurations, one a group; the group "" holds the node's own parameters.

    The field `horizon` of the group `icem` is the ROS parameter `icem.horizon`. The node must have been
    made with `automatically_declare_parameters_from_overrides=True`, so that names nobody knows are seen.

    Args:
        node: whose parameters these are.
        groups: prefix -> configuration class.
        mutable: groups that may change at run time; the others are read-only.
        changed: called with a group's name after it changed; a UserError of it takes the change back.

    Raises:
        UserError: a parameter is unknown, of the wrong type or out of range.
    """

    def __init__(
        self,
        node: Node,
        groups: Mapping[str, type],
        mutable: Collection[str] = (),
        changed: Callable[[str], None] | None = None,
    ) -> None:
        self._groups, self._mutable, self._changed = groups, mutable, changed
        given = given_parameters(node)
        self._configs = build_groups(groups, given)
        for group, cls in groups.items():
            for field in describe(cls):
                name = _join(group, field.name)
                descriptor = _descriptor(field, read_only=group not in mutable)
                value = _plain(getattr(self._configs[group], field.name))
                if name in given:
                    node.undeclare_parameter(name)
                # Not as it was given, but as it was understood: a 1 where a real number belongs is 1.0.
                node.declare_parameter(name, value, descriptor, ignore_override=True)
        node.add_on_set_parameters_callback(self._on_set)

    def __getitem__(self, group: str) -> Any:
        """The configuration of a group as it is now (immutable)."""
        return self._configs[group]

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        new, touched = dict(self._configs), set()
        for parameter in parameters:
            group, _, field = parameter.name.rpartition(".")
            if group not in self._groups:
                continue
            try:
                values = {**_as_dict(new[group]), field: parameter.value}
                new[group] = build(self._groups[group], values, group)
            except UserError as error:
                return SetParametersResult(successful=False, reason=str(error))
            touched.add(group)
        before, self._configs = self._configs, new
        try:
            for group in touched:
                if self._changed is not None:
                    self._changed(group)
        except UserError as error:  # valid by itself, but not here
            self._configs = before
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)


def given_parameters(node: Node) -> dict[str, Any]:
    """What was set from outside (command line, YAML) when the node was made."""
    names = node.list_parameters([], 0).names
    return {
        name: node.get_parameter(name).value
        for name in names
        if name not in _BUILT_IN and not name.startswith("qos_overrides.")
    }


def build_groups(groups: Mapping[str, type], given: Mapping[str, Any]) -> dict[str, Any]:
    """Build each group's configuration from flat ROS parameters.

    Raises:
        UserError: a parameter is unknown, of the wrong type or out of range.
    """
    values: dict[str, dict[str, Any]] = {group: {} for group in groups}
    for name, value in given.items():
        group, _, field = name.rpartition(".")
        if group not in groups:
            valid = ", ".join(sorted(g or "(none)" for g in groups))
            raise UserError(f"unknown parameter '{name}'; valid prefixes: {valid}")
        values[group][field] = value
    return {group: build(cls, values[group], group) for group, cls in groups.items()}


def _join(group: str, name: str) -> str:
    return f"{group}.{name}" if group else name


def _as_dict(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _descriptor(field: FieldDescription, *, read_only: bool) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=field.description, read_only=read_only, dynamic_typing=not read_only
    )
    low: Any = next((c.ge for c in field.constraints if isinstance(c, annotated_types.Ge)), None)
    high: Any = next((c.le for c in field.constraints if isinstance(c, annotated_types.Le)), None)
    if low is not None and high is not None:
        if isinstance(field.default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        elif isinstance(field.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
    return descriptor
