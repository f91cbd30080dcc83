"""What every node that answers States has in common, whether it plans or runs a policy."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from mbrl_dynamics import plugins
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model, Task
from mbrl_dynamics.ros.convert import answer_to_msg, spec_from_msg, transition_from_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, STREAM_QOS, BaseNode, drain
from mbrl_dynamics.ros.params import Params
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Answer, Transition, WorldId
from mbrl_msgs.msg import Action as ActionMsg
from mbrl_msgs.msg import LearnerStatus
from mbrl_msgs.msg import Spec as SpecMsg
from mbrl_msgs.msg import State as StateMsg
from mbrl_planner.controller import Controller, Decider, Statistics
from mbrl_planner.episodes import Goal
from mbrl_planner.ros.episode_server import EpisodeServer


class Models(Protocol):
    """Whence a controller's models come. See model_subscriber.py and policy_learning.py."""

    swaps: int
    refused: int

    @property
    def version(self) -> int:
        """Version of the model in use; 0 = none."""
        ...

    @property
    def text(self) -> str:
        """The model in use, for people."""
        ...

    @property
    def awaits_learner(self) -> bool:
        """Whether models come from another node."""
        ...

    def covers(self, world_id: WorldId, episode: int) -> bool:
        """Whether what decides was trained on that episode."""
        ...

    def rests(self, learner: LearnerStatus | None) -> bool:
        """Whether nothing is being learned, nor will be by itself; `learner` says how the other node does."""
        ...

    def use_spec(self, spec: Spec) -> None:
        """Another world."""
        ...

    def close(self) -> None:
        """End."""
        ...


@config
class ControllerNodeConfig:
    """Parameters that every controller has."""

    task: Annotated[str, Field(description="what is wanted: an installed task, or package.module:Class")] = (
        "cartpole_swingup"
    )
    action_repeat: Annotated[
        int, Field(ge=0, description="frames of the task in a control period [1]; 0 = as the task says")
    ] = 0
    model: Annotated[str, Field(description="kind of model that is accepted")] = "ensemble"
    follow: Annotated[
        bool, Field(description="answer `state` from the start on, without being asked by RunEpisodes")
    ] = False
    episodes: Annotated[
        int, Field(ge=-1, description="run this many episodes from the start; 0 = none, -1 = without end")
    ] = 0
    mode: Annotated[
        Literal["exploit", "explore", "random"],
        Field(description="how to act while following, and in the episodes run from the start"),
    ] = "exploit"
    wait_for_model: Annotated[
        bool, Field(description="episodes run from the start wait for a model that has seen the last one")
    ] = False
    no_model: Annotated[
        Literal["random", "wait", "safe"],
        Field(description="what to do without a model: random actions, no answer, or the safe action"),
    ] = "random"
    threads: Annotated[int, Field(ge=1, description="torch threads of this process [1]")] = 1
    seed: Annotated[int, Field(ge=0, description="of all random numbers")] = 0
    controller_id: Annotated[
        str,
        Field(description="who answers, since a world obeys one controller; empty = the node's full name"),
    ] = ""


