"""Latent state-space models: autoencoder or variational autoencoder over time, with three encoders.

The stochastic kind maximises the evidence lower bound of deep Kalman filters and PlaNet (Krishnan et al.,
2017, https://arxiv.org/abs/1609.09869; Hafner et al., 2019, https://arxiv.org/abs/1811.04551, equation 3)::

    sum over t of  E_q[log p(o_t | z_t)] - E_q[KL(q(z_t | z_t-1, ...) || p(z_t | z_t-1, a_t-1))]

The deterministic kind has no spread, and is grounded by what it decodes from its predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise, Policy
from mbrl_dynamics.models.gaussian import Gaussian, active_units, free_kl, kl, nll, normal, standard, warm_up
from mbrl_dynamics.models.holdout import mean_over, relative, thin
from mbrl_dynamics.models.image import as_uint8
from mbrl_dynamics.models.state_space import LatentConfig, StateSpace, begins
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import Trainer, is_held_out
from mbrl_dynamics.types import Metrics, Prediction, Rollout, Trajectory

_log = logging.getLogger(__name__)
_MEASURED = 2000  # steps that normalisers are measured on, at most
_JUDGED = 128  # slices that are looked at


class LatentState(NamedTuple):
    """What is believed; leading dimensions [B] or any others."""

    mean: Tensor  # [..., Z]
    std: Tensor  # [..., Z]; zero where the latent is imagined, or the model deterministic


class Latent(StateSpace):
    """A latent state-space model behind the Model protocol.

    What is decoded is a reconstruction: an observation is only nearly what was observed, and without its
    noise. With noise, the latent believed in, its transitions and the sensor's noise are all drawn. A
    smoother is for training; a filter that learns to believe the same from the past alone acts for it.

    Args:
        spec: the interface whose dynamics are learned; its cameras are seen too.
        config: see LatentConfig.
        seed: of weights, batches and draws.

    Raises:
        UserError: there is nothing to see, images have a size that does not fit, or settings contradict
            each other.
    """

    Config = LatentConfig
    capabilities = Capabilities(differentiable=True, stochastic=True, recurrent=True)
    trained: Tensor

    def __init__(self, spec: Spec, config: LatentConfig | None = None, *, seed: int = 0) -> None:
        super().__init__(spec, config or self.Config(), seed)
        c = self.config
        self.capabilities = replace(Latent.capabilities, stochastic=self.stochastic, rewards=c.rewards)
        self.register_buffer("trained", torch.tensor(0))  # gradient steps so far
        self._trainer = Trainer(self, c, seed, length=c.length)
        self._noise = torch.Generator().manual_seed(seed + 1)

    # Prediction ---------------------------------------------------------------------------------------------

    def observe(
        self,
        state: LatentState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> LatentState:
        """Filter one real step; nothing that comes later is known."""
        seen = self.embed(obs)
        expected = standard(seen.new_zeros(len(seen), self.config.latent))
        if state is not None and action is not None:
            after = self.expect(Gaussian(*state), action)
            expected = after if first is None else expected.where(first, after)
        return LatentState(*self.acting(expected, seen))

    def step(self, state: LatentState, action: Tensor, noise: Noise = None) -> Prediction:
        """Predict one step along the means; with noise, all that is uncertain is drawn."""
        before = self._drawn(Gaussian(*state), noise)
        after = self._drawn(self.transition(before, action), noise)
        return Prediction(
            LatentState(after, torch.zeros_like(after)),
            self.vector(after, noise),
            self.reward(before, action, after),
            self.going_on(after),
        )

    def _drawn(self, belief: Gaussian, noise: Noise) -> Tensor:
        return belief.draw(normal(belief.mean, noise if self.stochastic else None))

    def imagine(
        self,
        state: LatentState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Latents step by step; for plans, all that is told of them comes from one product a layer."""
        if callable(actions):
            return imagine_by_steps(self, state, actions, particles or 1, horizon, noise, keep)
        count = actions.shape[1], particles or 1
        action = actions.repeat_interleave(count[1], dim=1)  # [B, N P, H, A]
        state = self.spread(state, count[0] * count[1])
        path = [self._drawn(Gaussian(*state), noise)]
        for t in range(action.shape[2]):
            path.append(self._drawn(self.transition(path[-1], action[:, :, t]), noise))
        latent = torch.stack(path, 2)  # [B, N P, H+1, Z]
        before, after = latent[:, :, :-1], latent[:, :, 1:]
        reward, going = self.reward(before, action, after), self.going_on(after)
        alive = torch.ones_like(after[..., 0])
        if going is not None:
            alive = torch.cat([alive[..., :1], going[..., :-1].cumprod(-1)], -1)
        obs = None
        if "obs" in keep:
            obs = torch.cat([self.decode(state).unsqueeze(2), self.vector(after, noise)], 2)
        last = path[-1].unflatten(1, count)
        return Rollout(
            reward=(torch.zeros_like(alive) if reward is None else reward * alive).unflatten(1, count),
            alive=alive.unflatten(1, count),
            disagreement=None,
            last=LatentState(last, torch.zeros_like(last)),
            obs=None if obs is None else obs.unflatten(1, count),
            action=action.unflatten(1, count) if "action" in keep else None,
        )

    def spread(self, state: LatentState, particles: int) -> LatentState:
        """The state for each particle."""
        return LatentState(*(x.unsqueeze(1).expand(-1, particles, -1) for x in state))

    def feature(self, state: LatentState) -> Tensor:
        """The mean of the latent."""
        return state.mean

    def decode(self, state: LatentState) -> Tensor:
        """The observation [..., D] as reconstructed, SI."""
        return self.vector(state.mean)

    def images(self, state: LatentState) -> dict[str, Tensor]:
        """Camera -> image as reconstructed, uint8 [..., height, width, 3]."""
        return {name: as_uint8(decoder(state.mean)) for name, decoder in self.image_decoders.items()}

    # Training -----------------------------------------------------------------------------------------------

    def losses(self, batch: Trajectory, noise: Noise) -> dict[str, Tensor]:
        """All that is minimised, weighted and averaged over what is neither padding nor held out."""
        c, learned, path = self.config, _learned(batch), self.path(batch, noise)
        used = begins(batch) | torch.cat([torch.zeros_like(learned[:1]), learned])
        obs = {name: x.transpose(0, 1) for name, x in batch.obs.items()}
        losses = self._decoding("now", path.latent, obs, used)
        before, after, action = path.latent[:-1], path.latent[1:], batch.action.transpose(0, 1)
        losses |= self._rewarding("now", before, after, action, batch.reward.T, learned)
        losses |= self._foretelling(path.latent, action, batch, obs, learned)
        if self.stochastic:
            weight = c.kl_weight * warm_up(int(self.trained), c.warm_up)
            losses["kl_loss"] = weight * mean_over(free_kl(path.belief, path.expected, c.free_nats), used)
        if self.substitute is not None:
            losses["filter_loss"] = mean_over(self._unlike(path.latent.detach(), self.filtered(batch)), used)
        if self.end_head is not None:
            logit, ended = self.end_head(after).squeeze(-1), batch.terminated.T.float()
            missed = F.binary_cross_entropy_with_logits(logit, ended, reduction="none")
            losses["end_loss"] = mean_over(missed, learned)
        return losses

    def _unlike(self, latent: Tensor, belief: Gaussian) -> Tensor:
        """How badly what is believed from the past alone fits a latent of the smoother's [T+1, B]: least for
        the mean, and the spread, of all that the smoother may come to say.
        """
        return nll(latent, belief) if self.stochastic else (latent - belief.mean).square().sum(-1)

    def _decoding(
        self, when: str, latent: Tensor, obs: Mapping[str, Tensor], used: Tensor
    ) -> dict[str, Tensor]:
        """How badly observations, name -> [T, B, ...], are decoded from latents [T, B, Z] that saw them
        ("now") or were foretold ("ahead").
        """
        losses = {}
        if self.decoder is not None and "vector" in obs:
            error = self.decoder(latent) - self.normalizer(obs["vector"].float())
            losses[f"vector_{when}"] = self._missed("vector", when).nll(error, used)
        for name, decoder in self.image_decoders.items():
            if name in obs:
                error = (decoder(latent) - obs[name].float() / 255.0).flatten(-3).unsqueeze(-1)
                every = used.unsqueeze(-1).expand(error.shape[:-1])
                missed = self._missed(f"{name}_image", when).nll(error, every)
                losses[f"{name}_{when}"] = error.shape[-2] * missed
        return losses

    def _rewarding(
        self, when: str, before: Tensor, after: Tensor, action: Tensor, reward: Tensor, used: Tensor
    ) -> dict[str, Tensor]:
        """How badly rewards [T, B] of actions [T, B, A] are told from the latents [T, B, Z] around them."""
        if self.reward_head is None:
            return {}
        told = self.reward_head(torch.cat([before, action, after], -1))
        error = told - self.reward_normalizer(reward.nan_to_num().unsqueeze(-1))
        return {f"reward_{when}": self._missed("reward", when).nll(error, used & reward.isfinite())}

    def _foretelling(
        self,
        latent: Tensor,
        action: Tensor,
        batch: Trajectory,
        obs: Mapping[str, Tensor],
        learned: Tensor,
    ) -> dict[str, Tensor]:
        """The same for what is foretold 1, 2 ... `unroll` steps ahead along the means; of the images some,
        for their decoder takes long.
        """
        path, steps = latent[:-1], []
        most = min(self.config.unroll, len(action))
        for ahead in range(most):
            before, path = path, self.transition(path, action[ahead:]).mean
            steps.append((before, path))
            path = path[:-1]
        if not steps:
            return {}
        before, after = (torch.cat(x) for x in zip(*steps, strict=True))
        rows = torch.cat([torch.arange(ahead, len(action)) for ahead in range(most)])
        starts = torch.cat([torch.arange(len(action) - ahead) for ahead in range(most)])
        used = learned[rows] & batch.valid.T[starts]
        losses = self._rewarding("ahead", before, after, action[rows], batch.reward.T[rows], used)
        losses |= self._decoding("ahead", after, {"vector": obs["vector"][1:][rows]}, used)
        images = {name: obs[name][1:][rows[::most]] for name in self.image_decoders}
        return losses | self._decoding("ahead", after[::most], images, used[::most])

    def _missed(self, name: str, when: str) -> Any:
        """Without spread both count alike: else all that was seen would be told, down to its noise."""
        return self.missed[f"{name}_{when if self.stochastic else 'ahead'}"]

    def loss(self, batch: Trajectory) -> tuple[Tensor, Metrics]:
        """What is minimised; each call counts as a gradient step of the KL's warm-up."""
        loss = torch.stack(list(self.losses(batch, self._noise).values())).sum()
        self.trained += 1
        return loss, {"train_loss": float(loss.detach())}

    @torch.no_grad()
    def holdout(self, batch: Trajectory) -> Tensor:
        """Mean absolute error [1] of one-step predictions, in standard deviations of what changes, on the
        held-out steps in the later half of slices, where the encoder that acts knows where it is.

        Rewards, where they are learned, count as one more element. Without a vector it is that of the images.
        """
        batch = thin(batch, _JUDGED)
        used, action, before = _judged(batch), batch.action.transpose(0, 1), self.filtered(batch).mean[:-1]
        after = self.transition(before, action).mean
        told = {name: decoder(after) for name, decoder in self.image_decoders.items()}
        size, errors = self.spec.observation_dim, []
        if size:
            told = {"vector": self.vector(after)}
        for name, guess in told.items():
            seen = batch.obs[name].transpose(0, 1).float() / (1.0 if size else 255.0)
            missed, change = ((x)[used].flatten(1) for x in (guess - seen[1:], seen[1:] - seen[:-1]))
            shape = (-1, size or 1)  # all pixels are alike
            errors += [relative(missed.reshape(shape), change.reshape(shape))] * (size or 1)
        known = used & batch.reward.T.isfinite()
        reward = self.reward(before, action, after)
        if reward is not None and known.any():
            truth = batch.reward.T[known].unsqueeze(-1)
            errors.append(relative(reward[known].unsqueeze(-1) - truth, truth))
        return torch.stack(errors).mean(0)

    @torch.no_grad()
    def usage(self, batch: Trajectory) -> Metrics:
        """How much of the latent is used on a batch: "active_units", and "kl" of a stochastic one, of what is
        believed in training from what was expected [nat a step].
        """
        came = batch.valid.T
        used = torch.cat([came, torch.ones_like(came[:1])])
        swapped = {name: x.roll(1, 0) for name, x in batch.obs.items()}  # the same actions, seen otherwise
        means = (self.path(x, None).belief.mean[used] for x in (batch, replace(batch, obs=swapped)))
        metrics = {"active_units": float(active_units(*means))}
        if self.stochastic:
            path = self.path(batch, torch.Generator().manual_seed(0))
            metrics["kl"] = float(mean_over(kl(path.belief, path.expected), used))
        return metrics

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train on a buffer, warm from the weights of the last fit, until held-out data says stop.

        Slices that would reach back beyond the beginning of their episode are padded, so that episodes may be
        shorter than `length`. What is held out is seen on the way, but nothing learns to tell it.

        Args:
            progress: also told how much of the latent is used, see `usage`.

        Returns:
            As the trainer does; beside it what `usage` says. A latent that tells nothing apart is logged.

        Raises:
            ValueError: the buffer is empty, or rewards are to be learned and none in it is known.
        """
        if not len(buffer):
            raise ValueError("there is nothing to train on: the replay buffer is empty")
        self.renormalize(buffer.slices(_some(len(buffer), _MEASURED)))
        sample = buffer.slices(_some(len(buffer), _JUDGED), self.config.length)

        def tell(metrics: Metrics) -> None:
            if progress is not None:
                progress(metrics | self.usage(sample))

        metrics = self._trainer.fit(buffer, budget, tell) | self.usage(sample)
        if self.stochastic and not metrics["active_units"]:
            _log.warning(
                "none of the %d units of the latent tells observations apart: it has collapsed; lower "
                "kl_weight, or raise warm_up or free_nats",
                self.config.latent,
            )
        return metrics

    @torch.no_grad()
    def renormalize(self, data: Trajectory) -> None:
        """Measure the normalisers on a batch of single steps, and change the weights so that beliefs and
        predictions stay the same; before the first fit there are none worth keeping.
        """
        measured = [(self.normalizer, self.rescale_vector, data.obs["vector"][:, 0])]
        if self.reward_head is not None:
            known = data.reward[data.reward.isfinite()].unsqueeze(-1)
            if not len(known):
                raise ValueError("the model 'latent' is to learn rewards, but the data hold none")
            measured.append((self.reward_normalizer, self.rescale_reward, known))
        for normalizer, rescale, values in measured:
            mean, std = normalizer.mean.clone(), normalizer.std.clone()
            normalizer.measure(values.to(mean.device))
            if self.trained:
                rescale((normalizer.mean - mean) / std, normalizer.std / std)

    def training_state(self) -> dict[str, Tensor]:
        """Optimiser and random numbers, to go on with after a restart."""
        return {**self._trainer.state_dict(), "noise": self._noise.get_state()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        self._trainer.load_state_dict(state)
        self._noise.set_state(state["noise"])


def _learned(batch: Trajectory) -> Tensor:
    """Steps of a batch to learn from, bool [T, B]: neither padding nor held out."""
    held_out = torch.from_numpy(is_held_out(batch.extras["index"].cpu().numpy()))
    return batch.valid.T & ~held_out.T.to(batch.valid.device)


def _judged(batch: Trajectory) -> Tensor:
    """Steps of held-out slices that tell an error, bool [T, B]: none that was learned from, if possible."""
    late = batch.valid.T.clone()
    late[: len(late) // 2] = False
    unseen = late & ~_learned(batch)
    return unseen if unseen.any() else late


def _some(total: int, count: int) -> Any:
    """At most so many of the positions 0 .. total - 1, spread evenly."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(np.int64))
