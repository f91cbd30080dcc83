"""A run of `mbrl demo` while it happens: episodes, the live table, the result after each episode."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import rclpy
from rclpy.signals import SignalHandlerOptions

from mbrl_bringup.demo import Run
from mbrl_bringup.evidence import MODEL
from mbrl_bringup.result import Episode, Result, write
from mbrl_bringup.ros.client import RunFailed, StackClient
from mbrl_bringup.table import RunTable
from mbrl_dynamics.snapshot import write_atomically
from mbrl_msgs.msg import LearnerStatus

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

    def play(self) -> Result:
        """Run the episodes.

        Raises:
            Stopped: the user wants to end; `result` holds what there is.
            RunFailed: the run cannot go on; `result` holds what there is.
        """
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._client = StackClient(self._run.stack.namespace, self._stopped, self._look, keep_models=True)
        title = f"{self.result.task}, seed {self.result.seed} (* random actions)"
        with RunTable(title) as self._table:
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
        client.wait_for(lambda: all((client.spec, client.world, client.learner)))
        assert client.spec is not None
        self.result = dataclasses.replace(self.result, control_period_s=client.spec.control_period)
        for index in range(demo.episodes):
            mode = "exploit" if index else "random"
            seed = SEEDS_APART * self.result.seed + index
            self._keep(client.run_episode(mode, seed, wait_for_model=True), index)
            if demo.early_stop and demo.solved(self.result.returns):
                break
            if index + 1 < demo.episodes:
                self._keep(with_training(self.result.episodes[-1], client.wait_for_training()), index)

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
        self._table.show(self.result.episodes, self._now())

    def _now(self) -> str:
        """What is happening, in a few words."""
        feedback, learner = self._client.feedback, self._client.learner
        if self._client.world is None:
            return "the nodes are starting"
        if learner is not None and learner.status == LearnerStatus.TRAINING:
            return f"training on {learner.transitions} transitions"
        if feedback is None or feedback.done:
            return "between episodes"
        number = len(self.result.episodes) + 1
        return (
            f"episode {number}: {feedback.phase}, step {feedback.step}, return {feedback.return_so_far:.1f}"
        )


def with_training(episode: Episode, learner: LearnerStatus) -> Episode:
    """An episode, with what the model learned from it."""
    return dataclasses.replace(
        episode,
        holdout_error=learner.holdout_error,
        fit_seconds=learner.fit_seconds,
        transitions=learner.transitions,
    )
