"""The ensemble: its contract, its statistics, and what happens when its data change."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.propagation import EnsembleState
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, check_model, point_mass_spec, record
from mbrl_dynamics.transition import Transition

SMALL = EnsembleConfig(members=3, hidden=(32, 32), batch_size=64)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def buffer():
    world = PointMass()
    return record(lambda o, a: world.A @ o + world.B @ a, world.spec, episodes=6, steps=40)


def test_contract():
    check_model(lambda spec: Ensemble(spec, SMALL), budget=Budget(600))


def test_expectation_is_the_mean_of_the_members_at_each_step(buffer):
    model = Ensemble(point_mass_spec(), EnsembleConfig(members=3, hidden=(16,), propagation="expectation"))
    model.fit(buffer, Budget(50))
    plan = torch.rand(1, 2, 5, 1) * 2 - 1
    with torch.no_grad():
        rollout = model.imagine(EnsembleState(torch.tensor([[0.3, -0.4]])), plan, keep=("obs",))
        state = EnsembleState(torch.tensor([[0.3, -0.4]]))
        for t in range(5):
            state = model.step(state, plan[:, 1, t]).state
    assert rollout.obs.shape[2] == 1
    assert torch.allclose(rollout.obs[0, 1, 0, -1], state.obs[0], atol=1e-5)


@pytest.mark.parametrize("propagation", ["ts1", "tsinf"])
def test_particles_spread_as_the_members_say(buffer, propagation):
    """One step from one state: the particles are the members' predictions, whichever way they are drawn."""
    model = Ensemble(point_mass_spec(), EnsembleConfig(members=3, hidden=(16,), propagation=propagation))
    model.fit(buffer, Budget(20))
    obs, action = torch.tensor([[0.3, -0.4]]), torch.tensor([[0.7]])
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rollout = model.imagine(EnsembleState(obs), action[:, None, None], particles=6, keep=("obs",))
        each = [model.step(EnsembleState(obs, torch.tensor([m])), action).obs[0] for m in range(3)]
        sampled = (
            model.imagine(
                EnsembleState(obs),
                action[:, None, None].expand(1, 2000, 1, 1),
                particles=3,
                noise=noise,
                keep=("obs",),
            )
            .obs[0, :, :, 1]
            .flatten(0, 1)
        )
        std = model._predictor()(torch.cat([obs, action], -1).expand(3, -1, -1))[1]
    got = sorted(tuple(x.tolist()) for x in rollout.obs[0, 0, :, 1])
    want = sorted(tuple(x.tolist()) for x in each for _ in range(2))
    assert np.allclose(got, want, atol=1e-5)
    # Law of total variance: spread between the members plus each member's own noise.
    means = torch.stack(each)
    total = means.var(0, correction=0) + std[:, 0].square().mean(0)
    assert torch.allclose(sampled.var(0), total, rtol=0.1)


def test_ts1_changes_members_and_tsinf_does_not(buffer):
    """Members with constant, different drifts: after H steps TS-infinity has diverged, TS1 has averaged."""
    spread = {}
    for method in ("ts1", "tsinf"):
        model = Ensemble(point_mass_spec(), EnsembleConfig(members=3, hidden=(8,), propagation=method))
        with torch.no_grad():
            for weight in model.weights:
                weight.zero_()
            model.biases[-1][:, 0, 0] = torch.tensor([-1.0, 0.0, 1.0])
            rollout = model.imagine(
                EnsembleState(torch.zeros(1, 2)), torch.zeros(1, 400, 16, 1), particles=3, keep=("obs",)
            )
        spread[method] = float(rollout.obs[..., -1, 0].std(correction=0))
    assert spread["tsinf"] == pytest.approx(16 * (2 / 3) ** 0.5, rel=1e-4)
    assert spread["ts1"] == pytest.approx(4 * (2 / 3) ** 0.5, rel=0.1)  # a random walk grows with the root


