"""Drives that obey late: futures with a delay, the delay that is fitted, and the model that remembers."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.models.residual import Residual
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.transition import Transition
from mbrl_sim.models.parameters import choose, delays
from mbrl_sim.models.physics import FittedPhysics, PhysicsConfig
from mbrl_sim.models.shooting import Segments, Shooting
from mbrl_sim.rollouts import Late, Rollouts
from mbrl_sim.simulator import Simulator, load_model
from mbrl_sim.stranger import play, stranger
from mbrl_sim.tasks.arm_reach import ArmReach
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup
from mbrl_sim.tasks.pendulum import Pendulum

torch.set_num_threads(1)

DELAY = 0.015  # of the cart's motor: 0.3 control periods, one and a half steps of the physics [s]
MASS = 0.14  # of a pole that weighs 0.1 in the MJCF [kg]
QUIET = (0.0, 0.0)


class Rail(CartpoleSwingup):
    """A cart-pole whose cart meets no end, so that finer physics are the same physics."""

    def edit(self, mjcf):
        mjcf.joint("slider").range = [-100.0, 100.0]


def late_model(*others, share=0.0, particles=3):
    """A model of the cart-pole with a delay [control periods]."""
    config = PhysicsConfig(parameters=("delay:force", *others), particles=particles)
    model = FittedPhysics(Rail().spec, config, task=Rail())
    model.draws[:, 0] = share
    return model


def heavy(folder):
    return stranger(Rail, {"mass:pole": MASS}, folder)


def simulated(task, start, actions, before, shares):
    """What the simulator does, when each step of the physics gets what is in force in it: [H, S]."""
    simulator, states = Simulator(task), []
    simulator.reset(initial_state=start)
    steps = round(task.spec.control_period / simulator.refine(1.0))
    for action in actions:
        for k in range(steps):
            old = np.clip(shares * steps - k, 0.0, 1.0)
            simulator.substep(old * before + (1.0 - old) * action)
        before = action
        states.append([*simulator.qpos, *simulator.qvel])
    return np.array(states)


# Futures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [[0.0], [0.4], [0.3], [0.99]])
def test_until_then_the_command_before_is_in_force(shares):
    """Mutations that make it fail, all tried: each period begins with its own command, or with the command
    before the first; the blend is turned round.
    """
    task, rng = CartpoleSwingup(), np.random.default_rng(0)
    actions, before = rng.uniform(-10, 10, (3, 6, 1)), rng.uniform(-10, 10, (3, 1))
    start = rng.uniform(-1, 1, (3, 4))
    path = Rollouts(task)(start, actions, late=Late(before, np.tile(shares, (3, 1))))
    for row in range(3):
        expected = simulated(task, start[row], actions[row], before[row], np.array(shares))
        assert_allclose(path[row], expected, atol=1e-9)


def test_each_drive_has_its_own_delay():
    task, rng = ArmReach(), np.random.default_rng(0)
    simulator = Simulator(task, seed=0)
    start = np.concatenate([simulator.qpos, simulator.qvel])
    actions = rng.uniform(task.spec.action_low, task.spec.action_high, (4, 6))
    before, shares = actions[::-1][0], np.array([0.0, 0.5, 0.0, 0.9, 0.25, 0.0])
    late = Late(before[None], shares[None])
    path = Rollouts(task)(start[None], actions[None], late=late)[0]
    assert_allclose(path, simulated(task, start, actions, before, shares), atol=1e-9)


def test_delays_find_their_drives():
    model = load_model(ArmReach())
    parameters = choose(model, ("delay:elbow_pitch", "mass:tool", "delay:base_yaw"), "goal", period=0.05)
    found = delays(parameters, np.array([[0.3, 1.0, 0.1], [0.4, 0.0, 0.0]]), 6)
    assert_allclose(found, [[0.1, 0.0, 0.3, 0.0, 0.0, 0.0], [0.0, 0.0, 0.4, 0.0, 0.0, 0.0]])
    assert delays(parameters[1:2], np.ones((2, 1)), 6) is None
    assert parameters[0].value(0.3) == pytest.approx(0.015)


def test_no_delay_is_no_change():
    task, rng = CartpoleSwingup(), np.random.default_rng(0)
    start, actions = rng.uniform(-1, 1, (2, 4)), rng.uniform(-10, 10, (2, 5, 1))
    rollouts = Rollouts(task)
    none = Late(np.ones((2, 1)), np.zeros((2, 1)))
    assert np.array_equal(rollouts(start, actions), rollouts(start, actions, late=none))


# Fit --------------------------------------------------------------------------------------------------------


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_delay_and_mass_are_found_from_one_noisy_episode(tmp_path, seed):
    """In a world whose physics are ten times finer than the model's."""
    told = late_model("mass:pole").fit(play(heavy(tmp_path), seed, episodes=1, delay=DELAY), Budget())
    for name, true in (("delay:force", DELAY), ("mass:pole", MASS)):
        assert told[name] == pytest.approx(true, rel=0.02)
        assert abs(told[name] - true) < 4.0 * told[f"{name}:error"]
        assert told[f"{name}:error"] < 0.02 * true


