"""Random numbers that candidates have in common: who shares what, and what that is good for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mbrl_dynamics.draws import in_common, integers, normal, permutation, uniform
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.gmm import GMM
from mbrl_dynamics.models.gp import GP, GPConfig
from mbrl_dynamics.models.latent import Latent
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.models.rssm import RSSM
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.types import Prediction


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flat", [False, True])
def test_particles_of_all_candidates_have_the_same_numbers_and_no_others(flat):
    batch, candidates, particles = 2, 3, 5
    rows = (batch * candidates * particles,) if flat else (batch, candidates * particles)
    draws: list[Callable[[], Tensor]] = [
        lambda: normal((*rows, 4), seeded()),
        lambda: normal((7, *rows, 4), seeded(), before=1).movedim(0, -1),
        lambda: uniform(rows, seeded()).unsqueeze(-1),
        lambda: uniform((7, *rows), seeded(), before=1).movedim(0, -1),
        lambda: uniform((*rows, 4, 6), seeded(), after=2),
        lambda: integers(10**6, rows, seeded()).unsqueeze(-1),
    ]
    for draw in draws:
        with in_common(batch, candidates):
            shared = draw().reshape(batch, candidates, particles, -1)
        apart = draw().reshape(batch, candidates, particles, -1)
        assert torch.equal(shared, shared[:, :1].expand_as(shared))
        assert len(shared[:, 0].unique()) == shared[:, 0].numel(), "particles and states have their own"
        assert len(apart.unique()) == apart.numel(), "outside the block nothing is shared"


def test_what_belongs_to_no_candidate_is_drawn_as_ever():
    with in_common(2, 3):
        assert torch.equal(normal((7, 2), seeded()), torch.randn(7, 2, generator=seeded()))
        assert torch.equal(permutation(2, 7, seeded()), torch.randperm(14, generator=seeded()))


def test_a_common_order_exchanges_members_alike_and_leaves_each_its_rows():
    members, groups, share = 4, 6, 3
    seen = torch.zeros(members * share, members * share)
    for seed in range(500):
        with in_common(2, 3):
            order = permutation(members, groups * share, seeded(seed))
        assert torch.equal(order.sort().values, torch.arange(members * groups * share))
        order = order.view(members, groups, share)
        assert torch.equal(order // share % groups, torch.arange(groups).view(1, groups, 1).expand_as(order))
        member, particle = order // (groups * share), order % share
        assert torch.equal(member, member[:, :1].expand_as(member))
        assert torch.equal(particle, particle[:, :1].expand_as(particle))
        seen[torch.arange(members * share), (member * share + particle)[:, 0].flatten()] += 1
    assert (seen - 500 / 12).abs().max() < 5 * (500 / 12) ** 0.5, "each goes anywhere as often"


class Windy(ObservationModel):
    """The point mass in gusts of wind."""

    capabilities = Capabilities(stochastic=True, rewards=True)

    def __init__(self) -> None:
        super().__init__(point_mass_spec())
        self.mass = PointMass()

    def step(self, state: Tensor, action: Tensor, noise: Any = None) -> Prediction:
        after = self.mass.step(state, action).state
        if noise is not None:
            after = after + 0.3 * normal(after.shape, noise)
        return Prediction(after, after, self.mass.reward(state, action, after))


def test_a_difference_of_two_returns_has_less_variance_and_the_same_mean():
    """Two plans that differ by 0.05 in each step, of 20, from one state, a thousand times."""
    plans = torch.stack([torch.full((20, 1), 0.1), torch.full((20, 1), 0.15)])[None]
    start = torch.tensor([[0.5, 0.0]])

    def differences(common: bool) -> Tensor:
        found, noise = [], seeded()
        for _ in range(1000):
            if common:
                with in_common(1, 2):
                    returns = Windy().imagine(start, plans, noise=noise).returns()
            else:
                returns = Windy().imagine(start, plans, noise=noise).returns()
            found.append(returns[0, 1, 0] - returns[0, 0, 0])
        return torch.stack(found).double()

    apart, common = differences(False), differences(True)
    assert apart.var() > 20 * common.var()
    error = (apart.var() / len(apart) + common.var() / len(common)).sqrt()
    assert (apart.mean() - common.mean()).abs() < 4 * error


def some_weights(model: Any) -> Any:
    """Other weights than those that a model begins with, which may be all alike."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=seeded(len(name))))
    return model


def drawn_gp(spec: Any) -> GP:
    model = GP(spec, GPConfig(points=4, draws=4, features=16))
    model.weight.normal_(generator=seeded())
    return model


MODELS = {
    "ts1": lambda spec: some_weights(Ensemble(spec, EnsembleConfig(propagation="ts1"))),
    "tsinf": lambda spec: some_weights(Ensemble(spec, EnsembleConfig(propagation="tsinf"))),
    "mixture": lambda spec: some_weights(Ensemble(spec, EnsembleConfig(components=3))),
    "ending": lambda spec: some_weights(Ensemble(spec, EnsembleConfig(terminations=True, rewards=True))),
    "gp": drawn_gp,
    "gmm": lambda spec: GMM(spec),
    "rssm": lambda spec: some_weights(RSSM(spec)),
    "latent": lambda spec: some_weights(Latent(spec)),
}


@pytest.mark.parametrize("particles", [1, 3, 5, 6])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_plan_twice_is_worth_the_same_in_every_model(name, particles):
    """Whatever the number of particles, also where it does not fit the number of members."""
    model, plan = MODELS[name](point_mass_spec()), torch.rand(2, 1, 6, 1, generator=seeded()) * 2 - 1
    plans, start = plan.expand(-1, 3, -1, -1), {"vector": torch.tensor([[0.5, -0.2], [-0.3, 0.1]])}
    with torch.no_grad(), in_common(2, 3):
        state = model.observe(None, None, start)
        rollout = model.imagine(state, plans, particles=particles, noise=seeded(1), keep=("obs",))
    obs = rollout.obs
    assert torch.allclose(obs, obs[:, :1].expand_as(obs), atol=1e-5)
    assert particles == 1 or obs[:, 0, :, -1].std(1).min() > 0.0, "but its particles go their own ways"


@pytest.mark.parametrize("particles", [2, 3, 4, 6])
def test_a_particle_of_every_candidate_follows_the_same_function(particles):
    model, start = drawn_gp(point_mass_spec()), {"vector": torch.zeros(1, 2)}
    plans = torch.zeros(1, 5, 3, 1)
    with torch.no_grad():
        rollout = imagine_by_steps(
            model, model.observe(None, None, start), plans, particles, None, None, ("obs",)
        )
    expected = torch.arange(particles).remainder(4).expand(1, 5, -1)
    assert torch.equal(rollout.last.draw, expected)
    assert torch.allclose(rollout.obs, rollout.obs[:, :1].expand_as(rollout.obs), atol=1e-5)
