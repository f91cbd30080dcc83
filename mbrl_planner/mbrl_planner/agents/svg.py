"""Stochastic value gradients: the policy is trained by backpropagation through the learned model
(Heess et al., 2015, https://arxiv.org/abs/1510.09142), with what makes that stable: a short look ahead and a
terminal value (MAAC, Clavera et al., 2020, https://arxiv.org/abs/2005.08068).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.mbpo import MBPO, MBPOConfig
from mbrl_planner.agents.networks import descend


@config
class SVGConfig(MBPOConfig):
    """Configuration of SVG."""

    actor_every: Annotated[int, Field(ge=1, description="critic steps a policy step [1]")] = 4
    look_ahead: Annotated[int, Field(ge=1, description="imagined steps that are differentiated [steps]")] = 4
    starts: Annotated[int, Field(ge=1, description="states a policy step looks ahead from [1]")] = 64
    particles: Annotated[
        int, Field(ge=1, description="imagined futures a state, each with its member [1]")
    ] = 3
    clip: Annotated[float, Field(gt=0, description="largest norm of the policy's gradient [1]")] = 10.0


class SVG(MBPO):
    """MBPO's critic, and a policy that follows the gradient of its imagined return.

    Each future keeps one member of the ensemble, so that its path is smooth in the actions. The members'
    outcome noise is drawn and held fixed (the reparameterisation trick), and the model's weights are frozen.
    """

    Config = SVGConfig

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps of the critics, and some of the policy through the model."""
        assert model is not None
        with frozen(model):
            self._through = model
            return super().learn(buffer, model, count)

    def step_policy(self, feature: Tensor) -> dict[str, Tensor]:
        """Ascend the gradient of the imagined return (MAAC, equation 5), and tune the temperature."""
        temperature = self.log_temperature.exp()
        value, entropy = self.imagined_return(self._through, feature[: self.config.starts])
        loss = -value.mean()
        descend(loss, self.optimizers["policy"], self.config.clip)
        entropy = entropy.detach().mean()
        if self.config.tune_temperature:
            excess = entropy - self.config.target_entropy * self.spec.inner_action_dim
            descend(temperature * excess, self.optimizers["temperature"])
        return {"policy_loss": loss.detach(), "entropy": entropy, "temperature": temperature.detach()}

    def imagined_return(self, model: Model, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Discounted soft return [M, P] over the look ahead, with the critic's value at its end, and the
        policy's entropy at the beginning [M, P], for features [M, Z]; differentiable in the policy.
        """
        temperature, particles = self.log_temperature.exp().detach(), self.config.particles
        obs = feature * self.normalizer.std + self.normalizer.mean
        state = model.spread(model.observe(None, None, {"vector": obs}), particles)
        feature = feature.unsqueeze(1).expand(-1, particles, -1)
        action, log_prob = self.policy.sample(feature, self.generator)
        entropy, total = -log_prob, torch.zeros_like(log_prob)
        worth = torch.ones_like(log_prob)  # of a unit of reward: discount and survival
        for _ in range(self.config.look_ahead):
            ahead = model.step(state, action, self.generator)
            assert ahead.obs is not None and ahead.reward is not None
            total = total + worth * (ahead.reward - temperature * log_prob)
            worth = self.config.discount * (worth if ahead.alive is None else worth * ahead.alive)
            state, feature = ahead.state, self.normalizer(ahead.obs)
            action, log_prob = self.policy.sample(feature, self.generator)
        value = self.critic(feature.flatten(0, 1), action.flatten(0, 1)).amin(0).view_as(log_prob)
        return total + worth * (value - temperature * log_prob), entropy


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """The model's parameters without gradients, for the length of a block."""
    parameters = [p for p in model.parameters() if p.requires_grad] if hasattr(model, "parameters") else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
