"""Every planner on every model: what it reaches, how long a plan takes, and how many predictions it asks for.

    python -m mbrl_bringup.planners_models --out docs/results/planners_models.json

A run that was broken off goes on. For each task and seed, an ensemble and iCEM learn in the ordinary way;
each learned model is fitted once to what they saw, and each planner plays one episode with it, from the same
start.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbrl_bringup.evidence import load_model
from mbrl_bringup.lockstep import Counted, Growing, OverBudget, Stopwatch, episode, learn
from mbrl_bringup.pendulum_best import Best
from mbrl_bringup.result import commit_id, machine_name
from mbrl_dynamics import plugins, snapshot
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.small_worlds import chooser, random_action
from mbrl_sim.physics import make_simulator

FIELDS = ("observation", "action", "reward", "first", "terminated", "truncated", "episode", "step")


@dataclass(frozen=True)
class Case:
    """A task, and how it is measured.

    Attributes:
        horizon: of all planners [steps].
        episodes: of the learning that gathers the data, the first one at random.
        fit_steps: gradient steps of its fits at most.
        action_repeat: frames in a control period; 0 = as the task says.
        best: mean return that is known to be possible; NaN = computed, see pendulum_best.py.
        source: of that.
    """

    horizon: int
    episodes: int
    fit_steps: int
    action_repeat: int = 0
    best: float = math.nan
    source: str = ""


CASES = {
    "pendulum": Case(20, 6, 600, source="dynamic programming on a grid of the exact world, played in it"),
    "cartpole_swingup": Case(
        25,
        8,
        1000,
        best=880.0,
        source="the best policies of this suite reach 877 to 880, published ones 870 to 880",
    ),
    "dm_control/reacher-easy": Case(
        15, 12, 1000, action_repeat=4, best=985.0, source="published policies reach 980 to 985 on average"
    ),
}
MODELS: dict[str, dict[str, Any]] = {
    "simulator": {},
    "ensemble": {},
    "network": {},
    "physics": {"particles": 1},
    "gmm": {},
    "gp": {"points": 100, "features": 64, "draws": 2},
    "residual": {"elites": 1},
}
FIT_STEPS = 3000  # of the models that are compared, at most
OFF = 0.3  # how far the MJCF is wrong that physics and residual begin with, see `fitted` [natural units]
SEARCH = {"candidates": 50, "iterations": 2}  # of all planners that search by sampling
SAMPLING = ("icem", "mppi", "cem", "pddm", "random_shooting")
OTHERS: dict[str, dict[str, Any]] = {
    "gradient": {"starts": 3, "iterations": 8},
    "ilqr": {"iterations": 5},
    "mcts": {"simulations": 48},
}
PLANNERS = (*SAMPLING, *OTHERS)
NOT = "not measured"
EVERY = 3  # steps from plan to plan of the OTHERS, which take long


def start_of(seed: int) -> int:
    """The seed of where all measured episodes of a seed begin."""
    return 100 + seed


# Data and models --------------------------------------------------------------------------------------------


def gathered(task: str, case: Case, seed: int, folder: Path) -> ReplayBuffer:
    """What the ordinary learning saw; made once, then kept in the folder."""
    made = plugins.make_task(task, case.action_repeat)
    path = folder / "data.npz"
    if not path.exists():
        heard: list[Transition] = []
        model = plugins.find("models", "ensemble")(made.spec, seed=seed)
        planner, world = planner_of("icem", case), make_simulator(made)
        _, returns = learn(
            world,
            model,
            planner,
            episodes=case.episodes,
            fit_steps=case.fit_steps,
            seed=seed,
            hear=heard.append,
        )
        world.close()
        print(f"{task}, seed {seed}, learning: {np.round(returns, 1).tolist()}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        columns: Any = {name: np.array([getattr(state, name) for state in heard]) for name in FIELDS}
        np.savez(path, **columns)
    with np.load(path) as file:
        kept = {name: file[name].tolist() for name in FIELDS if name not in ("observation", "action")}
        arrays = file["observation"], file["action"]
    buffer = ReplayBuffer(made.spec)
    for i, (observation, action) in enumerate(zip(*arrays, strict=True)):
        rest = {name: values[i] for name, values in kept.items()}
        buffer.add(Transition(bytes(16), observation=observation, action=action, **rest))
    return buffer


def fitted(name: str, task: str, case: Case, seed: int, folder: Path) -> Any:
    """A model, fitted to the data of a seed; made once, then kept in the folder.

    The MJCF of `physics` and of the base of `residual` begins wrong, or there would be nothing to find:
    masses are 35 % too large, and damping is too, by 0.3 of what takes most of a speed away in a second.
    """
    spec = plugins.make_task(task, case.action_repeat).spec
    path = folder / f"{name}.safetensors"
    if path.exists():
        return load_model(path, spec)
    kind = plugins.find("models", name)
    model = kind(spec, build(kind.Config, MODELS[name], name), seed=seed)
    if name == "simulator":
        return model
    physics = {"physics": model, "residual": getattr(model, "base", None)}.get(name)
    if physics is not None:
        state = physics.state_dict()
        physics.load_state_dict({**state, "draws": state["draws"] + OFF})
    metrics = model.fit(gathered(task, case, seed, folder), Budget(FIT_STEPS))
    print(f"{task}, seed {seed}, {name}: held-out error {metrics['holdout_error']:.4f}", flush=True)
    packed = snapshot.pack(model, model_id=name, run_id="", version=1)
    snapshot.write_atomically(path, packed.weights)
    return model


# Playing ----------------------------------------------------------------------------------------------------


def planner_of(name: str, case: Case) -> Any:
    """A planner with its defaults, but for the horizon, SEARCH and what OTHERS says."""
    kind, own = plugins.find("planners", name), OTHERS.get(name, SEARCH)
    return kind(build(kind.Config, {"horizon": case.horizon, **own}, name))


def play(task: Any, planner: Any, model: Any, seed: int, every: int, budget: float) -> dict[str, Any]:
    """One episode of a planner with a model.

    Args:
        task: what is wanted, with a world.
        planner, model: that fit the task.
        seed: of where the episode begins is made of it, and the planner's random numbers.
        every: steps from plan to plan.
        budget: processor time of all plans [s].

    Returns:
        "return" where there is one, "ms" a plan (median), "predictions" a plan, and "status": "done",
        "refused" (a planner that cannot use the model says why) or "over budget"; "unfounded": plans without
        a finite prediction, instead of which nothing is done.
    """
    try:
        planner.check(task.spec, model, task)
    except UserError as error:
        return {"status": "refused", "why": str(error)}
    known, watch = Counted(model, task), Stopwatch(planner, math.ceil(task.max_steps / every), budget)
    agent = MPC(watch, known, replan_every=every, seed=seed)
    decide = chooser(agent, task.spec, np.random.default_rng(seed), explore=False)
    world = make_simulator(task)
    told: dict[str, Any] = {"status": "done"}
    try:
        total = episode(world, lambda obs, first: np.nan_to_num(decide(obs, first)), seed=start_of(seed))
        told["return"] = total
    except OverBudget:
        told["status"] = "over budget"
    finally:
        world.close()
    told["ms"] = 1000.0 * float(np.median(watch.seconds))
    told["predictions"] = round(known.predictions / len(watch.seconds))
    return {**told, "unfounded": watch.refused} if watch.refused else told


def ends(name: str, case: Case, seed: int, episodes: int = 5) -> dict[str, Any]:
    """What random actions and the known best return from the start of a seed."""
    task = plugins.make_task(name, case.action_repeat)
    world, rng = make_simulator(task), np.random.default_rng(seed)
    at = [
        episode(world, lambda obs, first: random_action(task.spec, rng), seed=start_of(seed))
        for _ in range(episodes)
    ]
    world.close()
    best = _pendulum().play(start_of(seed)) if math.isnan(case.best) else case.best
    return {"task": name, "seed": seed, "random": float(np.mean(at)), "best": best, "source": case.source}


@functools.cache
def _pendulum() -> Best:
    return Best()


def cells(seeds: int, planners: Sequence[str] = PLANNERS) -> Iterator[tuple[str, int, str, str]]:
    """Task, seed, model and planner of all there is to measure, one planner after the other."""
    for planner, task, seed, model in itertools.product(planners, CASES, range(seeds), MODELS):
        yield task, seed, model, planner


# Telling ----------------------------------------------------------------------------------------------------


def score(value: float, random: float, best: float) -> float:
    """A return on a scale where random actions are 0 and the known best is 1."""
    return (value - random) / (best - random)


def mean_score(result: Mapping[str, Any], task: str, model: str, planner: str) -> float:
    """Of the mean return over the seeds; NaN where a seed has none."""
    at = {row["seed"]: row for row in result["starts"] if row["task"] == task}
    some = _of(result, task, model, planner)
    if not some or any("return" not in cell for cell in some):
        return math.nan
    value = float(np.mean([cell["return"] for cell in some]))
    random, best = (float(np.mean([at[cell["seed"]][name] for cell in some])) for name in ("random", "best"))
    return score(value, random, best)


def verdicts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each task the best planner with the simulator, and of each learned model the best beside it.

    "share" is the score of a learned model's best planner, over that of the same planner with the simulator.
    """
    found = []
    for task in CASES:
        scores = {(m, p): mean_score(result, task, m, p) for m in MODELS for p in PLANNERS}
        known = {p: s for (m, p), s in scores.items() if m == "simulator" and math.isfinite(s)}
        if not known:
            continue
        top = max(known, key=lambda p: known[p])
        told: dict[str, Any] = {"task": task, "planner": top, "score": known[top], "models": {}}
        for model in (m for m in MODELS if m != "simulator"):
            own = {p: s for (m, p), s in scores.items() if m == model and p in known and math.isfinite(s)}
            if own:
                best = max(own, key=lambda p: own[p])
                told["models"][model] = {
                    "planner": best,
                    "score": own[best],
                    "share": own[best] / known[best],
                }
        found.append(told)
    return found


