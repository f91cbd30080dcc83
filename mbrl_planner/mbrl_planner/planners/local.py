"""What planners that differentiate share: which models they take, and a model near a path to second order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Capabilities, Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import ModelState
from mbrl_planner.agents.networks import frozen
from mbrl_planner.interfaces import Heads
from mbrl_planner.planners.scoring import members
from mbrl_planner.planners.shared import check_continuous, check_warm

OTHERS = "take a planner that only tries plans out, such as icem, cem, mppi, pddm or random_shooting"


def check_differentiable(planner: str, model: Any, *, memory: bool) -> None:
    """Look whether a planner can differentiate through a model.

    Args:
        planner: its name.
        model: an instance or a class, with `capabilities`.
        memory: whether the model may be recurrent.

    Raises:
        UserError: it cannot; the sentence names planners that need not.
    """
    can: Capabilities = model.capabilities
    kind = model.__name__ if isinstance(model, type) else type(getattr(model, "model", model)).__name__
    if not can.differentiable:
        raise UserError(f"planner '{planner}' needs a model with gradients, which {kind} has not; {OTHERS}")
    if can.recurrent and not memory:
        raise UserError(
            f"planner '{planner}' needs a model whose state is what is seen, but {kind} has a memory; "
            f"{OTHERS}"
        )


def check_slopes(planner: str, task: Any) -> None:
    """Look whether a planner that differentiates can climb the reward of a task.

    Args:
        planner: its name.
        task: with `reward`.

    Raises:
        UserError: the reward is flat, and only jumps.
    """
    spec = task.spec
    with torch.inference_mode(False), torch.enable_grad():
        obs = torch.zeros(1, spec.observation_dim, requires_grad=True)
        action = torch.zeros(1, spec.inner_action_dim, requires_grad=True)
        try:
            sloping = task.reward(obs, action, obs).requires_grad
        except NotImplementedError:  # only the world tells it
            return
    if not sloping:
        raise UserError(
            f"planner '{planner}' needs a reward with gradients, but that of task '{spec.task}' only jumps; "
            f"{OTHERS}"
        )


class LocalPlanner:
    """What planners that differentiate have in common: what they can be used for.

    Args:
        config: of the class in `Config`.
    """

    Config: ClassVar[type]
    memory: ClassVar[bool] = False  # whether the model may be recurrent

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config or self.Config()

    def check(self, spec: Spec, model: Any = None, task: Any = None) -> None:
        """Look whether the planner fits a world and can use a model; see `Planner.check`."""
        name = type(self).__name__.lower()
        check_continuous(name, spec)
        if model is not None:
            check_differentiable(name, model, memory=self.memory)
        task = task or getattr(model, "task", None)  # a model that was told one, see WithTask
        if task is not None:
            check_slopes(name, task)
        if hasattr(self.config, "rrt_expansions"):
            check_warm(self.config, spec, model)


@contextmanager
def differentiating(model: Model) -> Iterator[None]:
    """A block in which gradients flow through a model but not into its weights, whatever is outside."""
    with torch.inference_mode(False), frozen(model):
        yield


def usable(state: ModelState) -> ModelState:
    """A state whose tensors may take part in a gradient, wherever they come from."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), state)


