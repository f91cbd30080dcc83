"""The networks of a latent state-space model: encoder, latent dynamics, decoder, reward and end.

A latent z_t stands for what there is, and what is seen is decoded from it::

    z_1 ~ N(0, 1)        z_t+1 ~ N(z_t + f(z_t, a_t), s(z_t, a_t)²)        o_t ~ N(g(z_t), missed²)

Time comes first in what concerns training: [T+1, B, ...] observations and latents, [T, B, ...] steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Noise
from mbrl_dynamics.models.encoders import ENCODERS, Filter
from mbrl_dynamics.models.gaussian import Conditional, Gaussian, Missed, normal, standard
from mbrl_dynamics.models.heads import MLP
from mbrl_dynamics.models.image import ImageDecoder, ImageEncoder
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.models.observed import project
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Trajectory


@config
class LatentConfig:
    """Configuration of Latent."""

    kind: Annotated[
        Literal["stochastic", "deterministic"],
        Field(description="variational autoencoder, which knows its uncertainty, or plain autoencoder"),
    ] = "stochastic"
    encoder: Annotated[
        Literal["single", "filter", "smoother"],
        Field(
            description="what latents are concluded from: the newest observation, all up to it, or in "
            "training the later ones too"
        ),
    ] = "filter"
    latent: Annotated[int, Field(ge=1, description="length of the latent [1]")] = 16
    memory: Annotated[int, Field(ge=1, description="units that look at a smoother's future [1]")] = 64
    hidden: Annotated[
        tuple[int, ...], Field(min_length=1, description="units of the hidden layers of every network [1]")
    ] = (64, 64)
    image_depth: Annotated[int, Field(ge=1, description="channels after the first convolution [1]")] = 16
    rewards: Annotated[
        bool, Field(description="learn the reward too, where the task does not tell it as a function")
    ] = False
    terminations: Annotated[
        bool, Field(description="learn too when the task ends, where it does not tell that as a function")
    ] = False
    kl_weight: Annotated[float, Field(ge=0, description="weight of the KL; 1 = the lower bound [1]")] = 1.0
    warm_up: Annotated[
        int, Field(ge=0, description="gradient steps over which that weight rises from 0 [1]")
    ] = 500
    free_nats: Annotated[
        float, Field(ge=0, description="KL a step that the encoder does not pay for [nat]")
    ] = 0.0
    unroll: Annotated[
        int, Field(ge=0, description="steps that are also foretold without looking, in training [steps]")
    ] = 3
    length: Annotated[int, Field(ge=1, description="length of the slices learned from [steps]")] = 20
    batch_size: Annotated[int, Field(ge=1, description="slices a gradient step [1]")] = 32
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's first step size [1]")] = 2e-3
    final_learning_rate: Annotated[
        float, Field(gt=0, description="AdamW's step size after the plateau [1]")
    ] = 4e-4
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's decay [1]")] = 0.0
    patience: Annotated[
        int, Field(ge=1, description="evaluations without progress on held-out data before stopping [1]")
    ] = 5


class Path(NamedTuple):
    """Latents of a batch [T+1, B, Z] as an encoder goes along it."""

    expected: Gaussian  # before each observation
    belief: Gaussian  # after it
    latent: Tensor  # drawn from what is believed


class StateSpace(nn.Module):
    """The networks, and how a sequence of observations runs through them.

    Args:
        spec: of the world.
        config: see LatentConfig.
        seed: of weights.

    Raises:
        UserError: there is nothing to see, images have a size that does not fit, or settings contradict
            each other.
    """

    def __init__(self, spec: Spec, config: LatentConfig, seed: int) -> None:
        super().__init__()
        _check(spec, config)
        self.spec, self.config = spec, config
        self.stochastic = config.kind == "stochastic"
        self._whens = ("now", "ahead") if self.stochastic else ("ahead",)
        self.normalizer, self.reward_normalizer = Normalizer(spec.observation_dim), Normalizer(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build()

    def _build(self) -> None:
        c, cameras, size = self.config, self.spec.cameras, self.spec.observation_dim
        actions, latent, spread = self.spec.inner_action_dim, c.latent, self.stochastic
        eyes = {camera.name: ImageEncoder(camera, c.image_depth) for camera in cameras}
        self.eyes = nn.ModuleDict(eyes)
        seen = size + sum(eye.size for eye in eyes.values())
        self.encoder = ENCODERS[c.encoder](seen, actions, latent, c.hidden, memory=c.memory, spread=spread)
        self.substitute = None
        if c.encoder == "smoother":
            self.substitute = Filter(seen, actions, latent, c.hidden, memory=c.memory, spread=spread)
        self.dynamics = Conditional(latent + actions, c.hidden, latent, spread=spread, zero=True)
        self.decoder = MLP(latent, c.hidden, size) if size else None
        self.image_decoders = nn.ModuleDict(
            {camera.name: ImageDecoder(camera, c.image_depth, latent) for camera in cameras}
        )
        self.reward_head = MLP(2 * latent + actions, c.hidden, 1, zero=True) if c.rewards else None
        self.end_head = MLP(latent, c.hidden, 1, zero=True) if c.terminations else None
        sizes = {"vector": size, "reward": int(c.rewards)} | {f"{name}_image": 1 for name in eyes}
        self.missed: Any = nn.ModuleDict(
            {f"{name}_{when}": Missed(n) for name, n in sizes.items() if n for when in self._whens}
        )

    # What is told -------------------------------------------------------------------------------------------

    def embed(self, obs: Mapping[str, Tensor]) -> Tensor:
        """What encoders see [..., E] of observations, name -> [..., ...]: the vector in standard scores, then
        the images.
        """
        parts = [self.normalizer(obs["vector"].float())] if self.spec.observation_dim else []
        return torch.cat([*parts, *(eye(obs[name]) for name, eye in self.eyes.items())], -1)

    def transition(self, latent: Tensor, action: Tensor) -> Gaussian:
        """The latent [..., Z] after an action [..., A]."""
        change: Gaussian = self.dynamics(latent, action)
        return Gaussian(latent + change.mean, change.std)

    def vector(self, latent: Tensor, noise: Noise = None) -> Tensor:
        """The vector observation [..., D] of latents [..., Z], SI; with noise, that of the sensors too."""
        if self.decoder is None:
            return latent.new_zeros(*latent.shape[:-1], 0)
        score = self.decoder(latent)
        drawn = normal(score, noise) if self.stochastic else None
        if drawn is not None:
            score = score + self.missed["vector_now"].std * drawn
        return project(score * self.normalizer.std + self.normalizer.mean, self.spec)

    def reward(self, before: Tensor, action: Tensor, after: Tensor) -> Tensor | None:
        """Reward [...] of a step between latents [..., Z] by actions [..., A]; None if it is not learned."""
        if self.reward_head is None:
            return None
        score = self.reward_head(torch.cat([before, action, after], -1)).squeeze(-1)
        return score * self.reward_normalizer.std[0] + self.reward_normalizer.mean[0]

    def going_on(self, latent: Tensor) -> Tensor | None:
        """Probability [...] that the task does not end with a latent [..., Z]; None if it is not learned."""
        return None if self.end_head is None else torch.sigmoid(-self.end_head(latent).squeeze(-1))

    # Sequences ----------------------------------------------------------------------------------------------

    @property
    def acting(self) -> nn.Module:
        """The encoder that acts: it knows nothing of what comes later."""
        return self.encoder if self.substitute is None else self.substitute

    def expect(self, belief: Gaussian, action: Tensor) -> Gaussian:
        """What the encoder that acts expects [..., Z] after an action [..., A].

        What stands in for a smoother tells all that is uncertain, so that this counts too; other encoders go
        along a single path.
        """
        after = self.transition(belief.mean, action)
        if self.substitute is None or not self.stochastic:
            return after
        return Gaussian(after.mean, (after.std.square() + belief.std.square()).sqrt())

    def path(self, batch: Trajectory, noise: Noise) -> Path:
        """What is learned from: a path of latents that the encoder draws, each from the one before it and
        from what was seen; a smoother also knows what comes later.
        """
        seen, action, begins = self._inputs(batch)
        evidence = self.encoder.evidence(seen, action)
        start = standard(seen.new_zeros(seen.shape[1], self.config.latent))
        drawn = normal(
            seen.new_zeros(*seen.shape[:2], self.config.latent), noise if self.stochastic else None
        )
        expected: list[Gaussian] = []
        beliefs: list[Gaussian] = []
        latents: list[Tensor] = []
        for t, found in enumerate(evidence):
            before = start
            if t:
                before = self._or_start(self.transition(latents[-1], action[t]), begins[t])
            belief = self.encoder(before, found)
            expected.append(before)
            beliefs.append(belief)
            latents.append(belief.draw(None if drawn is None else drawn[t]))
        return Path(_stacked(expected), _stacked(beliefs), torch.stack(latents))

    def filtered(self, batch: Trajectory) -> Gaussian:
        """What is believed of each latent [T+1, B, Z] by the encoder that acts."""
        seen, action, begins = self._inputs(batch)
        start = standard(seen.new_zeros(seen.shape[1], self.config.latent))
        beliefs: list[Gaussian] = []
        for t, found in enumerate(seen):
            before = start
            if t:
                before = self._or_start(self.expect(beliefs[-1], action[t]), begins[t])
            beliefs.append(self.acting(before, found))
        return _stacked(beliefs)

    def _or_start(self, expected: Gaussian, begins: Tensor) -> Gaussian:
        """What is expected [B, Z], but where slices begin, bool [B], which few do on the way."""
        return standard(expected.mean).where(begins, expected) if begins.any() else expected

    def _inputs(self, batch: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded observations [T+1, B, E], actions executed to get there [T+1, B, A]; where they begin."""
        seen = self.embed({name: x.transpose(0, 1) for name, x in batch.obs.items()})
        action = batch.action.transpose(0, 1) * batch.valid.T.unsqueeze(-1)
        return seen, torch.cat([torch.zeros_like(action[:1]), action]), begins(batch)

    # Units --------------------------------------------------------------------------------------------------

    def rescale_vector(self, shift: Tensor, ratio: Tensor) -> None:
        """Change the layers that read or write the vector, so that all they say stays the same when its
        standard scores y become (y - shift) / ratio, both [D].
        """
        if self.decoder is None:
            return
        for encoder in filter(None, (self.encoder, self.substitute)):
            for weight, bias in encoder.readers():
                bias += weight[:, : len(shift)] @ shift
                weight[:, : len(shift)] *= ratio
        self._rescale_output(self.decoder, "vector", shift, ratio)

    def rescale_reward(self, shift: Tensor, ratio: Tensor) -> None:
        """The same for rewards, both [1]."""
        if self.reward_head is not None:
            self._rescale_output(self.reward_head, "reward", shift, ratio)

    def _rescale_output(self, network: MLP, name: str, shift: Tensor, ratio: Tensor) -> None:
        last: Any = network.layers[-1]
        for layer in (last, network.straight):
            layer.weight /= ratio[:, None]
        last.bias.copy_((last.bias - shift) / ratio)
        for when in self._whens:
            self.missed[f"{name}_{when}"].variance /= ratio.square()


def begins(batch: Trajectory) -> Tensor:
    """Where the slices of a batch begin, bool [T+1, B]: at their first observation that is no padding."""
    came = batch.valid.T
    real = torch.cat([came, torch.ones_like(came[:1])])
    return real & ~torch.cat([torch.zeros_like(came[:1]), came])


def _stacked(beliefs: list[Gaussian]) -> Gaussian:
    return Gaussian(*(torch.stack(x) for x in zip(*beliefs, strict=True)))


def _check(spec: Spec, c: LatentConfig) -> None:
    if not spec.observation_dim and not spec.cameras:
        raise UserError(f"model 'latent' has nothing to see: task '{spec.task}' observes nothing")
    if c.unroll > c.length:
        raise UserError(
            f"latent.unroll is {c.unroll} steps, but latent.length, the slices learned from, is {c.length}: "
            "unroll fewer, or take longer slices"
        )
    if c.kind == "deterministic" and not c.unroll:
        raise UserError(
            "latent.kind is 'deterministic', whose dynamics are learned from what is foretold, but "
            "latent.unroll is 0: make it 1 or more"
        )
