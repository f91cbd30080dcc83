"""What a run came to, as a file that a program can read: result.json, and one row an episode."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WHERE = ("--runs", "--out")  # options that say where results go


@dataclass(frozen=True)
class Episode:
    """One episode of a run. NaN = unknown."""

    mode: str  # "random", "explore" or "exploit"
    ret: float  # sum of rewards [1]
    steps: int  # control steps [steps]
    missed_steps: int = 0  # States answered late or not at all [steps]
    planning_ms_median: float = math.nan  # [ms]
    planning_ms_p99: float = math.nan  # [ms]
    model_version: int = 0  # in use at the end of the episode; 0 = none
    disagreement: float = math.nan  # mean over what was heard of the episode [normalised]
    seconds: float = math.nan  # wall time of the episode [s]
    success: float = math.nan  # share of the steps in which the task's aim was met, where it can tell [1]
    # Of what has learned from this episode; unknown until it has:
    holdout_error: float = math.nan  # of the model [standard deviations of the targets]
    fit_seconds: float = math.nan  # [s]
    transitions: int = 0  # that were learned from
    updates: int = 0  # gradient steps behind the policy; 0 = there is none


@dataclass(frozen=True)
class Result:
    """One run."""

    task: str
    seed: int
    model: str
    planner: str
    control_period_s: float
    episodes: tuple[Episode, ...] = ()
    wall_s: float = 0.0  # from the command to the end of the last episode [s]
    finished: bool = False  # not interrupted
    commit: str = ""
    machine: str = ""
    command: str = ""
    agent: str = "mpc"

    @property
    def learns_policy(self) -> bool:
        """Whether a policy was learned, rather than a model to plan with."""
        return self.agent != "mpc"

    @property
    def chooser(self) -> str:
        """What acted, for people."""
        if not self.learns_policy:
            return f"{self.model} and {self.planner}"
        return f"{self.agent} with {self.model}" if self.model else self.agent

    @property
    def returns(self) -> list[float]:
        """Return of each episode [1]."""
        return [episode.ret for episode in self.episodes]

    @property
    def robot_s(self) -> float:
        """How long the robot has moved, over all episodes [s]."""
        return sum(episode.steps for episode in self.episodes) * self.control_period_s

    @property
    def planning_ms_median(self) -> float:
        """Median over the planned episodes of their medians [ms]."""
        return _over(np.median, [episode.planning_ms_median for episode in self.episodes])

    @property
    def planning_ms_p99(self) -> float:
        """99th percentile of the worst episode [ms]."""
        return _over(np.max, [episode.planning_ms_p99 for episode in self.episodes])

    @property
    def missed_steps(self) -> int:
        """States answered late or not at all, over all episodes [steps]."""
        return sum(episode.missed_steps for episode in self.episodes)

    def as_json(self) -> dict[str, Any]:
        """The content of result.json; null = unknown."""
        return {
            "task": self.task,
            "seed": self.seed,
            "agent": self.agent,
            "model": self.model,
            "planner": self.planner,
            "control_period_s": _number(self.control_period_s),
            "episodes": [_essence(episode) for episode in self.episodes],
            "wall_s": round(self.wall_s, 1),
            "planning_ms": {
                "median": _number(self.planning_ms_median, 2),
                "p99": _number(self.planning_ms_p99, 2),
            },
            "missed_steps": self.missed_steps,
            "finished": self.finished,
            "commit": self.commit,
            "machine": self.machine,
            "command": self.command,
        }


def write(result: Result, folder: Path) -> None:
    """Write result.json and episodes.json; a reader sees the old or the new files, never half of one."""
    atomic_write(folder / "result.json", json.dumps(result.as_json(), indent=2) + "\n")
    rows = [{name: _plain(value) for name, value in vars(episode).items()} for episode in result.episodes]
    atomic_write(folder / "episodes.json", json.dumps(rows, indent=1) + "\n")


def read(folder: Path) -> Result:
    """The inverse of `write`."""
    content = json.loads((folder / "result.json").read_text())
    rows = json.loads((folder / "episodes.json").read_text())
    floats = {name for name, kind in Episode.__annotations__.items() if kind == "float"}
    known: list[dict[str, Any]] = [
        {k: math.nan if v is None and k in floats else v for k, v in row.items()} for row in rows
    ]
    episodes = tuple(Episode(**row) for row in known)
    period = content["control_period_s"]
    names = ("task", "seed", "model", "planner", "wall_s", "finished", "commit", "machine", "command")
    return Result(
        agent=content.get("agent", "mpc"),  # older runs knew no other
        **{name: content[name] for name in names},
        control_period_s=math.nan if period is None else period,
        episodes=episodes,
    )


def atomic_write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def commit_id() -> str:
    """Hash of the commit that this code is at, "-dirty" if changed since; empty = unknown."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe"]
    options = ["--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def command_line(arguments: Sequence[str]) -> str:
    """The command with these arguments, without where its results go, so that anybody can run it again."""
    kept: list[str] = []
    former = ""
    for argument in arguments:
        if argument.partition("=")[0] not in WHERE and former not in WHERE:
            kept.append(argument)
        former = argument
    return shlex.join(["mbrl", *kept])


def machine_name() -> str:
    """What this ran on, in a few words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores, {name}, {platform.system()} {platform.machine()}"


def _essence(episode: Episode) -> dict[str, Any]:
    told: dict[str, Any] = {"return": _number(episode.ret), "steps": episode.steps}
    if math.isfinite(episode.success):
        told["success"] = _number(episode.success)
    return told


def _over(function: Any, values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(function(known)) if known else math.nan


def _number(value: float, digits: int = 6) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
