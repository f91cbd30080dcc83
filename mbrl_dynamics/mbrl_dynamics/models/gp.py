"""Gaussian processes, one for each observation element: PILCO's model (Deisenroth and Rasmussen, 2011,
https://dl.acm.org/doi/10.5555/3104482.3104541). It learns from little data, and knows what it does not know.

What is imagined follows the posterior mean, and how far functions drawn from the posterior lie apart tells
what is not known. Where several particles are asked for, each follows one of these functions: values drawn
anew at each step would average away what is not known. It is not the default, since few inducing points leave
more open than the data do: on the cart-pole, with 100 points, the mean swings up where two particles do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.draws import integers, normal
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise, Policy
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.models.observed import project
from mbrl_dynamics.models.pathwise import CANDIDATES, Functions, condition, inducing_points, learn_kernel
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import fitted_steps
from mbrl_dynamics.types import Metrics, Prediction, Rollout


@config
class GPConfig:
    """Configuration of GP."""

    points: Annotated[
        int, Field(ge=2, le=1000, description="inducing points; with up to so many transitions, exact [1]")
    ] = 300
    draws: Annotated[int, Field(ge=2, le=256, description="functions drawn from the posterior [1]")] = 4
    features: Annotated[
        int, Field(ge=16, le=4096, description="random frequencies that a draw is made of [1]")
    ] = 128
    noise_floor: Annotated[
        float, Field(gt=0, description="least observation noise [standard deviations of a change]")
    ] = 0.01
    steps: Annotated[int, Field(ge=1, description="Adam's steps on the evidence a fit at most [1]")] = 100
    learning_rate: Annotated[float, Field(gt=0, description="Adam's step size on the evidence [1]")] = 0.1
    limit: Annotated[int, Field(ge=1, le=200_000, description="transitions that a fit takes at most [1]")] = (
        50_000
    )


class GPState(NamedTuple):
    """Where a prediction stands.

    Attributes:
        obs: [..., D] SI.
        draw: [...] int64, which of the drawn functions goes on; None = the posterior mean.
    """

    obs: Tensor
    draw: Tensor | None = None


class GP(nn.Module):
    """A Gaussian process with a squared exponential kernel for the change of each observation element.

    Inputs and changes are standardised; far from all data the mean change is predicted. Length scales and
    noise are those of the largest evidence of at most `points` transitions, drawn at random; with more, the
    posterior is conditioned on all through as many inducing points. What a fit leaves are sums of functions
    (see pathwise.py), so that a prediction is a few matrix products.

    Args:
        spec: the interface whose dynamics are learned.
        config: see GPConfig.
        seed: of features, draws and inducing points.
    """

    Config = GPConfig
    capabilities = Capabilities(differentiable=True, stochastic=True)
    seed: Tensor
    scale: Tensor
    noise: Tensor
    points: Tensor
    frequency: Tensor
    weight: Tensor

    def __init__(self, spec: Spec, config: GPConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.config = spec, config or GPConfig()
        c, size = self.config, spec.observation_dim
        inputs = size + spec.inner_action_dim
        self.input_normalizer, self.delta_normalizer = Normalizer(inputs), Normalizer(size)
        generator = torch.Generator().manual_seed(seed)
        frequency = torch.randn(c.features, inputs, generator=generator, dtype=torch.float64)
        terms = 2 * c.features + c.points
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("scale", torch.ones(size, inputs, dtype=torch.float64))
        self.register_buffer("noise", torch.ones(size, dtype=torch.float64))
        self.register_buffer("points", torch.zeros(c.points, inputs, dtype=torch.float64))
        self.register_buffer("frequency", frequency)
        self.register_buffer("weight", torch.zeros(size, terms, c.draws + 1, dtype=torch.float64))
        self._folded: Functions | None = None

    # Learning -----------------------------------------------------------------------------------------------

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Learn the hyperparameters, then condition on all data.

        Returns:
            "train_loss", mean negative log evidence a transition [nat], "holdout_error" as an ensemble,
            "steps", "seconds", and "jitter": how often a matrix had to be regularised more than usual.

        Raises:
            UserError: there are more transitions than `limit`, or GPyTorch is not installed.
            ValueError: the buffer is empty.
        """
        begin, c, self._folded = time.monotonic(), self.config, None
        if len(buffer) > c.limit:
            raise UserError(
                f"a Gaussian process takes at most {c.limit} transitions (parameter 'limit'), but there are "
                f"{len(buffer)}: take the model 'ensemble', or fit on the latest episode only"
            )
        x, y = self._data(buffer)
        generator = torch.Generator().manual_seed(int(self.seed))
        order = torch.randperm(len(x), generator=generator)
        some = order[: c.points]
        kernel, metrics = learn_kernel(
            x[some],
            y[some],
            steps=c.steps,
            rate=c.learning_rate,
            noise_floor=c.noise_floor,
            budget=budget,
            progress=progress,
        )
        points = x[some]
        if len(x) > c.points:
            points = inducing_points(kernel, x[order[:CANDIDATES]], c.points)
        weight, raised = condition(kernel, x, y, points, self.frequency, c.draws, generator)
        self.scale.copy_(kernel.scale)
        self.noise.copy_(kernel.noise)
        self.points.zero_()[: len(points)] = points
        self.weight.zero_()[:, : weight.shape[1]] = weight
        return {
            **metrics,
            "holdout_error": holdout_error(self, buffer),
            "jitter": metrics["jitter"] + raised,
            "seconds": time.monotonic() - begin,
        }

    def _data(self, buffer: ReplayBuffer) -> tuple[Tensor, Tensor]:
        """Inputs [N, I] and changes [N, D] to fit, in standard scores, which they define; float64."""
        data = buffer.slices(fitted_steps(buffer))
        obs = data.obs["vector"].double()
        x, y = torch.cat([obs[:, 0], data.action[:, 0].double()], dim=-1), obs[:, 1] - obs[:, 0]
        self.input_normalizer.measure(x)
        self.delta_normalizer.measure(y)
        return self.input_normalizer(x), self.delta_normalizer(y)

    def training_state(self) -> dict[str, Tensor]:
        """What a fit goes on with after a restart, beside the weights: nothing."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""

    # Prediction ---------------------------------------------------------------------------------------------

    def _functions(self, x: Tensor) -> Tensor:
        """The drawn functions, then the posterior mean, at standardised inputs [N, I]: [D, N, S + 1].

        In float64: large terms cancel, so that float32 is off by as much as the noise floor.
        """
        if self._folded is None:
            self._folded = Functions(self.scale, self.frequency, self.points, self.weight)
        return self._folded(x.double()).to(x)

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False):  # type: ignore[no-untyped-def]
        """Load points, weights and normalisers."""
        self._folded = None
        return super().load_state_dict(state, strict, assign)

    def observe(
        self,
        state: GPState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> GPState:
        """The observation is the state."""
        return GPState(obs["vector"].float())

    def step(self, state: GPState, action: Tensor, noise: Noise = None) -> Prediction:
        """One step of each state's own function; without one, of the posterior mean.

        With `noise`, the outcome is drawn, and so is the function where the state names none. Disagreement is
        the deviation of all drawn functions, in standard scores of the data.
        """
        shape, size = state.obs.shape[:-1], self.spec.observation_dim
        obs = state.obs.reshape(-1, size)
        inputs = torch.cat([obs, action.reshape(len(obs), -1)], dim=-1)
        values = self._functions(self.input_normalizer(inputs))
        scale = self.delta_normalizer.std
        spread = values[..., :-1].std(-1).T * (scale / self.input_normalizer.std[:size])
        draw = None if state.draw is None else state.draw.reshape(-1)
        if draw is None and noise is not None:
            draw = integers(self.config.draws, (len(obs),), noise, obs.device)
        if draw is None:
            change = values[..., -1].T
        else:
            change = values[:, torch.arange(len(obs), device=obs.device), draw].T
        if noise is not None:
            drawn = normal(change.shape, noise, obs.device)
            change = change + self.noise.to(change).sqrt() * drawn
        after = project(obs + self.delta_normalizer.mean + scale * change, self.spec).reshape(*shape, size)
        return Prediction(GPState(after, state.draw), after, disagreement=spread.mean(-1).reshape(shape))

    def imagine(
        self,
        state: GPState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Roll candidates [B, N, H, A] through the mean; several particles, as by default with `noise`, each
        through a drawn function of its own.
        """
        count = particles or (1 if noise is None else self.config.draws)
        return imagine_by_steps(self, state, actions, count, horizon, noise, keep)

    def spread(self, state: GPState, particles: int) -> GPState:
        """The state [B, D] as particles [B, P, D], each with the function that it keeps; one has the mean."""
        draw = None
        if particles > 1:
            draw = torch.arange(particles).remainder(self.config.draws).expand(len(state.obs), -1)
        return GPState(state.obs.unsqueeze(1).expand(-1, particles, -1), draw)

    def feature(self, state: GPState) -> Tensor:
        """The observation in standard scores."""
        size = self.spec.observation_dim
        return (state.obs - self.input_normalizer.mean[:size]) / self.input_normalizer.std[:size]

    def decode(self, state: GPState) -> Tensor:
        """The observation."""
        return state.obs
