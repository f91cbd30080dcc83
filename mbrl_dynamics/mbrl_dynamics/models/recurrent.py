"""The recurrent core of world models: DreamerV3's RSSM (Hafner et al., 2023, https://arxiv.org/abs/2301.04104).

A state is deterministic memory h and a latent z of G categorical variables with K classes each::

    h' = GRU(h, z, action)        z' ~ prior(h')  where imagined,  z' ~ posterior(h', embedding)  where seen
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics import draws
from mbrl_dynamics.models.heads import NormedMLP


class RSSMState(NamedTuple):
    """What is believed; leading dimensions [B] or any others."""

    deter: Tensor  # [..., M] memory
    stoch: Tensor  # [..., G K] latent, one-hot in each group


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """Log probabilities of softmax(logits) mixed with a uniform share, so that a KL stays finite (section
    "Robust predictions"); logits [..., K].
    """
    if not unimix:
        return torch.log_softmax(logits, -1)
    return torch.log((1.0 - unimix) * torch.softmax(logits, -1) + unimix / logits.shape[-1])


def exponential(shape: tuple[int, ...], noise: torch.Generator | None, device: torch.device) -> Tensor:
    """Noise for `draw`: the class with the largest p / noise is a draw from p (the exponential race)."""
    at = device if noise is None else noise.device
    uniform = draws.uniform(shape, noise, at, after=2)  # several times faster than exponential_
    return uniform.neg_().log1p_().neg_().to(device)


def draw(log_prob: Tensor, noise: Tensor | None) -> Tensor:
    """One-hot draws [..., K] from log probabilities [..., K]; `noise` None = the likeliest class.

    The gradient is that of the probabilities: straight-through (Bengio et al., 2013).
    """
    prob = log_prob.detach().exp() if not log_prob.requires_grad else log_prob.exp()
    race = prob.detach() if noise is None else prob.detach() / noise
    hot = torch.zeros_like(race).scatter_(-1, race.argmax(-1, keepdim=True), 1.0)
    return hot if not prob.requires_grad else hot + (prob - prob.detach())


def balanced_kl(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """Dynamics and representation loss [...] (DreamerV3, equation 3) of log probabilities [..., G, K].

    Each is the KL summed over the groups, and no less than `free_nats`; the first trains the prior towards
    the posterior, the second the posterior towards the prior.
    """
    dynamics = kl(posterior.detach(), prior).clamp(min=free_nats)
    representation = kl(posterior, prior.detach()).clamp(min=free_nats)
    return dynamics, representation


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence [...] of categorical log probabilities p from q, both [..., G, K], summed over G."""
    return (p.exp() * (p - q)).sum((-2, -1))


