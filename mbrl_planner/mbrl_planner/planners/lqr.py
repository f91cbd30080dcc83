"""Linear-quadratic regulation about the present state (Anderson and Moore, "Optimal Control: Linear Quadratic
Methods", 1990).
"""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, NamedTuple

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
    usable,
)
from mbrl_planner.planners.riccati import Damping, Gains, solve
from mbrl_planner.planners.shared import shown, singles


@config
class LQRConfig:
    """Configuration of LQR."""

    horizon: Annotated[int, Field(ge=1, description="how far a plan looks ahead [steps]")] = 50
    discount: Annotated[
        float, Field(gt=0, le=1, description="of rewards a step later, and of a terminal value [1]")
    ] = 1.0


class LQR(LocalPlanner):
    """Takes the model as linear and the reward as quadratic, as they are at the present state, for the whole
    plan; controls are cut at their limits. One derivative and one recursion: the cheapest plan there is.

    Exact where that is so, good near a goal, and wrong far from it, where `ilqr` looks along the path. A warm
    start is not needed.
    """

    Config = LQRConfig
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
        """Solve; see `Planner.plan`."""
        self.check(model.spec, model)
        with differentiating(model):
            state = usable(state)
            found = [self._solve(model, one, heads) for one in singles(state)]
            return plan_of(model, state, found, deadline is None or time.perf_counter() <= deadline, display)

    def _solve(self, model: Model, state: ModelState, heads: Heads | None) -> Found:
        horizon, width = self.config.horizon, model.spec.inner_action_dim
        problem, damping = Problem(model, state, horizon, self.config.discount, heads=heads), Damping()
        actions, gains = torch.zeros(horizon, width), torch.zeros(horizon, width, problem.start.shape[1])
        expansion = _constant(problem)
        if expansion.finite:
            free = torch.full((horizon, width), torch.inf, dtype=torch.double)
            policy = solve(expansion, damping, -free, free)
            if policy is not None:
                actions, gains = _cut(expansion, policy).to(actions), policy.K.to(gains)
        path = problem.roll(lambda t, x: actions[t : t + 1], 1)
        return Found(path, gains, damping.failures, refused=int(not path.value.isfinite()))


def _constant(problem: Problem) -> Expansion:
    """The model at the present state without any action, as if it were so everywhere and always.

    It is about the path that this linear model would take without any action.
    """
    horizon, size = problem.horizon, problem.start.shape[1]
    still = torch.zeros(1, problem.model.spec.inner_action_dim).to(problem.start)
    with torch.no_grad():
        drift = (problem.step(problem.start, still)[0] - problem.start)[0].double()
    one, none = problem.start.new_ones(1, 2), problem.start.new_zeros(1)
    here = problem.expand(Path(problem.start.expand(1, 2, -1), still[None], one, none, none))
    away = [torch.zeros_like(drift)]
    for _ in range(horizon):
        away.append(here.a[0] @ away[-1] + drift)
    path = torch.stack(away)
    weight = problem.discount ** torch.arange(horizon + 1, dtype=torch.double)
    return Expansion(
        a=here.a.expand(horizon, -1, -1),
        b=here.b.expand(horizon, -1, -1),
        slope=weight[:-1, None] * (here.slope + path[:-1] @ here.curvature[0, :size]),
        curvature=weight[:-1, None, None] * here.curvature,
        last_slope=weight[-1] * (here.last_slope + here.last_curvature @ path[-1]),
        last_curvature=weight[-1] * here.last_curvature,
    )


def _cut(expansion: Expansion, policy: Gains) -> Tensor:
    """The actions [H, A] of a policy in its own linear model, within their limits."""
    away, actions = torch.zeros_like(expansion.last_slope), []
    for t in range(len(policy.k)):
        actions.append((policy.k[t] + policy.K[t] @ away).clamp(-1.0, 1.0))
        away = expansion.a[t] @ away + expansion.b[t] @ actions[-1]
    return torch.stack(actions)


class Found(NamedTuple):
    """What a planner that linearises found from one state.

    Attributes:
        path: the best (N = 1).
        gains: [H, A, Z] feedback about it.
        failures: factorisations that failed, and were regularised.
        refused: paths of the last search without a finite prediction.
    """

    path: Path
    gains: Tensor
    failures: int
    refused: int


def plan_of(model: Model, state: ModelState, found: list[Found], met: bool, display: int) -> Plan:
    """The Plan for all B states."""
    path = Path(*(torch.cat(fields) for fields in zip(*(one.path for one in found), strict=True)))
    valid = path.value.isfinite()
    only = path.actions[:, None], path.value[:, None]
    return Plan(
        actions=path.actions.where(valid[:, None, None], torch.nan),
        value=path.value,
        guess=Guess(path.actions),
        deadline_met=met,
        disagreement=path.disagreement,
        valid=valid,
        refused=torch.tensor([one.refused for one in found]),
        failures=torch.tensor([one.failures for one in found]),
        states=path.states,
        gains=torch.stack([one.gains for one in found]),
        **(shown(model, state, path.actions, *only) if display else {}),
    )
