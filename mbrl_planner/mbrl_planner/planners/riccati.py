"""The Riccati recursion about a path (Anderson and Moore, "Optimal Control: Linear Quadratic Methods", 1990),
damped, and with limits on the controls as in control-limited differential dynamic programming (Tassa et al.,
2012, https://doi.org/10.1109/IROS.2012.6386025, and 2014, https://doi.org/10.1109/ICRA.2014.6907001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl_planner.planners.local import Expansion

LEAST, MOST = 1e-6, 1e10  # regularisation that counts, and that at which a search gives up
GROWTH = 2.0  # of its changes (Tassa et al., 2012, II.F)
MOST_STEPS = 100  # of a projected Newton method; it takes a few


class Gains(NamedTuple):
    """A policy about a path: u_t + k_t + K_t (x_t - path_t), in float64.

    Attributes:
        k: [H, A].
        K: [H, A, Z]; rows of controls at their limit are zero.
        slope, bend: cost changes by s slope + s² bend where a share s of k is done.
    """

    k: Tensor
    K: Tensor
    slope: float
    bend: float

    def expected(self, share: float) -> float:
        """By how much the return should rise for a share of k."""
        return -(share * self.slope + share**2 * self.bend)


@dataclass
class Damping:
    """Levenberg and Marquardt's regularisation of the state, on a schedule that grows and shrinks ever faster
    (Tassa et al., 2012, section II.F).

    Attributes:
        value: what is added to the curvature of the value function [cost / state²].
        failures: factorisations that failed, for each of which it was raised [1].
    """

    value: float = 0.0
    failures: int = 0
    _change: float = 1.0

    @property
    def over(self) -> bool:
        """Whether more of it would change nothing."""
        return self.value > MOST

    def up(self) -> None:
        """Trust the expansion less."""
        self._change = max(GROWTH, self._change * GROWTH)
        self.value = max(LEAST, self.value * self._change)

    def down(self) -> None:
        """Trust it more."""
        self._change = min(1 / GROWTH, self._change / GROWTH)
        self.value = self.value * self._change if self.value * self._change > LEAST else 0.0


def solve(expansion: Expansion, damping: Damping, low: Tensor, high: Tensor) -> Gains | None:
    """The best policy about a path, with as much damping as its factorisations need.

    Args:
        expansion: about the path.
        damping: raised, and its failures counted, until all factorisations succeed.
        low, high: [H, A] limits of k.

    Returns:
        None where no damping helps, as where controls have no effect on anything.
    """
    while not damping.over:
        gains = backward(expansion, damping.value, low, high)
        if gains is not None:
            return gains
        damping.failures += 1
        damping.up()
    return None


def backward(expansion: Expansion, damping: float, low: Tensor, high: Tensor) -> Gains | None:
    """Riccati recursion from the path's end to its beginning (Tassa et al., 2012, equations 5 to 11; 2014,
    section III.C); None = a matrix is not positive definite.
    """
    horizon, size, width = expansion.b.shape
    k, big_k = expansion.slope.new_zeros(horizon, width), expansion.slope.new_zeros(horizon, width, size)
    v, vv, slope, bend = expansion.last_slope, expansion.last_curvature, 0.0, 0.0
    damped = damping * torch.eye(size, dtype=v.dtype)
    for t in reversed(range(horizon)):
        ab = torch.cat([expansion.a[t], expansion.b[t]], dim=1)
        q = expansion.slope[t] + ab.T @ v
        qq = expansion.curvature[t] + ab.T @ vv @ ab
        held = qq + ab.T @ damped @ ab  # the state stays near the path, rather than the control
        qu, quu, qux = q[size:], qq[size:, size:], qq[size:, :size]
        found = box_minimum(held[size:, size:], qu, low[t], high[t])
        if found is None:
            return None
        k[t], free, factor = found
        if free.any():
            big_k[t, free] = -torch.cholesky_solve(held[size:, :size][free], factor)
        at, gain = k[t], big_k[t]
        slope, bend = slope + float(at @ qu), bend + 0.5 * float(at @ quu @ at)
        v = q[:size] + gain.T @ (quu @ at + qu) + qux.T @ at
        vv = qq[:size, :size] + gain.T @ quu @ gain + gain.T @ qux + qux.T @ gain
        vv = 0.5 * (vv + vv.T)
    return Gains(k, big_k, slope, bend)


def box_minimum(
    curvature: Tensor, slope: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Minimum of x'Cx / 2 + s'x for low <= x <= high, by projected Newton steps (Tassa et al., 2014, II.B).

    Returns:
        x [A], which elements are free (not held by a limit) [A], and the Cholesky factor of their curvature;
        None where that is not positive definite.
    """
    x = torch.zeros_like(slope).clamp(low, high)
    for _ in range(MOST_STEPS):
        gradient = slope + curvature @ x
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        factor, info = torch.linalg.cholesky_ex(curvature[free][:, free])
        if info.item():
            return None
        step = torch.zeros_like(x)
        step[free] = -torch.cholesky_solve(gradient[free, None], factor)[:, 0]
        size, change = 1.0, (x + step).clamp(low, high) - x
        if -float(gradient @ step) <= 1e-12 * abs(float(slope @ x)):
            break
        while change @ (0.9 * gradient + 0.5 * curvature @ change) > 0.0:  # Armijo's rule
            size *= 0.6
            change = (x + size * step).clamp(low, high) - x
        x = x + change
    return x, free, factor
