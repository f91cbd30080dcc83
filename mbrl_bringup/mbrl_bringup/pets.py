"""PETS' figure in small: what uncertainty is good for, by leaving it out (Chua et al., 2018, section 6,
https://arxiv.org/abs/1805.12114).

    python -m mbrl_bringup.pets --out docs/results/pets.json

writes the file and the figure of the same name (.png) beside it; a run that was broken off goes on. D is a
deterministic network, P a probabilistic one, DE and PE ensembles of these. Each plans with expectations (E),
or with particles that keep their member (TSinf) or draw one each step (TS1); probabilistic ones draw the
outcome, too. For one network TSinf and TS1 are the same (TS), for D all three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from mbrl_bringup.lockstep import Growing, learn
from mbrl_bringup.result import commit_id, machine_name
from mbrl_dynamics.config import build
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.network import Network, NetworkConfig
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_sim.physics import make_simulator

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TASK = "cartpole_pets"
VARIANTS = {"D": ("E",), "P": ("TS", "E"), "DE": ("TSinf", "TS1", "E"), "PE": ("TSinf", "TS1", "E")}
NAMES = {
    "D": "one deterministic network",
    "P": "one probabilistic network",
    "DE": "deterministic ensemble",
    "PE": "probabilistic ensemble",
}
METHODS = {"TS": "tsinf", "TSinf": "tsinf", "TS1": "ts1", "E": "expectation"}
MEMBERS, PARTICLES = 5, 5  # of an ensemble, all of which predict; of a candidate with TS
HIDDEN = (128, 128, 128)
SEARCH = {"horizon": 20, "candidates": 50, "iterations": 2}


class Committee(Network):
    """Several deterministic networks, each trained on its own bootstrap sample by squared error."""

    Config = EnsembleConfig  # type: ignore[assignment]


def model_of(kind: str, method: str, spec: Spec, seed: int) -> Any:
    """One of the VARIANTS."""
    if kind == "D":
        return Network(spec, NetworkConfig(hidden=HIDDEN), seed=seed)
    count = MEMBERS if kind in ("DE", "PE") else 1
    values = {"hidden": HIDDEN, "members": count, "elites": 0, "propagation": METHODS[method]}
    if kind == "DE":
        values["bound_penalty"] = 0.0  # there is no variance to be bounded
    config = build(EnsembleConfig, values)
    return (Committee if kind == "DE" else Ensemble)(spec, config, seed=seed)


def planner_of(kind: str, method: str) -> ICEM:
    """The same search for all; only what is imagined of a candidate differs."""
    sampled = method != "E"
    draws = sampled and kind in ("P", "PE")
    own = {"particles": PARTICLES if sampled else 0, "aleatoric": draws}
    return ICEM(build(ICEMConfig, {**SEARCH, **own}))


def run(kind: str, method: str, seed: int, episodes: int, fit_steps: int) -> dict[str, Any]:
    """One learning: returns by episode, the first one at random and the same for all variants."""
    torch.manual_seed(seed)  # TS1 exchanges members by torch's own random numbers where nothing else is drawn
    begin, world = time.process_time(), make_simulator(make_task(TASK))
    model, planner = model_of(kind, method, world.task.spec, seed), planner_of(kind, method)
    try:
        _, returns = learn(world, model, planner, episodes=episodes, fit_steps=fit_steps, seed=seed)
    finally:
        world.close()
    told = {"model": kind, "propagation": method, "seed": seed, "returns": returns}
    return {**told, "cpu_s": round(time.process_time() - begin, 1)}


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a variant, the best first: mean return of the planned episodes, and of the last three of them.

    Only seeds count that all variants have.
    """
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((row["model"], row["propagation"]), set()).add(row["seed"])
    rows = [row for row in rows if all(row["seed"] in some for some in seeds.values())]
    found = []
    for kind, methods in VARIANTS.items():
        for method in methods:
            some = [row["returns"] for row in rows if (row["model"], row["propagation"]) == (kind, method)]
            if some:
                planned = np.array(some)[:, 1:]
                mean, last = planned.mean(1), planned[:, -3:].mean(1)
                told = {"mean": float(mean.mean()), "seeds": mean.round(1).tolist()}
                found.append({"variant": f"{kind}-{method}", **told, "last": float(last.mean())})
    return sorted(found, key=lambda one: -one["mean"])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a table of Markdown."""
    lines = ["| variant | mean of the planned episodes | by seed | last three |", "|---|---|---|---|"]
    for one in summary(rows):
        seeds = ", ".join(f"{value:.0f}" for value in one["seeds"])
        lines.append(f"| {one['variant']} | {one['mean']:.1f} | {seeds} | {one['last']:.1f} |")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Return against episode, a panel a model: the mean over the seeds, and from the worst to the best."""
    figure, axes = plt.subplots(1, len(VARIANTS), figsize=(14.0, 3.8), sharey=True, layout="constrained")
    for panel, (kind, methods) in zip(axes, VARIANTS.items(), strict=True):
        for method in methods:
            some = [row["returns"] for row in rows if (row["model"], row["propagation"]) == (kind, method)]
            if not some:
                continue
            label = "E, TS1, TSinf" if kind == "D" else method
            returns, x = np.array(some), np.arange(1, len(some[0]) + 1)
            panel.plot(x, returns.mean(0), "o-", ms=3, label=label)
            panel.fill_between(x, returns.min(0), returns.max(0), alpha=0.15, lw=0)
        panel.set(title=f"{kind}: {NAMES[kind]}", xlabel="episode (the first one at random)")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=8, loc="lower right")
    axes[0].set_ylabel(f"return of {TASK}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="PETS' figure in small: deterministic or not, one or many")
    parser.add_argument("--out", type=Path, default=Path("docs/results/pets.json"), help="file to write")
    parser.add_argument("--seeds", type=int, default=3, help="of each variant")
    parser.add_argument("--episodes", type=int, default=6, help="of a learning, the first one at random")
    parser.add_argument("--fit-steps", type=int, default=800, help="gradient steps of a fit at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "task": TASK,
        "episodes": options.episodes,
        "fit_steps": options.fit_steps,
        "members": MEMBERS,
        "particles": PARTICLES,
        "hidden": HIDDEN,
        "search": SEARCH,
    }
    results = Growing(options.out, settings, "runs", commit=commit_id(), machine=machine_name())
    for seed in range(options.seeds):
        for kind, methods in VARIANTS.items():
            for method in methods:
                if results.find(model=kind, propagation=method, seed=seed) is None:
                    results.add(run(kind, method, seed, options.episodes, options.fit_steps))
                    returns = np.round(results.rows[-1]["returns"], 1).tolist()
                    print(f"{kind}-{method}, seed {seed}: {returns}", flush=True)
    draw(results.rows, options.out.with_suffix(".png"))
    print(table(results.rows))
    results.publish(table(results.rows))


if __name__ == "__main__":
    main()
