"""MuJoCo and classic-control environments of Gymnasium (Towers et al. 2024, arXiv:2407.17032).

`gymnasium/Hopper-v5`, `gymnasium/CartPole-v1`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.config import one_of
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Element, Spec
from mbrl_sim.adapters.base import LONG, AdaptedSimulator, AdaptedTask, Array, Frame, Hint, never
from mbrl_sim.adapters.translate import bounded, elements, optional, sentence
from mbrl_sim.drawing import mujoco
from mbrl_sim.physics import split_state

FAMILY = "gymnasium"
_PLACES = ("gymnasium.envs.mujoco.", "gymnasium.envs.classic_control.")
_BROKEN = {  # after each of these MuJoCo silently goes back to its initial state
    mujoco.mjtWarning.mjWARN_BADQPOS: "a position is not finite or huge",
    mujoco.mjtWarning.mjWARN_BADQVEL: "a velocity is not finite or huge",
    mujoco.mjtWarning.mjWARN_BADQACC: "an acceleration is not finite or huge",
}


def task(name: str) -> Callable[..., AdaptedTask]:
    """What makes the task of a Gymnasium environment, for example `Hopper-v5`.

    Raises:
        UserError: there is none of that name, or Gymnasium is not installed.
    """
    registry = optional("gymnasium", FAMILY).registry
    known = [
        f"{FAMILY}/{key}"
        for key, entry in registry.items()
        if isinstance(entry.entry_point, str) and entry.entry_point.startswith(_PLACES)
    ]
    one_of("task", f"{FAMILY}/{name}", known)
    return partial(_make, name)


def _make(name: str, action_repeat: int | None = None) -> AdaptedTask:
    environment = _load(name)
    space = environment.observation_space
    spec = Spec(
        task=f"{FAMILY}/{name}",
        observation=tuple(elements("observation", space.low, space.high)),
        action=_actions(environment.action_space),
        control_period=_period(environment.unwrapped),
    )
    frames = optional("gymnasium", FAMILY).registry[name].max_episode_steps or LONG

    def world(task: AdaptedTask, seed: int | None, image_size: int, camera: str) -> GymnasiumSimulator:
        return GymnasiumSimulator(task, _load(name), seed, image_size, camera)

    return AdaptedTask(spec, frames, action_repeat, HINTS.get(name, Hint()), world)


class GymnasiumSimulator(AdaptedSimulator):
    """A Gymnasium environment as a world. Time limits are the World's matter."""

    def __init__(
        self, task: AdaptedTask, environment: Any, seed: int | None, image_size: int, camera: str
    ) -> None:
        self._environment, inner = environment, environment.unwrapped
        self._space = environment.action_space
        self._discrete = task.spec.discrete
        model, data = getattr(inner, "model", None), getattr(inner, "data", None)
        self._warnings = None if data is None else data.warning.number  # a view
        super().__init__(task, seed, model, data, image_size, camera)

    def close(self) -> None:
        """Free what drawing needed, and the environment."""
        super().close()
        self._environment.close()

    def _begin(self, seed: int) -> NDArray[np.float64]:
        return _flat(self._environment.reset(seed=seed)[0])

    def _frame(self, action: NDArray[np.float64]) -> Frame:
        chosen: Any
        if self._discrete:
            chosen = int(action[0]) + int(self._space.start)
        else:
            chosen = action.astype(self._space.dtype).reshape(self._space.shape)
        observation, reward, terminated, truncated, _ = self._environment.step(chosen)
        fault = ""
        if self._warnings is not None:
            fault = next((text for kind, text in _BROKEN.items() if self._warnings[kind]), "")
        return Frame(_flat(observation), float(reward), bool(terminated), bool(truncated), fault)

    def _checked_state(self, state: ArrayLike) -> NDArray[np.float64]:
        if self.model is None:
            return super()._checked_state(state)
        return np.concatenate(split_state(state, self.model.nq, self.model.nv))

    def _put(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        inner = self._environment.unwrapped
        inner.set_state(*np.split(state, [self.model.nq]))
        return _flat(inner._get_obs())  # Gymnasium has no other way to ask


def _load(name: str) -> Any:
    """The environment without a time limit and without checks of what it gives."""
    gymnasium = optional("gymnasium", FAMILY)
    try:
        return gymnasium.make(name, max_episode_steps=-1, disable_env_checker=True)
    except Exception as error:  # some versions refuse the MuJoCo of today, each in its own way
        raise UserError(f"the world of '{FAMILY}/{name}' cannot be made: {sentence(error)}") from error


def _actions(space: Any) -> tuple[Element, ...]:
    if hasattr(space, "n"):
        return (Element("action", count=int(space.n)),)
    return bounded(elements("action", space.low, space.high))


def _period(inner: Any) -> float:
    """Time between two steps [s], by what the environments call it; where they do not, as they are shown."""
    for name in ("dt", "tau"):
        if hasattr(inner, name):
            return float(getattr(inner, name))
    return 1.0 / float(inner.metadata["render_fps"])


def _flat(observation: Any) -> NDArray[np.float64]:
    return np.ravel(np.asarray(observation, dtype=np.float64))


def _outside(x: Array, low: float, high: float) -> Array:
    return ~((x > low) & (x < high))


def _alive(fallen: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Reward 1 for each step that does not end the task."""
    return lambda obs: array_namespace(obs).astype(~fallen(obs), obs.dtype)


def _tipped(obs: Array) -> Array:
    """InvertedPendulum: the pole is more than 0.2 rad from upright."""
    return array_namespace(obs).abs(obs[..., 1]) > 0.2


def _lost(obs: Array) -> Array:
    """CartPole: the cart is 2.4 m from the middle, or the pole 12 degrees from upright."""
    xp = array_namespace(obs)
    return (xp.abs(obs[..., 0]) > 2.4) | (xp.abs(obs[..., 2]) > math.radians(12))


def _hopper_fallen(obs: Array) -> Array:
    """Hopper: too low, tilted, or something is huge."""
    huge = (array_namespace(obs).abs(obs[..., 1:]) >= 100.0).any(-1)
    return ~(obs[..., 0] > 0.7) | _outside(obs[..., 1], -0.2, 0.2) | huge


def _walker_fallen(obs: Array) -> Array:
    """Walker2d: too low, too high, or tilted."""
    return _outside(obs[..., 0], 0.8, 2.0) | _outside(obs[..., 1], -1.0, 1.0)


HINTS = {
    "CartPole-v1": Hint(lambda obs: obs[..., 0] * 0 + 1, _lost),  # the last step is rewarded, too
    "InvertedPendulum-v5": Hint(_alive(_tipped), _tipped),
    "Hopper-v5": Hint(terminated=_hopper_fallen),
    "Walker2d-v5": Hint(terminated=_walker_fallen),
    **{
        f"{name}-{version}": Hint(terminated=never)
        for name in ("HalfCheetah", "Swimmer", "Reacher", "Pusher", "HumanoidStandup")
        for version in ("v4", "v5")
    },
    "Pendulum-v1": Hint(terminated=never),
}
