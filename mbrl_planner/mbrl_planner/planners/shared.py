"""What planners of all kinds need around their search."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import ModelState


def check_continuous(planner: str, spec: Spec) -> None:
    """Look whether a world's actions are numbers.

    Raises:
        UserError: they are discrete.
    """
    if spec.discrete:
        raise UserError(
            f"planner '{planner}' needs continuous actions, but those of task '{spec.task}' are discrete; "
            f"'random_shooting' and 'mcts' take them"
        )


def singles(state: ModelState) -> list[ModelState]:
    """The states of a batch, one by one, as batches of one."""
    batch = len(pytree.tree_leaves(state)[0])

    def one(b: int) -> ModelState:
        return pytree.tree_map_only(Tensor, lambda leaf: leaf[b : b + 1], state)

    return [one(b) for b in range(batch)]


def shown(
    model: Model,
    state: ModelState,
    actions: Tensor,
    candidates: Tensor,
    returns: Tensor,
    particles: int | None = None,
) -> dict[str, Tensor]:
    """What a Plan lays open for people, as its fields: predicted observations of the plan and of candidates.

    Args:
        model: predicts observations.
        state: [B] where plans begin.
        actions: [B, H, A] the plan.
        candidates: [B, N, H, A].
        returns: [B, N] what they are worth.
        particles: futures of each; None = as many as the model likes.
    """
    plans = torch.cat([actions[:, None], candidates], dim=1)
    obs = model.imagine(state, plans, particles=particles, keep=("obs",)).obs
    assert obs is not None
    mean, std = obs.mean(2), obs.std(2, correction=0)
    return {
        "obs": mean[:, 0],
        "spread": std[:, 0],
        "candidate_obs": mean[:, 1:],
        "candidate_returns": returns,
    }
