"""The learning side of a policy node: joins the learning process to topics, and swaps policies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from mbrl_dynamics.ros.convert import snapshot_from_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, BaseNode
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition, WorldId
from mbrl_msgs.msg import LearnerStatus, ModelStatus, ModelUpdate, PolicyStatus
from mbrl_planner import policy_weights
from mbrl_planner.agents.base import PolicyAgent
from mbrl_planner.learner_process import LearnerProcess
from mbrl_planner.pipe import Message
from mbrl_planner.policy_learner import REFUSED, STATUS, Order
from mbrl_planner.policy_weights import Weights

SILENCE = 30.0  # of the learning process, after which nobody waits for it [s]
EVENTS = 10  # that are told


class PolicyLearning:
    """Stands where the ModelSubscriber of a planner stands: new policies come from here.

    Args:
        node: subscribes and publishes.
        agent: name of the agent.
        kind: dynamics model that it learns with; empty = none.
        on: whether there is a learning process at all.
        changed: called in the executor, between decisions, whenever something is new.
        fatal: called when the process refuses what it was told to begin with, with a sentence.
    """

    def __init__(
        self,
        node: BaseNode,
        agent: str,
        kind: str,
        *,
        on: bool,
        changed: Callable[[], None],
        fatal: Callable[[str], None],
    ) -> None:
        self.node, self.agent_name, self.kind = node, agent, kind
        self.swaps = self.refused = self.missed_deadlines = 0
        self.last_refusal = self.error = ""
        self.events: list[str] = []
        self.said: dict[str, Any] = {}  # the newest status of the process
        self._changed, self._fatal = changed, fatal
        self._agent: PolicyAgent | None = None
        self._said_at = time.monotonic()
        self._status = node.create_publisher(PolicyStatus, "policy_status", LATCHED_QOS)
        self._model_status = node.create_publisher(ModelStatus, "model_status", LATCHED_QOS)
        wake = node.create_guard_condition(node.guarded(self._take))
        self.process = LearnerProcess(wake.trigger, self._lost) if on else None
        if kind and on:
            node.create_subscription(ModelUpdate, "model_update", node.guarded(self._on_model), LATCHED_QOS)
        node.steady_timer(1.0, self._on_second)
        self._publish()

    def begin(self, agent: PolicyAgent, order: Order) -> None:
        """Act with this agent, and learn as ordered."""
        self._agent = agent
        if self.process is not None:
            self.process.begin(order, agent.spec, policy_weights.shapes(agent))

    def hear(self, state: Transition, *, between: bool) -> None:
        """Learn from a State; `between`: only between episodes."""
        if self.process is not None:
            self.process.hear(state, between=between)

    # As a source of models (see controller_node.Models) -----------------------------------------------------

    @property
    def version(self) -> int:
        """Version of the dynamics model that is learned with; 0 = none."""
        model = self.said.get("model")
        return int(model[2]) if model else 0

    @property
    def text(self) -> str:
        """The policy in use, for people."""
        updates = 0 if self._agent is None else self._agent.updates
        return f"{self.agent_name} of {updates} updates" if updates else "none"

    @property
    def awaits_learner(self) -> bool:
        """Whether dynamics models must come from another node."""
        return bool(self.kind) and self.process is not None

    def covers(self, world_id: WorldId, episode: int) -> bool:
        """Whether the policy in use has learned all that it can from that episode."""
        if self.process is None:
            return True
        covered = self.said.get("covered")
        return covered is not None and covered[0] == world_id.hex() and bool(covered[1] >= episode)

    def rests(self, learner: LearnerStatus | None) -> bool:
        """Whether nothing is being learned, nor will be by itself."""
        process = self.process
        if process is None or not process.alive or time.monotonic() - self._said_at > SILENCE:
            return True
        if self.said.get("learning") or process.behind:
            return False
        return not self.kind or (learner is not None and learner.status != LearnerStatus.TRAINING)

    def use_spec(self, spec: Spec) -> None:
        """Another world: nothing to do, since a policy is bound to the dynamics that it began with."""

    def close(self) -> None:
        """Let the process write its checkpoint and end."""
        if self.process is not None and not self.process.close(timeout=4.0):
            self.node.get_logger().warning("the learning process is busy; it ends by itself")

    # What the process says ----------------------------------------------------------------------------------

    def _on_model(self, msg: ModelUpdate) -> None:
        if self.process is not None:
            self.process.offer(snapshot_from_msg(msg))

    def _on_second(self) -> None:
        if self.process is not None:
            self.process.poll()
        self._publish()

    def _take(self) -> None:
        assert self.process is not None
        for item in self.process.take():
            if isinstance(item, Weights):
                self._swap(item)
            elif item.kind == STATUS:
                self._heed(item)
            elif item.kind == REFUSED:
                self._refuse(str(item.values["reason"]))
        self._publish()
        self._changed()

    def _swap(self, weights: Weights) -> None:
        """Act with new weights, if they are sound and newer than those in use."""
        if self._agent is None or (weights.updates <= self._agent.updates and not weights.fault):
            return  # of a process that was started again and has not caught up
        if weights.fault:
            self.refused += 1
            self.last_refusal = weights.fault
            self.node.get_logger().warning(f"refused: {weights.fault}", throttle_duration_sec=1.0)
            return
        policy_weights.use(self._agent, weights)
        self.swaps += 1

    def _heed(self, message: Message) -> None:
        said = dict(message.values)
        for event in said["events"][_overlap(self.said.get("events", []), said["events"]) :]:
            self._note(event)
        news = any(
            self.said.get(key) != said[key] for key in ("model", "swaps", "models_refused", "rollbacks")
        )
        self.said, self.error, self._said_at = said, said["error"], time.monotonic()
        if self.kind and news:
            self._publish_model()

    def _refuse(self, reason: str) -> None:
        if self.said:  # it has run before: acting goes on
            self.error = reason
            self._note(reason)
        else:
            self._fatal(reason)

    def _lost(self, sentence: str) -> None:
        self.error = sentence
        self._said_at = time.monotonic()
        self.said = {**self.said, "events": [], "learning": False, "covered": None}
        self._note(sentence)

    def _note(self, event: str) -> None:
        self.events.append(event)
        del self.events[:-EVENTS]
        self.node.get_logger().warning(event)

    # Telling ------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> int:
        process = self.process
        if process is None:
            return PolicyStatus.OFF
        if not process.alive or self.error:
            return PolicyStatus.FAILED
        return PolicyStatus.LEARNING if self.said.get("learning") else PolicyStatus.IDLE

    def _publish(self) -> None:
        said, process = self.said, self.process
        metrics, covered = said.get("metrics", {}), said.get("covered") or ["", -1]
        seconds = said.get("burst_seconds")
        self._status.publish(
            PolicyStatus(
                stamp=self.node.get_clock().now().to_msg(),
                status=self._state,
                agent=self.agent_name,
                acting_updates=0 if self._agent is None else self._agent.updates,
                trained_world_id=covered[0],
                trained_episode=covered[1],
                learning_seconds=math.nan if seconds is None else seconds,
                model_version=self.version,
                swaps=self.swaps,
                refused=self.refused,
                last_refusal=self.last_refusal,
                missed_deadlines=self.missed_deadlines,
                restarts=0 if process is None else process.restarts,
                metric_names=list(metrics),
                metrics=list(metrics.values()),
                events=self.events,
                recording=bool(said.get("recording")),
                error_msg=self.error,
                **{key: said.get(key, 0) for key in ("updates", "owed", "env_steps", "episodes")},
            )
        )

    def _publish_model(self) -> None:
        said = self.said
        msg = ModelStatus(
            stamp=self.node.get_clock().now().to_msg(),
            node=self.node.get_fully_qualified_name(),
            in_use=said["model"] is not None,
            swaps=said["swaps"],
            refused=said["models_refused"],
            rollbacks=said["rollbacks"],
            last_refusal=said["last_refusal"],
            error=math.nan if said["model_error"] is None else said["model_error"],
        )
        if said["model"] is not None:
            msg.model_id, msg.run_id, msg.version = said["model"]
        self._model_status.publish(msg)


def _overlap(old: list[str], new: list[str]) -> int:
    """How many events of `new` were known: it is `old` with some added at its end, and the oldest gone."""
    for dropped in range(len(old) + 1):
        rest = old[dropped:]
        if new[: len(rest)] == rest:
            return len(rest)
    return 0