def test_new_normalisers_leave_the_predictions_alone(buffer):
    world = PointMass()
    wide = record(lambda o, a: world.A @ o + world.B @ a, world.spec, episodes=5, steps=40, seed=1, start=4.0)
    model = Ensemble(point_mass_spec(), SMALL)
    model.fit(buffer, Budget(100))
    state, action = EnsembleState(torch.tensor([[0.3, -0.4], [2.0, 1.0]])), torch.tensor([[0.7], [-0.2]])
    with torch.no_grad():
        net = model._predictor()
        inputs = torch.cat([state.obs, action], -1).expand(3, -1, -1)
        before = net(inputs)
        model._folded = None
        model.renormalize(wide.all())
        after = model._predictor()(inputs)
    assert not torch.allclose(model.input_normalizer.std, torch.ones(3))
    assert torch.allclose(before[0], after[0], atol=1e-5)
    assert torch.allclose(before[1], after[1], rtol=1e-3)


def test_bootstrap_is_fixed_a_transition_and_poisson():
    model = Ensemble(point_mass_spec(), SMALL, seed=3)
    index = torch.arange(20_000)
    counts = model.bootstrap(index)
    assert torch.equal(counts[:, 500:600], model.bootstrap(index[500:600]))
    assert counts.mean().item() == pytest.approx(1.0, abs=0.02)
    assert counts.var().item() == pytest.approx(1.0, abs=0.05)
    assert abs(np.corrcoef(counts.numpy())[0, 1]) < 0.03, "members must not share their sample"
    assert not torch.equal(counts, Ensemble(point_mass_spec(), SMALL, seed=4).bootstrap(index))


def test_disagreement_grows_away_from_the_data(buffer):
    model = Ensemble(point_mass_spec(), SMALL)
    model.fit(buffer, Budget(400))
    with torch.no_grad():
        near = model.step(EnsembleState(torch.tensor([[0.2, 0.1]])), torch.zeros(1, 1)).disagreement
        far = model.step(EnsembleState(torch.tensor([[40.0, 40.0]])), torch.zeros(1, 1)).disagreement
    assert far > 5 * near


def test_learned_variance_is_that_of_the_noise():
    """Heteroscedastic noise on the velocity: the predicted standard deviation follows it."""
    world, rng = PointMass(), np.random.default_rng(0)
    noisy = record(
        lambda o, a: (
            world.A @ np.clip(o, -2, 2) + world.B @ a + [0.0, (0.02 if o[0] < 0 else 0.2) * rng.normal()]
        ),
        world.spec,
        episodes=20,
        steps=100,
    )
    model = Ensemble(point_mass_spec(), EnsembleConfig(members=2, hidden=(32, 32), patience=100))
    model.fit(noisy, Budget(1500))
    with torch.no_grad():
        inputs = torch.tensor([[-1.9, 0.0, 0.0], [1.9, 0.0, 0.0]]).expand(2, -1, -1)
        std = model._predictor()(inputs)[1].mean(0)[:, 1]
    assert std[0] < std[1] / 4, "a tenth, but for what the network smooths over the step at 0"
    assert std[1].item() == pytest.approx(0.2, rel=0.3)


def test_resumes_with_the_same_optimiser(buffer):
    """Two fits in a row are the same as one fit, a restart from tensors, and another fit."""
    straight = Ensemble(point_mass_spec(), SMALL, seed=1)
    straight.fit(buffer, Budget(60))
    restarted = Ensemble(point_mass_spec(), SMALL, seed=1)
    restarted.load_state_dict({k: v.clone() for k, v in straight.state_dict().items()})
    restarted.load_training_state({k: v.clone() for k, v in straight.training_state().items()})
    for model in (straight, restarted):
        model.fit(buffer, Budget(60))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, restarted.state_dict()[name]), name


