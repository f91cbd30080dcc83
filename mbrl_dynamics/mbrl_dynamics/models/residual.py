"""A model that is not quite right, and what it misses, learned (Saveriano et al., 2017,
https://arxiv.org/abs/1709.04238; Ajay et al., 2018, https://arxiv.org/abs/1808.03246).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from mbrl_dynamics import plugins
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Noise, Policy
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.models.propagation import EnsembleState
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, Rollout, Trajectory


@config
class ResidualConfig(EnsembleConfig):
    """Configuration of Residual: that of its ensemble, and what it corrects."""

    base: Annotated[  # only what is installed: a snapshot that was received must not name what is imported
        str,
        Field(pattern=r"^\w+$", description="installed model that is corrected, with its own defaults"),
    ] = "physics"


class Residual(Ensemble):
    """A base model's prediction, and on top of it an ensemble of what it misses.

    What a base model knows need not be learned, so little data suffices; where it is wrong, it is corrected.

    Args:
        spec: the interface whose dynamics are learned.
        config: see ResidualConfig.
        seed: of base and ensemble.
        base: the model to correct, an nn.Module that predicts the next observation from the last one alone;
            None = the installed one that the configuration names.

    Raises:
        UserError: there is no such model, or it is none that can be corrected.
    """

    Config = ResidualConfig
    capabilities = replace(Ensemble.capabilities, capturable=False)  # nobody knows what the base does

    def __init__(
        self, spec: Spec, config: ResidualConfig | None = None, *, seed: int = 0, base: Any = None
    ) -> None:
        config = config or ResidualConfig()
        super().__init__(spec, config, seed=seed)
        self.base = _installed(spec, config.base, seed) if base is None else base
        able = self.base.capabilities
        if able.recurrent or not able.decodes or able.discrete:
            raise UserError(
                f"model '{config.base}' cannot be corrected: it must predict the next observation "
                "from the last one alone"
            )
        self.capabilities = replace(self.capabilities, differentiable=able.differentiable)
        self._expected = torch.empty(0, spec.observation_dim)  # by the base, of each step in the buffer

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Fit the base, then the ensemble to what it misses.

        Returns:
            As the ensemble, with the metrics of the base as "base.holdout_error" and so on.
        """
        told = self.base.fit(buffer, budget, progress)
        data = buffer.all()
        with torch.no_grad():
            self._expected = self.origin(data.obs["vector"][:, 0], data.action[:, 0])
        metrics = super().fit(buffer, budget, progress)
        metrics["holdout_error"] = holdout_error(self, buffer)  # the trainer's is in units of what is missed
        return {**metrics, **{f"base.{name}": value for name, value in told.items()}}

    def changes(self, batch: Trajectory) -> Tensor:
        """What the base misses, in the units of the observation, and the reward, [M, O]."""
        change, size = super().changes(batch), self.spec.observation_dim
        before = batch.obs["vector"][:, :-1].flatten(0, 1)
        change[:, :size] -= self._expected[batch.extras["index"].flatten()] - before
        return change

    def origin(self, obs: Tensor, action: Tensor) -> Tensor:
        """What the base predicts for observations [M, D] and actions [M, A]."""
        predicted: Tensor = self.base.step(self.base.observe(None, None, {"vector": obs}), action).obs
        return predicted

    def imagine(
        self,
        state: EnsembleState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Step by step, since the base comes first in each."""
        return imagine_by_steps(self, state, actions, particles or self.elites, horizon, noise, keep)

    def training_state(self) -> dict[str, Tensor]:
        """The state of both trainings."""
        return {
            **super().training_state(),
            **{f"base.{name}": value for name, value in self.base.training_state().items()},
        }

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        super().load_training_state({k: v for k, v in state.items() if not k.startswith("base.")})
        self.base.load_training_state(_of_base(state))

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The inverse of `state_dict`."""
        self.base.load_state_dict(_of_base(state))  # its own way: it may keep what follows from its weights
        return super().load_state_dict(state, strict, assign)


def _installed(spec: Spec, name: str, seed: int) -> Any:
    kind = plugins.find("models", name)
    if kind is Residual:
        raise UserError("parameter 'residual.base' is 'residual', but a correction cannot be its own base")
    return kind(spec, seed=seed)


def _of_base(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("base."): v for k, v in state.items() if k.startswith("base.")}
