"""The pen in the hand is that of gymnasium-robotics, step by step.

Mutations that these tests notice: the pen seen without delay, or moved back by it the wrong way; the order of
its hinges; a bonus, the penalty or a threshold changed; the target turned about the wrong axis, drawn
otherwise, with a mass that makes it fall, or in the way of the pen.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.testing import check_task
from mbrl_sim.models.simulator import SimulatorModel
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.adroit_pen import TURN, AdroitPen, about_y, pen_axis, target_axis

torch.set_num_threads(1)
STEPS = 120


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("gymnasium_robotics")
    from gymnasium_robotics.envs.adroit_hand.adroit_pen import AdroitHandPenEnv

    return AdroitHandPenEnv(reward_type="dense")


@pytest.fixture
def simulator():
    pytest.importorskip("gymnasium_robotics")
    return Simulator(AdroitPen(), seed=0)


def as_theirs(obs):
    """What of an observation theirs has too, in their order: all but the differences [39]."""
    velocity = about_y(obs[51:54], -TURN)
    return np.concatenate([obs[:24], obs[48:51], velocity, obs[60:63], pen_axis(obs), target_axis(obs)])


def begin_alike(simulator, reference):
    """The same state, and the same first guess of the solver."""
    simulator.data.qpos[:30], simulator.data.qvel[:30] = reference.data.qpos, reference.data.qvel
    simulator.data.qacc_warmstart[:30] = reference.data.qacc_warmstart


@pytest.mark.parametrize("seed", [0, 1])
def test_an_episode_is_as_theirs(simulator, reference, seed):
    """Each step from the same state: rounding makes episodes diverge, through contacts.

    Now and then the solver, which gives up after 20 iterations, makes much of rounding even within a step.
    """
    task, rng = simulator.task, np.random.default_rng(seed)
    theirs, ours = reference.reset(seed=seed)[0], simulator.reset(seed=seed)
    assert_allclose(as_theirs(ours), theirs[:39], atol=1e-9)
    speeds, apart = [], []
    for _ in range(STEPS):
        begin_alike(simulator, reference)
        action = rng.uniform(-1.0, 1.0, 24)
        theirs, reward, *_, info = reference.step(action)
        result = simulator.step(task.spec.unscale_action(action))
        speeds.append(simulator.qvel[:24] - reference.data.qvel[:24])
        apart.append(np.abs(as_theirs(result.observation) - theirs[:39]).max())
        assert result.reward == pytest.approx(reward, abs=1e-6)
        assert bool(task.success(result.observation)) == info["success"]
        assert not result.terminated
    assert np.mean(np.array(apart) < 1e-6) > 0.95
    assert np.median(apart) < 1e-12
    assert np.abs(speeds).max() < 0.1


def test_nothing_touches_the_target(simulator):
    target = simulator.model.geom("target")
    assert not target.contype[0] and not target.conaffinity[0]


def test_bonuses_and_the_penalty_are_as_theirs(simulator, reference):
    """The pen put where it gets them: turned to the target but for some angle, moved, dropped."""
    task, rng, seen = simulator.task, np.random.default_rng(0), set()
    for seed in range(60):
        reference.reset(seed=seed)
        simulator.reset(seed=seed)
        x, y, z = about_y(target_axis(simulator.task.observe(simulator.qpos, simulator.qvel)), -TURN)
        qpos, qvel = np.zeros(30), np.zeros(30)
        qpos[24:27] = rng.uniform(-0.055, 0.055, 3)
        qpos[27:29] = np.array([math.atan2(-y, z), math.asin(x)]) + rng.uniform(-0.4, 0.4, 2)
        qpos[29], qvel[24:] = rng.uniform(-3.0, 3.0), 2.0 * rng.standard_normal(6)
        if seed % 6 == 0:
            qpos[24] = 0.2  # the first slide points down
        reference.set_state(qpos, qvel)
        begin_alike(simulator, reference)
        _, reward, *_, info = reference.step(np.zeros(24))
        result = simulator.step(task.spec.unscale_action(np.zeros(24)))
        assert result.reward == pytest.approx(reward, abs=1e-5)
        assert bool(task.success(result.observation)) == info["success"]
        seen.add(round((reward - task.likeness(result.observation)) / 5.0))
    assert seen == {-1, 0, 2, 12}, "the penalty, nothing, a bonus, both"


def test_the_target_is_drawn_as_theirs_and_rests(simulator, reference):
    for seed in range(5):
        theirs, ours = reference.reset(seed=seed)[0], simulator.reset(seed=seed)
        assert_allclose(target_axis(ours), theirs[36:39], atol=1e-12)
    for _ in range(20):
        simulator.step(simulator.task.spec.safe_action())
    after = simulator.task.observe(simulator.qpos, simulator.qvel)
    assert_allclose(target_axis(after), theirs[36:39], atol=1e-12)


def observations(simulator, count=20):
    rng, task = np.random.default_rng(3), simulator.task
    low, high = task.spec.action_low, task.spec.action_high
    return np.array([simulator.step(rng.uniform(low, high)).observation for _ in range(count)])


def test_contract(simulator):
    check_task(simulator.task, observations(simulator))


def test_an_observation_tells_the_state(simulator):
    task, obs = simulator.task, observations(simulator)
    assert_allclose(task.pose(obs[-1]), simulator.qpos, atol=1e-12)
    assert_allclose(task.motion(obs[-1]), simulator.qvel, atol=1e-12)
    assert_allclose(task.observe(task.pose(obs), task.motion(obs)), obs, atol=1e-12)
    tensor = torch.tensor(obs)
    assert_allclose(task.pose(tensor).numpy(), task.pose(obs), atol=1e-12)
    assert_allclose(task.motion(tensor).numpy(), task.motion(obs), atol=1e-12)


def test_points_are_where_the_simulator_has_them(simulator):
    obs, data = simulator.reset(seed=4), simulator.data
    ends = [data.site(f"{what}_{end}").xpos for what in ("object", "target") for end in ("top", "bottom")]
    assert_allclose(simulator.task.points(obs), ends, atol=1e-9)


def test_the_simulator_is_a_model_of_it(simulator):
    task = simulator.task
    model = SimulatorModel(task.spec)
    obs = simulator.reset(seed=1)
    action = np.random.default_rng(1).uniform(-1.0, 1.0, (1, 24))
    state = model.observe(None, None, {"vector": torch.tensor(obs)[None]})
    predicted = model.step(state, torch.tensor(action)).obs[0].numpy()
    happened = simulator.step(task.spec.unscale_action(action[0])).observation
    assert_allclose(predicted, happened, atol=1e-9)


def test_without_the_package_one_sentence_names_it(monkeypatch):
    monkeypatch.setattr(AdroitPen, "mjcf", Path("gymnasium_robotics/adroit_pen.xml"))
    with pytest.raises(UserError, match=r"needs the package gymnasium-robotics, .* mbrl_sim\[adroit\]"):
        AdroitPen()
