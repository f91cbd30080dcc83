"""DreamerV3's world model (Hafner et al., 2023, https://arxiv.org/abs/2301.04104) behind the Model protocol,
so that a planner can plan in it, `dynamics_node` can train it, and the agent `dreamer` can dream in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise, Policy
from mbrl_dynamics.models.heads import ExponentialTwoHot, NormedMLP, symexp, symlog
from mbrl_dynamics.models.holdout import mean_over, relative, thin
from mbrl_dynamics.models.image import ImageDecoder, ImageEncoder, as_uint8, image_loss
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.models.recurrent import RecurrentCore, RSSMState, balanced_kl, draw, exponential
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import Trainer
from mbrl_dynamics.types import Metrics, Prediction, Rollout, Trajectory

_JUDGED = 128  # held-out slices that are looked at


@config
class RSSMConfig:
    """Configuration of RSSM."""

    deter: Annotated[int, Field(ge=1, description="length of the recurrent memory [1]")] = 128
    hidden: Annotated[int, Field(ge=1, description="units of every hidden layer [1]")] = 128
    layers: Annotated[int, Field(ge=1, description="hidden layers of encoder and decoder [1]")] = 2
    head_layers: Annotated[int, Field(ge=0, description="hidden layers of reward and continuation [1]")] = 1
    groups: Annotated[int, Field(ge=1, description="categorical variables of the latent [1]")] = 16
    classes: Annotated[int, Field(ge=2, description="classes of each categorical variable [1]")] = 8
    unimix: Annotated[float, Field(ge=0, lt=1, description="uniform share of prior and posterior [1]")] = 0.01
    image_depth: Annotated[int, Field(ge=1, description="channels after the first convolution [1]")] = 16
    bins: Annotated[int, Field(ge=3, description="bins of the discrete regression [1]")] = 101
    standardise: Annotated[
        bool, Field(description="whether observations become standard scores of the first data before symlog")
    ] = True
    objective: Annotated[
        Literal["decoder", "inverse"],
        Field(description="what grounds the latent: observations decoded, or actions told from effects"),
    ] = "decoder"
    vector_weight: Annotated[float, Field(ge=0, description="weight of the decoded vector's error [1]")] = 1.0
    dynamics_weight: Annotated[float, Field(ge=0, description="weight of the prior's KL [1]")] = 1.0
    representation_weight: Annotated[float, Field(ge=0, description="weight of the posterior's KL [1]")] = 0.1
    free_nats: Annotated[float, Field(ge=0, description="KL that costs nothing, over all groups [nat]")] = 1.0
    length: Annotated[int, Field(ge=2, description="length of the slices learned from [steps]")] = 32
    batch_size: Annotated[int, Field(ge=1, description="slices a gradient step [1]")] = 16
    learning_rate: Annotated[float, Field(gt=0, description="Adam's (first) step size [1]")] = 6e-4
    final_learning_rate: Annotated[
        float,
        Field(gt=0, description="Adam's step size after the plateau, if fitted alone [1]"),
    ] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's decay, likewise [1]")] = 0.0
    patience: Annotated[
        int, Field(ge=1, description="evaluations without progress on held-out data before stopping [1]")
    ] = 5


class RSSM(nn.Module):
    """Recurrent state-space model: encoder, core, reward, continuation, and decoder or inverse dynamics.

    Without noise, the filter takes the likeliest latent, and prediction the mean one. What is decoded is a
    reconstruction, so that an observation is only nearly what was observed.

    Args:
        spec: the interface whose dynamics are learned; its cameras are seen too.
        config: see RSSMConfig.
        seed: of weights and batches.

    Raises:
        UserError: images have a size that does not fit.
    """

    Config = RSSMConfig
    capabilities = Capabilities(differentiable=True, stochastic=True, recurrent=True, rewards=True)
    measured: Tensor

    def __init__(self, spec: Spec, config: RSSMConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.config = spec, config or self.Config()
        c = self.config
        self.decodes = c.objective == "decoder"
        self.capabilities = replace(RSSM.capabilities, decodes=self.decodes)
        self.two_hot = ExponentialTwoHot(bins=c.bins)
        self.features = c.deter + c.groups * c.classes  # Z
        self.normalizer = Normalizer(spec.observation_dim)
        self.register_buffer("measured", torch.tensor(False))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build()
        self._trainer = Trainer(self, c, seed, length=c.length)
        self._noise = torch.Generator().manual_seed(seed + 1)

    def _build(self) -> None:
        c, size = self.config, self.spec.observation_dim
        wide, head = (c.hidden,) * c.layers, (c.hidden,) * c.head_layers
        self.vector_encoder = NormedMLP(size, wide[:-1], c.hidden) if size else None
        eyes = {k.name: ImageEncoder(k, c.image_depth) for k in self.spec.cameras}
        self.image_encoders = nn.ModuleDict(eyes)
        embedding = c.hidden * bool(size) + sum(eye.size for eye in eyes.values())
        self.core = RecurrentCore(
            embedding,
            self.spec.inner_action_dim,
            deter=c.deter,
            hidden=c.hidden,
            groups=c.groups,
            classes=c.classes,
            unimix=c.unimix,
        )
        self.reward_head = NormedMLP(self.features, head, c.bins, zero=True)
        self.continue_head = NormedMLP(self.features, head, 1, zero=True)
        if self.decodes:
            self.vector_decoder = NormedMLP(self.features, wide, size)
            self.image_decoders = nn.ModuleDict(
                {k.name: ImageDecoder(k, c.image_depth, self.features) for k in self.spec.cameras}
            )
        else:
            self.inverse = NormedMLP(self.features + embedding, wide, self.spec.inner_action_dim)

    # Prediction ---------------------------------------------------------------------------------------------

    def embed(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Embedding [..., E] of observations, name -> [..., ...]."""
        parts = [encoder(obs[name]) for name, encoder in self.image_encoders.items()]
        if self.vector_encoder is not None:
            parts.append(F.silu(self.vector_encoder(self.squash(obs["vector"].float()))))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def squash(self, obs: Tensor) -> Tensor:
        """Observations [..., D], SI, as the networks see them."""
        return symlog(self.normalizer(obs))

    def observe(
        self,
        state: RSSMState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> RSSMState:
        """Filter one real step: the likeliest posterior latent."""
        embedding = self.embed(obs)
        batch = embedding.shape[0]
        if state is None or action is None:
            state, action = (
                self.core.initial((batch,)),
                embedding.new_zeros(batch, self.spec.inner_action_dim),
            )
        elif first is not None:
            keep = (~first).unsqueeze(-1).to(embedding.dtype)
            state, action = RSSMState(state.deter * keep, state.stoch * keep), action * keep
        return self.core.see(state, action, embedding, None)

    def advance(self, state: RSSMState, action: Tensor, noise: Noise = None) -> RSSMState:
        """The next state after actions [..., A], without looking at rewards or observations."""
        core = self.core
        deter = core.remember(state, core.action_in(action))
        log_prob = core.prior(deter)
        if noise is None:
            return RSSMState(deter, log_prob.exp().flatten(-2))
        return RSSMState(
            deter, draw(log_prob, exponential(tuple(log_prob.shape), noise, deter.device)).flatten(-2)
        )

    def step(self, state: RSSMState, action: Tensor, noise: Noise = None) -> Prediction:
        """Predict one step with the mean latent; with noise, it is drawn."""
        after = self.advance(state, action, noise)
        feature = self.feature(after)
        return Prediction(after, self.decode(after), self.reward(feature), self.going_on(feature))

    def reward(self, feature: Tensor) -> Tensor:
        """Expected reward [...] on arriving in a state with features [..., Z]."""
        return self.two_hot.decode(self.reward_head(feature))

    def going_on(self, feature: Tensor) -> Tensor:
        """Probability [...] that the episode did not end on arriving."""
        return torch.sigmoid(self.continue_head(feature).squeeze(-1))

    def imagine(
        self,
        state: RSSMState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Step by step; for plans, the rewards of all steps come from one product a layer."""
        if callable(actions) or keep:
            return imagine_by_steps(self, state, actions, particles or 1, horizon, noise, keep)
        count = actions.shape[1], particles or 1
        state, path = self.spread(state, count[0] * count[1]), []
        for t in range(actions.shape[2]):
            state = self.advance(state, actions[:, :, t].repeat_interleave(count[1], dim=1), noise)
            path.append(self.feature(state))
        feature = torch.stack(path, 2)  # [B, N P, H, Z]
        alive = torch.ones(feature.shape[:-1], device=feature.device)
        alive = torch.cat([alive[..., :1], self.going_on(feature)[..., :-1].cumprod(-1)], -1)
        return Rollout(
            reward=(self.reward(feature) * alive).unflatten(1, count),
            alive=alive.unflatten(1, count),
            disagreement=None,
            last=RSSMState(state.deter.unflatten(1, count), state.stoch.unflatten(1, count)),
        )

    def spread(self, state: RSSMState, particles: int) -> RSSMState:
        """The state for each particle."""
        deter, stoch = (x.unsqueeze(1).expand(-1, particles, *x.shape[1:]) for x in state)
        return RSSMState(deter, stoch)

    def feature(self, state: RSSMState) -> Tensor:
        """Memory and latent, [..., Z]."""
        return torch.cat(state, -1)

    def decode(self, state: RSSMState) -> Tensor | None:
        """The observation [..., D] as reconstructed, SI; None without a decoder."""
        return self.vector(self.feature(state)) if self.decodes else None

    def vector(self, feature: Tensor) -> Tensor:
        """The vector observation [..., D] of features [..., Z]."""
        n = self.normalizer
        return symexp(self.vector_decoder(feature)) * n.std + n.mean

    def images(self, state: RSSMState) -> dict[str, Tensor]:
        """Camera -> image as reconstructed, uint8 [..., height, width, 3]; empty without a decoder."""
        if not self.decodes:
            return {}
        feature = self.feature(state)
        return {name: as_uint8(decoder(feature)) for name, decoder in self.image_decoders.items()}

    # Training -----------------------------------------------------------------------------------------------

    def begin(self, buffer: ReplayBuffer) -> None:
        """Measure the observations, once and for all, before the first gradient step."""
        if self.config.standardise and not self.measured:
            self.normalizer.measure(buffer.all().obs["vector"][:, 0].to(self.normalizer.mean.device))
            self.measured.fill_(True)

    def filter(self, batch: Trajectory, noise: Noise) -> tuple[RSSMState, Tensor, Tensor]:
        """Posterior states of a batch [T+1, B, ...], their log probabilities, and embeddings [T+1, B, E]."""
        embedding = self.embed({name: x.transpose(0, 1) for name, x in batch.obs.items()})
        action, first = batch.action.transpose(0, 1), batch.first.T
        action = torch.cat([torch.zeros_like(action[:1]), action])
        first = torch.cat([first, torch.zeros_like(first[:1])])
        shape = (*first.shape, self.core.groups, self.core.classes)
        draws = None if noise is None else exponential(shape, noise, embedding.device)
        return *self.core.filter(embedding, action, first, draws), embedding

    def losses(self, batch: Trajectory, noise: Noise) -> tuple[dict[str, Tensor], RSSMState]:
        """All losses (DreamerV3, equations 2 and 3), weighted and averaged over what is no padding, and the
        posterior states [T+1, B, ...]. `used` says which of them are no padding.
        """
        c, used = self.config, self.used(batch)
        state, posterior, embedding = self.filter(batch, noise)
        feature = self.feature(state)
        dynamics, representation = balanced_kl(posterior, self.core.prior(state.deter), c.free_nats)
        losses = {
            "kl_loss": mean_over(
                c.dynamics_weight * dynamics + c.representation_weight * representation, used
            )
        }
        came = batch.valid.T
        known = came & batch.reward.T.isfinite()
        reward = self.two_hot.loss(self.reward_head(feature[1:]), batch.reward.T.nan_to_num())
        going = self.continue_head(feature[1:]).squeeze(-1)
        ended = F.binary_cross_entropy_with_logits(going, 1.0 - batch.terminated.T.float(), reduction="none")
        losses |= {"reward_loss": mean_over(reward, known), "continue_loss": mean_over(ended, came)}
        if self.decodes:
            losses |= self._decoding(feature, batch, used)
        else:
            losses["inverse_loss"] = mean_over(self._inversion(feature, embedding, batch), came)
        return losses, state

    def used(self, batch: Trajectory) -> Tensor:
        """Which observations [T+1, B] of a batch are no padding."""
        came = batch.valid.T
        return torch.cat([came, torch.ones_like(came[:1])])

    def _decoding(self, feature: Tensor, batch: Trajectory, used: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.spec.observation_dim:
            target = self.squash(batch.obs["vector"].transpose(0, 1).float())
            error = (self.vector_decoder(feature) - target).square().sum(-1)
            losses["vector_loss"] = self.config.vector_weight * mean_over(error, used)
        for name, decoder in self.image_decoders.items():
            losses[f"{name}_loss"] = mean_over(
                image_loss(decoder(feature), batch.obs[name].transpose(0, 1)), used
            )
        return losses

    def _inversion(self, feature: Tensor, embedding: Tensor, batch: Trajectory) -> Tensor:
        """How badly the action is told [T, B] from the state before it and what was seen after it.

        The state after it would give it away: its memory has heard the action.
        """
        guess, action = (
            self.inverse(torch.cat([feature[:-1], embedding[1:]], -1)),
            batch.action.transpose(0, 1),
        )
        if self.spec.discrete:
            return torch.logsumexp(guess, -1) - (guess * action).sum(-1)
        return (guess - action).square().sum(-1)

    def loss(self, batch: Trajectory) -> tuple[Tensor, Metrics]:
        """What is minimised when the model is trained alone."""
        loss = torch.stack(list(self.losses(batch, self._noise)[0].values())).sum()
        return loss, {"train_loss": float(loss.detach())}

    @torch.no_grad()
    def holdout(self, batch: Trajectory) -> Tensor:
        """Mean absolute error [1] of one-step predictions, in standard deviations of the deltas, over the
        later half of held-out slices, where the filter knows where it is.

        Without a decoder: of rewards and inverted actions, in standard deviations of these.
        """
        batch = thin(batch, _JUDGED)
        state, _, embedding = self.filter(batch, None)
        weight = batch.valid.T.clone()
        weight[: len(weight) // 2] = False
        obs = batch.obs["vector"].transpose(0, 1).float()
        if self.decodes:
            prior = RSSMState(state.deter, self.core.prior(state.deter).exp().flatten(-2))
            guess = self.vector(self.feature(prior))[1:]
            change = (obs[1:] - obs[:-1])[weight]
            return relative((guess - obs[1:])[weight], change)
        feature = self.feature(state)
        known = weight & batch.reward.T.isfinite()
        reward = batch.reward.T[known].unsqueeze(-1)
        missed = self._inversion(feature, embedding, batch)[weight].sqrt().unsqueeze(-1)
        error = relative(missed, batch.action.transpose(0, 1)[weight].norm(dim=-1, keepdim=True))
        if not len(reward):
            return error
        return 0.5 * (error + relative(self.reward(feature[1:])[known].unsqueeze(-1) - reward, reward))

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train on a buffer, warm from the weights of the last fit, until held-out data says stop.

        Raises:
            ValueError: the buffer is empty.
        """
        if len(buffer):
            self.begin(buffer)
        return self._trainer.fit(buffer, budget, progress)

    def training_state(self) -> dict[str, Tensor]:
        """Optimiser and random numbers, to go on with after a restart."""
        return {**self._trainer.state_dict(), "noise": self._noise.get_state()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        self._trainer.load_state_dict(state)
        self._noise.set_state(state["noise"])
