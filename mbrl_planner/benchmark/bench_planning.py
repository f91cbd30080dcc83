"""How long a decision takes: at the demo's settings, and at mbrl-lib's default size (525,000 predictions).

python tools/bench.py --only bench_planning
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import yaml
from ament_index_python.packages import get_package_share_directory

from mbrl_dynamics.config import build
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.plugins import find
from mbrl_planner.planners.cem import CEM, CEMConfig
from mbrl_planner.planners.icem import ICEM, ICEMConfig

THREADS = 2
TASK = "cartpole_swingup"
LARGE_MODEL = EnsembleConfig(members=7, elites=5, hidden=(200,) * 4, propagation="ts1")
LARGE_PLANNER = CEMConfig(candidates=350, iterations=5, horizon=15, particles=20, elites=35, aleatoric=True)


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds a decision."""
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)
    with open(f"{get_package_share_directory('mbrl_bringup')}/config/{TASK}.yaml") as file:
        parameters = yaml.safe_load(file)
    own = parameters["/**/planner_node"]["ros__parameters"].get("icem", {})
    model = parameters["/**/dynamics_node"]["ros__parameters"].get("ensemble", {})
    small = _decide(ICEM(build(ICEMConfig, own)), build(EnsembleConfig, model), 20 if quick else 200)
    large = _decide(CEM(LARGE_PLANNER), LARGE_MODEL, 2 if quick else 5)
    counts = (
        LARGE_PLANNER.candidates * LARGE_PLANNER.iterations * LARGE_PLANNER.horizon * LARGE_PLANNER.particles
    )
    return [
        _figure("plan_demo_median", "ms", 1e3 * statistics.median(small), "the goal of the demo", 20.0),
        _figure("plan_demo_p99", "ms", 1e3 * sorted(small)[int(0.99 * (len(small) - 1))], None, None),
        _figure(
            "plan_large_median",
            "ms",
            1e3 * statistics.median(large),
            "mbrl-lib on two cores, at best",
            2000.0,
        ),
        _figure(
            "plan_large_predictions",
            "predictions/s",
            counts / min(large),
            "mbrl-lib on two cores, at best",
            270e3,
        ),
    ]


def _decide(planner: Any, config: EnsembleConfig, count: int) -> list[float]:
    """Times of decisions [s], each warm from the last."""
    task = find("tasks", TASK)()
    model = WithTask(Ensemble(task.spec, config), task)
    state = model.observe(None, None, {"vector": torch.tensor([[0.0, -1.0, 0.0, 0.0, 0.0]])})
    guess, times = planner.plan(model, state).guess, []
    for _ in range(count):
        begin = time.perf_counter()
        guess = planner.plan(model, state, guess).guess
        times.append(time.perf_counter() - begin)
    return times


def _figure(
    name: str, unit: str, value: float, reference: str | None, reference_value: float | None
) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "reference": reference,
        "reference_value": reference_value,
    }


if __name__ == "__main__":
    for figure in figures():
        print(figure)
