"""What each node of a stack may do, as a policy for SROS 2: `mbrl security`. No ROS.

The format is that of https://docs.ros.org/en/rolling/Tutorials/Advanced/Security/Access-Controls.html
(policy 0.2.0); `ros2 security generate_artifacts` makes keys and permissions of it. Nobody but the bridge may
publish commands to a robot, nobody but the learner models, and nobody but the operator may arm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from mbrl_bringup.nodes import NODES
from mbrl_bringup.robot_config import RobotConfig
from mbrl_bringup.stack import Process
from mbrl_dynamics.plugins import make_task

OPERATOR = "operator"  # the enclave of `mbrl arm`, `status`, ..., and of a person's buttons
PARAMETERS = (  # services that every node has
    *("describe_parameters", "get_parameter_types", "get_parameters", "get_type_description"),
    *("list_parameters", "set_parameters", "set_parameters_atomically"),
)
_LIFECYCLE = ("change_state", "get_state", "get_available_states", "get_available_transitions")


@dataclass(frozen=True)
class Access:
    """What one node may do; names are relative to its namespace, unless they begin with a slash."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()  # services
    call: tuple[str, ...] = ()
    serve_actions: tuple[str, ...] = ()
    call_actions: tuple[str, ...] = ()


_WORLD = Access(
    publish=("spec", "state", "world_status"),
    subscribe=("action",),
    serve=("pause", "single_step"),
    serve_actions=("reset",),
)
_CONTROLLER = Access(
    publish=("action",),
    subscribe=("spec", "state", "world_status", "learner_status"),
    serve_actions=("run_episodes",),
    call_actions=("reset",),
)


def _more(access: Access, **names: tuple[str, ...]) -> Access:
    return replace(access, **{field: (*getattr(access, field), *more) for field, more in names.items()})


_ACCESS = {
    "sim_node": _more(_WORLD, publish=("/clock", "joint_states", "scene")),
    "robot_bridge": _more(
        _WORLD,
        publish=("guard_status", "~/transition_event"),
        subscribe=("emergency_stop", "emergency_stop/heartbeat"),
        serve=("arm", "stop", "confirm", "~/get_transition_graph", *(f"~/{name}" for name in _LIFECYCLE)),
    ),
    "driver_node": Access(publish=("joint_states",), serve=("home", "fault")),
    "dynamics_node": Access(
        publish=("learner_status", "model_update"),
        subscribe=("spec", "state", "action"),
        serve=("get_model",),
    ),
    "planner_node": _more(
        _CONTROLLER,
        publish=("model_status", "plan", "plan_markers"),
        subscribe=("model_update",),
        serve=("compute_plan",),
    ),
    "policy_node": _more(_CONTROLLER, publish=("model_status", "policy_status"), subscribe=("model_update",)),
    "teleop_node": _more(_CONTROLLER, subscribe=("joy",)),
    "rviz2": Access(
        subscribe=(
            "joint_states",
            "scene",
            "plan_markers",
            "robot_description",
            "/clock",
            "/tf",
            "/tf_static",
        )
    ),
    "robot_state_publisher": Access(
        publish=("robot_description", "/tf", "/tf_static"), subscribe=("joint_states",)
    ),
    OPERATOR: Access(
        publish=("emergency_stop", "emergency_stop/heartbeat", "joy", "move_goal"),
        subscribe=(
            *("spec", "state", "world_status", "guard_status", "learner_status", "model_status"),
            *("model_update", "policy_status", "/diagnostics"),
        ),
        call=("arm", "stop", "confirm", "pause", "single_step", "get_model", "compute_plan"),
        call_actions=("reset", "run_episodes"),
    ),
}


def access(node: str, robot: RobotConfig | None, namespace: str, *, goal: bool = False) -> Access:
    """What a node may do.

    Args:
        node: its name, or OPERATOR.
        robot: the robot's file; None = the world is simulated.
        goal: whether the task has a goal that can be moved.
        namespace: of the stack, absolute; empty = none.
    """
    result = _ACCESS[node]
    if namespace:  # each robot has its own clock
        renamed = {"/clock": f"{namespace}/clock"}
        result = replace(
            result,
            publish=tuple(renamed.get(name, name) for name in result.publish),
            subscribe=tuple(renamed.get(name, name) for name in result.subscribe),
        )
    if goal and node in ("sim_node", "driver_node"):
        result = _more(result, subscribe=("move_goal",))
    if node in NODES:
        result = _more(result, publish=("/diagnostics",))
    if robot is None:
        return result
    told = (*(s.topic for s in robot.sources.values()), *(c.topic for c in robot.cameras.values()))
    seen = tuple(dict.fromkeys(told))
    moved = tuple(command.topic for command in robot.commands)
    home = (robot.beginning.service,) if robot.beginning.service else ()
    if node == "robot_bridge":
        return _more(result, publish=moved, subscribe=seen, call=home)
    if node == "driver_node":
        new = tuple(name for name in seen if name not in result.publish)
        return _more(result, publish=new, subscribe=moved)
    return _more(result, subscribe=seen) if node == OPERATOR else result  # for `mbrl check-robot`


def policy(processes: Iterable[Process], robot: RobotConfig | None) -> str:
    """The policy of a stack as XML: one enclave a process, named as the node, and one for the operator."""
    root = ElementTree.Element("policy", version="0.2.0")
    enclaves = ElementTree.SubElement(root, "enclaves")
    namespace = ""
    for process in processes:
        namespace, task = process.namespace, process.configuration.get("task", "")
        goal = bool(task and getattr(make_task(task), "goal", ""))
        _enclave(enclaves, process.name, namespace, access(process.name, robot, namespace, goal=goal))
    _enclave(enclaves, OPERATOR, namespace, access(OPERATOR, robot, namespace))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _enclave(parent: ElementTree.Element, name: str, namespace: str, may: Access) -> None:
    enclave = ElementTree.SubElement(parent, "enclave", path=f"{namespace}/{name}")
    profiles = ElementTree.SubElement(enclave, "profiles")
    profile = ElementTree.SubElement(profiles, "profile", ns=namespace or "/", node=name)
    _allow(profile, "topic", "publish", (*may.publish, "/rosout", "/parameter_events"))
    _allow(profile, "topic", "subscribe", (*may.subscribe, "/parameter_events"))
    _allow(profile, "service", "reply", (*may.serve, *(f"~/{service}" for service in PARAMETERS)))
    _allow(profile, "service", "request", may.call)
    _allow(profile, "action", "execute", may.serve_actions)
    _allow(profile, "action", "call", may.call_actions)


def _allow(profile: ElementTree.Element, kind: str, right: str, names: tuple[str, ...]) -> None:
    if not names:
        return
    group = ElementTree.SubElement(profile, f"{kind}s", {right: "ALLOW"})
    for name in names:
        ElementTree.SubElement(group, kind).text = name
