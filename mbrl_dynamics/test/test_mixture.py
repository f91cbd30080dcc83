"""Mixtures as what the ensemble's members say: likelihoods, draws, and a world with two outcomes."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, logsumexp

from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.mixture import Mixture
from mbrl_dynamics.models.propagation import EnsembleState
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import check_model, point_mass_spec, record

FORK = Spec("fork", (Element("x"),), (Element("f", "", -1.0, 1.0),), 0.05)


def some(components: int, outputs: int = 2, rows: int = 5) -> Mixture:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, components, outputs)
    mean, log_var = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return Mixture(mean, log_var, torch.randn(shape[:2], generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("components", [1, 3])
def test_likelihood_is_that_of_scipy(components: int) -> None:
    mixture, target = some(components), torch.randn(5, 2, dtype=torch.float64)
    std = np.exp(0.5 * mixture.log_var.numpy())
    each = stats.norm.logpdf(target.numpy()[:, None], mixture.mean.numpy(), std).sum(-1)
    log_likelihood = logsumexp(each + log_softmax(mixture.logit.numpy(), -1), -1)
    expected = -2 * log_likelihood / 2 - np.log(2 * np.pi)  # twice, an output, without the constant
    np.testing.assert_allclose(mixture.nll(target).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("components", [1, 3])
def test_density_spread_and_draws_in_other_units(components: int) -> None:
    """Two mutations that fail it: the spread of the means left out, and log variances scaled once."""
    shift, unit = torch.tensor([5.0, -2.0]).double(), torch.tensor([0.1, 3.0]).double()
    plain = some(components, rows=1)
    mixture, target = plain.scaled(shift, unit), torch.tensor([[5.1, 1.0]]).double()
    inside = (-0.5 * 2 * plain.nll((target - shift) / unit)) - np.log(2 * np.pi) - unit.log().sum()
    torch.testing.assert_close(mixture.log_prob(target), inside)
    many = Mixture(*(x.expand(200_000, *x.shape[1:]) for x in mixture))
    drawn = many.draw(torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), mixture.expected()[0], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), mixture.variance()[0], rtol=0.03, atol=0)


def test_what_is_not_known_does_not_count() -> None:
    mixture, target = some(3), torch.tensor([[0.3, torch.nan]] * 5, dtype=torch.float64)
    first = Mixture(mixture.mean[..., :1], mixture.log_var[..., :1], mixture.logit)
    torch.testing.assert_close(mixture.nll(target), 0.5 * first.nll(target[:, :1]))
    assert mixture.miss(target)[:, 1].isnan().all() and mixture.miss(target)[:, 0].isfinite().all()


def test_components_are_drawn_by_their_weights() -> None:
    mixture = Mixture(*(x[:1].expand(20_000, *x.shape[1:]) for x in some(3)))
    mean, std = mixture.component(torch.Generator().manual_seed(0))
    drawn = torch.cdist(mean, mixture.mean[0]).argmin(-1)
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(share.double(), torch.softmax(mixture.logit[0], -1), atol=0.015, rtol=0)
    torch.testing.assert_close(std, torch.exp(0.5 * mixture.log_var[0])[drawn])
    torch.testing.assert_close(mean.mean(0), mixture.expected()[0], atol=0.03, rtol=0)


@pytest.fixture(scope="module")
def fork():
    """It goes left or right by one, as it likes; more often to the right."""
    rng = np.random.default_rng(0)
    return record(
        lambda o, a: o + (1.0 if rng.uniform() < 0.7 else -1.0) + 0.05 * rng.normal(size=1),
        FORK,
        episodes=10,
        steps=60,
    )


def fitted(fork, components: int, steps: int = 5000) -> Ensemble:
    config = EnsembleConfig(
        members=2, elites=2, hidden=(32, 32), components=components, learning_rate=3e-3, patience=100
    )
    model = Ensemble(FORK, config)
    model.fit(fork, Budget(steps))
    return model


@pytest.fixture(scope="module")
def two(fork) -> Ensemble:
    return fitted(fork, 2)


def test_two_outcomes_need_two_components(fork, two) -> None:
    """Two mutations that fail it: components that are drawn alike, or only the first."""
    score, draws = {}, {}
    obs, action = torch.zeros(4000, 1), torch.zeros(4000, 1)
    for components, model in ((1, fitted(fork, 1)), (2, two)):
        with torch.no_grad():
            batch = fork.all()
            score[components] = float(model(*model.targets(batch)[:2]).nll(model.targets(batch)[2]).mean())
            drawn = model.step(EnsembleState(obs), action, torch.Generator().manual_seed(0)).obs
            draws[components] = drawn[:, 0].numpy()
            mean = model.step(EnsembleState(obs[:1]), action[:1]).obs
        assert float(mean) == pytest.approx(0.4, abs=0.15), "the mean of both outcomes"
    assert score[2] < score[1] - 2.0, "twice the negative log likelihood"
    assert (np.abs(np.abs(draws[2]) - 1.0) < 0.3).mean() > 0.95, "each draw is one of the outcomes"
    assert (draws[2] > 0).mean() == pytest.approx(0.7, abs=0.07)
    assert (np.abs(np.abs(draws[1]) - 1.0) < 0.3).mean() < 0.6, "one Gaussian lies between them"


def test_both_ways_to_imagine_draw_both_outcomes(two) -> None:
    state, plans = EnsembleState(torch.zeros(1, 1)), torch.zeros(1, 500, 1, 1)
    with torch.no_grad():
        rollout = two.imagine(
            state, plans, particles=2, noise=torch.Generator().manual_seed(0), keep=("obs",)
        )
    after = rollout.obs[..., -1, 0].flatten()
    assert float((after > 0).float().mean()) == pytest.approx(0.7, abs=0.07)
    assert float(((after.abs() - 1).abs() < 0.3).float().mean()) > 0.95


def test_new_normalisers_leave_all_components_alone(fork) -> None:
    model = fitted(fork, 3, steps=300)
    other = record(lambda o, a: 0.9 * o + 3.0, FORK, episodes=3, steps=20, start=5.0)
    state, action = EnsembleState(torch.tensor([[0.3], [-2.0]])), torch.tensor([[0.5], [0.0]])
    predictions = []
    for renew in (False, True):
        if renew:
            model._folded = None
            model.renormalize(other.all())
        with torch.no_grad():
            predictions += [model.step(state, action).obs]
            predictions += [model.step(state, action, torch.Generator().manual_seed(1)).obs]
    torch.testing.assert_close(predictions[0], predictions[2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(predictions[1], predictions[3], atol=1e-3, rtol=1e-3)


def test_contract() -> None:
    config = EnsembleConfig(members=3, hidden=(32, 32), batch_size=64, components=2)
    check_model(lambda spec: Ensemble(spec, config), budget=Budget(600))


def test_rewards_are_part_of_each_component() -> None:
    model = Ensemble(point_mass_spec(), EnsembleConfig(members=2, hidden=(8,), components=3, rewards=True))
    state = model.observe(None, None, {"vector": torch.zeros(4, 2)})
    prediction = model.step(state, torch.zeros(4, 1), torch.Generator().manual_seed(0))
    assert prediction.reward.shape == (4,) and prediction.obs.shape == (4, 2)
