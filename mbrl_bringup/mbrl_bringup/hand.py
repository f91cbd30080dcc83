"""A hand with 24 joints turns a pen: PDDM and random shooting, the simulator as model; then a learned one.

    python -m mbrl_bringup.hand --out docs/results/adroit_pen.json
    python -m mbrl_bringup.hand --learn --out docs/results/adroit_pen_learned.json

Each writes the file and the figure of the same name (.png) beside it, after each episode. Both planners ask
for the same number of predictions a plan and begin each seed alike: the same start, the same target. A run
that was broken off goes on; one that learns begins anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from mbrl_bringup.lockstep import Growing, episode
from mbrl_bringup.result import commit_id, machine_name
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import build
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.plugins import find, make_task
from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.planners.pddm import PDDM
from mbrl_planner.planners.sampling import Search
from mbrl_planner.small_worlds import Choose, chooser
from mbrl_sim.physics import Physics, make_simulator

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TASK = "adroit_pen"
HELD = 20  # steps with success, of more of which an episode counts as solved (Rajeswaran et al., 2018)
SHARED = {"horizon": 50}  # of a plan, for both planners: half a second
# Within a short plan a pen thrown through its target earns more than one held. Random shooting does best with
# numbers that are white in time, and so add up to little; PDDM with few knots, and several rounds of them.
OWN: dict[str, dict[str, Any]] = {
    "random_shooting": {"candidates": 256, "iterations": 1},
    "pddm": {
        "candidates": 64,
        "iterations": 4,
        "knots": 10,
        "interpolation": "linear",
        "std": 0.25,
        "beta": 1.0,
        "gamma": 20.0,
    },
}
LEARNED: dict[str, Any] = {"particles": 3}
EVERY = 5  # steps from plan to plan
FIRST, SEEDS = 300, 20  # of starts and targets; what was tuned was tuned on others, from 1001 on
STEPS = 80  # of an episode

Array = NDArray[np.float64]


class Keeping(PDDM):
    """PDDM that tries its plan as it is, too: where few are tried, a good one is soon lost to the noise."""

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """As PDDM, with the mean in the place of the first perturbation of it."""
        drawn = super().propose(search, iteration, noise)
        return torch.cat([search.mean[:, None], drawn[:, 1:]], dim=1)


def play(
    world: Physics, choose: Choose, seed: int, number: int = 0, buffer: ReplayBuffer | None = None
) -> dict[str, Any]:
    """One episode: its return, in how many of its steps the pen is as wanted, and whether it is solved.

    Args:
        seed: of its start.
        number: of the episode, for the buffer.
        buffer: gets what is seen.
    """
    begin, met = time.monotonic(), 0

    def hear(state: Transition) -> None:
        nonlocal met
        met += not state.first and bool(world.task.success(state.observation))
        if buffer is not None:
            buffer.add(state)

    total = episode(world, choose, seed=seed, hear=hear, number=number)
    return {
        "seed": seed,
        "return": total,
        "success_steps": met,
        "solved": met > HELD,
        "seconds": round(time.monotonic() - begin, 1),
    }


def hand(steps: int) -> Physics:
    """The world, whose episodes end after so many steps."""
    task = make_task(TASK)
    task.max_steps = steps
    return make_simulator(task, 0)


def planner_of(name: str, **changed: Any) -> Any:
    """A planner with the settings above, but for those that are changed."""
    kind = Keeping if name == "pddm" else find("planners", name)
    return kind(build(kind.Config, {**SHARED, **OWN[name], **changed}, name))


# With the simulator as model --------------------------------------------------------------------------------


def pairs(found: Growing, seeds: Sequence[int], steps: int) -> None:
    """An episode of each planner from each seed that is not there yet."""
    world = hand(steps)
    model = WithTask(find("models", "simulator")(world.task.spec), world.task)
    for seed in seeds:
        for name in OWN:
            if found.find(seed=seed, planner=name) is None:
                agent = MPC(planner_of(name), model, replan_every=EVERY, seed=seed)
                choose = chooser(agent, world.task.spec, np.random.default_rng(seed), explore=False)
                row = {"planner": name, **play(world, choose, seed)}
                found.content["compared"] = compared([*found.rows, row])
                found.add(row)
                print(row, flush=True)
    world.close()


def compared(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """PDDM less random shooting, over the seeds that both have played.

    Returns:
        "pairs", their number; of each planner the mean return, mean share of steps with success and share of
        episodes solved; and, from two pairs on, the mean difference of returns with the ends of its 95 %
        interval, by Student's t and by bootstrap.
    """
    of: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in OWN}
    for row in rows:
        of[row["planner"]][row["seed"]] = row
    both = sorted(set(of["pddm"]) & set(of["random_shooting"]))
    told: dict[str, Any] = {"pairs": len(both)}
    if not both:
        return told
    for name, played in of.items():
        told[name] = {
            key: float(np.mean([played[seed][key] for seed in both]))
            for key in ("return", "success_steps", "solved")
        }
    apart = np.array([of["pddm"][seed]["return"] - of["random_shooting"][seed]["return"] for seed in both])
    if len(both) > 1:
        told["difference"] = {"mean": apart.mean(), "t": t_interval(apart), "bootstrap": bootstrap(apart)}
    return told


def t_interval(values: Array) -> list[float]:
    """The ends of the 95 % interval of a mean, by Student's t."""
    reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - reach), float(values.mean() + reach)]


