"""How much of each episode a run's robot was where it should be, where the task can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bringup.result import Result, read, write
from mbrl_dynamics import episodes
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.transition import Transition


def rate(folder: Path) -> Result:
    """Complete a run's result with the share of each episode's steps in which `task.success(obs)` was true.

    It stays as it is where the task has no such method, or not all its episodes were recorded.
    """
    result = read(folder)
    task = make_task(result.task)
    if not hasattr(task, "success"):
        return result
    try:
        shares = success_shares(task, episodes.read(folder / "dataset", topics=("state",)))
    except UserError:
        return result
    if len(shares) != len(result.episodes):
        return result
    rated = zip(result.episodes, shares, strict=True)
    told = tuple(dataclasses.replace(episode, success=share) for episode, share in rated)
    result = dataclasses.replace(result, episodes=told)
    write(result, folder)
    return result


def success_shares(task: Any, records: Iterable[Any]) -> list[float]:
    """The share of steps with success in each episode that came to its end."""
    shares: list[float] = []
    seen: dict[int, Any] = {}  # step -> observation, since a State may be recorded again
    for state in records:
        if not isinstance(state, Transition):
            continue
        if state.first:
            seen = {}
            continue
        ended = state.last and state.step not in seen
        seen[state.step] = state.observation
        if ended:
            shares.append(float(np.mean(task.success(np.stack(list(seen.values()))))))
    return shares