def table(result: Mapping[str, Any]) -> str:
    """A table of Markdown a task: mean return and score over seeds; milliseconds and predictions a plan."""
    parts = []
    for task in CASES:
        starts = [row for row in result["starts"] if row["task"] == task]
        if not starts:
            continue
        random, best = (np.mean([row[name] for row in starts]) for name in ("random", "best"))
        parts += [
            f"`{task}`: random actions {random:.0f}, known best {best:.0f} ({starts[0]['source']}).",
            "",
        ]
        parts += [f"| | {' | '.join(f'`{model}`' for model in MODELS)} |", "|---" * (len(MODELS) + 1) + "|"]
        missing = []
        for planner in PLANNERS:
            row = [_text(result, task, model, planner) for model in MODELS]
            if set(row) == {NOT}:
                missing.append(f"`{planner}`")
            else:
                parts.append(f"| `{planner}` | {' | '.join(row)} |")
        parts += ["", f"Not measured yet: {', '.join(missing)}.", ""] if missing else [""]
    return "\n".join(parts).rstrip()


def _text(result: Mapping[str, Any], task: str, model: str, planner: str) -> str:
    """A cell: "868 (0.99), 18 ms, 12.6k"."""
    some = _of(result, task, model, planner)
    if not some:
        return NOT
    if some[0]["status"] == "refused":
        return "refused"
    ms, predictions = (np.median([cell[name] for cell in some]) for name in ("ms", "predictions"))
    cost = f"{ms:.0f} ms, {predictions / 1000:.1f}k"
    returns = [cell["return"] for cell in some if "return" in cell]
    if len(returns) < len(some):
        return f"over budget, {cost}"
    seeds = {row["seed"] for row in result["starts"] if row["task"] == task}
    few = "" if len(some) == len(seeds) else f" ({len(some)} of {len(seeds)} seeds)"
    return f"{np.mean(returns):.0f} ({mean_score(result, task, model, planner):.2f}){few}, {cost}"


