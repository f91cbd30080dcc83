"""A Gaussian mixture as a model: conditioning against closed forms and samples, and two outcomes."""

import sys

import numpy as np
import pytest
import torch

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.gmm import GMM, Conditional, GMMConfig, fit_mixture, whitening
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec, record

LINE = Spec("line", (Element("x"),), (Element("f", "", -1.0, 1.0),), 0.05)


def joint(components: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, means and covariances of a mixture over `size` numbers."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(components, size, size))
    covariance = root @ root.transpose(0, 2, 1) / size + 0.1 * np.eye(size)
    weight = rng.dirichlet(3 * np.ones(components))
    return tuple(torch.from_numpy(x) for x in (weight, 1.5 * rng.normal(size=(components, size)), covariance))


def test_one_component_is_linear_regression_in_closed_form() -> None:
    weight, mean, covariance = joint(1, 5)
    conditional = Conditional.of(weight, mean, covariance, 3)
    x, (m, c) = np.random.default_rng(1).normal(size=(4, 3)), (mean[0].numpy(), covariance[0].numpy())
    gain = c[3:, :3] @ np.linalg.inv(c[:3, :3])
    np.testing.assert_allclose(conditional.mean(torch.from_numpy(x)), m[3:] + (x - m[:3]) @ gain.T)
    noise = conditional.noise[0].numpy()
    np.testing.assert_allclose(noise @ noise.T, c[3:, 3:] - gain @ c[:3, 3:], atol=1e-12)


def test_conditioning_agrees_with_samples_of_the_joint() -> None:
    """Of two million samples those near x. Two mutations that fail it: the mixture's own weights instead of
    responsibilities, and densities without their determinants.
    """
    weight, mean, covariance = joint(3, 3)
    rng = np.random.default_rng(0)
    which = rng.choice(3, size=2_000_000, p=weight.numpy())
    samples = _sampled(mean.numpy(), covariance.numpy(), which, rng.normal(size=(len(which), 3)))
    conditional = Conditional.of(weight, mean, covariance, 1)
    for at in (-1.5, 0.0, 1.5):
        near = samples[np.abs(samples[:, 0] - at) < 0.02, 1:]
        x = torch.full((len(near), 1), at, dtype=torch.float64)
        share = np.bincount(which[np.abs(samples[:, 0] - at) < 0.02], minlength=3) / len(near)
        np.testing.assert_allclose(conditional.responsibility(x[:1])[0], share, atol=0.02)
        np.testing.assert_allclose(conditional.mean(x[:1])[0], near.mean(0), atol=0.04)
        drawn = conditional.draw(x, torch.Generator().manual_seed(0)).numpy()
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(near.T), atol=0.06)


def _sampled(mean, covariance, which, normal) -> np.ndarray:
    samples = np.empty_like(normal)
    for k, lower in enumerate(np.linalg.cholesky(covariance)):
        samples[which == k] = mean[k] + normal[which == k] @ lower.T
    return samples


