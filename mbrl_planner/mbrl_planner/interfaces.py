"""The protocols that make planners and agents exchangeable; `mbrl_planner.testing` tests their contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import ModelState


@dataclass(frozen=True)
class Guess:
    """A planner's warm start: what one plan leaves for the next.

    Attributes:
        mean: [B, H, A] where the search begins.
        elites: [B, K, H, A] candidates worth trying again; None where a planner keeps none.
    """

    mean: Tensor
    elites: Tensor | None = None

    def shifted(self, steps: int) -> Guess:
        """The same plan seen `steps` control steps later: the head is done, the last row is repeated."""
        return Guess(_shift(self.mean, steps), None if self.elites is None else _shift(self.elites, steps))


def _shift(plan: Tensor, steps: int) -> Tensor:
    horizon = plan.shape[-2]
    rows = torch.arange(horizon, device=plan.device).add(steps).clamp(max=horizon - 1)
    return plan.index_select(-2, rows)


@dataclass(frozen=True)
class Plan:
    """One decision for each of B states. Actions are scaled to [-1, 1] (one-hot where discrete).

    Attributes:
        actions: [B, H, A] what to do; row 0 now.
        value: [B] predicted return of the best candidate (a planner that answers with a mean promises a
            little more than it does); where `violation` is positive, its negative.
        guess: the warm start for the next plan.
        deadline_met: whether the search ended by itself, rather than at the deadline with the best so far.
        disagreement: [B] spread of the model's members along the plan [normalised]; None = unknown.
        valid: [B] bool, whether it can be used: False where no prediction was finite, so that the actions are
            NaN; None = everywhere.
        refused: [B] candidates of the last iteration whose prediction was not finite [1]; None = unknown.
        violation: [B] by how much the best candidate breaks the constraints, added up over its steps,
            mean over its imagined futures [SI]; 0 = it keeps them; None = there are none.
        states: [B, H+1, Z] the state's numbers along the plan, which `gains` are about; None = unknown.
        gains: [B, H, A, Z] what to add to the actions for a unit of deviation from `states`; None = unknown
            (see `mbrl_planner.planners.ilqr.feedback`).
        failures: [B] factorisations that failed and were regularised [1]; None = there were none to make.
        obs: [B, H+1, D] predicted mean observation, SI; None unless asked for by `display`.
        spread: [B, H+1, D] standard deviation over particles, SI; None unless asked for by `display`.
        candidate_obs: [B, N, H+1, D] mean observations of some candidates, SI; None unless asked for.
        candidate_returns: [B, N] their predicted returns.
    """

    actions: Tensor
    value: Tensor
    guess: Guess
    deadline_met: bool = True
    disagreement: Tensor | None = None
    valid: Tensor | None = None
    refused: Tensor | None = None
    violation: Tensor | None = None
    states: Tensor | None = None
    gains: Tensor | None = None
    failures: Tensor | None = None
    obs: Tensor | None = None
    spread: Tensor | None = None
    candidate_obs: Tensor | None = None
    candidate_returns: Tensor | None = None


class Heads(Protocol):
    """What a learned agent lends to a search: a terminal value and a prior over actions."""

    def value(self, state: ModelState) -> Tensor:
        """Value of a state, [...]."""
        ...

    def policy(self, state: ModelState, noise: torch.Generator | None = None) -> Tensor:
        """An action for a state, [..., A]; `noise` None = the mode."""
        ...


class Planner(Protocol):
    """Searches through a model. Stateless: the warm start comes in and goes out."""

    config: Any

    def check(self, spec: Spec, model: Any = None, task: Any = None) -> None:
        """Look whether the planner, as it is configured, fits a world and can search through a model.

        Args:
            spec: of the world.
            model: an instance, or its class; None = not known yet.
            task: whose reward is planned for; None = not known yet, or the model has learned one.

        Raises:
            UserError: it does not, in one sentence.
        """
        ...

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
        """Decide.

        Args:
            model: what happens next, with rewards.
            state: [B] where to start.
            guess: the `guess` of the last plan; None = start afresh.
            shift: control steps since `guess` was made [steps].
            heads: terminal value and action prior, if any.
            deadline: `time.perf_counter()` at which to stop with the best plan so far [s]; None = no limit.
            noise: source of all random numbers; None = torch's global one.
            display: how many candidates to lay open for people; 0 also leaves out predicted observations.
        """
        ...


class Agent(Protocol):
    """Acts. Carries its memory explicitly, so that a reset is just None."""

    def act(
        self, obs: dict[str, Tensor], carry: Any, *, first: Tensor, prev_action: Tensor | None, explore: bool
    ) -> tuple[Tensor, Any]:
        """Choose actions for B observations.

        Args:
            obs: name -> [B, ...], SI.
            carry: memory that the last call returned; None = begin.
            first: [B] bool, an episode begins with this observation.
            prev_action: [B, A] the action that was EXECUTED to get here, scaled; None at the beginning.
            explore: whether to add exploration noise.

        Returns:
            Actions [B, H, A] (row 0 now; H = 1 for a policy) and the new memory.
        """
        ...
