"""MuJoCo behind one class; nothing else steps it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_sim.drawing import Drawing, mujoco  # not MuJoCo itself, which must wait for the choice there
from mbrl_sim.goal import Goal
from mbrl_sim.physics import StepResult, split_state
from mbrl_sim.tasks.base import MujocoTask

# MuJoCo would print its warnings and append them to a file where it runs; here they are reported as faults.
mujoco.set_mju_user_warning(lambda text: None)

_FAULTS = {
    mujoco.mjtWarning.mjWARN_INERTIA: "the inertia matrix is (nearly) singular",
    mujoco.mjtWarning.mjWARN_CONTACTFULL: "there are more contacts than the memory holds",
    mujoco.mjtWarning.mjWARN_CNSTRFULL: "there are more constraints than the memory holds",
    mujoco.mjtWarning.mjWARN_BADQPOS: "a position is not finite or huge",
    mujoco.mjtWarning.mjWARN_BADQVEL: "a velocity is not finite or huge",
    mujoco.mjtWarning.mjWARN_BADQACC: "an acceleration is not finite or huge",
    mujoco.mjtWarning.mjWARN_BADCTRL: "a control is not finite or huge",
}


class Simulator(Drawing):
    """One task's world.

    Args:
        task: what to simulate.
        seed: of the initial states drawn by unseeded resets; None = from the operating system.
        image_size, camera: of the image in the observation, see Drawing.

    Attributes:
        goal: what is to be reached; None = the task has none in its world.

    Raises:
        UserError: the task's MJCF cannot be used, or contradicts the task; images cannot be drawn.
    """

    def __init__(
        self, task: MujocoTask, seed: int | None = None, image_size: int = 0, camera: str = ""
    ) -> None:
        self.task = task
        model = load_model(task)
        super().__init__(model, mujoco.MjData(model), image_size, camera)
        self._substeps = physics_steps(task, model)
        self._gear = self.model.actuator_gear[:, 0].copy()
        self._after_step = getattr(task, "after_step", None)
        self._warnings = self.data.warning.number  # a view
        self._rng = np.random.default_rng(seed)
        self._observation = np.zeros(task.spec.observation_dim)
        try:
            self.goal = Goal(self.model, self.data, task.goal) if task.goal else None
            self.reset()
        except KeyError as error:  # MuJoCo's sentence names the valid ones
            raise UserError(
                f"task '{task.spec.task}' names what its MJCF has not: {error.args[0]}"
            ) from error

    def reset(self, seed: int | None = None, initial_state: ArrayLike | None = None) -> NDArray[np.float64]:
        """Begin an episode.

        Args:
            seed: of the initial state; None = the next one of the simulator's own sequence.
            initial_state: qpos, then qvel; None = drawn by the task.

        Returns:
            The first observation [D].

        Raises:
            UserError: `initial_state` has the wrong length or is not finite; nothing is changed.
        """
        if initial_state is not None:
            qpos, qvel = split_state(initial_state, self.model.nq, self.model.nv)
        else:
            rng = self._rng if seed is None else np.random.default_rng(seed)
            qpos, qvel = self.task.sample_initial_state(rng, self.model)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        if self.goal is not None and initial_state is None:
            self.goal.rest()
        mujoco.mj_forward(self.model, self.data)
        self._observation = self.task.observe(self.data.qpos, self.data.qvel)
        return self._observation.copy()

    def step(self, action: ArrayLike) -> StepResult:
        """Simulate one control period with an action [A] in SI units, held constant.

        Raises:
            ValueError: the action has the wrong length or is not finite.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self._gear.shape or not np.isfinite(values).all():
            raise ValueError(f"the action must be {self._gear.size} finite values, not {action!r}")
        self.data.ctrl[:] = values / self._gear
        frames = [self._observation]
        fault = ""
        for _ in range(self.task.action_repeat):
            fault = self._advance(self._substeps)
            observation = self.task.observe(self.data.qpos, self.data.qvel)
            if not fault and not np.isfinite(observation).all():
                fault = "an observation is not finite"
            if fault:
                break
            frames.append(observation)
        self._observation = frames[-1]
        terminated = self.task.terminated(self._observation)
        return StepResult(
            observation=self._observation.copy(),
            reward=self._reward(np.array(frames), values),
            terminated=terminated is not None and bool(terminated),
            fault=fault,
        )

    def coast(self, action: ArrayLike, periods: int) -> str:
        """Simulate whole control periods as fast as possible, without observing or rewarding them.

        Returns:
            MuJoCo's warning in one sentence; empty if all is well.
        """
        return self._unseen(action, periods * self.task.action_repeat * self._substeps)

    def substep(self, action: ArrayLike) -> str:
        """Simulate one step of the physics, without observing or rewarding it; returns as `coast`."""
        return self._unseen(action, 1)

    def refine(self, longest: float) -> float:
        """Divide the steps of the physics until none is longer than this [s]; frames stay as they are.

        Returns:
            The length of a step now [s].
        """
        parts = max(1, math.ceil(self.model.opt.timestep / longest - 1e-9))
        self.model.opt.timestep /= parts
        self._substeps *= parts
        return float(self.model.opt.timestep)

    @property
    def time(self) -> float:
        """Simulated time since the episode began [s]."""
        return float(self.data.time)

    def _unseen(self, action: ArrayLike, steps: int) -> str:
        """Simulate physics steps without observing or rewarding them; the fault, if any."""
        self.data.ctrl[:] = np.asarray(action, dtype=np.float64) / self._gear
        fault = self._advance(steps)
        observation = self.task.observe(self.data.qpos, self.data.qvel)
        if not fault and not np.isfinite(observation).all():
            fault = "an observation is not finite"
        if not fault:
            self._observation = observation
        return fault

    def _advance(self, steps: int) -> str:
        """Simulate physics steps; the fault, if any."""
        if self._after_step is None:
            mujoco.mj_step(self.model, self.data, steps)
        else:
            for _ in range(steps):
                mujoco.mj_step(self.model, self.data)
                self._after_step(self.data.qpos, self.data.qvel, self.model.opt.timestep)
        if self._warnings.any():
            return next(text for kind, text in _FAULTS.items() if self._warnings[kind])
        return ""

    def _reward(self, frames: NDArray[np.float64], action: NDArray[np.float64]) -> float:
        """Sum over frames [K+1, D]."""
        scaled = self.task.spec.scale_action(action)[None]
        return float(self.task.frame_reward(frames[:-1], scaled, frames[1:]).sum())


