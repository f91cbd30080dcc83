"""MuZero (Schrittwieser et al., 2020, https://arxiv.org/abs/1911.08265) with the search of Gumbel MuZero
(Danihelka et al., 2022, https://openreview.net/forum?id=bERaNdoegnO): a tree search through a model that was
learned to predict rewards, values and the search's own policy. For discrete actions.

Every target is made anew when it is learned from (Reanalyse, appendix H), so that a replay buffer of plain
experience is all that it needs, whoever acted. Beside what MuZero learns from, predicted latents are held
consistent with what was seen (EfficientZero, Ye et al., 2021, https://arxiv.org/abs/2111.00210): where each
step pays the same, rewards and values say little about what happens.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.heads import cross_entropy, symlog
from mbrl_dynamics.models.muzero import MuZeroNetworks, half_gradient
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.spec import DISCRETE, Spec
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.base import Observation, PolicyAgent, PolicyConfig
from mbrl_planner.agents.networks import adam, descend, follow
from mbrl_planner.planners.gumbel import Found, GumbelSearch, Leaf, Outcome


@config
class MuZeroConfig(PolicyConfig):
    """Configuration of MuZero."""

    replay_ratio: Annotated[
        float, Field(gt=0, description="gradient steps a step of experience, the first ones included [1]")
    ] = 0.5
    latent: Annotated[int, Field(ge=2, description="length of the latent [1]")] = 48
    hidden: Annotated[
        tuple[int, ...], Field(min_length=1, description="units of each network's hidden layers [1]")
    ] = (96,)
    bins: Annotated[int, Field(ge=2, description="bins of rewards and values [1]")] = 101
    largest: Annotated[
        float, Field(gt=0, description="largest size of a value that can be told [reward]")
    ] = 1000.0

    simulations: Annotated[int, Field(ge=2, description="simulations a decision [1]")] = 16
    considered: Annotated[int, Field(ge=1, description="most actions tried at the root [1]")] = 8
    value_scale: Annotated[
        float, Field(gt=0, description="weight of values in the improved policy, c_scale [1]")
    ] = 0.1

    exploration: Annotated[
        float, Field(ge=0, le=1, description="share of random actions when exploring [1]")
    ] = 0.1
    uniform: Annotated[
        float, Field(ge=0, lt=1, description="share of the uniform policy in the policy's target [1]")
    ] = 0.05

    batch_size: Annotated[int, Field(ge=1, description="slices a gradient step [1]")] = 64
    unroll: Annotated[
        int, Field(ge=1, description="steps that the model is unrolled in training [steps]")
    ] = 5
    look_ahead: Annotated[
        int, Field(ge=1, description="rewards that a value's target adds up, n [steps]")
    ] = 10
    discount: Annotated[float, Field(gt=0, le=1, description="of rewards a step later [1]")] = 0.99
    value: Annotated[float, Field(gt=0, description="weight of the values' cross-entropy [1]")] = 0.25
    consistency: Annotated[
        float, Field(ge=0, description="weight of the latents' error; MuZero has none: 0 [1]")
    ] = 10.0
    learning_rate: Annotated[float, Field(gt=0, description="Adam's step size")] = 1e-3
    clip: Annotated[float, Field(gt=0, description="largest norm of a gradient [1]")] = 10.0
    target_rate: Annotated[
        float, Field(gt=0, le=1, description="how fast the networks of targets and acting follow [1]")
    ] = 0.1


class Future(NamedTuple):
    """What came after B States. Behind the end of an episode nothing is valid, and its last State stays.

    Attributes:
        obs: [B, T+1, D] as the networks see them.
        action: [B, T, A] one-hot, executed.
        reward: [B, T]; NaN where unknown.
        terminated: [B, T] bool, the task ended with this step.
        valid: [B, T] bool, this step happened.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    valid: Tensor


class Targets(NamedTuple):
    """What is learned of T steps from B States, time first; what is not known has no weight.

    Attributes:
        action: [T, B, A] to unroll the model with.
        reward, reward_weight: [T, B].
        policy, policy_weight: [T+1, B, A] and [T+1, B].
        value, value_weight: [T+1, B].
        latent, latent_weight: [T, B, Z] of what was seen after each step, and [T, B].
    """

    action: Tensor
    reward: Tensor
    reward_weight: Tensor
    policy: Tensor
    policy_weight: Tensor
    value: Tensor
    value_weight: Tensor
    latent: Tensor
    latent_weight: Tensor


