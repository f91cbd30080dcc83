"""The markers are where the physics are, and look like the geoms of the MJCF."""

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from numpy.testing import assert_allclose
from visualization_msgs.msg import Marker

from mbrl_sim.ros.scene import Joints, Scene
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

ALL_SHAPES = """
<mujoco>
  <asset>
    <material name="red" rgba="1 0 0 1"/>
    <mesh name="tetrahedron" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
  </asset>
  <worldbody>
    <geom type="plane" size="2 0 .1"/>
    <geom type="sphere" size=".1" pos="1 2 3" material="red"/>
    <geom type="ellipsoid" size=".1 .2 .3"/>
    <geom type="box" size=".1 .2 .3"/>
    <geom type="cylinder" size=".1 .4"/>
    <geom type="capsule" size=".1 .4" euler="90 0 0"/>
    <geom type="mesh" mesh="tetrahedron"/>
  </worldbody>
</mujoco>
"""


def scene_of(xml):
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    poses = data.geom_xpos, data.geom_xmat.reshape(-1, 3, 3)
    return Scene(SimpleNamespace(model=model, geom_poses=lambda: poses), "map").message().markers


def xyz(vector):
    return [vector.x, vector.y, vector.z]


def test_every_shape_has_its_marker():
    plane, sphere, ellipsoid, box, cylinder, capsule, end, other_end, mesh = scene_of(ALL_SHAPES)
    assert plane.type == Marker.CUBE
    assert (plane.scale.x, plane.scale.y) == (4.0, 20.0)
    assert plane.pose.position.z + plane.scale.z / 2 == pytest.approx(0.0)
    assert (sphere.type, xyz(sphere.pose.position)) == (Marker.SPHERE, [1.0, 2.0, 3.0])
    assert (sphere.color.r, sphere.color.g) == (1.0, 0.0)
    assert_allclose(xyz(ellipsoid.scale), [0.2, 0.4, 0.6])
    assert (box.type, xyz(box.scale)) == (Marker.CUBE, xyz(ellipsoid.scale))
    assert_allclose(xyz(cylinder.scale), [0.2, 0.2, 0.8])
    assert (capsule.type, end.type) == (Marker.CYLINDER, Marker.SPHERE)
    assert_allclose(
        [xyz(end.pose.position), xyz(other_end.pose.position)], [[0, 0.4, 0], [0, -0.4, 0]], atol=1e-9
    )
    assert (mesh.type, len(mesh.points)) == (Marker.TRIANGLE_LIST, 12)


def test_markers_and_joints_follow_the_physics():
    task = CartpoleSwingup()
    simulator = Simulator(task)
    scene, joints = Scene(simulator, "world"), Joints(simulator)
    for angle in (0.0, 1.0):
        observation = simulator.reset(initial_state=[0.3, angle, 0.0, 0.5])
        rod, tip, pivot = scene.message().markers[-3:]
        assert_allclose(
            [xyz(tip.pose.position), xyz(pivot.pose.position)], task.points(observation), atol=1e-9
        )
        along, turn = np.zeros(3), rod.pose.orientation
        mujoco.mju_rotVecQuat(
            along, np.array([0, 0, rod.scale.z]), np.array([turn.w, turn.x, turn.y, turn.z])
        )
        assert_allclose(along, np.array(xyz(pivot.pose.position)) - xyz(tip.pose.position), atol=1e-9)
        message = joints.message(1.25)
        assert list(message.position) == [0.3, angle]
        assert list(message.velocity) == [0.0, 0.5]
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1, 250_000_000)
