"""How long a decision takes: at the demo's settings, at mbrl-lib's default size (525,000 predictions), with
each sampling planner for as many predictions, and with MPPI for a differential drive, beside a plain one.

python tools/bench.py --only bench_planning
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import yaml
from ament_index_python.packages import get_package_share_directory
from plain_mppi import PlainMPPI
from torch import Tensor

from mbrl_dynamics.config import build
from mbrl_dynamics.interfaces import Capabilities, Noise
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.plugins import find
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.types import Prediction, Rollout
from mbrl_planner.planners.cem import CEM, CEMConfig
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.planners.mppi import MPPI, MPPIConfig
from mbrl_planner.planners.pddm import PDDM, PDDMConfig
from mbrl_planner.planners.random_shooting import RandomShooting

THREADS = 2
TASK = "cartpole_swingup"
LARGE_MODEL = EnsembleConfig(members=7, elites=5, hidden=(200,) * 4, propagation="ts1")
LARGE_PLANNER = CEMConfig(candidates=350, iterations=5, horizon=15, particles=20, elites=35, aleatoric=True)
SAME = {"candidates": 256, "iterations": 3, "horizon": 25}  # of each planner
SAME_PLANNERS = {
    "random_shooting": RandomShooting(RandomShooting.Config(**SAME)),
    "cem": CEM(CEMConfig(**SAME)),
    "icem": ICEM(ICEMConfig(**SAME, decay=1.0)),
    "mppi": MPPI(MPPIConfig(**SAME)),
    "pddm": PDDM(PDDMConfig(**SAME)),
}
DRIVE = {"candidates": 2000, "horizon": 56, "iterations": 1}  # the defaults of nav2's MPPI controller


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds a decision, and predictions a second."""
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
        *_same_predictions(5 if quick else 25),
        *_drive(3 if quick else 20),
    ]


def _decide(planner: Any, config: EnsembleConfig, count: int) -> list[float]:
    """Times of decisions [s], each warm from the last."""
    decide = _decision(planner, *_cartpole(config))
    decide()
    return [_time(decide) for _ in range(count)]


def _cartpole(config: EnsembleConfig) -> tuple[WithTask, Any]:
    task = find("tasks", TASK)()
    model = WithTask(Ensemble(task.spec, config), task)
    return model, model.observe(None, None, {"vector": torch.tensor([[0.0, -1.0, 0.0, 0.0, 0.0]])})


def _decision(planner: Any, model: Any, state: Any) -> Callable[[], None]:
    """Decides once, warm from the last time."""
    guess = None

    def decide() -> None:
        nonlocal guess
        guess = planner.plan(model, state, guess).guess

    return decide


def _time(work: Callable[[], None]) -> float:
    """Wall time [s]."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# Every sampling planner -------------------------------------------------------------------------------------


class Counted(WithTask):
    """Counts what it predicts."""

    predictions = 0

    def imagine(self, state: Any, actions: Any, **kwargs: Any) -> Any:
        """As ever."""
        rollout = super().imagine(state, actions, **kwargs)
        self.predictions += rollout.reward.numel()
        return rollout


def _same_predictions(repeats: int) -> list[dict[str, Any]]:
    """Predictions a second, in turn, so that the machine's ups and downs concern all; the best of each."""
    model, state = _cartpole(EnsembleConfig())
    counted, counts, decisions = Counted(model.model, model.task), {}, {}
    for name, planner in SAME_PLANNERS.items():
        guess = planner.plan(counted, state).guess
        counted.predictions = 0
        planner.plan(counted, state, guess)
        counts[name], decisions[name] = counted.predictions, _decision(planner, model, state)
    best = dict.fromkeys(SAME_PLANNERS, float("inf"))
    for _ in range(repeats):
        for name, decide in decisions.items():
            best[name] = min(best[name], _time(decide))
    speed = {name: counts[name] / best[name] for name in SAME_PLANNERS}
    fastest = max(speed, key=lambda name: speed[name])
    return [
        _figure(f"plan_{name}_predictions", "predictions/s", speed[name], fastest, speed[fastest])
        for name in SAME_PLANNERS
    ]


