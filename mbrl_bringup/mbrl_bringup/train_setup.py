"""What a training is made of, as its arguments, files and parameters say: the agent and its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from mbrl_bringup.stack import file_parameters, params_file, task_file
from mbrl_bringup.train_config import TrainConfig
from mbrl_dynamics import plugins
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.models.with_task import WithTask, knows_reward
from mbrl_dynamics.spec import Spec
from mbrl_planner.policy_agents import policy_class, prefix


def configurations(settings: TrainConfig, given: Mapping[str, str]) -> tuple[Any, Any, Any, Any]:
    """The agent's class and configuration, and those of its dynamics model (None where it needs none).

    They come from the same files as the parameters of policy_node and dynamics_node, then from `given`
    (name -> text, as in `mbpo.replay_ratio`).

    Raises:
        UserError: something is unknown, of the wrong type or out of range.
    """
    agent_class, group = policy_class(settings.agent), prefix(settings.agent)
    kind = settings.model or agent_class.model
    model_class = plugins.find("models", kind) if kind else None
    values: dict[str, dict[str, Any]] = {group: {}, kind: {}}
    for path in (task_file(settings.task), params_file(settings.params_file)):
        for node, name in (("policy_node", group), ("dynamics_node", kind)):
            found = {} if path is None else file_parameters(path, node, "")
            begin = f"{name}."
            values[name] |= {k.removeprefix(begin): v for k, v in found.items() if k.startswith(begin)}
    for key, text in given.items():
        of, _, name = key.rpartition(".")
        if of not in values or not of:
            raise UserError(f"unknown parameter '{key}'; valid: {', '.join(f'{n}.*' for n in values if n)}")
        values[of][name] = yaml.safe_load(text)
    agent_config: Any = build(agent_class.Config, values[group], group)
    model_config: Any = None if model_class is None else build(model_class.Config, values[kind], kind)
    return agent_class, agent_config, model_class, model_config


def make_model(
    settings: TrainConfig, task: Any, spec: Spec, model_class: Any, model_config: Any
) -> tuple[Any, Any]:
    """The model, and the model with rewards that the agent learns with; None and None without a model.

    Raises:
        UserError: the rewards cannot be had in the way that is wanted.
    """
    if model_class is None:
        return None, None
    wanted, known = settings.reward, knows_reward(task)
    learned = wanted == "learned" or (wanted == "auto" and not known)
    if wanted == "known" and not known:
        raise UserError(f"the reward of task '{settings.task}' is known to its world alone: learn it")
    fields = {entry.name for entry in dataclasses.fields(model_config)}
    if learned and "rewards" in fields:
        model_config = dataclasses.replace(model_config, rewards=True)
        if not known and "terminations" in fields:
            model_config = dataclasses.replace(model_config, terminations=getattr(task, "terminates", True))
    model = model_class(spec, model_config, seed=settings.seed)
    if learned and not model.capabilities.rewards:
        raise UserError(f"model '{settings.model}' cannot learn rewards, and the task does not tell them")
    return model, model if model.capabilities.rewards else WithTask(model, task)
