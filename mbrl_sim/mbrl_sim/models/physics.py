"""The MJCF as a model whose numbers are fitted to what was seen: masses, damping, friction and gears, and how
late its drives obey.

Which inertial parameters show in motion at all: Atkeson, An and Hollerbach, 1986,
https://doi.org/10.1177/027836498600500306. How they are fitted: shooting.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics
from mbrl_sim.models.parameters import changed, choose, delays
from mbrl_sim.models.shooting import Estimate, Segments, Shooting
from mbrl_sim.models.simulator import SimulatorModel, WorldState
from mbrl_sim.tasks.base import MujocoTask

_EVALUATIONS = 30  # of a pass, at most


@config
class PhysicsConfig:
    """Configuration of FittedPhysics."""

    parameters: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            description="what is fitted: mass:BODY, damping:JOINT, friction:JOINT, gear:ACTUATOR, "
            "delay:ACTUATOR (up to a control period); * = all",
        ),
    ] = ("mass:*", "damping:*")
    segment: Annotated[int, Field(ge=2, description="length of a simulated segment [steps]")] = 15
    segments: Annotated[int, Field(ge=1, description="newest segments that are fitted to, at most [1]")] = 100
    particles: Annotated[
        int, Field(ge=1, le=64, description="worlds that may be, in which plans are imagined [1]")
    ] = 3


class FittedPhysics(SimulatorModel):
    """The simulator with parameters that are fitted; the first member has the best ones.

    The other members' parameters are drawn from what else the data allow (a Gaussian with the covariance of
    the estimate), so that their disagreement is that of not knowing the parameters better.

    With a delay among the parameters, the action before goes on for a part of each control period. It is in
    the state then, so that the model has a memory; before an episode's first State it was the safe action.

    Args:
        spec: of the world.
        config: see PhysicsConfig.
        seed: of the members' parameters.
        task: whose MJCF it is; None = the installed one that the spec names.

    Raises:
        UserError: as SimulatorModel; or a parameter is none of the MJCF, or cannot be told from others.
    """

    Config = PhysicsConfig
    draws: Tensor  # [P, n] parameters of the members, in natural units
    scale: Tensor  # [D] standard deviations of the observation

    def __init__(
        self,
        spec: Spec,
        config: PhysicsConfig | None = None,
        *,
        seed: int = 0,
        task: MujocoTask | None = None,
    ) -> None:
        super().__init__(spec, config, seed=seed, task=task)
        self.fitted = choose(
            self.rollouts.model, self.config.parameters, self.task.goal, period=spec.control_period
        )
        start = torch.tensor([parameter.start for parameter in self.fitted], dtype=torch.double)
        self.register_buffer("draws", start.repeat(self.config.particles, 1))
        self.register_buffer("scale", torch.ones(spec.observation_dim))
        self._seed = seed
        self._worlds: list[Any] = []
        self.capabilities = replace(self.capabilities, recurrent=self.delays() is not None)

    def worlds(self) -> Sequence[Any]:
        """The MJCF with the parameters of each member."""
        if not self._worlds:
            self._worlds = [changed(self.rollouts.model, self.fitted, x) for x in self.draws.numpy()]
        return self._worlds

    def delays(self) -> NDArray[np.float64] | None:
        """As SimulatorModel."""
        return delays(self.fitted, self.draws.numpy(), self.spec.action_dim)

    def observe(
        self,
        state: WorldState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> WorldState:
        """As SimulatorModel; the action goes on for as long as the next one is late."""
        seen = super().observe(state, action, obs, first)
        if self.delays() is None:
            return seen
        safe = torch.from_numpy(self.spec.scale_action(self.spec.safe_action())).to(seen.physics)
        before = safe.expand(*seen.physics.shape[:-1], -1) if action is None else action
        return seen._replace(before=before if first is None else before.where(~first[..., None], safe))

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The inverse of `state_dict`."""
        self._worlds = []
        return super().load_state_dict(state, strict, assign)

    def spread_of(self, obs: Tensor) -> Tensor:
        """How far the members' observations are apart, in standard scores."""
        return (obs.std(2, correction=0) / self.scale).mean(-1)

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Fit the parameters, warm from those of the last fit.

        Returns:
            "train_loss" (what is missed, root mean square in standard deviations of the observation),
            "holdout_error" as SimulatorModel, and of each parameter its value by its name, as in "mass:pole",
            and its standard error, as in "mass:pole:error" [SI].

        Raises:
            ValueError: the buffer holds no unbroken segment, or what is simulated is not finite.
        """
        begin = time.monotonic()
        segments = self._segments(buffer)
        self.scale.copy_(buffer.all().obs["vector"][:, 1].std(0, correction=0).clamp(min=1e-6))

        def watch(found: OptimizeResult) -> None:
            if progress is not None:
                progress({"steps": float(found.nfev), "train_loss": float(found.cost)})
            if time.monotonic() - begin > budget.seconds:
                raise StopIteration

        shooting = Shooting(self.rollouts, self.fitted, segments, self.scale.double().numpy())
        found = shooting.fit(self.draws[0].numpy().copy(), min(budget.steps, _EVALUATIONS), watch)
        self._draw(found)
        return {
            "train_loss": float(np.sqrt(np.square(found.missed / self.scale.numpy()).mean())),
            "holdout_error": holdout_error(self, buffer),
            "steps": float(found.evaluations),
            "seconds": time.monotonic() - begin,
            **self._told(found),
        }

    def _segments(self, buffer: ReplayBuffer) -> Segments:
        """The newest pieces of unbroken experience, side by side."""
        late = int(self.delays() is not None)  # then the action before a segment counts, too
        length = self.config.segment + late
        ends = [stratum[length - 1 :: self.config.segment] for stratum in buffer.strata()]
        batch = buffer.slices(np.concatenate([np.empty(0, np.int64), *ends]), length)
        whole = np.flatnonzero(batch.valid.all(1).numpy())[-self.config.segments :]
        if not len(whole):
            raise ValueError(f"there is nothing to fit to: nowhere do {length} steps follow each other")
        obs = batch.obs["vector"].double().numpy()[whole]
        actions = self.spec.unscale_action(batch.action.numpy()[whole])
        obs, before, actions = obs[:, late:], actions[:, 0], actions[:, late:]
        return Segments(self.rollouts.restore(obs[:, 0]), actions, obs, before if late else None)

    def _draw(self, found: Estimate) -> None:
        """Keep an estimate, and draw the other members about it."""
        values, vectors = np.linalg.eigh(found.covariance)
        root = vectors * np.sqrt(values.clip(min=0.0))
        rng = np.random.default_rng(self._seed)
        others = found.x + rng.standard_normal((self.config.particles - 1, len(found.x))) @ root.T
        lowest, highest = (np.array([getattr(p, end) for p in self.fitted]) for end in ("lowest", "highest"))
        self.draws.copy_(torch.from_numpy(np.concatenate([found.x[None], others]).clip(lowest, highest)))
        self._worlds = []

    def _told(self, found: Estimate) -> Metrics:
        """Values and standard errors, by name."""
        told: Metrics = {}
        deviations = np.sqrt(np.diag(found.covariance))
        for parameter, x, deviation in zip(self.fitted, found.x.tolist(), deviations.tolist(), strict=True):
            told[parameter.name] = parameter.value(x)
            told[f"{parameter.name}:error"] = parameter.error(x, deviation)
        return told