def test_elites_are_the_best_on_held_out_data(buffer):
    model = Ensemble(point_mass_spec(), EnsembleConfig(members=4, elites=2, hidden=(16,)))
    model.fit(buffer, Budget(50))
    best = torch.argsort(model.holdout_errors)[:2]
    obs, action = torch.tensor([[0.3, -0.4]]), torch.tensor([[0.7]])
    with torch.no_grad():
        mean = model(obs, action).expected()[best, 0]
        delta = mean * model.delta_normalizer.std + model.delta_normalizer.mean
        rollout = model.imagine(EnsembleState(obs), action[:, None, None], keep=("obs",))
    assert rollout.obs.shape[2] == 2
    assert torch.allclose(rollout.obs[0, 0, :, 1], obs + delta, atol=1e-5)


def test_predicted_angles_stay_on_the_circle():
    spec = Spec(
        "angle",
        (Element("a_cos", encoding="cos"), Element("a_sin", encoding="sin"), Element("w", "rad/s")),
        (Element("torque", "N*m", -1.0, 1.0),),
        0.05,
    )
    assert spec.circles == (0,)
    model = Ensemble(spec, SMALL)
    with torch.no_grad():
        obs = model.imagine(
            EnsembleState(torch.tensor([[1.0, 0.0, 0.0]])), torch.rand(1, 3, 9, 1), keep=("obs",)
        ).obs
        stepped = model.step(EnsembleState(torch.tensor([[1.0, 0.0, 0.0]])), torch.rand(1, 1)).obs
    assert torch.allclose(obs[..., :2].norm(dim=-1), torch.ones(()), atol=1e-5)
    assert torch.allclose(stepped[..., :2].norm(dim=-1), torch.ones(()), atol=1e-5)


