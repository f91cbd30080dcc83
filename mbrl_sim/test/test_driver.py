"""A stand-in for a robot's drives, with a clock that the test holds."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mbrl_dynamics.errors import UserError
from mbrl_sim.driver import CATCH_UP, Driver, DriverConfig
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.arm_reach import RANGES, ArmReach
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

START = 123456.7  # the steady clock is whatever it is [s]


def driver(**settings):
    return Driver(DriverConfig(**settings), START)


def follow(robot, begin, end, rate=100):
    """The measurements of a stretch of time; `begin` and `end` since START [s]."""
    ticks = (START + tick / rate for tick in range(round(begin * rate) + 1, round(end * rate) + 1))
    return [robot.measurement(now) for now in ticks]


def test_a_measurement_is_of_the_joints_of_the_mjcf():
    robot = driver()
    measured = robot.measurement(START)
    assert (measured.taken, measured.names) == (START, ("slider", "hinge"))
    assert robot.command_joints == ("slider",)
    initial = Simulator(CartpoleSwingup(), seed=0)
    assert_array_equal(measured.positions, initial.qpos)
    assert_array_equal(measured.velocities, initial.qvel)
    assert_array_equal(measured.efforts, [0.0, 0.0])


def test_it_moves_in_real_time_as_the_task_does():
    robot, task = driver(), Simulator(CartpoleSwingup(), seed=0)
    assert robot.command([3.0], START) == ""
    measured = follow(robot, 0.0, 1.0)
    assert_allclose([m.taken - START for m in measured], np.arange(1, 101) / 100, atol=1e-8)
    for step in range(1, 21):
        task.step([3.0])
        now = measured[5 * step - 1]  # a control period is 0.05 s
        assert_allclose(now.positions, task.qpos, atol=1e-4)
        assert_allclose(now.velocities, task.qvel, atol=1e-3)
        assert_allclose(now.efforts, [3.0, 0.0])


def test_how_often_it_is_called_makes_no_difference():
    often, seldom = driver(), driver()
    for robot in (often, seldom):
        robot.command([3.0], START)
    follow(often, 0.0, 0.09, rate=1000)
    assert_array_equal(
        often.measurement(START + 0.095).positions, seldom.measurement(START + 0.095).positions
    )


def test_a_command_takes_effect_when_it_comes():
    robot = driver()
    robot.command([5.0], START + 0.05)
    before, after = robot.measurement(START + 0.05), robot.measurement(START + 0.06)
    assert (before.efforts[0], after.efforts[0]) == (0.0, 5.0)


def test_a_measurement_is_given_once_and_never_goes_back():
    robot = driver()
    first = robot.measurement(START + 0.05)
    assert robot.measurement(START + 0.05) is None
    assert robot.measurement(START + 0.01) is None
    assert robot.measurement(START + 0.06).taken > first.taken


def test_a_stall_is_caught_up_only_so_far():
    robot, twin = driver(), driver()
    robot.command([3.0], START)
    twin.command([3.0], START)
    late, early = robot.measurement(START + 10.0), twin.measurement(START + CATCH_UP)
    assert robot.stalled == pytest.approx(10.0 - CATCH_UP)
    assert late.taken == pytest.approx(START + 10.0)
    assert_array_equal(late.positions, early.positions)
    late, early = robot.measurement(START + 10.05), twin.measurement(START + CATCH_UP + 0.05)
    assert_array_equal(late.positions, early.positions)


@pytest.mark.parametrize("rate", [50, 100, 333, 1000])
def test_at_each_tick_there_is_something_new(rate):
    robot = driver(rate=rate)
    assert None not in follow(robot, 0.0, 0.5, rate)


def test_a_command_is_in_force_for_ever_unless_there_is_a_timeout():
    patient, cautious = driver(), driver(command_timeout=0.1)
    for robot in (patient, cautious):
        robot.command([4.0], START)
    assert {m.efforts[0] for m in follow(patient, 0.0, 1.0)} == {4.0}
    efforts = [m.efforts[0] for m in follow(cautious, 0.0, 0.2)]
    assert efforts == [4.0] * 10 + [0.0] * 10
    assert (patient.timed_out, cautious.timed_out) == (False, True)
    cautious.command([2.0], START + 0.2)
    assert not cautious.timed_out
    assert cautious.measurement(START + 0.21).efforts[0] == 2.0


def test_the_timeout_acts_in_time_though_nobody_looks():
    robot, watched = driver(command_timeout=0.05), driver(command_timeout=0.05)
    for one in (robot, watched):
        one.command([4.0], START)
    follow(watched, 0.0, 0.09)
    assert_array_equal(robot.measurement(START + 0.1).velocities, watched.measurement(START + 0.1).velocities)


def test_without_any_command_nothing_times_out():
    robot = driver(command_timeout=0.05)
    follow(robot, 0.0, 0.2)
    assert not robot.timed_out


@pytest.mark.parametrize(
    "task, limit", [("cartpole_swingup", 10.0), ("cartpole_pets", 300.0), ("pendulum", 2.0)]
)
def test_a_command_is_clipped_to_the_range_of_the_motor(task, limit):
    robot = driver(task=task)
    for wanted, effort in [(1e9, limit), (-1e9, -limit), (limit, limit)]:
        assert robot.command([wanted], robot.time) == ""
        assert robot.measurement(robot.time + 0.02).efforts[0] == pytest.approx(effort)
    assert (robot.accepted, robot.clipped) == (3, 2)


@pytest.mark.parametrize(
    "values, why",
    [
        ([math.nan], "not finite"),
        ([-math.inf], "not finite"),
        ([], "has 0 values, but must have 1"),
        ([1.0, 2.0], "has 2 values, but must have 1"),
    ],
)
def test_a_bad_command_is_refused_and_changes_nothing(values, why):
    robot = driver()
    robot.command([4.0], START)
    assert why in robot.command(values, START + 0.01)
    assert (robot.accepted, robot.refused) == (1, 1)
    assert why in robot.last_refusal
    assert robot.measurement(START + 0.02).efforts[0] == 4.0


def test_a_refused_command_does_not_put_off_the_timeout():
    robot = driver(command_timeout=0.05)
    robot.command([4.0], START)
    robot.command([math.nan], START + 0.04)
    assert robot.measurement(START + 0.06).efforts[0] == 0.0


def test_latency_is_exact():
    prompt, late = driver(), driver(latency=0.03)
    for robot in (prompt, late):
        robot.command([6.0], START)
    now, then = follow(prompt, 0.0, 0.5), follow(late, 0.0, 0.5)
    assert then[:2] == [None, None]
    assert_array_equal(then[2].positions, driver().measurement(START).positions)
    for published, taken in zip(then[3:], now[:-3], strict=True):
        assert published.taken == taken.taken
        assert_array_equal(published.positions, taken.positions)


def test_a_share_of_the_measurements_is_lost():
    robot = driver(drop=0.3)
    lost = [m is None for m in follow(robot, 0.0, 10.0)]
    assert sum(lost) == robot.dropped
    assert np.mean(lost) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / len(lost)))
    assert follow(driver(drop=1.0), 0.0, 0.5) == [None] * 50


def test_noise_has_the_strength_that_was_asked_for():
    settings = {"position_noise": 0.02, "velocity_noise": 0.3}
    noisy, clean = (follow(driver(**more), 0.0, 10.0) for more in (settings, {}))
    for field, deviation in (("positions", 0.02), ("velocities", 0.3), ("efforts", 0.0)):
        noise = np.array([getattr(n, field) - getattr(c, field) for n, c in zip(noisy, clean, strict=True)])
        assert_allclose(noise.std(axis=0), deviation, rtol=0.08)
        assert_allclose(noise.mean(axis=0), 0.0, atol=4 * deviation / math.sqrt(len(noise)))
    again = follow(driver(**settings), 0.0, 0.1)
    assert_array_equal(again[-1].positions, noisy[len(again) - 1].positions)


def test_in_a_fault_the_motors_are_without_force_and_nothing_is_measured():
    robot = driver(latency=0.02)
    robot.command([5.0], START)
    (*_, before) = follow(robot, 0.0, 0.1)
    robot.fault(True)
    assert follow(robot, 0.1, 0.5) == [None] * 40
    assert "dropped out" in robot.command([5.0], START + 0.5)
    assert (robot.refused, robot.force[0]) == (1, 0.0)
    with pytest.raises(UserError, match="cannot move home"):
        robot.home(START + 0.5)
    robot.fault(False)
    after = follow(robot, 0.5, 0.6)
    assert after[:1] == [None]  # what comes was measured after the fault, and the cart has rolled on
    assert after[2].taken > START + 0.5
    assert after[2].positions[0] > before.positions[0] + 0.1
    assert after[2].efforts[0] == 0.0
    assert robot.command([5.0], START + 0.6) == ""


def test_a_switch_that_does_not_change_leaves_the_command_alone():
    robot = driver()
    robot.command([5.0], START)
    robot.fault(False)
    assert robot.measurement(START + 0.01).efforts[0] == 5.0


def test_home_is_the_task_s_initial_state_by_the_seed():
    first, second, other = driver(seed=3), driver(seed=3), driver(seed=4)
    homes = []
    for robot in (first, second, other):
        robot.command([10.0], START)
        follow(robot, 0.0, 1.0)
        robot.home(START + 1.0)
        homes.append(robot.measurement(START + 1.0))
        assert robot.measurement(START + 1.05).efforts[0] == 0.0
    assert_array_equal(homes[0].positions, homes[1].positions)
    assert (homes[0].positions != homes[2].positions).any()
    assert abs(homes[0].positions[0]) < 0.1
    assert homes[0].taken == pytest.approx(START + 1.0)
    first.home(START + 1.1)
    assert (first.measurement(START + 1.1).positions != homes[0].positions).any()  # the next draw


@pytest.mark.parametrize("vector", ["qpos", "qvel"])
@pytest.mark.parametrize("damage", [math.nan, math.inf, 1e12])
def test_a_broken_physics_is_a_fault_until_the_robot_is_home(vector, damage):
    robot = driver()
    robot.command([5.0], START)
    getattr(robot._simulator.data, vector)[0] = damage
    assert follow(robot, 0.0, 0.1) == [None] * 10
    assert "not finite" in robot.problem
    assert "not finite" in robot.command([1.0], START + 0.1)
    assert robot.force[0] == 0.0
    robot.home(START + 0.1)
    assert robot.problem == ""
    assert np.isfinite(follow(robot, 0.1, 0.2)[-1].positions).all()


def test_what_is_not_measured_by_anyone_does_not_pile_up():
    robot = driver(latency=0.05)
    for tick in range(1000):
        robot.advance(START + 0.01 * tick)
    assert len(robot._taken) < 50


@pytest.mark.parametrize(
    "task, sentence",
    [
        ("moonwalk", "unknown task 'moonwalk'; valid: "),
        ("cliff", "task 'cliff' is no robot to drive: its world is not an MJCF with motors at its joints"),
    ],
)
def test_a_task_that_is_no_robot_gets_one_sentence(task, sentence):
    with pytest.raises(UserError) as caught:
        driver(task=task)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_task_with_an_mjcf_is_a_robot(task):
    robot = Driver(DriverConfig(task=task.name), START)
    assert robot.command(task.spec.action_high, START) == ""
    measured = follow(robot, 0.0, 0.2)[-1]
    assert np.isfinite([measured.positions, measured.velocities, measured.efforts]).all()


def test_finer_steps_leave_the_frames_as_long_as_they_are(task):
    coarse, fine, stepped = (Simulator(task, seed=0) for _ in range(3))
    length = coarse.model.opt.timestep
    assert fine.refine(10.0) == length
    assert fine.refine(0.4 * length) == stepped.refine(0.4 * length) == pytest.approx(length / 3)
    coarse.step(task.spec.action_high)
    fine.step(task.spec.action_high)
    assert fine.time == pytest.approx(coarse.time)
    assert_allclose(fine.qpos, coarse.qpos, atol=0.05)
    for _ in range(round(fine.time / (length / 3))):
        assert stepped.substep(task.spec.action_high) == ""
    assert_array_equal(stepped.qpos, fine.qpos)


# An arm, and what it is to reach ----------------------------------------------------------------------------


def test_the_joints_of_an_arm_are_measured_and_its_goal_is_none_of_them():
    robot = driver(task="arm_reach")
    measured = robot.measurement(START)
    assert measured.names == robot.command_joints == tuple(RANGES)
    initial = Simulator(ArmReach(), seed=0)
    assert_array_equal(measured.positions, initial.qpos[:6])
    assert_array_equal(measured.goal, initial.goal.state())
    assert not driver().has_goal and driver().measurement(START).goal is None


def test_an_arm_follows_speeds_and_stands_still_when_nobody_commands_it_any_more():
    robot = driver(task="arm_reach", command_timeout=0.2)
    robot.command([0.5, 0.0, 0.0, 0.0, -9.0, 0.0], START)
    moving = follow(robot, 0.0, 0.2)[-1]
    assert_allclose(moving.velocities[[0, 4]], [0.5, -1.5], atol=0.1)
    later = follow(robot, 0.2, 1.0)
    assert robot.timed_out
    assert_allclose(later[-1].velocities, 0.0, atol=1e-3)
    assert_allclose(later[-1].positions, later[40].positions, atol=1e-3)


def test_a_goal_moves_until_somebody_puts_it_somewhere():
    robot = driver(task="arm_reach")
    goals = np.array([m.goal for m in follow(robot, 0.0, 0.5)])
    assert (goals[0, :3] != goals[-1, :3]).all()
    assert robot.move_goal([0.3, 0.1, 0.3], START + 0.5) == ""
    for _ in range(2):
        assert_allclose(robot.measurement(robot.time + 0.01).goal, [0.3, 0.1, 0.3, 0, 0, 0], atol=1e-9)
        robot.home(robot.time + 0.01)
    assert "three finite numbers" in robot.move_goal([math.nan, 0.0, 0.0], robot.time)
    assert "has no goal" in driver().move_goal([0.3, 0.1, 0.3], START)
