"""One deterministic network: squared errors, nothing drawn."""

import dataclasses

import numpy as np
import pytest
import torch

from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.models.network import Network, NetworkConfig
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.testing import PointMass, point_mass_spec, record

SMALL = NetworkConfig(hidden=(32, 32), batch_size=64)


@pytest.fixture(scope="module")
def buffer():
    world = PointMass()
    return record(lambda o, a: world.A @ np.sin(o) + world.B @ a, world.spec, episodes=6, steps=40)


@pytest.fixture(scope="module")
def model(buffer):
    network = Network(point_mass_spec(), SMALL)
    network.fit(buffer, Budget(1000))
    return network


def test_loss_is_the_mean_squared_error_of_standard_scores(buffer, model) -> None:
    batch = buffer.slices(np.arange(50))
    with torch.no_grad():
        loss, metrics = model.loss(batch)
        obs, after = batch.obs["vector"][:, 0], batch.obs["vector"][:, 1]
        predicted = model.step(model.observe(None, None, {"vector": obs}), batch.action[:, 0]).obs
        miss = (predicted - after) / model.delta_normalizer.std
    assert float(loss) == pytest.approx(float(miss.square().mean()), rel=1e-3)
    assert metrics["train_loss"] == pytest.approx(float(loss))


def test_it_learns_what_is_not_linear(buffer, model) -> None:
    assert holdout_error(model, buffer) < 0.15
    straight = Network(point_mass_spec(), SMALL)
    assert holdout_error(straight, buffer) > 0.5, "untrained"


def test_nothing_is_drawn_and_nobody_disagrees(model) -> None:
    assert not model.capabilities.stochastic
    state = model.observe(None, None, {"vector": torch.tensor([[0.3, -0.4]])})
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        plain, noisy = model.step(state, torch.zeros(1, 1)), model.step(state, torch.zeros(1, 1), noise)
        rollout = model.imagine(state, torch.rand(1, 3, 4, 1), noise=noise)
    assert torch.equal(plain.obs, noisy.obs) and plain.disagreement is None
    assert rollout.reward.shape == (1, 3, 1, 4) and rollout.disagreement is None


def test_it_has_no_setting_of_an_ensemble() -> None:
    with pytest.raises(UserError, match=r"unknown parameter 'network\.members'"):
        build(NetworkConfig, {"members": 3}, "network")


def test_it_goes_over_the_wire(model) -> None:
    packed = pack(model, model_id="network", run_id="r", version=1)
    copy = restore(packed, point_mass_spec(), Network)
    assert copy.config == model.config
    state = copy.observe(None, None, {"vector": torch.tensor([[0.3, -0.4]])})
    with torch.no_grad():
        ours, theirs = (m.step(state, torch.ones(1, 1)).obs for m in (model, copy))
    assert torch.equal(ours, theirs)


def test_rewards_and_terminations_can_be_learned_as_by_an_ensemble() -> None:
    network = Network(point_mass_spec(), dataclasses.replace(SMALL, rewards=True, terminations=True))
    assert network.capabilities.rewards
    prediction = network.step(network.observe(None, None, {"vector": torch.zeros(2, 2)}), torch.zeros(2, 1))
    assert prediction.reward.shape == (2,) and prediction.alive.shape == (2,)
