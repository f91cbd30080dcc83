"""TD-MPC2's latent model (Hansen et al., 2024, https://arxiv.org/abs/2310.16828): it predicts what matters
for rewards and values, and never an observation.

Observations are encoded into simplices, so that latents do not explode and need no decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise, Policy
from mbrl_dynamics.models.heads import NormedMLP, TwoHot, symlog
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import Trainer
from mbrl_dynamics.types import Metrics, Prediction, Rollout, Trajectory

SIMPLEX = 8  # length of a simplex of the latent (TD-MPC2, table 8)


@config
class LatentDynamicsConfig:
    """Configuration of LatentDynamics."""

    latent: Annotated[
        int, Field(ge=SIMPLEX, multiple_of=SIMPLEX, description="length of the latent, a multiple of 8 [1]")
    ] = 64
    encoder: Annotated[tuple[int, ...], Field(description="units of the encoder's hidden layers [1]")] = (
        128,
    )
    hidden: Annotated[
        tuple[int, ...], Field(description="units of the hidden layers of dynamics and heads [1]")
    ] = (128, 128)
    bins: Annotated[int, Field(ge=2, description="bins of the discrete regression [1]")] = 101
    termination: Annotated[bool, Field(description="whether the end of an episode is learned")] = False
    horizon: Annotated[int, Field(ge=1, description="steps that are unrolled in training [steps]")] = 3
    discount: Annotated[float, Field(gt=0, le=1, description="weight of a training step later, rho [1]")] = (
        0.5
    )
    consistency: Annotated[float, Field(ge=0, description="weight of the latents' error [1]")] = 20.0
    reward: Annotated[float, Field(ge=0, description="weight of the rewards' cross-entropy [1]")] = 0.1
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's first step size [1]")] = 1e-3
    final_learning_rate: Annotated[
        float, Field(gt=0, description="AdamW's step size after the plateau [1]")
    ] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's decay [1]")] = 0.0
    batch_size: Annotated[int, Field(ge=1, description="slices a gradient step [1]")] = 128
    patience: Annotated[
        int, Field(ge=1, description="evaluations without progress on held-out data before stopping [1]")
    ] = 5


def simplices(x: Tensor) -> Tensor:
    """Simplicial normalisation [..., Z]: a softmax over each group of 8 elements (TD-MPC2, equation 5)."""
    return torch.softmax(x.unflatten(-1, (-1, SIMPLEX)), -1).flatten(-2)


class Simplicial(NormedMLP):
    """An MLP whose outputs are normalised, first to standard scores, then to simplices."""

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [..., I] to a latent [..., Z]."""
        out = super().forward(x)
        return simplices(F.layer_norm(out, out.shape[-1:]))


