"""Likelihood-ratio against pathwise policy gradients: variance and conditioning as a function of the horizon.

    python mbrl_planner/benchmark/gradients.py --out docs/results/gradients.json

writes the file and a figure of the same name (.png) beside it. Three problems, each with a linear Gaussian
policy of two or three weights, so that covariances can be estimated: the linear-quadratic point mass (exact
model), Gymnasium's pendulum (exact model), and the pendulum in an ensemble that learned it from 1,000 random
steps. The likelihood ratio has a good baseline: what other paths from the same start earn from that step on.

Of a path's gradient g with mean G:

- noise: E|g - G|^2 / |G|^2, the number of paths whose mean is as large as its error. For both methods, G is
  the mean that is known better.
- condition: largest over smallest eigenvalue of E[g g'], how unequal the directions of the weights are.
- tail: largest |g| over the median, what a single path can do to a minibatch.
- apart: distance of the two methods' means, in standard errors; both are unbiased.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from mbrl_dynamics.interfaces import Budget, Capabilities, Noise
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, record
from mbrl_dynamics.types import Prediction
from mbrl_planner.agents.gradients import likelihood_ratio, pathwise, reward_to_go, roll

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIGMA = 0.3  # deviation of the policy, of scaled actions
HORIZONS = (1, 2, 5, 10, 20, 40, 80, 160)
METHODS = ("likelihood ratio", "pathwise")
STARTS, TWINS = 400, 4  # in a round: where paths begin, and paths from each


class Pendulum(ObservationModel):
    """Gymnasium's Pendulum-v1 as an exact, differentiable model, and as a task: m = l = 1, g = 10."""

    capabilities = Capabilities(differentiable=True, rewards=True)
    max_steps = 200

    def __init__(self) -> None:
        angle = (Element("cos", "1", -1.0, 1.0, "cos"), Element("sin", "1", -1.0, 1.0, "sin"))
        speed = Element("speed", "rad/s", -8.0, 8.0)
        super().__init__(
            Spec("dense_pendulum", (*angle, speed), (Element("torque", "N m", -2.0, 2.0),), 0.05)
        )

    def reward(self, obs: Any, action: Any, next_obs: Any) -> Any:
        """Minus the cost of the state that was left and of the torque."""
        angle = torch.atan2(obs[..., 1], obs[..., 0])
        return -(angle**2 + 0.1 * obs[..., 2] ** 2 + 0.004 * action[..., 0] ** 2)

    def terminated(self, next_obs: Any) -> None:
        """Never."""

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        """Semi-implicit Euler over 0.05 s, as Gymnasium does."""
        cos, sin, speed = state.unbind(-1)
        speed = (speed + 0.05 * (15.0 * sin + 3.0 * 2.0 * action[..., 0])).clamp(-8.0, 8.0)
        turn = 0.05 * speed
        turned = (cos * turn.cos() - sin * turn.sin(), sin * turn.cos() + cos * turn.sin())
        after = torch.stack([*turned, speed], dim=-1)
        return Prediction(after, after, reward=self.reward(state, action, after))


