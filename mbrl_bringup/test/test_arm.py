"""The arm's three files, MJCF, URDF and robot's, speak of one arm; and a planner leads it to any goal."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from mbrl_bringup.robot_config import find, guard_config
from mbrl_bringup.stack import resolve
from mbrl_dynamics.interfaces import Capabilities, Noise
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.types import Prediction
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_sim.drawing import mujoco
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.arm_reach import NEAR, RANGES, ArmReach
from mbrl_sim.tasks.arm_reach_obstacle import OBSTACLE, ArmReachObstacle

torch.set_num_threads(1)

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


class Follows(ObservationModel):
    """An arm whose joints turn as they are told, and a goal that goes straight on."""

    capabilities = Capabilities(differentiable=True)

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        period, top = self.spec.control_period, torch.tensor(self.spec.action_high, dtype=state.dtype)
        speeds, goal = action * top, state[..., 15:]
        after = [state[..., :6] + period * speeds, speeds, state[..., 12:15] + period * goal, goal]
        return Prediction(torch.cat(after, -1), torch.cat(after, -1))


def led(task, places, steps=50):
    """Observations [K, steps, D] while a planner leads the arm to one place after the other."""
    told = next(p for p in resolve({"task": task.name}) if p.name == "planner_node").configuration
    settings = {name.removeprefix("icem."): v for name, v in told.items() if name.startswith("icem.")}
    agent = MPC(ICEM(ICEMConfig(**settings)), WithTask(Follows(task.spec), task))
    simulator, carry, before, seen = Simulator(task, seed=0), None, None, []
    obs = simulator.reset()
    for place in places:
        simulator.goal.move(place)
        for _ in range(steps):
            given = {"vector": torch.tensor(obs, dtype=torch.float32)[None]}
            begins = torch.tensor([not seen])
            plan, carry = agent.act(given, carry, first=begins, prev_action=before, explore=False)
            before = plan[:, 0]
            obs = simulator.step(task.spec.unscale_action(before[0].numpy())).observation
            seen.append(obs)
    return np.array(seen).reshape(len(places), steps, -1)


def test_a_planner_leads_the_tool_to_any_goal_with_one_model():
    task = ArmReach()
    seen = led(task, [(0.3, 0.2, 0.35), (0.45, -0.15, 0.22)])
    assert (task.distance(seen[:, 35:]) < NEAR).all()


def test_a_planner_keeps_away_from_the_obstacle():
    nearest = {}
    for task in (ArmReach(), ArmReachObstacle()):
        (seen,) = led(task, [(0.32, 0.14, 0.33)])  # the ball hangs straight above
        assert (task.distance(seen[35:]) < NEAR).all()
        nearest[task.name] = np.linalg.norm(task.body(seen) - OBSTACLE, axis=-1).min()
    assert nearest["arm_reach"] < 0.08, "it would be in the way"
    assert nearest["arm_reach_obstacle"] > 0.09, "neither tool nor wrist, 0.034 m thick, touch the ball"
