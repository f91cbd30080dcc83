"""Model-predictive control: plan anew at every State or every few, carry out the first row."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Plan, Planner
from mbrl_planner.planners.ilqr import feedback

CONTEXT = 64  # States that are filtered again through a new recurrent model [steps]

Observation = Mapping[str, Tensor]


@dataclass(frozen=True)
class Memory:
    """What MPC carries from one State to the next.

    Attributes:
        recent: the last States: (observation, action executed to get there, whether an episode begins).
        model: the model that `state` belongs to.
        state: what that model believes, filtered up to the newest State.
        planner: the planner that `guess` belongs to.
        guess: warm start that the last plan left.
        age: control steps since `guess` was made [steps].
        plan: the last plan; None = none yet in this episode (of a batch: in one of its episodes).
    """

    recent: tuple[tuple[Observation, Tensor | None, Tensor], ...] = ()
    model: Model | None = None
    state: ModelState | None = None
    planner: Planner | None = None
    guess: Guess | None = None
    age: int = 0
    plan: Plan | None = None


class MPC:
    """An Agent that searches through a model. Actions are scaled to [-1, 1], or one-hot.

    The model is one reference that `swap` replaces between plans; memory that belongs to an older model is
    filtered again from the last States. Where actions take effect late, the caller hands in those already
    under way: the model is first rolled through them, and the plan begins after them.

    Args:
        planner: searches.
        model: what happens next, with rewards; None until there is one.
        exploration_noise: standard deviation of the Gaussian noise on the first row when exploring
            [1, of scaled actions]; the probability of a random choice where actions are discrete.
        time_budget: a decision ends after this long with the best plan so far [s]; 0 = no limit.
        replan_every: control steps from plan to plan, between which the plan's rows are followed, corrected
            by its gains where it has them; 1 = closed loop, 0 = open loop, to the plan's end [steps].
        seed: of all random numbers.
    """

    def __init__(
        self,
        planner: Planner,
        model: Model | None = None,
        *,
        exploration_noise: float = 0.0,
        time_budget: float = 0.0,
        replan_every: int = 1,
        seed: int = 0,
    ) -> None:
        self.planner = planner
        self.exploration_noise = exploration_noise
        self.time_budget = time_budget
        self.replan_every = replan_every
        self.display = 0  # candidates that the next plans lay open for people
        self._model = model
        self._noise = torch.Generator().manual_seed(seed)

    @property
    def model(self) -> Model | None:
        """The model in use."""
        return self._model

    @property
    def ready(self) -> bool:
        """Whether there is a model to plan with."""
        return self._model is not None

    def swap(self, model: Model | None) -> None:
        """Use another model from the next plan on."""
        self._model = model

    def seed(self, seed: int) -> None:
        """Begin the random numbers anew."""
        self._noise.manual_seed(seed)

    def act(
        self,
        obs: dict[str, Tensor],
        carry: Memory | None,
        *,
        first: Tensor,
        prev_action: Tensor | None,
        explore: bool,
    ) -> tuple[Tensor, Memory]:
        """Choose actions [B, H, A]: `observe`, then `choose` with nothing under way (see Agent)."""
        return self.choose(self.observe(obs, carry, first=first, prev_action=prev_action), explore=explore)

    @torch.no_grad()
    def observe(
        self,
        obs: Observation,
        carry: Memory | None,
        *,
        first: Tensor,
        prev_action: Tensor | None,
        steps: int = 1,
    ) -> Memory:
        """Take in a State without deciding.

        Args:
            obs: name -> [B, ...], SI.
            carry: memory; None = begin.
            first: [B] bool, an episode begins with this observation.
            prev_action: [B, A] the action executed to get here, scaled; None at the beginning.
            steps: control steps since the State before; more than one where States were lost, so that only
                the warm start survives.
        """
        memory = Memory() if carry is None or bool(first.all()) else carry
        whole = bool(memory.recent) and steps == 1
        step = (obs, prev_action if whole else None, first)
        model = self._model
        keep = 1 if model is not None and not model.capabilities.recurrent else CONTEXT
        recent = (*(memory.recent if whole else ()), step)[-keep:]
        if model is None:
            state = None
        elif whole and memory.model is model:
            state = model.observe(memory.state, prev_action, obs, first)
        else:
            state = _filter(model, recent)
        if first.any():
            guess = None if memory.guess is None else _cleared(memory.guess, first)
            memory = replace(memory, guess=guess, plan=None)
        return replace(memory, recent=recent, model=model, state=state, age=memory.age + steps)

    def choose(
        self, carry: Memory, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Memory]:
        """Decide on the State observed last.

        Args:
            carry: from `observe`.
            pending: [B, d, A] actions under way that take effect before this decision does; None = none.
            explore: whether to add exploration noise to the first row.

        Raises:
            RuntimeError: there is no model yet.
        """
        model, planner = self._model, self.planner
        if model is None:
            raise RuntimeError("MPC has no model yet")
        rows = self._followed(carry)
        if rows is not None:
            if carry.plan is not None and carry.plan.gains is not None:
                now = feedback(carry.plan, carry.age, self._start(carry, model, pending)[1])
                rows = torch.cat([now[:, None], rows[:, 1:]], dim=1)
            return (self._explore(rows, model) if explore else rows), carry
        deadline = time.perf_counter() + self.time_budget if self.time_budget else None
        guess = carry.guess if carry.planner is planner else None
        state, start = self._start(carry, model, pending)
        plan = planner.plan(
            model, start, guess, shift=carry.age, deadline=deadline, noise=self._noise, display=self.display
        )
        memory = replace(carry, model=model, state=state, planner=planner, guess=plan.guess, age=0, plan=plan)
        return (self._explore(plan.actions, model) if explore else plan.actions), memory

    def compute(self, obs: Observation, guess: Tensor | None = None, time_budget: float = 0.0) -> Plan:
        """One plan from an observation alone, as a service; touches no memory.

        Args:
            obs: name -> [B, ...], SI.
            guess: [B, H', A] where the search begins, of any length; None = afresh.
            time_budget: as in the constructor; 0 = the agent's own [s].
        """
        if self._model is None:
            raise RuntimeError("MPC has no model yet")
        budget = time_budget or self.time_budget
        deadline = time.perf_counter() + budget if budget else None
        start = None if guess is None else Guess(_fit(guess, self.planner.config.horizon))
        state = self._model.observe(None, None, obs)
        return self.planner.plan(
            self._model, state, start, shift=0, deadline=deadline, noise=self._noise, display=self.display
        )

    @torch.no_grad()
    def _start(self, carry: Memory, model: Model, pending: Tensor | None) -> tuple[ModelState, ModelState]:
        """What is believed now, and when the decision takes effect."""
        state = carry.state if carry.model is model else _filter(model, carry.recent)
        return state, state if pending is None else _roll(model, state, pending)

    def _followed(self, carry: Memory) -> Tensor | None:
        """The rest of the last plan [B, H - age, A]; None = it is time for another one."""
        plan = carry.plan
        if plan is None or carry.planner is not self.planner:
            return None
        rows = plan.actions[:, carry.age :]
        over = carry.age == 0 or carry.age >= self.replan_every > 0 or not rows.shape[1]
        usable = plan.valid is None or bool(plan.valid.all())
        return None if over or not usable else rows

    def _explore(self, actions: Tensor, model: Model) -> Tensor:
        if self.exploration_noise == 0.0:
            return actions
        actions = actions.clone()
        if model.spec.discrete:
            batch, count = actions.shape[0], actions.shape[-1]
            other = torch.randint(count, (batch,), generator=self._noise)
            swap = torch.rand(batch, generator=self._noise) < self.exploration_noise
            actions[swap, 0] = torch.eye(count)[other[swap]]
        else:
            noise = torch.randn(actions[:, 0].shape, generator=self._noise).to(actions)
            actions[:, 0] = (actions[:, 0] + self.exploration_noise * noise).clamp(-1.0, 1.0)
        return actions


def _filter(model: Model, recent: tuple[tuple[Observation, Tensor | None, Tensor], ...]) -> ModelState:
    state: Any = None
    for obs, action, first in recent:
        state = model.observe(state, None if state is None else action, obs, None if state is None else first)
    return state


def _roll(model: Model, state: ModelState, actions: Tensor) -> ModelState:
    for i in range(actions.shape[1]):
        state = model.step(state, actions[:, i]).state
    return state


def _cleared(guess: Guess, rows: Tensor) -> Guess:
    """The guess with zeros for the batch rows that begin a new episode."""
    keep = (~rows).to(guess.mean)
    elites = None if guess.elites is None else guess.elites * keep[:, None, None, None]
    return Guess(guess.mean * keep[:, None, None], elites)


def _fit(plan: Tensor, horizon: int) -> Tensor:
    """A plan [B, H', A] cut, or its last row repeated, to [B, horizon, A]."""
    rows = torch.arange(horizon, device=plan.device).clamp(max=plan.shape[1] - 1)
    return plan.index_select(1, rows)
