"""The simulator keeps its promises whatever it is given."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mbrl_dynamics.errors import UserError
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup
from mbrl_sim.tasks.pendulum import Pendulum


def test_same_seed_same_episodes(task):
    first, second = Simulator(task, seed=5), Simulator(task, seed=5)
    for _ in range(3):
        assert_array_equal(first.reset(), second.reset())
        assert_array_equal(
            first.step(task.spec.action_high).observation, second.step(task.spec.action_high).observation
        )


def test_a_seeded_reset_leaves_the_sequence_alone(task):
    plain, disturbed = Simulator(task, seed=5), Simulator(task, seed=5)
    assert_array_equal(disturbed.reset(seed=1), Simulator(task).reset(seed=1))
    assert_array_equal(plain.reset(), disturbed.reset())


def test_a_reset_forgets_everything(task):
    simulator = Simulator(task)
    simulator.reset(seed=2)
    fresh = simulator.step(task.spec.action_high).observation
    for _ in range(20):
        simulator.step(task.spec.action_low)
    simulator.reset(seed=2)
    assert_array_equal(simulator.step(task.spec.action_high).observation, fresh)


def test_initial_state_is_positions_then_velocities():
    simulator = Simulator(CartpoleSwingup())
    assert_array_equal(simulator.reset(initial_state=[0.5, 0.0, 0.25, -1.0]), [0.5, 1.0, 0.0, 0.25, -1.0])


@pytest.mark.parametrize("state, words", [([1.0], "1 values"), ([0.0, 0.0, np.nan, 0.0], "not finite")])
def test_a_bad_initial_state_is_refused_and_changes_nothing(state, words):
    simulator = Simulator(CartpoleSwingup())
    before = simulator.qpos
    with pytest.raises(UserError, match=words):
        simulator.reset(initial_state=state)
    assert_array_equal(simulator.qpos, before)


@pytest.mark.parametrize("action", [[np.nan], [np.inf], [], [1.0, 2.0]])
def test_a_bad_action_never_reaches_the_physics(action):
    with pytest.raises(ValueError, match="1 finite values"):
        Simulator(Pendulum()).step(action)


@pytest.mark.parametrize("damage", [np.nan, np.inf, 1e12])
@pytest.mark.parametrize("vector", ["qpos", "qvel"])
def test_a_warning_of_the_physics_ends_the_episode(task, vector, damage):
    simulator = Simulator(task, seed=0)
    good = simulator.step(task.spec.safe_action()).observation
    getattr(simulator.data, vector)[0] = damage
    result = simulator.step(task.spec.safe_action())
    assert result.truncated
    assert "not finite or huge" in result.fault
    assert_array_equal(result.observation, good)
    assert np.isfinite(result.reward)
    simulator.reset()
    assert not simulator.step(task.spec.safe_action()).truncated


def test_coasting_is_stepping_without_looking(task):
    stepped, coasted = Simulator(task, seed=0), Simulator(task, seed=0)
    for _ in range(7):
        result = stepped.step(task.spec.action_high)
    assert coasted.coast(task.spec.action_high, 7) == ""
    assert_array_equal(
        coasted.step(task.spec.action_high).observation, stepped.step(task.spec.action_high).observation
    )
    assert not result.truncated
    coasted.data.qvel[0] = np.nan
    assert "not finite" in coasted.coast(task.spec.action_high, 7)


def test_pictures_show_the_pose(task):
    simulator = Simulator(task, seed=0)
    if simulator.renderer_error():
        pytest.skip(simulator.renderer_error())
    picture = simulator.render(64, 48)
    assert picture.shape == (48, 64, 3)
    assert picture.dtype == np.uint8
    assert not np.array_equal(picture, simulator.render(64, 48, pose=simulator.qpos + 1.0))
    with pytest.raises(UserError, match="valid: side"):
        simulator.render(camera="sideways")


def test_without_a_renderer_there_is_a_reason_and_no_crash():
    code = (
        "from mbrl_sim.simulator import Simulator; from mbrl_sim.tasks.pendulum import Pendulum;"
        "print(Simulator(Pendulum()).renderer_error())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "MUJOCO_GL": "osmesa"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "" or "cannot render" in run.stdout