def load_model(task: MujocoTask) -> mujoco.MjModel:
    """The MJCF of a task, as the task wants it.

    Raises:
        UserError: it cannot be used.
    """
    edit = getattr(task, "edit", None)
    try:
        if edit is None:
            model = mujoco.MjModel.from_xml_path(str(task.mjcf))
        else:
            parsed = mujoco.MjSpec.from_file(str(task.mjcf))
            edit(parsed)
            model = parsed.compile()
    except (ValueError, mujoco.FatalError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{task.mjcf}, the MJCF of task '{task.spec.task}', cannot be used: {why}") from None
    # Otherwise MuJoCo answers a bad state by silently going back to its initial one.
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    return model


def physics_steps(task: MujocoTask, model: mujoco.MjModel) -> int:
    """Steps of the physics in a frame of a task.

    Raises:
        UserError: the MJCF contradicts the task.
    """
    spec, timestep = task.spec, model.opt.timestep
    steps = round(task.frame / timestep) if timestep > 0 else 0
    if steps < 1 or abs(steps * timestep - task.frame) > 1e-9:
        raise UserError(
            f"the frame of task '{spec.task}' is {task.frame} s, but must be a multiple of "
            f"the timestep of its MJCF, {timestep} s"
        )
    limits = model.actuator_ctrlrange * model.actuator_gear[:, :1]
    if limits.shape[0] != spec.action_dim or not np.allclose(
        limits, np.stack([spec.action_low, spec.action_high], axis=-1)
    ):
        raise UserError(
            f"the action limits of task '{spec.task}' must be gear x ctrlrange of its MJCF, {limits.tolist()}"
        )
    return steps
