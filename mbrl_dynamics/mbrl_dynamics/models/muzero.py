"""MuZero's networks (Schrittwieser et al., 2020, https://arxiv.org/abs/1911.08265): representation, dynamics
and prediction. They predict what a search asks for (rewards, values, a policy) and never an observation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mbrl_dynamics.models.heads import NormedMLP, TwoHot, two_hot

EPSILON = 1e-3  # keeps the inverse of h Lipschitz (Pohlen et al., 2018, section 3.2)


def squash(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x: a root far from zero (appendix F)."""
    return torch.sign(x) * (torch.sqrt(x.abs() + 1.0) - 1.0) + EPSILON * x


def unsquash(y: Tensor) -> Tensor:
    """The inverse of `squash`."""
    root = (torch.sqrt(1.0 + 4.0 * EPSILON * (y.abs() + 1.0 + EPSILON)) - 1.0) / (2.0 * EPSILON)
    return torch.sign(y) * (root.square() - 1.0)


class Categorical(TwoHot):
    """A number as a distribution over bins in the space of `squash` (appendix F)."""

    def encode(self, x: Tensor) -> Tensor:
        """The target [..., bins] of a number [...]."""
        return two_hot(squash(x), self.low, self.high, self.bins)

    def decode(self, logits: Tensor) -> Tensor:
        """The number [...] of logits [..., bins]."""
        centres = torch.linspace(self.low, self.high, self.bins, device=logits.device)
        return unsquash(torch.softmax(logits, -1) @ centres)


def min_max(latent: Tensor) -> Tensor:
    """Each latent [..., Z] scaled to the range from 0 to 1, as actions have it (appendix G)."""
    low, high = latent.amin(-1, keepdim=True), latent.amax(-1, keepdim=True)
    return (latent - low) / (high - low).clamp(min=1e-5)


def half_gradient(x: Tensor) -> Tensor:
    """The same, through which half of the gradient flows."""
    return 0.5 * x + 0.5 * x.detach()


class MuZeroNetworks(nn.Module):
    """Representation h, dynamics g and prediction f.

    Args:
        observations: length of an observation, D.
        actions: how many there are, A.
        latent: length of the latent, Z.
        hidden: units of each network's hidden layers.
        bins: of rewards and values.
        largest: value that the last bin stands for [reward].
    """

    def __init__(
        self, observations: int, actions: int, latent: int, hidden: Sequence[int], bins: int, largest: float
    ) -> None:
        super().__init__()
        self.actions, self.latent = actions, latent
        reach = float(squash(torch.tensor(largest)))
        self.number = Categorical(-reach, reach, bins)
        self.representation = NormedMLP(observations, hidden, latent)
        self.dynamics = NormedMLP(latent + actions, hidden, latent + bins)
        self.prediction = NormedMLP(latent, hidden, actions + bins, zero=True)
        last = self.dynamics.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight[latent:])  # the rewards start at zero

    def represent(self, obs: Tensor) -> Tensor:
        """Latent [..., Z] of observations [..., D] as standard scores."""
        return min_max(self.representation(obs))

    def next(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [..., Z] after a one-hot action [..., A], and the logits [..., bins] of the reward."""
        out = self.dynamics(torch.cat([latent, action], -1))
        return min_max(out[..., : self.latent]), out[..., self.latent :]

    def predict(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the policy [..., A] and of the value [..., bins]."""
        out = self.prediction(latent)
        return out[..., : self.actions], out[..., self.actions :]
