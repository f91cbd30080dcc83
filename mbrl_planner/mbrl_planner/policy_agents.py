"""Agents that learn a policy, by name, and whether one can be deployed. No ROS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl_dynamics import plugins
from mbrl_dynamics.config import build
from mbrl_dynamics.device import choose
from mbrl_dynamics.episodes import newest_spec
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec
from mbrl_planner import agent_trainer
from mbrl_planner.agents.base import PolicyAgent


def policy_class(name: str) -> Any:
    """The class of an agent that learns a policy.

    Raises:
        UserError: there is none of that name, or it learns none.
    """
    found = plugins.find("agents", name)
    if not _learns_policy(found):
        raise UserError(f"agent '{name}' learns no policy; valid: {', '.join(trainable())}")
    return found


def trainable() -> list[str]:
    """Names of all installed agents that learn a policy."""
    found = []
    for name in plugins.names("agents"):
        try:
            agent = plugins.find("agents", name)
        except UserError:
            continue  # one that cannot be imported; naming it tells why
        if _learns_policy(agent):
            found.append(name)
    return found


def _learns_policy(agent: Any) -> bool:
    return isinstance(agent, type) and issubclass(agent, PolicyAgent)


def prefix(agent: str) -> str:
    """The prefix of an agent's parameters: its name, or the class of a package.module:Class."""
    return agent.rpartition(":")[2]


def check_deployment(name: str, spec: Spec, given: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    """Look whether an agent fits a world, its devices, and the folders that it is to go on with.

    Args:
        name: of the agent.
        spec: of the world.
        given: parameters of the agent.
        node: parameters of policy_node.

    Raises:
        UserError: it does not; one sentence.
    """
    agent_class = policy_class(name)
    choose(node["device"])
    agent = agent_class(spec, build(agent_class.Config, given, prefix(name)), device=node["acting_device"])
    if node["learn"]:
        agent.check_learning()
    if node["checkpoint"]:
        agent_trainer.load(Path(node["checkpoint"]).expanduser(), agent, name, learn=False)
    folder = Path(node["dataset"]).expanduser()
    seen = newest_spec(folder) if node["dataset"] and folder.is_dir() else None
    if seen is not None:
        agent_trainer.check_dataset(folder, seen, spec)