class ControllerNode(BaseNode):
    """Hears `state`, answers with `action`, runs episodes, and takes new models between decisions.

    A subclass sets `Config` and names its plugins' parameters (`parameter_groups`), makes the agent
    (`make_decider`), gives it a model (`use`) and may show each decision (`show`).
    """

    Config: type[ControllerNodeConfig] = ControllerNodeConfig
    tunable = True  # whether the plugins' parameters may change at run time

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        groups = self.parameter_groups()
        self.params = Params(
            self,
            {"": self.Config, **groups},
            mutable=tuple(groups) if self.tunable else (),
            changed=self.parameters_changed,
        )
        own = self.params[""]
        torch.set_num_threads(own.threads)
        self.task: Task = plugins.make_task(own.task, own.action_repeat)
        self.controller_id = own.controller_id or self.get_fully_qualified_name()
        self.statistics = Statistics()
        self.decider = self.make_decider()
        self.controller = Controller(
            self.decider,
            self.task.spec,
            self.controller_id,
            mode=own.mode,
            no_model=own.no_model,
            seed=own.seed,
            statistics=self.statistics,
        )
        self.world_id: WorldId | None = None  # of the world whose spec fits
        self.refusal = ""  # why the world cannot be controlled
        self._arrived = 0.0  # when the newest States came, on the monotonic clock [s]

        self._actions = self.create_publisher(ActionMsg, "action", STREAM_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        self.models: Models = self.make_models()
        self.episodes = EpisodeServer(self)
        self.create_subscription(SpecMsg, "spec", self.guarded(self._on_spec), LATCHED_QOS)
        self._states = self.create_subscription(StateMsg, "state", self.guarded(self._on_state), STREAM_QOS)
        self.steady_timer(1.0, self._diagnose)
        if own.episodes:
            count = None if own.episodes < 0 else own.episodes
            self.episodes.run_own(Goal(count, own.seed, 0, own.wait_for_model, world_timeout=float("inf")))
        gc.collect()
        gc.freeze()  # a full collection over all of torch would delay an answer

    # For subclasses -----------------------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, type]:
        """Configurations of plugins, by the prefix of their parameters; they may change at run time."""
        return {}

    def make_decider(self) -> Decider:
        """The agent; it has no model yet."""
        raise NotImplementedError

    def make_models(self) -> Models:
        """Whence models come."""
        raise NotImplementedError

    def use(self, model: Model | None) -> None:
        """Decide with this model from now on."""
        raise NotImplementedError

    def show(self, state: Transition) -> None:
        """Show the decision just made, if anybody looks. Called after the answer is sent."""

    def take_world(self, world: Spec) -> str:
        """Get ready for a world; returns why it cannot be controlled, in one sentence, empty if it can."""
        return mismatch(self.task.spec, world)

    def heard(self, state: Transition) -> None:
        """A new State of the world came (each exactly once, in order). Called after the answer is sent."""

    def diagnostics(self) -> dict[str, Any]:
        """What else is worth knowing."""
        return {}

    def trouble(self) -> str:
        """What is wrong though it acts, in one sentence; empty = nothing."""
        return ""

    def parameters_changed(self, group: str) -> None:
        """A plugin's parameters changed (between decisions)."""

    # Hearing and answering ----------------------------------------------------------------------------------

    def _on_state(self, msg: StateMsg) -> None:
        self._arrived = time.monotonic()
        burst = [transition_from_msg(m) for m in drain(self._states, msg)]
        new = [state for state in burst if self._hear(state)]
        newest = self.controller.newest
        try:
            if newest is not None and any(state.key == newest.key for state in burst):
                self._answer(newest)
        finally:  # what is learned from them has time
            for state in new:
                self.heard(state)

    def _hear(self, state: Transition) -> bool:
        refused = self.statistics.refused
        new = self.controller.hear(state, wanted=self._wanted(state))
        if self.statistics.refused > refused:
            self.get_logger().warning(
                f"refused: {self.statistics.last_refusal} ({self.statistics.refused} in all)",
                throttle_duration_sec=1.0,
            )
        elif new:
            self.episodes.heard(state)
        return new

    def _wanted(self, state: Transition) -> bool:
        if state.world_id != self.world_id:
            return False
        return self.episodes.wants(state) if self.episodes.busy else bool(self.params[""].follow)

    def _answer(self, state: Transition) -> None:
        if not self._wanted(state):
            return
        before, void = self.statistics.answered, self.statistics.void_plans
        answer = self.controller.answer()
        if answer is None:
            return
        if self.statistics.void_plans > void:
            self.get_logger().warning(
                "no plan: the model predicted nothing finite; instead the last plan's tail, then the safe "
                f"action ({self.statistics.void_plans} in all)",
                throttle_duration_sec=1.0,
            )
        self._actions.publish(answer_to_msg(answer, self.get_clock().now().to_msg()))
        if self.statistics.answered > before:
            self.statistics.answer_ms.append(1e3 * (time.monotonic() - self._arrived))
            self.episodes.decided(self.controller.planning_ms, self.controller.disagreement)
            self.show(state)

    def catch_up(self) -> None:
        """Answer the newest State if that was held back and is wanted now."""
        newest = self.controller.newest
        if newest is not None and not self.controller.answered:
            self._answer(newest)

    # The world ----------------------------------------------------------------------------------------------

    def _on_spec(self, msg: SpecMsg) -> None:
        world_id = bytes(msg.world_id)
        try:
            spec = spec_from_msg(msg)
            self.refusal = self.take_world(spec)
        except ValueError as error:
            self.refusal = f"the world's spec cannot be used: {error}"
        self.world_id = None if self.refusal else world_id
        if self.refusal:
            self.get_logger().error(f"not acting: {self.refusal}")
            self.episodes.fail(self.refusal)
            return
        if spec.dynamics_hash != self.controller.spec.dynamics_hash:
            self.controller.use_spec(spec)
            self.models.use_spec(spec)
        self.episodes.world_heard(world_id)
        self.catch_up()

    # The model ----------------------------------------------------------------------------------------------

    def model_ready(self, model: Model | None) -> None:
        """Decide with another model from now on, and answer what waited for it."""
        self.use(model)
        self.episodes.tick()
        self.catch_up()

    # The end ------------------------------------------------------------------------------------------------

    def on_fault(self, error: Exception) -> None:
        """Begin afresh with the next State, repeated or new; until then the world does what is safe."""
        self.controller.forget()

    def on_stop(self) -> None:
        """Answer a State that still waits with the safe action."""
        newest = self.controller.newest
        if newest is not None and not newest.last and not self.controller.answered and self._wanted(newest):
            safe = Answer(*newest.key, self.controller_id, self.controller.spec.safe_action()[None])
            self._actions.publish(answer_to_msg(safe, self.get_clock().now().to_msg()))
        self.models.close()

    def _diagnose(self) -> None:
        statistics = self.statistics
        values: dict[str, Any] = {
            "episode running": self.episodes.busy,
            "model": self.models.text,
            **_quantiles("planning", statistics.planning_ms),
            **_quantiles("State to answer", statistics.answer_ms),
            "answered": statistics.answered,
            "answered from the cache": statistics.repeated,
            "missed": statistics.missed,
            "plans cut by the time budget": statistics.late_plans,
            "plans without a finite prediction": statistics.void_plans,
            "factorisations regularised": statistics.regularised,
            "States refused": statistics.refused,
            "last refusal": statistics.last_refusal,
            "model swaps": self.models.swaps,
            "model updates refused": self.models.refused,
            "last refused goal": self.episodes.last_refusal,
            "faults": self.faults,
            **self.diagnostics(),
        }
        trouble = self.refusal or self.trouble()
        level = DiagnosticStatus.ERROR if self.refusal else DiagnosticStatus.WARN
        level = level if trouble else DiagnosticStatus.OK
        self._diagnostics.publish(self.diagnosis(level, trouble or "ok", values))


def _quantiles(name: str, values: Iterable[float]) -> dict[str, str]:
    """Median and 99 % of times [ms], for people."""
    times = sorted(values)
    shares = {"median": 0.5, "p99": 0.99}
    return {
        f"{name} {label} [ms]": f"{times[int(share * (len(times) - 1))]:.2f}" if times else ""
        for label, share in shares.items()
    }


def mismatch(task: Spec, world: Spec) -> str:
    """Why a world cannot be controlled for a task, in one sentence; empty if it can.

    The action delay is the world's own matter: a task knows nothing of it.
    """
    task = dataclasses.replace(task, action_delay_steps=world.action_delay_steps)
    if task.dynamics_hash == world.dynamics_hash:
        return ""
    for name in ("observation", "action", "control_period", "cameras"):
        here, there = getattr(task, name), getattr(world, name)
        if here != there:
            if isinstance(here, tuple):
                here, there = ([getattr(e, "name", e) for e in side] for side in (here, there))
            return f"the world of task '{world.task}' has {name} {there}, but '{task.task}' expects {here}"
    return f"the world's dynamics hash is not that of the task '{task.task}'"
