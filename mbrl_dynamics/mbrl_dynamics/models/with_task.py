"""A model that predicts observations and a task that says their worth: together, a model with rewards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbrl_dynamics.interfaces import Model, Noise, Policy, Task
from mbrl_dynamics.types import ModelState, Prediction, Rollout


class WithTask:
    """Adds `Task.reward` and `Task.terminated` to a model, so that a planner sees no difference between a
    known and a learned reward. Another task or goal needs no new learning.

    Args:
        model: predicts observations.
        task: knows what they are worth.

    Raises:
        ValueError: model and task speak of different observations or actions.
    """

    def __init__(self, model: Model, task: Task) -> None:
        delay = model.spec.action_delay_steps  # a property of the world, not of the task
        if model.spec.dynamics_hash != replace(task.spec, action_delay_steps=delay).dynamics_hash:
            raise ValueError(f"the model's dynamics are not those of the task '{task.spec.task}'")
        self.model, self.task, self.spec = model, task, model.spec
        self.capabilities = replace(model.capabilities, rewards=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def observe(
        self,
        state: ModelState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> ModelState:
        """As the model."""
        return self.model.observe(state, action, obs, first)

    def step(self, state: ModelState, action: Tensor, noise: Noise = None) -> Prediction:
        """As the model, with the task's reward."""
        prediction = self.model.step(state, action, noise)
        reward = self.task.reward(self.model.decode(state), action, prediction.obs)
        ended = self.task.terminated(prediction.obs)
        return replace(prediction, reward=reward, alive=None if ended is None else 1.0 - ended.float())

    def imagine(
        self,
        state: ModelState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """As the model, with the task's reward, for all steps in one call."""
        rollout = self.model.imagine(
            state, actions, particles=particles, horizon=horizon, noise=noise, keep={*keep, "obs", "action"}
        )
        assert rollout.obs is not None and rollout.action is not None
        before, after = rollout.obs[..., :-1, :], rollout.obs[..., 1:, :]
        reward = self.task.reward(before, rollout.action, after)
        ended = self.task.terminated(after)
        alive = rollout.alive
        if ended is not None:
            going = torch.cumprod(1.0 - ended.float(), dim=-1)
            alive = torch.cat([torch.ones_like(going[..., :1]), going[..., :-1]], dim=-1)
        return replace(
            rollout,
            reward=reward * alive,
            alive=alive,
            obs=rollout.obs if "obs" in keep else None,
            action=rollout.action if "action" in keep else None,
        )


def knows_reward(task: Any) -> bool:
    """Whether a task tells its reward as a function of observations and actions."""
    obs, action = np.zeros((1, task.spec.observation_dim)), np.zeros((1, task.spec.inner_action_dim))
    try:
        task.reward(obs, action, obs)
    except NotImplementedError:
        return False
    return True
