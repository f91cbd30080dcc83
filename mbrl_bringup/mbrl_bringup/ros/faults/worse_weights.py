"""Weights that are finite, and worse than those in use: for a gate that judges models by what was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mbrl_bringup.robot_config import find
from mbrl_bringup.ros.faults.learner_child import MODEL, SPEC
from mbrl_bringup.ros.faults.model_faults import Planner, signed
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import PLANNER, rig
from mbrl_bringup.ros.faults.stand_in import Order
from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble
from mbrl_dynamics.ros.convert import transition_from_msg
from mbrl_dynamics.snapshot import Snapshot
from mbrl_msgs.msg import State

SEEN = 300  # States before the first model [1]


def worse(outcome: Outcome, trials: int, seed: int) -> None:
    """A model that has learned from the robot is in use; then its weights are published with noise added."""
    torch.set_num_threads(1)
    with rig(trip_after=2.0) as (robot, processes):
        processes.start(Order(seed=seed))
        robot.start(PLANNER, {"task": "cartpole_swingup", "no_model": "safe"})
        heard: list[State] = robot.me.listen(State, "state")
        planner = Planner(robot.me, announce=False)
        robot.need(lambda: robot.keep_moving() and len(heard) > SEEN, "no States")
        model = fitted(heard, seed)
        taken = planner.offer(_packed(model, 1))
        robot.need(
            lambda: bool(planner.statuses) and planner.statuses[-1].in_use, f"no model in use: {taken}"
        )
        swaps, generator = planner.statuses[-1].swaps, torch.Generator().manual_seed(seed)
        for number in outcome.rounds(trials):
            robot.need(robot.keep_moving, "nothing moves")
            said = planner.offer(noisy(_packed(model, 2 + number), generator))
            outcome.tried(*["weights that are worse were taken"] * (said is not None and said.swaps != swaps))
            swaps = said.swaps if said is not None else swaps


def fitted(heard: list[State], seed: int) -> Ensemble:
    """A small model of what was seen."""
    spec = replace(SPEC, action_delay_steps=find("cartpole").action_delay_steps)
    buffer = ReplayBuffer(spec)
    for message in list(heard):
        buffer.add(transition_from_msg(message))
    model = Ensemble(spec, MODEL, seed=seed)
    model.fit(buffer, Budget(500, 20.0))
    return model


def _packed(model: Any, version: int) -> Snapshot:
    return snapshots.pack(model, model_id="ensemble", run_id="run", version=version)


def noisy(update: Snapshot, generator: torch.Generator) -> Snapshot:
    """The same with noise on all weights, as large as they are themselves."""
    tensors, manifest = snapshots.from_bytes(update.weights)
    for name, tensor in tensors.items():
        if name.startswith("weights"):
            tensor += tensor.std() * torch.randn(tensor.shape, generator=generator)
    weights = snapshots.to_bytes(tensors, manifest)
    return signed(update, weights)
