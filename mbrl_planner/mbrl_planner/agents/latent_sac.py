"""Actor-critic on a learned representation: SAC on the features of a recurrent latent model, with or without
imagined data. The model is Dreamer's (Hafner et al., 2023, https://arxiv.org/abs/2301.04104); learning a
critic on such features from real data alone is SLAC's way (Lee et al., 2020, https://arxiv.org/abs/1907.00953).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.rssm import RSSM, RSSMConfig
from mbrl_dynamics.types import Metrics, Trajectory
from mbrl_planner.agents.base import Observation
from mbrl_planner.agents.networks import adam, descend
from mbrl_planner.agents.sac import SAC, Batch, SACConfig


@config
class LatentSACConfig(SACConfig):
    """Configuration of LatentSAC."""

    memory: Annotated[int, Field(ge=1, description="length of the model's recurrent memory [1]")] = 128
    world_hidden: Annotated[int, Field(ge=1, description="units of the model's hidden layers [1]")] = 128
    latents: Annotated[
        tuple[int, int], Field(description="categorical variables of the latent, and classes of each [1]")
    ] = (8, 8)
    world_rate: Annotated[float, Field(gt=0, description="Adam's step size of the model [1]")] = 1e-3
    slices: Annotated[int, Field(ge=1, description="slices of experience a gradient step [1]")] = 16
    length: Annotated[int, Field(ge=2, description="length of a slice [steps]")] = 16
    imagined: Annotated[
        float, Field(ge=0, le=1, description="share of imagined data in a minibatch; 0 = none [1]")
    ] = 0.5
    horizon: Annotated[int, Field(ge=1, description="length of an imagined rollout [steps]")] = 3


class LatentSAC(SAC):
    """SAC whose features are the memory and the latent of an RSSM, which learns beside it.

    The features carry what a single observation does not show (velocities, what was seen before; images), so
    that the policy has a memory. The critics' and the policy's gradients do not reach the model.
    """

    Config = LatentSACConfig

    def perceive(self, seed: int) -> int:
        """The model; its features."""
        c = self.config
        self.world = RSSM(
            self.spec,
            RSSMConfig(
                deter=c.memory, hidden=c.world_hidden, layers=1, groups=c.latents[0], classes=c.latents[1]
            ),
            seed=seed,
        )
        return self.world.features

    # Acting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(
        self, obs: Observation, carry: Any, *, first: Tensor, prev_action: Tensor | None, steps: int = 1
    ) -> Any:
        """The model's filter; where States were lost, it begins anew."""
        seen = {name: value.to(self.device) for name, value in obs.items()}
        if carry is None or prev_action is None or steps > 1:
            return self.world.observe(None, None, seen)
        return self.world.observe(carry, prev_action.to(self.device), seen, first.to(self.device))

    @torch.no_grad()
    def choose(
        self, carry: Any, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Any]:
        """The policy's mode, or a draw from it, [B, 1, A]."""
        feature = self.world.feature(carry)
        action = self.policy.draw(feature, self.noise) if explore else self.policy.mode(feature)
        return action.unsqueeze(1), carry

    def acting_state(self) -> dict[str, Tensor]:
        """Policy and model."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(("policy.", "world."))}

    # Learning -----------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """SAC's, and the model's."""
        return super().make_optimizers() | {"world": adam(self.world, self.config.world_rate)}

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps of the model, the critics and the policy."""
        if not self.updates:
            self.world.begin(buffer)
            self.measure_values(buffer.all())
        totals: dict[str, float] = {}
        for i in range(count):
            losses = self.step(buffer, policy_too=(self.updates + i) % self.config.actor_every == 0)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value) / count
        return totals

    def step(self, buffer: ReplayBuffer, *, policy_too: bool) -> dict[str, Tensor]:
        """One gradient step of everything."""
        c = self.config
        data = self.slices(buffer, c.slices, c.length)
        losses, states = self.world.losses(data, self.generator)
        loss = torch.stack(list(losses.values())).sum()
        descend(loss, self.optimizers["world"], clip=100.0)
        states = pytree.tree_map(torch.detach, states)
        imagined = round(c.imagined * c.batch_size)
        batch = self.replayed(data, states).drawn(c.batch_size - imagined, self.generator)
        if imagined:
            dream = self.dream(states, data).drawn(imagined, self.generator)
            batch = Batch(*map(torch.cat, zip(batch, dream, strict=True)))
        metrics = {"model_loss": loss.detach(), **self.step_critic(batch)}
        return metrics | (self.step_policy(batch.feature) if policy_too else {})

    def replayed(self, data: Trajectory, states: Any) -> Batch:
        """The slices' transitions between posterior states [T+1, B, ...], without padding."""
        feature, used = self.world.feature(states), data.valid.T & data.reward.T.isfinite()
        return Batch(
            feature[:-1][used],
            data.action.transpose(0, 1)[used],
            data.reward.T[used],
            feature[1:][used],
            data.terminated.T[used].float(),
        )

    @torch.no_grad()
    def dream(self, states: Any, data: Trajectory) -> Batch:
        """Rollouts of the policy in the model from all posterior states at which an episode went on."""
        going = torch.cat([data.valid.T, ~data.terminated.T[-1:]])
        state = pytree.tree_map(lambda x: x[going], states)
        parts = []
        for _ in range(self.config.horizon):
            feature = self.world.feature(state)
            action = self.policy.draw(feature, self.generator)
            ahead = self.world.step(state, action, self.generator)
            assert ahead.reward is not None and ahead.alive is not None
            drawn = torch.rand(ahead.alive.shape, generator=self.generator, device=self.device)
            goes_on = drawn < ahead.alive
            after = self.world.feature(ahead.state)
            parts.append(Batch(feature, action, ahead.reward, after, (~goes_on).float()))
            if not goes_on.any():
                break
            state = pytree.tree_map(lambda x, on=goes_on: x[on], ahead.state)
        return Batch(*(torch.cat(steps) for steps in zip(*parts, strict=True)))
