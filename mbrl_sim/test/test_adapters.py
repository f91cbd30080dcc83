"""A world made of somebody else's environment is that environment, step by step."""

import gymnasium
import numpy as np
import pytest
import torch
from dm_control import suite
from numpy.testing import assert_allclose, assert_array_equal

from mbrl_dynamics import plugins
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_sim.simulator import Simulator
from mbrl_sim.world import Status, World, WorldConfig
from mbrl_sim.worlds import Worlds

DM_CONTROL = [
    ("cheetah", "run"),
    ("finger", "turn_easy"),  # a scalar among the observations
    ("manipulator", "bring_ball"),  # and a matrix
    ("quadruped", "walk"),  # activations
    ("swimmer", "swimmer6"),
]
GYMNASIUM = [
    "Hopper-v5",
    "InvertedPendulum-v5",
    "HalfCheetah-v5",
    "Reacher-v5",
    "Walker2d-v5",
    "Pendulum-v1",
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCarContinuous-v0",
]


def flat(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()])


def actions(spec, count, seed=0):
    """Random ones [count, A], SI."""
    scaled = np.random.default_rng(seed).uniform(-1, 1, (count, spec.inner_action_dim))
    return spec.unscale_action(scaled)


@pytest.mark.parametrize("domain, name", DM_CONTROL)
def test_dm_control(domain, name):
    with Worlds(f"dm_control/{domain}-{name}") as worlds:
        for seed in (3, 4):
            reference = suite.load(domain, name, task_kwargs={"random": seed})
            state = worlds.reset(0, seed)
            assert_allclose(state.observation, flat(reference.reset().observation), atol=1e-6)
            for action in actions(worlds.spec, 30, seed):
                step = reference.step(action)
                (state,) = worlds.step(action[None])
                assert not state.fault(worlds.spec)
                assert_allclose(state.observation, flat(step.observation), atol=1e-6)
                assert state.reward == pytest.approx(step.reward, abs=1e-6)
                assert not state.last
        assert worlds.spec.control_period == pytest.approx(reference.control_timestep())
        assert worlds.max_steps == pytest.approx(reference._step_limit)


@pytest.mark.parametrize("name", ["easy", "hard"])
def test_an_angle_that_can_grow_for_ever_comes_as_a_point_on_the_circle(name):
    with Worlds(f"dm_control/reacher-{name}") as worlds:
        reference = suite.load("reacher", name, task_kwargs={"random": 3})
        angle = flat(reference.reset().observation)[0]
        state, begin = worlds.reset(0, 3), angle
        for _ in range(300):
            assert_allclose(state.observation[:2], [np.cos(angle), np.sin(angle)], atol=1e-6)
            expected = flat(reference.step([1.0, 0.0]).observation)
            (state,) = worlds.step(np.array([[1.0, 0.0]]))
            assert_allclose(state.observation[2:], expected[1:], atol=1e-6)
            angle = expected[0]
        assert abs(angle - begin) > 2 * np.pi
        assert [e.name for e in worlds.spec.observation[:2]] == ["position[0]_cos", "position[0]_sin"]
        assert worlds.spec.circles == (0,)


@pytest.mark.parametrize("name", GYMNASIUM)
def test_gymnasium(name):
    reference = gymnasium.make(name)
    with Worlds(f"gymnasium/{name}") as worlds:
        ends = 0
        for seed in (3, 4):
            state, (observation, _) = worlds.reset(0, seed), reference.reset(seed=seed)
            assert_allclose(state.observation, observation, atol=1e-6)
            for action in actions(worlds.spec, 60, seed):
                observation, reward, terminated, truncated, _ = reference.step(
                    int(action[0]) if worlds.spec.discrete else action.astype(np.float32)
                )
                (state,) = worlds.step(action[None])
                assert not state.fault(worlds.spec)
                assert_allclose(state.observation, observation, atol=1e-6)
                assert state.reward == pytest.approx(reward, abs=1e-6)
                assert (state.terminated, state.truncated) == (terminated, truncated)
                if state.last:
                    ends += 1
                    break
        assert ends == 2 or name not in ("Hopper-v5", "InvertedPendulum-v5", "CartPole-v1", "Reacher-v5")


def test_names_units_and_ranges_are_those_of_the_environment():
    spec = make_task("dm_control/finger-turn_easy").spec
    assert [e.name for e in spec.observation][:3] == ["position[0]", "position[1]", "position[2]"]
    assert spec.observation[spec.index("dist_to_target")].unit == "1"
    assert [(a.name, a.low, a.high) for a in spec.action] == [("action[0]", -1, 1), ("action[1]", -1, 1)]
    assert spec.control_period == 0.02
    spec = make_task("gymnasium/CartPole-v1").spec
    assert spec.discrete and spec.action[0].count == 2
    assert spec.observation[0].high == pytest.approx(4.8)
    assert np.isinf(spec.observation[1].high)  # Gymnasium says 3.4e38
    spec = make_task("gymnasium/Pendulum-v1").spec
    assert (spec.action[0].low, spec.action[0].high, spec.control_period) == (-2.0, 2.0, 0.05)
    spec = make_task("dm_control/lqr-lqr_2_1").spec
    assert (spec.action[0].low, spec.action[0].high) == (-1.0, 1.0)  # its actuators have no limits


