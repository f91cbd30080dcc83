"""DreamerV3 (Hafner et al., 2023, https://arxiv.org/abs/2301.04104): a policy learned in the imagination of a
recurrent world model (`mbrl_dynamics.models.rssm`).

Nothing in it needs the world: purely offline it learns by `advance` alone.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.heads import ExponentialTwoHot, NormedMLP
from mbrl_dynamics.models.recurrent import RSSMState, exponential
from mbrl_dynamics.models.rssm import RSSM, RSSMConfig
from mbrl_dynamics.spec import CONTINUOUS, DISCRETE, Spec
from mbrl_dynamics.types import Metrics, Trajectory
from mbrl_planner.agents.actors import ActionDistribution, Actor, divergence
from mbrl_planner.agents.base import Observation, PolicyAgent, PolicyConfig
from mbrl_planner.agents.networks import adam, compile_methods, descend, follow, frozen

ACTING = ("actor.", "world.normalizer.", "world.core.", "world.vector_encoder.", "world.image_encoders.")
QUANTILES = (0.05, 0.95)  # whose distance is the range of returns


@config
class DreamerConfig(PolicyConfig, RSSMConfig):
    """Configuration of Dreamer: the world model's, and how the policy is learned in it."""

    replay_ratio: Annotated[
        float, Field(gt=0, description="gradient steps a step of experience, the first ones included [1]")
    ] = 0.5
    policy_layers: Annotated[int, Field(ge=1, description="hidden layers of actor and critic [1]")] = 2
    starts: Annotated[
        int, Field(ge=1, description="replayed states that a gradient step dreams from [1]")
    ] = 128
    horizon: Annotated[int, Field(ge=1, description="length of a dream [steps]")] = 15
    discount: Annotated[float, Field(ge=0, le=1, description="of rewards a step later [1]")] = 0.997
    trace: Annotated[float, Field(ge=0, le=1, description="lambda of the lambda-returns [1]")] = 0.95
    actor_loss: Annotated[
        Literal["reinforce", "dynamics", "mixed", "pmpo"],
        Field(description="by likelihood ratio, through the dynamics, both, or by the advantages' signs"),
    ] = "reinforce"
    mix: Annotated[float, Field(ge=0, le=1, description="share of reinforce in 'mixed' [1]")] = 0.1
    positive: Annotated[
        float, Field(ge=0, le=1, description="weight of good actions in 'pmpo', the rest for bad ones [1]")
    ] = 0.5
    prior_weight: Annotated[
        float, Field(ge=0, description="weight in 'pmpo' of the KL from the slow policy [1]")
    ] = 0.3
    entropy: Annotated[float, Field(ge=0, description="weight of the policy's entropy [1]")] = 3e-4
    actor_rate: Annotated[float, Field(gt=0, description="Adam's step size of the actor [1]")] = 3e-4
    critic_rate: Annotated[float, Field(gt=0, description="Adam's step size of the critic [1]")] = 3e-4
    clip: Annotated[float, Field(gt=0, description="largest norm of a gradient [1]")] = 100.0
    slow_rate: Annotated[float, Field(gt=0, le=1, description="how fast the slow networks follow [1]")] = 0.02
    slow_weight: Annotated[float, Field(ge=0, description="pull of the slow critic on the critic [1]")] = 1.0
    range_decay: Annotated[float, Field(ge=0, lt=1, description="memory of the range of returns [1]")] = 0.99


class Dream(NamedTuple):
    """What was imagined from N states on. Features are [H+1, N, Z], all else [H, N, ...]."""

    feature: Tensor
    action: Tensor  # as drawn; the world model saw it clipped
    reward: Tensor  # on arriving in feature[1:]
    discount: Tensor  # of what comes after arriving there


def lambda_returns(reward: Tensor, discount: Tensor, value: Tensor, trace: float) -> Tensor:
    """Returns [H, N] from each state on (DreamerV3, equation 6):

    R_t = r_t + d_t ((1 - lambda) v_{t+1} + lambda R_{t+1}), beginning with R_H = v_H; value [H+1, N].
    """
    total, returns = value[-1], []
    known = reward + discount * (1.0 - trace) * value[1:]
    for t in reversed(range(len(reward))):
        total = known[t] + trace * discount[t] * total
        returns.append(total)
    return torch.stack(returns[::-1])


