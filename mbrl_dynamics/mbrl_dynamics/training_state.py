"""Optimisers as flat tensors, so that a checkpoint needs nothing but safetensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer


def optimizer_tensors(optimizer: Optimizer, prefix: str = "optimizer") -> dict[str, Tensor]:
    """The state of an optimiser: `prefix`.parameter.name -> a copy of the tensor."""
    tensors = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            tensors[f"{prefix}.{i}.{name}"] = value.detach().clone()
    return tensors


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], prefix: str = "optimizer") -> None:
    """The inverse of `optimizer_tensors`."""
    optimizer.state.clear()
    for i, parameter in enumerate(_parameters(optimizer)):
        begin = f"{prefix}.{i}."
        found = {k.removeprefix(begin): v for k, v in tensors.items() if k.startswith(begin)}
        if found:  # the step counter of AdamW stays where it was made
            optimizer.state[parameter] = {
                k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in found.items()
            }


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
