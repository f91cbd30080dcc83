"""The node that runs a policy: answers each State at once, while another process lets the policy learn."""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from mbrl_dynamics import plugins
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.device import choose
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.ros.node import run
from mbrl_dynamics.ros.params import given_parameters
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner import agent_trainer
from mbrl_planner.agents.base import PolicyAgent
from mbrl_planner.policy_agents import policy_class, prefix
from mbrl_planner.policy_learner import Order
from mbrl_planner.ros.controller_node import ControllerNode, ControllerNodeConfig, mismatch
from mbrl_planner.ros.policy_learning import PolicyLearning

HELD = 10_000  # States kept until the spec of their world comes


@config
class PolicyNodeConfig(ControllerNodeConfig):
    """Parameters of PolicyNode; an agent's own stand under its name, as in `mbpo.replay_ratio`.

    In real time an action takes effect `action_delay_steps` after the State that it answers. A policy acts on
    the newest State, and knows of actions under way only what its agent takes into account (most take none).
    """

    agent: Annotated[
        str, Field(description="what acts and learns: an installed agent, or package.module:Class")
    ] = "mbpo"
    model: Annotated[
        str, Field(description="kind of dynamics model that the agent learns with; empty = its own choice")
    ] = ""
    mode: Annotated[
        Literal["exploit", "explore", "random"],
        Field(description="how to act while following, and in the episodes run from the start"),
    ] = "explore"
    learn: Annotated[bool, Field(description="whether the policy learns; otherwise it only acts")] = True
    dataset: Annotated[
        str,
        Field(description="folder with what was seen, read at the start; empty = nothing is kept on disk"),
    ] = ""
    record: Annotated[
        bool, Field(description="whether this node writes what it sees to the dataset folder")
    ] = True
    checkpoint: Annotated[
        str, Field(description="folder of the checkpoint, read at the start; empty = none is written")
    ] = ""
    checkpoint_period: Annotated[float, Field(gt=0, description="between two checkpoints, at most [s]")] = (
        30.0
    )
    deadline: Annotated[
        float,
        Field(
            ge=0, description="an answer that takes longer is counted as missed; 0 = the control period [s]"
        ),
    ] = 0.0
    device: Annotated[str, Field(description="where the policy learns: cpu, cuda, cuda:1 ...")] = "cpu"
    acting_device: Annotated[str, Field(description="where the policy acts: cpu, cuda, cuda:1 ...")] = "cpu"
    learning_threads: Annotated[
        int, Field(ge=1, le=256, description="torch threads of the learning process [1]")
    ] = 1
    learning_nice: Annotated[
        int, Field(ge=0, le=19, description="how far the learning process stands back for others [1]")
    ] = 5