def test_known_reward_ends_with_the_task():
    """After termination nothing is earned any more."""

    class Ending(PointMass):
        def reward(self, obs, action, next_obs):
            return 0 * obs[..., 0] + 1.0

        def terminated(self, next_obs):
            return next_obs[..., 0] > 0.25

    task = Ending()
    model = WithTask(PointMass(), task)
    rollout = model.imagine(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1, 8, 1))
    # positions 0.1, 0.2, 0.3: the third step crosses the line, is still paid, and is the last
    assert rollout.reward[0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    other = PointMass()
    other.spec = Spec("x", other.spec.observation, other.spec.action, control_period=1.0)
    with pytest.raises(ValueError, match="not those of the task"):
        WithTask(PointMass(), other)


# Learned reward and termination -----------------------------------------------------------------------------


def rewarded(episodes: int = 12, steps: int = 40, known: float = 1.0) -> ReplayBuffer:
    """The point mass with its reward on a scale of its own; the task ends where the position is beyond 1."""
    world, spec = PointMass(), point_mass_spec()
    rng, buffer = np.random.default_rng(0), ReplayBuffer(spec)
    for episode in range(episodes):
        obs = rng.uniform(-0.9, 0.9, 2)
        buffer.add(Transition(bytes(16), episode, 0, obs, np.zeros(1), first=True))
        for step in range(1, steps + 1):
            action = rng.uniform(-1.0, 1.0, 1)
            reward = 100.0 + 10.0 * float(world.reward(obs, action, obs))
            obs = world.A @ obs + world.B @ action
            ended = bool(abs(obs[0]) > 1.0)
            told = reward if rng.uniform() < known else math.nan
            buffer.add(
                Transition(bytes(16), episode, step, obs, spec.unscale_action(action), told, terminated=ended)
            )
            if ended:
                break
    return buffer


LEARNED = EnsembleConfig(members=3, elites=2, hidden=(64, 64), rewards=True, terminations=True)


@pytest.mark.parametrize("known", [1.0, 0.5])
def test_reward_and_termination_can_be_learned_too(known: float) -> None:
    """Also where the world tells only some of its rewards."""
    model = Ensemble(point_mass_spec(), LEARNED, seed=0)
    model.fit(rewarded(40, known=known), Budget(1500))
    assert model.capabilities.rewards
    obs = torch.tensor([[0.1, 0.0], [0.5, -0.3], [0.99, 0.8], [-0.98, -0.9]])
    action = torch.tensor([[0.2], [-0.5], [0.3], [0.0]])
    prediction = model.step(model.observe(None, None, {"vector": obs}), action)
    truth = 100.0 + 10.0 * PointMass().reward(obs, action, obs)
    assert (prediction.reward - truth).abs().max() < 2.0
    assert prediction.alive[:2].min() > 0.9 and prediction.alive[2:].max() < 0.5


def test_learned_rewards_are_the_same_in_both_ways_to_imagine() -> None:
    config = dataclasses.replace(LEARNED, terminations=False, propagation="expectation")
    model = Ensemble(point_mass_spec(), config, seed=0)
    model.fit(rewarded(), Budget(100))
    state = model.observe(None, None, {"vector": torch.tensor([[0.3, 0.1]])})
    plans = torch.rand(1, 4, 6, 1) * 2 - 1
    with torch.no_grad():
        fast = model.imagine(state, plans, particles=1)
        slow = imagine_by_steps(model, state, plans, 1, None, None, ())
    torch.testing.assert_close(fast.reward, slow.reward, rtol=1e-4, atol=1e-4)


def test_imagined_rewards_count_only_while_the_episode_may_go_on() -> None:
    model = Ensemble(point_mass_spec(), LEARNED, seed=0)
    model.fit(rewarded(40), Budget(600))
    state = model.observe(None, None, {"vector": torch.tensor([[0.9, 1.5]])})  # about to leave
    with torch.no_grad():
        rollout = model.imagine(state, torch.zeros(1, 1, 8, 1))
    assert rollout.alive[0, 0, :, 0].min() == 1.0 and rollout.alive[0, 0, :, -1].max() < 0.1
    assert rollout.reward[0, 0, :, -1].max() < 15.0


def test_a_change_of_normalisers_keeps_what_is_predicted_of_rewards() -> None:
    model = Ensemble(point_mass_spec(), LEARNED, seed=0)
    model.fit(rewarded(4), Budget(50))
    state = model.observe(None, None, {"vector": torch.tensor([[0.3, 0.1]])})
    with torch.no_grad():
        before = model.step(state, torch.tensor([[0.5]]))
        model._folded = None
        model.renormalize(rewarded(30).all())
        after = model.step(state, torch.tensor([[0.5]]))
    torch.testing.assert_close(after.reward, before.reward, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("fit_on", "expected"), [("all", 0.8), ("half", 0.0), ("latest", 1.0)])
def test_demonstrations_count_as_much_as_all_the_rest_where_told_so(fit_on: str, expected: float) -> None:
    """The same action moved a robot by -1 in 60 demonstrated steps and by +1 in 540 of its own: the best
    prediction is the mean over what the model is fitted on.
    """
    spec = Spec("t", (Element("x"),), (Element("f", "", -1.0, 1.0),), 0.05)
    buffer = ReplayBuffer(spec, demonstrators=("person",), fit_on=fit_on)
    random = np.random.default_rng(0)
    moves = [("person", -1.0)] * 60 + [("mpc", 1.0)] * 540
    for episode, (controller, move) in enumerate(moves):
        x = random.uniform(-1, 1, size=1)
        for step in range(2):
            seen = Transition(bytes(16), episode, step, x + step * move, np.zeros(1), first=step == 0)
            buffer.add(dataclasses.replace(seen, controller_id=controller))
    model = Ensemble(spec, EnsembleConfig(members=1, hidden=(8,), batch_size=64, learning_rate=1e-2))
    model.fit(buffer, Budget(200))
    with torch.no_grad():
        predicted = model.step(EnsembleState(torch.zeros(1, 1)), torch.zeros(1, 1)).obs
    assert float(predicted) == pytest.approx(expected, abs=0.35)