@pytest.mark.parametrize("name", ["dm_control/pendulum-swingup", "gymnasium/Pendulum-v1"])
def test_a_time_limit_truncates(name):
    with Worlds(name) as worlds:
        state = worlds.reset(0, 0)
        while not state.last:
            (state,) = worlds.step(np.zeros((1, 1)))
        assert (state.step, state.truncated, state.terminated) == (worlds.max_steps, True, False)
        assert worlds.max_steps == {"dm_control/pendulum-swingup": 1000, "gymnasium/Pendulum-v1": 200}[name]


def test_a_termination_of_dm_control_is_one():
    world = World(make_task("dm_control/lqr-lqr_2_1").make_simulator(0), WorldConfig())
    world.reset(0.0, initial_state=np.zeros(4))
    result = world.simulator.step([0.0])
    assert (result.terminated, result.truncated) == (True, False)


@pytest.mark.parametrize("name", ["dm_control/cheetah-run", "gymnasium/HalfCheetah-v5"])
def test_action_repeat_adds_up_rewards(name):
    with Worlds(name) as fine, Worlds(name, action_repeat=4) as coarse:
        fine.reset(0, 5), coarse.reset(0, 5)
        (action,) = actions(fine.spec, 1)
        frames = [fine.step(action[None])[0] for _ in range(4)]
        (whole,) = coarse.step(action[None])
        assert_array_equal(whole.observation, frames[-1].observation)
        assert whole.reward == pytest.approx(sum(frame.reward for frame in frames))
        assert whole.stamp - coarse.spec.control_period == pytest.approx(coarse.spec.control_period)
        assert coarse.max_steps == 250


def test_a_termination_cuts_the_control_period_short():
    simulator = make_task("gymnasium/InvertedPendulum-v5", 10).make_simulator(0)
    results = [simulator.step([3.0])]
    while not results[-1].terminated:
        results.append(simulator.step([3.0]))
    assert results[-1].reward % 10 != 0
    assert simulator.step([3.0]).terminated  # and nothing happens any more
    assert simulator.step([3.0]).reward == 0.0


@pytest.mark.parametrize("name", ["dm_control/reacher-easy", "gymnasium/Hopper-v5", "gymnasium/CartPole-v1"])
def test_episodes_follow_from_the_seed(name):
    first, second = (make_task(name).make_simulator(5) for _ in range(2))
    second.reset(seed=1)  # leaves the sequence alone
    starts = [first.reset() for _ in range(3)]
    for start in starts:
        assert_array_equal(second.reset(), start)
    assert len({tuple(start) for start in starts}) == 3


@pytest.mark.parametrize("name", ["dm_control/cheetah-run", "gymnasium/Hopper-v5"])
def test_an_initial_state_is_positions_then_velocities(name):
    simulator = make_task(name).make_simulator(0)
    state = np.concatenate([simulator.qpos + 0.01, simulator.qvel + 0.02])
    observation = simulator.reset(0, state)
    assert_allclose(np.concatenate([simulator.qpos, simulator.qvel]), state)
    assert observation[-1] == pytest.approx(state[-1])
    with pytest.raises(UserError, match="must have"):
        simulator.reset(0, [1.0])
    assert_allclose(simulator.qpos, state[: len(simulator.qpos)])
    with pytest.raises(UserError, match="cannot begin in a given state"):
        make_task("gymnasium/CartPole-v1").make_simulator(0).reset(0, [0.0])


@pytest.mark.parametrize("name", ["dm_control/cheetah-run", "gymnasium/HalfCheetah-v5"])
def test_a_fault_of_the_physics_ends_the_episode(name):
    world = World(make_task(name).make_simulator(0), WorldConfig(mode="realtime"))
    world.reset(0.0)
    good = world.tick(0.0).observation
    world.simulator.data.qvel[0] = np.nan
    last = world.tick(0.0)
    assert last.truncated and world.last_fault
    assert_array_equal(last.observation, good)
    world.reset(0.0)
    assert not world.tick(0.0).last


def test_a_free_world_runs_until_it_ends():
    world = World(make_task("gymnasium/InvertedPendulum-v5").make_simulator(0), WorldConfig(mode="free"))
    clock, state = iter(range(100000)), world.reset(0.0)
    for _ in range(20):
        state = world.coast(10.0, lambda: next(clock)) or state
    assert state.terminated and world.status == Status.NEEDS_RESET