class _Late(torch.autograd.Function):
    """Adds up a weight's gradient over all time steps in one product, instead of in one a step.

    A loop computes addmm(addend[t], input[t], weight.T) with the weight detached and appends each input to
    `inputs`. This function is the identity of the addend [T, B, O], whose gradient is that of all outputs, so
    here the weight's gradient can be made of it.
    """

    @staticmethod
    def forward(ctx: Any, addend: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        """The addend."""
        ctx.inputs = inputs
        return addend.view_as(addend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of addend and weight."""
        return grad, grad.flatten(0, -2).T @ torch.cat(ctx.inputs), None


class _Unrolled:
    """A linear layer without bias in a loop over time, its outputs added to `addend` [T, B, O]."""

    def __init__(self, weight: Tensor, addend: Tensor) -> None:
        self._inputs: list[Tensor] = []
        self._weight = weight.detach().T
        addend = _Late.apply(addend, weight, self._inputs) if torch.is_grad_enabled() else addend
        self._addends = addend.unbind(0)

    def __call__(self, t: int, x: Tensor) -> Tensor:
        """Output [B, O] of the step t for inputs [B, I]."""
        self._inputs.append(x.detach())
        return torch.addmm(self._addends[t], x, self._weight)


class RecurrentCore(nn.Module):
    """GRU with LayerNorm, prior and posterior.

    Layers that see several inputs are kept as one matrix an input, so that what is known beforehand (actions,
    embeddings) is projected for all time steps at once.

    Args:
        embedding, actions: sizes of the inputs, E and A.
        deter, hidden: sizes of the memory, M, and of the hidden layers.
        groups, classes: G and K of the latent.
        unimix: uniform share of prior and posterior.
    """

    def __init__(
        self,
        embedding: int,
        actions: int,
        *,
        deter: int,
        hidden: int,
        groups: int,
        classes: int,
        unimix: float,
    ) -> None:
        super().__init__()
        self.deter, self.groups, self.classes, self.unimix = deter, groups, classes, unimix
        latent = groups * classes
        self.action_in = nn.Linear(actions, hidden)
        self.stoch_in = nn.Linear(latent, hidden, bias=False)
        self.in_norm = nn.LayerNorm(hidden)
        self.gates = nn.Linear(hidden + deter, 3 * deter, bias=False)
        self.gates_norm = nn.LayerNorm(3 * deter)
        self.prior_net = NormedMLP(deter, (hidden,), latent)
        self.deter_post = nn.Linear(deter, hidden, bias=False)
        self.embed_post = nn.Linear(embedding, hidden)
        self.post_norm = nn.LayerNorm(hidden)
        self.post_out = nn.Linear(hidden, latent)
        layers = self.action_in, self.stoch_in, self.gates, self.deter_post, self.embed_post, self.post_out
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def initial(self, shape: tuple[int, ...]) -> RSSMState:
        """Nothing is known yet: zeros."""
        weight = self.stoch_in.weight
        return RSSMState(weight.new_zeros(*shape, self.deter), weight.new_zeros(*shape, weight.shape[1]))

    def remember(self, state: RSSMState, action: Tensor) -> Tensor:
        """The next memory [..., M]; `action` [..., H] has gone through `action_in`."""
        x = F.silu(self.in_norm(self.stoch_in(state.stoch) + action))
        return self.update(state.deter, self.gates(torch.cat([x, state.deter], -1)))

    def update(self, deter: Tensor, gates: Tensor) -> Tensor:
        """The next memory [..., M] of the last one and the gates [..., 3 M] (DreamerV2's GRU)."""
        reset, candidate, update = self.gates_norm(gates).chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update - 1.0))  # remembers at first

    def prior(self, deter: Tensor) -> Tensor:
        """Log probabilities [..., G, K] of the latent, before anything is seen."""
        return self.grouped(self.prior_net(deter))

    def posterior(self, deter: Tensor, embedding: Tensor) -> Tensor:
        """Log probabilities [..., G, K] of the latent; `embedding` [..., H] has gone through `embed_post`."""
        return self.grouped(self.post_out(F.silu(self.post_norm(self.deter_post(deter) + embedding))))

    def grouped(self, logits: Tensor) -> Tensor:
        """Logits [..., G K] as log probabilities [..., G, K]."""
        return mixed(logits.unflatten(-1, (self.groups, self.classes)), self.unimix)

    def next(self, state: RSSMState, action: Tensor, noise: Tensor | None) -> RSSMState:
        """One imagined step after actions [..., A]; `noise` [..., G, K] from `exponential`, None = mode."""
        deter = self.remember(state, self.action_in(action))
        return RSSMState(deter, draw(self.prior(deter), noise).flatten(-2))

    def see(self, state: RSSMState, action: Tensor, embedding: Tensor, noise: Tensor | None) -> RSSMState:
        """One real step: an action [..., A], then what was seen, [..., E]."""
        deter = self.remember(state, self.action_in(action))
        return RSSMState(deter, draw(self.posterior(deter, self.embed_post(embedding)), noise).flatten(-2))

    def filter(
        self, embedding: Tensor, action: Tensor, first: Tensor, noise: Tensor | None
    ) -> tuple[RSSMState, Tensor]:
        """Posterior states [T, B, ...] of a sequence, and their log probabilities [T, B, G, K].

        Args:
            embedding: [T, B, E] of what was seen.
            action: [T, B, A] executed to get there.
            first: [T, B] bool, an episode begins: forget what came before.
            noise: [T, B, G, K], or None for the mode.
        """
        go_on = (~first).unsqueeze(-1).to(embedding.dtype)
        steps, batch = first.shape
        stoch_in = _Unrolled(self.stoch_in.weight, self.action_in(action * go_on))
        gates = _Unrolled(
            self.gates.weight, embedding.new_zeros(1, 1, 1).expand(steps, batch, 3 * self.deter)
        )
        deter_post = _Unrolled(self.deter_post.weight, self.embed_post(embedding))
        bias = self.post_out.bias.expand(steps, batch, -1)
        post_out = _Unrolled(self.post_out.weight, bias)
        broken = first.any(-1).tolist()  # most steps have nothing to forget
        (deter, stoch), deters, stochs, logs = self.initial((batch,)), [], [], []
        for t, forget in enumerate(broken):
            if forget and t:
                deter, stoch = deter * go_on[t], stoch * go_on[t]
            x = F.silu(self.in_norm(stoch_in(t, stoch)))
            deter = self.update(deter, gates(t, torch.cat([x, deter], -1)))
            log_prob = self.grouped(post_out(t, F.silu(self.post_norm(deter_post(t, deter)))))
            stoch = draw(log_prob, None if noise is None else noise[t]).flatten(-2)
            deters.append(deter)
            stochs.append(stoch)
            logs.append(log_prob)
        return RSSMState(torch.stack(deters), torch.stack(stochs)), torch.stack(logs)
