"""The scene for RViz: the geoms of the MJCF as markers, so that no URDF is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import Point, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from mbrl_dynamics.ros.convert import doubles, time_msg
from mbrl_sim.drawing import mujoco
from mbrl_sim.goal import robot_joints
from mbrl_sim.physics import Physics

Geom = mujoco.mjtGeom
_ENDLESS = 20.0  # drawn size of an infinite plane [m]
_THIN = 0.002  # drawn thickness of a plane [m]
_PLAIN = (0.5, 0.5, 0.5, 1.0)  # MuJoCo's colour of a geom without one


@dataclass(frozen=True)
class _Part:
    """A marker that is fixed to a geom."""

    geom: int
    offset: NDArray[np.float64]  # [3] in the geom's frame [m]
    marker: Marker


class Scene:
    """Markers that move with the physics. The messages are made once and then only moved.

    Height fields and signed-distance shapes have no marker and are left out; a world that is not made of
    MuJoCo has no markers at all.
    """

    def __init__(self, simulator: Physics, frame_id: str) -> None:
        self._simulator = simulator
        geoms = 0 if simulator.model is None else simulator.model.ngeom
        self._parts = [part for geom in range(geoms) for part in self._parts_of(geom)]
        self._message = MarkerArray(markers=[part.marker for part in self._parts])
        for number, marker in enumerate(self._message.markers):
            marker.header.frame_id = frame_id  # without a stamp: RViz shows it whatever the time is
            marker.ns, marker.id = "scene", number

    def message(self) -> MarkerArray:
        """All markers where they are now; the same message object each time."""
        positions, rotations = self._simulator.geom_poses()
        quaternion = np.zeros(4)
        for part in self._parts:
            rotation = rotations[part.geom]
            at = positions[part.geom] + rotation @ part.offset
            mujoco.mju_mat2Quat(quaternion, rotation.ravel())
            pose = part.marker.pose
            pose.position.x, pose.position.y, pose.position.z = at.tolist()
            w, pose.orientation.x, pose.orientation.y, pose.orientation.z = quaternion.tolist()
            pose.orientation.w = w
        return self._message

    def _parts_of(self, geom: int) -> list[_Part]:
        model = self._simulator.model
        size = model.geom_size[geom].tolist()
        kind = Geom(int(model.geom_type[geom]))
        if kind == Geom.mjGEOM_PLANE:
            width, depth = (2 * side if side > 0 else _ENDLESS for side in size[:2])
            return [self._part(geom, Marker.CUBE, (width, depth, _THIN), (0.0, 0.0, -_THIN / 2))]
        if kind in (Geom.mjGEOM_SPHERE, Geom.mjGEOM_ELLIPSOID):
            radii = (size[0],) * 3 if kind == Geom.mjGEOM_SPHERE else size
            return [self._part(geom, Marker.SPHERE, tuple(2 * radius for radius in radii))]
        if kind == Geom.mjGEOM_BOX:
            return [self._part(geom, Marker.CUBE, tuple(2 * side for side in size))]
        if kind not in (Geom.mjGEOM_CAPSULE, Geom.mjGEOM_CYLINDER):
            return self._mesh(geom) if kind == Geom.mjGEOM_MESH else []
        width, half = 2 * size[0], size[1]
        parts = [self._part(geom, Marker.CYLINDER, (width, width, 2 * half))]
        if kind == Geom.mjGEOM_CAPSULE:
            ends = ((0.0, 0.0, -half), (0.0, 0.0, half))
            parts += [self._part(geom, Marker.SPHERE, (width,) * 3, end) for end in ends]
        return parts

    def _mesh(self, geom: int) -> list[_Part]:
        model, mesh = self._simulator.model, self._simulator.model.geom_dataid[geom]
        faces = model.mesh_face[model.mesh_faceadr[mesh] :][: model.mesh_facenum[mesh]]
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        part = self._part(geom, Marker.TRIANGLE_LIST, (1.0, 1.0, 1.0))
        corners = vertices[faces.ravel()].astype(float).tolist()
        part.marker.points = [Point(x=x, y=y, z=z) for x, y, z in corners]
        return [part]

    def _part(
        self,
        geom: int,
        kind: int,
        scale: tuple[float, ...],
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> _Part:
        x, y, z = scale
        r, g, b, a = self._colour(geom)
        marker = Marker(type=kind, scale=Vector3(x=x, y=y, z=z), color=ColorRGBA(r=r, g=g, b=b, a=a))
        return _Part(geom, np.array(offset), marker)

    def _colour(self, geom: int) -> list[float]:
        model, material = self._simulator.model, self._simulator.model.geom_matid[geom]
        own: list[float] = model.geom_rgba[geom].astype(float).tolist()
        if material >= 0 and np.allclose(own, _PLAIN):
            own = model.mat_rgba[material].astype(float).tolist()
        return own


class Joints:
    """JointState of a simulated robot's hinges and slides; the same message object each time."""

    def __init__(self, simulator: Physics) -> None:
        self._simulator, self._message = simulator, JointState()
        self._positions = self._velocities = np.empty(0, dtype=np.int64)
        model = simulator.model
        if model is None:
            return
        joints = robot_joints(model, getattr(simulator.task, "goal", ""))
        self._positions, self._velocities = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._message.name = [model.joint(joint).name for joint in joints]

    def message(self, stamp: float) -> JointState:
        """Positions and velocities now; `stamp` in simulated time [s]."""
        self._message.header.stamp = time_msg(stamp)
        self._message.position = doubles(self._simulator.qpos[self._positions])
        self._message.velocity = doubles(self._simulator.qvel[self._velocities])
        return self._message
