"""How uncertainty travels through an ensemble: TS1, TS-infinity and expectation propagation
(Chua et al., 2018, section 5). The planners' hot path.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl_dynamics.draws import normal, permutation
from mbrl_dynamics.interfaces import Noise
from mbrl_dynamics.types import Rollout

if TYPE_CHECKING:
    from mbrl_dynamics.models.ensemble import Ensemble


class EnsembleState(NamedTuple):
    """Where a prediction stands.

    Attributes:
        obs: [..., D] SI.
        member: [...] int64, which of the predicting members goes on; None = their mean.
    """

    obs: Tensor
    member: Tensor | None = None


class Predictor:
    """The elite members with both normalisers folded into their first and last layer.

    Inputs are (observation, action) as they are, outputs are changes of the observation in SI.
    """

    def __init__(self, model: Ensemble) -> None:
        elite = torch.argsort(model.holdout_errors, stable=True)[: model.elites]
        self.weights = [weight[elite] for weight in model.weights]
        self.biases = [bias[elite] for bias in model.biases]
        self.members, self.size, self.outputs = model.elites, model.spec.observation_dim, model.outputs
        self.circles = model.spec.circles
        self.scale = model.input_normalizer.std[: self.size]
        mean, std, delta = model.input_normalizer.mean, model.input_normalizer.std, model.delta_normalizer
        self.weights[0] = self.weights[0] / std[:, None]
        self.biases[0] = self.biases[0] - torch.einsum("i,eio->eo", mean, self.weights[0]).unsqueeze(1)
        # Means are scaled and shifted; log variances, and log weights of components, stay as they are.
        many, rest = model.components, self.weights[-1].shape[-1] - model.components * model.outputs
        scale = torch.cat([delta.std.repeat(many), delta.std.new_ones(rest)])
        shift = torch.cat([delta.mean.repeat(many), delta.mean.new_zeros(rest)])
        self.weights[-1] = self.weights[-1] * scale
        self.biases[-1] = self.biases[-1] * scale + shift
        self._mixture, self._components, self._delta_std = model.mixture, many, delta.std
        # Without noise nobody reads the variances: half of the last layer is left out.
        self._mean_weight = self.weights[-1][..., : self.outputs].contiguous()
        self._mean_bias = self.biases[-1][..., : self.outputs].contiguous()

    def __call__(self, x: Tensor, noise: Noise = None) -> tuple[Tensor, Tensor, Tensor]:
        """For inputs [E, M, D + A]: centre and standard deviation of the change, and of the reward if that is
        learned, [E, M, O]; then the mean. Of several components, `noise` draws one; of one, centre is mean.
        """
        mixture = self._mixture(torch.baddbmm(self.biases[-1], self._hidden(x), self.weights[-1]))
        centre, std = mixture.component(noise)
        return centre, self._delta_std * std, centre if self._components == 1 else mixture.expected()

    def mean(self, x: Tensor) -> Tensor:
        """Only the mean [E, M, O]."""
        if self._components > 1:
            last = torch.baddbmm(self.biases[-1], self._hidden(x), self.weights[-1])
            return self._mixture(last).expected()
        return torch.baddbmm(self._mean_bias, self._hidden(x), self._mean_weight)

    def _hidden(self, x: Tensor) -> Tensor:
        inplace = not torch.is_grad_enabled()
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.silu(torch.baddbmm(bias, x, weight), inplace=inplace)
        return x

    def project_(self, obs: Tensor) -> None:
        """Put (cos, sin) pairs back on the circle, in place."""
        for i in self.circles:
            pair = obs[..., i : i + 2]
            pair.div_(torch.linalg.vector_norm(pair, dim=-1, keepdim=True).clamp_(min=1e-6))


def propagate(
    net: Predictor,
    method: str,
    state: EnsembleState,
    actions: Tensor,
    particles: int | None,
    noise: Noise,
    keep: Collection[str],
) -> Rollout:
    """Roll candidates [B, N, H, A] through an ensemble, without gradients.

    Rows are kept member by member, [E, M, D + A] with M = B * N * P / E, so that a step is one batched
    product a layer and no row ever moves. TS1 exchanges rows between members by a random permutation.
    """
    batch, candidates, horizon, width = actions.shape
    members = 1 if method == "expectation" else net.members
    share = 1 if method == "expectation" else -(-(particles or members) // members)  # particles a member
    rows, size = batch * candidates * share, net.size
    path = actions.new_empty(horizon + 1, members, rows, size)
    path[0] = state.obs.repeat_interleave(candidates * share, dim=0)
    plan = actions.permute(2, 0, 1, 3).reshape(horizon, batch * candidates, 1, width)
    plan = plan.expand(-1, -1, share, -1).reshape(horizon, 1, rows, width)
    x = actions.new_empty(members, rows, size + width)
    x[..., :size] = path[0]
    obs = x[..., :size]
    reward = actions.new_zeros(horizon, members, rows)
    for t in range(horizon):
        x[..., size:] = plan[t]
        change = _change(net, method, x, noise)
        obs += change[..., :size]
        if net.outputs > size:
            reward[t] = change[..., size]
        net.project_(obs)
        path[t + 1] = obs
    futures = path.view(horizon + 1, members, batch, candidates, share, size)
    ones = actions.new_ones(batch, candidates, members * share, horizon)
    obs = futures.permute(2, 3, 1, 4, 0, 5).reshape(batch, candidates, members * share, horizon + 1, size)
    return Rollout(
        reward=reward.view(horizon, members, batch, candidates, share)
        .permute(2, 3, 1, 4, 0)
        .reshape(ones.shape),
        alive=ones,
        disagreement=_disagreement(futures[1:], net.scale) if members * share > 1 else None,
        last=EnsembleState(obs[..., -1, :]),
        obs=obs if "obs" in keep else None,
        action=actions.unsqueeze(2).expand(-1, -1, members * share, -1, -1) if "action" in keep else None,
    )


def _disagreement(futures: Tensor, scale: Tensor) -> Tensor:
    """Spread of imagined observations [H, E, B, N, P / E, D] over particles, in standard scores [B, N, H]."""
    deviation = futures - futures.mean((1, 4), keepdim=True)
    spread = deviation.square_().mean((1, 4)).sqrt_().div_(scale).mean(-1)
    return spread.permute(1, 2, 0)


def _change(net: Predictor, method: str, x: Tensor, noise: Noise) -> Tensor:
    """How the observations of rows [E, M, D + A] change in one step, [E, M, D]."""
    if method == "expectation":
        return net.mean(x.expand(net.members, -1, -1)).mean(0, keepdim=True)
    order = None
    if method == "ts1":
        order = permutation(x.shape[0], x.shape[1], noise, x.device)
        x = x.flatten(0, 1)[order].view_as(x)
    if noise is None:
        change = net.mean(x)
    else:
        change, std, _ = net(x, noise)
        change = change.addcmul(std, normal(std.shape, noise, x.device, before=1))
    if order is not None:
        change = (
            torch.empty_like(change.flatten(0, 1)).index_copy_(0, order, change.flatten(0, 1)).view_as(change)
        )
    return change
