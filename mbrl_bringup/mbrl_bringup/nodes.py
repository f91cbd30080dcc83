"""The nodes of a stack: where they live, which parameters they have, and which of these the arguments set."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_dynamics.config import build, one_of
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import find, make_task, names

if TYPE_CHECKING:
    from mbrl_bringup.robot_config import RobotConfig
    from mbrl_bringup.stack import StackConfig

NODES = {  # name -> (package, module), in the order of the flow
    "sim_node": ("mbrl_sim", "mbrl_sim.ros.sim_node"),
    "driver_node": ("mbrl_sim", "mbrl_sim.ros.driver_node"),
    "robot_bridge": ("mbrl_bringup", "mbrl_bringup.ros.robot_bridge_node"),
    "dynamics_node": ("mbrl_dynamics", "mbrl_dynamics.ros.dynamics_node"),
    "planner_node": ("mbrl_planner", "mbrl_planner.ros.planner_node"),
    "policy_node": ("mbrl_planner", "mbrl_planner.ros.policy_node"),
    "teleop_node": ("mbrl_planner", "mbrl_planner.ros.teleop_node"),
}
_CONFIG = {
    "sim_node": "SimConfig",
    "driver_node": "DriverConfig",
    "robot_bridge": "BridgeConfig",
    "dynamics_node": "DynamicsNodeConfig",
    "planner_node": "PlannerNodeConfig",
    "policy_node": "PolicyNodeConfig",
    "teleop_node": "TeleopNodeConfig",
}
SIMULATED = ("mode", "action_repeat", "real_time_factor", "action_delay_steps")  # arguments without a robot
PLANNING_SHARE = 0.6  # of the time until an answer is due on a robot
FOLDERS = ("dataset", "checkpoint")  # of a run
MPC, TELEOP = "mpc", "teleop"
CONTROLLERS = {MPC: "planner_node", TELEOP: "teleop_node"}  # all other agents run in policy_node


def wanted(stack: StackConfig) -> list[str]:
    """Names of the nodes that a stack consists of, in the order of the flow."""
    if stack.mode == "free":
        return ["sim_node"]
    world = [*(["driver_node"] if stack.driver else []), "robot_bridge"] if stack.robot else ["sim_node"]
    learner = ["dynamics_node"] if model_kind(stack) else []
    return [*world, *learner, CONTROLLERS.get(stack.agent, "policy_node")]


def robot_of(stack: StackConfig) -> RobotConfig | None:
    """The file of the robot that the arguments name, checked against its task; None = none is named.

    Raises:
        UserError: the file is not what it should be, or an argument is for robots only.
    """
    from mbrl_bringup.robot_config import check_robot, find, task_of  # it reads files with `stack`

    if not stack.robot:
        for name in ("limits", "passive"):
            if getattr(stack, name) != getattr(type(stack), name):
                raise UserError(f"argument '{name}' is for robots: name one, for example robot:=cartpole")
        return None
    robot = find(stack.robot)
    check_robot(robot, task_of(robot).spec)
    return robot


def on_robot(stack: StackConfig, robot: RobotConfig, given: Mapping[str, Any]) -> StackConfig:
    """The arguments as a robot's file completes them.

    Args:
        stack: the launch arguments.
        robot: the file.
        given: the arguments that were named.

    Raises:
        UserError: an argument is for simulation only, or for another task.
    """
    from mbrl_bringup.robot_config import task_of  # it reads files with `stack`

    for name in SIMULATED:
        if getattr(stack, name) is not None:
            raise UserError(f"argument '{name}' is for simulation; a robot's file says how it keeps time")
    if given.get("task", robot.task) != robot.task:
        raise UserError(f"argument 'task' is '{stack.task}', but robot '{stack.robot}' is for '{robot.task}'")
    budget = stack.time_budget
    if budget is None:  # a robot does not wait, and an answer must still travel
        period = task_of(robot).spec.control_period
        budget = PLANNING_SHARE * robot.action_delay_steps * period
    return dataclasses.replace(
        stack,
        task=robot.task,
        action_repeat=robot.action_repeat or None,
        no_model=stack.no_model or "safe",
        time_budget=budget,
    )


def model_kind(stack: StackConfig) -> str:
    """Kind of dynamics model that is learned; empty = the agent needs none."""
    if stack.agent in CONTROLLERS:
        return stack.model or "ensemble"
    own: str = policy_class(stack.agent).model
    return (stack.model or own) if own else ""


def policy_class(agent: str) -> Any:
    """The class of an agent that learns a policy.

    Raises:
        UserError: there is none of that name; the sentence lists all that a stack can run.
    """
    if ":" not in agent:
        one_of("agent", agent, [*CONTROLLERS, *names("agents")])
    from mbrl_planner.policy_agents import policy_class  # loads torch

    return policy_class(agent)


def arguments_as_parameters(stack: StackConfig, robot: RobotConfig | None) -> dict[str, dict[str, Any]]:
    """What the launch arguments, and a robot's file, set as parameters of each node; None = left to the
    parameter files.
    """
    dataset, checkpoint = (f"{stack.run_dir}/{name}" if stack.run_dir else "" for name in FOLDERS)
    parameters: dict[str, dict[str, Any]] = {
        "sim_node": {
            "task": stack.task,
            "seed": stack.seed,
            "mode": stack.mode or ("realtime" if stack.agent == TELEOP else None),  # people do not wait
            "action_repeat": stack.action_repeat,
            "real_time_factor": stack.real_time_factor,
            "action_delay_steps": stack.action_delay_steps,
        },
        **({} if robot is None else _robot_parameters(stack, robot)),
        "dynamics_node": {
            "model": model_kind(stack) or None,
            "seed": stack.seed,
            "dataset": dataset,
            "record": stack.record,
            "checkpoint": checkpoint,
        },
        "planner_node": {
            "task": stack.task,
            "action_repeat": stack.action_repeat,
            "planner": stack.planner,
            "model": model_kind(stack) or None,
            "seed": stack.seed,
            "episodes": stack.episodes,
            "wait_for_model": True,
            "time_budget": stack.time_budget,
            "device": stack.device,
            "no_model": stack.no_model,
            "model_folder": f"{stack.run_dir}/model" if stack.run_dir else "",
        },
        "teleop_node": {
            "task": stack.task,
            "action_repeat": stack.action_repeat,
            "episodes": stack.episodes,
        },
        "policy_node": {
            "task": stack.task,
            "action_repeat": stack.action_repeat,
            "agent": stack.agent,
            "model": stack.model,
            "device": stack.device,
            "seed": stack.seed,
            "dataset": dataset,
            "record": stack.record and "dynamics_node" not in wanted(stack),  # one node records
            "checkpoint": checkpoint,
            "episodes": stack.episodes,
            "wait_for_model": stack.mode != "realtime" and not stack.robot,  # there it learns while it acts
            "no_model": stack.no_model,
        },
    }
    return {
        node: {name: value for name, value in given.items() if value is not None}
        for node, given in parameters.items()
    }


def _robot_parameters(stack: StackConfig, robot: RobotConfig) -> dict[str, dict[str, Any]]:
    from mbrl_bringup.robot_config import is_file

    name = str(Path(stack.robot).expanduser().absolute()) if is_file(stack.robot) else stack.robot
    return {
        "driver_node": {  # the stand-in is as the file says that the robot is
            "task": robot.task,
            "seed": stack.seed,
            "command_topic": robot.commands[0].topic,
            "command_timeout": robot.guard.driver_timeout,
        },
        "robot_bridge": {"robot": name, "limits": stack.limits, "passive": stack.passive},
    }


def learned_reward(stack: StackConfig, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of dynamics_node; its model learns rewards, and ends, where only the world knows them.

    Raises:
        UserError: it cannot.
    """
    from mbrl_dynamics.models.with_task import knows_reward  # loads torch

    kind = model_kind(stack)
    task, model_class = make_task(stack.task, stack.action_repeat or 0), find("models", kind)
    if knows_reward(task) or model_class.capabilities.rewards:
        return dict(parameters)
    known = {entry.name for entry in dataclasses.fields(model_class.Config)}
    if "rewards" not in known:
        raise UserError(
            f"model '{kind}' cannot learn rewards, and task '{stack.task}' does not tell them: "
            "take model 'ensemble' or 'network'"
        )
    group = _prefix(kind)
    told = {f"{group}.rewards": True}
    if "terminations" in known:
        told[f"{group}.terminations"] = bool(getattr(task, "terminates", True))
    return {**told, **parameters}


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
        kind = model_kind(stack) or "ensemble"
        tables[_prefix(kind)] = find("models", kind).Config
    elif node == "policy_node":  # likewise those of other agents, as far as they can be loaded
        tables |= policy_tables(stack.agent)
    elif node == "planner_node":  # the settings of other planners may stand beside those of the chosen one
        for name in sorted({*names("planners"), stack.planner}):
            tables[_prefix(name)] = find("planners", name).Config
    return tables


