"""Contract tests: what every planner and every agent must keep, ours or a user's, on a point mass whose
optimum is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import CONTINUOUS, DISCRETE, Element, Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Rollout
from mbrl_planner.interfaces import Planner


def lqr_return(start: np.ndarray, steps: int) -> float:
    """Best possible return of the point mass: the finite-horizon Riccati recursion (Bertsekas, 4.1)."""
    world = PointMass()
    cost = np.zeros((2, 2))  # nothing is paid for the last state
    for _ in range(steps):
        gain = np.linalg.solve(world.R + world.B.T @ cost @ world.B, world.B.T @ cost @ world.A)
        cost = world.Q + world.A.T @ cost @ (world.A - world.B @ gain)
    return -float(start @ cost @ start)


@cache
def stationary_gain() -> np.ndarray:
    """The infinite-horizon LQR gain [1, 2] of the point mass, from scipy's Riccati solver."""
    world = PointMass()
    cost = scipy.linalg.solve_discrete_are(world.A, world.B, world.Q, world.R)
    return np.linalg.solve(world.R + world.B.T @ cost @ world.B, world.B.T @ cost @ world.A)


class Poisoned(PointMass):
    """A point mass whose model returns NaN for most candidates, as a diverged network does."""

    def imagine(self, *args: Any, **kwargs: Any) -> Rollout:
        """As the point mass, with NaN rewards for all candidates but every third."""
        rollout = super().imagine(*args, **kwargs)
        reward = rollout.reward.clone()
        reward[:, 1::3] = torch.nan
        reward[:, 2::3] = torch.nan
        return replace(rollout, reward=reward)


