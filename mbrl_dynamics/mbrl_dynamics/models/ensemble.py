"""Probabilistic ensemble of neural networks: PETS' model (Chua et al., 2018, https://arxiv.org/abs/1805.12114).

Each member predicts a Gaussian over the change of the observation, N(mean, exp(log_var)), or a mixture of
several, and is trained on its own bootstrap sample, so that members agree where there is data and disagree
where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.draws import integers, normal
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise, Policy
from mbrl_dynamics.models.mixture import Mixture
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.models.observed import project
from mbrl_dynamics.models.propagation import EnsembleState, Predictor, propagate
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import Trainer
from mbrl_dynamics.types import Metrics, Prediction, Rollout, Trajectory

_TABLE = 1 << 16  # bootstrap counts repeat after so many transitions
MAX_LOG_VAR, MIN_LOG_VAR = 0.5, -10.0  # at first; of normalised outputs


@config
class MLPConfig:
    """What all networks of this kind have, one or many."""

    hidden: Annotated[tuple[int, ...], Field(min_length=1, description="units of each hidden layer [1]")] = (
        128,
        128,
        128,
    )
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's first step size [1]")] = 1e-3
    final_learning_rate: Annotated[
        float, Field(gt=0, description="AdamW's step size after the plateau [1]")
    ] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's decay [1]")] = 1e-4
    batch_size: Annotated[int, Field(ge=1, description="transitions a member and gradient step [1]")] = 128
    patience: Annotated[
        int, Field(ge=1, description="evaluations without progress on held-out data before stopping [1]")
    ] = 5
    rewards: Annotated[
        bool, Field(description="learn the reward too, where the task does not tell it as a function")
    ] = False
    terminations: Annotated[
        bool, Field(description="learn too when the task ends, where it does not tell that as a function")
    ] = False


@config
class EnsembleConfig(MLPConfig):
    """Configuration of Ensemble."""

    members: Annotated[int, Field(ge=1, le=64, description="networks in the ensemble [1]")] = 5
    elites: Annotated[
        int, Field(ge=0, description="members that predict, best on held-out data; 0 = all [1]")
    ] = 3
    components: Annotated[
        int, Field(ge=1, le=64, description="Gaussians a member, for outcomes of several kinds [1]")
    ] = 1
    propagation: Annotated[
        Literal["tsinf", "ts1", "expectation"],
        Field(
            description="a particle keeps its member (tsinf), draws one each step (ts1), or follows the mean"
        ),
    ] = "tsinf"
    bound_penalty: Annotated[float, Field(ge=0, description="weight of the variance bounds' penalty [1]")] = (
        0.01
    )


class Ensemble(nn.Module):
    """PETS' probabilistic ensemble; each member an MLP with SiLU, all computed as one batched product.

    The change of each observation element is a Gaussian, or one of each of several components, and so is the
    reward, where it is learned too. Whether the task ends is learned, where it is, by a small network of its
    own, from the next observation.

    Args:
        spec: the interface whose dynamics are learned.
        config: see EnsembleConfig.
        seed: of weights, bootstrap and batches.
    """

    Config: type = EnsembleConfig
    capabilities = Capabilities(differentiable=True, stochastic=True, capturable=True)
    holdout_errors: Tensor
    seed: Tensor

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.config = config or self.Config()
        self.members = self.config.members
        self.elites = min(self.config.elites or self.members, self.members)
        generator = torch.Generator().manual_seed(seed)
        self.capabilities = replace(type(self).capabilities, rewards=self.config.rewards)
        inputs, outputs = spec.observation_dim + spec.inner_action_dim, spec.observation_dim
        outputs += self.config.rewards
        self.outputs = outputs  # O: the changes, then the reward if it is learned
        self.components = self.config.components
        head = 2 * self.components * outputs + (self.components if self.components > 1 else 0)
        sizes = [inputs, *self.config.hidden, head]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            weight = torch.empty(self.members, fan_in, fan_out)
            nn.init.trunc_normal_(weight, std=0.5 * fan_in**-0.5, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(self.members, 1, fan_out)))
        self.max_log_var = nn.Parameter(torch.full((outputs,), MAX_LOG_VAR))
        self.min_log_var = nn.Parameter(torch.full((outputs,), MIN_LOG_VAR))
        self.input_normalizer, self.delta_normalizer = Normalizer(inputs), Normalizer(outputs)
        if self.config.terminations:
            self.ending = _classifier(spec.observation_dim, generator)
        self.register_buffer("holdout_errors", torch.zeros(self.members))
        self.register_buffer("seed", torch.tensor(seed))
        self._bootstrap: Tensor | None = None
        self._trainer = Trainer(self, self.config, seed)
        self._folded: Predictor | None = None

    # Training -----------------------------------------------------------------------------------------------

    def forward(self, obs: Tensor, action: Tensor) -> Mixture:
        """Normalised outputs [E, M, K, O], for inputs [M, D] and [M, A]."""
        x = self.input_normalizer(torch.cat([obs, action], dim=-1)).expand(self.members, -1, -1)
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = F.silu(torch.baddbmm(bias, x, weight))
        return self.mixture(torch.baddbmm(last[1], x, last[0]))

    def mixture(self, raw: Tensor) -> Mixture:
        """What the last layer [..., 2 K O + K] says: means, log variances and, of several, log weights."""
        shape = (self.components, self.outputs)
        mean, log_var, logit = raw.tensor_split([shape[0] * shape[1], 2 * shape[0] * shape[1]], dim=-1)
        return Mixture(mean.unflatten(-1, shape), self.bounded(log_var.unflatten(-1, shape)), logit)

    def alive(self, obs: Tensor) -> Tensor:
        """Probability [...] that the task goes on after an observation [..., D], as it was learned."""
        return torch.sigmoid(-self._ending_logit(obs))

    def _ending_logit(self, obs: Tensor) -> Tensor:
        size = self.spec.observation_dim
        score = (obs - self.input_normalizer.mean[:size]) / self.input_normalizer.std[:size]
        return 10.0 * self.ending(score).squeeze(-1)  # so that a few hundred steps make it sure of itself

    def bounded(self, log_var: Tensor) -> Tensor:
        """Soft bounds on the log variance (PETS, appendix A.1)."""
        log_var = self.max_log_var - F.softplus(self.max_log_var - log_var)
        return self.min_log_var + F.softplus(log_var - self.min_log_var)

    def targets(self, batch: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """Observations [M, D], actions [M, A] and normalised outputs [M, O] of a batch, flattened.

        A reward that is not known is NaN.
        """
        obs = batch.obs["vector"]
        target = self.delta_normalizer(self.changes(batch))
        return obs[:, :-1].flatten(0, 1), batch.action.flatten(0, 1), target

    def changes(self, batch: Trajectory) -> Tensor:
        """What is to be predicted, in its own units: changes of the observation, and the reward, [M, O]."""
        obs = batch.obs["vector"]
        change = (obs[:, 1:] - obs[:, :-1]).flatten(0, 1)
        if self.config.rewards:
            change = torch.cat([change, batch.reward.reshape(-1, 1)], dim=-1)
        return change

    def loss(self, batch: Trajectory) -> tuple[Tensor, Metrics]:
        """Negative log likelihood, each member on its bootstrap sample (PETS, equation 1)."""
        obs, action, target = self.targets(batch)
        nll = self(obs, action).nll(target)  # [E, M]
        valid = batch.valid.flatten()
        weight = self.bootstrap(batch.extras["index"].flatten()) * valid
        fit = (nll * weight).sum() / len(target)
        loss = fit + self.config.bound_penalty * (self.max_log_var - self.min_log_var).sum()
        if self.config.terminations:
            logit = self._ending_logit(batch.obs["vector"][:, 1:].flatten(0, 1))
            ended = batch.terminated.flatten().float()
            loss = loss + F.binary_cross_entropy_with_logits(logit, ended, weight=valid.float())
        return loss, {"train_loss": float(fit.detach()) / self.members}

    def bootstrap(self, index: Tensor) -> Tensor:
        """How often each member's bootstrap sample holds a transition, [E, M]: fixed for its lifetime.

        Sampling with replacement is Poisson(1) counts in the limit of many transitions (Oza, Russell, 2001).
        """
        if self._bootstrap is None:
            generator = torch.Generator().manual_seed(int(self.seed))
            self._bootstrap = torch.poisson(torch.ones(self.members, _TABLE), generator=generator)
            if self.members == 1:
                self._bootstrap.fill_(1.0)
        return self._bootstrap[:, index % _TABLE]

    @torch.no_grad()
    def holdout(self, batch: Trajectory) -> Tensor:
        """Mean absolute error of each member on held-out data [E], in standard deviations of the deltas.

        Neither squared nor as a likelihood: an impact (a cart against its buffer) is rare and large, and
        would by itself decide when to stop. Of several components the one that explains an outcome counts.
        """
        obs, action, target = self.targets(batch)
        return self(obs, action).miss(target).nanmean((-1, -2))

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train on a buffer, warm from the weights of the last fit, until held-out data says stop."""
        self._folded = None
        self.renormalize(buffer.all())
        with torch.no_grad():  # in new units the bounds may be so low that a surprise counts as a catastrophe
            self.max_log_var.clamp_(min=MAX_LOG_VAR)
            self.min_log_var.clamp_(max=MIN_LOG_VAR)
        metrics = self._trainer.fit(buffer, budget, progress)
        self.holdout_errors.copy_(self._trainer.best_errors)
        return metrics

    @torch.no_grad()
    def renormalize(self, data: Trajectory) -> None:
        """Measure the normalisers anew, and change the weights so that the predictions stay the same.

        Before the first fit there are no predictions worth keeping.
        """
        old = [
            getattr(n, k).clone()
            for n in (self.input_normalizer, self.delta_normalizer)
            for k in ("mean", "std")
        ]
        obs, changes = data.obs["vector"], self.changes(data)
        self.input_normalizer.measure(torch.cat([obs[:, :-1], data.action], dim=-1).flatten(0, 1))
        self.delta_normalizer.measure(changes[changes.isfinite().all(-1)])
        if not self.holdout_errors.any():
            return
        mean, std = self.input_normalizer.mean, self.input_normalizer.std
        shift = (mean - old[0]) / old[1]
        self.biases[0] += torch.einsum("i,eio->eo", shift, self.weights[0]).unsqueeze(1)
        self.weights[0] *= (std / old[1])[:, None]
        ratio = old[3] / self.delta_normalizer.std
        log_ratio, many = 2 * torch.log(ratio), self.components
        shift = (old[2] - self.delta_normalizer.mean) / self.delta_normalizer.std
        means = slice(0, many * self.outputs)
        self.weights[-1][..., means] *= ratio.repeat(many)
        self.biases[-1][..., means] = self.biases[-1][..., means] * ratio.repeat(many) + shift.repeat(many)
        self.biases[-1][..., means.stop : 2 * means.stop] += log_ratio.repeat(many)
        self.max_log_var.add_(log_ratio)
        self.min_log_var.add_(log_ratio)

    def training_state(self) -> dict[str, Tensor]:
        """The optimiser's state, to go on with after a restart."""
        return self._trainer.state_dict()

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        self._trainer.load_state_dict(state)

    # Prediction ---------------------------------------------------------------------------------------------

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False):  # type: ignore[no-untyped-def]
        """Load weights and normalisers."""
        self._folded = None
        return super().load_state_dict(state, strict, assign)

    def observe(
        self,
        state: EnsembleState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> EnsembleState:
        """The observation is the state."""
        return EnsembleState(obs["vector"].float())

    def step(self, state: EnsembleState, action: Tensor, noise: Noise = None) -> Prediction:
        """One step of each state's own member; without one, of the members' mean.

        With `noise`, the outcome is drawn, and so is the member where the state names none.
        """
        shape, size = state.obs.shape[:-1], self.spec.observation_dim
        obs = state.obs.reshape(-1, size)
        action = action.reshape(len(obs), -1)
        inputs = torch.cat([obs, action], dim=-1)
        inputs, net = inputs.expand(self.elites, -1, -1), self._predictor()
        if noise is None:
            delta = centre = net.mean(inputs)
        else:
            centre, std, delta = net(inputs, noise)
        disagreement = (delta[..., :size].std(0, correction=0) / self.input_normalizer.std[:size]).mean(-1)
        member = None if state.member is None else state.member.reshape(-1)
        if member is None and noise is not None:
            member = integers(self.elites, (len(obs),), noise, obs.device)
        if member is None:
            change = delta.mean(0)
        else:
            rows = torch.arange(len(obs), device=obs.device)
            change = centre[member, rows]
            if noise is not None:
                drawn = normal(change.shape, noise, obs.device)
                change = change + std[member, rows] * drawn
        after = self.project(self.origin(obs, action) + change[:, :size]).reshape(*shape, size)
        return Prediction(
            EnsembleState(after, state.member),
            after,
            reward=change[:, size].reshape(shape) if self.config.rewards else None,
            alive=self.alive(after) if self.config.terminations else None,
            disagreement=disagreement.reshape(shape) if self.elites > 1 else None,
        )

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
        """Roll candidates [B, N, H, A] through the members; by default one particle a member.

        Reward is zero where it is not learned (see models/with_task.py).
        """
        if callable(actions) or torch.is_grad_enabled() or self.config.terminations:
            return imagine_by_steps(self, state, actions, particles or self.elites, horizon, noise, keep)
        return propagate(self._predictor(), self.config.propagation, state, actions, particles, noise, keep)

    def spread(self, state: EnsembleState, particles: int) -> EnsembleState:
        """The state [B, D] as particles [B, P, D]; with TS-infinity, each with the member that it keeps.

        Otherwise none is named, and `step` draws one if it has noise, or follows the members' mean.
        """
        member = None
        if self.config.propagation == "tsinf":
            member = torch.arange(particles).remainder(self.elites).expand(len(state.obs), -1)
        return EnsembleState(state.obs.unsqueeze(1).expand(-1, particles, -1), member)

    def _predictor(self) -> Predictor:
        """The predicting members with the normalisers folded in, made once a fit."""
        if torch.is_grad_enabled() and self.weights[0].requires_grad:  # a gradient must reach the weights
            return Predictor(self)
        if self._folded is None:
            with torch.inference_mode(False), torch.no_grad():  # gradients may flow through it later
                self._folded = Predictor(self)
        return self._folded

    def origin(self, obs: Tensor, action: Tensor) -> Tensor:
        """What a predicted change is added to [M, D]: the observation itself."""
        return obs

    def project(self, obs: Tensor) -> Tensor:
        """Put predicted (cos, sin) pairs back on the unit circle."""
        return project(obs, self.spec)

    def feature(self, state: EnsembleState) -> Tensor:
        """The observation in standard scores."""
        size = self.spec.observation_dim
        return (state.obs - self.input_normalizer.mean[:size]) / self.input_normalizer.std[:size]

    def decode(self, state: EnsembleState) -> Tensor:
        """The observation."""
        return state.obs


def _classifier(inputs: int, generator: torch.Generator) -> nn.Sequential:
    """A small network whose output is a logit."""
    first, last = nn.Linear(inputs, 64), nn.Linear(64, 1)
    for layer in (first, last):
        nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.SiLU(), last)
