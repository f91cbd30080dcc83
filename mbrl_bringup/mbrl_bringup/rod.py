"""A rod on a cart, balanced through a linear model: agnostic system identification in its smallest form.

What accelerates the cart to the right turns a standing rod to the left and a hanging one to the right, so no
linear model is right for both. Which data it is fitted to decides where it is right, and so whether the gain
that it leads to keeps the rod up (Ross and Bagnell, 2012, https://arxiv.org/abs/1203.1007).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from mbrl_dynamics.buffer import Fit, ReplayBuffer
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition

Array = NDArray[np.float64]
PERIOD, STEPS = 0.05, 80  # of control [s], and of an episode
GRAVITY, DRAG, PUSH = 10.0, 1.0, 8.0  # accelerations [1/s^2], [1/s], [1/s^2]
UPRIGHT = 0.5  # angle up to which the rod counts as up [rad]
RIDGE = 1e-6  # of the least squares, so that data that say nothing of the action are no error
CHOICES: tuple[Fit, ...] = get_args(Fit)
EXPERT = "expert"


@dataclass
class Balancing:
    """What came of one learner; rounds from 0, which is fitted to what was there before it acted.

    Attributes:
        upright: share of the time for which its gain of each round keeps the rod up.
        failed: rounds in which no gain could be computed of the model, and the former one was kept.
    """

    upright: list[float] = field(default_factory=list)
    failed: int = 0


def step(state: Array, action: float) -> Array:
    """The angle (0 = up) and its velocity, a period later; actions are limited to 1."""
    angle, velocity = state
    turn = GRAVITY * np.sin(angle) - DRAG * velocity + PUSH * np.clip(action, -1.0, 1.0) * np.cos(angle)
    velocity = velocity + PERIOD * turn
    return np.array([angle + PERIOD * velocity, velocity])


def gain_of(a: NDArray[Any], b: NDArray[Any]) -> Array:
    """The LQR gain [1, 2] of x' = a x + b u.

    Raises:
        numpy.linalg.LinAlgError: there is none.
    """
    cost = scipy.linalg.solve_discrete_are(a, b, np.diag([1.0, 0.1]), np.array([[0.1]]))
    return np.linalg.solve(0.1 + b.T @ cost @ b, b.T @ cost @ a)


def expert_gain() -> Array:
    """That of the world where the rod is up."""
    turn = np.array([GRAVITY * PERIOD, 1.0 - DRAG * PERIOD])
    a = np.array([[1.0 + PERIOD * turn[0], PERIOD * turn[1]], turn])
    return gain_of(a, PUSH * np.array([[PERIOD**2], [PERIOD]]))


def fitted_gain(buffer: ReplayBuffer) -> Array:
    """The gain of a linear model, x' = a x + b u + c, that is fitted to every stratum of the data alike."""
    gram, moment = np.zeros((4, 4)), np.zeros((4, 2))
    for steps in buffer.strata():
        data = buffer.slices(steps)
        obs = data.obs["vector"].double().numpy()
        rows = np.column_stack([obs[:, 0], data.action[:, 0].double().numpy(), np.ones(len(obs))])
        gram += rows.T @ rows / len(rows)
        moment += rows.T @ (obs[:, 1] - obs[:, 0]) / len(rows)
    change = np.linalg.solve(gram + RIDGE * np.eye(4), moment).T
    return gain_of(np.eye(2) + change[:, :2], change[:, 2:3])


class Rod:
    """The world, and the data of one learner."""

    def __init__(self, fit_on: Fit, seed: int) -> None:
        limits = Element("angle", "rad"), Element("velocity", "rad/s")
        spec = Spec("rod", limits, (Element("push", "1", -1.0, 1.0),), PERIOD)
        self.buffer = ReplayBuffer(spec, demonstrators=(EXPERT,), fit_on=fit_on)
        self._rng, self._episode = np.random.default_rng(seed), 0

    def act(self, gain: Array, noise: float, who: str) -> None:
        """One episode with u = -gain x and noise, recorded."""
        state = self._rng.uniform(-0.2, 0.2, 2)
        self._hear(0, state, 0.0, who, first=True)
        for k in range(1, STEPS + 1):
            action = float(np.clip(-(gain @ state)[0] + noise * self._rng.standard_normal(), -1.0, 1.0))
            state = step(state, action)
            self._hear(k, state, action, who, truncated=k == STEPS)
        self._episode += 1

    def _hear(self, k: int, state: Array, action: float, who: str, **flags: Any) -> None:
        at = bytes(16), self._episode, k, state, np.array([action])
        self.buffer.add(Transition(*at, controller_id=who, **flags))


def upright_share(gain: Array, episodes: int = 20) -> float:
    """Share of the time for which a gain keeps the rod up, without noise, from starts of their own."""
    rng, up = np.random.default_rng(1000), 0
    for _ in range(episodes):
        state = rng.uniform(-0.2, 0.2, 2)
        for _ in range(STEPS):
            state = step(state, float(-(gain @ state)[0]))
            up += abs(state[0]) < UPRIGHT
    return up / (episodes * STEPS)


def balance(fit_on: Fit, seed: int, rounds: int) -> Balancing:
    """Fit, act, and again: after twenty random episodes, most of them hanging, and two of the expert."""
    rod, found, gain = Rod(fit_on, seed), Balancing(), np.zeros((1, 2))
    for _ in range(2):
        rod.act(expert_gain(), 0.5, EXPERT)
    for _ in range(20):
        rod.act(gain, 0.5, "random")
    for _ in range(rounds):
        try:
            gain = fitted_gain(rod.buffer)
        except np.linalg.LinAlgError:
            found.failed += 1
        found.upright.append(upright_share(gain))
        rod.act(gain, 0.1, "learner")
    return found
