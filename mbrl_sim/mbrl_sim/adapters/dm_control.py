"""Tasks of the dm_control suite (Tunyasuvunakool et al. 2020, arXiv:2006.12983): `dm_control/cheetah-run`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.config import one_of
from mbrl_dynamics.spec import Spec
from mbrl_sim.adapters.base import LONG, AdaptedSimulator, AdaptedTask, Array, Frame, Hint, never
from mbrl_sim.adapters.translate import bounded, circled, elements, on_circles, optional, sentence
from mbrl_sim.physics import split_state
from mbrl_sim.tasks.reacher import Reacher

FAMILY = "dm_control"


def task(name: str) -> Callable[..., AdaptedTask]:
    """What makes the task `domain-task` of the suite.

    Its frame is dm_control's control timestep, and its observation all arrays of the observation spec, one
    after another. An angle that HINTS names comes as its cosine and sine.

    Raises:
        UserError: there is none of that name, or dm_control is not installed.
    """
    suite = optional("dm_control.suite", FAMILY)
    logging.getLogger("absl").setLevel(logging.ERROR)  # MuJoCo warns of old words in the suite's own MJCF
    known = {f"{FAMILY}/{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    full = one_of("task", f"{FAMILY}/{name}", known)
    return partial(_make, full, *known[full])


def _make(full: str, domain: str, name: str, action_repeat: int | None = None) -> AdaptedTask:
    environment = _load(domain, name)
    observation, action = environment.observation_spec(), environment.action_spec()
    limit = environment._step_limit  # of frames; there is no other way to ask for it
    raw = [
        element
        for key, array in observation.items()
        for element in elements(
            key,
            np.broadcast_to(getattr(array, "minimum", -math.inf), array.shape),
            np.broadcast_to(getattr(array, "maximum", math.inf), array.shape),
        )
    ]
    hint = HINTS.get(f"{domain}-{name}", Hint())
    spec = Spec(
        task=full,
        observation=tuple(circled(raw, hint.angles)),
        action=bounded(elements("action", action.minimum, action.maximum)),
        control_period=environment.control_timestep(),
    )
    # The suite's base class never terminates.
    if hint.terminated is None and type(environment.task).get_termination is _base().get_termination:
        hint = replace(hint, terminated=never)

    def world(task: AdaptedTask, seed: int | None, image_size: int, camera: str) -> DmControlSimulator:
        inside = _load(domain, name, endless=True)
        return DmControlSimulator(task, inside, hint.angles, seed, image_size, camera)

    return AdaptedTask(spec, round(limit) if math.isfinite(limit) else LONG, action_repeat, hint, world)


class DmControlSimulator(AdaptedSimulator):
    """A suite environment as a world. Time limits are the World's matter; the environment itself has none."""

    def __init__(
        self,
        task: AdaptedTask,
        environment: Any,
        angles: tuple[int, ...],
        seed: int | None,
        image_size: int,
        camera: str,
    ) -> None:
        self._environment, self._physics, self._angles = environment, environment.physics, angles
        self._error = optional("dm_control.rl.control", FAMILY).PhysicsError
        super().__init__(task, seed, self._physics.model.ptr, self._physics.data.ptr, image_size, camera)

    def _begin(self, seed: int) -> NDArray[np.float64]:
        self._environment.task.random.seed(seed % 2**32)  # as a new environment with that seed
        return self._flat(self._environment.reset().observation)

    def _frame(self, action: NDArray[np.float64]) -> Frame:
        try:
            step = self._environment.step(action)
        except self._error as error:
            return Frame(self._newest.observation, 0.0, fault=sentence(error))
        over = step.last()
        return Frame(
            self._flat(step.observation),
            float(step.reward),
            terminated=over and step.discount == 0.0,
            truncated=over and step.discount != 0.0,
        )

    def _checked_state(self, state: ArrayLike) -> NDArray[np.float64]:
        return np.concatenate(split_state(state, self.model.nq, self.model.nv))

    def _put(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        self.data.qpos[:], self.data.qvel[:] = np.split(state, [self.model.nq])
        self._physics.after_reset()
        return self._flat(self._environment.task.get_observation(self._physics))

    def _flat(self, observation: Any) -> NDArray[np.float64]:
        arrays = [np.ravel(np.asarray(value, dtype=np.float64)) for value in observation.values()]
        return on_circles(np.concatenate(arrays), self._angles)


def _load(domain: str, name: str, endless: bool = False) -> Any:
    """A suite environment. Where the model itself is random (lqr), it is always the same one."""
    options: dict[str, Any] = {"random": 0, **({"time_limit": math.inf} if endless else {})}
    return optional("dm_control.suite", FAMILY).load(domain, name, task_kwargs=options)


def _base() -> Any:
    return optional("dm_control.suite.base", FAMILY).Task


def _reached(radii: float) -> Callable[[Array], Array]:
    """Reacher: 1 while the target, elements 3 and 4 away from the finger, overlaps it; radii of both [m]."""

    def reward(obs: Array) -> Array:
        xp = array_namespace(obs)
        near = xp.sqrt(obs[..., 3] ** 2 + obs[..., 4] ** 2) <= radii
        return xp.astype(near, obs.dtype)

    return reward


HINTS = {  # the reacher's shoulder has no limits: an arm that winds itself up would see ever new angles
    "reacher-easy": Hint(_reached(0.05 + 0.01), angles=(0,), twin=Reacher),
    "reacher-hard": Hint(_reached(0.015 + 0.01), angles=(0,), twin=Reacher),
}
