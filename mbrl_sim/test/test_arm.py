"""The arm: the task knows where it is, the drives move it, and the goal goes where it should."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from mbrl_dynamics.errors import UserError
from mbrl_sim.kinematics import read_chain
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.arm_reach import HOME, NEAR, POINTS, RANGES, ArmReach
from mbrl_sim.tasks.arm_reach_obstacle import DISTANCE, OBSTACLE, ArmReachObstacle

AT_REST = np.zeros(9)


def arms(count, seed=0):
    """Random joint angles [count, 6]."""
    top = np.array([way for way, _ in RANGES.values()])
    return np.random.default_rng(seed).uniform(-top, top, (count, 6))


def test_the_task_knows_where_the_arm_is_as_the_simulator_does():
    task = ArmReach()
    simulator = Simulator(task, seed=0)
    for angles in arms(20):
        obs = simulator.reset(initial_state=[*angles, 0.1, -0.2, 0.05, *AT_REST])
        data = simulator.data
        tip, wrist, elbow = task.body(obs)
        assert_allclose(tip, data.site("tool_tip").xpos, atol=1e-9)
        assert_allclose(wrist, data.body("wrist").xpos, atol=1e-9)
        assert_allclose(elbow, data.body("forearm").xpos, atol=1e-9)
        to_goal = data.site("tool_tip").xpos - data.body("goal").xpos
        assert task.distance(obs) == pytest.approx(np.linalg.norm(to_goal), abs=1e-9)


def test_points_of_a_chain_keep_the_order_that_was_asked_for():
    chain, angles = read_chain(ArmReach.mjcf, "tool"), torch.tensor(arms(7))
    assert chain.joints == tuple(RANGES)
    backwards = dict(reversed(POINTS.items()))
    found = chain.positions(angles, POINTS)
    assert found.shape == (7, 3, 3)
    assert torch.equal(chain.positions(angles, backwards), found.flip(-2))
    with pytest.raises(KeyError, match="no joint 'knee'"):
        chain.positions(angles, {"knee": (0.0, 0.0, 0.0)})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [("hand", "has no body 'hand'"), ("goal", "body 'goal' of .* is not turned by one hinge")],
)
def test_what_is_no_chain_of_hinges_gets_one_sentence(body, sentence):
    with pytest.raises(UserError, match=sentence):
        read_chain(ArmReach.mjcf, body)


def test_the_goal_goes_around_within_reach_and_its_state_foretells_it():
    task = ArmReach()
    simulator = Simulator(task, seed=0)
    low = np.array([e.low for e in task.spec.observation[12:15]])
    high = np.array([e.high for e in task.spec.observation[12:15]])
    for seed in range(3):
        obs = simulator.reset(seed)
        again = simulator.reset(initial_state=[*simulator.qpos, *simulator.qvel])
        assert_array_equal(obs, again)
        goals = np.array([simulator.step(np.zeros(6)).observation[12:18] for _ in range(200)])
        assert (goals[:, :3] > low - 1e-3).all() and (goals[:, :3] < high + 1e-3).all()
        assert np.abs(np.diff(goals[:, :3], axis=0) / 0.05 - goals[1:, 3:]).max() < 0.01
    assert len({simulator.reset(seed)[12] for seed in range(5)}) == 5


def test_a_moved_goal_stays_where_it_was_put():
    simulator = Simulator(ArmReach(), seed=0)
    place = np.array([0.3, 0.1, 0.35])
    simulator.goal.move(place)
    for _ in range(2):
        for _ in range(50):
            obs = simulator.step(np.zeros(6)).observation
        assert_allclose(obs[12:], [*place, 0, 0, 0], atol=1e-9)
        assert_allclose(simulator.reset()[12:], [*place, 0, 0, 0], atol=1e-12)
    assert_allclose(simulator.goal.state(), [*place, 0, 0, 0], atol=1e-12)
    for wrong in ([math.nan, 0.0, 0.0], [0.0, 0.0]):
        with pytest.raises(UserError, match="three finite numbers"):
            simulator.goal.move(wrong)


def test_the_drives_follow_speeds_and_hold_the_arm_without_one():
    simulator = Simulator(ArmReach(), seed=0)
    simulator.reset(initial_state=[*HOME, 0, 0, 0, *AT_REST])
    wanted = np.array([0.5, 0.3, -0.5, 1.0, -1.0, 1.0])
    for _ in range(10):
        obs = simulator.step(wanted).observation
    assert_allclose(obs[6:12], wanted, atol=0.07)
    for _ in range(10):
        before, obs = obs, simulator.step(np.zeros(6)).observation
    assert_allclose(obs[:6], before[:6], atol=1e-4)


def test_the_reward_is_best_at_the_goal_and_pays_for_speed_and_the_table():
    task, none = ArmReach(), np.zeros(6)
    obs = np.tile(Simulator(task, seed=0).reset(), (4, 1))
    tip = task.body(obs)[:, 0]
    obs[:, 12:15] = tip + np.array([[0.0], [NEAR], [0.1], [0.3]]) * [1.0, 0.0, 0.0]
    rewards = task.frame_reward(obs, none, obs)
    assert rewards[0] == pytest.approx(1.0, abs=1e-6)
    assert all(nearer > further for nearer, further in pairwise(rewards))
    assert task.success(obs).tolist() == [True, False, False, False]
    assert (task.frame_reward(obs, none + 1.0, obs) < rewards).all()
    low = obs.copy()
    low[:, 1:3] = 1.3, 0.8  # the tool in the table
    assert task.crowding(task.body(low)).min() > 0.0 == task.crowding(task.body(obs)).max()


def test_an_obstacle_is_another_task_with_the_same_dynamics():
    plain, task = ArmReach(), ArmReachObstacle()
    assert plain.spec.dynamics_hash == task.spec.dynamics_hash
    assert replace(task.spec, task="arm_reach") == plain.spec
    simulator = Simulator(task, seed=0)
    assert_allclose(simulator.data.geom("obstacle").xpos, OBSTACLE)
    obs = simulator.reset()
    assert task.reward(obs, obs[:6], obs) == plain.reward(obs, obs[:6], obs)
    inside = OBSTACLE + DISTANCE * np.array([[0, 0, 0.9], [0, 0, 1.1], [4.0, 0, 0]])
    assert task.crowding(inside) == pytest.approx(0.1)
    assert plain.crowding(inside) == 0.0
