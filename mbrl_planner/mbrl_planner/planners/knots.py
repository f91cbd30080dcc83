"""Plans that are told by fewer numbers than they have steps: chunks and splines as one linear map."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Interpolation = Literal["hold", "linear", "cubic"]


class Knots:
    """Rows of a plan, and the few among them that are searched over; the first and last step have one each.

    With "hold" a plan is piecewise constant: each knot is a chunk of steps, as equal as they can be. "cubic"
    is the natural spline, cut at the bounds.

    Args:
        horizon: H, steps of a plan [steps].
        count: K, knots; H = each step has its own.
        interpolation: what is done between knots.
    """

    def __init__(self, horizon: int, count: int, interpolation: Interpolation) -> None:
        self.count = count
        self._same = count == horizon
        self._maps = functools.partial(_matrices, horizon, count, interpolation)

    def plan(self, knots: Tensor) -> Tensor:
        """Plans [..., H, A] through knots [..., K, A], within [-1, 1]."""
        return knots if self._same else (self._maps(knots.device)[0] @ knots).clamp(-1.0, 1.0)

    def of(self, plan: Tensor) -> Tensor:
        """The knots [..., K, A] whose plan is nearest to [..., H, A], by least squares."""
        return plan if self._same else (self._maps(plan.device)[1] @ plan).clamp(-1.0, 1.0)


@functools.lru_cache
def _matrices(
    horizon: int, count: int, interpolation: Interpolation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What turns knots into plans [H, K], and its pseudo-inverse [K, H]."""
    times, each = np.linspace(0.0, count - 1.0, horizon), np.eye(count)
    if interpolation == "hold":
        basis = each[np.arange(horizon) * count // horizon]
    elif interpolation == "linear" or count < 3:
        basis = np.stack([np.interp(times, np.arange(count), one) for one in each], axis=1)
    else:
        from scipy.interpolate import CubicSpline  # takes a while to load

        basis = CubicSpline(np.arange(count), each, bc_type="natural")(times)
    maps = torch.from_numpy(basis), torch.from_numpy(np.linalg.pinv(basis))
    return maps[0].float().to(device), maps[1].float().to(device)
