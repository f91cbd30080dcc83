"""A robot as a world, without ROS: what is read, how it is put together, and what an episode is made of."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from transforms3d.euler import euler2quat

from mbrl_bringup.guard import Phase
from mbrl_bringup.robot_config import Channel, load
from mbrl_bringup.robot_readings import Reader, Sample, Stream
from mbrl_bringup.robot_senses import _Filter
from mbrl_bringup.robot_world import RobotWorld, Status
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.transition import Answer
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

FILE = Path(__file__).parents[1] / "config" / "robots" / "cartpole.yaml"
PERIOD = 0.05


def joints(position=(0.3, 1.0), velocity=(0.1, -0.2), names=("slider", "hinge")):
    return SimpleNamespace(name=list(names), position=list(position), velocity=list(velocity), effort=[])


def vector(x, y, z, **more):
    return SimpleNamespace(x=x, y=y, z=z, **more)


def pose(roll, pitch, yaw):
    w, x, y, z = euler2quat(roll, pitch, yaw, "sxyz")
    return SimpleNamespace(pose=SimpleNamespace(position=vector(1, 2, 3), orientation=vector(x, y, z, w=w)))


# What is read -----------------------------------------------------------------------------------------------


def test_joints_go_by_name_and_never_by_index():
    reader = Reader("sensor_msgs/JointState", ["hinge.position", "slider.velocity"])
    assert reader.read(joints()).tolist() == [1.0, 0.1]
    turned = joints(position=(1.0, 0.3), velocity=(-0.2, 0.1), names=("hinge", "slider"))
    assert reader.read(turned).tolist() == [1.0, 0.1]
    assert reader.read(joints(names=("slider", "elbow"))) is None
    assert np.isnan(Reader("sensor_msgs/JointState", ["hinge.effort"]).read(joints())).all()


def test_an_orientation_can_be_read_as_angles_and_as_a_matrix():
    wanted = [f"orientation.{name}" for name in ("roll", "pitch", "yaw", "r33")]
    reader = Reader("geometry_msgs/PoseStamped", wanted)
    roll, pitch, yaw, r33 = reader.read(pose(0.1, -0.2, 3.0))
    np.testing.assert_allclose([roll, pitch, yaw], [0.1, -0.2, 3.0])
    assert r33 == pytest.approx(math.cos(0.1) * math.cos(-0.2))
    nothing = SimpleNamespace(orientation=vector(0, 0, 0, w=0))  # as IMUs without orientation send it
    assert np.isnan(Reader("sensor_msgs/Imu", ["orientation.yaw"]).read(nothing)).all()


@pytest.mark.parametrize(
    ("kind", "value", "valid"),
    [
        ("sensor_msgs/JointState", "elbow.torque", "<joint>.position"),
        ("sensor_msgs/JointState", "position", "<joint>.position"),
        ("sensor_msgs/Imu", "orientation.pich", "roll"),
        ("geometry_msgs/WrenchStamped", "force.w", r"force.x\|y\|z"),
    ],
)
def test_an_unknown_quantity_is_told_with_the_known_ones(kind, value, valid):
    with pytest.raises(UserError, match=f"'{value}'.*{valid}"):
        Reader(kind, [value])


def test_a_message_is_as_old_as_its_arrival():
    stream = Stream(max_age=0.1)
    assert stream.at(0.0) is None
    stream.take(Sample(1.0, 500.0, np.array([7.0])))
    assert stream.at(1.09).tolist() == [7.0] and stream.at(1.11) is None


def test_between_two_messages_values_are_interpolated_and_angles_take_the_short_way():
    stream = Stream(0.1, behind=0.015, angles=np.array([False, True]))
    for k in range(5):
        yaw = (3.1 + 0.02 * k + math.pi) % (2 * math.pi) - math.pi  # passes the turn between k = 2 and 3
        stream.take(Sample(0.01 * k, 0.01 * k, np.array([float(k), yaw])))
    value, yaw = stream.at(0.04)
    assert value == pytest.approx(2.5)
    assert math.cos(yaw - 3.15) == pytest.approx(1.0)
    assert stream.at(0.005)[0] == 0.0, "before the oldest message nothing is known"


def test_messages_that_come_twice_or_too_late_are_left_out_and_a_set_clock_begins_anew():
    stream = Stream(max_age=1.0)
    for arrival, stamp in ((0.0, 100.0), (0.01, 100.02), (0.02, 100.01), (0.03, 100.02)):
        stream.take(Sample(arrival, stamp, np.array([stamp])))
    assert stream.dropped == 2 and stream.newest.stamp == 100.02
    stream.take(Sample(0.04, 3.0, np.array([3.0])))
    assert stream.jumps == 1 and stream.at(0.04).tolist() == [3.0]
    unset = Stream(max_age=1.0)
    for k in range(3):
        unset.take(Sample(0.01 * k, 0.0, np.array([float(k)])))
    assert unset.dropped == 0 and unset.at(0.02).tolist() == [2.0]


# The file ---------------------------------------------------------------------------------------------------


def changed(tmp_path, *path, to):
    content = yaml.safe_load(FILE.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize(
    ("path", "to", "sentence"),
    [
        (("observation", "cart_position"), None, "observation has no 'cart_position'"),
        (("observation", "cart_positon"), {"source": "joints", "value": "a.b"}, "mean 'cart_position'"),
        (("observation", "cart_position", "source"), "imu", "cart_position.source: unknown source 'imu'"),
        (("observation", "cart_position", "value"), "slider.torque", "'slider.torque' of source 'joints'"),
        (("observation", "pole_angle_cos", "encoding"), "sin", "pole_angle_cos.encoding is 'sin'"),
        (("observation", "cart_position", "scale"), "two", "'observation.cart_position.scale' is 'two'"),
        (("action", "cart_force", "kind"), "torque", "'action.cart_force.kind' is 'torque'"),
        (("action", "cart_force", "low"), 20.0, "'slider' has low 20.0"),
        (("commands", 0, "joints"), ["hinge"], "unknown joint 'hinge'"),
        (("feedback",), None, "feedback must name the source"),
        (("beginning", "service"), None, "beginning.service is empty"),
        (("beginning",), {"by": "motion"}, "all must be commanded by position"),
        (("bounds",), {"slider.position": {"low": -1.0, "high": 1.0}}, "bounds.slider.position"),
        (("guard", "trip_after"), 0.1, "trip_after is 0.1 s"),
        (("action_delay_steps",), 0, "'action_delay_steps' is 0"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_with_its_key(tmp_path, path, to, sentence):
    with pytest.raises(UserError) as error:
        RobotWorld(load(changed(tmp_path, *path, to=to)), CartpoleSwingup())
    assert sentence in str(error.value)


def test_a_file_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="does not describe a robot"):
        load(tmp_path / "list.yaml")


# Episodes ---------------------------------------------------------------------------------------------------


class Bench:
    """A cart-pole's bridge with a clock, whose robot stands still unless told otherwise."""

    def __init__(self, **options):
        self.now = 50.0
        self.world = RobotWorld(load(FILE), CartpoleSwingup(), self.now, **options)
        self.position, self.velocity, self.silent = [0.3, math.pi], [0.1, -0.2], False
        self.stamp = 1000.0

    def beat(self, answer=None):
        """One period: a message, a tick, and perhaps the answer to the State that came of it."""
        self.now += PERIOD
        self.stamp += PERIOD
        if not self.silent:
            message = joints(self.position, self.velocity)
            self.world.senses.take("joints", message, self.stamp, self.now - 0.001)
        beat = self.world.tick(self.now)
        if answer is not None and beat.state is not None and not beat.state.last:
            self.answer(beat.state, answer)
        return beat

    def answer(self, state, values, **changes):
        rows = np.atleast_2d(np.asarray(values, float).T).T
        reply = Answer(state.world_id, state.episode, state.step, "c", rows)
        return self.world.offer(replace(reply, **changes), self.now)

    def armed(self):
        for _ in range(25):
            self.beat()
        assert self.world.guard.arm(self.now) == ""
        return self

    def running(self, answer=(4.0,)):
        self.armed()
        self.world.reset(self.now)
        self.world.ready(self.now)
        for _ in range(10):
            state = self.beat(answer).state
            if state is not None:
                assert state.first and state.step == 0
                return self
        raise AssertionError("no episode began")