def test_without_noise_the_numbers_are_exact(tmp_path):
    """Of pushes that change where segments begin, too. A mutation that makes it fail, tried: a segment knows
    no other action before it than its own first.
    """
    data = play(heavy(tmp_path), 0, episodes=1, hold=2, noise=QUIET, delay=0.02)
    told = late_model("mass:pole").fit(data, Budget())
    assert told["delay:force"] == pytest.approx(0.02, rel=1e-3)
    assert told["mass:pole"] == pytest.approx(MASS, rel=1e-3)
    assert told["train_loss"] < 1e-4


def test_a_model_that_knows_it_foretells_better(tmp_path):
    """Over ten steps of another episode, five times at least; and one step, by the error that a fit tells."""
    world = heavy(tmp_path)
    data, other = (play(world, seed, episodes=1, noise=QUIET, delay=DELAY) for seed in (0, 7))
    late = late_model("mass:pole")
    prompt = FittedPhysics(late.spec, PhysicsConfig(parameters=("mass:pole",)), task=Rail())
    errors = [model.fit(data, Budget())["holdout_error"] for model in (late, prompt)]
    assert 5 * errors[0] < errors[1]
    batch, missed = other.slices(np.arange(10, 200, 11), 11), []
    for model in (late, prompt):
        state = model.observe(None, batch.action[:, 0], {"vector": batch.obs["vector"][:, 1]})
        foretold = model.imagine(state, batch.action[:, None, 1:], keep=("obs",)).obs[:, 0, 0]
        missed.append(float((foretold - batch.obs["vector"][:, 1:]).square().mean().sqrt()))
    assert 5 * missed[0] < missed[1]


def test_where_nothing_is_late_none_is_found(tmp_path):
    told = late_model("mass:pole").fit(play(heavy(tmp_path), 0, episodes=1), Budget())
    assert told["delay:force"] < 0.02 * CartpoleSwingup().spec.control_period
    assert told["mass:pole"] == pytest.approx(MASS, rel=0.03)


def test_a_push_that_never_changes_tells_nothing_of_a_delay():
    buffer = play(Rail(), 0, episodes=1, hold=1000)
    model = late_model(particles=64)
    told = model.fit(buffer, Budget())
    assert told["delay:force:error"] > 0.5 * CartpoleSwingup().spec.control_period
    assert 0.0 <= model.delays().min() < 0.1 and 0.9 < model.delays().max() < 1.0


def test_a_fit_goes_on_from_the_last_one_and_travels(tmp_path):
    buffer = play(Rail(), 0, episodes=1, delay=DELAY)
    model = late_model()
    first, again = model.fit(buffer, Budget()), model.fit(buffer, Budget())
    assert again["steps"] <= first["steps"]
    assert again["delay:force"] == pytest.approx(first["delay:force"], rel=1e-3)
    sent = pack(model, model_id="physics", run_id="r", version=1)
    copy = restore(sent, model.spec, FittedPhysics)
    assert copy.capabilities.recurrent
    plan = -torch.ones(1, 1, 5, 1)
    obs = {"vector": torch.tensor([[0.0, -1.0, 0.0, 0.0, 0.0]])}
    ours, theirs = (m.imagine(m.observe(None, None, obs), plan, keep=("obs",)).obs for m in (model, copy))
    assert torch.equal(ours, theirs)


def test_the_slopes_are_those_of_the_simulation():
    """Against central differences of their own, within a step of the physics and at the ends."""
    task, rng = CartpoleSwingup(), np.random.default_rng(0)
    rollouts = Rollouts(task)
    parameters = choose(rollouts.model, ("delay:force", "mass:pole"), period=task.spec.control_period)
    start, actions = rng.uniform(-1, 1, (4, 4)), rng.uniform(-10, 10, (4, 6, 1))
    before = rng.uniform(-10, 10, (4, 1))
    path = np.concatenate([start[:, None], rollouts(start, actions)], axis=1)
    segments = Segments(start, actions, rollouts.observe(path), before)
    shooting = Shooting(rollouts, parameters, segments, np.ones(5))
    for share in (0.001, 0.31, 0.989):
        x = np.array([share, 0.1])
        _, slopes = shooting.linearise(x, np.ones(5), free=False)
        assert np.abs(slopes[:-2, 0]).max() > 0.1
        for i, move in enumerate(1e-5 * np.eye(2)):
            high, low = (shooting.linearise(x + sign * move, np.ones(5), False)[0] for sign in (1, -1))
            assert_allclose(slopes[:, i], (high - low) / 2e-5, atol=1e-2)