# A differential drive ---------------------------------------------------------------------------------------

PERIOD = 0.05  # [s]
SCALE = torch.tensor([1.0, 2.0])  # of speed [m/s] and turn rate [rad/s]


def drive(state: Tensor, action: Tensor) -> Tensor:
    """Where a differential drive is a period later: x, y, heading [..., 3], for scaled actions [..., 2]."""
    x, y, heading = state.unbind(-1)
    speed, turn = (PERIOD * SCALE * action).unbind(-1)
    return torch.stack([x + speed * heading.cos(), y + speed * heading.sin(), heading + turn], dim=-1)


def path_cost(state: Tensor, action: Tensor) -> Tensor:
    """Of being off the x axis, off its direction, not at x = 2 m, and of effort, [...]."""
    return _cost(*state.unbind(-1), action)


def _cost(x: Tensor, y: Tensor, heading: Tensor, action: Tensor) -> Tensor:
    effort = torch.linalg.vecdot(action, action)
    away = (x - 2.0).square_().addcmul_(y, y, value=5.0).addcmul_(heading, heading, value=0.5)
    return away.add_(effort, alpha=0.01)


class Drive(ObservationModel):
    """The differential drive as a model that knows its path; a plan's steps are sums over those before."""

    capabilities = Capabilities(differentiable=True, rewards=True)

    def __init__(self) -> None:
        pose = (Element("x", "m"), Element("y", "m"), Element("heading", "rad"))
        command = (Element("speed", "m/s", -1.0, 1.0), Element("turn", "rad/s", -2.0, 2.0))
        super().__init__(Spec("path", pose, command, PERIOD))

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        """Exact."""
        after = drive(state, action)
        return Prediction(after, after, -path_cost(after, action))

    def imagine(self, state: Tensor, actions: Any, **options: Any) -> Rollout:
        """As step by step, all at once; without particles."""
        if options.get("keep") or callable(actions):
            return super().imagine(state, actions, **options)
        x, y, heading = state[:, :, None, None].unbind(1)
        speed, turn = (PERIOD * SCALE[i] * actions[..., i] for i in range(2))
        turned = turn.cumsum(-1).add_(heading)
        before = turn.neg_().add_(turned)
        x, y = (
            direction.mul_(speed).cumsum_(-1).add_(at)
            for direction, at in ((before.cos(), x), (before.sin(), y))
        )
        reward = _cost(x, y, turned, actions).neg_().unsqueeze(2)
        last = torch.stack([x[..., -1], y[..., -1], turned[..., -1]], dim=-1).unsqueeze(2)
        return Rollout(reward, torch.ones_like(reward), None, last)


class DriveBySteps(Drive):
    """The same, for which nobody has thought of sums."""

    imagine = ObservationModel.imagine


def _drive(repeats: int) -> list[dict[str, Any]]:
    start, planner = torch.tensor([[0.0, 0.5, 0.3]]), MPPI(MPPIConfig(**DRIVE, color=0.0))
    plans = 2.0 * torch.rand(1, 10, DRIVE["horizon"], 2) - 1.0
    rewards = [model.imagine(start, plans).reward for model in (Drive(), DriveBySteps())]
    torch.testing.assert_close(*rewards)
    plain = PlainMPPI(drive, path_cost, torch.eye(2) * 0.25, DRIVE["candidates"], DRIVE["horizon"], 0.1)
    works = [_decision(planner, model, start) for model in (Drive(), DriveBySteps())]
    works.append(lambda: plain.command(start[0]))
    times = [[_time(work) for work in works] for _ in range(repeats)]
    summed, stepped, theirs = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    reference = "a plain MPPI, step by step"
    return [
        _figure("plan_drive_mppi", "ms", summed, reference, theirs),
        _figure("plan_drive_mppi_by_steps", "ms", stepped, reference, theirs),
    ]


def _figure(
    name: str, unit: str, value: float, reference: str | None, reference_value: float | None
) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "reference": reference,
        "reference_value": None if reference_value is None else round(reference_value, 2),
    }


if __name__ == "__main__":
    for figure in figures():
        print(figure)
