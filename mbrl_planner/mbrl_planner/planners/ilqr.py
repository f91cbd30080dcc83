"""Iterative linear-quadratic regulator with limits on the controls (Tassa et al., 2012,
https://doi.org/10.1109/IROS.2012.6386025, and 2014, https://doi.org/10.1109/ICRA.2014.6907001).

The model is looked at to first order about the path so far and the reward to second; the best affine policy
for that is tried in the model in several step sizes, and the best path is the next to be looked at.
"""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Heads, Plan
from mbrl_planner.planners.local import (
    Expansion,
    LocalPlanner,
    Path,
    Problem,
    differentiating,
    flat,
    usable,
)
from mbrl_planner.planners.lqr import Found, plan_of
from mbrl_planner.planners.options import Expansions
from mbrl_planner.planners.riccati import Damping, Gains, solve
from mbrl_planner.planners.shared import singles, warmed

SHARES = tuple(1.1 ** -(i**2) for i in range(10))  # step sizes of the line search, all tried at once
ACCEPTED = 1e-4  # least rise of the return, of that which was expected
TOLERANCE = 1e-6  # a search is over where no more is expected, of the return


@config
class ILQRConfig:
    """Configuration of ILQR."""

    horizon: Annotated[int, Field(ge=1, description="how far a plan looks ahead [steps]")] = 25
    iterations: Annotated[int, Field(ge=1, description="most expansions a decision [1]")] = 10
    caution: Annotated[
        float, Field(ge=0, description="cost of a unit of the model's disagreement a step [reward]")
    ] = 0.0
    discount: Annotated[
        float, Field(gt=0, le=1, description="of rewards a step later, and of a terminal value [1]")
    ] = 1.0
    rrt_expansions: Expansions = 0


class ILQR(LocalPlanner):
    """Newton's method on the whole plan, nearly: few iterations, each with derivatives along the path.

    For models without memory, of which it takes the mean. It needs a reward that says by its slope where to
    go: where it is flat (dm_control's `tolerance` outside its margin), nothing can be improved and the plan
    stays as it was; there, take a smooth cost, or a planner that tries out. `Plan.gains` answer to deviations
    between plans, see `feedback`.
    """

    Config = ILQRConfig
    deterministic: ClassVar[bool] = True

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
        self.check(model.spec, model)
        horizon, width, config = self.config.horizon, model.spec.inner_action_dim, self.config
        with differentiating(model):
            state = usable(state)
            drawn = torch.default_generator if noise is None else noise
            guess, shift = warmed(config, model, state, guess, shift, heads, deadline, drawn)
            found = []
            for b, one in enumerate(singles(state)):
                problem = Problem(model, one, horizon, config.discount, config.caution, heads)
                begin = torch.zeros(1, horizon, width)
                if guess is not None and guess.mean.shape[1:] == begin.shape[1:]:
                    begin = torch.cat([guess.shifted(shift).mean[b : b + 1].clone(), begin])
                found.append(self._search(problem, begin, deadline))
            met = deadline is None or time.perf_counter() <= deadline
            return plan_of(model, state, found, met, display)

    def _search(self, problem: Problem, begin: Tensor, deadline: float | None) -> Found:
        """Improve the best of some plans [N, H, A]."""
        paths = problem.roll(lambda t, x: begin[:, t], len(begin))
        path = paths.row(int(paths.value.argmax()))
        refused, damping = int((~paths.value.isfinite()).sum()), Damping()
        expansion: Expansion | None = None
        gains = torch.zeros(problem.horizon, begin.shape[2], problem.start.shape[1])
        for _ in range(self.config.iterations):
            late = deadline is not None and time.perf_counter() > deadline
            if late or damping.over or not path.value.isfinite():
                break
            expansion = problem.expand(path) if expansion is None else expansion
            policy = None
            if expansion.finite:
                actions = path.actions[0].double()
                policy = solve(expansion, damping, -1.0 - actions, 1.0 - actions)
            if policy is None:
                break
            gains = policy.K.to(gains)
            if policy.expected(1.0) <= TOLERANCE * (1.0 + abs(float(path.value))):
                break
            trials = _follow(problem, path, policy)
            refused, best = int((~trials.value.isfinite()).sum()), int(trials.value.argmax())
            if trials.value[best] - path.value[0] > ACCEPTED * policy.expected(SHARES[best]):
                path, expansion = trials.row(best), None
                damping.down()
            else:
                damping.up()
        return Found(path, gains, damping.failures, refused)


def _follow(problem: Problem, path: Path, policy: Gains) -> Path:
    """A policy about a path in the model itself, one try for each step size."""
    share = torch.tensor(SHARES)[:, None]
    k, gains = policy.k.to(share), policy.K.to(share)

    def act(t: int, x: Tensor) -> Tensor:
        correction = (x - path.states[0, t]) @ gains[t].T
        return (path.actions[0, t] + share * k[t] + correction).clamp(-1.0, 1.0)

    return problem.roll(act, len(SHARES))


def feedback(plan: Plan, step: int, state: ModelState) -> Tensor:
    """The action [B, A] of a step of a plan, corrected for where the state turned out to be.

    Args:
        plan: of a planner that gives gains; otherwise nothing is corrected.
        step: since the plan was made [steps].
        state: [B] at that step.
    """
    if plan.gains is None or plan.states is None:
        return plan.actions[:, step]
    deviation = flat(state) - plan.states[:, step]
    return (plan.actions[:, step] + (plan.gains[:, step] @ deviation[..., None])[..., 0]).clamp(-1.0, 1.0)
