"""A planner's decisions cloned into a policy, then refined without the model (Nagabandi et al., 2018, MB-MF,
https://arxiv.org/abs/1708.02596, section V): the model makes a start fast, model-free learning makes it good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.base import Observation
from mbrl_planner.agents.mpc import MPC, Memory
from mbrl_planner.agents.networks import adam, descend
from mbrl_planner.agents.sac import SAC, SACConfig
from mbrl_planner.planners.icem import ICEM, ICEMConfig

AT_ONCE = 64  # replayed states that are planned for together


@config
class MBMFConfig(SACConfig):
    """Configuration of MBMF."""

    clone_after: Annotated[
        int, Field(ge=1, description="steps of experience after which the planner is cloned [steps]")
    ] = 3000
    clone_steps: Annotated[int, Field(ge=1, description="gradient steps of the cloning [1]")] = 1000
    clone_rate: Annotated[float, Field(gt=0, description="Adam's step size of the cloning [1]")] = 1e-3
    clone_std: Annotated[
        float,
        Field(ge=0.01, le=5, description="deviation of the cloned policy, before actions are squashed [1]"),
    ] = 0.2
    labels: Annotated[
        int,
        Field(
            ge=1, description="decisions that are cloned at least; the planner makes up for missing ones [1]"
        ),
    ] = 500
    critic_steps: Annotated[
        int,
        Field(ge=0, description="first gradient steps, of the critics alone: the clone must not follow [1]"),
    ] = 2000
    anchor_steps: Annotated[
        int,
        Field(
            ge=0, description="gradient steps after these over which the policy's tie to the clone fades [1]"
        ),
    ] = 10_000
    plan_horizon: Annotated[int, Field(ge=1, description="how far the planner looks ahead [steps]")] = 25
    plan_candidates: Annotated[int, Field(ge=2, description="plans tried in an iteration [1]")] = 64
    exploration_noise: Annotated[
        float, Field(ge=0, description="deviation of the noise on planned actions when exploring [1]")
    ] = 0.1


class Carry(NamedTuple):
    """What MBMF carries from one State to the next."""

    obs: Observation
    memory: Memory | None  # of the planner; None once there is a policy


class MBMF(SAC):
    """Random, then planned, then cloned, then SAC.

    What the planner decides while it acts is kept, without the exploration noise, until it is cloned. Where
    too little was kept, the planner is asked about replayed states, as in DAgger (Ross et al., 2011,
    arXiv:1011.0686): set `labels` higher than what it decides for more of that. In a process that acts
    without a model (`policy_node`), actions are random until there is a clone.
    """

    Config = MBMFConfig
    model = "ensemble"
    cloned: Tensor

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device)
        c = self.config
        planner = ICEM(ICEMConfig(horizon=c.plan_horizon, candidates=c.plan_candidates))
        self.mpc = MPC(planner, exploration_noise=c.exploration_noise, seed=seed)
        self.register_buffer("cloned", torch.tensor(False, device=self.device))
        self._decided: list[tuple[Tensor, Tensor]] = []  # observations [B, D] and planned actions [B, A]
        self._critic_only = False
        self._anchor = 0.0  # weight of the tie to the clone, 1 at first

    # Acting -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there is a policy, or a model to plan with."""
        return bool(self.cloned) or self.mpc.ready

    def seed(self, seed: int) -> None:
        """Begin the random numbers of acting anew."""
        super().seed(seed)
        self.mpc.seed(seed)

    def observe(
        self, obs: Observation, carry: Any, *, first: Tensor, prev_action: Tensor | None, steps: int = 1
    ) -> Carry:
        """Take in a State, for the planner until there is a clone."""
        if self.cloned:
            return Carry(obs, None)
        here = {name: value.to(self.device) for name, value in obs.items()}
        action = None if prev_action is None else prev_action.to(self.device)
        memory = None if carry is None else carry.memory
        return Carry(
            obs,
            self.mpc.observe(here, memory, first=first.to(self.device), prev_action=action, steps=steps),
        )

    @torch.no_grad()
    def choose(
        self, carry: Any, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Any]:
        """A plan [B, H, A] until there is a clone, then the policy's mode, or a draw from it, [B, 1, A]."""
        if self.cloned or carry.memory is None or not self.mpc.ready:
            return super().choose(carry.obs, explore=explore)[0], carry
        actions, memory = self.mpc.choose(carry.memory, pending=pending, explore=explore)
        if explore and pending is None and memory.plan is not None:
            self._decided.append((carry.obs["vector"].cpu().float(), memory.plan.actions[:, 0].cpu()))
        return actions, Carry(carry.obs, memory)

    def acting_state(self) -> dict[str, Tensor]:
        """Policy, normaliser, and whether they are the clone's."""
        return {**super().acting_state(), "cloned": self.cloned}

    # Learning -----------------------------------------------------------------------------------------------

    def owed(self, env_steps: int) -> int:
        """Gradient steps that are still to be made; none before the cloning."""
        return 0 if env_steps < self.config.clone_after else super().owed(env_steps)

    def update(
        self, buffer: ReplayBuffer, model: Model | None = None, *, env_steps: int, limit: int = 1_000_000
    ) -> Metrics:
        """As every agent; until the cloning, plan with this model from now on."""
        if model is not None and not self.cloned:
            self.mpc.swap(model)
        return super().update(buffer, model, env_steps=env_steps, limit=limit)

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Clone, if that is still to be done, and make `count` gradient steps of SAC on real data."""
        metrics: Metrics = {}
        if not self.cloned:
            assert model is not None
            self.begin(buffer)
            self._decided = [self.decisions(buffer, model)]
            metrics = {"clone_loss": self.clone(*self._decided[0])}
        after = max(self.updates - self.config.critic_steps, 0)
        self._anchor = max(1.0 - after / self.config.anchor_steps, 0.0) if self.config.anchor_steps else 0.0
        if not self._anchor:
            self._decided = []
        alone = min(count, max(self.config.critic_steps - self.updates, 0))
        for steps, self._critic_only in ((alone, True), (count - alone, False)):
            if steps:
                metrics |= self.descend_on(self.real(buffer, steps))
        return metrics

    def step_policy(self, feature: Tensor) -> dict[str, Tensor]:
        """As SAC, once the critics know the clone."""
        return {} if self._critic_only else super().step_policy(feature)

    def policy_loss(self, feature: Tensor, normal: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """As SAC, and tied to the clone at first: critics that learned from what is close to the planner's
        actions are wrong about others.
        """
        loss, entropy = super().policy_loss(feature, normal, temperature)
        if self._anchor:
            obs, action = self.some(*self._decided[0])
            strayed = (self.policy.mode(self.normalizer(obs)) - action).square().mean()
            loss = loss + self._anchor * self.critic.scale * strayed
        return loss, entropy

    def some(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """A minibatch of decisions."""
        size = (min(self.config.batch_size, len(obs)),)
        index = torch.randint(len(obs), size, generator=self.generator, device=self.device).to(obs.device)
        return obs[index].to(self.device), action[index].to(self.device)

    def decisions(self, buffer: ReplayBuffer, model: Model) -> tuple[Tensor, Tensor]:
        """What is cloned: observations [M, D] and the actions planned there [M, A], M >= `labels`."""
        missing = self.config.labels - sum(len(obs) for obs, _ in self._decided)
        pairs = [*self._decided, *(self.ask(buffer, model, missing) if missing > 0 else [])]
        obs, action = (torch.cat(parts).to(self.device) for parts in zip(*pairs, strict=True))
        return obs, action

    def ask(self, buffer: ReplayBuffer, model: Model, count: int) -> list[tuple[Tensor, Tensor]]:
        """What the planner would do in `count` replayed states."""
        index = torch.randint(len(buffer), (count,), generator=self.generator, device=self.device).cpu()
        pairs = []
        for some in index.split(AT_ONCE):
            seen = {k: v[:, 0].to(self.device) for k, v in buffer.slices(some.numpy()).obs.items()}
            with torch.no_grad():
                state = model.observe(None, None, seen)
            plan = self.mpc.planner.plan(model, state, noise=self.generator)
            pairs.append((seen["vector"].cpu(), plan.actions[:, 0].cpu()))
        return pairs

    def clone(self, obs: Tensor, action: Tensor) -> float:
        """Regress the policy's mode on the actions (equation 7), and its deviation on `clone_std`.

        Returns:
            The last loss.
        """
        optimizer = adam(self.policy, self.config.clone_rate)
        wanted = torch.tensor(self.config.clone_std, device=self.device).log()
        loss = torch.zeros(())
        for _ in range(self.config.clone_steps):
            seen, planned = self.some(obs, action)
            mean, log_std = self.policy(self.normalizer(seen))
            loss = (torch.tanh(mean) - planned).square().mean() + (log_std - wanted).square().mean()
            descend(loss, optimizer)
        self.cloned.fill_(True)
        return float(loss.detach())

    # Keeping ------------------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """And what the planner decided."""
        sizes = (self.spec.observation_dim, self.spec.inner_action_dim)
        obs, action = (
            torch.cat([torch.zeros(0, size), *(pair[i].cpu() for pair in self._decided)])
            for i, size in enumerate(sizes)
        )
        return {**super().training_state(), "decided_obs": obs, "decided_action": action}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        super().load_training_state(state)
        obs = state["decided_obs"]
        self._decided = [(obs.clone(), state["decided_action"].clone())] if len(obs) else []
