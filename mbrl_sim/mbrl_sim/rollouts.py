"""Many futures of one world at once: mujoco.rollout with a pool of threads, in whole control periods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbrl_dynamics.errors import UserError
from mbrl_sim.drawing import mujoco  # not MuJoCo itself, which must wait for the choice there
from mbrl_sim.simulator import load_model, physics_steps
from mbrl_sim.tasks.base import MujocoTask

_LARGEST = 1e10  # MuJoCo's own limit of a position or velocity [SI]

Array = NDArray[np.float64]


class Late(NamedTuple):
    """Commands that take effect late: until then the ones before are in force (the dead time of a drive).

    Attributes:
        before: [M, A] SI, what was commanded before.
        delay: [M, A] within 0 and 1 [control periods].
    """

    before: Array
    delay: Array


class Rollouts:
    """Simulates a task's world from many states at once, exactly as Simulator does from one.

    A state is a vector [S]: positions, then velocities. The world has no other: it looks the same to its
    planner whenever positions and velocities are the same.

    Args:
        task: what to simulate.

    Attributes:
        model: its MJCF. Futures may be those of changed copies of it.
        size: S.

    Raises:
        UserError: the MJCF cannot be used, contradicts the task, or has a state beside these.
    """

    def __init__(self, task: MujocoTask) -> None:
        self.task, self.model = task, load_model(task)
        self._steps = physics_steps(task, self.model) * task.action_repeat  # of the physics in a period
        self._gear = self.model.actuator_gear[:, 0].copy()
        self.size = int(self.model.nq + self.model.nv)
        if mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_FULLPHYSICS) != 1 + self.size:
            raise UserError(
                f"the MJCF of task '{task.spec.task}' has a state beside positions and velocities "
                "(activations, for example), which no observation tells"
            )
        self._after_step: Any = getattr(task, "after_step", None)
        self._workers: list[mujoco.MjData] = []
        self.use(1)

    def use(self, threads: int) -> None:
        """Simulate in so many threads from now on, which are kept; 1 = the caller's own."""
        if threads != len(self._workers):
            self._workers = [mujoco.MjData(self.model) for _ in range(threads)]
            self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)

    def __call__(
        self,
        start: Array,
        actions: Array,
        models: Sequence[mujoco.MjModel] = (),
        late: Late | None = None,
    ) -> Array:
        """States [M, H, S] at the ends of control periods; not a number from a fault of the physics on.

        Args:
            start: [M, S] where the futures begin.
            actions: [M, H, A] SI, each held for a control period.
            models: [M] the world of each future; empty = the MJCF as it is.
            late: how late actions take effect; None = at once.
        """
        rows, horizon, _ = actions.shape
        worlds = list(models) or [self.model] * rows
        begin = np.concatenate([np.zeros((rows, 1)), start], axis=1)  # the time, then the state
        control = np.repeat(actions / self._gear, self._steps, axis=1)
        if late is not None:
            control += self._held_back(actions, late)
        if self._after_step is None:
            path = self._roll(worlds, begin, control)
        else:
            path = self._step_by_step(worlds, begin, control)
        path = path[:, self._steps - 1 :: self._steps]
        # After a fault MuJoCo's clock stands still, and all the rest with it, which would look like peace.
        clock = self.model.opt.timestep * self._steps * np.arange(1, horizon + 1)
        good = path[..., 0] > clock - 0.5 * self.model.opt.timestep
        states = path[..., 1:]
        good &= (np.abs(states) < _LARGEST).all(-1)
        return np.where(np.logical_and.accumulate(good, axis=1)[..., None], states, np.nan)

    def observe(self, states: Array) -> Array:
        """Observations [..., D] of states [..., S]."""
        return self.task.observe(states[..., : self.model.nq], states[..., self.model.nq :])

    def restore(self, obs: Array) -> Array:
        """States [..., S] of observations [..., D]."""
        return np.concatenate([self.task.pose(obs), self.task.motion(obs)], axis=-1)

    def _held_back(self, actions: Array, late: Late) -> Array:
        """What is missing of the controls [M, T, A], since commands are late.

        A step of the physics in the middle of which a command takes effect gets a blend of both, so that
        futures depend on the delay without jumps.
        """
        old = np.concatenate([late.before[:, None], actions[:, :-1]], axis=1)
        begun = np.arange(self._steps)[:, None]
        share = (late.delay[:, None] * self._steps - begun).clip(0.0, 1.0)  # [M, steps, A] that are old
        missing = ((old - actions) / self._gear)[:, :, None] * share[:, None]
        return missing.reshape(len(actions), -1, actions.shape[-1])

    def _roll(self, worlds: list[mujoco.MjModel], begin: Array, control: Array) -> Array:
        """Time and state [M, T, 1 + S] after each of T steps of the physics."""
        rows, steps, _ = control.shape
        path = np.empty((rows, steps, 1 + self.size))
        sensors = np.empty((rows, steps, self.model.nsensordata))
        self._pool.rollout(
            worlds,
            self._workers,
            begin,
            control,
            skip_checks=True,
            nstep=steps,
            state=path,
            sensordata=sensors,
        )
        return path

    def _step_by_step(self, worlds: list[mujoco.MjModel], begin: Array, control: Array) -> Array:
        """As `_roll`, with what the task does after each step."""
        path = []
        for step in range(control.shape[1]):
            begin = self._roll(worlds, begin, np.ascontiguousarray(control[:, step : step + 1]))[:, 0]
            qpos, qvel = begin[:, 1 : 1 + self.model.nq], begin[:, 1 + self.model.nq :]
            self._after_step(qpos, qvel, self.model.opt.timestep)
            path.append(begin)
        return np.stack(path, axis=1)
