"""Takes models from `model_update`, and says on `model_status` which one is in use or why one was refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.interfaces import Model, Task
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.ros.convert import snapshot_from_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, BaseNode
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import WorldId
from mbrl_msgs.msg import LearnerStatus, ModelStatus, ModelUpdate
from mbrl_planner.model_shelf import ModelShelf


class ModelSubscriber:
    """Feeds a ModelShelf from a topic.

    Args:
        node: subscribes and publishes.
        kind: model id that is accepted.
        task: lends its reward to models that predict observations only.
        ready: called in the executor, between decisions, with each new model; None = without one again.
    """

    def __init__(self, node: BaseNode, kind: str, task: Task, ready: Callable[[Model | None], None]) -> None:
        self.node, self.ready = node, ready
        self.in_use: Snapshot | None = None
        self.swaps = self.refused = 0
        self.last_refusal = ""
        self._task = task
        self._status = node.create_publisher(ModelStatus, "model_status", LATCHED_QOS)
        self._wake = node.create_guard_condition(node.guarded(self._take))
        self._shelf = ModelShelf(task.spec, kind, self._build, self._wake.trigger)
        node.create_subscription(ModelUpdate, "model_update", node.guarded(self._on_update), LATCHED_QOS)
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

    def _build(self, snapshot: Snapshot, spec: Spec) -> Model:
        """Runs in the shelf's worker."""
        model: Model = snapshots.restore(snapshot, spec)
        if model.capabilities.rewards:
            return model
        task: Any = copy.copy(self._task)
        task.spec = spec  # a task knows nothing of the world's action delay
        return WithTask(model, task)

    def _take(self) -> None:
        for verdict in self._shelf.take():
            if verdict.model is None:
                self.refused += 1
                self.last_refusal = verdict.reason
                self.node.get_logger().warning(f"refused: {verdict.reason}", throttle_duration_sec=1.0)
            else:
                self.in_use = verdict.snapshot
                self.swaps += 1
                self.ready(verdict.model)
            self._publish()

    def _publish(self) -> None:
        used = self.in_use
        msg = ModelStatus(
            stamp=self.node.get_clock().now().to_msg(),
            node=self.node.get_fully_qualified_name(),
            in_use=used is not None,
            swaps=self.swaps,
            refused=self.refused,
            last_refusal=self.last_refusal,
        )
        if used is not None:
            msg.model_id, msg.run_id, msg.version = used.model_id, used.run_id, used.version
        self._status.publish(msg)
