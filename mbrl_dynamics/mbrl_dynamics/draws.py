"""Random numbers that predictions are drawn with. Candidates that are to be compared may have them in common,
so that luck does not decide between them (common random numbers; Law, "Simulation Modeling and Analysis",
2015, section 11.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Draw = Callable[[tuple[int, ...]], Tensor]

_plans: ContextVar[tuple[int, int] | None] = ContextVar("plans", default=None)


@contextmanager
def in_common(batch: int, candidates: int) -> Iterator[None]:
    """A block in which all candidates [B, N] meet the same luck: particle p of each has the same numbers.

    It holds for models that draw by the functions below; others draw for each candidate anew.
    """
    token = _plans.set((batch, candidates))
    try:
        yield
    finally:
        _plans.reset(token)


def normal(
    shape: tuple[int, ...],
    noise: torch.Generator | None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    before: int = 0,
    after: int = 1,
) -> Tensor:
    """Standard normal numbers.

    Args:
        shape: so many dimensions `before`, which are members; then rows, in the order [B, N, P] in however
            many dimensions; then so many `after`, which are a row's own.
        noise: None = torch's global generator.
    """

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=noise, device=device, dtype=dtype)

    return _drawn(draw, shape, before, after)


def uniform(
    shape: tuple[int, ...],
    noise: torch.Generator | None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    before: int = 0,
    after: int = 0,
) -> Tensor:
    """Uniform numbers in [0, 1); see `normal`."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=noise, device=device, dtype=dtype)

    return _drawn(draw, shape, before, after)


def integers(
    count: int, shape: tuple[int, ...], noise: torch.Generator | None, device: torch.device | None = None
) -> Tensor:
    """Uniform integers below `count`, for rows; see `normal`."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(count, shape, generator=noise, device=device)

    return _drawn(draw, shape, 0, 0)


def permutation(
    members: int, rows: int, noise: torch.Generator | None, device: torch.device | None = None
) -> Tensor:
    """A random order of members x rows; where candidates have it in common, each keeps its own rows."""
    plans = _rows(rows)
    if plans is None:
        return torch.randperm(members * rows, generator=noise, device=device)
    groups, share = plans
    order = torch.randperm(members * share, generator=noise, device=device)
    member, particle = order // share, order % share
    first = torch.arange(groups, device=device) * share
    return ((member * rows + particle).view(members, 1, share) + first.view(1, groups, 1)).flatten()


def _rows(count: int) -> tuple[int, int] | None:
    """How many plans so many rows belong to, and how many belong to each; None = nothing is in common."""
    plans = _plans.get()
    if plans is None or count % (plans[0] * plans[1]):
        return None
    return plans[0] * plans[1], count // (plans[0] * plans[1])


def _drawn(draw: Draw, shape: tuple[int, ...], before: int, after: int) -> Tensor:
    """A draw of a shape, or one that all candidates share."""
    end = len(shape) - after
    head, rows, tail = shape[:before], shape[before:end], shape[end:]
    plans, found = _plans.get(), _rows(math.prod(rows))
    if plans is None or found is None:
        return draw(shape)
    batch, candidates = plans
    one = draw((*head, batch, 1, found[1], *tail))
    wide = one.expand(*head, batch, candidates, found[1], *tail)
    return wide.reshape(shape).contiguous()  # each row by itself, since it may be written to