class PolicyNode(ControllerNode):
    """Hosts any agent that learns a policy. Subscribes `spec`, `state`, and `model_update` where needed.

    Raises:
        UserError: a parameter is unknown, of the wrong type or out of range, or names nothing that fits.
    """

    Config = PolicyNodeConfig
    tunable = False
    models: PolicyLearning

    def __init__(self, **kwargs: Any) -> None:
        self.exit_code = 0
        self._spec: Spec | None = None  # that it began with
        self._held: deque[Transition] = deque(maxlen=HELD)
        super().__init__("policy_node", **kwargs)
        torch.set_grad_enabled(False)

    # As a controller ----------------------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, type]:
        """Those of the agent, and of others for which parameters stand beside them in a file."""
        given = given_parameters(self)
        name = str(given.get("agent", PolicyNodeConfig.agent))
        groups = {prefix(name): policy_class(name).Config}
        for other in {key.partition(".")[0] for key in given if "." in key} & set(plugins.names("agents")):
            groups.setdefault(other, policy_class(other).Config)
        return groups

    def make_decider(self) -> PolicyAgent:
        """An agent for the world that the task tells of; the world itself may have cameras and a delay."""
        own = self.params[""]
        if own.device != own.acting_device:
            choose(own.device)
        agent = self._make_agent(self.task.spec)
        kind = own.model or agent.model
        if kind and agent.model:
            plugins.find("models", kind)
        return agent

    def make_models(self) -> PolicyLearning:
        """The learning process."""
        own, agent = self.params[""], self._agent
        kind = (own.model or agent.model) if agent.model else ""
        wanted = own.learn or bool(own.dataset and own.record)
        return PolicyLearning(self, own.agent, kind, on=wanted, changed=self._on_news, fatal=self._give_up)

    def take_world(self, world: Spec) -> str:
        """Begin with the first world that fits, and stay with its dynamics."""
        if self._spec is not None:
            theirs, ours = world.dynamics_hash[:12], self._spec.dynamics_hash[:12]
            return (
                f"the world's dynamics hash is {theirs}, but this policy began with {ours}: start another "
                "node, with a dataset and a checkpoint of its own"
                if theirs != ours
                else ""
            )
        fault = mismatch(dataclasses.replace(self.task.spec, cameras=world.cameras), world)
        if not fault:
            try:
                self._begin(world)
            except UserError as error:
                self._give_up(str(error))
                fault = str(error)
        return fault

    def heard(self, state: Transition) -> None:
        """Let the learning process know."""
        self._held.append(state)
        runner = self.episodes.runner
        between = runner is not None and runner.goal.wait_for_model
        while self._held and self.world_id is not None:
            kept = self._held.popleft()
            if kept.world_id == self.world_id:
                self.models.hear(kept, between=between)

    def show(self, state: Transition) -> None:
        """Count an answer that took too long."""
        limit = self.params[""].deadline or self.controller.spec.control_period
        self.models.missed_deadlines += self.statistics.answer_ms[-1] > 1e3 * limit

    def trouble(self) -> str:
        """What is wrong with the learning."""
        return self.models.error

    def diagnostics(self) -> dict[str, Any]:
        """How the learning goes."""
        said, learning = self.models.said, self.models
        return {
            "missed deadlines": learning.missed_deadlines,
            "last refused policy": learning.last_refusal,
            "updates": said.get("updates", 0),
            "updates owed": said.get("owed", 0),
            "steps of experience": said.get("env_steps", 0),
            "States not yet learned from": learning.process.behind if learning.process else 0,
            "restarts of the learning process": learning.process.restarts if learning.process else 0,
            "learning error": learning.error,
        }

    # ------------------------------------------------------------------------------------------------------

    def _on_news(self) -> None:
        self.episodes.tick()
        self.catch_up()

    def _make_agent(self, spec: Spec) -> PolicyAgent:
        own = self.params[""]
        agent = policy_class(own.agent)(
            spec, self.params[prefix(own.agent)], seed=own.seed, device=own.acting_device
        )
        self._agent: PolicyAgent = agent.eval()
        return agent

    def _begin(self, world: Spec) -> None:
        """Act in this world, with what the checkpoint holds, and let the learning begin.

        Raises:
            UserError: the checkpoint is of another agent, task or dynamics.
        """
        own, agent = self.params[""], self._agent
        if world.dynamics_hash != agent.spec.dynamics_hash:
            agent = self._make_agent(world)
            self.controller.decider = self.decider = agent
        if own.checkpoint:
            agent_trainer.load(Path(own.checkpoint).expanduser(), agent, own.agent, learn=False)
        self._spec = world
        self.models.begin(agent, self._order())
        self.get_logger().info(f"agent {own.agent}, {agent.updates} updates behind it")

    def _order(self) -> Order:
        own = self.params[""]
        return Order(
            agent=own.agent,
            config=dataclasses.asdict(self.params[prefix(own.agent)]),
            model=self.models.kind,
            threads=own.learning_threads,
            nice=own.learning_nice,
            hold=not own.learn,
            **{
                name: getattr(own, name)
                for name in (
                    *("task", "action_repeat", "dataset", "record", "checkpoint", "checkpoint_period"),
                    *("device", "seed"),
                )
            },
        )

    def _give_up(self, reason: str) -> None:
        """End, because the user has to change something."""
        print(f"error: {reason}", file=sys.stderr, flush=True)
        self.exit_code = 2
        self.request_stop()


def main() -> int:
    """Run the node."""
    nodes: list[PolicyNode] = []

    def make() -> PolicyNode:
        nodes.append(PolicyNode())
        return nodes[0]

    code = run(make)
    return code or (nodes[0].exit_code if nodes else 0)


if __name__ == "__main__":
    sys.exit(main())