class Dreamer(PolicyAgent):
    """World model, actor and critic; each gradient step trains all three.

    Its memory is the world model's state, filtered with the actions that were executed.
    """

    Config = DreamerConfig
    kinds = (CONTINUOUS, DISCRETE)
    range: Tensor

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device)
        c = self.config
        model = RSSMConfig(**{field.name: getattr(c, field.name) for field in fields(RSSMConfig)})
        self.world, self.two_hot = RSSM(spec, model, seed=seed), ExponentialTwoHot(bins=c.bins)
        size, hidden = self.world.features, (c.hidden,) * c.policy_layers
        self.actor = Actor(size, spec.inner_action_dim, hidden, discrete=spec.discrete)
        self.critic = NormedMLP(size, hidden, c.bins, zero=True)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        slow = c.actor_loss == "pmpo"
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False) if slow else None
        self.register_buffer("range", torch.zeros(2))  # low and high quantile of returns, moving
        self.to(self.device)

    def compile_update(self) -> None:
        """Compile what a gradient step computes again and again: the steps of the filter and of dreams."""
        compile_methods(self.world.core, "update", "grouped", "next")
        compile_methods(self, "critic_loss")

    # Acting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(
        self,
        obs: Observation,
        carry: RSSMState | None,
        *,
        first: Tensor,
        prev_action: Tensor | None,
        steps: int = 1,
    ) -> RSSMState:
        """Filter a State; after lost ones the memory begins anew."""
        seen = {name: x.to(self.device) for name, x in obs.items()}
        if steps > 1 or prev_action is None:
            return self.world.observe(None, None, seen)
        return self.world.observe(carry, prev_action.to(self.device), seen, first.to(self.device))

    @torch.no_grad()
    def choose(
        self, carry: RSSMState, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, RSSMState]:
        """The policy's mode, or a draw from it, [B, 1, A], in the state to which pending actions lead."""
        state = carry
        if pending is not None:
            for action in pending.to(self.device).unbind(1):
                state = self.world.advance(state, action)
        policy = self.actor(self.world.feature(state))
        action = policy.sample(self.noise) if explore else policy.mode()
        return action.clamp(-1.0, 1.0).unsqueeze(1), carry

    def acting_state(self) -> dict[str, Tensor]:
        """Encoder, recurrent core and actor."""
        return {name: x for name, x in self.state_dict().items() if name.startswith(ACTING)}

    # Learning -----------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One each for world model, actor and critic."""
        c = self.config
        return {
            "world": adam(self.world, c.learning_rate),
            "actor": adam(self.actor, c.actor_rate),
            "critic": adam(self.critic, c.critic_rate),
        }

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps on replayed slices and on dreams from their states."""
        self.world.begin(buffer)
        totals: dict[str, Tensor] = {}
        for _ in range(count):
            batch = self.slices(buffer, self.config.batch_size, self.config.length)
            for name, value in self.descend_on(batch).items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value
        return {name: float(total) / count for name, total in totals.items()}

    def descend_on(self, batch: Trajectory) -> dict[str, Tensor]:
        """One gradient step of world model, actor and critic; what is worth logging, without gradient."""
        losses, state = self.world.losses(batch, self.generator)
        descend(torch.stack(list(losses.values())).sum(), self.optimizers["world"], self.config.clip)
        metrics = {name: value.detach() for name, value in losses.items()}
        return metrics | self.improve(self.dream(self.starts(state, batch)))

    def starts(self, state: RSSMState, batch: Trajectory) -> RSSMState:
        """Some of the replayed states [N, ...], none of which is padding or the end of a task."""
        fit = self.world.used(batch)
        fit[1:] &= ~batch.terminated.T
        rows = fit.flatten().nonzero().squeeze(-1)
        pick = torch.randint(len(rows), (self.config.starts,), generator=self.generator, device=self.device)
        rows = rows[pick]
        return RSSMState(*(x.detach().flatten(0, 1)[rows] for x in state))

    @property
    def through_dynamics(self) -> bool:
        """Whether the actor's gradient flows through the world model."""
        return self.config.actor_loss in ("dynamics", "mixed")

    def dream(self, state: RSSMState) -> Dream:
        """Follow the actor through the world model."""
        c, core, through = self.config, self.world.core, self.through_dynamics
        shape = (c.horizon, len(state.deter), core.groups, core.classes)
        noise = exponential(shape, self.generator, self.device)
        features, actions = [self.world.feature(state)], []
        with torch.set_grad_enabled(through), frozen(self.world):
            for t in range(c.horizon):
                action = self.actor(features[-1].detach()).sample(self.generator)
                within = action.clamp(-1.0, 1.0)
                if through:
                    within = action + (within - action).detach()
                state = core.next(state, within, noise[t])
                features.append(self.world.feature(state))
                actions.append(action)
            feature = torch.stack(features)
            reward, going = self.world.reward(feature[1:]), self.world.going_on(feature[1:])
        return Dream(feature, torch.stack(actions), reward, c.discount * going)

    def improve(self, dream: Dream) -> dict[str, Tensor]:
        """Train actor and critic on a dream."""
        c, dreamt = self.config, dream.feature.detach()
        logits = self.critic(dreamt)
        value = self.two_hot.decode(logits.detach())
        if self.through_dynamics:
            with frozen(self.critic):
                value = self.two_hot.decode(self.critic(dream.feature))
        returns = lambda_returns(dream.reward, dream.discount, value, c.trace)
        weight = torch.cat([torch.ones_like(dream.discount[:1]), dream.discount[:-1]]).detach().cumprod(0)
        scale = self.scale(returns.detach())
        policy = self.actor(dreamt[:-1])
        entropy = policy.entropy()
        gain = self.gain(policy, dreamt, dream.action.detach(), returns, value, weight, scale)
        actor_loss = -(gain + c.entropy * weight * entropy).mean()
        critic_loss = self.critic_loss(logits[:-1], dreamt[:-1], returns.detach(), weight)
        descend(actor_loss, self.optimizers["actor"], c.clip)
        descend(critic_loss, self.optimizers["critic"], c.clip)
        follow(self.slow_critic, self.critic, c.slow_rate)
        if self.slow_actor is not None:
            follow(self.slow_actor, self.actor, c.slow_rate)
        return {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "entropy": entropy.detach().mean(),
            "value": value.detach().mean(),
            "reward": dream.reward.detach().mean(),
            "return_scale": scale,
        }

    def gain(
        self,
        policy: ActionDistribution,
        dreamt: Tensor,
        action: Tensor,
        returns: Tensor,
        value: Tensor,
        weight: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """What the actor maximises beside its entropy, [H, N] (DreamerV3, equation 11, or else)."""
        c = self.config
        advantage = ((returns - value[:-1]) / scale).detach()
        if c.actor_loss == "pmpo":
            return self.preference(policy, dreamt, action, advantage, weight)
        through = weight * returns / scale
        if c.actor_loss == "dynamics":
            return through
        likelihood = weight * advantage * policy.log_prob(action)
        return likelihood if c.actor_loss == "reinforce" else c.mix * likelihood + (1.0 - c.mix) * through

    def preference(
        self, policy: ActionDistribution, dreamt: Tensor, action: Tensor, advantage: Tensor, weight: Tensor
    ) -> Tensor:
        """Preference optimisation (PMPO, Abdolmaleki et al., 2024; in dreams: Hafner et al., 2025).

        Good actions become likelier and bad ones less likely, whatever the size of their advantage, near the
        slow policy, which stands for the prior.
        """
        c, log_prob = self.config, policy.log_prob(action)
        good, bad = weight * (advantage >= 0), weight * (advantage < 0)
        sides = c.positive * good / good.mean().clamp(min=1e-6) - (1.0 - c.positive) * bad / bad.mean().clamp(
            min=1e-6
        )
        assert self.slow_actor is not None
        with torch.no_grad():
            slow = self.slow_actor(dreamt[:-1])
        return sides * log_prob - c.prior_weight * weight * divergence(policy, slow)

    def critic_loss(self, logits: Tensor, dreamt: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
        """Towards the returns, and a little towards the slow critic (DreamerV3, equation 10)."""
        with torch.no_grad():
            slow = self.two_hot.decode(self.slow_critic(dreamt))
        loss = self.two_hot.loss(logits, returns) + self.config.slow_weight * self.two_hot.loss(logits, slow)
        return (weight * loss).mean()

    @torch.no_grad()
    def scale(self, returns: Tensor) -> Tensor:
        """Moving range of returns from 5 to 95 per cent, at least 1, so that small ones are not blown up."""
        now = torch.quantile(returns.flatten(), torch.tensor(QUANTILES, device=returns.device))
        decay = self.config.range_decay if self.updates or self.range.any() else 0.0
        self.range.lerp_(now, 1.0 - decay)
        return (self.range[1] - self.range[0]).clamp(min=1.0)