def test_a_state_tells_what_was_seen_and_the_command_that_was_sent():
    bench = Bench().running()
    sent = bench.world._executed[0].copy()
    beat = bench.beat([6.0])
    state = beat.state
    np.testing.assert_allclose(state.observation, [0.3, -1.0, 0.0, 0.1, -0.2], atol=1e-9)
    assert state.step == 1 and state.action.tolist() == sent.tolist()
    assert state.controller_id == "", "over the first period there was no answer"
    assert beat.command.values.tolist() == [4.0] and not beat.command.safe, "the answer to the State before"
    state = bench.beat([6.0]).state
    assert state.action.tolist() == [4.0] and state.controller_id == "c"
    task = CartpoleSwingup()
    obs = state.observation[None]
    assert state.reward == pytest.approx(float(task.reward(obs, np.array([[0.4]]), obs)[0]))


def test_the_spec_is_that_of_the_task_with_the_delay():
    world = Bench().world
    expected = replace(CartpoleSwingup().spec, action_delay_steps=1)
    assert world.spec == expected and world.spec.dynamics_hash == expected.dynamics_hash


def test_what_is_recorded_is_what_the_guard_let_through():
    bench = Bench(share=0.2).running([9.0])
    command = bench.beat([9.0]).command
    assert command.values.tolist() == [2.0], "a fifth of the limits"
    assert bench.beat().state.action.tolist() == [2.0]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("joint", [0, 1])
