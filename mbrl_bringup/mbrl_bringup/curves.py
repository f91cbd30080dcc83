"""Learning curves of runs, read from their results: run folders, result.json, and lists of results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl_bringup.compare_config import Axis
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task

_MARK = {"frames": "frames", "steps": "env_steps", "wall": "wall_s", "updates": "updates"}
ORDINARY = {  # settings that do not make a run another experiment
    "frames", "threads", "device", "eval_every", "eval_episodes", "params_file",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        name: of the file that it came from.
        task: that was learned.
        agent: or the planner.
        seed: of the run.
        settings: what else tells runs apart.
        x: [T] where it was looked at, increasing.
        score: [T] mean return.
    """

    name: str
    task: str
    agent: str
    seed: int
    settings: Mapping[str, str] = field(default_factory=dict)
    x: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    score: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def at(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score at other places, linearly in between."""
        return np.interp(x, self.x, self.score)


def read_curves(path: Path, axis: Axis) -> list[Curve]:
    """The curves of a run's folder, a result.json, or a list of results.

    Raises:
        UserError: there is no such file, it holds no results, or a result does not tell that axis.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"there is no result in '{path}'" if path.is_dir() else f"there is no file '{path}'"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read as JSON: {error}") from None
    results = content if isinstance(content, list) else [content]
    try:
        return [_curve(path, result, axis) for result in results]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"'{file}' does not hold the result of a demo or a training") from None


def _curve(path: Path, result: Mapping[str, Any], axis: Axis) -> Curve:
    settings = {
        name: str(value) for name, value in result.get("settings", {}).items() if name not in ORDINARY
    }
    names = [name for name in ("model", "reward", "planner", "action_repeat") if name in result]
    settings |= {name: str(result[name]) for name in names if result[name] not in ("", None)}
    if result.get("agent") and "evaluation" in result:
        agent, x, score = result["agent"], *_marks(result, axis)
    else:
        agent = result.get("agent") or settings.pop("planner", "") or "unknown"
        x, score = _episodes(path, result, axis)
    known = np.isfinite(x) & np.isfinite(score)
    return Curve(str(path), result["task"], agent, int(result["seed"]), settings, x[known], score[known])


def _marks(result: Mapping[str, Any], axis: Axis) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    marks = result["evaluation"]["marks"]
    return _array(mark.get(_MARK[axis]) for mark in marks), _array(mark["score"] for mark in marks)


def _episodes(
    path: Path, result: Mapping[str, Any], axis: Axis
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A run without evaluations: each episode is a look at it, after the steps before and its own."""
    episodes = result["episodes"]
    x = np.cumsum(_array(episode["steps"] for episode in episodes))
    if axis in ("wall", "updates"):
        raise UserError(f"'{path}' does not tell {axis} for each episode: compare by frames or steps")
    if axis == "frames":
        x = x * (result.get("action_repeat") or make_task(result["task"]).action_repeat)
    return x, _array(episode["return"] for episode in episodes)


def _array(values: Any) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], float)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone, on common ground.

    Attributes:
        label: the agent, and the settings that other groups of the task do not share.
        curves: the runs.
        x: [T] from where the last of them begins to where the first of them ends.
        scores: [runs, T].
    """

    label: str
    curves: Sequence[Curve]
    x: NDArray[np.float64]
    scores: NDArray[np.float64]


def group(curves: Sequence[Curve]) -> dict[str, list[Group]]:
    """Groups of each task; runs are told apart by agent and settings.

    Raises:
        UserError: runs have nothing in common.
    """
    groups: dict[str, list[Group]] = {}
    for task in dict.fromkeys(curve.task for curve in curves):
        kinds: dict[tuple[Any, ...], list[Curve]] = {}
        for curve in curves:
            if curve.task == task and len(curve.x):
                kinds.setdefault((curve.agent, *sorted(curve.settings.items())), []).append(curve)
        labels = _labels([found[0] for found in kinds.values()])
        groups[task] = [_group(label, found) for label, found in zip(labels, kinds.values(), strict=True)]
    if not any(groups.values()):
        raise UserError("there is nothing to compare: no run has been evaluated or has finished an episode")
    return {task: found for task, found in groups.items() if found}


def _group(label: str, curves: Sequence[Curve]) -> Group:
    low, high = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if low > high:
        raise UserError(f"runs of {label} on {curves[0].task} have no part of the axis in common")
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[(x >= low) & (x <= high)]
    return Group(label, curves, x, np.stack([curve.at(x) for curve in curves]))


def _labels(examples: Sequence[Curve]) -> list[str]:
    """The agent of each, with the settings in which it differs from others."""
    names = sorted({name for example in examples for name in example.settings})
    labels = []
    for example in examples:
        rivals = [other for other in examples if other.agent == example.agent]
        differing = [n for n in names if len({other.settings.get(n) for other in rivals}) > 1]
        shown = [f"{name} {example.settings.get(name, 'default')}" for name in differing]
        labels.append(f"{example.agent} ({', '.join(shown)})" if shown else example.agent)
    return labels
