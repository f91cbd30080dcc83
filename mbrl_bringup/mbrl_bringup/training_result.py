"""What a training came to: result.json as for a demo, with frames, action repeat and evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbrl_bringup.evaluation import FIRST_SEED, Evaluation
from mbrl_bringup.result import atomic_write
from mbrl_dynamics.errors import UserError


@dataclass
class TrainingResult:
    """One training of one agent on one task with one seed; grows while it goes on."""

    task: str
    agent: str
    seed: int
    control_period_s: float
    action_repeat: int
    model: str = ""  # kind of dynamics model; empty = none of its own
    reward: str = ""  # "known" or "learned", for agents that learn with a dynamics model
    settings: dict[str, Any] = field(
        default_factory=dict
    )  # arguments and parameters that are not the defaults
    episodes: list[tuple[float, int]] = field(default_factory=list)  # return and steps of each
    evaluations: list[Evaluation] = field(default_factory=list)
    env_steps: int = 0
    wall_s: float = 0.0  # also of the sessions before, if it was resumed [s]
    decision_ms: list[float] = field(default_factory=list)  # of the newest evaluation
    events: list[str] = field(default_factory=list)
    finished: bool = False
    commit: str = ""
    machine: str = ""
    command: str = ""

    @property
    def frames(self) -> int:
        """Frames of the world that were learned from."""
        return self.env_steps * self.action_repeat

    def as_json(self) -> dict[str, Any]:
        """The content of result.json; null = unknown."""
        times = sorted(self.decision_ms)
        last = self.evaluations[-1] if self.evaluations else None
        return {
            "task": self.task,
            "seed": self.seed,
            "agent": self.agent,
            "model": self.model,
            "reward": self.reward,
            "settings": self.settings,
            "planner": "",
            "control_period_s": self.control_period_s,
            "action_repeat": self.action_repeat,
            "frames": self.frames,
            "score": None if last is None else _number(last.score),
            "evaluation": {
                "episodes": 0 if last is None else len(last.returns),
                "first_seed": FIRST_SEED,
                "deterministic": True,
                "marks": [
                    {
                        "frames": e.frames,
                        "env_steps": e.env_steps,
                        "updates": e.updates,
                        "wall_s": round(e.wall_s, 1),
                        "score": _number(e.score),
                        "returns": [_number(value) for value in e.returns],
                    }
                    for e in self.evaluations
                ],
            },
            "episodes": [{"return": _number(value), "steps": steps} for value, steps in self.episodes],
            "wall_s": round(self.wall_s, 1),
            "planning_ms": {
                "median": _number(times[len(times) // 2]) if times else None,
                "p99": _number(times[int(0.99 * (len(times) - 1))]) if times else None,
            },
            "missed_steps": 0,
            "events": self.events,
            "finished": self.finished,
            "commit": self.commit,
            "machine": self.machine,
            "command": self.command,
        }

    def write(self, folder: Path) -> None:
        """Write result.json; a reader sees the old or the new file, never half of one."""
        atomic_write(folder / "result.json", json.dumps(self.as_json(), indent=1) + "\n")

    def recall(self, folder: Path) -> None:
        """Go on from what result.json holds.

        Raises:
            UserError: it is of another agent, task, seed or action repeat.
        """
        path = folder / "result.json"
        if not path.is_file():
            return
        content = json.loads(path.read_text())
        for name in ("agent", "task", "model", "seed", "action_repeat"):
            if content[name] != getattr(self, name):
                what, wanted = name.replace("_", " "), getattr(self, name)
                raise UserError(f"the run in '{folder}' is of {what} '{content[name]}', not '{wanted}'")
        self.read(content)

    def read(self, content: Mapping[str, Any]) -> None:
        """Take over what happened from the content of result.json."""
        self.episodes = [(_float(e["return"]), e["steps"]) for e in content["episodes"]]
        self.evaluations = [
            Evaluation(
                m["env_steps"],
                m["frames"],
                m["wall_s"],
                [_float(v) for v in m["returns"]],
                m.get("updates", 0),
            )
            for m in content["evaluation"]["marks"]
        ]
        self.env_steps = content["frames"] // content["action_repeat"]
        self.wall_s, self.events = content["wall_s"], content["events"]
        self.commit = content["commit"] or self.commit
        self.command = content["command"] or self.command


def read(folder: Path) -> TrainingResult:
    """The training that a folder's result.json tells of."""
    content = json.loads((folder / "result.json").read_text())
    names = ("task", "agent", "seed", "control_period_s", "action_repeat", "model", "reward")
    result = TrainingResult(**{name: content[name] for name in names})
    result.read(content)
    result.settings = content.get("settings", {})
    result.finished, result.machine = content["finished"], content["machine"]
    return result


def _number(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _float(value: float | None) -> float:
    return math.nan if value is None else value
