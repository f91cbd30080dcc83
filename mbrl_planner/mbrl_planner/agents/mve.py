"""Model-based value expansion (Feinberg et al., 2018, https://arxiv.org/abs/1803.00101), with horizons
weighted by disagreement (STEVE, Buckman et al., 2018, https://arxiv.org/abs/1807.01675).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.sac import SAC, Batch, SACConfig


@config
class MVEConfig(SACConfig):
    """Configuration of MVE."""

    replay_ratio: Annotated[float, Field(gt=0, description="gradient steps a step of experience [1]")] = 5.0
    horizon: Annotated[int, Field(ge=0, description="imagined steps in the critic's target [steps]")] = 3
    weighting: Annotated[
        bool,
        Field(description="weight horizons by inverse variance (STEVE) rather than take the longest (MVE)"),
    ] = True
    particles: Annotated[int, Field(ge=1, description="imagined futures, one a member in turn [1]")] = 3


class Expansion(NamedTuple):
    """What is imagined after transitions, with the policy and P particles; t = 0 is the real next state."""

    feature: Tensor  # [H+1, P, M, Z]
    action: Tensor  # [H, P, M, A]
    reward: Tensor  # [H, P, M] of imagined steps
    alive: Tensor  # [H+1, P, M] whether the episode still goes on at that state


class MVE(SAC):
    """SAC whose targets look H imagined steps ahead before they trust the critic.

    The critic is trained on the imagined states too, since its targets are else asked for states that it
    never sees (Feinberg et al., the "TD-k trick").
    """

    Config = MVEConfig
    model = "ensemble"

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps on real data, expanded by the model."""
        assert model is not None
        self.begin(buffer)
        return self.descend_on(self.expanded(buffer, model, count))

    def expanded(self, buffer: ReplayBuffer, model: Model, count: int) -> Iterable[Batch]:
        """Real minibatches followed by their imagined steps, each with its whole target in `reward`."""
        for batch in self.real(buffer, count):
            path = self.imagine(batch, model)
            targets = self.targets(batch.reward, path)  # [H+1, M]
            feature, action = [batch.feature], [batch.action]
            for h in range(self.config.horizon):
                feature.append(path.feature[h, 0])
                action.append(path.action[h, 0])
            used = torch.cat([torch.ones_like(path.alive[:1, 0]), path.alive[:-1, 0]]).flatten() > 0.5
            states, target = torch.cat(feature)[used], targets.flatten()[used]
            yield Batch(states, torch.cat(action)[used], target, states, torch.ones_like(target))

    def target(self, batch: Batch) -> Tensor:
        """Complete already."""
        return batch.reward

    @torch.no_grad()
    def imagine(self, batch: Batch, model: Model) -> Expansion:
        """The policy's futures from where the transitions end."""
        size, particles = len(batch.reward), self.config.particles
        obs = batch.next_feature * self.normalizer.std + self.normalizer.mean
        state = model.spread(model.observe(None, None, {"vector": obs}), particles)  # [M, P, ...]
        feature = batch.next_feature.unsqueeze(1).expand(-1, particles, -1)
        going = (1.0 - batch.terminated).unsqueeze(1).expand(-1, particles)
        features, actions, rewards, alive = [feature], [], [], [going]
        for _ in range(self.config.horizon):
            action = self.policy.draw(feature, self.generator)
            ahead = model.step(state, action, self.generator)
            assert ahead.obs is not None and ahead.reward is not None
            state, feature = ahead.state, self.normalizer(ahead.obs)
            if ahead.alive is not None:
                going = going * ahead.alive
            features.append(feature)
            actions.append(action)
            rewards.append(ahead.reward)
            alive.append(going)

        def stack(values: list[Tensor]) -> Tensor:
            return torch.stack(values).transpose(1, 2) if values else torch.empty(0, particles, size)

        return Expansion(stack(features), stack(actions), stack(rewards), stack(alive))

    @torch.no_grad()
    def targets(self, reward: Tensor, path: Expansion) -> Tensor:
        """Targets [H+1, M]: of the real transition, and of each imagined step after it.

        For the step that begins k steps ahead, the candidates end 0 to H - k imagined steps later with the
        critic's value; MVE takes the last of them, STEVE weights all by the inverse of their variance over
        particles x critics (equations 8 to 10).
        """
        values = self.values(path.feature)  # [H+1, C, P, M]
        rewards = torch.cat([reward.expand(1, path.alive.shape[1], -1), path.reward])  # [H+1, P, M]
        # What a unit of reward is worth on each step, and of value after the last one: [H+2, P, M].
        reached = torch.cat([torch.ones_like(path.alive[:1]), path.alive])
        power = torch.arange(len(reached), device=self.device)
        worth = reached * (self.config.discount**power)[:, None, None]
        earned = torch.cat([torch.zeros_like(reached[:1]), (worth[:-1] * rewards).cumsum(0)])
        targets = []
        for k in range(self.config.horizon + 1):
            ahead = (earned[k + 1 :] - earned[k]).unsqueeze(1) + worth[k + 1 :].unsqueeze(1) * values[k:]
            targets.append(self.combine((ahead / worth[k].clamp(min=1e-6)).flatten(1, 2)))
        return torch.stack(targets)

    def combine(self, candidates: Tensor) -> Tensor:
        """One target [M] from candidates [K, C P, M] of different lengths."""
        mean = candidates.mean(1)
        if not self.config.weighting:
            return mean[-1]
        weight = 1.0 / (candidates.var(1, correction=0) + 1e-6)
        return (weight * mean).sum(0) / weight.sum(0)

    def values(self, feature: Tensor) -> Tensor:
        """Soft values by each target critic [H+1, C, P, M] of features [H+1, P, M, Z].

        Without the weighting, the least of them, as in SAC (C = 1).
        """
        flat = feature.reshape(-1, feature.shape[-1])
        action, log_prob = self.policy.sample(flat, self.generator)
        value = self.target_critic(flat, action)
        value = value if self.config.weighting else value.amin(0, keepdim=True)
        value = value - self.log_temperature.exp() * log_prob
        return value.view(-1, *feature.shape[:-1]).transpose(0, 1)
