"""The arm does not hit the table, whatever anybody wants: a workspace against MuJoCo, alone and guarded.

Mutations that these tests notice: an axis turned the wrong way or an origin's angles applied in another order
(where links are); commands foreseen without the joints' positions, or tried in a wrong order (the table);
the margin's way back left out (within the margin); ends of ranges left out (commands that change); a link
left out of how far points travel (travels); the margin left out of the short way (within the margin).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from mbrl_bringup.guard import Guard, Phase, Reading, Wanted
from mbrl_bringup.robot_config import find, guard_config, task_of, workspace
from mbrl_bringup.workspace import PointOf, Workspace, WorkspaceConfig
from mbrl_dynamics.errors import UserError
from mbrl_sim.simulator import Simulator

ARM = find("arm")
TASK = task_of(ARM)
JOINTS = [ARM.action[element.name].joint for element in TASK.spec.action]
PERIOD = TASK.spec.control_period
FLOOR = ARM.workspace.low[2]

CROOKED = """<robot name="crooked"><link name="root"/><link name="a"/><link name="b"/><link name="c"/>
<joint name="turn" type="continuous"><parent link="root"/><child link="a"/>
 <origin xyz=".1 .2 .3" rpy=".4 -.5 .6"/><axis xyz="1 2 2"/></joint>
<joint name="slide" type="prismatic"><parent link="a"/><child link="b"/>
 <origin xyz="0 -.1 0" rpy="0 .3 0"/><axis xyz="0 0 1"/>
 <limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
