"""Small worlds in plain numpy in which a right implementation learns within seconds; a wrong one does not.

For tests of agents, ours and users'; see `mbrl_planner.testing.check_agent`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.transition import Transition

Array = NDArray[np.float64]


class SmallWorld(Protocol):
    """A world whose state is a plain array."""

    spec: Spec
    steps: int  # until an episode is truncated

    def reset(self, rng: np.random.Generator) -> Array:
        """Where an episode begins."""
        ...

    def step(self, state: Array, action: Array) -> tuple[Array, float, bool]:
        """State, reward and termination after a scaled (or one-hot) action [A]."""
        ...

    def observe(self, state: Array) -> Array:
        """What is seen of a state [D]."""
        ...


class PointMassWorld:
    """The point mass of `mbrl_dynamics.testing`, as a world: linear dynamics, quadratic cost."""

    steps = 60

    def __init__(self) -> None:
        self.spec, self._mass = point_mass_spec(), PointMass()

    def reset(self, rng: np.random.Generator) -> Array:
        """A position and a velocity up to 1."""
        return rng.uniform(-1.0, 1.0, 2)

    def step(self, state: Array, action: Array) -> tuple[Array, float, bool]:
        """Exact."""
        after = self._mass.A @ state + self._mass.B @ np.clip(action, -1.0, 1.0)
        return after, float(self._mass.reward(state, action, after)), False

    def observe(self, state: Array) -> Array:
        """All of it."""
        return state


class HiddenVelocityWorld(PointMassWorld):
    """The point mass whose velocity is not seen, so that a policy needs a memory."""

    def __init__(self) -> None:
        super().__init__()
        s = self.spec
        self.spec = Spec("hidden_velocity", s.observation[:1], s.action, s.control_period)

    def observe(self, state: Array) -> Array:
        """The position."""
        return state[:1]


class PlaneWorld(PointMassWorld):
    """Two point masses at once: a point in the plane."""

    def __init__(self) -> None:
        super().__init__()
        one = self.spec
        self.spec = Spec(
            "plane",
            tuple(
                Element(f"{e.name}_{axis}", e.unit, e.low, e.high) for axis in "xy" for e in one.observation
            ),
            tuple(Element(f"{e.name}_{axis}", e.unit, e.low, e.high) for axis in "xy" for e in one.action),
            one.control_period,
        )

    def reset(self, rng: np.random.Generator) -> Array:
        """Positions and velocities up to 1."""
        return rng.uniform(-1.0, 1.0, 4)

    def step(self, state: Array, action: Array) -> tuple[Array, float, bool]:
        """Each axis by itself."""
        (x, u, _), (y, v, _) = (
            super(PlaneWorld, self).step(state[i : i + 2], action[i // 2, None]) for i in (0, 2)
        )
        return np.concatenate([x, y]), u + v, False


Choose = Callable[[Array, bool], Array]  # observation, whether an episode begins -> scaled action


def run_episode(
    world: SmallWorld,
    choose: Choose,
    rng: np.random.Generator,
    hear: Callable[[Transition], Any],
    episode: int = 0,
) -> float:
    """One episode; returns its return. `hear` gets each Transition as it comes to be."""
    world_id, state, total = uuid.UUID(int=1).bytes, world.reset(rng), 0.0
    obs = world.observe(state)
    hear(Transition(world_id, episode, 0, obs, np.zeros(world.spec.action_dim), first=True))
    for step in range(1, world.steps + 1):
        inner = choose(obs, step == 1)
        state, reward, ended = world.step(state, inner)
        obs, total = world.observe(state), total + reward
        action, over = world.spec.unscale_action(inner), step == world.steps and not ended
        hear(Transition(world_id, episode, step, obs, action, reward, terminated=ended, truncated=over))
        if ended:
            break
    return total


def chooser(agent: Any, spec: Spec, rng: np.random.Generator, *, explore: bool) -> Choose:
    """An agent as a function of observations; at random until it is ready, if it explores."""
    memory: dict[str, Any] = {"carry": None, "action": None}

    def choose(obs: Array, first: bool) -> Array:
        seen = {"vector": torch.from_numpy(obs.astype(np.float32))[None]}
        previous = None if first else memory["action"]
        carry = agent.observe(
            seen, None if first else memory["carry"], first=torch.tensor([first]), prev_action=previous
        )
        if explore and not agent.ready:
            inner = random_action(spec, rng)
        else:
            with torch.no_grad():
                actions, carry = agent.choose(carry, explore=explore)
            inner = actions[0, 0].cpu().numpy().astype(np.float64)
        memory["carry"], memory["action"] = carry, torch.from_numpy(inner.astype(np.float32))[None]
        return inner

    return choose


def random_action(spec: Spec, rng: np.random.Generator) -> Array:
    """A uniform scaled action, or a one-hot one."""
    if spec.discrete:
        return np.eye(spec.inner_action_dim)[rng.integers(spec.inner_action_dim)]
    return rng.uniform(-1.0, 1.0, spec.inner_action_dim)


def train(
    agent: Any, world: SmallWorld, env_steps: int, *, seed: int = 0, model: Any = None, fit_steps: int = 300
) -> ReplayBuffer:
    """Let an agent act and learn for so many steps; it learns after each of them.

    Args:
        model: a model with rewards for agents that learn with one, fitted anew after each episode if it can
            be (`fit`), at most `fit_steps` gradient steps.
    """
    rng, buffer = np.random.default_rng(seed), ReplayBuffer(world.spec)
    agent.seed(seed)
    choose, episode = chooser(agent, world.spec, rng, explore=True), 0
    fitted = None

    def hear(state: Transition) -> None:
        nonlocal fitted
        buffer.add(state)
        if state.last and model is not None:
            model.fit(buffer, Budget(fit_steps))
            fitted = model
        agent.update(buffer, fitted, env_steps=len(buffer))

    while len(buffer) < env_steps:
        run_episode(world, choose, rng, hear, episode)
        episode += 1
    return buffer


def mean_return(agent: Any, world: SmallWorld, episodes: int = 20, seed: int = 10_000) -> float:
    """Mean return of the agent without exploration, over episodes of their own; None = of random actions."""
    rng, starts = np.random.default_rng(seed + 1), np.random.default_rng(seed)
    if agent is None:
        choose: Choose = lambda obs, first: random_action(world.spec, rng)  # noqa: E731
    else:
        choose = chooser(agent, world.spec, rng, explore=False)
    return float(np.mean([run_episode(world, choose, starts, lambda state: None) for _ in range(episodes)]))


def lqr_choose(obs: Array, first: bool) -> Array:
    """The best linear policy of the point mass (and of each axis of the plane)."""
    from mbrl_planner.testing import stationary_gain

    gain = stationary_gain()[0]
    return np.clip(-(obs.reshape(-1, 2) @ gain), -1.0, 1.0)


def point_mass_score(agent: Any, world: SmallWorld, episodes: int = 20, seed: int = 10_000) -> float:
    """Return on a scale where random actions are 0 and LQR (which sees the velocity) is 1."""
    full = PlaneWorld() if world.spec.action_dim == 2 else PointMassWorld()
    starts = np.random.default_rng(seed)
    best = np.mean([run_episode(full, lqr_choose, starts, lambda state: None) for _ in range(episodes)])
    worst = mean_return(None, world, episodes, seed)
    return (mean_return(agent, world, episodes, seed) - worst) / float(best - worst)


def typical_score(score: Callable[[int], float], enough: float, seeds: int = 3) -> float:
    """The median of the scores of seeds 0, 1 ..., as far as it decides what is enough (printed).

    For tests of learning: what a right implementation learns within seconds takes some luck, which depends on
    how the machine rounds, and a wrong one may be lucky for once. It ends when most seeds agree.
    """
    scores: list[float] = []
    while max(good := sum(s >= enough for s in scores), len(scores) - good) <= seeds // 2:
        scores.append(score(len(scores)))
    print(f"scores {np.round(scores, 3).tolist()}")
    agreeing = [s for s in scores if (s >= enough) == (good > seeds // 2)]
    return min(agreeing) if good > seeds // 2 else max(agreeing)
