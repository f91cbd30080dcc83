"""What there is to see of a world in MuJoCo: its geoms, and pictures of them."""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Camera
from mbrl_sim.gl import choose_backend

_NO_BACKEND = choose_backend()
import mujoco  # noqa: E402  (must not be imported before the choice)
import mujoco.rollout  # noqa: E402

__all__ = ["FREE", "Drawing", "mujoco"]  # MuJoCo too, for those who must not import it before the choice

FREE = "free"  # name of the view that every model has


class Drawing:
    """Draws a MuJoCo model, apart from its physics, and takes the images that go into observations.

    Args:
        model, data: what is drawn; None = a world that is not made of MuJoCo, of which nothing can be drawn.
        image_size: height and width of an observed image; 0 = none is observed [px].
        camera: of the observed image; empty = the model's first one, or the free view if it has none.

    Attributes:
        model, data: mujoco.MjModel and MjData, or None.
        cameras: of the observed images.

    Raises:
        UserError: images are wanted, but there is no such camera, or nothing can be drawn on this machine.
    """

    def __init__(self, model: Any, data: Any, image_size: int = 0, camera: str = "") -> None:
        self.model, self.data = model, data
        self._drawn: Any = None if model is None else mujoco.MjData(model)
        self._renderer: tuple[tuple[int, int], Any] | None = None
        self.cameras: tuple[Camera, ...] = ()
        if image_size:
            self.cameras = (Camera(camera or self._views()[0], image_size, image_size),)
            self.images()

    @property
    def qpos(self) -> NDArray[np.float64]:
        """Positions [nq], a copy."""
        return np.empty(0) if self.data is None else np.array(self.data.qpos)

    @property
    def qvel(self) -> NDArray[np.float64]:
        """Velocities [nv], a copy."""
        return np.empty(0) if self.data is None else np.array(self.data.qvel)

    def geom_poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where each geom of the model is now: positions [G, 3] and rotation matrices [G, 3, 3]."""
        if self._drawn is None:
            return np.empty((0, 3)), np.empty((0, 3, 3))
        self._place(None)
        return self._drawn.geom_xpos, self._drawn.geom_xmat.reshape(-1, 3, 3)

    def images(self) -> dict[str, NDArray[np.uint8]]:
        """The observed images as things are now: camera -> uint8 [height, width, 3]."""
        return {camera.name: self.render(camera.width, camera.height, camera.name) for camera in self.cameras}

    def render(
        self, width: int = 640, height: int = 480, camera: str = "", pose: ArrayLike | None = None
    ) -> NDArray[np.uint8]:
        """Draw the world as it is, or with another pose [nq]; uint8 [height, width, 3].

        Raises:
            UserError: nothing can be drawn on this machine, or there is no such camera.
        """
        views = self._views()
        camera = camera or views[0]
        if camera not in views:
            raise UserError(f"unknown camera '{camera}'; valid: {', '.join(views)}")
        if _NO_BACKEND:
            raise UserError(f"cannot render: {_NO_BACKEND}")
        self._place(pose)
        mujoco.mj_comPos(self.model, self._drawn)  # cameras that track a body look there
        mujoco.mj_camlight(self.model, self._drawn)
        mujoco.mj_tendon(self.model, self._drawn)
        try:
            renderer = self._renderer_of(width, height)
            renderer.update_scene(self._drawn, -1 if camera == FREE else camera)
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

    def _views(self) -> list[str]:
        if self.model is None:
            raise UserError("cannot render: this world is not made of MuJoCo, and has no cameras")
        named = [self.model.camera(i).name for i in range(self.model.ncam)]
        return [*(name for name in named if name), FREE]

    def _place(self, pose: ArrayLike | None) -> None:
        """Bring the drawn bodies where the real ones are, or into a pose [nq]."""
        self._drawn.qpos[:] = self.data.qpos if pose is None else pose
        self._drawn.mocap_pos[:], self._drawn.mocap_quat[:] = self.data.mocap_pos, self.data.mocap_quat
        mujoco.mj_kinematics(self.model, self._drawn)

    def _renderer_of(self, width: int, height: int) -> Any:
        if self._renderer is None or self._renderer[0] != (width, height):
            self.close()
            self._renderer = (width, height), mujoco.Renderer(self.model, height, width)
            atexit.register(self._renderer[1].close)  # while the graphics library is still loaded
        return self._renderer[1]
