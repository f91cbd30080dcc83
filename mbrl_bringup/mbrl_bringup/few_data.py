"""How many episodes a model needs before it can be planned with, on the pendulum.

    python -m mbrl_bringup.few_data --out docs/results/few_data.json

The first episode is at random, the next ones are planned with what was learned. They are short, or the first
would be enough for all. After each, the model is fitted, and judged by whole episodes from starts that are
the same for all: it has learned when their mean return is that of a solved pendulum. A run that was broken
off goes on. `physics` begins with an MJCF whose rod has 0.4 kg, where it has 1 kg.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbrl_bringup.lockstep import Growing, episode
from mbrl_bringup.result import commit_id, machine_name
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import build
from mbrl_dynamics.interfaces import Budget, Model
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.plugins import find
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.small_worlds import chooser
from mbrl_sim.simulator import Simulator
from mbrl_sim.stranger import stranger
from mbrl_sim.tasks.pendulum import Pendulum

MODELS: dict[str, dict[str, Any]] = {  # and what differs from their defaults
    "physics": {"particles": 1},
    "gp": {"points": 150, "features": 64, "draws": 2},
    "ensemble": {},
    "network": {},
}
SEARCH = {"horizon": 20, "candidates": 32, "iterations": 2}
FIT_STEPS = 3000  # gradient steps of a fit at most
STEPS = 20  # of an episode of learning: 1 s
MOST = 12  # episodes, after which it is given up
STARTS = 3  # whole episodes that judge a model
SOLVED = -250.0  # mean return, as `mbrl demo --task pendulum` wants it
WRONG = {"mass:rod": 0.4}  # [kg]


def made(name: str, seed: int) -> Model:
    """A model that has seen nothing."""
    kind = find("models", name)
    with tempfile.TemporaryDirectory() as folder:
        begun = {"task": stranger(Pendulum, WRONG, Path(folder))} if name == "physics" else {}
        model: Model = kind(Pendulum().spec, build(kind.Config, MODELS[name]), seed=seed, **begun)
    return model


def judged(model: Model, seed: int) -> list[float]:
    """Returns of what iCEM does with a model, from starts that are the same for all."""
    task, found = Pendulum(), list[float]()
    for start in range(STARTS):
        agent = MPC(ICEM(build(ICEMConfig, SEARCH)), WithTask(model, task), seed=seed)
        choose = chooser(agent, task.spec, np.random.default_rng(seed), explore=False)
        found.append(episode(Simulator(task), choose, seed=1_000_000 + start))
    return found


def learned(name: str, seed: int) -> dict[str, Any]:
    """Learn until the pendulum is solved, or given up: the returns by which each fit was judged."""
    model, task, begin = made(name, seed), Pendulum(), time.process_time()
    task.max_steps = STEPS
    world, buffer = Simulator(task), ReplayBuffer(task.spec)
    agent = MPC(ICEM(build(ICEMConfig, SEARCH)), seed=seed)
    choose = chooser(agent, task.spec, np.random.default_rng(seed), explore=True)
    returns: list[list[float]] = []
    for number in range(MOST):
        episode(world, choose, seed=1000 * (seed + 1) + number, hear=buffer.add, number=number)
        model.fit(buffer, Budget(FIT_STEPS))
        agent.swap(WithTask(model, task))
        returns.append(judged(model, seed))
        if solved := bool(np.mean(returns[-1]) >= SOLVED):
            break
    told = {"model": name, "seed": seed, "episodes": len(returns) if solved else None, "returns": returns}
    return {**told, "cpu_s": round(time.process_time() - begin, 1)}


def table(result: Mapping[str, Any]) -> str:
    """Episodes until it was solved, a model a row, as Markdown."""
    seeds = sorted({row["seed"] for row in result["runs"]})
    lines = [f"| | {' | '.join(f'seed {seed}' for seed in seeds)} |", "|---" * (len(seeds) + 1) + "|"]
    for name in MODELS:
        mine = {row["seed"]: row["episodes"] for row in result["runs"] if row["model"] == name}
        told = [str(mine.get(seed) or f"not in {MOST}") if seed in mine else "–" for seed in seeds]
        lines.append(f"| `{name}` | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="how many episodes a model needs, on the pendulum")
    parser.add_argument("--out", type=Path, default=Path("docs/results/few_data.json"), help="file to write")
    parser.add_argument("--seeds", type=int, default=5, help="of data, models and plans")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "task": "pendulum",
        "solved": SOLVED,
        "models": MODELS,
        "search": SEARCH,
        "fit_steps": FIT_STEPS,
        "steps": STEPS,
        "most": MOST,
        "starts": STARTS,
        "wrong": WRONG,
    }
    results = Growing(options.out, settings, "runs", commit=commit_id(), machine=machine_name())
    for seed in range(options.seeds):
        for name in MODELS:
            if results.find(model=name, seed=seed) is None:
                results.add(learned(name, seed))
                print(results.rows[-1], flush=True)
    results.write()
    print(table(results.content))
    results.publish(table(results.content))


if __name__ == "__main__":
    main()
