"""Do the ensemble's intervals hold what they say? Measured where the noise of the sensors is known.

    python -m mbrl_bringup.calibration --out docs/results/calibration.json

Motion that is random in one half of the episodes and swings in the other, seen through sensors with Gaussian
noise: the ensemble is fitted to most episodes, its temperature to some of the others, and its intervals are
judged on the rest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl_bringup.evaluate import plain
from mbrl_bringup.measures import intervals
from mbrl_bringup.result import atomic_write, commit_id, machine_name
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.forecasts import Recorded, forecast
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_sim.simulator import Simulator

TASKS = ("pendulum", "cartpole_swingup")
ANGLE = 0.01  # standard deviation of an angle's noise, before it becomes cosine and sine [rad]
NOISE = {"m": 0.005, "m/s": 0.02, "rad/s": 0.05}  # of the other elements, by their unit
EPISODES, EVERY = 48, 3  # recorded, and of which every third one is not trained on


def noisy(spec: Spec, obs: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """An observation [D] as sensors with Gaussian noise see it; an angle stays on its circle."""
    seen = obs.copy()
    angular = {i + k for i in spec.circles for k in (0, 1)}
    for d, element in enumerate(spec.observation):
        if d not in angular:
            seen[d] += NOISE[element.unit] * rng.standard_normal()
    for i in spec.circles:
        turn = ANGLE * rng.standard_normal()
        cos, sin = np.cos(turn), np.sin(turn)
        seen[i], seen[i + 1] = cos * obs[i] - sin * obs[i + 1], sin * obs[i] + cos * obs[i + 1]
    return seen


def record(task_name: str, seed: int, episodes: int = EPISODES) -> tuple[Recorded, ReplayBuffer]:
    """What is seen of a task's world: all of it, and the part that a model is fitted to."""
    task, rng = make_task(task_name), np.random.default_rng(seed)
    simulator, spec = Simulator(task, seed), task.spec
    data, known = Recorded(spec), ReplayBuffer(spec)
    for episode in range(episodes):
        seen = noisy(spec, simulator.reset(), rng)
        states = [Transition(bytes(16), episode, 0, seen, np.zeros(spec.action_dim), first=True)]
        speed, phase = rng.uniform(0.5, 6.0), rng.uniform(0.0, 2.0 * np.pi)
        for k in range(1, task.max_steps + 1):
            swing = np.sin(speed * k * spec.control_period + phase) + 0.3 * rng.standard_normal(
                spec.action_dim
            )
            inner = (
                rng.uniform(-1.0, 1.0, spec.action_dim)
                if episode // (2 * EVERY) % 2
                else np.clip(swing, -1.0, 1.0)
            )
            action = spec.unscale_action(inner)
            seen = noisy(spec, simulator.step(action).observation, rng)
            states.append(Transition(bytes(16), episode, k, seen, action, truncated=k == task.max_steps))
        for state in states:
            data.add(state)
            if episode % EVERY:
                known.add(state)
    return data, known


def measure(task: str, seed: int, fit_steps: int) -> dict[str, Any]:
    """Coverage on the episodes that neither the fit nor the temperature has seen."""
    data, known = record(task, seed)
    model = Ensemble(data.buffer.spec, seed=seed)
    metrics = model.fit(known, Budget(fit_steps))
    unseen = np.flatnonzero(data.episodes % EVERY == 0)
    names = [element.name for element in data.buffer.spec.observation]
    found = intervals(forecast(model, data.buffer, unseen, seed=seed), data.episodes, names, [])
    assert found is not None
    mean = {kind: np.mean(list(found[kind].values()), axis=0) for kind in ("raw", "fitted")}
    return {
        "task": task,
        "seed": seed,
        "trained_steps": len(known),
        "fit_steps": metrics["steps"],
        "mean": mean,
        **found,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="coverage of the ensemble's intervals under known noise")
    parser.add_argument("--out", type=Path, default=Path("docs/results/calibration.json"), help="to write")
    parser.add_argument("--seeds", type=int, default=3, help="of worlds, noise and weights")
    parser.add_argument("--fit-steps", type=int, default=3000, help="gradient steps of a fit at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, runs = time.monotonic(), []
    for task in TASKS:
        for seed in range(options.seeds):
            runs.append(measure(task, seed, options.fit_steps))
            raw, fitted = runs[-1]["mean"]["raw"], runs[-1]["mean"]["fitted"]
            print(
                f"{task}, seed {seed}: 50/90/95 % raw {raw.round(3)}, with temperature {fitted.round(3)}",
                flush=True,
            )
    result = {
        "noise": {"angle": ANGLE, **NOISE},
        "runs": runs,
        "wall_s": round(time.monotonic() - begin, 1),
        "commit": commit_id(),
        "machine": machine_name(),
    }
    atomic_write(options.out, json.dumps(plain(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