def flat(state: ModelState) -> Tensor:
    """A state's numbers as vectors [N, Z].

    Raises:
        UserError: it holds others than floating-point numbers.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(state) if leaf is not None]
    if not all(leaf.is_floating_point() for leaf in leaves):
        raise UserError(f"planners that linearise need a state of floating-point numbers; {OTHERS}")
    return torch.cat([leaf.flatten(1) for leaf in leaves], dim=1)


class Path(NamedTuple):
    """N ways through a model over H steps.

    Attributes:
        states: [N, H+1, Z].
        actions: [N, H, A] scaled.
        weight: [N, H+1] discount times the probability to get there.
        value: [N] what they are worth; -inf = the prediction is not finite.
        disagreement: [N] mean over the steps [normalised]; NaN = unknown.
    """

    states: Tensor
    actions: Tensor
    weight: Tensor
    value: Tensor
    disagreement: Tensor

    def row(self, n: int) -> Path:
        """One of them, as N = 1."""
        return Path(*(field[n : n + 1] for field in self))


class Expansion(NamedTuple):
    """A model and its cost (minus the reward) about a path, in float64: x_{t+1} = a x_t + b u_t from there.

    Attributes:
        a: [H, Z, Z] derivatives of the next state by the state.
        b: [H, Z, A] by the action.
        slope: [H, Z+A] of the cost by state and action.
        curvature: [H, Z+A, Z+A] of the cost; never negative.
        last_slope: [Z] of the terminal cost.
        last_curvature: [Z, Z] of the terminal cost; never negative.
    """

    a: Tensor
    b: Tensor
    slope: Tensor
    curvature: Tensor
    last_slope: Tensor
    last_curvature: Tensor

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(field.isfinite().all()) for field in self)


class Problem:
    """A model seen from one state, as a function of vectors; its mean, where it is stochastic.

    Args:
        model: differentiable, with rewards.
        start: where plans begin, [1, ...].
        horizon: H [steps].
        discount: of rewards a step later, and of the terminal value [1].
        caution: cost of a unit of disagreement a step [reward].
        heads: terminal value; None = 0.
    """

    def __init__(
        self,
        model: Model,
        start: ModelState,
        horizon: int,
        discount: float = 1.0,
        caution: float = 0.0,
        heads: Heads | None = None,
    ) -> None:
        self.model, self.horizon, self.discount = model, horizon, discount
        self.caution, self.heads = caution, heads
        self.start, self._like = flat(start), start

    def state(self, x: Tensor) -> ModelState:
        """Vectors [N, Z] as states of the model, the inverse of `flat`."""
        at = 0

        def part(leaf: Tensor) -> Tensor:
            nonlocal at
            at, begin = at + leaf[0].numel(), at
            return x[:, begin:at].unflatten(1, leaf.shape[1:])

        return pytree.tree_map_only(Tensor, part, self._like)

    def step(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Next state [N, Z], reward less caution, probability to go on, and disagreement [N]."""
        ahead = self.model.step(self.state(x), action)
        assert ahead.reward is not None
        reward, spread = ahead.reward, ahead.disagreement
        if self.caution:
            reward = reward - self.caution * members(spread, self.caution)
        spread = torch.full_like(reward, torch.nan) if spread is None else spread
        alive = torch.ones_like(reward) if ahead.alive is None else ahead.alive
        return flat(ahead.state), reward, alive, spread

    def end(self, x: Tensor) -> Tensor:
        """Terminal value [N]."""
        return x.new_zeros(len(x)) if self.heads is None else self.heads.value(self.state(x))

    @torch.no_grad()
    def roll(self, policy: Callable[[int, Tensor], Tensor], count: int) -> Path:
        """Follow N policies (step, states [N, Z]) -> actions [N, A]."""
        states, actions, spreads = [self.start.expand(count, -1)], list[Tensor](), list[Tensor]()
        weight = [self.start.new_ones(count)]
        value = self.start.new_zeros(count)
        for t in range(self.horizon):
            actions.append(policy(t, states[-1]))
            ahead, reward, alive, spread = self.step(states[-1], actions[-1])
            value = value + weight[-1] * reward
            states.append(ahead)
            weight.append(self.discount * weight[-1] * alive)
            spreads.append(spread)
        value = value + weight[-1] * self.end(states[-1])
        path = torch.stack(states, 1)
        finite = value.isfinite() & path.isfinite().all(-1).all(-1)
        worth = value.where(finite, -torch.inf)
        return Path(
            path, torch.stack(actions, 1), torch.stack(weight, 1), worth, torch.stack(spreads).mean(0)
        )

    def expand(self, path: Path) -> Expansion:
        """The model and its cost about the first of the paths.

        How the probability to go on depends on the state is left out: where the task says it, it is a step.
        """
        size, last = self.start.shape[1], path.states[0, -1:]
        rows = torch.cat([path.states[0, :-1], path.actions[0]], dim=1)
        weight = path.weight[0].double()

        def outcome(row: Tensor) -> Tensor:
            ahead, reward, _, _ = self.step(row[None, :size], row[None, size:])
            return torch.cat([ahead[0], -reward])

        first = torch.func.vmap(torch.func.jacrev(outcome))(rows).double()
        second = torch.func.vmap(_hessian(lambda row: outcome(row)[-1]))(rows).double()
        slope, curvature = last.new_zeros(size).double(), last.new_zeros(size, size).double()
        if self.heads is not None:

            def cost(x: Tensor) -> Tensor:
                return -self.end(x[None])[0]

            slope, curvature = torch.func.grad(cost)(last[0]).double(), _hessian(cost)(last[0]).double()
        return Expansion(
            a=first[:, :size, :size],
            b=first[:, :size, size:],
            slope=weight[:-1, None] * first[:, size],
            curvature=_convex(weight[:-1, None, None] * second),
            last_slope=weight[-1] * slope,
            last_curvature=_convex(weight[-1] * curvature),
        )


def _hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Second derivatives of a scalar, by going backwards twice (measured: faster than forwards over it)."""
    hessian: Callable[[Tensor], Tensor] = torch.func.jacrev(torch.func.jacrev(function))
    return hessian


def _convex(curvature: Tensor) -> Tensor:
    """The nearest symmetric matrices [..., n, n] without negative curvature (Higham, 1988).

    A minimum is where a cost bends upwards; what bends downwards would send the search to the path's ends.
    """
    if not curvature.isfinite().all():
        return curvature
    values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.mT))
    return (vectors * values.clamp(min=0.0)[..., None, :]) @ vectors.mT
