"""The arm's three files, MJCF, URDF and robot's file, speak of one arm."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.testing import assert_allclose

from mbrl_bringup.robot_config import find, guard_config
from mbrl_sim.drawing import mujoco
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.arm_reach import RANGES, ArmReach

URDF = Path(__file__).parents[1] / "config" / "robots" / "arm.urdf"


def urdf():
    """The URDF in MuJoCo, with its links kept apart and its fixed links kept as bodies."""
    root = ElementTree.parse(URDF).getroot()
    extension = ElementTree.SubElement(root, "mujoco")
    ElementTree.SubElement(extension, "compiler", fusestatic="false", discardvisual="true")
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    return model, mujoco.MjData(model)


def test_the_urdf_is_the_same_arm():
    ours, (theirs, data) = Simulator(ArmReach(), seed=0), urdf()
    model = ours.model
    for joint, (way, speed) in RANGES.items():
        a, b = model.joint(joint), theirs.joint(joint)
        assert_allclose(b.range, [-way, way])
        assert_allclose(a.range, b.range)
        assert_allclose(theirs.jnt_actfrcrange[b.id], model.jnt_actfrcrange[a.id])
        assert_allclose([b.damping, b.frictionloss], [a.damping, a.frictionloss])
        a, b = model.body(model.jnt_bodyid[a.id]), theirs.body(theirs.jnt_bodyid[b.id])
        assert a.name == b.name
        assert_allclose(b.mass, a.mass)
        assert_allclose(b.ipos, a.ipos, atol=1e-12)
        assert_allclose(_inertia(theirs, b.id), _inertia(model, a.id), atol=1e-12)
        limit = ElementTree.parse(URDF).find(f"joint[@name='{joint}']/limit")
        assert float(limit.get("velocity")) == speed == model.actuator(joint).ctrlrange[1]
    for angles in random_angles(20):
        ours.reset(initial_state=[*angles, 0, 0, 0, *np.zeros(9)])
        data.qpos[:] = angles
        mujoco.mj_kinematics(theirs, data)
        assert_allclose(data.body("tool_tip").xpos, ours.data.site("tool_tip").xpos, atol=1e-9)
        assert_allclose(data.body("tool").xmat, ours.data.body("tool").xmat, atol=1e-9)


def _inertia(model, body):
    """Of a body, in its own frame [3, 3]; the principal axes may be in any order."""
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.body_iquat[body])
    rotation = rotation.reshape(3, 3)
    return rotation @ np.diag(model.body_inertia[body]) @ rotation.T


def random_angles(count):
    """Of the six joints, within their ranges [count, 6]."""
    top = np.array([way for way, _ in RANGES.values()])
    return np.random.default_rng(0).uniform(-top, top, (count, 6))


def test_the_guard_allows_what_the_drives_can():
    robot, spec = find("arm"), ArmReach().spec
    assert Path(robot.description) == URDF
    guard = guard_config(robot, spec)
    assert [joint.joint for joint in guard.joints] == list(robot.commands[0].joints) == list(RANGES)
    assert_allclose(
        [(joint.low, joint.high) for joint in guard.joints], [(-v, v) for _, v in RANGES.values()]
    )
    beyond = {bound.name: bound.high for bound in guard.bounds}
    assert all(way < beyond[f"joints/{joint}.position"] < way + 0.2 for joint, (way, _) in RANGES.items())
