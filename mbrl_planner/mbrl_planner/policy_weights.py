"""What acting needs of a policy, handed from the process that learns to the one that acts. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_dynamics import snapshot as snapshots
from mbrl_planner.agents.base import PolicyAgent

Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]


@dataclass(frozen=True)
class Weights:
    """An acting state that came.

    Attributes:
        updates: gradient steps behind it.
        tensors: of `PolicyAgent.acting_state`.
        fault: why it cannot be used, in one sentence; empty if it can.
    """

    updates: int
    tensors: Mapping[str, Tensor]
    fault: str = ""


def shapes(agent: PolicyAgent) -> Shapes:
    """What the acting state of an agent must look like."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in agent.acting_state().items()}


def pack(agent: PolicyAgent, env_steps: int) -> tuple[bytes, str]:
    """An agent's acting state as bytes, and the name of a tensor in it that is not finite (empty = none)."""
    state = agent.acting_state()
    manifest = {"updates": agent.updates, "env_steps": env_steps}
    return snapshots.to_bytes(state, manifest), snapshots.not_finite(state)


def unpack(data: bytes, wanted: Shapes) -> Weights:
    """The inverse of `pack`, with all that could be wrong found out."""
    try:
        tensors, manifest = snapshots.from_bytes(data)
        updates = int(manifest["updates"])
    except (ValueError, KeyError, TypeError) as error:
        return Weights(0, {}, f"the new policy is {error}")
    name = f"the policy of {updates} updates"
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors or key not in wanted:
            return Weights(updates, {}, f"{name} {'lacks' if key in wanted else 'has'} the tensor '{key}'")
        if (tensors[key].shape, tensors[key].dtype) != wanted[key]:
            return Weights(updates, {}, f"{name} has a tensor '{key}' of another shape or type")
    bad = snapshots.not_finite(tensors)
    return Weights(updates, tensors, f"{name} has weights that are not finite: '{bad}'" if bad else "")


def use(agent: PolicyAgent, weights: Weights) -> None:
    """Act with these weights from now on."""
    agent.load_acting_state(weights.tensors)
    agent.updates = weights.updates
