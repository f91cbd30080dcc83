"""Train first, deploy later: an agent and its worlds in lock-step, without ROS. `mbrl train`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbrl_bringup.evaluation import Driver, Evaluation, evaluate
from mbrl_bringup.evidence import MODEL
from mbrl_bringup.result import command_line, commit_id, machine_name
from mbrl_bringup.tally import Tally
from mbrl_bringup.train_config import TrainConfig, settings_given
from mbrl_bringup.train_setup import configurations, make_model
from mbrl_bringup.training_result import TrainingResult
from mbrl_dynamics import checkpoint, snapshot
from mbrl_dynamics.episodes import read
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Metrics
from mbrl_planner.agent_trainer import CHECKPOINT, DATASET, AgentTrainer, remember
from mbrl_planner.agents.base import PolicyAgent
from mbrl_sim.worlds import Worlds

SAVE_PERIOD = 60.0  # between two checkpoints [s]
LIMIT = 2000  # gradient steps between two looks at the clock and the user


class Training:
    """One training: acts, keeps what happens, fits the model, lets the agent learn, looks how good it is.

    Args:
        settings: see TrainConfig.
        folder: of the run; one that holds a checkpoint goes on from there.
        given: parameters of agent and model, name -> text.
        say: told what is worth showing, as it happens.

    Raises:
        UserError: an argument is wrong, there is nothing to learn from offline, or the folder is of another
            agent, task or dynamics; nothing in it is changed then.
    """

    def __init__(
        self,
        settings: TrainConfig,
        folder: Path,
        given: Mapping[str, str] | None = None,
        say: Callable[[str, Mapping[str, float]], None] = lambda kind, values: None,
    ) -> None:
        self.settings, self.folder, self.say = settings, folder, say
        torch.set_num_threads(settings.threads)
        self.given = dict(given or {})
        self._open: list[Any] = []  # to be closed
        try:
            self._assemble()
        except BaseException:
            self.close()
            raise

    def _assemble(self) -> None:
        settings = self.settings
        agent_class, agent_config, model_class, model_config = configurations(settings, self.given)
        options: dict[str, Any] = {"action_repeat": settings.action_repeat, "image_size": settings.image_size}
        self.worlds = Worlds(
            settings.task, settings.worlds, seed=settings.seed, processes=settings.worlds > 1, **options
        )
        self._open.append(self.worlds)
        self.judges = Worlds(settings.task, settings.eval_episodes, seed=settings.seed, **options)
        self._open.append(self.judges)
        self.task, self.spec = self.worlds.task, self.worlds.spec
        self.agent: PolicyAgent = agent_class(
            self.spec, agent_config, seed=settings.seed, device=settings.device
        )
        self.model, self.usable = make_model(settings, self.task, self.spec, model_class, model_config)
        self.result = TrainingResult(
            task=settings.task,
            agent=settings.agent,
            seed=settings.seed,
            control_period_s=self.spec.control_period,
            action_repeat=self.task.action_repeat,
            model="" if self.model is None else (settings.model or agent_class.model),
            reward="" if self.model is None else ("learned" if self.usable is self.model else "known"),
            settings=settings_given(settings, self.given),
            commit=commit_id(),
            machine=machine_name(),
            command=command_line(sys.argv[1:]),
        )
        self._fitted = 0  # steps that the model was fitted to
        self._recall()
        self.driver = Driver(self.agent, self.spec, settings.worlds, settings.seed)
        self._began = self._saved = time.monotonic()

    def _recall(self) -> None:
        """Go on from what the folder holds, or begin there."""
        self.result.recall(self.folder)
        self._spent = self.result.wall_s  # by the sessions before [s]
        self._events = list(self.result.events)  # of the sessions before
        self._recall_model()
        offline = self.settings.offline
        self.trainer = AgentTrainer(self.agent, self.settings.agent, self.folder, record=not offline)
        self._open.append(self.trainer)
        self.tally = Tally()
        if offline:
            if not remember(self.trainer.buffer, Path(offline)):
                raise UserError(f"the dataset '{offline}' holds no steps to learn from")
            marks = self.result.evaluations  # what came after the checkpoint is learned again
            self.result.evaluations = [mark for mark in marks if mark.updates <= self.agent.updates]
        else:  # result.json may be older than the dataset
            for state in read(self.folder / DATASET, ("state",)):
                assert isinstance(state, Transition)
                self.tally.hear(state)
        self.result.episodes = self.tally.episodes

    def run(self, ended: Callable[[], bool] = lambda: False) -> TrainingResult:
        """Train until the frames are used up, or `ended` says so."""
        try:
            if self.settings.offline:
                self._learn_offline(ended)
            else:
                self._learn_by_acting(ended)
            self.result.finished = not ended()
        finally:
            try:
                self._save()
            finally:
                self.close()
        return self.result

    def close(self) -> None:
        """End the worlds and the recording."""
        while self._open:
            self._open.pop().close()

    # Acting -------------------------------------------------------------------------------------------------

    def _learn_by_acting(self, ended: Callable[[], bool]) -> None:
        steps = math.ceil(self.settings.frames / self.task.action_repeat)
        if self.trainer.env_steps >= steps:
            return
        states = self._begin()
        while self.trainer.env_steps < steps and not ended():
            states = self.worlds.step(self.driver.decide(states, explore=True))
            over = [i for i, state in enumerate(states) if state.last]
            for state in states:
                self._hear(state)
            for i in over:
                states[i] = self.worlds.reset(i)
                self._hear(states[i])
            self._fit_if_due(bool(over))
            self._learn(ended)
            self._evaluate_if_due()

    def _begin(self) -> list[Transition]:
        done = self.trainer.buffer.episodes  # a resumed training draws other starts than it had
        seeds = np.random.SeedSequence((self.settings.seed, done)).generate_state(len(self.worlds)) >> 1
        states = self.worlds.reset_all([int(seed) for seed in seeds])
        for state in states:
            self._hear(state)
        return states

    def _hear(self, state: Transition) -> None:
        self.trainer.hear(state)
        if self.tally.hear(state):
            total, steps = self.tally.episodes[-1]
            self._tell("episode", {"return": total, "steps": steps, "episode": len(self.tally.episodes)})

    # Learning -----------------------------------------------------------------------------------------------

    def _learn(self, ended: Callable[[], bool]) -> None:
        usable = self.usable if self._fitted else None
        while not ended() and self._advance(lambda: self.trainer.update(usable, limit=LIMIT)):
            pass
        if time.monotonic() - self._saved > SAVE_PERIOD:
            self._save()

    def _advance(self, learn: Callable[[], Metrics]) -> bool:
        """Let the agent learn, and tell of it; returns whether there is anything to tell."""
        begin, before = time.monotonic(), self.agent.updates
        metrics = learn()
        if metrics:
            rate = (self.agent.updates - before) / max(time.monotonic() - begin, 1e-9)
            self._tell("update", {**metrics, "updates_per_s": rate})
        return bool(metrics)

    def _learn_offline(self, ended: Callable[[], bool]) -> None:
        settings = self.settings
        if self.model is not None and self._fitted < self.trainer.env_steps:
            self._fit()
        usable, every = self.usable, max(settings.updates // 10, 1)
        while self.agent.updates < settings.updates and not ended():
            before = self.agent.updates
            limit = min(every - before % every, settings.updates - before, LIMIT)
            self._advance(lambda limit=limit: self.trainer.advance(usable, limit))  # type: ignore[misc]
            if self.agent.updates // every > before // every:
                self._evaluate()

    def _fit_if_due(self, over: bool) -> None:
        if self.model is None:
            return
        steps, every = self.trainer.env_steps, self.settings.fit_every
        due = steps >= self._fitted + every if every else over
        if due and steps >= self.agent.config.random_steps:
            self._fit()

    def _fit(self) -> None:
        assert self.model is not None
        begin = time.monotonic()
        metrics = self.model.fit(self.trainer.buffer, Budget(self.settings.fit_steps))
        self._fitted = self.trainer.env_steps
        told = {name: value for name, value in metrics.items() if name not in ("steps", "seconds")}
        self._tell("fit", {**told, "fit_seconds": time.monotonic() - begin})
        self._save_model(metrics)

    # Looking ------------------------------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        every = math.ceil(self.settings.eval_every / self.task.action_repeat)
        marks = self.result.evaluations
        if self.trainer.env_steps // every > (marks[-1].env_steps // every if marks else 0):
            self._evaluate()

    def _evaluate(self) -> None:
        noise = self.agent.noise.get_state()  # looking must not change what is learned
        returns, self.result.decision_ms = evaluate(self.agent, self.judges)
        returns = [round(value, 3) for value in returns]  # as they are written down
        self.agent.noise.set_state(noise)
        steps = self.trainer.env_steps
        mark = Evaluation(steps, steps * self.task.action_repeat, self._wall(), returns, self.agent.updates)
        self.result.evaluations.append(mark)
        self._tell("evaluation", {"score": mark.score, "spread": mark.spread})
        self._save()

    def _tell(self, kind: str, values: Mapping[str, float]) -> None:
        steps = self.trainer.env_steps
        where = {"env_steps": steps, "frames": steps * self.task.action_repeat, "updates": self.agent.updates}
        self.say(kind, {**values, **where})

    def _wall(self) -> float:
        return self._spent + time.monotonic() - self._began

    # Keeping ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Checkpoint, and what came of it so far: a training that is killed goes on from here."""
        self.result.env_steps, self.result.wall_s = self.trainer.env_steps, self._wall()
        self.result.events = self._events + self.trainer.events
        if self.trainer.recording_error:
            self.result.events.append(self.trainer.recording_error)
        self._keep(lambda: self.trainer.save(fitted=self._fitted))
        self._keep(lambda: self.result.write(self.folder))
        self._saved = time.monotonic()

    def _keep(self, write: Callable[[], None]) -> None:
        """Write something; a disk that is full does not end the training, but is told, and tried again."""
        try:
            write()
        except OSError as error:
            self.trainer.note(f"not everything could be saved: {error.strerror or error}")

    def _save_model(self, metrics: Mapping[str, float]) -> None:
        name = self.result.model
        packed = snapshot.pack(self.model, model_id=name, run_id="", version=1, metrics=metrics)
        progress = checkpoint.Progress(steps=self._fitted, metrics=dict(metrics))
        self._keep(lambda: checkpoint.save(self.folder / CHECKPOINT, self.model, packed, progress))
        self._keep(lambda: snapshot.write_atomically(self.folder / MODEL, packed.weights))

    def _recall_model(self) -> None:
        if self.model is None:
            return
        try:
            progress = checkpoint.load(self.folder / CHECKPOINT, self.model, self.result.model)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._fitted = 0 if progress is None else progress.steps
