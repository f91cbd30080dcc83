"""Model-based acceleration (Gu et al., 2016, https://arxiv.org/abs/1603.00748, section 5.2): imagined
on-policy rollouts from where the robot has just been are mixed into off-policy learning, and faded out as
real data come.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_planner.agents.mbpo import MBPO, MBPOConfig
from mbrl_planner.agents.sac import SAC, Batch


@config
class MBAConfig(MBPOConfig):
    """Configuration of MBA."""

    replay_ratio: Annotated[float, Field(gt=0, description="gradient steps a step of experience [1]")] = 5.0
    real_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of real data in a minibatch at the beginning [1]")
    ] = 0.5
    recent: Annotated[
        int, Field(ge=1, description="newest steps of experience that rollouts branch off from [steps]")
    ] = 1000
    fade: Annotated[
        tuple[int, int],
        Field(description="steps of experience between which imagined data fade out [steps]"),
    ] = (5000, 10000)


class MBA(MBPO):
    """SAC with imagined data in its early phase.

    What differs from MBPO is where rollouts begin (at the newest experience, so that they are on-policy), and
    that they fade out.
    """

    Config = MBAConfig

    def mixed(self, buffer: ReplayBuffer, model: Model, count: int) -> Iterable[Batch]:
        """Minibatches with less and less imagined data; in the end plain SAC."""
        share = fading(len(buffer), self.config.fade)
        imagined = round(share * (1.0 - self.config.real_ratio) * self.config.batch_size)
        if not imagined:
            self.imagined.clear()
            yield from SAC.real(self, buffer, count)
            return
        for i, batch in enumerate(self.real(buffer, count, self.config.batch_size - imagined)):
            self.imagine_if_due(buffer, model, self.updates + i)
            yield Batch(*map(torch.cat, zip(batch, self.pool.drawn(imagined, self.generator), strict=True)))

    def starts(self, buffer: ReplayBuffer) -> torch.Tensor:
        """Positions of the newest steps, from which rollouts branch off."""
        newest = min(len(buffer), self.config.recent)
        index = torch.randint(newest, (self.config.branches,), generator=self.generator, device=self.device)
        return len(buffer) - 1 - index


def fading(env_steps: int, fade: tuple[int, int]) -> float:
    """Weight of the imagined data: 1 up to the first number of steps, 0 from the second one on."""
    begin, end = fade
    return 1.0 - min(max((env_steps - begin) / max(end - begin, 1), 0.0), 1.0)