def test_a_reading_that_is_not_finite_trips_and_nothing_of_it_is_commanded(joint, bad):
    bench = Bench().running()
    good, bench.position[joint] = bench.position[joint], bad
    beat = bench.beat([6.0])
    element = ("cart_position", "pole_angle_cos")[joint]
    assert bench.world.guard.phase is Phase.TRIPPED
    assert bench.world.guard.reason == f"element '{element}' of the observation is not finite"
    assert np.isfinite(beat.command.values).all() and beat.command.safe
    assert beat.state.truncated and np.isfinite(beat.state.observation).all(), "nobody is told"
    assert "no good reading" in bench.world.guard.arm(bench.now)
    bench.position[joint] = good
    bench.running()


def test_a_dry_run_ends_with_a_reading_that_is_not_finite():
    bench = Bench(passive=True)
    bench.world.reset(bench.now)
    bench.world.ready(bench.now)
    while bench.beat().state is None:
        pass
    bench.position[1] = math.nan
    state = bench.beat().state
    assert state.truncated and "'pole_angle_cos' of the observation is not finite" in bench.world.last_fault


def test_a_low_pass_forgets_what_was_not_finite():
    smooth = _Filter(Channel("joints", "slider.position", low_pass=0.1), 0.05)
    assert [smooth(x) for x in (1.0, math.nan, 2.0, 2.0)][2:] == [2.0, 2.0]


def test_a_late_controller_is_bridged_then_made_safe_then_trips_and_the_episode_is_cut():
    bench = Bench()
    bench.running([[4.0], [5.0], [6.0]])
    commands, states = [], []
    while bench.world.status is Status.RUNNING:
        beat = bench.beat()
        commands.append(beat.command)
        states.append(beat.state)
    values = [float(c.values[0]) for c in commands]
    assert values[:3] == [4.0, 5.0, 6.0]
    assert values[3] == pytest.approx(-0.2) and commands[3].safe, "damping against 0.1 m/s"
    assert bench.world.guard.phase is Phase.TRIPPED and "late" in bench.world.guard.reason
    assert states[-1].truncated and "late" in bench.world.last_fault
    assert [s.controller_id for s in states[1:5]] == ["c", "c", "c", ""]
    assert len(commands) <= 14, "0.5 s after the last answer, and the periods in which it is noticed and told"


