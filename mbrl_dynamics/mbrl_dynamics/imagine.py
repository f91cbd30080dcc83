"""The plain way to imagine: step by step, for any model, differentiable, with plans or with a policy."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.interfaces import Model, Noise, Policy
from mbrl_dynamics.types import ModelState, Rollout


def _tiled(leaf: Tensor, candidates: int) -> Tensor:
    """Particles [B, P, ...] for each candidate, [B, N P, ...]."""
    batch, particles, *rest = leaf.shape
    wide = leaf.unsqueeze(1).expand(batch, candidates, particles, *rest)
    return wide.reshape(batch, candidates * particles, *rest)


def imagine_by_steps(
    model: Model,
    state: ModelState,
    actions: Tensor | Policy,
    particles: int,
    horizon: int | None,
    noise: Noise,
    keep: Collection[str],
) -> Rollout:
    """The default of `Model.imagine`, built on `Model.step`.

    Particle p of each candidate goes on with the same member, so that candidates can be compared. With a
    policy there is one candidate (N = 1) and `horizon` says how far to go.

    Raises:
        ValueError: a policy without a horizon.
    """
    if callable(actions):
        if horizon is None:
            raise ValueError("imagining with a policy needs a horizon")
        candidates = 1
    else:
        candidates, horizon = actions.shape[1], actions.shape[2]
    state = pytree.tree_map_only(Tensor, lambda x: _tiled(x, candidates), model.spread(state, particles))
    obs, action, reward, alive, disagreement = [model.decode(state)], [], [], [], []
    going: Tensor | float = 1.0
    for t in range(horizon):
        if callable(actions):
            act = actions(model.feature(state))
        else:
            act = actions[:, :, t].repeat_interleave(particles, dim=1)
        prediction = model.step(state, act, noise)
        state = prediction.state
        shape = act.shape[:-1]
        reward.append((act.new_zeros(shape) if prediction.reward is None else prediction.reward) * going)
        alive.append(act.new_ones(shape) * going)
        if prediction.alive is not None:
            going = going * prediction.alive
        obs.append(prediction.obs)
        action.append(act)
        disagreement.append(prediction.disagreement)

    def stack(values: Sequence[Tensor | None]) -> Tensor | None:
        tensors = [value for value in values if value is not None]
        if len(tensors) < len(values):
            return None
        return torch.stack(tensors, dim=2).unflatten(1, (candidates, particles))

    uncertain, rewards, lives = stack(disagreement), stack(reward), stack(alive)
    assert rewards is not None and lives is not None
    return Rollout(
        reward=rewards,
        alive=lives,
        disagreement=None if uncertain is None else uncertain.mean(2),
        last=pytree.tree_map(lambda x: None if x is None else x.unflatten(1, (candidates, particles)), state),
        obs=stack(obs) if "obs" in keep else None,
        action=stack(action) if "action" in keep else None,
    )
