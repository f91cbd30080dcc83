"""Serves RunEpisodes: joins the episode runner to a node's topics, services and timers."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient, ActionServer, CancelResponse, GoalResponse

from mbrl_dynamics.ros.node import LATCHED_QOS
from mbrl_dynamics.transition import Transition, WorldId
from mbrl_msgs.action import Reset, RunEpisodes
from mbrl_msgs.msg import LearnerStatus, WorldStatus
from mbrl_planner.controller import EXPLOIT, EXPLORE, RANDOM
from mbrl_planner.episodes import Ended, EpisodeRunner, Goal, Phase, Progress, Result

if TYPE_CHECKING:
    from mbrl_planner.ros.controller_node import ControllerNode

TICK = 0.05  # [s]
RESET_PATIENCE = 5.0  # a world answers a reset at once, and a question for its result when it has one [s]
AUDIENCE_PATIENCE = 10.0  # how long the first episode waits for those who want to hear it [s]
_MODES = {
    RunEpisodes.Goal.EXPLOIT: EXPLOIT,
    RunEpisodes.Goal.EXPLORE: EXPLORE,
    RunEpisodes.Goal.RANDOM: RANDOM,
}


class EpisodeServer:
    """One run of episodes at a time, asked for by a RunEpisodes goal or by the node itself; a runner's Host.

    A goal is accepted at once and answered when the run is over; nothing waits inside a callback.
    """

    def __init__(self, node: ControllerNode) -> None:
        self.node = node
        self.runner: EpisodeRunner | None = None
        self.last_refusal = ""
        self._last: Ended | None = None
        self._goal: Any = None  # handle of the goal that runs; None = the node's own run
        self._result = RunEpisodes.Result()
        self._missed = 0  # of the node, when the run began
        self._asked = 0  # resets asked for; the answer to an older one is ignored
        self._asked_at = math.inf  # when the world was asked last, and has not answered; steady clock [s]
        self._reset_goal: Any = None
        self._learner: LearnerStatus | None = None  # newest
        node.create_subscription(LearnerStatus, "learner_status", node.guarded(self._on_learner), LATCHED_QOS)
        self._world: WorldStatus | None = None  # newest
        self._patient_until = 0.0  # with an audience that is not complete; steady clock [s]
        node.create_subscription(WorldStatus, "world_status", node.guarded(self._on_world), LATCHED_QOS)
        self._timer = node.steady_timer(TICK, self.tick)
        self._timer.cancel()
        self._reset = ActionClient(node, Reset, "reset")
        self._server = ActionServer(
            node,
            RunEpisodes,
            "run_episodes",
            execute_callback=self._execute,
            goal_callback=node.guarded(self._on_goal),
            handle_accepted_callback=node.guarded(self._on_accepted),
            cancel_callback=node.guarded(self._on_cancel),
        )

    @property
    def busy(self) -> bool:
        """Whether episodes are being run."""
        return self.runner is not None

    def wants(self, state: Transition) -> bool:
        """Whether the running episode wants a State answered."""
        return self.runner is not None and self.runner.wants(state)

    def heard(self, state: Transition) -> None:
        """A new State came."""
        if self.runner is not None:
            self.runner.heard(state)

    def decided(self, planning_ms: float, disagreement: float) -> None:
        """A State was answered."""
        if self.runner is not None:
            self.runner.decided(planning_ms, disagreement)

    def world_heard(self, world_id: WorldId) -> None:
        """A world whose spec fits is there."""
        if self.runner is not None:
            self.runner.world_heard(world_id)

    def fail(self, reason: str) -> None:
        """A goal cannot be served; the node's own run waits for better times."""
        if self.runner is not None and self._goal is not None:
            self.runner.fail(reason)

    def tick(self) -> None:
        """Let the runner look around."""
        if self.runner is not None:
            if time.monotonic() - self._asked_at > RESET_PATIENCE:
                self._ask_again()
            self.runner.tick()
            self.node.catch_up()

    def run_own(self, goal: Goal) -> None:
        """Begin a run that nobody asked for by a goal."""
        self._begin(goal, self.node.params[""].mode)

    # The action ---------------------------------------------------------------------------------------------

    def _on_learner(self, msg: LearnerStatus) -> None:
        self._learner = msg

    def _on_world(self, msg: WorldStatus) -> None:
        self._world = msg

    def _on_goal(self, goal: RunEpisodes.Goal) -> GoalResponse:
        if not self.busy:
            return GoalResponse.ACCEPT
        whose = "the node's own episodes" if self._goal is None else "another goal"
        self.last_refusal = f"run_episodes serves one goal at a time, and is busy with {whose}"
        self.node.get_logger().warning(f"goal rejected: {self.last_refusal}")
        return GoalResponse.REJECT

    def _on_accepted(self, handle: Any) -> None:
        goal = handle.request
        fault = "" if goal.episodes else "episodes is 0, but must be at least 1"
        if goal.mode not in _MODES:
            fault = f"mode is {goal.mode}, but must be 0 (exploit), 1 (explore) or 2 (random)"
        self._goal = handle
        if fault:
            self._result = RunEpisodes.Result(
                error_code=RunEpisodes.Result.BAD_REQUEST,
                error_msg=fault,
                planning_ms_median=math.nan,
                planning_ms_p99=math.nan,
            )
            handle.execute()
            return
        self._begin(Goal(goal.episodes, goal.seed, goal.max_steps, goal.wait_for_model), _MODES[goal.mode])

    def _on_cancel(self, handle: Any) -> CancelResponse:
        if self.runner is not None and handle is self._goal:
            self.runner.cancel()
        return CancelResponse.ACCEPT

    def _execute(self, handle: Any) -> RunEpisodes.Result:
        """Called when the run is over: the executor sends what is returned."""
        if self._result.error_code == RunEpisodes.Result.OK:
            handle.succeed()
        elif handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return self._result

    def _begin(self, goal: Goal, mode: str) -> None:
        node = self.node
        node.controller.mode = mode
        self._missed = node.statistics.missed
        self._patient_until = time.monotonic() + AUDIENCE_PATIENCE
        self.runner = EpisodeRunner(goal, self, last=self._last, world_id=node.world_id)
        self._timer.reset()
        self.runner.start()
        if node.refusal:
            self.fail(node.refusal)

    # Host of the runner -------------------------------------------------------------------------------------

    def world_ready(self) -> bool:
        """See Host."""
        return bool(self._reset.server_is_ready()) and self._audience_complete()

    def _audience_complete(self) -> bool:
        """Whether the world reaches everybody who wants its States; with patience, yes.

        A lock-step episode can be over before a node that has just started hears the world.
        """
        waits = self.runner is not None and self.runner.goal.wait_for_model
        learner = waits and self.node.models.awaits_learner
        wanted = max(self.node.count_subscribers("state"), 2 if learner else 1)
        present = self._learner is not None or not learner
        reached = self._world is not None and self._world.listeners >= wanted
        return (present and reached) or time.monotonic() > self._patient_until

    def model_covers(self, world_id: WorldId, episode: int) -> bool:
        """See Host."""
        return self.node.models.covers(world_id, episode)

    def learner_rests(self) -> bool:
        """See Host."""
        return self.node.models.rests(self._learner)

    def warn(self, text: str) -> None:
        """See Host."""
        self.node.get_logger().warning(text)

    def begin_episode(self, index: int) -> None:
        """See Host."""
        assert self.runner is not None
        if self.runner.goal.seed >= 0:
            self.node.controller.seed(self.runner.goal.seed + index)

    def reset_world(self, seed: int) -> None:
        """See Host."""
        self._asked += 1
        self._reset_goal, self._asked_at = None, time.monotonic()
        number = self._asked
        future = self._reset.send_goal_async(Reset.Goal(seed=seed))
        future.add_done_callback(
            self.node.guarded(lambda done: self._on_reset_accepted(done.result(), number))
        )

    def cancel_reset(self) -> None:
        """See Host."""
        self._asked += 1
        self._asked_at = math.inf
        if self._reset_goal is not None:
            self._reset_goal.cancel_goal_async()
            self._reset_goal = None

    def feedback(self, progress: Progress) -> None:
        """See Host."""
        if self._goal is None:
            return
        running = progress.phase is Phase.RUNNING
        self._goal.publish_feedback(
            RunEpisodes.Feedback(
                episode=progress.episode,
                step=progress.step,
                done=progress.done,
                return_so_far=progress.return_so_far,
                planning_ms=progress.planning_ms,
                disagreement=progress.disagreement,
                model_version=self.node.models.version,
                phase=str(Phase.WAITING if running and self.node.controller.waits else progress.phase),
            )
        )

    def finished(self, result: Result) -> None:
        """See Host."""
        assert self.runner is not None
        self._last, self.runner = self.runner.last, None
        self._timer.cancel()
        self.node.controller.mode = self.node.params[""].mode
        median, p99 = result.planning()
        self._result = RunEpisodes.Result(
            error_code=getattr(RunEpisodes.Result, result.outcome),
            error_msg=result.message,
            returns=result.returns,
            steps=result.steps,
            missed_steps=self.node.statistics.missed - self._missed,
            planning_ms_median=median,
            planning_ms_p99=p99,
        )
        if self._goal is not None:
            goal, self._goal = self._goal, None
            goal.execute()
        returns = ", ".join(f"{value:.1f}" for value in result.returns[-10:])
        self.node.get_logger().info(f"run over: {result.outcome} {result.message} [{returns}]")

    def _on_reset_accepted(self, handle: Any, number: int) -> None:
        if number != self._asked:
            if handle.accepted:
                handle.cancel_goal_async()
            return
        if not handle.accepted:
            self._reset_done(number, Reset.Result(error_msg="the world is busy"), retry=True)
            return
        self._reset_goal = handle
        self._ask_for_result()

    def _ask_for_result(self) -> None:
        self._asked_at = time.monotonic()
        number = self._asked
        future = self._reset_goal.get_result_async()
        future.add_done_callback(self.node.guarded(lambda done: self._on_reset_result(done.result(), number)))

    def _ask_again(self) -> None:
        """The world may not have heard: one that was killed still seems to be there for a while.

        What is asked before the one that follows it has been discovered reaches nobody.
        """
        if self._reset_goal is not None:
            self._ask_for_result()
            return
        self.node.get_logger().warning(f"no answer to reset {self._asked}: asking again")
        self.cancel_reset()  # should the answer come after all, it is not wanted
        self._reset_done(self._asked, Reset.Result(error_msg="the world does not answer"), retry=True)

    def _on_reset_result(self, response: Any, number: int) -> None:
        gone = response.status == GoalStatus.STATUS_UNKNOWN  # the world does not know the goal (any more)
        retry = gone or response.result.error_code == Reset.Result.CANCELED
        self._reset_done(number, response.result, retry=retry)

    def _reset_done(self, number: int, result: Reset.Result, *, retry: bool) -> None:
        if number != self._asked or self.runner is None:
            return
        self._reset_goal, self._asked_at = None, math.inf
        failed = retry or result.error_code != Reset.Result.OK
        error = (result.error_msg or "the reset failed") if failed else ""
        self.runner.reset_done(bytes(result.world_id), result.episode, error, retry=retry)
        self.node.catch_up()