def learned_pendulum(seed: int = 0) -> tuple[Any, float]:
    """An ensemble that learned from 1,000 random steps, with the known reward; its held-out error."""
    exact = Pendulum()

    def step(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        circle = obs / np.array([*[max(float(np.hypot(*obs[:2])), 1e-9)] * 2, 1.0])
        ahead = exact.step(torch.tensor(circle).float(), torch.tensor(action).float())
        return ahead.state.double().numpy()

    buffer = record(step, exact.spec, 20, 50, seed)
    ensemble = Ensemble(exact.spec, EnsembleConfig(hidden=(64, 64)), seed=seed)
    metrics = ensemble.fit(buffer, Budget(1500))
    ensemble.requires_grad_(False)
    return WithTask(ensemble, exact), metrics["holdout_error"]


def starts_of(name: str, count: int, noise: torch.Generator) -> Tensor:
    """Where paths begin [count, D]."""
    if name == "linear-quadratic":
        return torch.randn(count, 2, generator=noise)
    angle = (torch.rand(count, generator=noise) * 2 - 1) * math.pi
    speed = torch.rand(count, generator=noise) * 2 - 1
    return torch.stack([angle.cos(), angle.sin(), speed], dim=-1)


def gradients_of(model: Any, name: str, weights: list[float], method: str, horizon: int, seed: int) -> Tensor:
    """Gradients of single paths [STARTS, TWINS, weights], TWINS of them from each start."""
    noise = torch.Generator().manual_seed(seed)
    # Each path has weights of its own: the gradient of the sum of all has each path's own as a row.
    rows = torch.tensor(weights).expand(STARTS * TWINS, -1).clone().requires_grad_(True)

    def policy(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = (obs * rows).sum(-1, keepdim=True)
        return mean, torch.full_like(mean, math.log(SIGMA))

    start = starts_of(name, STARTS, noise).repeat_interleave(TWINS, dim=0)
    state = model.observe(None, None, {"vector": start})
    if hasattr(model, "elites"):  # each path keeps its member
        state = type(state)(state.obs, torch.arange(len(start)) % model.elites)
    with torch.set_grad_enabled(method == "pathwise"):
        squash = torch.nn.Identity() if name == "linear-quadratic" else torch.tanh
        paths = roll(model, state, policy, horizon, noise, squash)
    if method == "pathwise":
        total = pathwise(paths)
    else:
        gain = reward_to_go(paths.reward, 1.0).unflatten(1, (STARTS, TWINS))
        others = (gain.sum(-1, keepdim=True) - gain) / (TWINS - 1)
        total = likelihood_ratio(paths, policy, (gain - others).flatten(1))
    return torch.autograd.grad(total.sum(), [rows])[0].double().unflatten(0, (STARTS, TWINS))


def figures(samples: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What the module's docstring says, a method each, of gradients [S, TWINS, weights]."""
    means = {method: g.mean((0, 1)) for method, g in samples.items()}
    # Paths of the same start are not independent, but the starts are.
    errors = {method: g.mean(1).var(0) / len(g) for method, g in samples.items()}  # squared, [weights]
    best = min(errors, key=lambda method: float(errors[method].sum()))
    squared = float(means[best].square().sum() - errors[best].sum())  # unbiased
    apart = (
        (means[METHODS[0]] - means[METHODS[1]]).abs() / torch.stack([*errors.values()]).sum(0).sqrt()
    ).max()
    found = {}
    for method, samples_of in samples.items():
        g = samples_of.flatten(0, 1)
        eigenvalues, norms = torch.linalg.eigvalsh(g.T @ g / len(g)), g.norm(dim=-1)
        found[method] = {
            "noise": float(g.var(0).sum()) / squared,
            "condition": float(eigenvalues[-1] / eigenvalues[0]),
            "tail": float(norms.max() / norms.median()),
            "mean": means[method].tolist(),
            "standard_error": errors[method].sqrt().tolist(),
            "apart": float(apart),
        }
    return found


def measure(rounds: int) -> dict[str, Any]:
    """All problems, methods and horizons."""
    begin = time.monotonic()
    learned, error = learned_pendulum()
    problems = {
        "linear-quadratic": (PointMass(), [-0.6, -0.5]),
        "pendulum, exact": (Pendulum(), [-0.5, -2.0, -0.5]),
        "pendulum, learned": (learned, [-0.5, -2.0, -0.5]),
    }
    rows = []
    for name, (model, weights) in problems.items():
        for horizon in HORIZONS:
            samples = {
                method: torch.cat(
                    [gradients_of(model, name, weights, method, horizon, seed) for seed in range(rounds)]
                )
                for method in METHODS
            }
            for method, values in figures(samples).items():
                rows.append({"problem": name, "method": method, "horizon": horizon, **values})
    return {
        "paths": rounds * STARTS * TWINS,
        "policy_deviation": SIGMA,
        "holdout_error": error,
        "rows": rows,
        "wall_s": round(time.monotonic() - begin, 1),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Noise and condition against the horizon, a column a problem."""
    names = list(dict.fromkeys(row["problem"] for row in result["rows"]))
    shown = {"noise": "noise: paths for a signal\nas large as its error", "condition": "condition of E[g g']"}
    figure, axes = plt.subplots(
        len(shown), len(names), sharex=True, sharey="row", figsize=(9.0, 5.0), layout="constrained"
    )
    for column, name in enumerate(names):
        for row, (key, label) in enumerate(shown.items()):
            panel = axes[row, column]
            for method in METHODS:
                mine = [r for r in result["rows"] if (r["problem"], r["method"]) == (name, method)]
                panel.loglog([r["horizon"] for r in mine], [r[key] for r in mine], "o-", label=method)
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(label)
        axes[0, column].set_title(name)
        axes[-1, column].set_xlabel("horizon [steps]")
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="likelihood-ratio against pathwise policy gradients")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gradients.json"), help="file to write")
    parser.add_argument("--rounds", type=int, default=5, help="of 1,600 paths an estimate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.rounds)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out.with_suffix(".png"))
    for row in result["rows"]:
        print(
            f"{row['problem']:<18} {row['method']:<17} H = {row['horizon']:>3}: noise {row['noise']:9.3g}, "
            f"condition {row['condition']:9.3g}, tail {row['tail']:7.3g}, apart {row['apart']:.1f}"
        )


if __name__ == "__main__":
    main()
