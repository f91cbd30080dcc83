"""Planning in one process, in lock-step and without ROS: what measurements of planners and models share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_bringup.evaluate import plain
from mbrl_bringup.result import atomic_write
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget, Noise, Policy
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import ModelState, Prediction, Rollout
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.interfaces import Plan
from mbrl_planner.small_worlds import Choose, chooser
from mbrl_sim.physics import Physics

Array = NDArray[np.float64]


def episode(
    world: Physics,
    choose: Choose,
    *,
    seed: int,
    hear: Callable[[Transition], Any] = lambda state: None,
    number: int = 0,
) -> float:
    """One episode; returns its return.

    Args:
        choose: (observation, whether an episode begins) -> scaled action [A].
        seed: of where it begins.
        hear: gets each Transition as it comes to be.
        number: of the episode, in the transitions.
    """
    task, spec, total = world.task, world.task.spec, 0.0
    obs = world.reset(seed=seed)
    hear(Transition(bytes(16), number, 0, obs, np.zeros(spec.action_dim), first=True))
    for step in range(1, task.max_steps + 1):
        action = spec.unscale_action(choose(obs, step == 1))
        result = world.step(action)
        obs, total, ended = result.observation, total + result.reward, result.terminated
        over = not ended and (result.truncated or step == task.max_steps)
        hear(
            Transition(bytes(16), number, step, obs, action, result.reward, terminated=ended, truncated=over)
        )
        if ended or over:
            break
    return total


def learn(
    world: Physics,
    model: Any,
    planner: Any,
    *,
    episodes: int,
    fit_steps: int,
    seed: int,
    hear: Callable[[Transition], Any] = lambda state: None,
    heard: Callable[[float], Any] = lambda ret: None,
) -> tuple[ReplayBuffer, list[float]]:
    """The ordinary way to learn: an episode at random, then plan through what all so far have taught.

    Args:
        model: predicts observations, for a task that tells its reward; fitted between episodes.
        episodes: in all.
        fit_steps: gradient steps a fit at most.
        seed: of where episodes begin, the random actions and the planner.
        hear: gets each Transition as it comes to be.
        heard: told the return of each episode.

    Returns:
        All that was seen, and the returns.
    """
    buffer, agent = ReplayBuffer(world.task.spec), MPC(planner, seed=seed)
    choose = chooser(agent, world.task.spec, np.random.default_rng(seed), explore=True)
    returns: list[float] = []

    def keep(state: Transition) -> None:
        buffer.add(state)
        hear(state)

    for number in range(episodes):
        start = 1000 * (seed + 1) + number
        returns.append(episode(world, choose, seed=start, hear=keep, number=number))
        heard(returns[-1])
        if number + 1 < episodes:
            model.fit(buffer, Budget(fit_steps))
            agent.swap(WithTask(model, world.task))
    return buffer, returns


class Counted(WithTask):
    """A model with the task's reward that counts its predictions: steps of imagined futures."""

    predictions: int = 0

    def step(self, state: ModelState, action: Tensor, noise: Noise = None) -> Prediction:
        """As the model."""
        self.predictions += rows(action)
        return super().step(state, action, noise)

    def imagine(
        self,
        state: ModelState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """As the model."""
        rollout = super().imagine(
            state, actions, particles=particles, horizon=horizon, noise=noise, keep=keep
        )
        self.predictions += rollout.reward.numel()
        return rollout


def rows(action: Tensor) -> int:
    """How many actions [..., A] there are, those included over which `torch.func.vmap` hides a dimension."""
    width, inner = action.shape[-1], action
    while torch._C._functorch.is_functorch_wrapped_tensor(inner):
        inner = torch._C._functorch.get_unwrapped(inner)
    return inner.numel() // width


class OverBudget(Exception):
    """An episode would take longer than it may."""


class Stopwatch:
    """A planner that measures how long its plans take, in processor time, and gives up what takes too long.

    Processor time of one thread is what a plan takes where it has a core to itself, even if it has not.

    Args:
        planner: with gradients or without.
        plans: that an episode needs.
        budget: processor time for all of them [s].
    """

    LOOK = 4  # plans after which it is foreseen how long all take; the first warms up

    def __init__(self, planner: Any, plans: int = 1, budget: float = float("inf")) -> None:
        self.planner, self.seconds = planner, list[float]()
        self.refused = 0  # plans without a finite prediction
        self._plans, self._budget = plans, budget

    def __getattr__(self, name: str) -> Any:
        return getattr(self.planner, name)

    def plan(self, *args: Any, **options: Any) -> Plan:
        """As the planner.

        Raises:
            OverBudget: it is foreseen.
        """
        begin = time.process_time()
        plan: Plan = self.planner.plan(*args, **options)
        self.seconds.append(time.process_time() - begin)
        self.refused += plan.valid is not None and not bool(plan.valid.all())
        if len(self.seconds) == self.LOOK and float(np.median(self.seconds[1:])) * self._plans > self._budget:
            raise OverBudget
        return plan


class Growing:
    """A file of results that holds each as soon as it is there, and with which a later run goes on.

    Args:
        path: JSON; made where there is none.
        about: what it is about: settings, which a later run must share; then what only the newest says.
        rows: name of the list of results.

    Raises:
        UserError: the file is there, but with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], rows: str, **newest: Any) -> None:
        self.path, self._name = path, rows
        self.content: dict[str, Any] = {"settings": plain(dict(settings)), rows: []}
        if path.exists():
            self.content = json.loads(path.read_text())
            if self.content["settings"] != json.loads(json.dumps(plain(dict(settings)))):
                raise UserError(f"'{path}' holds results of other settings: name another file by --out")
        self.content |= newest

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All results so far."""
        found: list[dict[str, Any]] = self.content[self._name]
        return found

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The first result of which all this is true."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a result."""
        self.rows.append(plain(dict(row)))
        self.write()

    def take(self, path: Path, key: Collection[str], lists: Collection[str]) -> None:
        """Take in what a run beside this one has found, whose rows `key` tells apart, of some lists of rows.

        Raises:
            UserError: it has other settings.
        """
        other = json.loads(path.read_text())
        if other["settings"] != self.content["settings"]:
            raise UserError(f"'{path}' holds results of other settings than '{self.path}'")
        for name in lists:
            mine = self.content.setdefault(name, [])
            known = [[row.get(k) for k in key] for row in mine]
            mine += [row for row in other[name] if [row.get(k) for k in key] not in known]

    def publish(self, text: str) -> None:
        """Put a text between two lines <!-- name --> of the README.md beside the file, if they are there."""
        readme, mark = self.path.with_name("README.md"), f"<!-- {self.path.name} -->\n"
        parts = readme.read_text().split(mark) if readme.exists() else []
        if len(parts) == 3:
            atomic_write(readme, mark.join([parts[0], text + "\n", parts[2]]))

    def write(self) -> None:
        """Write all of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, json.dumps(self.content, indent=1) + "\n")
