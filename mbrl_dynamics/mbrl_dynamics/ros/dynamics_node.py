"""The learner as a node: hears `state`, `action` and `spec`; sends `model_update` and `learner_status`."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.episodes import newest_spec, prepare
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.intake import Verdict
from mbrl_dynamics.learner import Learner, LearnerConfig
from mbrl_dynamics.plugins import find
from mbrl_dynamics.ros import convert
from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS, BaseNode, drain, run
from mbrl_dynamics.ros.params import Params, given_parameters
from mbrl_dynamics.spec import Spec
from mbrl_msgs.msg import Action, LearnerStatus, ModelUpdate, State
from mbrl_msgs.msg import Spec as SpecMsg
from mbrl_msgs.srv import GetModel

HELD = 10_000  # messages kept until the spec of their world comes


@config
class DynamicsNodeConfig(LearnerConfig):
    """The parameters of `dynamics_node`; those of the model have its name as their prefix."""

    model: Annotated[str, Field(description="an installed dynamics model, or package.module:Class")] = (
        "ensemble"
    )


class DynamicsNode(BaseNode):
    """A Learner with topics. It begins with the first spec: of the dataset on disk, else of the world."""

    def __init__(self) -> None:
        super().__init__("dynamics_node")
        name = str(given_parameters(self).get("model", DynamicsNodeConfig.model))
        self._model_class: Any = find("models", name)
        self._model_group = name.rpartition(":")[2]
        params = Params(self, {"": DynamicsNodeConfig, self._model_group: self._model_class.Config})
        self.settings: DynamicsNodeConfig = params[""]
        # Of this thread; the training's thread has its own. Two pools of OpenMP threads slow each other down.
        torch.set_num_threads(1)
        self._model_config = params[self._model_group]
        self.learner: Learner | None = None
        self._worlds: dict[bytes, bool] = {}  # world id -> whether its spec was accepted
        self._held: deque[State | Action] = deque(maxlen=HELD)
        self._refusal = ""  # of the newest spec
        self._said = LearnerStatus()
        self._news = self.create_guard_condition(self.guarded(self._publish))
        self._updates = self.create_publisher(ModelUpdate, "model_update", LATCHED_QOS)
        self._statuses = self.create_publisher(LearnerStatus, "learner_status", LATCHED_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        self._begin_with_dataset()
        self.create_subscription(SpecMsg, "spec", self.guarded(self._on_spec), LATCHED_QOS)
        self._states = self.create_subscription(State, "state", self.guarded(self._on_state), STREAM_QOS)
        self.create_subscription(Action, "action", self.guarded(self._hear), STREAM_QOS)
        self.create_service(GetModel, "get_model", self.guarded(self._on_get_model))
        self.steady_timer(1.0, self._on_second)
        self._publish()

    def on_stop(self) -> None:
        """Finish the recording and break off a fit; the last checkpoint is on disk already."""
        if self.learner is not None:
            self.learner.close()

    def _begin_with_dataset(self) -> None:
        if not self.settings.dataset:
            return
        folder = Path(self.settings.dataset).expanduser()
        prepare(folder)
        spec = newest_spec(folder)
        if spec is not None:
            self._begin(spec)

    def _begin(self, spec: Spec) -> Learner:
        self.learner = Learner(
            spec,
            self._model_class,
            self._model_config,
            self.settings.model,
            self.settings,
            self._news.trigger,
        )
        said = self.learner.status()
        self.get_logger().info(
            f"model {self.settings.model}, {said.transitions} transitions, run {said.run_id}"
        )
        return self.learner

    def _on_spec(self, msg: SpecMsg) -> None:
        world = bytes(msg.world_id)
        try:
            spec = convert.spec_from_msg(msg)
            learner = self.learner or self._begin(spec)
            learner.announce(spec, world)
        except (ValueError, UserError) as error:
            self._worlds[world], self._refusal = False, str(error)
            self.get_logger().error(f"world refused: {error}")
        else:
            self._worlds[world], self._refusal = True, ""
        held, self._held = self._held, deque(maxlen=HELD)
        for message in held:
            self._hear(message)
        self._publish()

    def _on_state(self, msg: State) -> None:
        for each in drain(self._states, msg):
            self._hear(each)

    def _hear(self, msg: State | Action) -> None:
        """Let the learner hear a message, if its world was accepted; keep it, while that is not known."""
        accepted, learner = self._worlds.get(bytes(msg.world_id)), self.learner
        if accepted is None:
            self._held.append(msg)
        elif not accepted or learner is None:
            return
        elif isinstance(msg, Action):
            learner.hear_answer(convert.answer_from_msg(msg), convert.seconds(msg.stamp))
        elif learner.hear(convert.transition_from_msg(msg)) is Verdict.REFUSED:
            self.get_logger().warning(f"State refused: {learner.intake.fault}", throttle_duration_sec=1.0)

    def _on_get_model(self, request: GetModel.Request, response: GetModel.Response) -> GetModel.Response:
        newest = None if self.learner is None else self.learner.newest
        if newest is None:
            response.error_code = GetModel.Response.NO_MODEL
            response.error_msg = "nothing has been trained yet"
        else:
            response.update = convert.snapshot_to_msg(newest, self.get_clock().now().to_msg())
        return response

    def _on_second(self) -> None:
        if self.learner is not None:
            self.learner.tick()
        self._publish()
        self._publish_diagnostics()

    def _publish(self) -> None:
        """The newest model, if it is news, and how it goes."""
        now = self.get_clock().now().to_msg()
        if self.learner is None:
            status = LearnerStatus(stamp=now, trained_episode=-1)
            status.train_loss = status.holdout_error = status.fit_seconds = math.nan
        else:
            said = self.learner.status()  # before the model is taken: it never promises a model yet to come
            update = self.learner.take()
            if update is not None:
                self._updates.publish(convert.snapshot_to_msg(update, now))
            status = convert.learner_status_to_msg(said, now)
        if self._refusal:
            status.status = LearnerStatus.FAILED
            status.error_msg = "; ".join(filter(None, (self._refusal, status.error_msg)))
        self._statuses.publish(status)
        self._said = status

    def _publish_diagnostics(self) -> None:
        said = self._said
        failed = said.status == LearnerStatus.FAILED or bool(said.error_msg)
        level = DiagnosticStatus.ERROR if failed else DiagnosticStatus.OK
        text = said.error_msg or ("training" if said.status == LearnerStatus.TRAINING else "ok")
        names = ("version", "episodes", "transitions", "refused", "gaps", "recording", "holdout_error")
        values = {name: getattr(said, name) for name in names} | {"faults": self.faults}
        self._diagnostics.publish(self.diagnosis(level, text, values, part="learner"))


def main() -> int:
    """Run the node."""
    sys.setswitchinterval(0.001)  # [s]; recording must not wait long for the training's thread
    code = run(DynamicsNode)
    if any(thread.name == "training" for thread in threading.enumerate()):
        os._exit(code)  # a fit that cannot be broken off must not hold up the end; all files are closed
    return code


if __name__ == "__main__":
    sys.exit(main())
