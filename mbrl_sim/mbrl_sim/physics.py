"""What a World needs of whatever simulates it.

MuJoCo with a task of ours is `simulator.py`; environments of other libraries are adapted in `adapters/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Camera, Spec


@dataclass(frozen=True)
class StepResult:
    """What came of one control period. If `fault` is not empty, the physics is unusable until a reset."""

    observation: NDArray[np.float64]  # [D], SI; after a fault the last good one
    reward: float  # sum over the period's frames; after a fault over the good ones
    terminated: bool  # the task ended
    fault: str = ""  # MuJoCo's warning in one sentence
    cut: bool = False  # the simulated world itself ended the episode, though the task did not end

    @property
    def truncated(self) -> bool:
        """Whether the episode cannot go on, though the task did not end."""
        return bool(self.fault) or self.cut


class SimTask(Protocol):
    """A task whose world can be simulated."""

    spec: Spec
    max_steps: int  # control steps until an episode is truncated

    def make_simulator(self, seed: int | None = None, image_size: int = 0, camera: str = "") -> Physics:
        """The task's world.

        Args:
            seed: of the initial states drawn by unseeded resets; None = from the operating system.
            image_size: height and width of an image in the observation; 0 = none [px].
            camera: of the image; empty = the first one.

        Raises:
            UserError: the world cannot be made here, or images are wanted and cannot be drawn.
        """
        ...


class Physics(Protocol):
    """A simulated world without the contract: no clock, no controller, no episodes' numbers."""

    task: Any  # a SimTask
    model: Any  # mujoco.MjModel for those who draw; None where there is none
    cameras: tuple[Camera, ...]  # of the observed images

    @property
    def qpos(self) -> NDArray[np.float64]:
        """Positions [nq]."""
        ...

    @property
    def qvel(self) -> NDArray[np.float64]:
        """Velocities [nv]."""
        ...

    @property
    def time(self) -> float:
        """Simulated time since the episode began [s]."""
        ...

    def reset(self, seed: int | None = None, initial_state: ArrayLike | None = None) -> NDArray[np.float64]:
        """Begin an episode; the first observation [D]. See `Simulator.reset`."""
        ...

    def step(self, action: ArrayLike) -> StepResult:
        """Simulate one control period with an action [A] in SI units, held constant."""
        ...

    def coast(self, action: ArrayLike, periods: int) -> str:
        """Simulate whole control periods unseen; why it went wrong in one sentence, empty if it did not."""
        ...

    def images(self) -> dict[str, NDArray[np.uint8]]:
        """The observed images as things are now: camera -> uint8 [height, width, 3]."""
        ...

    def geom_poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions [G, 3] and rotation matrices [G, 3, 3] of the model's geoms."""
        ...

    def render(
        self, width: int = 640, height: int = 480, camera: str = "", pose: ArrayLike | None = None
    ) -> NDArray[np.uint8]:
        """A picture of the world as it is, or in another pose [nq]; uint8 [height, width, 3]."""
        ...

    def renderer_error(self) -> str:
        """Why nothing can be drawn on this machine, in one sentence; empty if it can."""
        ...

    def close(self) -> None:
        """Free what drawing needed."""
        ...


def make_simulator(task: Any, seed: int | None = None, image_size: int = 0, camera: str = "") -> Physics:
    """The world of a task; arguments and errors as in `SimTask.make_simulator`.

    Raises:
        UserError: the task has no simulator.
    """
    if not hasattr(task, "make_simulator"):
        raise UserError(f"task '{task.spec.task}' has no simulator: it needs a method make_simulator")
    physics: Physics = task.make_simulator(seed, image_size=image_size, camera=camera)
    return physics


def split_state(state: ArrayLike, nq: int, nv: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An initial state as qpos [nq] and qvel [nv].

    Raises:
        UserError: it has the wrong length or is not finite.
    """
    values = np.asarray(state, dtype=np.float64)
    if values.shape != (nq + nv,):
        raise UserError(
            f"initial_state has {values.size} values, but must have {nq + nv}: "
            f"{nq} positions, then {nv} velocities"
        )
    if not np.isfinite(values).all():
        raise UserError("initial_state is not finite")
    return values[:nq], values[nq:]
