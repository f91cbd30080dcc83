"""Fits parameters of a simulation to segments of what was seen: multiple shooting (Bock and Plitt, 1984,
https://doi.org/10.1016/S1474-6670(17)61205-9).

Each segment is simulated from its own first state, and least squares bring it near to all that was seen of
it. A first state is seen with noise like any other, and an error in it grows along the segment; so what a
better first state would explain is taken out of what is missed, and out of its slopes (variable projection:
Golub and Pereyra, 1973, https://doi.org/10.1137/0710036).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares

from mbrl_sim.models.parameters import Parameter, changed, delays
from mbrl_sim.rollouts import Late, Rollouts

# What is known before any data: a parameter is within PRIOR natural units of its nominal value (a mass within
# a factor of e^PRIOR). It decides only where the data do not.
PRIOR = 2.0
_WIDTH = 1e-3  # of finite differences, in natural units and in those of the state
_CLOSE = 1e-5  # a pass ends when the cost or the parameters change by less, as a share [1]
_FLOOR = 1e-4  # least noise that is believed [standard deviations of the observation]
_NORMAL = 1.4826  # standard deviation of a Gaussian over its median distance [1]
# The first states are those that were seen, until the parameters are near; then they are free, and the noise
# of each element of the observation is what was missed in the pass before, at the median. A segment in which
# something hits is hard to bring near, and counts less the farther it stays (the loss "soft_l1").
_PASSES = (False, True, True)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Segments:
    """What was seen.

    Attributes:
        start: [M, S] the first state of each, as it was seen [SI].
        actions: [M, L, A] SI.
        seen: [M, L + 1, D] observations, from the first state on.
        before: [M, A] SI, the action before the first; only a delay asks for it.
    """

    start: Array
    actions: Array
    seen: Array
    before: Array | None = None


@dataclass(frozen=True)
class Estimate:
    """What came of a fit, in natural units.

    Attributes:
        x: [n] the parameters.
        covariance: [n, n] of their errors.
        missed: [D] root mean square of what the segments miss [SI].
        evaluations: of the simulation.
    """

    x: Array
    covariance: Array
    missed: Array
    evaluations: int


class Shooting:
    """The least-squares problem.

    Args:
        rollouts: simulates.
        parameters: n of its model.
        segments: what was seen.
        scale: [D] standard deviations of the observation.
    """

    def __init__(
        self, rollouts: Rollouts, parameters: Sequence[Parameter], segments: Segments, scale: Array
    ) -> None:
        self._rollouts, self._parameters, self._segments, self._scale = rollouts, parameters, segments, scale
        self._nominal = np.array([parameter.start for parameter in parameters])
        self._lowest = np.array([parameter.lowest for parameter in parameters])
        self._highest = np.array([parameter.highest for parameter in parameters])

    def fit(self, x: Array, evaluations: int, watch: Callable[[OptimizeResult], None]) -> Estimate:
        """Solve it.

        Args:
            x: [n] where to begin.
            evaluations: at most so many of each of the passes.
            watch: told after each iteration; it may raise StopIteration to end the pass.

        Raises:
            ValueError: what is simulated at the beginning is not finite.
        """
        noise, count = self._scale, 0
        for free in _PASSES:
            found = self._solve(x, noise, free, evaluations, watch)
            x, count = found.x, count + found.nfev
            leftover = found.fun[: -len(x)].reshape(-1, len(noise))
            missed = noise * np.sqrt(np.square(leftover).mean(0))
            noise = np.maximum(_NORMAL * noise * np.median(np.abs(leftover), 0), _FLOOR * self._scale)
        return Estimate(x, np.linalg.inv(found.jac.T @ found.jac), missed, count)  # the prior makes it one

    def _solve(
        self, x: Array, noise: Array, free: bool, evaluations: int, watch: Callable[[OptimizeResult], None]
    ) -> OptimizeResult:
        newest: dict[bytes, tuple[Array, Array]] = {}

        def look(y: Array) -> tuple[Array, Array]:
            if y.tobytes() not in newest:
                newest.clear()
                newest[y.tobytes()] = self.linearise(y - 1.0, noise, free)
            return newest[y.tobytes()]

        found = least_squares(  # of y = x + 1, since its first step is as long as where it begins
            lambda y: look(y)[0],
            x + 1.0,
            lambda y: look(y)[1],
            bounds=(self._lowest + 1.0, self._highest + 1.0),
            loss="soft_l1" if free else "linear",
            ftol=_CLOSE,
            xtol=_CLOSE,
            max_nfev=evaluations,
            callback=lambda intermediate_result: watch(intermediate_result),
        )
        found.x -= 1.0
        return found

    def linearise(self, x: Array, noise: Array, free: bool) -> tuple[Array, Array]:
        """What is missed [M * (L + 1) * D + n], in units of noise [D], and its slopes [..., n].

        The last n are the parameters themselves, which are known to be about nominal.

        Args:
            free: whether the first states are; else they are those that were seen.
        """
        n, rows = len(x), len(self._segments.seen)
        missed, slopes = self._differences(x, self._rollouts.size if free else 0)
        missed = (missed / noise).reshape(rows, -1, 1)
        slopes = (slopes / noise[:, None]).reshape(rows, missed.shape[1], -1)
        if free:
            basis, _ = np.linalg.qr(slopes[..., n:])
            missed = missed - basis @ (basis.swapaxes(1, 2) @ missed)
            slopes = slopes[..., :n] - basis @ (basis.swapaxes(1, 2) @ slopes[..., :n])
        return (
            np.concatenate([missed.ravel(), (x - self._nominal) / PRIOR]),
            np.concatenate([slopes.reshape(-1, n), np.eye(n) / PRIOR]),
        )

    def _differences(self, x: Array, states: int) -> tuple[Array, Array]:
        """What is missed [M, L + 1, D] SI, and its slopes in parameters and states [..., n + states]."""
        width = len(x) + states
        moves = np.concatenate([np.zeros((1, width)), _WIDTH * np.eye(width)])
        at, *beside = self._simulate(x + moves[:, : len(x)], moves[:, len(x) :])
        return at - self._segments.seen, (np.stack(beside, axis=-1) - at[..., None]) / _WIDTH

    def _simulate(self, x: Array, shifts: Array) -> Array:
        """Observations [J, M, L + 1, D] with parameters [J, n] and first states shifted by [J, 0 or S]."""
        start, choices, rows = self._segments.start, len(x), len(self._segments.seen)
        starts = np.broadcast_to(start, (choices, *start.shape)).copy()
        starts[..., : shifts.shape[1]] += shifts[:, None]
        starts = starts.reshape(-1, start.shape[1])
        known: dict[bytes, object] = {}
        for each in x:
            if each.tobytes() not in known:
                known[each.tobytes()] = changed(self._rollouts.model, self._parameters, each)
        worlds = [known[each.tobytes()] for each in x for _ in range(rows)]
        actions, before = self._segments.actions, self._segments.before
        shares, late = delays(self._parameters, x, actions.shape[-1]), None
        if shares is not None and before is not None:
            late = Late(np.tile(before, (choices, 1)), np.repeat(shares, rows, axis=0))
        path = self._rollouts(starts, np.tile(actions, (choices, 1, 1)), worlds, late)
        path = np.concatenate([starts[:, None], path], axis=1)
        return self._rollouts.observe(path).reshape(choices, *self._segments.seen.shape)
