"""What planners that search by sampling share: one loop over propose, imagine, refit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Heads, Plan


@config
class SamplingConfig:
    """What every sampling planner has."""

    horizon: Annotated[int, Field(ge=1, description="how far a plan looks ahead [steps]")] = 25
    candidates: Annotated[int, Field(ge=2, description="plans tried in an iteration [1]")] = 64
    iterations: Annotated[int, Field(ge=1, description="refinements a decision [1]")] = 3
    particles: Annotated[
        int, Field(ge=0, description="imagined futures a candidate; 0 = one a model member [1]")
    ] = 0
    aleatoric: Annotated[
        bool, Field(description="draw the outcome noise that the model predicts, rather than follow its mean")
    ] = False
    std: Annotated[float, Field(gt=0, description="initial spread of the actions, scaled to [-1, 1] [1]")] = (
        0.5
    )


@dataclass(frozen=True)
class Search:
    """Where a search stands.

    Attributes:
        mean: [B, H, A] of the sampling distribution.
        std: [B, H, A] of the sampling distribution.
        elites: [B, K, H, A] kept from the last iteration or the last plan; None = none.
        best: [B, H, A] best candidate so far.
        best_return: [B] its predicted return.
        best_disagreement: [B] its disagreement.
    """

    mean: Tensor
    std: Tensor
    elites: Tensor | None
    best: Tensor
    best_return: Tensor
    best_disagreement: Tensor


@dataclass(frozen=True)
class Scored:
    """Candidates and what the model says of them.

    Attributes:
        actions: [B, N, H, A].
        returns: [B, N] mean over particles; -inf where the model returned no number.
        disagreement: [B, N] mean over the horizon [normalised]; NaN where unknown.
    """

    actions: Tensor
    returns: Tensor
    disagreement: Tensor

    def top(self, count: int) -> Tensor:
        """The `count` best candidates, best first, [B, count, H, A]."""
        return pick(self.actions, self.returns.topk(count, dim=1).indices)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Values [B, N, ...] at index [B, K] -> [B, K, ...]."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


class SamplingPlanner:
    """The shared loop. A planner says how to propose candidates, how to refit, and what to answer."""

    Config: type[SamplingConfig] = SamplingConfig

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config or self.Config()

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """Candidates [B, N, H, A], within [-1, 1]."""
        raise NotImplementedError

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean, standard deviation [B, H, A] and elites [B, K, H, A] of the next iteration."""
        raise NotImplementedError

    def answer(self, search: Search) -> Tensor:
        """The plan [B, H, A] to execute; by default the best candidate."""
        return search.best

    @torch.inference_mode()
    def plan(
        self,
        model: Model,
        state: ModelState,
        guess: Guess | None = None,
        *,
        shift: int = 1,
        heads: Heads | None = None,
        deadline: float | None = None,
        noise: torch.Generator | None = None,
        display: int = 0,
    ) -> Plan:
        """Search; see `Planner.plan`."""
        search, met, scored = self._begin(model, state, guess, shift), True, None
        last = 0.0
        for iteration in range(self.config.iterations):
            begin = time.perf_counter()
            if scored is not None and deadline is not None and 2 * begin - last > deadline:
                met = False  # the next iteration would take as long as the last one, which is too long
                break
            last = begin
            scored = self._score(model, state, self.propose(search, iteration, noise), heads, noise)
            search = self._advance(search, scored)
        assert scored is not None
        actions = self.answer(search)
        met = met and (deadline is None or time.perf_counter() <= deadline)
        shown = self._display(model, state, actions, scored, display) if display else {}
        return Plan(
            actions=actions,
            value=search.best_return,
            guess=Guess(search.mean, search.elites),
            deadline_met=met,
            disagreement=search.best_disagreement,
            **shown,
        )

    def _begin(self, model: Model, state: ModelState, guess: Guess | None, shift: int) -> Search:
        leaf = torch.utils._pytree.tree_leaves(state)[0]
        batch, horizon, width = len(leaf), self.config.horizon, model.spec.inner_action_dim
        zeros = torch.zeros(batch, horizon, width)
        mean, elites = zeros, None
        if guess is not None and guess.mean.shape == zeros.shape:
            guess = guess.shifted(shift)
            mean, elites = guess.mean, guess.elites
        unknown = torch.full((batch,), torch.nan)
        return Search(
            mean,
            torch.full_like(zeros, self.config.std),
            elites,
            zeros,
            torch.full((batch,), -torch.inf),
            unknown,
        )

    def _score(
        self,
        model: Model,
        state: ModelState,
        actions: Tensor,
        heads: Heads | None,
        noise: torch.Generator | None,
    ) -> Scored:
        rollout = model.imagine(
            state,
            actions,
            particles=self.config.particles or None,
            noise=noise if self.config.aleatoric else None,
        )
        returns = rollout.returns()
        if heads is not None:
            returns = returns + heads.value(rollout.last) * rollout.alive[..., -1]
        returns = returns.mean(-1).nan_to_num(nan=-torch.inf)
        spread = (
            torch.full_like(returns, torch.nan)
            if rollout.disagreement is None
            else rollout.disagreement.mean(-1)
        )
        return Scored(actions, returns, spread)

    def _advance(self, search: Search, scored: Scored) -> Search:
        mean, std, elites = self.refit(search, scored)
        value, index = scored.returns.max(dim=1, keepdim=True)
        better = value[:, 0] > search.best_return
        best = torch.where(better[:, None, None], pick(scored.actions, index)[:, 0], search.best)
        spread = torch.where(better, pick(scored.disagreement, index)[:, 0], search.best_disagreement)
        return Search(mean, std, elites, best, torch.maximum(value[:, 0], search.best_return), spread)

    def _display(
        self, model: Model, state: ModelState, actions: Tensor, scored: Scored, count: int
    ) -> dict[str, Tensor]:
        """Predicted observations of the plan and of candidates spread evenly over the ranking."""
        count = min(count, scored.returns.shape[1])
        ranks = torch.linspace(0, scored.returns.shape[1] - 1, count).round().long()
        index = scored.returns.argsort(dim=1, descending=True)[:, ranks]
        shown = torch.cat([actions[:, None], pick(scored.actions, index)], dim=1)
        obs = model.imagine(state, shown, particles=self.config.particles or None, keep=("obs",)).obs
        assert obs is not None
        mean, std = obs.mean(2), obs.std(2, correction=0)
        return {
            "obs": mean[:, 0],
            "spread": std[:, 0],
            "candidate_obs": mean[:, 1:],
            "candidate_returns": pick(scored.returns, index),
        }
