"""What the simulator costs as a model of a planner, beside mujoco.rollout alone with the same threads.

python tools/bench.py --only bench_simulator_model
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import mujoco
import mujoco.rollout
import numpy as np
import torch

from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.plugins import make_task
from mbrl_sim.models.simulator import SimulatorModel

THREADS, CANDIDATES, HORIZON = 2, 256, 25


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Predictions a second, with the task's reward, by turns with the bare rollouts."""
    torch.set_num_threads(THREADS)
    return [
        _figure(task, *_measure(task, 2 if quick else 15))
        for task in ("pendulum", "cartpole_swingup", "arm_reach")
    ]


def _figure(task: str, ours: float, bare: float) -> dict[str, Any]:
    return {
        "name": f"simulator_model_{task}",
        "value": round(ours),
        "unit": "predictions/s",
        "reference": "mujoco.rollout alone, as many threads",
        "reference_value": round(bare),
    }


def _measure(name: str, rounds: int) -> tuple[float, float]:
    """Median control periods a second: of a planner's call, and of the bare rollouts."""
    task = make_task(name)
    model = SimulatorModel(task.spec)
    simulator = task.make_simulator(0)
    state = model.observe(None, None, {"vector": torch.from_numpy(simulator.reset(seed=0))[None].float()})
    plans = torch.rand(1, CANDIDATES, HORIZON, task.spec.inner_action_dim) * 2 - 1
    known = WithTask(model, task)
    roll = _bare(simulator, plans[0])
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(_rate(lambda: known.imagine(state, plans)))
        bare.append(_rate(roll))
    return statistics.median(ours), statistics.median(bare)


def _bare(simulator: Any, plans: torch.Tensor) -> Callable[[], Any]:
    """The same futures by mujoco.rollout, with all that can be prepared beforehand."""
    model, steps = simulator.model, simulator._substeps * simulator.task.action_repeat
    data = [mujoco.MjData(model) for _ in range(THREADS)]
    pool = mujoco.rollout.Rollout(nthread=THREADS)
    start = np.concatenate([[0.0], simulator.qpos, simulator.qvel])
    spec = simulator.task.spec
    control = np.repeat(spec.unscale_action(plans.numpy()) / model.actuator_gear[:, 0], steps, axis=1)
    return lambda: pool.rollout(model, data, start[None].repeat(CANDIDATES, 0), control)


def _rate(call: Callable[[], Any]) -> float:
    with torch.inference_mode():
        begin = time.perf_counter()
        call()
        return CANDIDATES * HORIZON / (time.perf_counter() - begin)
