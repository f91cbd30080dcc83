"""The learner: takes what is seen, keeps it, and decides when to train. The core of dynamics_node, no ROS."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mbrl_dynamics.buffer import Fit, ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.episodes import EpisodeStore, read
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.intake import Intake, Verdict
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.training_worker import Phase, TrainingWorker
from mbrl_dynamics.transition import Answer, Transition, WorldId


@config
class LearnerConfig:
    """Configuration of Learner."""

    dataset: Annotated[
        str,
        Field(description="folder with what was seen, read at the start; empty = nothing is kept on disk"),
    ] = ""
    record: Annotated[bool, Field(description="whether transitions are written to the dataset folder")] = True
    checkpoint: Annotated[
        str, Field(description="folder of the checkpoint, read at the start; empty = none is written")
    ] = ""
    seed: Annotated[int, Field(ge=0, description="of weights and batches")] = 0
    threads: Annotated[int, Field(ge=1, le=256, description="CPU threads of the training [1]")] = 2
    fit_on: Annotated[
        Fit,
        Field(description="all steps, as many demonstrations as other steps, or those of the latest episode"),
    ] = "all"
    demonstrators: Annotated[
        tuple[str, ...], Field(description="controllers whose steps are demonstrations, by their ids")
    ] = ("person",)
    train_every_steps: Annotated[
        int, Field(ge=0, description="train also within an episode, after so many steps; 0 = never [steps]")
    ] = 0
    idle_seconds: Annotated[
        float, Field(gt=0, description="train on an episode that nobody ended after such a silence [s]")
    ] = 5.0
    fit_steps: Annotated[int, Field(ge=1, description="gradient steps a fit at most [1]")] = 1500
    fit_seconds: Annotated[float, Field(gt=0, description="wall time of a fit at most [s]")] = 600.0


@dataclass(frozen=True)
class Status:
    """How the learning goes; fields as in mbrl_msgs/LearnerStatus."""

    phase: Phase
    run_id: str
    version: int
    episodes: int
    transitions: int
    trained_world_id: str
    trained_episode: int
    train_loss: float
    holdout_error: float
    fit_seconds: float
    refused: int
    gaps: int
    recording: bool
    error: str


class Learner:
    """Keeps every valid State on disk and in memory, and has a model fitted after each episode.

    What the dataset and checkpoint folders hold is resumed: data, weights, optimiser, normaliser.

    Args:
        spec: the interface whose dynamics are learned.
        model_class: a class behind the Model protocol, with `Config`.
        model_config: its configuration.
        model_id: what the snapshots call it.
        settings: see LearnerConfig.
        notify: called from the training's thread whenever there is news (`take`, `status`).

    Raises:
        UserError: the dataset folder cannot be used, or holds data of other dynamics.
    """

    def __init__(
        self,
        spec: Spec,
        model_class: Any,
        model_config: Any,
        model_id: str,
        settings: LearnerConfig,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec, self.settings = spec, settings
        self.intake = Intake(spec)
        self._store: EpisodeStore | None = None
        self._closed: dict[str, int] = {}  # world (hex) -> its newest episode that is over
        self._step_world = ""  # world (hex) of the newest step
        self._asked = (0, ("", -1))  # steps, and (world, episode) that the last request to train covered
        self._taken = 0  # version handed over last
        self._heard_at = time.monotonic()
        self._worker = TrainingWorker(
            model_class(spec, model_config, seed=settings.seed),
            ReplayBuffer(spec, demonstrators=settings.demonstrators, fit_on=settings.fit_on),
            model_id,
            Budget(settings.fit_steps, settings.fit_seconds),
            _folder(settings.checkpoint),
            settings.threads,
            notify,
        )
        self._recall()

    # What is heard ----------------------------------------------------------------------------------------

    def announce(self, spec: Spec, world_id: WorldId) -> None:
        """A world says what its States mean.

        Raises:
            UserError: its dynamics are not those that are being learned.
        """
        theirs, ours = spec.dynamics_hash[:12], self.spec.dynamics_hash[:12]
        if spec.dynamics_hash != self.spec.dynamics_hash:
            raise UserError(
                f"the world's dynamics hash is {theirs}, but this learner has begun with {ours}: "
                "start another one, with a dataset and a checkpoint of its own"
            )
        if self._store is not None:
            self._store.announce(spec, world_id)

    def hear(self, transition: Transition) -> Verdict:
        """Take a State: refuse it, or record it, remember it, and train where it is time."""
        before = self.intake.last
        verdict = self.intake.judge(transition)
        if verdict in (Verdict.REFUSED, Verdict.REPEATED):
            return verdict
        self._heard_at = time.monotonic()
        if self._store is not None:
            self._store.add(transition)
        over = self._remember(transition, before, verdict)
        every = self.settings.train_every_steps
        if over or (every and self.intake.steps >= self._asked[0] + every):
            self._ask()
        return verdict

    def hear_answer(self, answer: Answer, stamp: float) -> None:
        """Record what a controller asked for, and when [s]."""
        if self._store is not None:
            self._store.add_answer(answer, stamp)

    def tick(self) -> None:
        """Call about once a second: an episode that nobody ended is trained on as well."""
        last = self.intake.last
        if last is not None and time.monotonic() - self._heard_at > self.settings.idle_seconds:
            self._closed[last.world_id.hex()] = last.episode
            self._ask()

    # What comes of it -------------------------------------------------------------------------------------

    @property
    def newest(self) -> Snapshot | None:
        """The newest model; None = nothing has been trained yet."""
        return self._worker.newest

    def take(self) -> Snapshot | None:
        """The newest model if it was not taken before."""
        newest = self._worker.newest
        if newest is None or newest.version == self._taken:
            return None
        self._taken = newest.version
        return newest

    def status(self) -> Status:
        """How it goes."""
        worker, store = self._worker, self._store
        phase, newest, progress = worker.phase, worker.newest, worker.progress
        metrics = progress.metrics or {}
        return Status(
            phase=phase,
            run_id=worker.run_id,
            version=0 if newest is None else newest.version,
            episodes=self.intake.episodes,
            transitions=self.intake.steps,
            trained_world_id=progress.world_id,
            trained_episode=progress.episode,
            train_loss=metrics.get("train_loss", math.nan),
            holdout_error=metrics.get("holdout_error", math.nan),
            fit_seconds=worker.fit_seconds,
            refused=self.intake.refused,
            gaps=self.intake.gaps,
            recording=store is not None and store.recording,
            error="; ".join(filter(None, (worker.error, store.error if store is not None else ""))),
        )

    def close(self, timeout: float = 3.0) -> bool:
        """Finish the recording and break off a fit that is under way; the last checkpoint stays.

        Returns:
            Whether the training's thread ended within `timeout` [s].
        """
        if self._store is not None:
            self._store.close()
        return self._worker.close(timeout)

    # ------------------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Take up what the dataset folder holds, and train on what no checkpoint has seen."""
        folder = _folder(self.settings.dataset)
        if folder is None:
            return
        if self.settings.record:
            self._store = EpisodeStore(folder, self.spec)
        for record in read(folder, ("state", "spec")):
            if isinstance(record, Spec) and record.dynamics_hash != self.spec.dynamics_hash:
                theirs, ours = record.dynamics_hash[:12], self.spec.dynamics_hash[:12]
                raise UserError(
                    f"the dataset folder '{folder}' holds data of dynamics hash {theirs}, but the world's is "
                    f"{ours}: choose another folder"
                )
            if isinstance(record, Transition):
                before = self.intake.last
                verdict = self.intake.judge(record)
                if verdict not in (Verdict.REFUSED, Verdict.REPEATED):
                    self._remember(record, before, verdict)
        self.intake.restart_counting()
        if self.intake.steps > self._worker.progress.steps:
            self._ask()
        else:
            self._asked = self._everything()

    def _remember(self, transition: Transition, before: Transition | None, verdict: Verdict) -> bool:
        """Keep a State for training; returns whether an episode is over with it."""
        self._worker.add(transition)
        world = transition.world_id.hex()
        if verdict is Verdict.STEP:
            self._step_world = world
        if before is not None and before.key[:2] != transition.key[:2]:
            self._closed[before.world_id.hex()] = before.episode
        if transition.last:
            self._closed[world] = transition.episode
        return transition.last or verdict is not Verdict.STEP

    def _ask(self) -> None:
        """Have everything up to now trained on, unless that was asked for already."""
        everything = self._everything()
        if self.intake.steps and everything != self._asked:
            self._asked = everything
            self._worker.train(*everything[1])

    def _everything(self) -> tuple[int, tuple[str, int]]:
        """How many steps there are, and up to which (world, episode) they are whole."""
        return self.intake.steps, (self._step_world, self._closed.get(self._step_world, -1))


def _folder(name: str) -> Path | None:
    return Path(name).expanduser() if name else None
