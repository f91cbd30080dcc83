"""How learning a model goes wrong in the textbook ways, and what cures it; in worlds small enough to see why.

    python -m mbrl_bringup.textbook --out docs/results/textbook.json

writes the file and the figure of the same name (.png) beside it. Grids: a table of what was seen, and open
floor where nothing was. The rod: a linear model, which cannot be right everywhere (Ross and Bagnell, 2012,
https://arxiv.org/abs/1203.1007). Both are planned with exactly, so that only the model is to blame.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from mbrl_bringup.result import atomic_write, commit_id, machine_name
from mbrl_bringup.rod import CHOICES, balance
from mbrl_dynamics.buffer import Fit, ReplayBuffer
from mbrl_dynamics.models.tabular import Tabular, value_iteration
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.transition import Transition
from mbrl_sim.grid import MOVES

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DISCOUNT = 0.95
LIMIT = 60  # steps of an episode on a grid at most
RIGHT = 1  # a move
TITLES = {"cliff": "data that only ever went right", "maze": "half of it seen"}
LOOPS = ("fit once, plan once", "fit again, latest only", "fit again, all data", "replan each step")

Array = NDArray[np.float64]


class Grid:
    """A learner on a map: a table over open floor, its data, and the world.

    Args:
        task: of a map, "cliff" or "maze".
        fit_on: which data the table is made of, see ReplayBuffer.
    """

    def __init__(self, task: str, fit_on: Fit = "all") -> None:
        self.task = make_task(task)
        self.world, self.buffer = self.task.make_simulator(), ReplayBuffer(self.task.spec, fit_on=fit_on)
        self._episode = 0

    def watch(self, choose: Callable[[int, int], int | None], start: int | None = None) -> tuple[float, bool]:
        """One episode; `choose` tells the move for a cell and a step, None = it gives up.

        Returns:
            The return, and whether the goal was reached.
        """
        cell = int(self.world.reset(initial_state=None if start is None else [start])[0])
        self._hear(0, cell, 0, first=True)
        total, ended = 0.0, False
        for step in range(1, LIMIT + 1):
            move = choose(cell, step - 1)
            if move is None:
                break
            result = self.world.step([move])
            cell, total, ended = int(result.observation[0]), total + result.reward, result.terminated
            self._hear(step, cell, move, reward=result.reward, terminated=ended)
            if ended:
                break
        self._episode += 1
        return total, ended

    def _hear(self, step: int, cell: int, move: int, **flags: Any) -> None:
        at = np.array([float(cell)]), np.array([float(move)])
        self.buffer.add(Transition(bytes(16), self._episode, step, *at, **flags))

    def tables(self) -> tuple[Array, Array]:
        """P [S, A, S] and R [S, A] of what was seen, and of open floor where nothing was."""
        table, data = Tabular(self.task.spec), self.buffer.slices(np.concatenate(self.buffer.strata()))
        obs = data.obs["vector"]
        state, move, after = table.indices(obs[:, 0], data.action[:, 0], obs[:, 1])
        table.add(state, move, data.reward[:, 0], after, data.terminated[:, 0])
        tried = table.counts.sum(-1).numpy() > 0
        (going, reward), (seen, gain) = open_floor(self.task), table.tables()
        return np.where(tried[..., None], seen, going), np.where(tried, gain, reward)

    def plan(self) -> list[int]:
        """The moves of the best way from the start, if each leads where the tables say: open loop."""
        going, reward = self.tables()
        best = value_iteration(going, reward, DISCOUNT)[1]
        cell = int(self.task.start)
        moves: list[int] = []
        while len(moves) < LIMIT:
            moves.append(int(best[cell]))
            chances = going[cell, best[cell]]
            if chances.sum() < 0.5:
                break  # that is the goal
            cell = int(chances.argmax())
        return moves


def open_floor(task: Any) -> tuple[Array, Array]:
    """Tables of a map without walls and cliffs: P [S, A, S], where the goal is the end, and R [S, A]."""
    height, width = task.letters.shape
    cells = np.arange(height * width)
    row, column = np.divmod(cells, width)
    going = np.zeros((len(cells), len(MOVES), len(cells)))
    for move, (down, right) in enumerate(MOVES):
        after = np.clip(row + down, 0, height - 1) * width + np.clip(column + right, 0, width - 1)
        going[cells, move, after] = 1.0
    reached = going[..., task.goal] > 0
    going[..., task.goal] = 0.0
    return going, np.where(reached, task.goal_reward, task.step_reward)


def only_right(grid: Grid) -> None:
    """Data that never met the cliff: along the upper edge, to the right."""
    width = grid.task.letters.shape[1]
    grid.watch(lambda cell, step: RIGHT if step < width - 1 else None, start=0)


def half_a_map(grid: Grid) -> None:
    """Every move from every free cell in the left half of a map."""
    letters = grid.task.letters
    for cell in np.flatnonzero(letters.ravel() != "#"):
        if cell % letters.shape[1] <= letters.shape[1] // 2:
            for move in range(len(MOVES)):
                grid.watch(lambda _, step, move=move: None if step else move, start=int(cell))  # type: ignore[misc]


TAUGHT = {"cliff": only_right, "maze": half_a_map}


def learn(task: str, loop: str, episodes: int) -> dict[str, Any]:
    """Episodes in one of the LOOPS, after what was taught: returns, and whether the goal was reached."""
    grid = Grid(task, "latest" if loop == LOOPS[1] else "all")
    TAUGHT[task](grid)
    plan: list[int] = []

    def follow(cell: int, step: int) -> int | None:
        return plan[step] if step < len(plan) else None

    def replan(cell: int, step: int) -> int:
        return int(value_iteration(*grid.tables(), DISCOUNT)[1][cell])

    returns, reached = [], []
    for episode in range(episodes):
        if not episode or loop != LOOPS[0]:
            plan[:] = grid.plan()
        total, ended = grid.watch(replan if loop == LOOPS[3] else follow)
        returns.append(total)
        reached.append(ended)
    return {"task": task, "loop": loop, "returns": returns, "reached": reached}


def measure(episodes: int, rounds: int, seeds: int) -> dict[str, Any]:
    """All of it, as the content of textbook.json."""
    return {
        "grids": [learn(task, loop, episodes) for task in TAUGHT for loop in LOOPS],
        "rod": [
            {"fit_on": choice, "runs": [vars(balance(choice, seed, rounds)) for seed in range(seeds)]}
            for choice in CHOICES
        ],
        "commit": commit_id(),
        "machine": machine_name(),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Returns by episode on both maps, and how long the rod stays up."""
    figure, axes = plt.subplots(1, 3, figsize=(14.0, 4.2), layout="constrained")
    for panel, task in zip(axes, TAUGHT, strict=False):
        for curve in (one for one in result["grids"] if one["task"] == task):
            panel.plot(
                np.arange(1, len(curve["returns"]) + 1), curve["returns"], "o-", ms=3, label=curve["loop"]
            )
        panel.set(title=f"{task}: {TITLES[task]}", xlabel="episode", ylabel="return")
    axes[0].set_yscale("symlog", linthresh=10.0)
    for one in result["rod"]:
        share = np.array([run["upright"] for run in one["runs"]])
        axes[2].plot(np.arange(share.shape[1]), np.median(share, 0), "o-", ms=3, label=one["fit_on"])
        axes[2].fill_between(np.arange(share.shape[1]), share.min(0), share.max(0), alpha=0.15, lw=0)
    axes[2].set(title="rod: a linear model, fitted to", xlabel="round", ylabel="share of the time upright")
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="the textbook failures of learning a model, and their cures")
    parser.add_argument("--out", type=Path, default=Path("docs/results/textbook.json"), help="file to write")
    parser.add_argument("--episodes", type=int, default=12, help="on each grid")
    parser.add_argument("--rounds", type=int, default=15, help="of learning to balance the rod")
    parser.add_argument("--seeds", type=int, default=10, help="of the rod")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.episodes, options.rounds, options.seeds)
    atomic_write(options.out, json.dumps(result) + "\n")
    draw(result, options.out.with_suffix(".png"))
    for curve in result["grids"]:
        print(f"{curve['task']}, {curve['loop']}: {np.round(curve['returns'], 1).tolist()}")
    for one in result["rod"]:
        print(
            f"rod, {one['fit_on']}: {np.median([run['upright'] for run in one['runs']], 0).round(2).tolist()}"
        )


if __name__ == "__main__":
    main()
