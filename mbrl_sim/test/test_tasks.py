"""What every task has to keep, and that numpy and torch see the same."""

import numpy as np
import pytest
import torch
from dm_control.utils import rewards
from numpy.testing import assert_allclose

from mbrl_dynamics.testing import check_task
from mbrl_sim.drawing import mujoco
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks import base

torch.set_num_threads(1)

TIPS = {  # body, and where in its frame
    "cartpole_swingup": ("pole", [0.0, 0.0, 1.0]),
    "cartpole_pets": ("pole", [0.0, 0.0, -0.6]),
    "pendulum": ("rod", [0.0, 0.0, 1.0]),
    "pendulum_swingup": ("rod", [0.0, 0.0, 0.5]),
    "arm_reach": ("tool", [0.0, 0.0, 0.07]),
}


def observations(task, count=20):
    simulator = Simulator(task, seed=3)
    rng = np.random.default_rng(3)
    low, high = task.spec.action_low, task.spec.action_high
    return np.array([simulator.step(rng.uniform(low, high)).observation for _ in range(count)])


def test_contract(task):
    check_task(task, observations(task))


def test_reward_keeps_leading_dimensions_and_float32(task):
    obs = torch.tensor(observations(task, 2), dtype=torch.float32).repeat(3, 2, 1, 1)
    action = torch.zeros(3, 2, 2, task.spec.action_dim)
    reward = task.reward(obs, action, obs)
    assert reward.shape == (3, 2, 2)
    assert reward.dtype == torch.float32


def test_an_angle_without_an_end_is_told_by_its_cosine_and_sine(task):
    simulator = Simulator(task, seed=1)
    endless = (simulator.model.jnt_type == int(mujoco.mjtJoint.mjJNT_HINGE)) & (
        simulator.model.jnt_limited == 0
    )
    assert len(task.spec.circles) == endless.sum()
    obs = observations(task)
    for i in task.spec.circles:
        assert_allclose(np.hypot(obs[:, i], obs[:, i + 1]), 1.0, atol=1e-9)


def test_pose_shows_what_was_observed(task):
    simulator = Simulator(task, seed=1)
    obs = simulator.reset()
    simulator.reset(initial_state=[*task.pose(obs), *simulator.qvel])
    assert_allclose(task.observe(simulator.qpos, simulator.qvel), obs, atol=1e-12)


def test_an_observation_tells_the_state_that_it_was_made_of(task):
    obs = observations(task)
    assert_allclose(task.observe(task.pose(obs), task.motion(obs)), obs, atol=1e-12)
    tensor = torch.tensor(obs)
    assert_allclose(task.observe(task.pose(tensor).numpy(), task.motion(tensor).numpy()), obs, atol=1e-12)


def test_many_are_observed_at_once_as_each_by_itself(task):
    obs = observations(task)
    qpos, qvel = task.pose(obs), task.motion(obs)
    each = [task.observe(position, velocity) for position, velocity in zip(qpos, qvel, strict=True)]
    assert_allclose(task.observe(qpos, qvel), each, atol=1e-12)


def test_points_are_where_the_simulator_has_them(task):
    simulator = Simulator(task, seed=1)
    obs = simulator.reset()
    name, tip = TIPS[task.name]
    body = simulator.data.body(name)
    at = body.xpos + body.xmat.reshape(3, 3) @ tip
    assert_allclose(task.points(obs)[0], at, atol=1e-12)
    assert task.points(torch.tensor(np.stack([obs, obs]))).shape == (2, *task.points(obs).shape)


@pytest.mark.parametrize("margin, value", [(2.0, 0.1), (0.5, 0.3)])
def test_the_shapes_of_rewards_are_those_of_dm_control(margin, value):
    x = np.linspace(-4, 4, 81)
    assert_allclose(
        base.gaussian(x, margin, value),
        rewards.tolerance(x, margin=margin, value_at_margin=value),
        atol=1e-12,
    )
    expected = rewards.tolerance(x, margin=margin, sigmoid="quadratic", value_at_margin=value)
    assert_allclose(base.quadratic(x, margin, value), expected, atol=1e-12)
    assert_allclose(base.inside(x, -1.0, 2.0), rewards.tolerance(x, (-1.0, 2.0)))
