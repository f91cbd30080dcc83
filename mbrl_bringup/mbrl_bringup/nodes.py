"""The nodes of a stack: where they live, which parameters they have, and which of these the arguments set."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import find, names

if TYPE_CHECKING:
    from mbrl_bringup.stack import StackConfig

NODES = {  # name -> (package, module), in the order of the flow
    "sim_node": ("mbrl_sim", "mbrl_sim.ros.sim_node"),
    "dynamics_node": ("mbrl_dynamics", "mbrl_dynamics.ros.dynamics_node"),
    "planner_node": ("mbrl_planner", "mbrl_planner.ros.planner_node"),
}
_CONFIG = {
    "sim_node": "SimConfig",
    "dynamics_node": "DynamicsNodeConfig",
    "planner_node": "PlannerNodeConfig",
}


def arguments_as_parameters(stack: StackConfig) -> dict[str, dict[str, Any]]:
    """What the launch arguments set, as parameters of each node; None = left to the parameter files."""
    parameters = {
        "sim_node": {
            "task": stack.task,
            "seed": stack.seed,
            "mode": stack.mode,
            "real_time_factor": stack.real_time_factor,
            "action_delay_steps": stack.action_delay_steps,
        },
        "dynamics_node": {
            "model": stack.model,
            "seed": stack.seed,
            "dataset": f"{stack.run_dir}/dataset" if stack.run_dir else "",
            "record": stack.record,
            "checkpoint": f"{stack.run_dir}/checkpoint" if stack.run_dir else "",
        },
        "planner_node": {
            "task": stack.task,
            "planner": stack.planner,
            "model": stack.model,
            "seed": stack.seed,
            "episodes": stack.episodes,
            "wait_for_model": True,
            "time_budget": stack.time_budget,
        },
    }
    return {
        node: {name: value for name, value in given.items() if value is not None}
        for node, given in parameters.items()
    }


def checked(node: str, parameters: Mapping[str, Any], stack: StackConfig) -> dict[str, Any]:
    """The whole configuration of a node, defaults included, flat and of the right types.

    Raises:
        UserError: a parameter is unknown, of the wrong type or out of range; the sentence names the node.
    """
    tables = groups(node, stack)
    values: dict[str, dict[str, Any]] = {group: {} for group in tables}
    for name, value in parameters.items():
        if name == "use_sim_time":
            continue
        group, _, field = name.rpartition(".")
        if group not in tables:
            valid = ", ".join(f"{g}.*" for g in tables if g)
            raise UserError(f"unknown parameter '{name}' of {node}; valid: its own, {valid}")
        values[group][field] = value
    result = {}
    for group, cls in tables.items():
        try:
            configuration: Any = build(cls, values[group], group)
        except UserError as error:
            raise UserError(f"{node}: {error}") from None
        prefix = f"{group}." if group else ""
        for entry in dataclasses.fields(cls):
            value = getattr(configuration, entry.name)
            result[prefix + entry.name] = list(value) if isinstance(value, tuple) else value
    return result


def groups(node: str, stack: StackConfig) -> dict[str, type]:
    """Prefix -> configuration class. Imported only now: the nodes' modules load rclpy, some of them torch."""
    own = getattr(importlib.import_module(NODES[node][1]), _CONFIG[node])
    tables: dict[str, type] = {"": own}
    if node == "dynamics_node":
        tables[_prefix(stack.model)] = find("models", stack.model).Config
    elif node == "planner_node":  # the settings of other planners may stand beside those of the chosen one
        for name in sorted({*names("planners"), stack.planner}):
            tables[_prefix(name)] = find("planners", name).Config
    return tables


def _prefix(plugin: str) -> str:
    """The prefix of a plugin's parameters: its name, or the class of a package.module:Class."""
    return plugin.rpartition(":")[2]