class LatentDynamics(nn.Module):
    """Encoder, latent dynamics, reward and, if wanted, termination; all functions of a single latent.

    The state is the latent [..., Z] of the newest observation. Trained alone, it is grounded by rewards only;
    the agent `tdmpc` trains it together with its values.

    Args:
        spec: the interface whose dynamics are learned.
        config: see LatentDynamicsConfig.
        seed: of weights and batches.
    """

    Config = LatentDynamicsConfig
    capabilities = Capabilities(differentiable=True, decodes=False, rewards=True)

    def __init__(self, spec: Spec, config: LatentDynamicsConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.config = spec, config or self.Config()
        c, inputs = self.config, self.config.latent + spec.inner_action_dim
        self.two_hot = TwoHot(bins=c.bins)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = Simplicial(spec.observation_dim, c.encoder, c.latent)
            self.dynamics = Simplicial(inputs, c.hidden, c.latent)
            self.reward_head = NormedMLP(inputs, c.hidden, c.bins, zero=True)
            self.end_head = NormedMLP(c.latent, c.hidden, 1, zero=True) if c.termination else None
        self._trainer = Trainer(self, c, seed, length=c.horizon)

    # Prediction ---------------------------------------------------------------------------------------------

    def encode(self, obs: Tensor) -> Tensor:
        """Latent [..., Z] of observations [..., D], SI, which are squashed by symlog."""
        return self.encoder(symlog(obs))

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        """Latent [..., Z] after an action [..., A]."""
        return self.dynamics(torch.cat([latent, action], -1))

    def reward_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        """Distribution [..., bins] of the reward for an action [..., A] in a latent [..., Z]."""
        return self.reward_head(torch.cat([latent, action], -1))

    def going_on(self, latent: Tensor) -> Tensor | None:
        """Probability [...] that the episode did not end with this latent; None where it cannot."""
        return None if self.end_head is None else torch.sigmoid(-self.end_head(latent).squeeze(-1))

    def observe(
        self,
        state: Tensor | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> Tensor:
        """The latent of the newest observation, whatever came before."""
        return self.encode(obs["vector"].float())

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        """The next latent and the reward; there is no noise."""
        after = self.next(state, action)
        reward = self.two_hot.decode(self.reward_logits(state, action))
        return Prediction(after, None, reward, self.going_on(after))

    def imagine(
        self,
        state: Tensor,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Step by step; for plans, the rewards of all steps come from one product a layer."""
        if callable(actions) or (particles or 1) > 1 or keep:
            return imagine_by_steps(self, state, actions, particles or 1, horizon, noise, keep)
        batch, candidates, steps, width = actions.shape
        plan = actions.permute(2, 0, 1, 3).reshape(steps, batch * candidates, width)
        path = [state.repeat_interleave(candidates, dim=0)]
        for action in plan:
            path.append(self.next(path[-1], action))
        latent = torch.stack(path)  # [H+1, B N, Z]
        reward = self.two_hot.decode(self.reward_logits(latent[:-1], plan))
        alive = torch.ones_like(reward)
        going = self.going_on(latent[1:-1])
        if going is not None:
            alive[1:] = going.cumprod(0)
        shape = (batch, candidates, 1)
        return Rollout(
            reward=(reward * alive).T.view(*shape, steps),
            alive=alive.T.reshape(*shape, steps),
            disagreement=None,
            last=latent[-1].view(*shape, -1),
        )

    def spread(self, state: Tensor, particles: int) -> Tensor:
        """The latent for each particle."""
        return state.unsqueeze(1).expand(-1, particles, -1)

    def feature(self, state: Tensor) -> Tensor:
        """The latent."""
        return state

    def decode(self, state: Tensor) -> None:
        """There is no decoder."""

    # Training -----------------------------------------------------------------------------------------------

    def unroll(self, batch: Trajectory) -> tuple[Tensor, Tensor]:
        """Latents as predicted from the first observation [T+1, B, Z], and as encoded from each later one
        [T, B, Z], without gradient.

        On the padding in front of short episodes time does not pass.
        """
        obs, action, valid = batch.obs["vector"], batch.action, batch.valid.unsqueeze(-1)
        with torch.no_grad():
            seen = self.encode(obs[:, 1:].transpose(0, 1))
        path = [self.encode(obs[:, 0])]
        for t in range(action.shape[1]):
            path.append(torch.where(valid[:, t], self.next(path[-1], action[:, t]), path[-1]))
        return torch.stack(path), seen

    def weights(self, batch: Trajectory) -> Tensor:
        """Weight rho^t / T of each step in a loss [T, B]; none on padding."""
        steps = batch.action.shape[1]
        decay = self.config.discount ** torch.arange(steps, device=batch.action.device)
        return decay[:, None] * batch.valid.T / steps

    def losses(self, path: Tensor, seen: Tensor, batch: Trajectory) -> dict[str, Tensor]:
        """Consistency, reward and, if it is learned, termination (TD-MPC2, equation 3), already weighted."""
        c, weight = self.config, self.weights(batch)
        error = (path[1:] - seen).square().mean(-1)
        logits = self.reward_logits(path[:-1], batch.action.transpose(0, 1))
        known = batch.reward.T.isfinite()
        reward = self.two_hot.loss(logits, torch.where(known, batch.reward.T, 0.0))
        losses = {
            "consistency_loss": c.consistency * (weight * error).sum(0).mean(),
            "reward_loss": c.reward * (weight * known * reward).sum(0).mean(),
        }
        if self.end_head is not None:
            ended = batch.terminated.T.float()
            miss = F.binary_cross_entropy_with_logits(
                self.end_head(path[1:]).squeeze(-1), ended, reduction="none"
            )
            losses["termination_loss"] = (batch.valid.T * miss).mean()
        return losses

    def loss(self, batch: Trajectory) -> tuple[Tensor, Metrics]:
        """What is minimised when the model is trained alone."""
        loss = torch.stack(list(self.losses(*self.unroll(batch), batch).values())).sum()
        return loss, {"train_loss": float(loss.detach())}

    @torch.no_grad()
    def holdout(self, batch: Trajectory) -> Tensor:
        """Mean absolute error [1] of next latents, rewards and ends, each in mean absolute deviations."""
        weight = (batch.valid.T * batch.reward.T.isfinite()).unsqueeze(-1)
        path, seen = self.unroll(batch)
        reward = self.two_hot.decode(self.reward_logits(path[:-1], batch.action.transpose(0, 1)))
        pairs = [(path[1:], seen), (reward[..., None], batch.reward.T.nan_to_num()[..., None])]
        going = self.going_on(path[1:])
        if going is not None:
            pairs.append((going[..., None], 1.0 - batch.terminated.T[..., None].float()))
        return torch.stack([_relative(guess, truth, weight) for guess, truth in pairs]).mean(0)

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train on a buffer, warm from the weights of the last fit, until held-out data says stop.

        Raises:
            ValueError: the buffer is empty, or no reward in it is known.
        """
        if len(buffer) and not buffer.all().reward.isfinite().any():
            raise ValueError("the model 'tdmpc' learns from rewards, but the data hold none")
        return self._trainer.fit(buffer, budget, progress)

    def training_state(self) -> dict[str, Tensor]:
        """The optimiser's state, to go on with after a restart."""
        return self._trainer.state_dict()

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `training_state`."""
        self._trainer.load_state_dict(state)


def _relative(guess: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Mean error [1] of guesses [T, B, K] over the mean deviation of the truth, both absolute.

    A truth that hardly varies counts as if it varied by a tenth of itself.
    """
    count = weight.sum().clamp(min=1)

    def mean(x: Tensor) -> Tensor:
        return (x * weight).sum((0, 1)) / count

    deviation = mean((truth - mean(truth)).abs()).mean()
    floor = 0.1 * mean(truth.abs()).mean() + 1e-6
    return (mean((guess - truth).abs()).mean() / deviation.clamp(min=float(floor))).reshape(1)