class MuZero(PolicyAgent):
    """Searches a learned model's tree; learns model, values and policy from what its search would do now.

    It acts, and makes targets, with moving averages of its networks (see `tdmpc`).
    """

    Config = MuZeroConfig
    kinds = (DISCRETE,)
    one_hot: Tensor
    measured: Tensor

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device)
        c, actions = self.config, spec.inner_action_dim
        self.normalizer = Normalizer(spec.observation_dim)
        self.register_buffer("measured", torch.tensor(0))  # how many data the normalizer knows
        self.networks = MuZeroNetworks(spec.observation_dim, actions, c.latent, c.hidden, c.bins, c.largest)
        self.slow = copy.deepcopy(self.networks).requires_grad_(False)
        self.search = GumbelSearch(c.simulations, c.considered, c.value_scale)
        self.register_buffer("one_hot", torch.eye(actions), persistent=False)
        self.to(self.device)

    # Acting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(
        self, carry: Observation, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Observation]:
        """The action that the search finds best, one-hot [B, 1, A]; exploring, with Gumbel noise."""
        latent = self.slow.represent(self.seen(carry["vector"].to(self.device).float()))
        if pending is not None:
            for action in pending.to(self.device).unbind(1):
                latent = self.slow.next(latent, action)[0]
        action = self.think(latent, self.noise if explore else None).action
        if explore:
            wild = torch.rand(len(action), generator=self.noise, device=self.device) < self.config.exploration
            other = torch.randint(len(self.one_hot), wild.shape, generator=self.noise, device=self.device)
            action = torch.where(wild, other, action)
        return self.one_hot[action].unsqueeze(1), carry

    def seen(self, obs: Tensor) -> Tensor:
        """Observations [..., D] as the networks see them: standard scores, squashed.

        What is learned leads far from the first data, and an element that has grown by a factor would drown
        all others in the first layer's LayerNorm. So the scores are measured anew whenever the data have
        doubled, and what is far until then is squashed.
        """
        return symlog(self.normalizer(obs))

    def think(self, latent: Tensor, noise: torch.Generator | None) -> Found:
        """Search from latents [B, Z]."""
        return self.search.run(self.leaf(latent), self.expand, noise)

    def leaf(self, latent: Tensor) -> Leaf:
        """What the networks think of latents [B, Z]."""
        logits, value = self.slow.predict(latent)
        return Leaf(latent, logits, self.slow.number.decode(value))

    def expand(self, latent: Tensor, action: Tensor) -> Outcome:
        """What comes of actions [B] in latents [B, Z]; that it can end is a matter of rewards and values."""
        after, reward = self.slow.next(latent, self.one_hot[action])
        gain = self.slow.number.decode(reward)
        return Outcome(self.leaf(after), gain, torch.full_like(gain, self.config.discount))

    def acting_state(self) -> dict[str, Tensor]:
        """The networks that it acts with."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(("slow.", "normalizer."))}

    # Learning -----------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One."""
        return {"networks": adam(self.networks, self.config.learning_rate)}

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps; returns the means of what is measured."""
        if len(buffer) >= 2 * int(self.measured):
            self.normalizer.measure(buffer.all().obs["vector"][:, 0].to(self.device))
            self.measured.fill_(len(buffer))
        c, totals = self.config, dict[str, Tensor]()
        for _ in range(count):
            drawn = torch.randint(len(buffer), (c.batch_size,), generator=self.generator, device=self.device)
            future = self.future(buffer, drawn.cpu().numpy(), c.unroll + c.look_ahead)
            losses, measured = self.losses(future.obs[:, 0], self.targets(future))
            descend(torch.stack(list(losses.values())).sum(), self.optimizers["networks"], c.clip)
            follow(self.slow, self.networks, c.target_rate)
            for name, value in {**losses, **measured}.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach()
        return {name: float(total) / count for name, total in totals.items()}

    def future(self, buffer: ReplayBuffer, steps: NDArray[np.int64], length: int) -> Future:
        """The given steps of the buffer and those that came after, `length` in all."""
        index, one = [steps], np.ones_like(steps)
        for _ in range(length - 1):
            index.append(buffer.later(index[-1], one))
        rows = np.stack(index, 1)  # [B, T]; the last step of an episode is repeated
        valid = np.concatenate([one[:, None] > 0, rows[:, 1:] != rows[:, :-1]], 1)
        data = buffer.slices(rows.ravel()).to(self.device)
        obs = self.seen(data.obs["vector"]).unflatten(0, rows.shape)
        action, reward, ended = (
            x.squeeze(1).unflatten(0, rows.shape) for x in (data.action, data.reward, data.terminated)
        )
        seen = torch.cat([obs[:, :1, 0], obs[:, :, 1]], 1)
        return Future(seen, action, reward, ended, torch.from_numpy(valid).to(self.device))

    @torch.no_grad()
    def targets(self, future: Future) -> Targets:
        """What to learn from each State and the `unroll` after it.

        After a termination comes an absorbing state: no reward and no value, whatever is done. After a
        truncation nothing is known.
        """
        steps = self.config.unroll
        valid, ended = (x.T[:steps] for x in (future.valid, future.terminated))
        absorbed = (valid & ended).cumsum(0) > 0  # [T, B] in position t + 1
        absorbing = torch.cat([torch.zeros_like(valid[:1]), absorbed])
        real = torch.cat([torch.ones_like(valid[:1]), valid]) & ~absorbing
        latent = self.slow.represent(future.obs[:, : steps + 1].transpose(0, 1))
        found = self.think(latent.flatten(0, 1), self.generator)
        value = self.returns(future)
        value_known = real & value.isfinite()
        reward = future.reward.T[:steps]
        known = valid & reward.isfinite()
        other = torch.randint(len(self.one_hot), valid.shape, generator=self.generator, device=self.device)
        return Targets(
            action=torch.where(valid[..., None], future.action.transpose(0, 1)[:steps], self.one_hot[other]),
            reward=torch.where(known, reward, 0.0),
            reward_weight=(known | absorbing[:-1]).float(),
            policy=self.softened(found.policy).unflatten(0, real.shape),
            policy_weight=real.float(),
            value=torch.where(value_known, value, 0.0),
            value_weight=(value_known | absorbing).float(),
            latent=latent[1:],
            latent_weight=valid.float(),
        )

    def softened(self, policy: Tensor) -> Tensor:
        """A policy [..., A] with a share of the uniform one.

        A prior that is so sure that no search can overturn it would stay as it is, right or wrong.
        """
        return torch.lerp(policy, torch.full_like(policy, 1.0 / policy.shape[-1]), self.config.uniform)

    def returns(self, future: Future) -> Tensor:
        """Sum of n discounted rewards and the value then, at each position [unroll + 1, B]; NaN = unknown.

        Nothing comes after a termination; at a truncation, the value of the last State ends the sum.
        """
        c = self.config
        later = self.slow.represent(future.obs[:, c.look_ahead :])
        total = self.slow.number.decode(self.slow.predict(later)[1]).T  # [unroll + 1, B]
        for i in reversed(range(c.look_ahead)):
            now = slice(i, i + c.unroll + 1)
            reward, ended, valid = (x.T[now] for x in (future.reward, future.terminated, future.valid))
            total = torch.where(valid, reward + c.discount * ~ended * total, total)
        return total

    def losses(self, obs: Tensor, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropies of rewards, values and policies along an unroll from observations [B, D], weighted,
        and the squared error of its latents.

        The first prediction counts as much as all later ones together, and half of the gradient goes on
        into each application of the dynamics (appendix G).
        """
        path, rewards = [self.networks.represent(obs)], []
        for action in targets.action:
            latent, reward = self.networks.next(half_gradient(path[-1]), action)
            path.append(latent)
            rewards.append(reward)
        latents, c, number = torch.stack(path), self.config, self.networks.number
        logits, values = self.networks.predict(latents)
        later = torch.full((len(path), 1), 1.0 / len(rewards), device=self.device)
        now = later.clone()
        now[0] = 1.0
        value = number.loss(values, targets.value) * targets.value_weight
        reward = number.loss(torch.stack(rewards), targets.reward) * targets.reward_weight
        error = (latents[1:] - targets.latent).square().mean(-1) * targets.latent_weight
        losses = {
            "reward_loss": later[1:] * reward,
            "value_loss": c.value * now * value,
            "policy_loss": now * cross_entropy(logits, targets.policy) * targets.policy_weight,
            "consistency_loss": c.consistency * later[1:] * error,
        }
        entropy = torch.special.entr(targets.policy[0]).sum(-1)
        measured = {"value": targets.value[0].mean(), "policy_entropy": entropy.mean()}
        return {name: loss.sum(0).mean() for name, loss in losses.items()}, measured