@pytest.mark.parametrize("values", [[[math.nan]], [[1.0, 2.0]], np.empty((0, 0))])
def test_an_invalid_action_trips(values):
    bench = Bench().running()
    state = bench.beat().state
    reply = Answer(state.world_id, state.episode, state.step, "c", np.asarray(values, float))
    assert bench.world.offer(reply, bench.now)
    assert bench.world.guard.phase is Phase.TRIPPED
    beat = bench.beat()
    assert beat.command.safe and beat.state.truncated


@pytest.mark.parametrize(
    "changes",
    [
        {"world_id": b"x" * 16},
        {"episode": 7},
        {"step": 99},
        {"controller_id": "other"},
        {"controller_id": ""},
    ],
)
def test_an_answer_to_something_else_is_refused_and_nothing_happens(changes):
    bench = Bench().running()
    state = bench.beat([1.0]).state
    assert bench.answer(state, [9.0], **changes)
    assert bench.world.guard.phase is Phase.RUNNING
    assert bench.beat([1.0]).command.values.tolist() == [1.0]


def test_beyond_a_bound_motion_ends():
    bench = Bench().running()
    bench.beat([1.0])
    bench.position[0] = 2.3
    state = bench.beat([1.0]).state
    assert bench.world.guard.phase is Phase.TRIPPED and state.truncated
    assert "joints/slider.position" in bench.world.last_fault


def test_a_robot_that_is_not_seen_has_no_states_and_nothing_is_joined_across():
    bench = Bench().running()
    before = bench.beat([1.0]).state
    bench.silent = True
    for _ in range(4):
        beat = bench.beat()
    assert beat.state is None and beat.command.safe
    bench.silent = False
    after = bench.beat([1.0]).state
    assert after.step == before.step + 5 and not after.follows(before) and math.isnan(after.reward)
    assert bench.world.status is Status.RUNNING
    bench.silent = True
    ends = [bench.beat().state for _ in range(20)]
    (end,) = [state for state in ends if state is not None]
    assert end.truncated and not end.follows(after) and bench.world.status is Status.NEEDS_RESET
    assert bench.world.guard.phase is Phase.TRIPPED


def test_a_clock_that_is_set_ends_the_episode_and_nothing_is_joined_across_the_jump():
    bench = Bench().running()
    before = bench.beat([1.0]).state
    bench.stamp -= 400.0
    state = bench.beat([1.0]).state
    assert state.truncated and "clock" in bench.world.last_fault
    assert not state.follows(before) and state.stamp == before.stamp


def test_no_episode_begins_before_the_guard_is_armed():
    bench = Bench()
    bench.world.reset(bench.now)
    bench.world.ready(bench.now)
    for _ in range(40):
        beat = bench.beat()
        assert beat.state is None and beat.command is None
    assert bench.world.guard.arm(bench.now) == ""
    assert bench.beat().state.first


def test_a_dry_run_has_episodes_but_commands_nothing():
    bench = Bench(passive=True)
    bench.world.reset(bench.now)
    bench.world.ready(bench.now)
    beats = [bench.beat([3.0]) for _ in range(30)]
    assert all(beat.command is None for beat in beats)
    states = [beat.state for beat in beats if beat.state is not None]
    assert states[0].first and len(states) > 20


def test_an_episode_ends_with_its_time_and_the_robot_rests():
    bench = Bench().running()
    bench.world.max_steps = 5
    states = [bench.beat([1.0]).state for _ in range(5)]
    assert states[-1].truncated and bench.world.status is Status.NEEDS_RESET
    assert bench.world.guard.phase is Phase.ARMED
    beat = bench.beat()
    assert beat.state is None and beat.command.safe
    assert bench.answer(states[-1], [1.0]) == "no episode is going on"


def test_a_silent_controller_loses_control():
    bench = Bench(passive=True)
    bench.world.robot = replace(bench.world.robot, release_after=1.0)
    bench.world.reset(bench.now)
    bench.world.ready(bench.now)
    while bench.beat([1.0]).state is None:
        pass
    bench.beat([1.0])
    assert bench.world.desk.controller_id == "c"
    for _ in range(22):
        bench.beat()
    assert bench.world.desk.controller_id == ""
