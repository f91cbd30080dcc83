"""The simulator as a model: exact, whatever the order in which futures are asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.testing import check_model, point_mass_spec
from mbrl_dynamics.transition import Transition
from mbrl_sim.models.physics import FittedPhysics, PhysicsConfig
from mbrl_sim.models.simulator import SimulatorModel, WorldState
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.base import MujocoTask
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup
from mbrl_sim.tasks.pendulum import Pendulum

torch.set_num_threads(1)


class PointMassTask(MujocoTask):
    """The point mass of `mbrl_dynamics.testing` in MuJoCo: Runge and Kutta's method is exact for it."""

    name = "point_mass"
    mjcf = Path(__file__).with_name("fakes") / "point_mass.xml"
    observation, action = point_mass_spec().observation, point_mass_spec().action
    frame = 0.1

    def sample_initial_state(self, rng, model):
        return rng.uniform(-1, 1, 1), rng.uniform(-1, 1, 1)

    def observe(self, qpos, qvel):
        return np.concatenate([qpos, qvel], axis=-1)

    def pose(self, obs):
        return obs[..., :1]

    def motion(self, obs):
        return obs[..., 1:]


class Late(FittedPhysics):
    """The point mass, with a drive that obeys late in each of three ways, whatever was found."""

    Config = PhysicsConfig

    def __init__(self, spec):
        config = PhysicsConfig(parameters=("mass:mass", "delay:force"))
        super().__init__(spec, config, task=PointMassTask())

    def fit(self, *args):
        told = super().fit(*args)
        self.draws[:, 1] = torch.tensor([0.3, 0.4, 0.5])
        return told


class Silent(PointMassTask):
    """A point mass whose velocity is not told."""

    def motion(self, obs):
        raise NotImplementedError


def played(task, steps=50, seed=0):
    """Observations [steps + 1, D] and actions [steps, A], SI, of a random episode."""
    simulator, rng = Simulator(task, seed), np.random.default_rng(seed)
    actions = rng.uniform(task.spec.action_low, task.spec.action_high, (steps, task.spec.action_dim))
    first = simulator.reset()
    return np.array([first, *(simulator.step(action).observation for action in actions)]), actions


def buffer_of(task, steps=50):
    obs, actions = played(task, steps)
    buffer = ReplayBuffer(task.spec)
    buffer.add(Transition(bytes(16), 0, 0, obs[0], actions[0], first=True))
    for k in range(steps):
        buffer.add(Transition(bytes(16), 0, k + 1, obs[k + 1], actions[k]))
    return buffer


def test_contract():
    check_model(lambda spec: SimulatorModel(spec, task=PointMassTask()))


def test_contract_with_a_delay():
    check_model(Late)


def test_it_predicts_what_the_simulator_does(task):
    """All tasks, among them the motion of the arm's goal."""
    obs, actions = played(task)
    model = SimulatorModel(task.spec)
    plan = torch.from_numpy(task.spec.scale_action(actions))[None, None]
    start = model.observe(None, None, {"vector": torch.from_numpy(obs[:1])})
    rollout = model.imagine(start, plan, keep=("obs",))
    assert_allclose(rollout.obs[0, 0, 0].numpy(), obs, rtol=0, atol=1e-9)


def test_a_cart_meets_the_end_of_its_rail_as_in_the_simulator():
    """The solver of constraints begins with what it found a step before; the futures must do so too."""
    task = CartpoleSwingup()
    simulator = Simulator(task, seed=0)
    obs = [simulator.reset(), *(simulator.step([10.0]).observation for _ in range(60))]
    assert max(seen[0] for seen in obs) > 1.8
    model = SimulatorModel(task.spec)
    state = model.observe(None, None, {"vector": torch.from_numpy(obs[0])[None]})
    rollout = model.imagine(state, torch.ones(1, 1, 60, 1, dtype=torch.double), keep=("obs",))
    assert_allclose(rollout.obs[0, 0, 0].numpy(), obs, rtol=0, atol=1e-6)


