"""TD-MPC2 (Hansen et al., 2022, https://arxiv.org/abs/2203.04955, and 2024, https://arxiv.org/abs/2310.16828):
a short search in the latent space of a learned model, beyond whose horizon a learned value speaks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.heads import TwoHot
from mbrl_dynamics.models.tdmpc import SIMPLEX, LatentDynamics, LatentDynamicsConfig
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, Trajectory
from mbrl_planner.agents.base import Observation, PolicyAgent, PolicyConfig
from mbrl_planner.agents.networks import GaussianPolicy, Stack, adam, compile_methods, descend, follow
from mbrl_planner.interfaces import Guess
from mbrl_planner.planners.sampling import pick

SCALE_RATE = 0.01  # how fast the range of values follows [1]


@config
class TDMPCConfig(PolicyConfig):
    """Configuration of TDMPC; the weights of the losses are the paper's."""

    latent: Annotated[
        int, Field(ge=SIMPLEX, multiple_of=SIMPLEX, description="length of the latent, a multiple of 8 [1]")
    ] = 64
    encoder: Annotated[tuple[int, ...], Field(description="units of the encoder's hidden layers [1]")] = (
        128,
    )
    hidden: Annotated[
        tuple[int, ...],
        Field(min_length=1, description="units of dynamics', reward's and policy's layers [1]"),
    ] = (96, 96)
    critic_hidden: Annotated[
        tuple[int, ...], Field(min_length=1, description="units of each action value's hidden layers [1]")
    ] = (64, 64)
    bins: Annotated[int, Field(ge=2, description="bins of the discrete regression [1]")] = 51
    critics: Annotated[int, Field(ge=2, description="action values in the ensemble [1]")] = 5
    termination: Annotated[bool, Field(description="whether the end of an episode is learned")] = False

    horizon: Annotated[int, Field(ge=1, description="of plans, and of the unrolls in training [steps]")] = 3
    candidates: Annotated[int, Field(ge=2, description="plans tried in an iteration [1]")] = 64
    policy_plans: Annotated[int, Field(ge=0, description="of these, made by the policy [1]")] = 12
    iterations: Annotated[int, Field(ge=1, description="refinements a decision [1]")] = 3
    elites: Annotated[int, Field(ge=1, description="best plans that a refinement is made from [1]")] = 12
    temperature: Annotated[
        float, Field(gt=0, description="weight of an elite = exp(temperature x return) [1/reward]")
    ] = 0.5
    min_std: Annotated[float, Field(gt=0, description="least spread of actions; it explores [1]")] = 0.05
    max_std: Annotated[float, Field(gt=0, description="spread of actions at first [1]")] = 2.0

    batch_size: Annotated[int, Field(ge=1, description="slices a gradient step [1]")] = 128
    learning_rate: Annotated[
        float, Field(gt=0, description="Adam's step size; the encoder's is 0.3 of it")
    ] = 3e-4
    clip: Annotated[float, Field(gt=0, description="largest norm of a gradient [1]")] = 20.0
    rho: Annotated[float, Field(gt=0, le=1, description="weight of a training step later [1]")] = 0.5
    consistency: Annotated[float, Field(ge=0, description="weight of the latents' error [1]")] = 20.0
    reward: Annotated[float, Field(ge=0, description="weight of the rewards' cross-entropy [1]")] = 0.1
    value: Annotated[float, Field(ge=0, description="weight of the values' cross-entropy [1]")] = 0.1
    entropy: Annotated[float, Field(ge=0, description="weight of the policy's entropy, in scaled values")] = (
        1e-4
    )
    target_rate: Annotated[
        float, Field(gt=0, le=1, description="how fast the networks of targets and acting follow [1]")
    ] = 0.01
    averaged: Annotated[bool, Field(description="whether it acts with averages of its networks")] = True
    discount: Annotated[
        float, Field(ge=0, le=1, description="of rewards a step later; 0 = from `episode_steps` [1]")
    ] = 0.0
    episode_steps: Annotated[int, Field(ge=1, description="usual length of an episode [steps]")] = 500


