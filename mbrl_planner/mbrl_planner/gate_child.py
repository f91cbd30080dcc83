"""The process in which models are judged.

It is started by gate_process.py. What it is told and what it answers is listed there; it ends when the socket
closes, however the other side ended.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbrl_dynamics import plugins, wire
from mbrl_dynamics.config import build
from mbrl_dynamics.interfaces import Model
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.gate_process import BEGIN, FINDING, JUDGE, KEEP, STATE, WATCH, Order
from mbrl_planner.model_gate import DryPlan, Finding, ModelGate, build_with
from mbrl_planner.pipe import Message, receive, send, snapshot_of

NICE = 5  # judging has time; deciding has not


def make_gate(message: Message) -> ModelGate:
    """The gate that the first message orders."""
    order, (spec, _) = Order(**message.values), wire.decode_spec(message.data)
    task = plugins.make_task(order.task, order.action_repeat)
    return ModelGate(
        spec,
        order.model,
        build_with(task),
        tolerance=order.tolerance,
        plan=_planning(order) if order.planner else None,
        limit=order.limit,
        folder=Path(order.folder) if order.folder else None,
    )


def _planning(order: Order) -> DryPlan:
    planner_class = plugins.find("planners", order.planner)
    planner = planner_class(build(planner_class.Config, order.settings, order.planner.rpartition(":")[2]))

    def plan(model: Model, obs: dict[str, Tensor]) -> Tensor:
        return MPC(planner, model).compute(obs, None, order.time_budget).actions

    return plan


def main(arguments: list[str]) -> int:
    """Run the process."""
    link = socket.socket(fileno=int(arguments[0]))
    os.nice(NICE)
    torch.set_num_threads(1)
    gate: Any = None
    while (message := receive(link)) is not None:
        finding: Finding | None = None
        if message.kind == BEGIN:
            gate = make_gate(message)
        elif message.kind == STATE:
            gate.hear(wire.decode_transition(message.data))
        elif message.kind == KEEP:
            gate.keep(snapshot_of(message))
        elif message.kind == JUDGE:
            finding = gate.judge(snapshot_of(message))
        elif message.kind == WATCH:
            finding = gate.watch()
        if finding is None:
            continue
        trouble = "; ".join(filter(None, (gate.trouble, finding.trouble)))
        try:
            values = {"reason": finding.reason, "error": finding.error, "trouble": trouble}
            send(link, Message(FINDING, values))
        except OSError:
            break  # the other side is gone
    return 0