def test_whitened_data_are_white_and_what_does_not_vary_stays() -> None:
    rng = np.random.default_rng(0)
    data = torch.from_numpy(np.c_[1e3 * rng.normal(size=500), 1e-3 * rng.normal(size=500), np.zeros(500)])
    data[:, 1] += 1e-6 * data[:, 0]
    data -= data.mean(0)
    white = data @ whitening(data)
    spread = white.T @ white / len(data)
    torch.testing.assert_close(spread[1:, 1:], torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(spread[0, 0]) < 1e-9


def test_draws_are_one_outcome_or_the_other() -> None:
    rng = np.random.default_rng(0)
    fork = record(
        lambda o, a: 0.5 * o + (1.0 if rng.uniform() < 0.7 else -1.0) + 0.05 * rng.normal(size=1),
        LINE,
        10,
        60,
    )
    model = GMM(LINE, GMMConfig(components=6))
    model.fit(fork, Budget())
    state, action = torch.zeros(4000, 1), torch.zeros(4000, 1)
    drawn = model.step(state, action, torch.Generator().manual_seed(0)).obs[:, 0].numpy()
    assert (np.abs(np.abs(drawn) - 1.0) < 0.3).mean() > 0.95
    assert (drawn > 0).mean() == pytest.approx(0.7, abs=0.07)
    assert float(model.step(state[:1], action[:1]).obs) == pytest.approx(0.4, abs=0.15)


def test_which_line_is_followed_depends_on_where_one_is() -> None:
    """The slope changes at 0. A mutation that fails it: responsibilities that do not ask for x."""
    bent = record(lambda o, a: np.where(o < 0, 0.2 * o, 0.9 * o) + 0.1 * a, LINE, 60, 10, start=2.0)
    model = GMM(LINE, GMMConfig(components=8))
    metrics = model.fit(bent, Budget())
    assert metrics["holdout_error"] < 0.1 and metrics["components"] >= 2
    x = torch.tensor([[-1.5], [-0.8], [0.8], [1.5]])
    after = model.step(x, torch.zeros(4, 1)).obs
    torch.testing.assert_close(after, torch.where(x < 0, 0.2 * x, 0.9 * x), atol=0.15, rtol=0)


def test_data_of_any_scale_and_an_element_that_never_changes() -> None:
    """A mutation that fails it: components that have no data assume a singular covariance."""
    spec = Spec("s", (Element("big"), Element("still"), Element("small")), (Element("f", "", -1, 1),), 0.1)
    gain = np.array([1e4, 0.0, 1e-4])
    buffer = record(lambda o, a: np.array([0.9, 1.0, 0.9]) * o * [1, 0, 1] + gain * a, spec, 5, 40)
    model = GMM(spec)
    metrics = model.fit(buffer, Budget())
    assert metrics["holdout_error"] < 0.002 and metrics["raised"] == 0
    state = torch.tensor([[2e3, 0.0, -3e-5]])
    after = model.step(state, torch.tensor([[0.5]])).obs
    torch.testing.assert_close(after, torch.tensor([[6.8e3, 0.0, 2.3e-5]]), rtol=0.002, atol=1e-8)


@pytest.mark.parametrize("steps", [2, 5, 60])
def test_few_data_are_enough_to_begin_and_it_goes_over_the_wire(steps: int) -> None:
    world = PointMass()
    few = record(lambda o, a: world.A @ o + world.B @ a, world.spec, episodes=1, steps=steps)
    model = GMM(point_mass_spec(), seed=2)
    model.fit(few, Budget())
    copy = restore(pack(model, model_id="gmm", run_id="r", version=1), point_mass_spec(), GMM)
    state = torch.tensor([[0.3, -0.4]])
    ours, theirs = (m.step(state, torch.ones(1, 1)).obs for m in (model, copy))
    assert ours.isfinite().all() and torch.equal(ours, theirs)


def test_least_variance_is_raised_where_needed_and_counted(monkeypatch) -> None:
    tried = []

    class Fails:
        def __init__(self, **settings):
            tried.append(settings["reg_covar"])

        def fit(self, white):
            if len(tried) < 3:
                raise ValueError("some components have ill-defined empirical covariance")
            return self

    monkeypatch.setattr("sklearn.mixture.BayesianGaussianMixture", Fails)
    _, raised = fit_mixture(np.zeros((5, 2)), GMMConfig(), 0)
    assert raised == 2 and tried == pytest.approx([1e-6, 1e-5, 1e-4])
    tried.clear()
    monkeypatch.setattr("mbrl_dynamics.models.gmm.RAISES", 1)
    with pytest.raises(ValueError, match="no Gaussian mixture can be fitted"):
        fit_mixture(np.zeros((5, 2)), GMMConfig(), 0)


def test_without_scikit_learn_it_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(UserError, match="learns by scikit-learn: pip install scikit-learn"):
        fit_mixture(np.zeros((5, 2)), GMMConfig(), 0)
