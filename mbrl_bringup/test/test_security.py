"""What nodes may do is what they do: the policy beside the graph of real nodes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from xml.etree import ElementTree

import pytest

from mbrl_bringup.cli import main
from mbrl_bringup.robot_config import find
from mbrl_bringup.security import OPERATOR, PARAMETERS, Access, access
from mbrl_dynamics.ros.testing import eventually, isolated_domain, peer, start_node

NODES = {
    "mbrl_sim.ros.sim_node": {"task": "pendulum"},
    "mbrl_sim.ros.driver_node": {},
    "mbrl_bringup.ros.robot_bridge_node": {"robot": "cartpole"},
    "mbrl_dynamics.ros.dynamics_node": {},
    "mbrl_planner.ros.planner_node": {"task": "pendulum"},
    "mbrl_planner.ros.policy_node": {"task": "pendulum", "agent": "mbpo", "learn": True},
    "mbrl_planner.ros.teleop_node": {"task": "pendulum"},
}
NAMES = [module.rpartition(".")[2].replace("bridge_node", "bridge") for module in NODES]


def found(node: Any, name: str) -> Access:
    """What a node of the graph does, without what every node does."""
    publish, subscribe, serve, call = (
        {topic for topic, _ in list_of(name, "/")}
        for list_of in (
            node.get_publisher_names_and_types_by_node,
            node.get_subscriber_names_and_types_by_node,
            node.get_service_names_and_types_by_node,
            node.get_client_names_and_types_by_node,
        )
    )

    def plain(names: set[str]) -> tuple[str, ...]:
        common = {"/rosout", "/parameter_events", *(f"/{name}/{service}" for service in PARAMETERS)}
        return tuple(sorted(n for n in names - common if "/_action/" not in n))

    def actions(names: set[str]) -> tuple[str, ...]:
        return tuple(sorted({n.partition("/_action/")[0] for n in names if "/_action/" in n}))

    return Access(plain(publish), plain(subscribe), plain(serve), plain(call), actions(serve), actions(call))


def allowed(name: str) -> Access:
    may = access(name, find("cartpole") if name in ("robot_bridge", "driver_node") else None, "")

    def full(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted("/" + n.removeprefix("/").replace("~", name) for n in names))

    return Access(*(full(names) for names in vars(may).values()))


@pytest.mark.slow
def test_each_node_may_do_what_it_does_and_nothing_more():
    with isolated_domain(), ExitStack() as stack:
        for module, parameters in NODES.items():
            stack.enter_context(start_node(module, parameters))
        me = stack.enter_context(peer())
        wanted = {name: allowed(name) for name in NAMES}

        def differing() -> dict[str, Access | None]:
            known = {name for name, space in me.node.get_node_names_and_namespaces() if space == "/"}
            seen = {name: found(me.node, name) if name in known else None for name in NAMES}
            return {name: may for name, may in seen.items() if may != wanted[name]}

        try:
            eventually(lambda: not differing(), "the graph is another")
        except AssertionError:
            assert differing() == {name: wanted[name] for name in differing()}
            raise


def test_only_the_bridge_commands_only_the_learner_sends_models_and_only_the_operator_arms():
    robot = find("cartpole")
    may = {name: access(name, robot, "/left") for name in [*NAMES, OPERATOR]}
    (command,) = robot.commands
    for topic, owner in ((command.topic, "robot_bridge"), ("model_update", "dynamics_node")):
        assert [name for name, a in may.items() if topic in a.publish] == [owner]
    assert [name for name, a in may.items() if "arm" in a.call] == [OPERATOR]
    assert "/left/clock" in may["sim_node"].publish and "/clock" not in may["sim_node"].publish


def test_the_command_writes_a_policy_of_one_enclave_a_process(tmp_path, capsys):
    out = tmp_path / "policy.xml"
    assert main(["security", "robot:=cartpole", "namespace:=left", f"--out={out}"]) == 0
    root = ElementTree.parse(out).getroot()
    paths = [enclave.get("path") for enclave in root.iter("enclave")]
    names = ("driver_node", "robot_bridge", "dynamics_node", "planner_node", OPERATOR)
    assert paths == [f"/left/{name}" for name in names]
    assert {profile.get("ns") for profile in root.iter("profile")} == {"/left"}
    assert main(["security", f"--out={tmp_path}/no/policy.xml"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_goal_may_be_moved_where_there_is_one(capsys):
    for arguments in (["robot:=arm", "rviz:=true"], ["task:=arm_reach"], ["task:=pendulum"]):
        assert main(["security", *arguments]) == 0
        root = ElementTree.fromstring(capsys.readouterr().out.partition("\n")[2])
        world = next(root.iter("enclave"))
        subscribed = world.iterfind(".//topics[@subscribe]/topic")
        assert ("move_goal" in {topic.text for topic in subscribed}) == ("task:=pendulum" not in arguments)


@pytest.mark.parametrize("argument", ["robot:=cartpol", "agent:=mcp"])
def test_mistakes_are_told(argument, capsys):
    assert main(["security", argument]) == 2
    assert "did you mean" in capsys.readouterr().err
