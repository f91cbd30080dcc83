"""A limit on the memory that is taken while something is built from a description that was received."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_MAKERS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace),
        *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.tensor),
    }
)
_LEAST = 1024  # what a tensor costs, however small [bytes]


class Allowance(TorchFunctionMode):
    """While it is entered, tensors may be made of so many bytes altogether; the one beyond is not made.

    Raises:
        MemoryError: from the call that would make it.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _MAKERS:
            plain = {
                name: value for name, value in given.items() if name not in ("device", "generator", "out")
            }
            made = func(*args, **plain, device="meta")  # knows its size, and has no memory
            self._left -= max(made.numel() * made.element_size(), _LEAST)
            if self._left < 0:
                raise MemoryError("it would take more memory than its weights can fill")
        return func(*args, **given)