def bootstrap(values: Array, draws: int = 10_000) -> list[float]:
    """The ends of the 95 % interval of a mean, by percentiles of what resampling gives."""
    index = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[index].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


# With a learned model ---------------------------------------------------------------------------------------


def learn(found: Growing, steps: int, minutes: float, options: dict[str, Any]) -> None:
    """From nothing: an episode at random, then PDDM through an ensemble that is fitted after each.

    Args:
        minutes: after which no episode begins.
        options: "episodes" at most, "fit_steps" of a fit at most, "seed".
    """
    world, begin, seed = hand(steps), time.monotonic(), options["seed"]
    spec, buffer = world.task.spec, ReplayBuffer(world.task.spec)
    model = find("models", "ensemble")(spec, seed=seed)
    agent = MPC(planner_of("pddm", **LEARNED), replan_every=EVERY, seed=seed)
    choose = chooser(agent, spec, np.random.default_rng(seed), explore=True)
    for number in range(options["episodes"]):
        if time.monotonic() - begin > 60.0 * minutes:
            break
        told = play(world, choose, 1000 * (seed + 1) + number, number, buffer)
        metrics = model.fit(buffer, Budget(options["fit_steps"]))
        agent.swap(WithTask(model, world.task))
        row = {"episode": number, **told, "steps": len(buffer), "holdout_error": metrics["holdout_error"]}
        found.content["wall_s"] = round(time.monotonic() - begin, 1)
        found.add(row)
        print(row, flush=True)
        draw_curve(found.rows, found.path.with_suffix(".png"))
    world.close()


# Figures and the command ------------------------------------------------------------------------------------


def draw_pairs(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Each seed's return and steps with success, by planner."""
    figure, axes = plt.subplots(1, 2, figsize=(11.0, 4.2), layout="constrained")
    for shift, name in enumerate(OWN):
        mine = [row for row in rows if row["planner"] == name]
        for panel, key in zip(axes, ("return", "success_steps"), strict=True):
            at = [row["seed"] + 0.4 * shift - 0.2 for row in mine]
            panel.bar(at, [row[key] for row in mine], width=0.4, label=name)
    axes[0].set_yscale("symlog", linthresh=100.0)
    for panel, label in zip(axes, ("return", "steps with the pen as wanted"), strict=True):
        panel.set(xlabel="seed", ylabel=label)
        panel.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curve(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Return, and the model's error, by episode."""
    figure, axes = plt.subplots(1, 2, figsize=(11.0, 4.2), layout="constrained")
    number = [row["episode"] + 1 for row in rows]
    axes[0].plot(number, [row["return"] for row in rows], "o-", ms=3)
    axes[0].set_yscale("symlog", linthresh=100.0)
    axes[1].plot(number, [row["holdout_error"] for row in rows], "o-", ms=3)
    for panel, label in zip(axes, ("return", "error of the model on held-out steps [std]"), strict=True):
        panel.set(xlabel="episode", ylabel=label)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="PDDM and random shooting on a hand that turns a pen")
    parser.add_argument("--out", type=Path, default=None, help="file to write")
    parser.add_argument("--learn", action="store_true", help="PDDM with a learned ensemble instead")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="pairs of episodes")
    parser.add_argument("--first", type=int, default=FIRST, help="seed of the first pair")
    parser.add_argument("--add", type=Path, nargs="+", default=(), help="files of runs beside this one")
    parser.add_argument("--steps", type=int, default=STEPS, help="of an episode")
    parser.add_argument("--threads", type=int, default=2, help="of the simulator and of torch")
    parser.add_argument("--seed", type=int, default=0, help="with --learn: of all of it")
    parser.add_argument("--episodes", type=int, default=1000, help="with --learn: at most")
    parser.add_argument("--minutes", type=float, default=120.0, help="with --learn: no episode begins later")
    parser.add_argument(
        "--fit-steps", type=int, default=500, help="with --learn: gradient steps a fit at most"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    about = {"threads": given.threads, "commit": commit_id(), "machine": machine_name()}
    settings = {"task": TASK, "steps": given.steps, "plan": SHARED, "replan_every": EVERY}
    if given.learn:
        out = given.out or Path("docs/results/adroit_pen_learned.json")
        out.unlink(missing_ok=True)
        options = {"seed": given.seed, "episodes": given.episodes, "fit_steps": given.fit_steps}
        settings |= {"pddm": OWN["pddm"] | LEARNED, "learning": options}
        learn(Growing(out, settings, "episodes", **about), given.steps, given.minutes, options)
        return
    out = given.out or Path("docs/results/adroit_pen.json")
    found = Growing(out, settings | OWN, "episodes", **about)
    for path in given.add:
        found.take(path, ("planner", "seed"), ("episodes",))
    pairs(found, range(given.first, given.first + given.seeds), given.steps)
    found.content["compared"] = compared(found.rows)
    found.write()
    draw_pairs(found.rows, out.with_suffix(".png"))
    print(found.content["compared"])


if __name__ == "__main__":
    main()
