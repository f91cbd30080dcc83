"""Model-based policy optimisation (Janner et al., 2019, https://arxiv.org/abs/1906.08253): SAC on a little
real and a lot of imagined data, from short rollouts that branch off where the robot has been.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.sac import SAC, Batch, SACConfig


@config
class MBPOConfig(SACConfig):
    """Configuration of MBPO."""

    replay_ratio: Annotated[float, Field(gt=0, description="gradient steps a step of experience [1]")] = 20.0
    real_ratio: Annotated[float, Field(ge=0, le=1, description="share of real data in a minibatch [1]")] = (
        0.05
    )
    branches: Annotated[int, Field(ge=1, description="rollouts begun at once [1]")] = 1000
    imagine_every: Annotated[
        int, Field(ge=1, description="gradient steps between two rounds of rollouts [1]")
    ] = 250
    keep_rounds: Annotated[int, Field(ge=1, description="newest rounds of rollouts that are kept [1]")] = 20
    horizon: Annotated[
        tuple[int, int],
        Field(description="length of a rollout at the beginning and the end of growth [steps]"),
    ] = (5, 5)
    growth: Annotated[
        tuple[int, int], Field(description="steps of experience between which the length grows [steps]")
    ] = (0, 1)
    penalty: Annotated[
        float,
        Field(
            ge=0, description="reward taken off for disagreement, as in MOPO; for learning offline [reward]"
        ),
    ] = 0.0


class MBPO(SAC):
    """SAC that learns mostly from what an ensemble imagines; see the paper's algorithm 2.

    The model is whatever `update` is given, with rewards and termination known or learned. Each step of a
    rollout draws another member and an outcome. Imagined data are kept for some rounds, so that they are in
    proportion to the length of rollouts.
    """

    Config = MBPOConfig
    model = "ensemble"

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device)
        self.imagined: list[Batch] = []  # a round of rollouts each, the newest last
        self._imagined_at = 0  # updates when the newest round was imagined

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps on real and imagined data, with new rollouts where they are due."""
        assert model is not None
        self.begin(buffer)
        return self.descend_on(self.mixed(buffer, model, count))

    def mixed(self, buffer: ReplayBuffer, model: Model, count: int) -> Iterable[Batch]:
        """Minibatches of which `real_ratio` is real."""
        c = self.config
        real = round(c.real_ratio * c.batch_size)
        for i, batch in enumerate(self.real(buffer, count, max(real, 1))):
            self.imagine_if_due(buffer, model, self.updates + i)
            dream = self.pool.drawn(c.batch_size - real, self.generator)
            yield Batch(*(torch.cat([a[:real], b]) for a, b in zip(batch, dream, strict=True)))

    def imagine_if_due(self, buffer: ReplayBuffer, model: Model, updates: int) -> None:
        """A round of rollouts from replayed states, if the newest is old enough."""
        if self.imagined and updates < self._imagined_at + self.config.imagine_every:
            return
        self._imagined_at = updates
        length = rollout_length(len(buffer), self.config.horizon, self.config.growth)
        self.imagined.append(self.branch(buffer, model, length))
        self.imagined = self.imagined[-self.config.keep_rounds :]
        self.pool = Batch(*(torch.cat(parts) for parts in zip(*self.imagined, strict=True)))

    @torch.no_grad()
    def branch(self, buffer: ReplayBuffer, model: Model, length: int) -> Batch:
        """Rollouts of the policy that begin where the robot has been (algorithm 2, lines 7 to 8).

        A rollout ends where the model says that the episode does.
        """
        slices = buffer.slices(self.starts(buffer).cpu().numpy())
        start = {k: v[:, 0].to(self.device) for k, v in slices.obs.items()}
        state = model.observe(None, None, start)
        obs: Tensor = start["vector"]
        going = torch.ones(len(obs), dtype=torch.bool, device=self.device)
        parts = []
        for _ in range(length):
            feature = self.normalizer(obs)
            action = self.policy.draw(feature, self.generator)
            ahead = model.step(state, action, self.generator)
            assert ahead.obs is not None and ahead.reward is not None
            going_on = torch.ones_like(going)
            if ahead.alive is not None:
                drawn = torch.rand(going.shape, generator=self.generator, device=self.device)
                going_on = drawn < ahead.alive
            sound = going & ahead.obs.isfinite().all(-1) & ahead.reward.isfinite()
            reward = ahead.reward
            if self.config.penalty and ahead.disagreement is not None:
                reward = reward - self.config.penalty * ahead.disagreement
            step = Batch(feature, action, reward, self.normalizer(ahead.obs), (~going_on).float())
            parts.append(Batch(*(values[sound] for values in step)))
            state, obs, going = ahead.state, ahead.obs, sound & going_on
        return Batch(*(torch.cat(steps) for steps in zip(*parts, strict=True)))

    def starts(self, buffer: ReplayBuffer) -> Tensor:
        """Positions of the steps from whose first States rollouts branch off."""
        size = (self.config.branches,)
        return torch.randint(len(buffer), size, generator=self.generator, device=self.device)


def rollout_length(env_steps: int, horizon: tuple[int, int], growth: tuple[int, int]) -> int:
    """How long rollouts are after so many steps of experience: x -> y, linearly from a to b (appendix C)."""
    (x, y), (a, b) = horizon, growth
    share = min(max((env_steps - a) / max(b - a, 1), 0.0), 1.0)
    return int(x + share * (y - x))