@pytest.mark.parametrize("name", ["reacher-easy", "reacher-hard"])
def test_the_reward_that_planners_know_is_that_of_dm_control(name):
    task, repeated = make_task(f"dm_control/{name}"), make_task(f"dm_control/{name}", 2)
    simulator, rng = task.make_simulator(0), np.random.default_rng(0)
    obs, rewards = [], []
    for _ in range(200):
        simulator.reset()
        finger, target = simulator.data.geom("finger").xpos, simulator.model.geom("target").pos
        target[:2] = finger[:2] + rng.uniform(-0.06, 0.06, 2)  # so near that both rewards occur
        result = simulator.step(rng.uniform(-1, 1, 2))
        obs.append(result.observation)
        rewards.append(result.reward)
    assert 0.05 < np.mean(rewards) < 0.95
    assert_allclose(task.reward(None, None, np.array(obs)), rewards)
    assert_allclose(repeated.reward(None, None, torch.tensor(np.array(obs))).numpy(), 2 * np.array(rewards))
    assert task.knows_reward and task.terminated(np.array(obs)) is None


@pytest.mark.parametrize("name", ["CartPole-v1", "InvertedPendulum-v5", "Hopper-v5", "Walker2d-v5"])
def test_what_planners_know_of_gymnasium_is_what_it_does(name):
    task = make_task(f"gymnasium/{name}")
    simulator = task.make_simulator(0)
    obs, rewards, ended = [], [], []
    for action in actions(task.spec, 2000):
        result = simulator.step(action)
        obs.append(result.observation)
        rewards.append(result.reward)
        ended.append(result.terminated)
        if result.terminated:
            simulator.reset()
    assert 0 < np.mean(ended) < 1
    assert_array_equal(task.terminated(np.array(obs)), ended)
    assert_array_equal(task.terminated(torch.tensor(np.array(obs))).numpy(), ended)
    if task.knows_reward:
        assert_allclose(task.reward(None, None, np.array(obs)), rewards)
        assert_allclose(task.reward(None, None, torch.tensor(np.array(obs))).numpy(), rewards)


def test_what_only_the_world_knows_is_said_so():
    task = make_task("dm_control/cheetah-run")
    assert not task.knows_reward and task.terminated(np.zeros((2, 17))) is None
    with pytest.raises(NotImplementedError, match="only the world knows the reward of 'dm_control/cheetah"):
        task.reward(None, None, None)
    with pytest.raises(NotImplementedError, match="terminates"):
        make_task("gymnasium/Ant-v5").terminated(None)
    with pytest.raises(NotImplementedError, match="terminates"):
        make_task("dm_control/lqr-lqr_2_1").terminated(None)


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "dm_control/cheetah-jump",
            r"unknown task 'dm_control/cheetah-jump' \(did you mean 'dm_control/cheetah-run'\?\); valid: "
            r"dm_control/acrobot-swingup, .*dm_control/walker-walk$",
        ),
        ("gymnasium/Hoper-v5", r"did you mean 'gymnasium/Hopper-v5'.*valid: .*gymnasium/CartPole-v1, "),
        ("gymnasium/FrozenLake-v1", "unknown task 'gymnasium/FrozenLake-v1'"),
        ("dm_contrl/cheetah-run", r"unknown family of tasks 'dm_contrl' \(did you mean 'dm_control'"),
        (
            "moonwalk",
            r"unknown task 'moonwalk'; valid: .*, and all of dm_control/\.\.\. and gymnasium/\.\.\.",
        ),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name, words):
    with pytest.raises(UserError, match=words):
        make_task(name)
    with pytest.raises(UserError, match=words):
        plugins.check("tasks", name)


@pytest.mark.parametrize("family, name", [("dm_control", "cheetah-run"), ("gymnasium", "Hopper-v5")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, family, name):
    for module in ("dm_control", "dm_control.suite", "gymnasium"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"tasks {family}/\.\.\. need .* extra mbrl_sim\[{family}\]"):
        make_task(f"{family}/{name}")


def test_an_environment_that_cannot_be_made_says_why():
    with pytest.raises(UserError, match="the world of 'gymnasium/Pusher-v4' cannot be made"):
        make_task("gymnasium/Pusher-v4")


def test_adapted_worlds_in_processes_are_the_same():
    name = "dm_control/reacher-easy"
    with Worlds(name, 2, seed=1) as here, Worlds(name, 2, seed=1, processes=True) as there:
        assert here.spec == there.spec
        pairs = list(zip(here.reset_all(), there.reset_all(), strict=True))
        for action in actions(here.spec, 10):
            both = np.stack([action, -action])
            pairs += zip(here.step(both), there.step(both), strict=True)
        for ours, theirs in pairs:
            assert_array_equal(ours.observation, theirs.observation)
        assert pairs[-1][0].reward == pairs[-1][1].reward


def test_native_tasks_make_their_simulator():
    simulator = make_task("pendulum").make_simulator(3)
    assert isinstance(simulator, Simulator)
    assert_array_equal(simulator.reset(), Simulator(make_task("pendulum"), 3).reset())
