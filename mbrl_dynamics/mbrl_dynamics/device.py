"""Where tensors live: "cpu", "cuda", "cuda:1"."""

from __future__ import annotations

import torch

from mbrl_dynamics.errors import UserError


def choose(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: there is no such device on this machine; the sentence lists those that there are.
    """
    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    wanted = name if device is None or device.index is not None or device.type == "cpu" else f"{name}:0"
    if device is None or wanted not in present:
        raise UserError(f"device '{name}' is not on this machine; valid: {', '.join(present)}")
    return device