def test_a_pendulum_is_kept_from_turning_faster_than_in_the_simulator():
    task = Pendulum()
    simulator = Simulator(task)
    obs = [simulator.reset(initial_state=[1.0, 7.0]), *(simulator.step([2.0]).observation for _ in range(20))]
    assert max(seen[2] for seen in obs) == 8.0
    model = SimulatorModel(task.spec)
    state = model.observe(None, None, {"vector": torch.from_numpy(obs[0])[None]})
    rollout = model.imagine(state, torch.ones(1, 1, 20, 1, dtype=torch.double), keep=("obs",))
    assert_allclose(rollout.obs[0, 0, 0].numpy(), obs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_neighbours_change_nothing(threads):
    task = CartpoleSwingup()
    obs = torch.tensor(played(task)[0][:3])
    plans = torch.rand(3, 7, 12, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    many = SimulatorModel(task.spec)
    state = many.observe(None, None, {"vector": obs})
    torch.set_num_threads(threads)
    try:
        all_at_once = many.imagine(state, plans, keep=("obs",)).obs
    finally:
        torch.set_num_threads(1)
    for b in range(3):
        for n in range(7):
            alone = WorldState(state.physics[b : b + 1])
            one = SimulatorModel(task.spec).imagine(alone, plans[b : b + 1, n : n + 1], keep=("obs",)).obs
            assert torch.equal(one[0, 0], all_at_once[b, n])


def test_actions_are_limited_as_in_the_world():
    task = Pendulum()
    model = SimulatorModel(task.spec)
    state = model.observe(None, None, {"vector": torch.tensor([[0.0, 1.0, 0.0]])})
    assert torch.equal(model.step(state, torch.tensor([[3.0]])).obs, model.step(state, torch.ones(1, 1)).obs)


def test_a_fault_of_the_physics_is_not_a_number_from_there_on():
    """MuJoCo would leave the rest of such a future as it was, which a planner could take for rest."""
    model = SimulatorModel(CartpoleSwingup().spec)
    obs = torch.tensor(
        [[0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1e11], [0.0, 1.0, 0.0, torch.nan, 0.0]]
    )
    state = model.observe(None, None, {"vector": obs.double()})
    path = model.imagine(state, torch.zeros(3, 1, 5, 1), keep=("obs",)).obs[:, 0, 0, 1:]
    assert torch.isfinite(path[0]).all()
    assert path[1:, :, 0].isnan().all()
    assert torch.isfinite(model.step(WorldState(state.physics[:1]), torch.zeros(1, 1)).obs).all()


def test_a_planner_sees_the_tasks_reward():
    task = Pendulum()
    model = WithTask(SimulatorModel(task.spec), task)
    obs = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    rollout = model.imagine(model.observe(None, None, {"vector": obs}), torch.zeros(2, 1, 1, 1), particles=2)
    assert rollout.reward.shape == (2, 1, 2, 1)
    assert_allclose(rollout.reward[:, 0, 0, 0], [-(np.pi**2), 0.0], atol=1e-5)


def test_a_fit_tells_how_well_it_predicts():
    task = CartpoleSwingup()
    model = SimulatorModel(task.spec)
    metrics = model.fit(buffer_of(task), Budget())
    assert metrics["train_loss"] == 0.0
    assert metrics["holdout_error"] < 1e-5  # the buffer's numbers are of single precision
    with pytest.raises(ValueError, match="empty"):
        model.fit(ReplayBuffer(task.spec), Budget())


def test_it_travels_as_a_snapshot():
    spec = CartpoleSwingup().spec
    sent = pack(SimulatorModel(spec), model_id="simulator", run_id="r", version=1)
    assert isinstance(restore(sent, spec, SimulatorModel), SimulatorModel)
    assert len(sent.weights) < 1000


def test_it_follows_the_control_period_of_the_spec():
    task = CartpoleSwingup(action_repeat=2)
    assert SimulatorModel(task.spec).task.action_repeat == 2
    obs, actions = played(task, 5)
    model = SimulatorModel(task.spec)
    state = model.observe(None, None, {"vector": torch.from_numpy(obs[:1])})
    after = model.step(state, torch.from_numpy(task.spec.scale_action(actions[:1]))).obs
    assert_allclose(after[0].numpy(), obs[1], atol=1e-12)


@pytest.mark.parametrize("name", ["maze", "nowhere", "os:getcwd", "dm_control/cheetah-run"])
def test_a_task_without_an_mjcf_is_told(name):
    spec = Spec(name, point_mass_spec().observation, point_mass_spec().action, 0.1)
    with pytest.raises(UserError, match=f"no MJCF to simulate: '{name}'"):
        SimulatorModel(spec)


def test_a_spec_of_another_world_is_told():
    spec = CartpoleSwingup().spec
    with pytest.raises(UserError, match="not those of the world's spec"):
        SimulatorModel(Spec(spec.task, spec.observation[:-1], spec.action, spec.control_period))
    with pytest.raises(UserError, match="pose and motion"):
        SimulatorModel(point_mass_spec(), task=Silent())