# The state --------------------------------------------------------------------------------------------------


def test_the_state_remembers_the_last_action():
    model = late_model(share=0.5)
    obs = {"vector": torch.zeros(3, 5) + torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])}
    begin = model.observe(None, None, obs)
    assert torch.equal(begin.before, torch.zeros(3, 1))  # the safe action
    action, first = torch.tensor([[1.0], [-0.5], [0.25]]), torch.tensor([False, True, False])
    later = model.observe(begin, action, obs, first)
    assert torch.equal(later.before, torch.tensor([[1.0], [0.0], [0.25]]))
    after = model.step(later, -action)
    assert torch.equal(after.state.before, -action)
    moved = model.step(begin, -action).obs - after.obs
    assert (moved[[0, 2], 3].abs() > 0.01).all() and torch.equal(moved[1], torch.zeros(5))


def test_a_plan_goes_on_from_what_is_in_force():
    """Each candidate from the action before, with the delay of each member."""
    model, task = late_model(), CartpoleSwingup()
    model.draws[:, 0] = torch.tensor([0.0, 0.4, 0.8])
    obs, before = torch.tensor([[0.3, 1.0, 0.0, 0.5, 0.1]]).double(), torch.tensor([[0.7]]).double()
    state = model.observe(None, before, {"vector": obs})
    plans = torch.rand(1, 4, 6, 1, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    rollout = model.imagine(state, plans, keep=("obs",))
    assert torch.equal(rollout.last.before, plans[:, :, None, -1].expand(1, 4, 3, 1))
    assert (rollout.disagreement > 0).all()
    start = state.physics[0].numpy()
    for n, plan in enumerate(10 * plans[0].numpy()):
        for member, shares in enumerate(model.delays()):
            path = simulated(task, start, plan, 10 * before[0].numpy(), shares)
            expected = task.observe(path[:, :2], path[:, 2:])
            assert_allclose(rollout.obs[0, n, member, 1:].numpy(), expected, atol=1e-9)


def test_one_step_before_is_enough_to_know_what_is_in_force():
    """Held-out errors are those of a model that saw it."""
    buffer = play(Rail(), 0, episodes=2, noise=QUIET, delay=0.02)
    assert holdout_error(late_model(share=0.4), buffer) < 1e-3
    assert holdout_error(late_model(share=0.3), buffer) > 5e-3


def test_without_a_delay_there_is_no_memory():
    model = FittedPhysics(CartpoleSwingup().spec)
    state = model.observe(None, torch.ones(1, 1), {"vector": torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]])})
    assert state.before is None and not model.capabilities.recurrent
    rollout = model.imagine(state, torch.ones(1, 2, 3, 1))
    assert rollout.last.before is None and model.step(state, torch.ones(1, 1)).state.before is None


# Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["delay", "delay:wheel", "delay:slider"])
def test_an_unknown_drive_is_told(name):
    with pytest.raises(UserError, match=f"'{name}' is no parameter of this MJCF; valid: .*, delay:force$"):
        FittedPhysics(CartpoleSwingup().spec, PhysicsConfig(parameters=(name,)))


def test_a_model_with_a_delay_cannot_be_corrected():
    with pytest.raises(UserError, match="must predict the next observation from the last one alone"):
        Residual(CartpoleSwingup().spec, base=late_model())


def test_a_segment_needs_the_action_before_it():
    """15 steps are enough without a delay, and one too few with it."""
    task, buffer = Pendulum(), ReplayBuffer(Pendulum().spec)
    for step in range(16):
        obs = task.observe(np.array([0.1 * step]), np.array([2.0]))
        buffer.add(Transition(bytes(16), 0, step, obs, np.zeros(1), first=step == 0))
    FittedPhysics(task.spec).fit(buffer, Budget())
    with pytest.raises(ValueError, match="nowhere do 16 steps follow each other"):
        FittedPhysics(task.spec, PhysicsConfig(parameters=("delay:*",))).fit(buffer, Budget())
