"""The inverse model: which action led from one observation to a later one, p(a given s, s').

One step apart it is that of Agrawal et al. (2016, https://arxiv.org/abs/1606.07419) and of ICM (Pathak et
al., 2017, https://arxiv.org/abs/1705.05363, equations 2 and 3); several steps apart that of Efroni et al.
(2022, https://arxiv.org/abs/2110.08847) and of AC-State (Lamb et al., 2022,
https://arxiv.org/abs/2207.08229): the first action, given the observation n steps later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Belief, Budget, Noise
from mbrl_dynamics.models.between import Between, BetweenConfig, mlp
from mbrl_dynamics.models.image import ImageEncoder
from mbrl_dynamics.models.mixture import Mixture
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, Trajectory


@config
class InverseConfig(BetweenConfig):
    """Configuration of Inverse."""

    features: Annotated[int, Field(ge=1, description="numbers that an observation is represented by [1]")] = (
        32
    )
    encoder: Annotated[tuple[int, ...], Field(description="units of each hidden layer before these [1]")] = (
        128,
    )
    bottleneck: Annotated[
        float,
        Field(
            ge=0,
            description="what a nat of the features costs, so that only the needed are kept; 0 = nothing",
        ),
    ] = 0.0
    image_depth: Annotated[
        int, Field(ge=1, description="channels after the first halving of an image, if there are any [1]")
    ] = 16


@dataclass(frozen=True)
class Forces:
    """Continuous actions [..., A], as a mixture of Gaussians.

    They are not squashed by a function: what was executed often lies on a limit, which a tanh never reaches.
    Mean and draws are put on the limits where they lie beyond.
    """

    mixture: Mixture

    def expected(self) -> Tensor:
        """The expected action."""
        return self.mixture.expected().clamp(-1.0, 1.0)

    def draw(self, noise: Noise) -> Tensor:
        """A draw."""
        return self.mixture.draw(noise).clamp(-1.0, 1.0)

    def log_prob(self, target: Tensor) -> Tensor:
        """Log density [...] before the limits."""
        return self.mixture.log_prob(target)


@dataclass(frozen=True)
class Choices:
    """One-hot actions [..., A], by their log probabilities."""

    log_probs: Tensor

    def expected(self) -> Tensor:
        """The probabilities."""
        return self.log_probs.exp()

    def draw(self, noise: Noise) -> Tensor:
        """A draw."""
        bound = self.log_probs.exp().cumsum(-1)[..., :-1]
        drawn = torch.rand(bound.shape[:-1], generator=noise, device=bound.device)
        which = (bound <= drawn.unsqueeze(-1)).sum(-1)
        return F.one_hot(which, self.log_probs.shape[-1]).to(bound)

    def log_prob(self, target: Tensor) -> Tensor:
        """Log probability [...]."""
        return (self.log_probs * target).sum(-1)


class Inverse(Between):
    """A network that tells the first action from the features of two observations.

    The features are learned by nothing else. What the actions have no part in is of no use for them, however
    large it is: moving leaves, another robot, noise. But it is not driven out either, where there is room. So
    for a representation, set `bottleneck` (0.01, for example): features are then read through noise of
    size one, and their size costs, which is the variational bottleneck of Alemi et al. (2017,
    https://arxiv.org/abs/1612.00410, equation 17) with a fixed noise; directions in which they end up smaller
    than the noise are cleared. It costs some accuracy of the actions.

    Observations one step apart show what an action changes at once, several steps (`steps`) also what it
    changes later, as a force changes a position through a velocity. Even so, states may be taken for
    one that should be told apart (Levine et al., 2024, https://arxiv.org/abs/2403.11940).

    Args:
        spec: the interface between the world and whoever acts.
        config: see InverseConfig.
        seed: of weights and batches.

    Raises:
        UserError: a camera's images are not square with a power of two.
    """

    Config = InverseConfig
    kept: Tensor
    middle: Tensor

    def __init__(self, spec: Spec, config: InverseConfig | None = None, *, seed: int = 0) -> None:
        c, actions = config or InverseConfig(), spec.inner_action_dim
        said = actions if spec.discrete else c.components * (2 * actions + 1)
        super().__init__(spec, c, told=actions, said=said, features=c.features, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            eyes = {camera.name: ImageEncoder(camera, c.image_depth) for camera in spec.cameras}
            seen = spec.observation_dim + sum(eye.size for eye in eyes.values())
            self.eyes = nn.ModuleDict(eyes)
            self.encoder = mlp(seen, c.encoder, c.features)
        self.register_buffer("kept", torch.eye(c.features))  # projection on what came through the bottleneck
        self.register_buffer("middle", torch.zeros(c.features))
        self._noise = torch.Generator().manual_seed(seed)

    def represent(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Features [..., Z] of observations: name -> [..., D] or images."""
        seen = [self.normalizer(obs["vector"].float())]
        seen += [eye(obs[name]) for name, eye in self.eyes.items()]
        feature = self.encoder(torch.cat(seen, dim=-1))
        return self.middle + (feature - self.middle) @ self.kept if self.config.bottleneck else feature

    def infer(self, obs: Mapping[str, Tensor], later: Mapping[str, Tensor], steps: int = 1) -> Belief:
        """Which action [..., A] was executed in `obs`, if `later` was seen so many steps after it.

        Raises:
            UserError: `steps` is more than what was learned.
        """
        return self.belief(self.between(obs, later, steps), steps)

    def belief(self, said: Tensor, steps: int) -> Belief:
        """What the network says, as a distribution."""
        if self.spec.discrete:
            return Choices(torch.log_softmax(said, -1))
        return Forces(self.in_units(self.mixture(said), steps))

    # Learning -----------------------------------------------------------------------------------------------

    def wanted(self, batch: Trajectory) -> Tensor:
        """The actions."""
        return batch.action

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """As it is there; "features" is the number that came through the bottleneck."""
        self.kept.copy_(torch.eye(self.config.features))
        metrics = super().fit(buffer, budget, progress)
        if self.config.bottleneck:
            self.clear(buffer)
        return {**metrics, "features": round(float(self.kept.trace()))}

    @torch.no_grad()
    def clear(self, buffer: ReplayBuffer) -> None:
        """Clear the directions in which features vary less than the noise that they are read through."""
        feature = self.represent(self.some(buffer).obs).flatten(0, 1)
        self.middle.copy_(feature.mean(0))
        centred = (feature - self.middle).double()
        variance, direction = torch.linalg.eigh(centred.T @ centred / len(centred))
        direction = direction[:, variance > 1.0]
        self.kept.copy_(direction @ direction.T)

    def loss(self, batch: Trajectory) -> tuple[Tensor, Metrics]:
        """As it is there, through the bottleneck."""
        cost = self.config.bottleneck
        if not cost:
            return super().loss(batch)
        batch = batch.to(self.gain.device)
        mean = self.represent(batch.obs)
        noise = torch.randn(mean.shape, generator=self._noise).to(mean.device)
        fit = self.likelihood(batch, mean + noise)
        nats = 0.5 * mean.square().sum(-1).mean()  # Kullback-Leibler divergence from the noise alone
        return fit + cost * nats, {"train_loss": float(fit.detach())}

    def judged(self, batch: Trajectory, feature: Tensor) -> tuple[Tensor, Tensor]:
        """As it is there; choices have no standard scores."""
        said, target = super().judged(batch, feature)
        return said, batch.action if self.spec.discrete else target

    def losses(self, said: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihoods of actions, or log loss of choices."""
        if self.spec.discrete:
            return -Choices(torch.log_softmax(said, -1)).log_prob(target)
        return self.mixture(said).nll(target)

    def errors(self, said: Tensor, target: Tensor) -> Tensor:
        """Absolute errors in standard deviations; of choices, how unlikely the right one was held."""
        if self.spec.discrete:
            return 1.0 - Choices(torch.log_softmax(said, -1)).log_prob(target).exp()
        return self.mixture(said).miss(target).mean(-1)
