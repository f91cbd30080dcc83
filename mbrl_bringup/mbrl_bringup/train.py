"""Train first, deploy later: an agent and its worlds in lock-step, without ROS. `mbrl train`."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mbrl_bringup.evaluation import Driver, Evaluation, evaluate
from mbrl_bringup.result import commit_id, machine_name
from mbrl_bringup.stack import file_parameters, params_file, task_file
from mbrl_bringup.train_config import TrainConfig
from mbrl_bringup.training_result import TrainingResult
from mbrl_dynamics import checkpoint, plugins, snapshot
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.transition import Transition
from mbrl_planner.agent_trainer import CHECKPOINT, AgentTrainer, remember
from mbrl_planner.agents.base import PolicyAgent
from mbrl_sim.worlds import Worlds

SAVE_PERIOD = 60.0  # between two checkpoints [s]
LIMIT = 2000  # gradient steps between two looks at the clock and the user


def configurations(settings: TrainConfig, given: Mapping[str, str]) -> tuple[Any, Any, Any, Any]:
    """The agent's class and configuration, and those of its dynamics model (None where it needs none).

    They come from the same files as the parameters of policy_node and dynamics_node, then from `given`
    (name -> text, as in `mbpo.replay_ratio`).

    Raises:
        UserError: something is unknown, of the wrong type or out of range.
    """
    agent_class = plugins.find("agents", settings.agent)
    if not (isinstance(agent_class, type) and issubclass(agent_class, PolicyAgent)):
        raise UserError(f"agent '{settings.agent}' learns no policy; valid: {', '.join(trainable())}")
    group = settings.agent.rpartition(":")[2]
    kind = settings.model or agent_class.model
    model_class = plugins.find("models", kind) if kind else None
    values: dict[str, dict[str, Any]] = {group: {}, kind: {}}
    for path in (task_file(settings.task), params_file(settings.params_file)):
        for node, name in (("policy_node", group), ("dynamics_node", kind)):
            found = {} if path is None else file_parameters(path, node, "")
            prefix = f"{name}."
            values[name] |= {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    for key, text in given.items():
        prefix, _, name = key.rpartition(".")
        if prefix not in values or not prefix:
            raise UserError(f"unknown parameter '{key}'; valid: {', '.join(f'{n}.*' for n in values if n)}")
        values[prefix][name] = yaml.safe_load(text)
    agent_config: Any = build(agent_class.Config, values[group], group)
    model_config: Any = None if model_class is None else build(model_class.Config, values[kind], kind)
    return agent_class, agent_config, model_class, model_config


def trainable() -> list[str]:
    """Names of all installed agents that learn a policy."""
    found = []
    for name in plugins.names("agents"):
        try:
            agent = plugins.find("agents", name)
        except UserError:
            continue  # one that cannot be imported; naming it tells why
        if isinstance(agent, type) and issubclass(agent, PolicyAgent):
            found.append(name)
    return found


class Training:
    """One training: acts, keeps what happens, fits the model, lets the agent learn, looks how good it is.

    Args:
        settings: see TrainConfig.
        folder: of the run; one that holds a checkpoint goes on from there.
        given: parameters of agent and model, name -> text.
        say: told what is worth showing, as it happens.

    Raises:
        UserError: an argument is wrong, or the folder is of another agent, task or dynamics.
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
        agent_class, agent_config, self._model_class, model_config = configurations(settings, given or {})
        options: dict[str, Any] = {"action_repeat": settings.action_repeat, "image_size": settings.image_size}
        self.worlds = Worlds(
            settings.task, settings.worlds, seed=settings.seed, processes=settings.worlds > 1, **options
        )
        self.judges = Worlds(settings.task, settings.eval_episodes, seed=settings.seed, **options)
        self.task, self.spec = self.worlds.task, self.worlds.spec
        agent = agent_class(self.spec, agent_config, seed=settings.seed, device=settings.device)
        self.agent: PolicyAgent = agent
        self.model, self.usable = self._make_model(model_config)
        self.trainer = AgentTrainer(agent, settings.agent, folder, record=not settings.offline)
        self.driver = Driver(agent, self.spec, settings.worlds, settings.seed)
        self.result = TrainingResult(
            task=settings.task,
            agent=settings.agent,
            seed=settings.seed,
            control_period_s=self.spec.control_period,
            action_repeat=self.task.action_repeat,
            model="" if self.model is None else (settings.model or agent_class.model),
            reward="" if self.model is None else ("learned" if self.usable is self.model else "known"),
            commit=commit_id(),
            machine=machine_name(),
            command=shlex.join(["mbrl", *sys.argv[1:]]),
        )
        self.result.recall(folder)
        self._spent = self.result.wall_s  # by the sessions before [s]
        self._began = self._saved = time.monotonic()
        self._fitted = 0  # steps that the model was fitted to
        self._recall_model()

    def run(self, ended: Callable[[], bool] = lambda: False) -> TrainingResult:
        """Train until the frames are used up, or `ended` says so."""
        try:
            if self.settings.offline:
                self._learn_offline(ended)
            else:
                self._learn_by_acting(ended)
            self.result.finished = not ended()
        finally:
            self._note()
            self.trainer.save(fitted=self._fitted)
            self.trainer.close()
            self.worlds.close()
            self.judges.close()
        return self.result

    # Acting -------------------------------------------------------------------------------------------------

    def _learn_by_acting(self, ended: Callable[[], bool]) -> None:
        count = len(self.worlds)
        steps = math.ceil(self.settings.frames / self.task.action_repeat)
        states = self._begin()
        returns, lengths = np.zeros(count), np.zeros(count, int)
        while self.trainer.env_steps < steps and not ended():
            states = self.worlds.step(self.driver.decide(states, explore=True))
            over = [i for i, state in enumerate(states) if state.last]
            returns += [state.reward for state in states]
            lengths += 1
            for state in states:
                self.trainer.hear(state)
            for i in over:
                self._episode_over(float(returns[i]), int(lengths[i]))
                returns[i], lengths[i] = 0.0, 0
                states[i] = self.worlds.reset(i)
                self.trainer.hear(states[i])
            self._fit_if_due(bool(over))
            self._learn(ended)
            self._evaluate_if_due()

    def _begin(self) -> list[Transition]:
        done = self.trainer.buffer.episodes  # a resumed training draws other starts than it had
        seeds = np.random.SeedSequence((self.settings.seed, done)).generate_state(len(self.worlds)) >> 1
        states = self.worlds.reset_all([int(seed) for seed in seeds])
        for state in states:
            self.trainer.hear(state)
        return states

    def _episode_over(self, total: float, steps: int) -> None:
        self.result.episodes.append((total, steps))
        self.say("episode", {"return": total, "steps": steps, "env_steps": self.trainer.env_steps})

    # Learning -----------------------------------------------------------------------------------------------

    def _learn(self, ended: Callable[[], bool]) -> None:
        usable = self.usable if self._fitted else None
        while not ended():
            metrics = self.trainer.update(usable, limit=LIMIT)
            if not metrics:
                break
            self.say(
                "update", {**metrics, "env_steps": self.trainer.env_steps, "updates": self.agent.updates}
            )
        self.result.events = list(self.trainer.events)
        if time.monotonic() - self._saved > SAVE_PERIOD:
            self._note()
            self.trainer.save(fitted=self._fitted)
            self._saved = time.monotonic()

    def _learn_offline(self, ended: Callable[[], bool]) -> None:
        settings, folder = self.settings, Path(self.settings.offline)
        if not remember(self.trainer.buffer, folder):
            raise UserError(f"the dataset '{folder}' holds no steps to learn from")
        if self.model is not None:
            self._fit()
        usable, every = self.usable, max(settings.updates // 10, 1)
        while self.agent.updates < settings.updates and not ended():
            before = self.agent.updates
            limit = min(every - before % every, settings.updates - before)
            metrics = self.trainer.advance(usable, limit)
            self.say(
                "update", {**metrics, "env_steps": self.trainer.env_steps, "updates": self.agent.updates}
            )
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
        self.say(
            "fit",
            {
                "holdout_error": metrics["holdout_error"],
                "train_loss": metrics["train_loss"],
                "fit_seconds": time.monotonic() - begin,
                "env_steps": self._fitted,
            },
        )
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
        self.agent.noise.set_state(noise)
        steps = self.trainer.env_steps
        mark = Evaluation(steps, steps * self.task.action_repeat, self._wall(), returns)
        self.result.evaluations.append(mark)
        self.say(
            "evaluation",
            {"score": mark.score, "env_steps": steps, "frames": mark.frames, "updates": self.agent.updates},
        )
        self._note()

    def _wall(self) -> float:
        return self._spent + time.monotonic() - self._began

    def _note(self) -> None:
        self.result.env_steps, self.result.wall_s = self.trainer.env_steps, self._wall()
        self.result.write(self.folder)

    # The model ----------------------------------------------------------------------------------------------

    def _make_model(self, model_config: Any) -> tuple[Any, Any]:
        """The model, and the model with rewards that the agent learns with."""
        if self._model_class is None:
            return None, None
        wanted, known = self.settings.reward, knows_reward(self.task)
        learned = wanted == "learned" or (wanted == "auto" and not known)
        if wanted == "known" and not known:
            raise UserError(
                f"the reward of task '{self.settings.task}' is known to its world alone: learn it"
            )
        fields = {entry.name for entry in dataclasses.fields(model_config)}
        if learned and "rewards" in fields:
            model_config = dataclasses.replace(model_config, rewards=True)
            if not known and "terminations" in fields:
                model_config = dataclasses.replace(
                    model_config, terminations=getattr(self.task, "terminates", True)
                )
        model = self._model_class(self.spec, model_config, seed=self.settings.seed)
        if learned and not model.capabilities.rewards:
            raise UserError(
                f"model '{self.settings.model}' cannot learn rewards, and the task does not tell them"
            )
        return model, model if model.capabilities.rewards else WithTask(model, self.task)

    def _save_model(self, metrics: Mapping[str, float]) -> None:
        name = self.result.model
        packed = snapshot.pack(self.model, model_id=name, run_id="", version=1, metrics=metrics)
        progress = checkpoint.Progress(steps=self._fitted, metrics=dict(metrics))
        checkpoint.save(self.folder / CHECKPOINT, self.model, packed, progress)

    def _recall_model(self) -> None:
        if self.model is None:
            return
        try:
            progress = checkpoint.load(self.folder / CHECKPOINT, self.model, self.result.model)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._fitted = 0 if progress is None else progress.steps


def knows_reward(task: Any) -> bool:
    """Whether a task tells its reward as a function of observations and actions."""
    spec = task.spec
    obs, action = np.zeros((1, spec.observation_dim)), np.zeros((1, spec.inner_action_dim))
    try:
        task.reward(obs, action, obs)
    except NotImplementedError:
        return False
    return True
