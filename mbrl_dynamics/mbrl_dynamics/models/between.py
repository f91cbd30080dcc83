"""What the inverse model and its relatives share: a network that is told where a piece of experience begins,
where it ends, and how many steps lie between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.mixture import Mixture
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import Trainer
from mbrl_dynamics.types import Metrics, Trajectory

LOG_VAR = (-10.0, 1.0)  # soft bounds; of standard scores
MEASURED = 4096  # slices on which scales are measured, at most


@config
class BetweenConfig:
    """What all models between two observations have."""

    steps: Annotated[
        int, Field(ge=1, le=100, description="how far apart the two observations may be at most [steps]")
    ] = 1
    hidden: Annotated[tuple[int, ...], Field(min_length=1, description="units of each hidden layer [1]")] = (
        128,
        128,
    )
    components: Annotated[
        int, Field(ge=1, le=64, description="Gaussians, where the answer may be of several kinds [1]")
    ] = 1
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's first step size [1]")] = 1e-3
    final_learning_rate: Annotated[
        float, Field(gt=0, description="AdamW's step size after the plateau [1]")
    ] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's decay [1]")] = 1e-4
    batch_size: Annotated[int, Field(ge=1, description="slices of `steps` steps a gradient step [1]")] = 128
    patience: Annotated[
        int, Field(ge=1, description="evaluations without progress on held-out data before stopping [1]")
    ] = 5


class Between(nn.Module):
    """Says something of the first step from one observation to a later one, n = 1 .. N steps apart.

    It learns from all n at once: of a slice of N steps, each observation goes with the last one. A subclass
    says what is told (`wanted`), how well it was told (`losses`, `errors`), and what is seen of an
    observation (`represent`).

    Args:
        spec: the interface between the world and whoever acts.
        config: a BetweenConfig.
        told: numbers that are told, O.
        said: outputs of the network.
        features: length Z of what `represent` makes of an observation.
        seed: of weights and batches.
    """

    gain: Tensor

    def __init__(self, spec: Spec, config: Any, *, told: int, said: int, features: int, seed: int) -> None:
        super().__init__()
        self.spec, self.config, self.told = spec, config, told
        self.normalizer = Normalizer(spec.observation_dim)
        self.targets = Normalizer(config.steps * told)  # of each n by itself
        self.register_buffer("gain", torch.ones(config.steps))  # what makes changes over n steps of size one
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = mlp(2 * features + config.steps, config.hidden, said)
        self._trainer = Trainer(self, config, seed, length=config.steps)

    # For subclasses -----------------------------------------------------------------------------------------

    def represent(self, obs: Mapping[str, Tensor]) -> Tensor:
        """What the network sees of observations [..., Z]."""
        raise NotImplementedError

    def wanted(self, batch: Trajectory) -> Tensor:
        """What is to be told of the first step from each observation of slices to the last [B, N, O]."""
        raise NotImplementedError

    def losses(self, said: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihoods [...] of targets [..., O], given what the network said."""
        raise NotImplementedError

    def errors(self, said: Tensor, target: Tensor) -> Tensor:
        """Errors [...], of size one where nothing is known."""
        raise NotImplementedError

    # What is said -------------------------------------------------------------------------------------------

    def forward(self, start: Tensor, later: Tensor, steps: Tensor) -> Tensor:
        """What is said of the first step between features [..., Z] that are `steps` [...] apart."""
        told = F.one_hot(steps - 1, self.config.steps).to(start)
        # A change over a short time is small; as a difference of two inputs it would take long to be noticed.
        change = (later - start) * self.gain[steps - 1].unsqueeze(-1)
        return self.head(torch.cat([start, change, told.expand(*start.shape[:-1], -1)], dim=-1))

    def between(self, obs: Mapping[str, Tensor], later: Mapping[str, Tensor], steps: int) -> Tensor:
        """The same of observations.

        Raises:
            UserError: they are further apart than this model has learned.
        """
        self.check(steps)
        return self(self.represent(obs), self.represent(later), torch.tensor(steps, device=self.gain.device))

    def check(self, steps: int) -> None:
        """Look whether observations may be so many steps apart.

        Raises:
            UserError: they may not.
        """
        if not 1 <= steps <= self.config.steps:
            raise UserError(
                f"the observations are {steps} steps apart, but this model learns 1 to {self.config.steps}: "
                "set its parameter 'steps'"
            )

    def mixture(self, said: Tensor) -> Mixture:
        """Gaussians of standard scores, of 2 K O + K outputs."""
        shape = (self.config.components, self.told)
        size = shape[0] * shape[1]
        mean, log_var, logit = said.tensor_split([size, 2 * size], dim=-1)
        low, high = LOG_VAR
        log_var = high - F.softplus(high - log_var)
        log_var = low + F.softplus(log_var - low)
        return Mixture(mean.unflatten(-1, shape), log_var.unflatten(-1, shape), logit)

    def in_units(self, mixture: Mixture, steps: int) -> Mixture:
        """Of what is told, rather than of its standard scores."""
        mean, std = (x.view(self.config.steps, -1)[steps - 1] for x in (self.targets.mean, self.targets.std))
        return mixture.scaled(mean, std)

    # Learning -----------------------------------------------------------------------------------------------

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train on a buffer, from the weights of the last fit on, until held-out data says stop.

        Returns:
            "train_loss", mean negative log likelihood, "holdout_error", of size one where nothing is known,
            "steps" and "seconds".

        Raises:
            UserError: no episode of the buffer is as long as `steps`.
            ValueError: the buffer is empty.
        """
        if len(buffer):
            self.measure(buffer)
        return self._trainer.fit(buffer, budget, progress)

    @torch.no_grad()
    def measure(self, buffer: ReplayBuffer) -> None:
        """Take the scales of observations, of their changes, and of what is told, from a buffer."""
        batch = self.some(buffer)
        obs = batch.obs["vector"]
        self.normalizer.measure(obs.flatten(0, 1))
        score = self.normalizer(obs)
        change = (score[:, -1:] - score[:, :-1]).square().mean(0).sqrt().flip(0)  # [N, D], n = 1 first
        self.gain.copy_(torch.exp(-change.clamp(min=1e-3).log().mean(-1)))
        self.targets.measure(self.wanted(batch).flip(1).flatten(1))

    def some(self, buffer: ReplayBuffer) -> Trajectory:
        """Slices of N steps from all over a buffer, without padding, where the weights are.

        Raises:
            UserError: no episode is so long.
        """
        whole = whole_slices(buffer, self.config.steps)
        index = np.linspace(0, len(whole) - 1, min(len(whole), MEASURED)).astype(np.int64)
        return buffer.slices(whole[index], self.config.steps).to(self.gain.device)

    def judged(self, batch: Trajectory, feature: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says of slices with features [B, N+1, Z], and the standard scores of what it
        should tell [B, N, O].
        """
        many = self.config.steps
        start, steps = feature[:, :-1], torch.arange(many, 0, -1, device=feature.device)
        said = self(start, feature[:, -1:].expand_as(start), steps)
        mean, std = (x.view(many, -1).flip(0) for x in (self.targets.mean, self.targets.std))
        return said, (self.wanted(batch) - mean) / std

    def loss(self, batch: Trajectory) -> tuple[Tensor, Metrics]:
        """Mean negative log likelihood, over all steps that are no padding."""
        batch = batch.to(self.gain.device)
        loss = self.likelihood(batch, self.represent(batch.obs))
        return loss, {"train_loss": float(loss.detach())}

    def likelihood(self, batch: Trajectory, feature: Tensor) -> Tensor:
        """The mean negative log likelihood, given features [B, N+1, Z]."""
        return _mean(self.losses(*self.judged(batch, feature)), batch.valid)

    @torch.no_grad()
    def holdout(self, batch: Trajectory) -> Tensor:
        """Mean error [1] on held-out slices."""
        batch = batch.to(self.gain.device)
        errors = self.errors(*self.judged(batch, self.represent(batch.obs)))
        return _mean(errors, batch.valid).reshape(1).cpu()

    def training_state(self) -> dict[str, Tensor]:
        """The optimiser's state, to go on with after a restart."""
        return self._trainer.state_dict()

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        self._trainer.load_state_dict(state)


def whole_slices(buffer: ReplayBuffer, length: int) -> NDArray[np.int64]:
    """Steps of a buffer, not empty, that end slices of so many steps without padding.

    Raises:
        UserError: no episode is so long.
    """
    last = np.arange(len(buffer))
    for longest in range(1, length):
        after = buffer.later(last, np.ones_like(last))
        last = after[after != last]
        if not len(last):
            raise UserError(
                f"parameter 'steps' is {length}, but the longest episode in the data has {longest} "
                f"step{'s' if longest > 1 else ''}: lower it, or record longer episodes"
            )
    return last


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """A multilayer perceptron with SiLU."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([inputs, *hidden, outputs]):
        layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).sum() / valid.sum()
