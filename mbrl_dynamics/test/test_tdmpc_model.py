"""TD-MPC2's latent model: what the paper defines, the contract, and what bad data get."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mbrl_dynamics import snapshot
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.tdmpc import LatentDynamics, LatentDynamicsConfig, simplices
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.testing import PointMass, check_model, point_mass_spec, record
from mbrl_dynamics.transition import Transition

SMALL = LatentDynamicsConfig(latent=32, encoder=(32,), hidden=(32, 32), learning_rate=3e-3)


def make(spec: Spec, **options: object) -> LatentDynamics:
    return LatentDynamics(spec, replace(SMALL, **options))  # type: ignore[type-var]


def experience(episodes: int = 4, steps: int = 20) -> ReplayBuffer:
    world = PointMass()
    return record(
        lambda o, a: world.A @ o + world.B @ a, point_mass_spec(), episodes, steps, reward=world.reward
    )


def test_simplicial_normalisation_is_a_softmax_of_each_eight():
    x = torch.randn(3, 16)
    z = simplices(x)
    by_hand = x[1, 8:].exp() / x[1, 8:].exp().sum()
    assert torch.allclose(z[1, 8:], by_hand, atol=1e-6)
    assert torch.allclose(z.view(3, 2, 8).sum(-1), torch.ones(3, 2), atol=1e-6)


def test_contract():
    check_model(make, budget=Budget(400), tolerance=0.2)


def test_losses_weigh_later_steps_less_and_padding_not_at_all():
    model, buffer = make(point_mass_spec()), experience()
    batch = buffer.slices(np.array([0, 30]), 3)  # the first is padded with two steps
    assert batch.valid.tolist() == [[False, False, True], [True, True, True]]
    expected = torch.tensor([[0.0, 0.0, 0.25], [1.0, 0.5, 0.25]]).T / 3
    assert torch.allclose(model.weights(batch), expected)
    path, seen = model.unroll(batch)
    start = model.encode(batch.obs["vector"][0, 0])
    assert torch.equal(path[2, 0], path[0, 0]) and torch.allclose(path[0, 0], start, atol=1e-6)
    alone = model.next(path[2, :1], batch.action[:1, 2])
    assert torch.allclose(path[3, :1], alone, atol=1e-6)
    error = ((path[1:] - seen).square().mean(-1) * expected).sum(0).mean()
    assert torch.allclose(model.losses(path, seen, batch)["consistency_loss"], 20.0 * error)


def test_rewards_that_are_not_known_are_left_out():
    model, batch = make(point_mass_spec()), experience().slices(np.array([30, 31]), 3)
    holes = batch.reward.clone()
    holes[0, 1] = torch.nan
    known = model.losses(*model.unroll(batch), batch)["reward_loss"]
    some = model.losses(*model.unroll(batch), replace(batch, reward=holes))["reward_loss"]
    assert some.isfinite() and some < known


def test_termination_is_learned_and_ends_what_is_imagined():
    spec, rng = point_mass_spec(), np.random.default_rng(0)
    buffer = ReplayBuffer(spec)
    for episode in range(60):  # an episode ends on leaving the unit interval
        obs = np.array([rng.uniform(-0.9, 0.9), 0.0])
        buffer.add(Transition(bytes(16), episode, 0, obs, np.zeros(1), first=True))
        for k in range(1, 20):
            action = rng.choice([-2.0, 2.0], 1)
            obs = obs + np.array([0.25 * action[0], 0.0])
            out = bool(abs(obs[0]) > 1.0)
            buffer.add(Transition(bytes(16), episode, k, obs, action, 1.0, terminated=out))
            if out:
                break
    model = make(spec, termination=True)
    model.fit(buffer, Budget(1000))
    latent = model.encode(torch.tensor([[0.0, 0.0], [1.4, 0.0]]))
    inside, outside = model.going_on(latent)
    assert inside > 0.8 and outside < 0.3
    plans = torch.rand(2, 4, 5, 1) * 2 - 1
    with torch.no_grad():
        fast, plain = model.imagine(latent, plans), imagine_by_steps(model, latent, plans, 1, None, None, ())
    assert torch.allclose(fast.alive, plain.alive, atol=1e-5)
    assert torch.allclose(fast.reward, plain.reward, atol=1e-4)


def test_a_snapshot_of_it_can_be_restored():
    model = make(point_mass_spec())
    packed = snapshot.pack(model, model_id="tdmpc", run_id="r", version=1)
    again = snapshot.restore(packed, model.spec)
    obs = {"vector": torch.randn(2, 2)}
    assert torch.equal(again.observe(None, None, obs), model.observe(None, None, obs))


def test_data_without_rewards_are_refused():
    buffer = record(lambda o, a: o, point_mass_spec(), 1, 5)
    with pytest.raises(ValueError, match="learns from rewards, but the data hold none"):
        make(point_mass_spec()).fit(buffer, Budget(10))
    with pytest.raises(ValueError, match="empty"):
        make(point_mass_spec()).fit(ReplayBuffer(point_mass_spec()), Budget(10))


def test_a_latent_that_is_no_multiple_of_eight_is_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        LatentDynamicsConfig(latent=30)
