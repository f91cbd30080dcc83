"""Stochastic value gradients: the policy is trained by backpropagation through the learned model
(Heess et al., 2015, https://arxiv.org/abs/1510.09142), with what makes that stable: a short look ahead and a
terminal value (MAAC, Clavera et al., 2020, https://arxiv.org/abs/2005.08068).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import Metrics, ModelState
from mbrl_planner.agents.networks import descend, follow, frozen
from mbrl_planner.agents.sac import SAC, SACConfig


@config
class SVGConfig(SACConfig):
    """Configuration of SVG."""

    replay_ratio: Annotated[float, Field(gt=0, description="gradient steps a step of experience [1]")] = 2.0
    batch_size: Annotated[int, Field(ge=1, description="futures imagined a gradient step [1]")] = 256
    target_rate: Annotated[float, Field(gt=0, le=1, description="how fast the target critics follow [1]")] = (
        0.02
    )
    look_ahead: Annotated[int, Field(ge=1, description="imagined steps that are differentiated [steps]")] = 5
    trace: Annotated[
        float, Field(ge=0, le=1, description="lambda: weight of longer returns in the critic's target [1]")
    ] = 0.95
    aleatoric: Annotated[
        bool, Field(description="draw the outcome noise that the model predicts, rather than follow its mean")
    ] = False
    clip: Annotated[float, Field(gt=0, description="largest norm of the policy's gradient [1]")] = 10.0


class Future(NamedTuple):
    """What is imagined from M states over H steps; differentiable in the policy."""

    feature: Tensor  # [H+1, M, Z]
    action: Tensor  # [H+1, M, A]
    log_prob: Tensor  # [H+1, M] of the actions
    reward: Tensor  # [H, M]
    alive: Tensor  # [H+1, M] probability that a state is reached


class SVG(SAC):
    """A policy that follows the gradient of its imagined return, and a critic fitted to the same futures.

    Futures begin where the robot has been and follow the policy. Each keeps one member of the ensemble, so
    that its path is smooth in the actions; actions (and outcomes, if `aleatoric`) are drawn with noise that
    is held fixed, the reparameterisation trick; the model's weights are frozen.
    """

    Config = SVGConfig
    model = "ensemble"

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps of policy and critic."""
        assert model is not None
        self.begin(buffer)
        totals: dict[str, float] = {}
        with frozen(model):
            for batch in self.real(buffer, count):
                for name, value in self.step(model, batch.feature).items():
                    totals[name] = totals.get(name, 0.0) + float(value) / count
        return totals

    def step(self, model: Model, feature: Tensor) -> dict[str, Tensor]:
        """One gradient step from features [M, Z] on."""
        future = self.imagine(model, feature)
        loss = -self.imagined_return(future).mean()
        descend(loss, self.optimizers["policy"], self.config.clip)
        future = Future(*(x.detach() for x in future))
        metrics = {"policy_loss": loss.detach(), **self.step_temperature(-future.log_prob.mean())}
        return metrics | self.fit_critic(future)

    def imagine(self, model: Model, feature: Tensor) -> Future:
        """The policy's futures from features [M, Z] on."""
        obs = feature * self.normalizer.std + self.normalizer.mean
        state = one_particle(model, model.observe(None, None, {"vector": obs}), self.generator)
        alive = torch.ones(len(obs), device=self.device)
        features, actions, log_probs, rewards, reached = [], [], [], [], []
        for h in range(self.config.look_ahead + 1):
            action, log_prob = self.policy.sample(feature, self.generator)
            features.append(feature)
            actions.append(action)
            log_probs.append(log_prob)
            reached.append(alive)
            if h == self.config.look_ahead:
                break
            ahead = model.step(state, action, self.generator if self.config.aleatoric else None)
            assert ahead.obs is not None and ahead.reward is not None
            rewards.append(ahead.reward)
            alive = alive if ahead.alive is None else alive * ahead.alive
            state, feature = ahead.state, self.normalizer(ahead.obs)
        return Future(*(torch.stack(x) for x in (features, actions, log_probs, rewards, reached)))

    def imagined_return(self, future: Future) -> Tensor:
        """Discounted soft return [M] over the look ahead, and the critic's value after it (MAAC, eq. 5)."""
        temperature = self.log_temperature.exp().detach()
        last = self.critic(future.feature[-1], future.action[-1]).amin(0)
        earned = torch.cat([future.reward, last.unsqueeze(0)]) - temperature * future.log_prob
        power = torch.arange(len(earned), device=self.device).unsqueeze(1)
        return (self.config.discount**power * future.alive * earned).sum(0)

    def fit_critic(self, future: Future) -> dict[str, Tensor]:
        """Fit the critics to the lambda-returns of the futures, then let the target critics follow."""
        features, actions = future.feature.flatten(0, 1), future.action.flatten(0, 1)
        with torch.no_grad():
            temperature = self.log_temperature.exp()
            soft = self.target_critic(features, actions).amin(0).view_as(future.log_prob)
            soft = soft - temperature * future.log_prob
            target = action_values(future, soft, temperature, self.config.discount, self.config.trace)
        count = target.numel()
        values = self.critic(features[:count], actions[:count])
        error = ((values - target.flatten()) / self.critic.scale).square()
        loss = 0.5 * (error * future.alive[:-1].flatten()).mean(-1).sum()
        descend(loss, self.optimizers["critic"])
        follow(self.target_critic, self.critic, self.config.target_rate)
        return {"critic_loss": loss.detach(), "value": values.detach().mean()}


def action_values(future: Future, soft: Tensor, temperature: Tensor, discount: float, trace: float) -> Tensor:
    """Lambda-returns of the actions taken [H, M], for soft values [H+1, M] of states with their actions.

    Q_h = r_h + discount alive_h ((1 - trace) V_{h+1} + trace (Q_{h+1} - temperature log pi_{h+1})), where the
    last step ahead has V alone.
    """
    going = future.alive[1:] / future.alive[:-1].clamp(min=1e-6)
    ahead, targets = soft[-1], []
    for h in reversed(range(len(future.reward))):
        target = future.reward[h] + discount * going[h] * ahead
        ahead = (1.0 - trace) * soft[h] + trace * (target - temperature * future.log_prob[h])
        targets.append(target)
    return torch.stack(targets[::-1])


def one_particle(model: Model, state: ModelState, generator: torch.Generator) -> ModelState:
    """For each of M states one particle [M, ...], drawn from those that the model would use for it."""
    spread = model.spread(state, getattr(model, "elites", 1))
    (leaf, *_) = pytree.tree_leaves(spread)
    rows = torch.arange(leaf.shape[0], device=leaf.device)
    index = torch.randint(leaf.shape[1], rows.shape, generator=generator, device=leaf.device)
    return pytree.tree_map(lambda x: x[rows, index], spread)