def policy_tables(agent: str) -> dict[str, type]:
    """Prefix -> configuration class of an agent, and of all others that are installed."""
    from mbrl_planner.policy_agents import trainable  # loads torch

    tables = {name: policy_class(name).Config for name in trainable()}
    if agent not in CONTROLLERS:
        tables[_prefix(agent)] = policy_class(agent).Config
    return tables


def check_policy(
    stack: StackConfig, robot: RobotConfig | None, parameters: Mapping[str, Mapping[str, Any]]
) -> None:
    """Look whether an agent fits the task, the device and what is in the run's folder.

    Args:
        stack: the launch arguments.
        robot: the robot's file; None = the world is simulated.
        parameters: the whole configuration of each node.

    Raises:
        UserError: it does not.
    """
    own = parameters["policy_node"]
    if robot is not None:
        delay = robot.action_delay_steps
    elif parameters["sim_node"]["image_size"]:
        return  # only the world knows its cameras; the node looks itself
    else:
        delay = parameters["sim_node"]["action_delay_steps"]
    from mbrl_planner.policy_agents import check_deployment  # loads torch

    task = make_task(own["task"], own["action_repeat"])
    spec = dataclasses.replace(task.spec, action_delay_steps=delay)
    group = f"{_prefix(stack.agent)}."
    given = {key.removeprefix(group): value for key, value in own.items() if key.startswith(group)}
    check_deployment(stack.agent, spec, given, own)


def check_planner(parameters: Mapping[str, Any]) -> None:
    """Look whether the planner of planner_node fits the task and the model.

    Args:
        parameters: the node's whole configuration.

    Raises:
        UserError: it does not.
    """
    from mbrl_planner.planners.graphed import on_device  # loads torch

    planner_class, prefix = find("planners", parameters["planner"]), _prefix(parameters["planner"])
    group = f"{prefix}."
    given = {key.removeprefix(group): value for key, value in parameters.items() if key.startswith(group)}
    planner = planner_class(build(planner_class.Config, given, prefix))
    task = make_task(parameters["task"], parameters["action_repeat"])
    planner = on_device(planner, parameters["device"], task, parameters["time_budget"])
    planner.check(task.spec, find("models", parameters["model"]), task)


def _prefix(plugin: str) -> str:
    """The prefix of a plugin's parameters: its name, or the class of a package.module:Class."""
    return plugin.rpartition(":")[2]
