"""The classic figure of Dyna-Q: steps an episode in the maze, for several numbers of planning steps
(Sutton and Barto, 2018, figure 8.2).

    python -m mbrl_bringup.maze --out docs/results/maze.json

writes the file and the figure of the same name (.png) beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from mbrl_bringup.evaluation import Driver
from mbrl_bringup.result import atomic_write, commit_id, machine_name
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_planner.agents.dyna_q import DynaQ, DynaQConfig
from mbrl_sim.worlds import Worlds

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OPTIMAL = 14  # steps of the shortest way


def learn(planning_steps: int, seed: int, episodes: int = 50) -> tuple[DynaQ, NDArray[np.int64]]:
    """An agent that learned in the maze from its first step on, and the length of each episode [episodes]."""
    with Worlds("maze", seed=seed) as worlds:
        agent = DynaQ(worlds.spec, DynaQConfig(planning_steps=planning_steps), seed=seed)
        driver, buffer = Driver(agent, worlds.spec, 1, seed), ReplayBuffer(worlds.spec)
        lengths = np.zeros(episodes, np.int64)
        for episode in range(episodes):
            states = worlds.reset_all()
            buffer.add(states[0])
            while not states[0].last:
                states = worlds.step(driver.decide(states, explore=True))
                buffer.add(states[0])
                agent.update(buffer, env_steps=len(buffer))
            lengths[episode] = states[0].step
        return agent, lengths


def greedy_steps(agent: DynaQ, limit: int = 100) -> int:
    """Steps from the start to the goal without exploration; `limit` if it does not get there sooner."""
    with Worlds("maze") as worlds:
        driver = Driver(agent, worlds.spec, 1)
        states = worlds.reset_all()
        while not states[0].last and states[0].step < limit:
            states = worlds.step(driver.decide(states, explore=False))
        return states[0].step


def measure(planning: list[int], seeds: int, episodes: int) -> dict[str, object]:
    """The figure's numbers, with every seed's."""
    begin = time.monotonic()
    curves = {n: [learn(n, seed, episodes)[1].tolist() for seed in range(seeds)] for n in planning}
    return {
        "task": "maze",
        "agent": "dyna_q",
        "optimal_steps": OPTIMAL,
        "seeds": list(range(seeds)),
        "curves": [
            {"planning_steps": n, "mean_steps": np.mean(each, 0).round(2).tolist(), "steps": each}
            for n, each in curves.items()
        ],
        "wall_s": round(time.monotonic() - begin, 1),
        "commit": commit_id(),
        "machine": machine_name(),
    }


def draw(result: dict[str, object], path: Path) -> None:
    """Mean steps an episode from the second one on, as in the book: the first is the same for all."""
    figure, axes = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    curves: list[dict[str, object]] = result["curves"]  # type: ignore[assignment]
    for curve in curves:
        mean = np.asarray(curve["mean_steps"])[1:]
        axes.plot(np.arange(2, len(mean) + 2), mean, label=f"n = {curve['planning_steps']}")
    axes.axhline(OPTIMAL, color="gray", lw=0.8, ls="--", label=f"shortest way, {OPTIMAL}")
    axes.set_xlabel("episode")
    axes.set_ylabel(f"steps an episode, mean of {len(result['seeds'])} seeds")  # type: ignore[arg-type]
    axes.set_ylim(0, 800)
    axes.set_title("Dyna-Q in the maze: n planning steps a real step")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="the classic figure of Dyna-Q")
    parser.add_argument("--out", type=Path, default=Path("docs/results/maze.json"), help="file to write")
    parser.add_argument("--seeds", type=int, default=30, help="agents that are averaged")
    parser.add_argument("--episodes", type=int, default=50, help="of each agent")
    parser.add_argument("--planning", default="0,5,50", help="numbers of planning steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure([int(n) for n in options.planning.split(",")], options.seeds, options.episodes)
    atomic_write(options.out, json.dumps(result) + "\n")
    draw(result, options.out.with_suffix(".png"))
    for curve in result["curves"]:  # type: ignore[attr-defined]
        mean = curve["mean_steps"]
        print(
            f"n = {curve['planning_steps']:>2}: steps of episode 2, 6, last: {mean[1]}, {mean[5]}, {mean[-1]}"
        )


if __name__ == "__main__":
    main()
