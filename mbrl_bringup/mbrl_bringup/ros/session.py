"""A run of `mbrl demo` while it happens: episodes, the live table, the result after each episode."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions

from mbrl_bringup.demo import Run
from mbrl_bringup.evidence import MODEL
from mbrl_bringup.goals import mode_of
from mbrl_bringup.result import Episode, Result, write
from mbrl_bringup.ros.client import RunFailed, StackClient
from mbrl_bringup.table import RunTable
from mbrl_dynamics.snapshot import write_atomically
from mbrl_msgs.msg import GuardStatus, LearnerStatus, PolicyStatus

SEEDS_APART = 1000  # episode k of a run with seed s starts from seed 1000 s + k


class Session:
    """Runs the episodes of a run, and keeps its result up to date.

    Args:
        run: what to do.
        stopped: whether the user wants to end.
        exited: exit code of the stack; None while it runs.
    """

    def __init__(self, run: Run, stopped: Callable[[], bool], exited: Callable[[], int | None]) -> None:
        self.result: Result = run.result
        self._run, self._stopped, self._exited = run, stopped, exited
        self._arms = False  # a stand-in hurts nobody; a robot is armed by a person

    def play(self) -> Result:
        """Run the episodes.

        Raises:
            Stopped: the user wants to end; `result` holds what there is.
            RunFailed: the run cannot go on; `result` holds what there is.
        """
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._client = StackClient(self._run.stack.namespace, self._stopped, self._look, keep_models=True)
        agent = self.result.agent
        signs = "* random actions, ~ exploring" if self.result.learns_policy else "* random actions"
        title = f"{self.result.task}, seed {self.result.seed} ({signs})"
        with RunTable(title, agent=agent) as self._table:
            try:
                self._episodes()
                self.result = dataclasses.replace(self.result, finished=True)
            finally:
                write(self.result, self._run.folder)
                self._table.finish(self.result.episodes)
                self._client.close()
                rclpy.try_shutdown()
        return self.result

    def _episodes(self) -> None:
        client, demo = self._client, self._run.demo
        client.wait_for(lambda: all((client.spec, client.world, *self._learners)))
        self._check_alone()
        assert client.spec is not None
        self.result = dataclasses.replace(self.result, control_period_s=client.spec.control_period)
        for index in range(demo.episodes):
            mode = mode_of(index, demo.episodes, self.result.agent)
            seed = SEEDS_APART * self.result.seed + index
            if self._run.stack.robot:
                client.wait_for(lambda: client.armed)
            episode = client.run_episode(mode, seed, wait_for_model=True)
            decided = math.isfinite(episode.planning_ms_median)  # else there was no policy yet
            self._keep(episode if decided else dataclasses.replace(episode, mode="random"), index)
            if demo.early_stop and demo.solved(self.result.returns):
                break
            if index + 1 < demo.episodes:
                self._keep(self._with_learning(self.result.episodes[-1]), index)

    def _check_alone(self) -> None:
        """Only then is what is heard, and armed, this run's own."""
        if self._client.worlds > 1:
            where, domain = self._run.stack.namespace or "none", os.environ.get("ROS_DOMAIN_ID") or "0"
            raise RunFailed(
                f"another stack runs in the same place (namespace {where}, ROS domain {domain}): end it, "
                "or give this one a namespace or a ROS_DOMAIN_ID of its own"
            )
        self._arms = bool(self._run.stack.robot) and self._run.stack.driver

    @property
    def _learners(self) -> list[Any]:
        """The newest status of each that learns; None = not heard yet."""
        policy = [self._client.policy] if self.result.learns_policy else []
        return [*policy, self._client.learner] if self.result.model else policy

    def _with_learning(self, episode: Episode) -> Episode:
        """An episode, with what was learned from it, once it is."""
        if self.result.model:
            episode = with_training(episode, self._client.wait_for_training())
        if self.result.learns_policy:
            episode = with_policy(episode, self._client.wait_for_learning())
        return episode

    def _keep(self, episode: Episode, index: int) -> None:
        """Put an episode, or what has become known of it, into the result."""
        episodes = (*self.result.episodes[:index], episode)
        wall = self.result.wall_s
        if len(episodes) > len(self.result.episodes):
            wall = time.monotonic() - self._run.began
            self._keep_model(episode.model_version)
        self.result = dataclasses.replace(self.result, episodes=episodes, wall_s=wall)
        write(self.result, self._run.folder)

    def _keep_model(self, version: int) -> None:
        """Keep the model that planned an episode: it has not seen what it will be asked to foretell."""
        update = self._client.updates.get(version)
        if update is not None:
            write_atomically(self._run.folder / MODEL, bytes(update.weights))

    def _look(self) -> None:
        """Called again and again while waiting."""
        code = self._exited()
        if code is not None:
            raise RunFailed(f"the stack ended by itself with exit code {code}; its log ends with the reason")
        if self._arms:
            self._client.arm()
        self._table.show(self.result.episodes, self._now())

    def _now(self) -> str:
        """What is happening, in a few words."""
        feedback, learner, policy = self._client.feedback, self._client.learner, self._client.policy
        if self._client.world is None:
            return "the nodes are starting"
        if self._run.stack.robot and not self._client.armed:
            return _disarmed(self._client.guard)
        if learner is not None and learner.status == LearnerStatus.TRAINING:
            return f"training on {learner.transitions} transitions"
        if policy is not None and policy.status == PolicyStatus.LEARNING:
            return f"learning: {policy.updates} updates, {policy.owed} to go"
        if feedback is None or feedback.done:
            return "between episodes"
        number = len(self.result.episodes) + 1
        return (
            f"episode {number}: {feedback.phase}, step {feedback.step}, return {feedback.return_so_far:.1f}"
        )


def _disarmed(guard: GuardStatus | None) -> str:
    """Why a robot does not move, and what to do about it, in a few words."""
    if guard is None:
        return "the bridge is starting"
    why = f"the guard has tripped: {guard.reason}" if guard.phase == GuardStatus.TRIPPED else "not armed"
    return f"{why}; `mbrl arm` lets the robot move"


def with_training(episode: Episode, learner: LearnerStatus) -> Episode:
    """An episode, with what the model learned from it."""
    return dataclasses.replace(
        episode,
        holdout_error=learner.holdout_error,
        fit_seconds=learner.fit_seconds,
        transitions=learner.transitions,
    )


def with_policy(episode: Episode, policy: PolicyStatus) -> Episode:
    """An episode, with what the policy learned from it; its time comes on top of the model's."""
    seconds = [value for value in (episode.fit_seconds, policy.learning_seconds) if math.isfinite(value)]
    return dataclasses.replace(
        episode,
        fit_seconds=sum(seconds) if seconds else math.nan,
        transitions=policy.env_steps,
        updates=policy.updates,
    )