def closed_loop(planner: Planner, starts: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Returns [B] of the point mass under a planner that sees the true model, warm-started."""
    model, generator = PointMass(), torch.Generator().manual_seed(seed)
    state, guess, total = starts, None, torch.zeros(len(starts))
    for _ in range(steps):
        plan = planner.plan(model, state, guess, noise=generator)
        guess = plan.guess
        prediction = model.step(state, plan.actions[:, 0])
        state, total = prediction.state, total + prediction.reward
    return total


def check_planner(make: Callable[[], Planner], *, score: float = 0.9) -> None:
    """Hold a planner to its protocol.

    Args:
        make: builds it with its default configuration. One that draws nothing says `deterministic = True`; it
            may have just one candidate to show.
        score: least closed-loop score on the point mass, where LQR is 1 and doing nothing is 0.

    Raises:
        AssertionError: the planner breaks the contract; the message says which rule.
    """
    planner, model = make(), PointMass()
    planner.check(model.spec)
    starts = torch.tensor([[1.0, 0.0], [-0.6, 0.5], [0.3, -0.8]])

    def plan(seed: int = 0, **kwargs: Any) -> Any:
        return planner.plan(model, starts, noise=torch.Generator().manual_seed(seed), **kwargs)

    first, again, other = plan(0), plan(0), plan(1)
    batch, horizon, width = first.actions.shape
    assert (batch, width) == (3, 1), "actions must be [B, H, A]"
    assert first.actions.abs().max() <= 1, "actions must stay within [-1, 1]"
    assert first.value.shape == (3,), "value must be [B]"
    assert torch.equal(first.actions, again.actions), "the same noise must give the same plan"
    fixed = getattr(planner, "deterministic", False)
    assert torch.equal(first.actions, other.actions) == fixed, (
        "other noise must give another plan, unless the planner is `deterministic`"
    )
    assert first.deadline_met, "without a deadline it is always met"
    assert first.obs is None and first.candidate_obs is None, "display costs time: only when asked for"

    late = plan(deadline=time.perf_counter() - 1.0)
    assert not late.deadline_met and late.actions.isfinite().all(), (
        "a missed deadline still gives the best so far"
    )
    shown = plan(display=5)
    assert torch.equal(shown.actions, first.actions), "display must not change the plan"
    assert shown.obs.shape == (3, horizon + 1, 2) and shown.spread.shape == shown.obs.shape
    count = 1 if fixed else 5
    assert shown.candidate_obs.shape == (3, count, horizon + 1, 2)
    assert shown.candidate_returns.shape == (3, count)
    assert torch.allclose(shown.obs[:, 0], starts), "the predicted path begins at the state"

    warm = plan(guess=first.guess, shift=0)
    assert (warm.value >= first.value - 0.2 * first.value.abs()).all(), (
        "a warm start must not lose what was found"
    )
    poisoned = planner.plan(Poisoned(), starts, noise=torch.Generator().manual_seed(0))
    assert poisoned.actions.isfinite().all(), "candidates without a number must not reach the answer"

    best = torch.tensor([lqr_return(start.numpy(), 60) for start in starts])
    idle = torch.stack(
        [sum(model.reward(s, torch.zeros(1), s) for s in _drift(model, start, 60)) for start in starts]
    )
    reached = closed_loop(planner, starts, 60)
    scores = (reached - idle) / (best - idle)
    assert scores.min() >= score, f"closed-loop scores {[round(float(s), 3) for s in scores]}, below {score}"


def _drift(model: PointMass, start: Tensor, steps: int) -> list[Tensor]:
    states = [start]
    for _ in range(steps - 1):
        states.append(model.step(states[-1], torch.zeros(1)).state)
    return states


def check_agent(make: Callable[[Spec, int], Any], model: Any = None) -> None:
    """Hold an agent that learns a policy to its protocol, on the point mass (or two choices of force there).

    Args:
        make: builds a small one for a spec and a seed, with few random steps (at most 60).
        model: with rewards, for agents that learn with one.

    Raises:
        AssertionError: the agent breaks the contract; the message says which rule.
    """
    spec = point_mass_spec()
    if CONTINUOUS not in make_kinds(make):
        spec = replace(spec, action=(Element("force", count=2),))
    agent, buffer = make(spec, 0), _experience(spec, 90)
    wrong = point_mass_spec() if spec.discrete else replace(spec, action=(Element("force", count=2),))
    if len(agent.kinds) == 1:
        with _raises(UserError):
            make(wrong, 0)

    assert not agent.ready, "an agent that has learned nothing is not ready"
    assert agent.update(buffer, model, env_steps=1) == {}, "nothing is owed before the random steps are over"
    owed = agent.owed(90)
    assert owed > 0, "after the random steps there are gradient steps to make"
    part = max(owed // 2, 1)
    metrics = agent.update(buffer, model, env_steps=90, limit=part)
    assert metrics and all(np.isfinite(v) for v in metrics.values()), "update returns its finite metrics"
    assert agent.updates == part and agent.owed(90) == owed - part, "each gradient step is counted once"
    assert agent.ready, "an agent that has learned is ready"

    seen = {"vector": torch.tensor([[0.5, -0.2], [-1.0, 0.4], [0.0, 0.0]])}
    first = torch.ones(3, dtype=torch.bool)

    def act(who: Any, explore: bool, seed: int = 3) -> Tensor:
        who.seed(seed)
        return who.act(seen, None, first=first, prev_action=None, explore=explore)[0]

    chosen = act(agent, False)
    batch, _, width = chosen.shape
    assert (batch, width) == (3, spec.inner_action_dim), "actions must be [B, H, A]"
    assert chosen.isfinite().all() and chosen.abs().max() <= 1, "actions must stay within [-1, 1]"
    assert torch.equal(chosen, act(agent, False)), "the same seed must give the same actions"
    assert torch.equal(act(agent, True), act(agent, True)), "the same seed must give the same exploration"

    actor = make(spec, 1)
    actor.load_acting_state(agent.acting_state())
    actor.updates = agent.updates
    assert torch.equal(act(actor, False), chosen), "acting_state must hold all that acting needs"

    twin = make(spec, 2)
    twin.load_state_dict(agent.state_dict())
    twin.load_training_state(agent.training_state())
    assert twin.updates == agent.updates, "training_state must hold the counters"
    for name, tensor in agent.training_state().items():
        assert torch.equal(twin.training_state()[name], tensor), f"training_state lost '{name}'"


def make_kinds(make: Callable[[Spec, int], Any]) -> tuple[str, ...]:
    """The kinds of action that an agent takes, found out by building it."""
    try:
        return tuple(make(point_mass_spec(), 0).kinds)
    except UserError:
        return (DISCRETE,)


def _experience(spec: Spec, steps: int) -> ReplayBuffer:
    rng, world, buffer = np.random.default_rng(0), PointMass(), ReplayBuffer(spec)
    obs = rng.uniform(-1.0, 1.0, 2)
    buffer.add(Transition(bytes(16), 0, 0, obs, np.zeros(1), first=True))
    for step in range(1, steps + 1):
        action = spec.unscale_action(rng.uniform(-1.0, 1.0, spec.inner_action_dim))
        force = action / 2.0 if not spec.discrete else 2.0 * action - 1.0
        reward = float(world.reward(obs, force, obs))
        obs = world.A @ obs + world.B @ force
        buffer.add(Transition(bytes(16), 0, step, obs, action, reward))
    return buffer


@contextmanager
def _raises(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError("an agent whose action space does not fit must say so with a UserError")
