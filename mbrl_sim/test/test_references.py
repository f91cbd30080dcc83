"""Our tasks are those of the literature: the same actions from the same state give the same numbers."""

import gymnasium
import numpy as np
import pytest
from dm_control import suite
from numpy.testing import assert_allclose

from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.cartpole_pets import CartpolePets
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup
from mbrl_sim.tasks.pendulum import Pendulum
from mbrl_sim.tasks.pendulum_swingup import PendulumSwingup

DM_CONTROL = [
    (CartpoleSwingup, "cartpole", 10.0),
    (PendulumSwingup, "pendulum", 1.0),
]


@pytest.mark.parametrize("task_class, domain, gear", DM_CONTROL)
def test_dm_control(task_class, domain, gear):
    simulator = Simulator(task_class(), seed=0)
    reference = suite.load(domain, "swingup", task_kwargs={"random": 0})
    rng = np.random.default_rng(0)
    frames = simulator.task.action_repeat
    for episode in range(3):
        observation = simulator.reset()
        reference.reset()
        with reference.physics.reset_context():
            reference.physics.data.qpos[:], reference.physics.data.qvel[:] = simulator.qpos, simulator.qvel
        assert_allclose(observation, _flat(reference.task.get_observation(reference.physics)), atol=1e-6)
        # The third episode pushes one way, so that the cart meets the end of its rail.
        controls = np.ones(100) if episode == 2 else rng.uniform(-1, 1, 100)
        for control in controls:
            steps = [reference.step([control]) for _ in range(frames)]
            result = simulator.step([gear * control])
            assert_allclose(result.observation, _flat(steps[-1].observation), atol=1e-6)
            assert result.reward == pytest.approx(sum(step.reward for step in steps), abs=1e-6)


@pytest.mark.parametrize("task_class, domain, gear", DM_CONTROL)
def test_dm_control_episodes_are_as_long(task_class, domain, gear):
    reference = suite.load(domain, "swingup")
    task = task_class()
    assert task.max_steps * task.spec.control_period == pytest.approx(
        reference._step_limit * reference.control_timestep()
    )


def test_dm_control_begins_alike():
    """The spread of the initial states is that of dm_control."""
    reference = suite.load("cartpole", "swingup", task_kwargs={"random": 0})
    simulator = Simulator(CartpoleSwingup(), seed=0)
    ours, theirs = [], []
    for _ in range(300):
        simulator.reset()
        reference.reset()
        ours.append([*simulator.qpos, *simulator.qvel])
        theirs.append([*reference.physics.data.qpos, *reference.physics.data.qvel])
    assert_allclose(np.mean(ours, 0), np.mean(theirs, 0), atol=0.005)
    assert_allclose(np.std(ours, 0), np.std(theirs, 0), atol=0.003)


def _flat(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()])


def test_gymnasium_pendulum():
    simulator = Simulator(Pendulum(), seed=0)
    reference = gymnasium.make("Pendulum-v1").unwrapped
    rng = np.random.default_rng(0)
    for episode in range(5):
        simulator.reset()
        reference.reset(seed=episode)
        reference.state = np.array([simulator.qpos[0], simulator.qvel[0]])
        limited = 0
        for _ in range(200):
            # Odd episodes pump energy in until the speed limit is reached.
            torque = np.copysign(2.0, simulator.qvel[0]) if episode % 2 else rng.uniform(-2, 2)
            result = simulator.step([torque])
            _, reward, *_ = reference.step(np.array([torque]))
            theta, speed = reference.state
            limited += abs(speed) == 8.0
            assert_allclose(result.observation, [np.cos(theta), np.sin(theta), speed], atol=1e-6)
            assert result.reward == pytest.approx(reward, abs=1e-6)
        assert limited > 10 or not episode % 2


PETS_MASS = [10.47197551, 5.01859164]
PETS_INERTIA = [[0.1267109, 0.1267109, 0.04817109], [0.18874977, 0.18874977, 0.0059065]]
PETS_STATES = [  # position, angle, velocities after 10, 20, ... steps; the fifth is beyond the rail
    [0.649992258, 0.568946251, 0.00156902196, -2.82425108],
    [1.04142692, -0.338341468, 0.439957463, -3.20310321],
    [1.52521730, -0.425179515, 1.69064842, 2.28894524],
    [2.07772197, 0.0470689456, 2.46262659, 3.61295862],
    [2.53821805, -0.0372370947, 0.0318989967, -2.73191020],
    [2.13363591, -1.02844694, -0.0131805821, 2.17866865],
]


def test_pets_cartpole_has_the_same_bodies():
    """Masses and inertias [kg, kg m^2] of the cart-pole that PETS and mbrl-lib use."""
    model = Simulator(CartpolePets()).model
    assert_allclose(model.body_mass[1:], PETS_MASS, rtol=1e-6)
    assert_allclose(model.body_inertia[1:], PETS_INERTIA, rtol=1e-5)
    assert_allclose(model.body_ipos[2], [0.0005, 0.0, -0.3], atol=1e-12)
    assert_allclose(model.dof_damping, [1.0, 1.0])


def test_pets_cartpole_moves_the_same():
    """Recorded from the MJCF that mbrl-lib ships: control 3 sin(0.7 t) in step t."""
    simulator = Simulator(CartpolePets())
    simulator.reset(initial_state=[0.1, -0.2, 0.3, 0.4])
    found = []
    for step in range(60):
        simulator.step([300.0 * np.sin(0.7 * step)])
        if step % 10 == 9:
            found.append([*simulator.qpos, *simulator.qvel])
    assert_allclose(found, PETS_STATES, atol=1e-6)


def test_pets_cartpole_reward():
    """exp(-|tip - goal|^2 / 0.6^2) - 0.01 control^2, with the tip at (x - 0.6 sin, -0.6 cos)."""
    simulator = Simulator(CartpolePets(), seed=0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        control = rng.uniform(-3, 3)
        result = simulator.step([100 * control])
        (position, angle), _ = simulator.qpos, simulator.qvel
        tip = np.array([position - 0.6 * np.sin(angle), -0.6 * np.cos(angle)])
        distance = np.sum((tip - [0.0, 0.6]) ** 2)
        assert result.reward == pytest.approx(np.exp(-distance / 0.6**2) - 0.01 * control**2, abs=1e-9)
