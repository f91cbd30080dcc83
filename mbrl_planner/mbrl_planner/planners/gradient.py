"""Planning by gradient ascent through a model, for continuous actions (e.g. Henaff et al., 2017,
https://arxiv.org/abs/1705.07177; Bharadhwaj et al., 2020, https://arxiv.org/abs/2004.08763).
"""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Heads, Plan
from mbrl_planner.planners.local import LocalPlanner, differentiating, usable
from mbrl_planner.planners.noise import colored_noise
from mbrl_planner.planners.options import Expansions
from mbrl_planner.planners.sampling import pick
from mbrl_planner.planners.scoring import returns_of, wary
from mbrl_planner.planners.shared import shown, warmed

EDGE = 0.995  # largest action; nearer to 1, tanh is so flat that a plan would never come back


class Climb(NamedTuple):
    """The best plan so far on each of N ways up.

    Attributes:
        actions: [B, N, H, A].
        returns: [B, N] what they are worth; -inf = no finite prediction.
        disagreement: [B, N] mean over the horizon [normalised]; NaN where unknown.
        refused: [B] plans of the last step without a finite prediction.
    """

    actions: Tensor
    returns: Tensor
    disagreement: Tensor
    refused: Tensor

    def or_better(self, now: Climb) -> Climb:
        """Each way's better one."""
        better = now.returns > self.returns
        return Climb(
            now.actions.where(better[..., None, None], self.actions),
            now.returns.where(better, self.returns),
            now.disagreement.where(better, self.disagreement),
            now.refused,
        )


@config
class GradientConfig:
    """Configuration of Gradient."""

    horizon: Annotated[int, Field(ge=1, description="how far a plan looks ahead [steps]")] = 25
    starts: Annotated[
        int, Field(ge=1, description="plans climbed at once: the last one, and others that differ [1]")
    ] = 5
    iterations: Annotated[int, Field(ge=1, description="gradient steps a decision [1]")] = 15
    learning_rate: Annotated[float, Field(gt=0, description="Adam's step size, before tanh [1]")] = 0.1
    std: Annotated[
        float, Field(gt=0, description="how far the other plans are away at first, before tanh [1]")
    ] = 0.5
    particles: Annotated[
        int, Field(ge=0, description="imagined futures a plan; 0 = one a model member [1]")
    ] = 0
    caution: Annotated[
        float, Field(description="cost of a unit of the model's disagreement a step [reward]")
    ] = 0.0
    discount: Annotated[
        float, Field(gt=0, le=1, description="of rewards a step later, and of a terminal value [1]")
    ] = 1.0
    rrt_expansions: Expansions = 0


class Gradient(LocalPlanner):
    """Climbs the predicted return from several plans at once, by Adam through tanh; follows the best seen.

    Adam begins anew with each decision: what it remembers of a plan's rows belongs to others once they shift.
    A model that learned invites plans that exploit its errors, the more so the steeper one climbs: where it
    has members, `caution` keeps plans to where they agree.
    """

    Config = GradientConfig
    memory: ClassVar[bool] = True

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
        """Search; see `Planner.plan`. `noise` draws where the search begins; predictions are means."""
        self.check(model.spec, model)
        noise = torch.default_generator if noise is None else noise
        with differentiating(model), torch.enable_grad():
            state = usable(state)
            guess, shift = warmed(self.config, model, state, guess, shift, heads, deadline, noise)
            begin = self._begin(model, state, guess, shift, noise)
            climb, met = self._climb(model, state, begin, heads, deadline)
        best = climb.returns.argmax(1, keepdim=True)
        actions, value = pick(climb.actions, best)[:, 0], pick(climb.returns, best)[:, 0]
        valid = value.isfinite()
        return Plan(
            actions=actions.where(valid[:, None, None], torch.nan),
            value=value,
            guess=Guess(actions),
            deadline_met=met,
            disagreement=pick(climb.disagreement, best)[:, 0],
            valid=valid,
            refused=climb.refused,
            **(self._display(model, state, actions, climb, display) if display else {}),
        )

    def _begin(
        self, model: Model, state: ModelState, guess: Guess | None, shift: int, noise: torch.Generator
    ) -> Tensor:
        """Plans before tanh [B, N, H, A]: the last one (or none), and that with smooth differences."""
        config, width = self.config, model.spec.inner_action_dim
        batch = len(pytree.tree_leaves(state)[0])
        last = torch.zeros(batch, config.horizon, width)
        if guess is not None and guess.mean.shape == last.shape:
            last = torch.atanh(guess.shifted(shift).mean.clamp(-EDGE, EDGE))
        smooth = colored_noise((batch, config.starts - 1, width), config.horizon, 1.0, noise).mT
        others = last[:, None] + config.std * smooth
        return torch.cat([last[:, None], others], dim=1)

    def _climb(
        self, model: Model, state: ModelState, free: Tensor, heads: Heads | None, deadline: float | None
    ) -> tuple[Climb, bool]:
        """The best plan on each way up, and whether there was time for it."""
        free, edge = free.clone().requires_grad_(), float(torch.atanh(torch.tensor(EDGE)))
        optimizer = torch.optim.Adam([free], lr=self.config.learning_rate, maximize=True)
        best: Climb | None = None
        for _ in range(self.config.iterations):
            if best is not None and deadline is not None and time.perf_counter() > deadline:
                return best, False
            now, total = self._score(model, state, torch.tanh(free), heads)
            best = now if best is None else best.or_better(now)
            (slope,) = torch.autograd.grad(total, free)
            free.grad = slope.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            free.data.clamp_(-edge, edge)
        assert best is not None
        return best, deadline is None or time.perf_counter() <= deadline

    def _score(
        self, model: Model, state: ModelState, actions: Tensor, heads: Heads | None
    ) -> tuple[Climb, Tensor]:
        """What plans are worth, and the sum over those whose prediction is finite."""
        config = self.config
        rollout = model.imagine(state, actions, particles=config.particles or None)
        futures, spread = returns_of(rollout, config.discount, heads), rollout.disagreement
        returns = wary(futures.mean(-1), rollout, config.caution)
        finite = returns.isfinite() & model.feature(rollout.last).isfinite().all(-1).all(-1)
        spread = torch.full_like(returns, torch.nan) if spread is None else spread.mean(-1)
        worth = returns.detach().where(finite, -torch.inf)
        scored = Climb(actions.detach(), worth, spread.detach(), (~finite).sum(1))
        return scored, returns.where(finite, 0.0).sum()

    @torch.no_grad()
    def _display(
        self, model: Model, state: ModelState, actions: Tensor, climb: Climb, count: int
    ) -> dict[str, Tensor]:
        """Predicted observations of the plan and of the best on each way up."""
        best, returns = climb.actions[:, :count], climb.returns[:, :count]
        return shown(model, state, actions, best, returns, self.config.particles or None)
