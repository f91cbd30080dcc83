"""What planners that search by sampling share: one loop over propose, imagine, refit."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl_dynamics.draws import in_common
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import CONTINUOUS, DISCRETE, Spec
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Heads, Plan
from mbrl_planner.planners.knots import Knots
from mbrl_planner.planners.options import SamplingConfig
from mbrl_planner.planners.scoring import (
    bounds_of,
    check_bounds,
    returns_of,
    violation,
    wary,
    worst_mean,
)
from mbrl_planner.planners.shared import check_continuous, check_warm, shown, warmed


@dataclass(frozen=True)
class Search:
    """Where a search stands. H here counts the knots, where there are fewer of them than steps.

    Attributes:
        mean: [B, H, A] of the sampling distribution.
        std: [B, H, A] of the sampling distribution.
        elites: [B, K, H, A] kept from the last iteration or the last plan; None = none.
        best: [B, H, A] best candidate so far.
        best_return: [B] what it is worth; -inf = none had a finite prediction.
        best_disagreement: [B] its disagreement.
        best_violation: [B] by how much it breaks the constraints.
        discrete: whether actions are one-hot.
    """

    mean: Tensor
    std: Tensor
    elites: Tensor | None
    best: Tensor
    best_return: Tensor
    best_disagreement: Tensor
    best_violation: Tensor
    discrete: bool = False


@dataclass(frozen=True)
class Scored:
    """Candidates and what the model says of them.

    Attributes:
        actions: [B, N, H, A], or their knots.
        returns: [B, N] what they are worth; -inf where the prediction is not finite, or breaks constraints
            that another candidate keeps.
        disagreement: [B, N] mean over the horizon [normalised]; NaN where unknown.
        violation: [B, N] by how much they break the constraints; None = there are none.
        refused: [B] how many of them have no finite prediction; None = nobody counted.
    """

    actions: Tensor
    returns: Tensor
    disagreement: Tensor
    violation: Tensor | None = None
    refused: Tensor | None = None

    def top(self, count: int) -> Tensor:
        """The `count` best candidates, best first, [B, count, H, A]; the best again for those worth -inf."""
        value, index = self.returns.topk(count, dim=1)
        return pick(self.actions, torch.where(value.isfinite(), index, index[:, :1]))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Values [B, N, ...] at index [B, K] -> [B, K, ...]."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


class SamplingPlanner:
    """The shared loop. A planner says how to propose candidates, how to refit, and what to answer.

    A candidate whose prediction is not finite is worth -inf; if all are, the plan is not valid. Constraints
    are hard: a candidate that breaks one in any imagined future counts only where all do, and then the one
    that breaks them least wins. With constraints the answer is the best candidate, since only candidates have
    been tried: the mean of two ways round an obstacle runs into it.

    Where outcomes are drawn, all candidates meet the same luck in an iteration (`common_noise`), and other
    luck in the next.
    """

    Config: type[SamplingConfig] = SamplingConfig
    kinds: ClassVar[tuple[str, ...]] = (CONTINUOUS,)  # of action that it takes
    capturable: ClassVar[bool] = False  # the same operations each time, none waited for (graphed.py)

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config or self.Config()
        self._bounds = bounds_of(self.config.constraints)
        horizon = self.config.horizon
        self._knots = Knots(horizon, self.config.knots or horizon, self.config.interpolation)

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """Candidates [B, N, H, A], within [-1, 1]."""
        raise NotImplementedError

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean, standard deviation [B, H, A] and elites [B, K, H, A] of the next iteration."""
        raise NotImplementedError

    def answer(self, search: Search) -> Tensor:
        """The plan [B, H, A] to execute; by default the best candidate."""
        return search.best

    def check(self, spec: Spec, model: Any = None, task: Any = None) -> None:
        """Look whether the planner fits a world; see `Planner.check`. It searches through every model."""
        if DISCRETE not in self.kinds:
            check_continuous(type(self).__name__.lower(), spec)
        between = self.config.interpolation
        if spec.discrete and self.config.knots and between != "hold":
            raise UserError(f"interpolation is '{between}', but discrete actions can only be held ('hold')")
        check_bounds(self._bounds, spec)
        check_warm(self.config, spec, model)

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
        self.check(model.spec)
        noise = torch.default_generator if noise is None else noise
        guess, shift = warmed(self.config, model, state, guess, shift, heads, deadline, noise)
        search = self._begin(model, state, guess, shift, noise, deadline)
        met, scored = True, None
        learned = self._of_policy(model, state, heads, noise)
        last = 0.0
        for iteration in range(self.config.iterations):
            begin = time.perf_counter()
            if scored is not None and deadline is not None and 2 * begin - last > deadline:
                met = False  # the next iteration would take as long as the last one, which is too long
                break
            last = begin
            candidates = self.propose(search, iteration, noise)
            if learned is not None:
                candidates = torch.cat([candidates, learned], dim=1)
            scored = self._score(model, state, candidates, heads, noise)
            search = self._advance(search, scored)
        assert scored is not None
        actions = self._knots.plan(search.best if self._bounds else self.answer(search))
        valid = search.best_return > -torch.inf
        actions = torch.where(valid[:, None, None], actions, torch.nan)  # nobody may act on it unawares
        met = met and (deadline is None or time.perf_counter() <= deadline)
        elites = None if search.elites is None else self._knots.plan(search.elites)
        return Plan(
            actions=actions,
            value=search.best_return,
            guess=Guess(self._knots.plan(search.mean), elites),
            deadline_met=met,
            disagreement=search.best_disagreement,
            valid=valid,
            refused=scored.refused,
            violation=search.best_violation if self._bounds else None,
            **(self._display(model, state, actions, scored, display) if display else {}),
        )

    def _begin(
        self,
        model: Model,
        state: ModelState,
        guess: Guess | None,
        shift: int,
        noise: torch.Generator,
        deadline: float | None,
    ) -> Search:
        """Where the search starts; what a planner finds out at first ends at the deadline, too."""
        leaf = torch.utils._pytree.tree_leaves(state)[0]
        batch, width, discrete = len(leaf), model.spec.inner_action_dim, model.spec.discrete
        mean, elites = torch.zeros(batch, self._knots.count, width, device=leaf.device), None
        if guess is not None and guess.mean.shape == (batch, self.config.horizon, width):
            guess = guess.shifted(shift)
            mean = self._knots.of(guess.mean)
            elites = None if guess.elites is None else self._knots.of(guess.elites)
        if discrete:
            mean = F.one_hot(mean.argmax(-1), width).to(mean.dtype)
        worst = mean.new_full((batch,), -torch.inf)
        return Search(
            mean=mean,
            std=torch.full_like(mean, self.config.std),
            elites=elites,
            best=torch.zeros_like(mean),
            best_return=worst,
            best_disagreement=mean.new_full((batch,), torch.nan),
            best_violation=-worst,
            discrete=discrete,
        )

    def _of_policy(
        self, model: Model, state: ModelState, heads: Heads | None, noise: torch.Generator
    ) -> Tensor | None:
        """What a learned policy would do, drawn anew for each of its candidates [B, M, H, A]."""
        count, actions = self.config.policy_candidates, []
        if not count:
            return None
        if heads is None:
            raise UserError(f"policy_candidates is {count}, but no policy was given to plan with")
        state = model.spread(state, count)
        for _ in range(self.config.horizon):
            actions.append(heads.policy(state, noise))
            state = model.step(state, actions[-1]).state
        return self._knots.of(torch.stack(actions, dim=2))

    def _score(
        self,
        model: Model,
        state: ModelState,
        candidates: Tensor,
        heads: Heads | None,
        noise: torch.Generator | None,
    ) -> Scored:
        config = self.config
        with in_common(*candidates.shape[:2]) if config.common_noise else nullcontext():
            rollout = model.imagine(
                state,
                self._knots.plan(candidates),
                particles=config.particles or None,
                noise=noise if config.aleatoric else None,
                keep=("obs",) if self._bounds else (),
            )
        futures = returns_of(rollout, config.discount, heads)
        finite = (futures.isfinite() & model.feature(rollout.last).isfinite().all(-1)).all(-1)
        returns = wary(worst_mean(futures, config.worst_share), rollout, config.caution)
        finite, spread = finite & returns.isfinite(), rollout.disagreement
        broken = None
        if self._bounds:
            if rollout.obs is None:
                raise UserError("constraints need a model that predicts observations; this one does not")
            broken = violation(rollout.obs, rollout.alive, self._bounds, model.spec).where(finite, torch.inf)
            kept = broken == 0
            returns = torch.where(kept.any(1, keepdim=True), returns.where(kept, -torch.inf), -broken)
        return Scored(
            actions=candidates,
            returns=returns.where(finite, -torch.inf),
            disagreement=torch.full_like(returns, torch.nan) if spread is None else spread.mean(-1),
            violation=broken,
            refused=(~finite).sum(1),
        )

    def _advance(self, search: Search, scored: Scored) -> Search:
        mean, std, elites = self.refit(search, scored)
        value, index = scored.returns.max(dim=1, keepdim=True)
        value, violated = value[:, 0], search.best_violation
        better, some = value > search.best_return, value.isfinite()
        if scored.violation is not None:
            now = pick(scored.violation, index)[:, 0]
            better = torch.where(now == violated, better, now < violated)
            violated = torch.where(better, now, violated)
        at = better[:, None, None]
        return replace(
            search,
            mean=mean.where(some[:, None, None], search.mean),  # else there is nothing to learn from
            std=std.where(some[:, None, None], search.std),
            elites=elites,
            best=pick(scored.actions, index)[:, 0].where(at, search.best),
            best_return=value.where(better, search.best_return),
            best_disagreement=pick(scored.disagreement, index)[:, 0].where(better, search.best_disagreement),
            best_violation=violated,
        )

    def _display(
        self, model: Model, state: ModelState, actions: Tensor, scored: Scored, count: int
    ) -> dict[str, Tensor]:
        """Predicted observations of the plan and of candidates spread evenly over the ranking."""
        count = min(count, scored.returns.shape[1])
        last = scored.returns.shape[1] - 1
        ranks = torch.linspace(0, last, count, device=actions.device).round().long()
        index = scored.returns.argsort(dim=1, descending=True)[:, ranks]
        candidates = self._knots.plan(pick(scored.actions, index))
        returns, particles = pick(scored.returns, index), self.config.particles or None
        return shown(model, state, actions, candidates, returns, particles)
