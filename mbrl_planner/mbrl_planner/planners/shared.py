"""What planners of all kinds need around their search."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Heads

# Of how a planner searches, rather than of what it looks for, so that a tree that helps it has its own.
OWN = {"candidates", "iterations", "std", "knots", "interpolation", "policy_candidates", "rrt_expansions"}


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


def check_warm(config: Any, spec: Spec, model: Any) -> None:
    """Look whether a random tree can warm-start a planner of some configuration, if it is to.

    Raises:
        UserError: it cannot.
    """
    if config.rrt_expansions:
        from mbrl_planner.planners.rrt import check_tree  # which is a planner with all that is here

        check_tree("rrt_expansions", spec, model)


def warmed(
    config: Any,
    model: Model,
    state: ModelState,
    guess: Guess | None,
    shift: int,
    heads: Heads | None,
    deadline: float | None,
    noise: torch.Generator,
) -> tuple[Guess | None, int]:
    """Where a search sets out from, and control steps since that was made: the last plan's guess or, where
    there is none and the configuration says so, the best plan of a random tree, in half of the time.
    """
    if guess is not None or not config.rrt_expansions:
        return guess, shift
    from mbrl_planner.planners.rrt import RRT, RRTConfig

    same = {f.name for f in fields(RRTConfig)} & {f.name for f in fields(config)} - OWN
    tree = RRT(RRTConfig(**{name: getattr(config, name) for name in same}, candidates=config.rrt_expansions))
    now = time.perf_counter()
    half = None if deadline is None else now + 0.5 * (deadline - now)
    found = tree.plan(model, state, shift=0, heads=heads, deadline=half, noise=noise).guess.mean
    return Guess(found, found[:, None]), 0


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