def _of(result: Mapping[str, Any], task: str, model: str, planner: str) -> Sequence[dict[str, Any]]:
    wanted = (task, model, planner)
    return [cell for cell in result["cells"] if (cell["task"], cell["model"], cell["planner"]) == wanted]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="every planner on every model")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/planners_models.json"), help="to write"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/planners_models"), help="for data and models"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of data, models and starts")
    parser.add_argument(
        "--tasks", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="to measure now"
    )
    parser.add_argument("--planners", nargs="+", choices=PLANNERS, default=PLANNERS, help="to measure now")
    parser.add_argument("--add", type=Path, nargs="+", default=(), help="files of runs beside this one")
    parser.add_argument(
        "--budget", type=float, default=120.0, help="processor time of an episode's plans [s]"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "cases": {name: asdict(case) for name, case in CASES.items()},
        "models": MODELS,
        "planners": OTHERS,
        "search": SEARCH,
        "every": EVERY,
        "fit_steps": FIT_STEPS,
        "off": OFF,
        "budget": options.budget,
    }
    results = Growing(options.out, settings, "cells", commit=commit_id(), machine=machine_name())
    starts = results.content.setdefault("starts", [])
    for path in options.add:
        results.take(path, ("task", "seed", "model", "planner"), ("cells", "starts"))
    for task, seed, name, planner in cells(options.seeds, options.planners):
        if task not in options.tasks:
            continue
        case, key = CASES[task], {"task": task, "seed": seed, "model": name, "planner": planner}
        if not any((row["task"], row["seed"]) == (task, seed) for row in starts):
            starts.append(ends(task, case, seed))
        if results.find(**key) is not None:
            continue
        model = fitted(name, task, case, seed, options.work / f"{task.replace('/', '-')}-{seed}")
        made, every = plugins.make_task(task, case.action_repeat), EVERY if planner in OTHERS else 1
        told = play(made, planner_of(planner, case), model, seed, every, options.budget)
        results.add({**key, **told})
        print(f"{task}, seed {seed}, {name}, {planner}: {told}", flush=True)
        results.content["verdicts"] = verdicts(results.content)
    results.content["verdicts"] = verdicts(results.content)
    results.write()
    print(table(results.content))
    results.publish(table(results.content))


if __name__ == "__main__":
    main()
