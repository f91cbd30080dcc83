"""The client side of a running stack: hears the latched topics, and runs one episode at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future

from mbrl_bringup.result import Episode
from mbrl_dynamics.ros.node import LATCHED_QOS
from mbrl_msgs.action import RunEpisodes
from mbrl_msgs.msg import (
    GuardStatus,
    LearnerStatus,
    ModelStatus,
    ModelUpdate,
    PolicyStatus,
    Spec,
    WorldStatus,
)
from mbrl_msgs.srv import Arm

STALL = 15.0  # without any progress, after which a goal is given again: its server was restarted [s]
KEPT_MODELS = 3
ARM_EVERY = 1.0  # while a guard is not armed [s]
ATTEMPTS = 5  # refusals of one goal, after which the run ends

MODES = {
    "random": RunEpisodes.Goal.RANDOM,
    "explore": RunEpisodes.Goal.EXPLORE,
    "exploit": RunEpisodes.Goal.EXPLOIT,
}


class Stopped(Exception):
    """The user wants the run to end."""


class RunFailed(Exception):
    """The run cannot go on; the message is one sentence."""


class StackClient:
    """Hears and commands the stack of one namespace. All waiting ends with Stopped once `stopped()` is true.

    Attributes:
        spec, world, learner: the newest message of each latched topic; None = not heard yet.
        guard: the newest status of a robot's guard; None = not heard yet, or there is none.
        policy: the newest status of a policy; None = not heard yet, or there is none.
        models: the newest ModelStatus by node name.
        updates: the newest few models by version, if asked for.
        feedback: the newest feedback of the current episode; None = none yet.
    """

    def __init__(
        self,
        namespace: str = "",
        stopped: Callable[[], bool] = lambda: False,
        idle: Callable[[], None] = lambda: None,
        *,
        keep_models: bool = False,
    ) -> None:
        self.spec: Spec | None = None
        self.world: WorldStatus | None = None
        self.learner: LearnerStatus | None = None
        self.policy: PolicyStatus | None = None
        self.guard: GuardStatus | None = None
        self.models: dict[str, ModelStatus] = {}
        self.updates: dict[int, ModelUpdate] = {}
        self.feedback: RunEpisodes.Feedback | None = None
        self._stopped, self._idle = stopped, idle
        self._disagreement: list[float] = []
        self._progress = time.monotonic()
        self.node = Node("mbrl_client", namespace=namespace)
        for message, topic, callback in (
            (Spec, "spec", self._on_spec),
            (WorldStatus, "world_status", self._on_world),
            (LearnerStatus, "learner_status", self._on_learner),
            (ModelStatus, "model_status", self._on_model),
            (PolicyStatus, "policy_status", self._on_policy),
            (GuardStatus, "guard_status", self._on_guard),
        ):
            self.node.create_subscription(message, topic, callback, LATCHED_QOS)
        if keep_models:
            self.node.create_subscription(ModelUpdate, "model_update", self._on_update, LATCHED_QOS)
        self._episodes = ActionClient(self.node, RunEpisodes, "run_episodes")
        self._arm = self.node.create_client(Arm, "arm")
        self._arm_at = 0.0  # when a guard may be asked again
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def close(self) -> None:
        """Leave the graph."""
        self._episodes.destroy()
        self._executor.shutdown()
        self.node.destroy_node()

    def spin(self, seconds: float) -> None:
        """Handle what arrives for so long [s]."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left, 0.1))

    def wait_for(self, condition: Callable[[], bool], timeout: float = math.inf) -> bool:
        """Handle what arrives until the condition holds; returns whether it did within the time [s].

        Raises:
            Stopped: the user wants to end.
        """
        end = time.monotonic() + timeout
        while not condition():
            if self._stopped():
                raise Stopped
            if time.monotonic() > end:
                return False
            self._idle()
            self._executor.spin_once(timeout_sec=0.05)
        return True

    @property
    def worlds(self) -> int:
        """How many worlds, robots or simulated ones, are heard in this namespace."""
        return self.node.count_publishers("world_status")

    @property
    def armed(self) -> bool:
        """Whether a robot's guard lets a controller move it."""
        return self.guard is not None and self.guard.phase in (GuardStatus.ARMED, GuardStatus.RUNNING)

    def arm(self) -> None:
        """Ask a guard that is not armed to be so, without waiting, and not too often."""
        now = time.monotonic()
        if self.guard is None or self.armed or now < self._arm_at or not self._arm.service_is_ready():
            return
        self._arm_at = now + ARM_EVERY
        self._arm.call_async(Arm.Request(armed=True))

    def run_episode(self, mode: str, seed: int, *, wait_for_model: bool, max_steps: int = 0) -> Episode:
        """Run one whole episode; begun anew where a node was restarted in the midst of it.

        Raises:
            Stopped: the user wants to end; the goal is cancelled.
            RunFailed: the controller refused the goal again and again.
        """
        goal = RunEpisodes.Goal(
            episodes=1, mode=MODES[mode], seed=seed, max_steps=max_steps, wait_for_model=wait_for_model
        )
        why = ""
        for _ in range(ATTEMPTS):
            begin = time.monotonic()
            result = self._attempt(goal)
            if result is not None and result.error_code == RunEpisodes.Result.OK:
                return self._episode(mode, result, time.monotonic() - begin)
            why = "the controller did not answer" if result is None else result.error_msg
            self._pause(1.0)
        raise RunFailed(f"no episode could be run: {why}")

    def wait_for_training(self) -> LearnerStatus:
        """Wait until the model has seen the newest episode.

        Raises:
            Stopped: the user wants to end.
            RunFailed: training failed.
        """
        world = self.world
        assert world is not None  # an episode has been run

        def over() -> bool:
            status = self.learner
            if status is None:
                return False
            trained = status.trained_world_id == bytes(world.world_id).hex()
            seen = trained and status.trained_episode >= world.episode
            # A learner that was restarted may never have heard of the episode: wait no longer than STALL.
            idle = status.status == LearnerStatus.IDLE
            return status.status == LearnerStatus.FAILED or (idle and (seen or self._stalled()))

        self._touch()
        self.wait_for(over)
        assert self.learner is not None
        if self.learner.status == LearnerStatus.FAILED:
            raise RunFailed(f"training failed: {self.learner.error_msg}")
        return self.learner

    def wait_for_learning(self) -> PolicyStatus:
        """Wait until the policy has learned what it can from the newest episode, or does not learn any more.

        Raises:
            Stopped: the user wants to end.
        """
        world = self.world
        assert world is not None  # an episode has been run

        def over() -> bool:
            status = self.policy
            if status is None:
                return False
            of_world = status.trained_world_id == bytes(world.world_id).hex()
            seen = of_world and status.trained_episode >= world.episode
            off = status.status == PolicyStatus.OFF
            # A process that was started again may never have heard of the episode: wait no longer than STALL,
            # unless it is still to begin.
            began = status.env_steps > 0 or status.status == PolicyStatus.FAILED
            return off or seen or (began and self._stalled())

        self._touch()
        self.wait_for(over)
        assert self.policy is not None
        return self.policy

    def _attempt(self, goal: RunEpisodes.Goal) -> RunEpisodes.Result | None:
        """Give the goal once; None = no answer, as if the server had been restarted."""
        self.feedback, self._disagreement = None, []
        self._touch()
        if not self.wait_for(self._episodes.server_is_ready, timeout=60.0):
            return None
        accepted: Future = self._episodes.send_goal_async(goal, feedback_callback=self._on_feedback)
        if not self.wait_for(accepted.done, timeout=STALL):
            return None
        handle = accepted.result()
        if handle is None or not handle.accepted:
            return RunEpisodes.Result(
                error_code=RunEpisodes.Result.FAILED, error_msg="the controller is busy with another goal"
            )
        result: Future = handle.get_result_async()
        self._touch()
        try:
            self.wait_for(lambda: result.done() or self._stalled())
        except Stopped:
            handle.cancel_goal_async()
            self.spin(0.5)
            raise
        if not result.done():
            handle.cancel_goal_async()
            return None
        return result.result().result

    def _episode(self, mode: str, result: RunEpisodes.Result, seconds: float) -> Episode:
        known = [value for value in self._disagreement if math.isfinite(value)]
        return Episode(
            mode=mode,
            ret=result.returns[0],
            steps=result.steps[0],
            missed_steps=result.missed_steps,
            planning_ms_median=result.planning_ms_median,
            planning_ms_p99=result.planning_ms_p99,
            model_version=self.feedback.model_version if self.feedback is not None else 0,
            disagreement=sum(known) / len(known) if known else math.nan,
            seconds=seconds,
        )

    def _pause(self, seconds: float) -> None:
        self.wait_for(lambda: False, timeout=seconds)

    def _stalled(self) -> bool:
        return time.monotonic() - self._progress > STALL

    def _touch(self) -> None:
        self._progress = time.monotonic()

    def _on_spec(self, message: Spec) -> None:
        self.spec = message

    def _on_world(self, message: WorldStatus) -> None:
        before = self.world
        if before is None or (before.episode, before.step) != (message.episode, message.step):
            self._touch()
        self.world = message

    def _on_learner(self, message: LearnerStatus) -> None:
        if message.status == LearnerStatus.TRAINING:
            self._touch()
        self.learner = message

    def _on_policy(self, message: PolicyStatus) -> None:
        if message.status == PolicyStatus.LEARNING:
            self._touch()
        self.policy = message

    def _on_guard(self, message: GuardStatus) -> None:
        self.guard = message

    def _on_model(self, message: ModelStatus) -> None:
        self.models[message.node] = message

    def _on_update(self, message: ModelUpdate) -> None:
        newest = sorted([*self.updates, message.version])[-KEPT_MODELS:]
        self.updates[message.version] = message
        self.updates = {version: self.updates[version] for version in newest}

    def _on_feedback(self, message: Any) -> None:
        self._touch()
        self.feedback = message.feedback
        self._disagreement.append(message.feedback.disagreement)