def discount_of(episode_steps: int) -> float:
    """The discount for episodes of a length: it looks ahead a fifth, within 0.95 and 0.995 (TD-MPC2)."""
    horizon = episode_steps / 5.0
    return min(max((horizon - 1.0) / horizon, 0.95), 0.995)


@dataclass(frozen=True)
class Memory:
    """What is carried from one State to the next.

    Attributes:
        obs: [B, D] the newest observation, SI.
        guess: the mean of the last plan, as seen from now; None = none yet.
    """

    obs: Tensor
    guess: Guess | None


class Prior(GaussianPolicy):
    """The policy that proposes plans and values; with LayerNorm."""

    def __init__(self, features: int, actions: int, hidden: tuple[int, ...]) -> None:
        super().__init__(features, actions, hidden)
        self.net = Stack(1, features, hidden, 2 * actions, norm=True)


class Values(nn.Module):
    """E action values, each a distribution over bins."""

    def __init__(self, members: int, features: int, actions: int, hidden: tuple[int, ...], bins: int) -> None:
        super().__init__()
        self.net, self.two_hot = (
            Stack(members, features + actions, hidden, bins, norm=True, zero=True),
            TwoHot(bins=bins),
        )

    def forward(self, latent: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """Logits [E, M, bins] for latents [M, Z] and actions [M, A], of some members or of all."""
        return self.net(torch.cat([latent, action], -1), members)

    def of(self, latent: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """Values [E, M]."""
        return self.two_hot.decode(self(latent, action, members))


class Networks(NamedTuple):
    """What a decision is made with."""

    world: LatentDynamics
    policy: Prior
    critic: Values


class TDMPC(PolicyAgent):
    """Learns encoder, latent dynamics, rewards, values and a policy together, and acts by MPPI.

    It acts with moving averages of all networks, where the paper only averages the values of its targets. A
    small network goes back and forth between gradient steps, and what was learned a moment ago can fail where
    the average of the last hundred steps does not (Polyak & Juditsky, 1992). But that
    going back and forth also explores: `averaged: false` acts with the newest networks, as the paper does.
    """

    Config = TDMPCConfig
    scale: Tensor  # range of the values, 5 to 95 %

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device)
        c, actions = self.config, spec.inner_action_dim
        shared = ("latent", "encoder", "hidden", "bins", "termination", "horizon", "consistency", "reward")
        options = {name: getattr(c, name) for name in shared}
        self.world = LatentDynamics(spec, LatentDynamicsConfig(**options, discount=c.rho), seed=seed)
        self.policy = Prior(c.latent, actions, c.hidden)
        self.critic = Values(c.critics, c.latent, actions, c.critic_hidden, c.bins)
        self.slow_world = copy.deepcopy(self.world).requires_grad_(False)
        self.slow_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        slow = Networks(self.slow_world, self.slow_policy, self.slow_critic)
        self.acting = slow if c.averaged else Networks(self.world, self.policy, self.critic)
        self.register_buffer("scale", torch.ones(()))
        self.discount = c.discount or discount_of(c.episode_steps)
        self.to(self.device)

    def compile_update(self) -> None:
        """Compile what a gradient step computes."""
        compile_methods(self.world, "unroll", "losses")
        compile_methods(self, "critic_loss", "worth")

    # Acting -------------------------------------------------------------------------------------------------

    def observe(
        self,
        obs: Observation,
        carry: Memory | None,
        *,
        first: Tensor,
        prev_action: Tensor | None,
        steps: int = 1,
    ) -> Memory:
        """Keep the observation, and let the last plan grow older; where an episode begins, forget it."""
        guess = None
        if carry is not None and carry.guess is not None:
            mean = carry.guess.shifted(steps).mean
            guess = Guess(torch.where(first.to(self.device)[:, None, None], 0.0, mean))
        return Memory(obs["vector"].to(self.device).float(), guess)

    @torch.no_grad()
    def choose(
        self, carry: Memory, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Memory]:
        """Search from the newest observation, through what is under way; the plan [B, H, A]."""
        latent = self.acting.world.encode(carry.obs)
        if pending is not None:
            for action in pending.to(self.device).unbind(1):
                latent = self.acting.world.next(latent, action)
        actions, mean = self.plan(latent, carry.guess, explore)
        return actions, Memory(carry.obs, Guess(mean))

    def plan(self, latent: Tensor, guess: Guess | None, explore: bool) -> tuple[Tensor, Tensor]:
        """MPPI over latents [B, Z] (TD-MPC2, section 3.2): what to do, and the mean of the plans, [B, H, A].

        The spread begins anew each time. Exploring, one of the elites is drawn, and noise added to its first
        action; otherwise the mean is followed.
        """
        c, batch, width = self.config, len(latent), self.spec.inner_action_dim
        mean = latent.new_zeros(batch, c.horizon, width) if guess is None else guess.mean
        std = torch.full_like(mean, c.max_std)
        own = self.proposals(latent)
        shape = (batch, c.candidates - own.shape[1], c.horizon, width)
        for _ in range(c.iterations):
            noise = torch.randn(shape, generator=self.noise, device=self.device)
            drawn = torch.addcmul(mean[:, None], std[:, None], noise).clamp_(-1.0, 1.0)
            plans = torch.cat([own, drawn], 1)
            best, index = self.returns(latent, plans).topk(min(c.elites, c.candidates), dim=1)
            elites = pick(plans, index)
            share = torch.softmax(c.temperature * (best - best[:, :1]), 1)
            weight = share[..., None, None]
            mean = (weight * elites).sum(1)
            std = (weight * (elites - mean[:, None]).square()).sum(1).sqrt_().clamp_(c.min_std, c.max_std)
        if not explore:
            return mean, mean
        actions = pick(elites, torch.multinomial(share, 1, generator=self.noise))[:, 0]
        noise = torch.randn(batch, width, generator=self.noise, device=self.device)
        actions[:, 0] = (actions[:, 0] + std[:, 0] * noise).clamp(-1.0, 1.0)
        return actions, mean

    def proposals(self, latent: Tensor) -> Tensor:
        """Plans [B, N, H, A] that the policy would follow from latents [B, Z]."""
        count = min(self.config.policy_plans, self.config.candidates - 1)
        actions: list[Tensor] = []
        z = latent.repeat_interleave(count, 0)
        for t in range(self.config.horizon):
            if t:
                z = self.acting.world.next(z, actions[-1])
            actions.append(self.acting.policy.draw(z, self.noise))
        return torch.stack(actions, 1).unflatten(0, (len(latent), count))

    def returns(self, latent: Tensor, plans: Tensor) -> Tensor:
        """What plans [B, N, H, A] are worth from latents [B, Z]: [B, N] (TD-MPC2, equation 6)."""
        rollout = self.acting.world.imagine(latent, plans)
        steps = torch.arange(plans.shape[2], device=self.device)
        reward = rollout.reward[:, :, 0] @ self.discount**steps
        going, alive = self.acting.world.going_on(rollout.last), rollout.alive[..., -1]
        alive = alive if going is None else alive * going
        worth = reward + self.discount ** plans.shape[2] * (alive * self.terminal(rollout.last))[..., 0]
        return worth.nan_to_num(nan=-torch.inf)

    def terminal(self, latent: Tensor) -> Tensor:
        """The mean of all values of what the policy would do in latents [..., Z]: [...]."""
        flat = latent.flatten(0, -2)
        action = self.acting.policy.draw(flat, self.noise)
        return self.acting.critic.of(flat, action).mean(0).view(latent.shape[:-1])

    def acting_state(self) -> dict[str, Tensor]:
        """The networks that it acts with."""
        names = [("slow_" if self.config.averaged else "") + name for name in Networks._fields]
        return {k: v for k, v in self.state_dict().items() if k.partition(".")[0] in names}

    # Learning -----------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One for model and values, in which the encoder learns more slowly, and one for the policy."""
        rate = self.config.learning_rate
        encoder = list(self.world.encoder.parameters())
        rest = [p for n, p in self.named_parameters() if n.startswith(("world.", "critic."))]
        world = adam([p for p in rest if not any(p is q for q in encoder)], rate)
        world.add_param_group({"params": encoder, "lr": 0.3 * rate})
        return {"world": world, "policy": adam(self.policy, rate, eps=1e-5)}

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps; returns the means of what is measured."""
        c, totals = self.config, dict[str, Tensor]()
        for _ in range(count):
            index = torch.randint(len(buffer), (c.batch_size,), generator=self.generator, device=self.device)
            batch = buffer.slices(index.cpu().numpy(), c.horizon).to(self.device)
            for name, value in self.descend_on(batch).items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value
        return {name: float(total) / count for name, total in totals.items()}

    def descend_on(self, batch: Trajectory) -> dict[str, Tensor]:
        """One gradient step: model and values together (equation 3), then the policy (equation 4)."""
        c = self.config
        path, seen = self.world.unroll(batch)
        losses = self.world.losses(path, seen, batch)
        losses["value_loss"] = c.value * self.value_loss(path, seen, batch)
        loss = torch.stack(list(losses.values())).sum()
        descend(loss, self.optimizers["world"], c.clip)
        measured = {name: value.detach() for name, value in losses.items()}
        measured |= self.step_policy(path.detach())
        for slow, learned in (
            (self.slow_world, self.world),
            (self.slow_policy, self.policy),
            (self.slow_critic, self.critic),
        ):
            follow(slow, learned, c.target_rate)
        return measured

    def value_loss(self, path: Tensor, seen: Tensor, batch: Trajectory) -> Tensor:
        """Cross-entropy of all values along the predicted latents with the target, a scalar."""
        reward, action = batch.reward.T, batch.action.transpose(0, 1)
        weight = self.world.weights(batch) * reward.isfinite()
        target = self.target(reward.nan_to_num(), batch.terminated.T, seen)
        return self.critic_loss(path[:-1], action, target, weight)

    def critic_loss(self, latent: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Weighted cross-entropy of all values with targets [T, B], summed over T."""
        logits = self.critic(latent.flatten(0, 1), action.flatten(0, 1))
        miss = self.critic.two_hot.loss(logits, target.flatten())  # [E, T B]
        return (miss.mean(0) * weight.flatten()).sum() / weight.shape[1]

    @torch.no_grad()
    def target(self, reward: Tensor, terminated: Tensor, seen: Tensor) -> Tensor:
        """Reward [...] plus the discounted value of what was seen next [..., Z], as the policy would go on.

        The value is the lesser of two target values drawn at random. Nothing comes after a termination, but a
        truncated episode goes on.
        """
        flat = seen.flatten(0, -2)
        action = self.policy.draw(flat, self.generator)
        value = self.slow_critic.of(flat, action, self.two()).amin(0).view(reward.shape)
        return reward + self.discount * (~terminated) * value

    def two(self) -> Tensor:
        """Two members of the values, drawn at random."""
        return torch.randperm(self.config.critics, generator=self.generator, device=self.device)[:2]

    def step_policy(self, path: Tensor) -> dict[str, Tensor]:
        """Improve the policy on latents [T+1, B, Z], later ones less; values are in units of their range."""
        latent = path.flatten(0, 1)
        shape = (len(latent), self.spec.inner_action_dim)
        normal = torch.randn(shape, generator=self.generator, device=self.device)
        value, log_prob = self.worth(latent, normal, self.two())
        value = value.view(path.shape[:2])
        with torch.no_grad():
            low, high = torch.quantile(value[0], torch.tensor([0.05, 0.95], device=self.device))
            self.scale.lerp_((high - low).clamp(min=1.0), SCALE_RATE)
        decay = self.config.rho ** torch.arange(len(path), device=self.device)
        gain = value / self.scale - self.config.entropy * log_prob.view_as(value)
        loss = -(gain.mean(1) * decay).mean()
        descend(loss, self.optimizers["policy"], self.config.clip)
        return {
            "policy_loss": loss.detach(),
            "entropy": -log_prob.detach().mean(),
            "value": value.detach()[0].mean(),
            "value_range": self.scale.clone(),
        }

    def worth(self, latent: Tensor, normal: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Mean value [M] by two members of what the policy draws in latents [M, Z], and its log density."""
        action, log_prob = self.policy.squash(latent, normal)
        return self.critic.of(latent, action, members).mean(0), log_prob