<joint name="glue" type="fixed"><parent link="b"/><child link="c"/><origin xyz=".2 0 0" rpy="0 0 1"/></joint>
{}</robot>"""
MASS = '<inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'


def write(folder: Path, more: str = "") -> Path:
    file = folder / "crooked.urdf"
    file.write_text(CROOKED.format(more))
    return file


def test_links_are_where_mujoco_has_them(tmp_path: Path) -> None:
    file = write(tmp_path)
    text = (
        file.read_text()
        .replace('"/><link', f'">{MASS}</link><link', 3)
        .replace('<link name="c"/>', f'<link name="c">{MASS}</link>')
    )
    text = text.replace("</robot>", '<mujoco><compiler fusestatic="false"/></mujoco></robot>')
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    place = Workspace(WorkspaceConfig((PointOf("c", (0.3, 0.1, -0.2)),)), file, ["slide", "turn"])
    rng = np.random.default_rng(0)
    for turn, slide in rng.uniform(-3, 3, (20, 2)):
        data.qpos[:] = turn, slide
        mujoco.mj_kinematics(model, data)
        body = data.body("c")
        expected = body.xpos + body.xmat.reshape(3, 3) @ (0.3, 0.1, -0.2)
        assert_allclose(place.positions(np.array([[slide, turn]]))[0, 0], expected, atol=1e-9)


def test_the_arm_of_the_file_is_the_arm_of_the_task() -> None:
    place, simulator = workspace(ARM, TASK.spec), Simulator(TASK, seed=0)
    assert place is not None
    rng = np.random.default_rng(0)
    angles = rng.uniform(-2, 2, (50, 6))
    found = place.positions(angles)
    for one, at in zip(angles, found, strict=True):
        seen = simulator.reset(initial_state=[*one, 0, 0, 0, *np.zeros(9)])
        assert_allclose(at, TASK.body(seen), atol=1e-9)
    assert_allclose(place.clearance(angles), found[..., 2].min(1) - FLOOR)
    lowest = angles[found[..., 2].min(1).argmin()]
    assert "is at z = " in place.outside(lowest) and "not within 0.03 and 1000" in place.outside(lowest)


def test_no_point_travels_further_than_it_is_said_to(tmp_path: Path) -> None:
    arm = workspace(ARM, TASK.spec)
    assert arm is not None
    crooked = Workspace(
        WorkspaceConfig((PointOf("c", (0.3, 0.1, -0.2)), PointOf("a", (0.0, 0.5, 0.0)))),
        write(tmp_path),
        ["slide", "turn"],
    )
    rng = np.random.default_rng(0)
    nearest = np.inf
    for place, width in ((arm, 6), (crooked, 2)):
        for size in 10.0 ** rng.uniform(-4, 0.3, 300):
            here, change = rng.uniform(-2, 2, width), size * rng.standard_normal(width)
            change *= rng.random(width) < 0.5  # some joints stand still
            a, b = place.positions(np.array([here, here + change]))
            bound = place.travel(change)
            moved = np.linalg.norm(b - a, axis=-1).max()
            assert moved <= bound + 1e-12
            if place is arm and bound:
                nearest = min(nearest, bound / max(moved, 1e-12))
    assert nearest < 1.5, "a bound that says nothing would be true too"


@pytest.mark.parametrize("seed", range(3))
def test_the_short_way_of_the_guard_sends_what_the_long_way_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    short, long = Arm(seed=seed), Arm(seed=seed)
    assert long.guard.workspace is not None
    long.guard.workspace.travel = lambda change: np.inf  # type: ignore[method-assign]
    for k in range(150):
        wanted = downhill(short, rng) if k // 30 % 2 else TASK.spec.action_high * rng.uniform(-1, 1, 6)
        short.step(wanted)
        long.step(wanted)
    assert_allclose(short.commands, long.commands, atol=1e-12)
    assert short.guard.held_back == long.guard.held_back > 0


class Arm:
    """The simulated arm behind the guard of its file."""

    def __init__(self, kept: bool = True, seed: int = 0) -> None:
        self.simulator, self.now = Simulator(TASK, seed=seed), 10.0
        place = workspace(ARM, TASK.spec) if kept else None
        self.guard = Guard(replace(guard_config(ARM, TASK.spec), healthy_for=0.0), place)
        self.seen = self.simulator.reset(seed=seed)
        self.lowest, self.commands = np.inf, [np.zeros(6)]
        self.read()
        assert self.guard.arm(self.now) == "" and self.guard.run() == ""

    def read(self) -> None:
        self.now += PERIOD
        self.guard.read(Reading(self.seen[:6].copy(), self.seen[6:12].copy(), self.seen[:6].copy()), self.now)

    def step(self, wanted: Any) -> None:
        self.read()
        command = self.guard.tick(Wanted(np.asarray(wanted, dtype=float)), self.now)
        assert command is not None
        self.commands.append(command.values)
        self.seen = self.simulator.step(command.values).observation
        self.lowest = min(self.lowest, TASK.body(self.seen)[:, 2].min())


def downhill(arm: Arm, rng: np.random.Generator) -> np.ndarray:
    """The worst of a hundred: full speed in whatever joints bring some point down the fastest."""
    signs = rng.choice([-1.0, 1.0], (100, 6)) * TASK.spec.action_high
    ahead = arm.seen[:6] + 0.1 * signs
    place = workspace(ARM, TASK.spec)
    assert place is not None
    return signs[place.positions(ahead)[..., 2].min(1).argmin()]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_is_wanted_leads_into_the_table(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept, free = Arm(seed=seed), Arm(kept=False, seed=seed)
    for arm in (kept, free):
        for _ in range(150):
            arm.step(downhill(arm, rng))
    assert free.lowest < FLOOR, "it would have hit it"
    assert kept.lowest > FLOOR and kept.guard.phase is Phase.RUNNING
    assert kept.guard.held_back > 50
    steps = np.abs(np.diff(kept.commands, axis=0))
    rate = np.array([ARM.action[e.name].rate for e in TASK.spec.action])
    assert (steps <= rate * PERIOD + 1e-9).all(), "it brakes no harder than it may"


ELBOW, SHOULDER = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


@settings(max_examples=15, deadline=None)
@example(
    [ELBOW, ELBOW, SHOULDER], 1
)  # an elbow at the end of its range does not lift what the shoulder lowers
@given(st.lists(st.tuples(*[st.floats(-2.0, 2.0)] * 6), min_size=1, max_size=6), st.integers(1, 30))
def test_nor_do_commands_that_change_at_any_time(wanted: list[tuple[float, ...]], often: int) -> None:
    arm = Arm()
    for k in range(120):
        arm.step(wanted[k // often % len(wanted)])
    assert arm.lowest > FLOOR and arm.guard.phase is Phase.RUNNING


def test_far_from_its_sides_nothing_changes_and_near_them_it_may_come_back() -> None:
    rng = np.random.default_rng(0)
    kept, free = Arm(), Arm(kept=False)
    for _ in range(20):
        wanted = 0.2 * rng.uniform(-1, 1, 6)
        kept.step(wanted)
        free.step(wanted)
    assert_allclose(kept.commands, free.commands)
    assert not kept.guard.held_back
    for _ in range(150):
        kept.step(downhill(kept, rng))
    lowest = TASK.body(kept.seen)[:, 2].min()
    held = kept.guard.held_back
    for _ in range(20):
        kept.step([0.0, -1.0, 0.0, 0.0, 0.0, 0.0])  # the shoulder leans back
    assert TASK.body(kept.seen)[:, 2].min() > lowest + 0.05
    assert kept.guard.held_back <= held + 2


def test_within_the_margin_only_what_leads_back_is_sent() -> None:
    place = workspace(ARM, TASK.spec)
    assert place is not None
    poses = np.tile([0.0, 0.1, 1.5, 0.0, 1.0, 0.0], (1000, 1))
    poses[:, 1] = np.linspace(0.1, 1.0, 1000)  # the shoulder leans forward
    pose = poses[np.abs(place.clearance(poses) - ARM.workspace.margin / 2).argmin()]
    for speed, expected in ((-0.02, -0.02), (0.02, 0.0)):
        arm = Arm()
        arm.seen = np.concatenate([pose, np.zeros(12)])
        arm.read()
        command = arm.guard.tick(Wanted(np.array([0.0, speed, 0.0, 0.0, 0.0, 0.0])), arm.now)
        assert command is not None and command.values[1] == pytest.approx(expected)


def test_a_robot_that_is_outside_trips() -> None:
    arm = Arm()
    arm.seen = arm.seen.copy()
    arm.seen[:6] = [0.0, 1.5, 1.5, 0.0, 1.0, 0.0]
    arm.read()
    assert arm.guard.phase is Phase.TRIPPED and "link 'tool_tip' is at z" in arm.guard.reason
    assert "no good reading" in arm.guard.arm(arm.now)


def test_a_joint_whose_position_is_not_known_trips() -> None:
    arm = Arm()
    arm.seen = arm.seen.copy()
    arm.seen[1] = np.nan
    arm.read()
    assert arm.guard.reason == "the position of 'shoulder_pitch' is not finite"


def test_positions_that_lead_out_are_not_commanded() -> None:
    actuators = {
        name: replace(a, kind="position", low=-2.8, high=2.8, rate=1.0) for name, a in ARM.action.items()
    }
    robot = replace(ARM, action=actuators)
    place = workspace(robot, TASK.spec)
    assert place is not None
    guard = Guard(replace(guard_config(robot, TASK.spec), healthy_for=0.0), place)
    position, now = np.array([0.0, 0.1, 1.5, 0.0, 1.0, 0.0]), 10.0
    for k in range(200):
        now += PERIOD
        guard.read(Reading(position.copy(), np.zeros(6), position.copy()), now)
        if not k:
            assert guard.arm(now) == "" and guard.run() == ""
        command = guard.tick(Wanted(np.array([0.0, 1.9, 2.4, 0.0, 2.0, 0.0])), now)
        assert command is not None
        position = command.values
        assert place.clearance(position[None])[0] >= robot.workspace.margin
    assert guard.phase is Phase.RUNNING and guard.held_back > 100


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"description": ""}, "workspace.points need a description"),
        ({"points": (PointOf("hand"),)}, "link of workspace.points 'hand'"),
        ({"low": (0.0, 0.0, 0.5), "high": (1.0, 1.0, 0.5)}, "must be below workspace.high"),
        ({"look_ahead": 0.05}, "joint 'base_yaw' needs 0.1 s to stop"),
        ({"kind": "effort"}, "is moved by effort, whose way a workspace cannot foresee"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    robot = ARM
    if "description" in changes:
        robot = replace(robot, **changes)
    elif "kind" in changes:
        robot = replace(robot, action={name: replace(a, **changes) for name, a in robot.action.items()})
    else:
        robot = replace(robot, workspace=replace(robot.workspace, **changes))
    with pytest.raises(UserError, match=sentence):
        workspace(robot, TASK.spec)


def test_a_urdf_that_cannot_be_followed_gets_one_sentence(tmp_path: Path) -> None:
    point = WorkspaceConfig((PointOf("c"),))
    with pytest.raises(UserError, match="moves with joint 'slide', which the robot's action has not"):
        Workspace(point, write(tmp_path), ["turn"])
    ball = '<link name="d"/><joint name="ball" type="floating"><parent link="c"/><child link="d"/></joint>'
    with pytest.raises(UserError, match=r"joint 'ball' of .* is 'floating', which a workspace does not know"):
        Workspace(WorkspaceConfig((PointOf("d"),)), write(tmp_path, ball), ["turn", "slide"])
    circle = '<joint name="round" type="fixed"><parent link="c"/><child link="root"/></joint>'
    with pytest.raises(UserError, match="form a circle"):
        Workspace(point, write(tmp_path, circle), ["turn", "slide"])
    (tmp_path / "crooked.urdf").write_text("<robot")
    with pytest.raises(UserError, match="cannot be read"):
        Workspace(point, tmp_path / "crooked.urdf", ["turn", "slide"])
