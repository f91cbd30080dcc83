"""The reacher of dm_control as planners simulate it: what it foretells is what dm_control does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.plugins import make_task
from mbrl_sim.models.physics import FittedPhysics
from mbrl_sim.models.simulator import SimulatorModel
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.reacher import Reacher

torch.set_num_threads(1)


def played(name: str, repeat: int, steps: int = 60, seed: int = 3):  # type: ignore[no-untyped-def]
    """A task, its observations [steps + 1, D], actions [steps, A] and rewards of a random episode."""
    task = make_task(f"dm_control/{name}", repeat)
    simulator, rng = task.make_simulator(seed), np.random.default_rng(seed)
    first, actions = simulator.reset(seed), rng.uniform(-1.0, 1.0, (steps, 2))
    actions[: steps // 2, 1] = 1.0  # until the wrist meets its limit
    results = [simulator.step(action) for action in actions]
    return (
        task,
        np.array([first, *(r.observation for r in results)]),
        actions,
        np.array([r.reward for r in results]),
    )


@pytest.mark.parametrize("name, repeat", [("reacher-easy", 1), ("reacher-easy", 4), ("reacher-hard", 2)])
def test_its_futures_are_those_of_dm_control(name: str, repeat: int) -> None:
    task, obs, actions, _ = played(name, repeat)
    assert np.abs(obs[:, 2]).max() > np.radians(159), "the limit was met"
    model = SimulatorModel(task.spec)
    start = model.observe(None, None, {"vector": torch.from_numpy(obs[:1])})
    rollout = model.imagine(start, torch.from_numpy(actions)[None, None], keep=("obs",))
    assert rollout.obs is not None
    assert_allclose(rollout.obs[0, 0, 0].numpy(), obs, rtol=0, atol=1e-6)


def test_its_rewards_are_those_of_dm_control() -> None:
    rewards = []
    for seed in range(8):
        task, obs, actions, said = played("reacher-easy", 1, seed=seed)
        known = WithTask(SimulatorModel(task.spec), task)
        start = known.observe(None, None, {"vector": torch.from_numpy(obs[:1])})
        rollout = known.imagine(start, torch.from_numpy(actions)[None, None])
        assert_allclose(rollout.reward[0, 0, 0].numpy(), said)
        rewards.append(said)
    assert 0.01 < np.mean(rewards) < 0.99


def test_it_tells_the_state_from_an_observation() -> None:
    task, rng = Reacher(), np.random.default_rng(0)
    qpos, qvel = task.sample_initial_state(rng, None)
    qvel[:2] = 0.3
    obs = task.observe(qpos, qvel)
    turn = (task.pose(obs) - qpos) / (2.0 * np.pi)
    assert_allclose(turn[0], round(turn[0]), atol=1e-12)
    assert_allclose(task.pose(obs)[1:], qpos[1:], atol=1e-12)
    assert_allclose(task.motion(obs), qvel)
    simulator = Simulator(task)
    simulator.reset(initial_state=[*qpos, *qvel])
    finger = simulator.data.body("finger").xpos
    assert_allclose(task.points(obs)[0], [*finger[:2], 0.0], atol=1e-12)


def test_its_masses_can_be_fitted_but_the_target_is_no_part_of_it() -> None:
    model = FittedPhysics(make_task("dm_control/reacher-easy", 4).spec)
    assert [p.name for p in model.fitted] == [
        "mass:arm", "mass:hand", "mass:finger", "damping:shoulder", "damping:wrist",
    ]  # fmt: skip


def test_other_tasks_of_dm_control_have_no_such_world() -> None:
    with pytest.raises(UserError, match="no MJCF to simulate: 'dm_control/cheetah-run'"):
        SimulatorModel(make_task("dm_control/cheetah-run").spec)
