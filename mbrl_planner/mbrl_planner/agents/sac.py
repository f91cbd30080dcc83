"""Soft actor-critic (Haarnoja et al., 2018, https://arxiv.org/abs/1812.05905): the model-free baseline, and
the learner inside mbpo, mba and mve.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, Trajectory
from mbrl_planner.agents.base import Observation, PolicyAgent, PolicyConfig
from mbrl_planner.agents.networks import Critic, GaussianPolicy, adam, compile_methods, descend, follow

CHUNK = 64  # minibatches drawn at once


@config
class SACConfig(PolicyConfig):
    """Configuration of SAC."""

    hidden: Annotated[tuple[int, ...], Field(min_length=1, description="units of each hidden layer [1]")] = (
        256,
        256,
    )
    critics: Annotated[int, Field(ge=1, description="action values, the least of which is a target [1]")] = 2
    layer_norm: Annotated[bool, Field(description="whether the critics have LayerNorm")] = True
    batch_size: Annotated[int, Field(ge=1, description="transitions a gradient step [1]")] = 256
    discount: Annotated[float, Field(ge=0, le=1, description="of rewards a step later [1]")] = 0.99
    learning_rate: Annotated[float, Field(gt=0, description="Adam's step size [1]")] = 3e-4
    target_rate: Annotated[float, Field(gt=0, le=1, description="how fast the target critics follow [1]")] = (
        0.005
    )
    actor_every: Annotated[int, Field(ge=1, description="critic steps a policy step [1]")] = 1
    temperature: Annotated[float, Field(gt=0, description="weight of the entropy, at first [reward]")] = 0.1
    tune_temperature: Annotated[
        bool, Field(description="whether the temperature is tuned to reach the target entropy")
    ] = True
    target_entropy: Annotated[float, Field(description="wanted entropy an action element [nat]")] = -1.0


class Batch(NamedTuple):
    """A minibatch of single transitions; features are standardised observations."""

    feature: Tensor  # [M, Z]
    action: Tensor  # [M, A]
    reward: Tensor  # [M]
    next_feature: Tensor  # [M, Z]
    terminated: Tensor  # [M] float: 1 where nothing comes after; a truncated episode goes on

    def drawn(self, size: int, noise: torch.Generator) -> Batch:
        """`size` of the transitions, with replacement."""
        index = torch.randint(len(self.reward), (size,), generator=noise, device=self.reward.device)
        return Batch(*(values[index] for values in self))


class SAC(PolicyAgent):
    """Off-policy, with an entropy bonus whose weight is tuned; see the paper's algorithm 1.

    Observations are standardised by their mean and deviation in the first, random data, once and for all.
    """

    Config = SACConfig

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device)
        c, features, actions = self.config, self.perceive(seed), spec.inner_action_dim
        self.policy = GaussianPolicy(features, actions, c.hidden)
        self.critic = Critic(c.critics, features, actions, c.hidden, norm=c.layer_norm)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = torch.nn.Parameter(torch.tensor(c.temperature).log())
        self.to(self.device)

    def compile_update(self) -> None:
        """Compile what a gradient step computes."""
        compile_methods(self, "critic_loss", "policy_loss")

    def perceive(self, seed: int) -> int:
        """Make what turns observations into features; returns the length Z of these."""
        self.normalizer = Normalizer(self.spec.observation_dim)
        return self.spec.observation_dim

    # Acting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(
        self, carry: Observation, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Observation]:
        """The policy's mode, or a draw from it, [B, 1, A]."""
        feature = self.normalizer(carry["vector"].to(self.device))
        action = self.policy.draw(feature, self.noise) if explore else self.policy.mode(feature)
        return action.unsqueeze(1), carry

    def acting_state(self) -> dict[str, Tensor]:
        """Policy and normaliser."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(("policy.", "normalizer."))}

    # Learning -----------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One each for policy, critics and temperature."""
        rate = self.config.learning_rate
        return {
            "policy": adam(self.policy, rate),
            "critic": adam(self.critic, rate),
            "temperature": adam([self.log_temperature], rate),
        }

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps on real data."""
        self.begin(buffer)
        return self.descend_on(self.real(buffer, count))

    def begin(self, buffer: ReplayBuffer) -> None:
        """Measure observations and rewards, before the first gradient step."""
        if not self.updates:
            data = buffer.all()
            self.normalizer.measure(data.obs["vector"][:, 0].to(self.device))
            self.measure_values(data)

    def measure_values(self, data: Trajectory) -> None:
        """Let the critics work in units of the values that the rewards of these data add up to."""
        steps = 1.0 / max(1.0 - self.config.discount, 1e-3)  # that a value adds up
        for critic in (self.critic, self.target_critic):
            critic.scale.fill_(max(1.0, steps * float(data.reward.abs().nanmean())))

    def real(self, buffer: ReplayBuffer, count: int, size: int = 0) -> Iterable[Batch]:
        """Minibatches of `size` (0 = the configured one) replayed transitions."""
        size = size or self.config.batch_size
        for begin in range(0, count, CHUNK):
            some = min(CHUNK, count - begin)
            index = torch.randint(len(buffer), (some * size,), generator=self.generator, device=self.device)
            batch = self.batch(buffer.slices(index.cpu().numpy()))
            yield from map(Batch._make, zip(*(x.split(size) for x in batch), strict=True))

    def batch(self, data: Trajectory) -> Batch:
        """Single transitions as features on the device."""
        obs = self.normalizer(data.obs["vector"].to(self.device))
        reward, terminated = data.reward[:, -1].to(self.device), data.terminated[:, -1].to(self.device)
        return Batch(obs[:, -2], data.action[:, -1].to(self.device), reward, obs[:, -1], terminated.float())

    def descend_on(self, batches: Iterable[Batch]) -> Metrics:
        """One gradient step a minibatch; returns the means."""
        totals: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for i, batch in enumerate(batches):
            losses = self.step_critic(batch)
            if (self.updates + i) % self.config.actor_every == 0:
                losses |= self.step_policy(batch.feature)
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros(())) + value
                counts[name] = counts.get(name, 0) + 1
        return {name: float(total) / counts[name] for name, total in totals.items()}

    def step_critic(self, batch: Batch) -> dict[str, Tensor]:
        """Fit the critics to the target (equations 5 and 6), then let the target critics follow."""
        target = self.target(batch)
        loss, value = self.critic_loss(batch.feature, batch.action, target)
        descend(loss, self.optimizers["critic"])
        follow(self.target_critic, self.critic, self.config.target_rate)
        return {"critic_loss": loss.detach(), "value": value.detach()}

    def critic_loss(self, feature: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error in units of the critics' scale, summed over them; and the mean value."""
        values = self.critic(feature, action)
        return 0.5 * ((values - target) / self.critic.scale).square().mean(-1).sum(), values.mean()

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Reward plus the discounted soft value of what came after, [M] (equation 3)."""
        value = self.soft_value(batch.next_feature)
        return batch.reward + self.config.discount * (1.0 - batch.terminated) * value

    @torch.no_grad()
    def soft_value(self, feature: Tensor) -> Tensor:
        """Least target critic's value of a drawn action, plus the entropy's worth, [M]."""
        action, log_prob = self.policy.sample(feature, self.generator)
        return self.target_critic(feature, action).amin(0) - self.log_temperature.exp() * log_prob

    def step_policy(self, feature: Tensor) -> dict[str, Tensor]:
        """Improve the policy, and tune the temperature."""
        shape = (len(feature), self.spec.inner_action_dim)
        normal = torch.randn(shape, generator=self.generator, device=self.device)
        loss, entropy = self.policy_loss(feature, normal, self.log_temperature.exp().detach())
        descend(loss, self.optimizers["policy"])
        return {"policy_loss": loss.detach(), **self.step_temperature(entropy.detach())}

    def policy_loss(self, feature: Tensor, normal: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 9 for drawn actions, and the policy's entropy."""
        action, log_prob = self.policy.squash(feature, normal)
        loss = (temperature * log_prob - self.critic(feature, action).amin(0)).mean()
        return loss, -log_prob.mean()

    def step_temperature(self, entropy: Tensor) -> dict[str, Tensor]:
        """Raise the temperature where the entropy is below the target, else lower it (equation 18)."""
        temperature = self.log_temperature.exp()
        if self.config.tune_temperature:
            excess = entropy - self.config.target_entropy * self.spec.inner_action_dim
            descend(temperature * excess, self.optimizers["temperature"])
        return {"entropy": entropy, "temperature": temperature.detach()}
