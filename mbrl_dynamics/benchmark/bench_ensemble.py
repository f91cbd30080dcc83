"""How fast the ensemble imagines and trains at mbrl-lib's default size: 7 members, 4 layers of 200 units.

python tools/bench.py --only bench_ensemble
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import record

THREADS = 2
POPULATION, HORIZON, PARTICLES = 350, 15, 20  # a decision of mbrl-lib's PETS is five such rollouts
SPEC = Spec(
    task="cartpole_continuous",
    observation=tuple(Element(name) for name in ("x", "x_dot", "theta", "theta_dot")),
    action=(Element("force", "1", -1.0, 1.0),),
    control_period=0.02,
)
CONFIG = EnsembleConfig(members=7, elites=5, hidden=(200,) * 4, propagation="ts1", batch_size=256)


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Predictions and gradient steps a second, each beside its matrix products alone in the same run."""
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)
    repeats = 3 if quick else 10
    model = Ensemble(SPEC, CONFIG)
    buffer = record(lambda o, a: o + 0.1 * np.tanh(o) + 0.05 * a.sum(), SPEC, episodes=5, steps=200)
    model.fit(buffer, Budget(steps=5))
    state = model.observe(None, None, {"vector": torch.zeros(1, 4)})
    plans = torch.rand(1, POPULATION, HORIZON, 1) * 2 - 1
    noise = torch.Generator().manual_seed(0)
    count = POPULATION * HORIZON * PARTICLES

    def imagine() -> None:
        with torch.inference_mode():
            model.imagine(state, plans, particles=PARTICLES, noise=noise)

    def products() -> None:
        with torch.inference_mode():
            for _ in range(HORIZON):
                _products(model, torch.zeros(CONFIG.elites, POPULATION * PARTICLES // CONFIG.elites, 5))

    steps = 20 if quick else 100
    train, batch = [np.arange(len(buffer))], torch.zeros(CONFIG.members, CONFIG.batch_size, 5)
    return [
        _figure(
            "ensemble_predictions",
            "predictions/s",
            count / _best(imagine, repeats),
            "the matrix products alone",
            count / _best(products, repeats),
        ),
        _figure(
            "ensemble_gradient_steps",
            "steps/s",
            steps / _best(lambda: model._trainer._descend(buffer, train, steps), 2),
            "three times the forward matrix products alone",
            1 / (3 * _best(lambda: _products(model, batch), repeats)),
        ),
    ]


def _products(model: Ensemble, x: torch.Tensor) -> None:
    with torch.no_grad():
        for weight in model.weights:
            x = torch.bmm(x, weight[: len(x)])


def _best(work: Callable[[], object], repeats: int) -> float:
    """Shortest of some runs [s]: what disturbs a machine only ever makes it slower."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _figure(name: str, unit: str, value: float, reference: str, reference_value: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "reference": reference,
        "reference_value": round(reference_value, 1),
    }


if __name__ == "__main__":
    for figure in figures():
        print(figure)
