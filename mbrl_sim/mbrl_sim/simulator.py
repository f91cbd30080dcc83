"""MuJoCo behind one class; nothing else steps it."""

from __future__ import annotations

import atexit
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_sim.gl import choose_backend
from mbrl_sim.tasks.base import MujocoTask

_NO_BACKEND = choose_backend()
import mujoco  # noqa: E402  (must not be imported before the choice)

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


@dataclass(frozen=True)
class StepResult:
    """What came of one control period. If `fault` is not empty, the physics is unusable until a reset."""

    observation: NDArray[np.float64]  # [D], SI; after a fault the last good one
    reward: float  # sum over the period's frames; after a fault over the good ones
    terminated: bool  # the task ended
    fault: str = ""  # MuJoCo's warning in one sentence

    @property
    def truncated(self) -> bool:
        """Whether the episode cannot go on, though the task did not end."""
        return bool(self.fault)


class Simulator:
    """One task's world.

    Args:
        task: what to simulate.
        seed: of the initial states drawn by unseeded resets; None = from the operating system.

    Raises:
        ValueError: the task contradicts its MJCF.
    """

    def __init__(self, task: MujocoTask, seed: int | None = None) -> None:
        self.task = task
        self.model = mujoco.MjModel.from_xml_path(str(task.mjcf))
        # Otherwise MuJoCo answers a bad state by silently going back to its initial one.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.data = mujoco.MjData(self.model)
        self._substeps = self._check()
        self._gear = self.model.actuator_gear[:, 0].copy()
        self._after_step = getattr(task, "after_step", None)
        self._warnings = self.data.warning.number  # a view
        self._rng = np.random.default_rng(seed)
        self._observation = np.zeros(task.spec.observation_dim)
        self._renderer: tuple[tuple[int, int], Any] | None = None
        self._drawn = mujoco.MjData(self.model)  # a pose to draw, apart from the physics
        self.reset()

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
            qpos, qvel = self._split(initial_state)
        else:
            rng = self._rng if seed is None else np.random.default_rng(seed)
            qpos, qvel = self.task.sample_initial_state(rng, self.model)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        self._observation = self.task.observe(self.model, self.data)
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
            fault = self._advance(1)
            observation = self.task.observe(self.model, self.data)
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
        self.data.ctrl[:] = np.asarray(action, dtype=np.float64) / self._gear
        fault = self._advance(periods * self.task.action_repeat)
        observation = self.task.observe(self.model, self.data)
        if not fault and not np.isfinite(observation).all():
            fault = "an observation is not finite"
        if not fault:
            self._observation = observation
        return fault

    @property
    def qpos(self) -> NDArray[np.float64]:
        """Positions [nq], a copy."""
        return np.array(self.data.qpos)

    @property
    def qvel(self) -> NDArray[np.float64]:
        """Velocities [nv], a copy."""
        return np.array(self.data.qvel)

    @property
    def time(self) -> float:
        """Simulated time since the episode began [s]."""
        return float(self.data.time)

    def geom_poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where each geom of the MJCF is now: positions [G, 3] and rotation matrices [G, 3, 3]."""
        self._drawn.qpos[:] = self.data.qpos
        mujoco.mj_kinematics(self.model, self._drawn)
        return self._drawn.geom_xpos, self._drawn.geom_xmat.reshape(-1, 3, 3)

    def render(
        self, width: int = 640, height: int = 480, camera: str = "side", pose: ArrayLike | None = None
    ) -> NDArray[np.uint8]:
        """Draw the world as it is, or with another pose [nq]; uint8 [height, width, 3].

        Raises:
            UserError: nothing can be drawn on this machine, or there is no such camera.
        """
        cameras = [self.model.camera(i).name for i in range(self.model.ncam)]
        if camera not in cameras:
            raise UserError(f"unknown camera '{camera}'; valid: {', '.join(cameras)}")
        if _NO_BACKEND:
            raise UserError(f"cannot render: {_NO_BACKEND}")
        self._drawn.qpos[:] = self.data.qpos if pose is None else pose
        mujoco.mj_kinematics(self.model, self._drawn)
        mujoco.mj_camlight(self.model, self._drawn)
        try:
            renderer = self._renderer_of(width, height)
            renderer.update_scene(self._drawn, camera)
            return np.array(renderer.render())
        except Exception as error:  # each back end has its own kinds of error
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"cannot render {width} x {height}: {reason[0]}") from error

    def renderer_error(self) -> str:
        """Why nothing can be drawn on this machine, in one sentence; empty if it can."""
        try:
            self.render(16, 16)
        except UserError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Free what drawing needed."""
        if self._renderer is not None:
            atexit.unregister(self._renderer[1].close)
            self._renderer[1].close()
            self._renderer = None

    def _advance(self, frames: int) -> str:
        """Simulate frames; the fault, if any."""
        steps = frames * self._substeps
        if self._after_step is None:
            mujoco.mj_step(self.model, self.data, steps)
        else:
            for _ in range(steps):
                mujoco.mj_step(self.model, self.data)
                self._after_step(self.model, self.data)
        if self._warnings.any():
            return next(text for kind, text in _FAULTS.items() if self._warnings[kind])
        return ""

    def _reward(self, frames: NDArray[np.float64], action: NDArray[np.float64]) -> float:
        """Sum over frames [K+1, D]."""
        scaled = self.task.spec.scale_action(action)[None]
        return float(self.task.frame_reward(frames[:-1], scaled, frames[1:]).sum())

    def _split(self, state: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = np.asarray(state, dtype=np.float64)
        nq, nv = self.model.nq, self.model.nv
        if values.shape != (nq + nv,):
            raise UserError(
                f"initial_state has {values.size} values, but must have {nq + nv}: "
                f"{nq} positions, then {nv} velocities"
            )
        if not np.isfinite(values).all():
            raise UserError("initial_state is not finite")
        return values[:nq], values[nq:]

    def _renderer_of(self, width: int, height: int) -> Any:
        if self._renderer is None or self._renderer[0] != (width, height):
            self.close()
            self._renderer = (width, height), mujoco.Renderer(self.model, height, width)
            atexit.register(self._renderer[1].close)  # while the graphics library is still loaded
        return self._renderer[1]

    def _check(self) -> int:
        """Physics steps in a frame."""
        spec, model = self.task.spec, self.model
        substeps = round(self.task.frame / model.opt.timestep)
        if substeps < 1 or abs(substeps * model.opt.timestep - self.task.frame) > 1e-9:
            raise ValueError(
                f"the frame of task '{spec.task}' is {self.task.frame} s, but must be a multiple of "
                f"the timestep of its MJCF, {model.opt.timestep} s"
            )
        limits = model.actuator_ctrlrange * model.actuator_gear[:, :1]
        if limits.shape[0] != spec.action_dim or not np.allclose(
            limits, np.stack([spec.action_low, spec.action_high], axis=-1)
        ):
            raise ValueError(
                f"the action limits of task '{spec.task}' must be gear x ctrlrange of its MJCF, "
                f"{limits.tolist()}"
            )
        return substeps
