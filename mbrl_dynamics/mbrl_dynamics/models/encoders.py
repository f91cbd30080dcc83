"""Three encoders of latent state-space models: what is concluded of a latent from what was seen.

Each corrects what was expected of the latent by evidence. They differ in what the evidence is, and the first
does not look at what was expected. Sequences are [T+1, B, ...]; they may be padded in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mbrl_dynamics.models.gaussian import Conditional, Gaussian


class Single(nn.Module):
    """q(z_t | o_t): the newest observation alone.

    Args:
        seen, actions, size: sizes of embedded observations (E), actions and the latent.
        hidden: units of the hidden layers.
        memory: units that look at the future, if there are any.
        spread: whether what is concluded is uncertain.
    """

    def __init__(
        self, seen: int, actions: int, size: int, hidden: Sequence[int], *, memory: int, spread: bool
    ) -> None:
        super().__init__()
        self.net = Conditional(seen, hidden, size, spread=spread)

    def evidence(self, seen: Tensor, action: Tensor) -> Tensor:
        """The evidence [T+1, B, F] at each time.

        Args:
            seen: [T+1, B, E] embedded observations.
            action: [T+1, B, A] executed to get there.
        """
        return seen

    def forward(self, expected: Gaussian, evidence: Tensor) -> Gaussian:
        """The latent [..., Z] as concluded from evidence [..., F] and what was expected before it."""
        out: Gaussian = self.net(evidence)
        return out

    def readers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weight [O, I] and bias [O] of each layer that reads embedded observations, as its first inputs."""
        network: Any = self.net.network
        yield network.layers[0].weight, network.layers[0].bias
        yield network.straight.weight, network.layers[-1].bias


class Filter(Single):
    """q(z_t | z_t-1, a_t-1, o_t), where z_t-1 and a_t-1 tell what was expected."""

    def __init__(
        self, seen: int, actions: int, size: int, hidden: Sequence[int], *, memory: int, spread: bool
    ) -> None:
        super().__init__(seen + 2 * size, actions, size, hidden, memory=memory, spread=spread)

    def forward(self, expected: Gaussian, evidence: Tensor) -> Gaussian:
        """The latent [..., Z], as a correction to what was expected."""
        change = self.net(evidence, *expected)
        return Gaussian(expected.mean + change.mean, change.std)


class Smoother(Filter):
    """q(z_t | z_t-1, a_t-1, o_t .. o_T, a_t .. a_T-1): a GRU brings what comes later (the DKS of Krishnan et
    al., 2017, https://arxiv.org/abs/1609.09869: the past tells nothing more than z_t-1). For training only.
    """

    def __init__(
        self, seen: int, actions: int, size: int, hidden: Sequence[int], *, memory: int, spread: bool
    ) -> None:
        super().__init__(seen + memory, actions, size, hidden, memory=memory, spread=spread)
        self.future = nn.GRU(seen + actions, memory)

    def evidence(self, seen: Tensor, action: Tensor) -> Tensor:
        """The newest observation and all that comes after it."""
        backwards, _ = self.future(torch.cat([seen, action], -1).flip(0))  # meets the padding last
        return torch.cat([seen, backwards.flip(0)], -1)

    def readers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weight [O, I] and bias [O] of each layer that reads embedded observations, as its first inputs."""
        yield from super().readers()
        future: Any = self.future
        yield future.weight_ih_l0, future.bias_ih_l0


ENCODERS = {"single": Single, "filter": Filter, "smoother": Smoother}
