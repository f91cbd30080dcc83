"""Takes models from `model_update`, and says on `model_status` which one is in use or why one was refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mbrl_dynamics.interfaces import Model, Task
from mbrl_dynamics.ros.convert import snapshot_from_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, BaseNode
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition, WorldId
from mbrl_msgs.msg import LearnerStatus, ModelStatus, ModelUpdate
from mbrl_planner.gate_process import GateProcess, Order
from mbrl_planner.model_gate import build_with, stored
from mbrl_planner.model_shelf import ModelShelf, Verdict


class ModelSubscriber:
    """Feeds a ModelShelf from a topic, and from what an earlier start has kept.

    Args:
        node: subscribes and publishes.
        order: how models are judged.
        task: lends its reward to models that predict observations only.
        ready: called in the executor, between decisions, with each new model; None = without one again.
    """

    def __init__(
        self, node: BaseNode, order: Order, task: Task, ready: Callable[[Model | None], None]
    ) -> None:
        self.node, self.ready = node, ready
        self.in_use: Snapshot | None = None
        self.swaps = self.refused = self.rollbacks = 0
        self.last_refusal = self._unread = self._said = ""
        self._status = node.create_publisher(ModelStatus, "model_status", LATCHED_QOS)
        self._wake = node.create_guard_condition(node.guarded(self._take))
        self._gate = GateProcess(order)
        self._shelf = ModelShelf(task.spec, build_with(task), self._gate, self._wake.trigger)
        self._recall(order.folder)
        node.create_subscription(ModelUpdate, "model_update", node.guarded(self._on_update), LATCHED_QOS)
        node.steady_timer(1.0, self._on_second)
        self._publish()

    @property
    def version(self) -> int:
        """Version of the model in use; 0 = none."""
        return 0 if self.in_use is None else self.in_use.version

    @property
    def text(self) -> str:
        """The model in use, for people."""
        used = self.in_use
        return "none" if used is None else f"{used.model_id} {used.version} of run {used.run_id[:8]}"

    def covers(self, world_id: WorldId, episode: int) -> bool:
        """Whether the model in use was trained on that episode."""
        used = self.in_use
        return (
            used is not None
            and used.trained_world_id.replace("-", "") == world_id.hex()
            and used.trained_episode >= episode
        )

    @property
    def awaits_learner(self) -> bool:
        """Models come from another node."""
        return True

    def rests(self, learner: LearnerStatus | None) -> bool:
        """Whether there is a learner, and it does not train."""
        return learner is not None and learner.status != LearnerStatus.TRAINING

    @property
    def trouble(self) -> str:
        """What is wrong beside the models, in one sentence; empty = nothing."""
        return self._unread or self._shelf.trouble

    def hear(self, state: Transition) -> None:
        """What happened, which models are compared on."""
        self._shelf.hear(state)

    def use_planner(self, name: str, settings: dict[str, Any]) -> None:
        """Try new models out with this planner."""
        self._gate.order = replace(self._gate.order, planner=name, settings=settings)
        self._shelf.begin_again()

    def use_spec(self, spec: Spec) -> None:
        """Another world: only a model of its dynamics will do."""
        self._shelf.use_spec(spec)
        if self.in_use is not None:
            self.in_use = None
            self.ready(None)
            self._publish()

    def close(self) -> None:
        """End the worker."""
        self._shelf.close()

    def _on_update(self, msg: ModelUpdate) -> None:
        self._shelf.offer(snapshot_from_msg(msg))

    def _recall(self, folder: str) -> None:
        """Begin with the model that an earlier start has kept."""
        if not folder:
            return
        try:
            kept = stored(Path(folder))
        except ValueError as error:
            self._unread = str(error)
            self.node.get_logger().warning(self._unread)
            return
        if kept is not None:
            self._shelf.offer(kept)

    def _take(self) -> None:
        for verdict in self._shelf.take():
            if verdict.reason:
                self.last_refusal = verdict.reason
                self._count(verdict)
            if verdict.model is not None:
                self.in_use = verdict.snapshot
                self.swaps += 1
                self.ready(verdict.model)
            self._publish()

    def _count(self, verdict: Verdict) -> None:
        logger = self.node.get_logger()
        if verdict.model is None:
            self.refused += 1
            logger.warning(f"refused: {verdict.reason}", throttle_duration_sec=1.0)
        else:
            self.rollbacks += 1
            logger.warning(f"given up: {verdict.reason}")

    def _on_second(self) -> None:
        if self.trouble != self._said:
            self._said = self.trouble
            if self._said:
                self.node.get_logger().error(self._said)
        self._publish()

    def _publish(self) -> None:
        used, error = self.in_use, self._shelf.error
        msg = ModelStatus(
            stamp=self.node.get_clock().now().to_msg(),
            node=self.node.get_fully_qualified_name(),
            in_use=used is not None,
            swaps=self.swaps,
            refused=self.refused,
            rollbacks=self.rollbacks,
            last_refusal=self.last_refusal,
            error=math.nan if used is None or error is None else error,
            error_msg=self.trouble,
        )
        if used is not None:
            msg.model_id, msg.run_id, msg.version = used.model_id, used.run_id, used.version
        self._status.publish(msg)
