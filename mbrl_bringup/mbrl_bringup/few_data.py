"""How much motion a model needs before it can be planned with, on the pendulum.

    python -m mbrl_bringup.few_data --out docs/results/few_data.json

A whole episode (200 steps) of random motion is enough for each of them, so that what counts is how much less
is: the model is fitted to the first N steps, and iCEM swings up from the same starts with each. `physics`
begins with an MJCF whose rod has 0.4 kg, where it has 1 kg.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbrl_bringup.result import atomic_write, commit_id, machine_name
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import build
from mbrl_dynamics.interfaces import Budget, Model
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.plugins import find
from mbrl_dynamics.transition import Transition
from mbrl_planner.planners.icem import ICEM, ICEMConfig
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
STEPS = (20, 35, 50, 75, 100, 200)
STARTS = 3  # episodes that judge a model, begun alike for all
SOLVED = -250.0  # mean return, as `mbrl demo --task pendulum` wants it
WRONG = {"mass:rod": 0.4}  # [kg]


def motion(seed: int) -> list[Transition]:
    """A random episode of the pendulum."""
    task = Pendulum()
    simulator, rng = Simulator(task, seed), np.random.default_rng(seed)
    states = [Transition(bytes(16), 0, 0, simulator.reset(), np.zeros(1), first=True)]
    for k in range(1, task.max_steps + 1):
        action = rng.uniform(task.spec.action_low, task.spec.action_high)
        result = simulator.step(action)
        states.append(Transition(bytes(16), 0, k, result.observation, action, result.reward))
    return states


def made(name: str, seed: int, folder: Path) -> Model:
    """A model that has seen nothing."""
    kind = find("models", name)
    begun = {"task": stranger(Pendulum, WRONG, folder)} if name == "physics" else {}
    model: Model = kind(Pendulum().spec, build(kind.Config, MODELS[name]), seed=seed, **begun)
    return model


def returns(model: Model, seed: int, starts: int = STARTS) -> list[float]:
    """Of iCEM with a model, an episode from each start, side by side."""
    task, noise = Pendulum(), torch.Generator().manual_seed(seed)
    known, planner, guess = WithTask(model, task), ICEM(build(ICEMConfig, SEARCH)), None
    worlds = [Simulator(task) for _ in range(starts)]
    seen = np.stack([world.reset(seed=1000 + i) for i, world in enumerate(worlds)])
    total = np.zeros(starts)
    for _ in range(task.max_steps):
        state = model.observe(None, None, {"vector": torch.from_numpy(seen).float()})
        plan = planner.plan(known, state, guess, noise=noise)
        guess, actions = plan.guess, task.spec.unscale_action(plan.actions[:, 0].numpy())
        results = [world.step(action) for world, action in zip(worlds, actions, strict=True)]
        seen = np.stack([result.observation for result in results])
        total += [result.reward for result in results]
    found: list[float] = total.tolist()
    return found


def measure(name: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """One point."""
    model, buffer, begin = made(name, seed, folder), ReplayBuffer(Pendulum().spec), time.monotonic()
    for state in motion(seed)[: steps + 1]:
        buffer.add(state)
    model.fit(buffer, Budget())
    fitted = time.monotonic() - begin
    got = returns(model, seed)
    return {
        "model": name,
        "seed": seed,
        "steps": steps,
        "returns": [round(r, 1) for r in got],
        "mean": round(float(np.mean(got)), 1),
        "fit_s": round(fitted, 1),
        "wall_s": round(time.monotonic() - begin, 1),
    }


def enough(rows: list[dict[str, Any]], name: str, seed: int) -> int | None:
    """Fewest steps from which on the model solves the pendulum with all that were tried; None = none."""
    mine = sorted((row["steps"], row["mean"]) for row in rows if (row["model"], row["seed"]) == (name, seed))
    found = None
    for steps, mean in reversed(mine):
        if mean < SOLVED:
            break
        found = steps
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="how much motion a model needs, on the pendulum")
    parser.add_argument("--out", type=Path, default=Path("docs/results/few_data.json"), help="file to write")
    parser.add_argument("--seeds", type=int, default=3, help="of motion, models and plans")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, rows = time.monotonic(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            for seed in range(options.seeds):
                for steps in STEPS:
                    rows.append(measure(name, seed, steps, Path(folder)))
                    print(json.dumps(rows[-1]), flush=True)
    result = {
        "task": "pendulum",
        "solved": SOLVED,
        "models": MODELS,
        "search": SEARCH,
        "enough_steps": {name: [enough(rows, name, s) for s in range(options.seeds)] for name in MODELS},
        "rows": rows,
        "wall_s": round(time.monotonic() - begin, 1),
        "commit": commit_id(),
        "machine": machine_name(),
    }
    atomic_write(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
