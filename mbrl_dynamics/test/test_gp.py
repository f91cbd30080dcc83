"""Gaussian processes: against closed forms, with much data, far from data, and as functions that stay."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models import pathwise
from mbrl_dynamics.models.gp import GP, GPConfig, GPState
from mbrl_dynamics.models.pathwise import (
    Functions,
    Kernel,
    cholesky,
    condition,
    inducing_points,
    learn_kernel,
)
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.testing import PointMass, point_mass_spec, record

KERNEL = Kernel(
    torch.tensor([[0.8, 1.5], [2.0, 0.7]], dtype=torch.float64),
    torch.tensor([1.0, 2.5], dtype=torch.float64),
    torch.tensor([0.01, 0.04], dtype=torch.float64),
)
DRAWS, FEATURES = 1000, 4000  # so many that their errors are small
SMALL = GPConfig(points=60, features=32, steps=40)


def data(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    smooth = torch.stack([torch.sin(2 * x[:, 0]) + x[:, 1], torch.cos(x.sum(-1))], dim=-1)
    return x, smooth + 0.1 * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def functions(
    x, y, points, kernel: Kernel = KERNEL, draws: int = DRAWS, features: int = FEATURES
) -> Functions:
    generator = torch.Generator().manual_seed(1)
    frequency = torch.randn(features, 2, generator=generator, dtype=torch.float64)
    weight, raised = condition(kernel, x, y, points, frequency, draws, generator)
    assert raised == 0
    return Functions(kernel.scale, frequency, points, weight)


def covariance(d: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = KERNEL.scale[d].numpy()
    distance = ((a[:, None] / scale - b[None] / scale) ** 2).sum(-1)
    return float(KERNEL.amplitude[d]) * np.exp(-0.5 * distance)


def closed_form(d: int, x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance (Rasmussen and Williams, 2006, equations 2.23 and 2.24)."""
    gain = np.linalg.solve(
        covariance(d, x, x) + float(KERNEL.noise[d]) * np.eye(len(x)), covariance(d, x, at)
    )
    return gain.T @ y[:, d], covariance(d, at, at) - covariance(d, at, x) @ gain


def test_mean_and_draws_are_those_of_the_closed_form() -> None:
    """Two mutations that fail it: draws without their noise ε, a prior that is not subtracted at the data."""
    x, y = data(40)
    at = torch.cat([data(6, seed=5)[0], torch.tensor([[9.0, -9.0]], dtype=torch.float64)])
    values = functions(x, y, x)(at).numpy()
    for d in range(2):
        mean, expected = closed_form(d, x.numpy(), y.numpy(), at.numpy())
        np.testing.assert_allclose(values[d, :, -1], mean, atol=1e-5)
        drawn = values[d, :, :-1]
        error = 4 * np.sqrt(expected.diagonal() / DRAWS)
        assert (np.abs(drawn.mean(-1) - mean) < error + 1e-6).all()
        np.testing.assert_allclose(np.cov(drawn), expected, atol=0.1 * float(KERNEL.amplitude[d]))
        variance = drawn.var(-1)
        np.testing.assert_allclose(variance[-1], KERNEL.amplitude[d], rtol=0.15)  # far away: the prior's
        np.testing.assert_allclose(variance, expected.diagonal(), rtol=0.25)


def test_inducing_points_are_those_of_titsias() -> None:
    x, y = data(300)
    z, at = x[:15], data(6, seed=5)[0]
    values = functions(x, y, z)(at).numpy()
    for d in range(2):
        kzx, kzz, kza = (covariance(d, z.numpy(), b.numpy()) for b in (x, z, at))
        noise = float(KERNEL.noise[d])
        inner = kzz + kzx @ kzx.T / noise
        mean = kza.T @ np.linalg.solve(inner, kzx @ y[:, d].numpy()) / noise
        left = np.linalg.solve(kzz, kza) - np.linalg.solve(inner, kza)
        variance = float(KERNEL.amplitude[d]) - (kza * left).sum(0)
        np.testing.assert_allclose(values[d, :, -1], mean, atol=1e-5)
        np.testing.assert_allclose(values[d, :, :-1].var(-1), variance, rtol=0.25)


def test_few_points_are_nearly_as_good_as_all() -> None:
    x, y = data(800)
    at = 0.7 * data(200, seed=5)[0]
    every, few = (functions(x, y, z, draws=200)(at) for z in (x, x[:80]))
    assert (every[..., -1] - few[..., -1]).abs().mean() < 0.02
    few_std, std = few[..., :-1].std(-1).mean(), every[..., :-1].std(-1).mean()
    assert float(few_std / std) == pytest.approx(1.0, abs=0.3)


def left(x: torch.Tensor, z: torch.Tensor) -> np.ndarray:
    """Share of the prior variances that values at z leave at x, over the outputs."""
    total = np.zeros(len(x))
    for d in range(2):
        gain = np.linalg.solve(covariance(d, z.numpy(), z.numpy()), covariance(d, z.numpy(), x.numpy()))
        known = (gain * covariance(d, z.numpy(), x.numpy())).sum(0)
        total += 1.0 - known / float(KERNEL.amplitude[d])
    return total


def test_inducing_points_are_where_most_is_left() -> None:
    """Two mutations that fail it: the first points as they come, one output of two."""
    x, _ = data(300)
    points = inducing_points(KERNEL, x, 12)
    for count in range(1, 12):
        rest = left(x, points[:count])
        assert rest[(x == points[count]).all(1).numpy()] == pytest.approx(rest.max(), abs=1e-8)
    every = inducing_points(KERNEL, x, 60)
    assert left(x, every).mean() < 0.5 * left(x, x[:60]).mean()


def test_what_is_the_same_is_no_inducing_point_twice() -> None:
    x, _ = data(5)
    points = inducing_points(KERNEL, x.repeat(20, 1), 12)
    assert len(points) == 5 and {tuple(z) for z in points.tolist()} == {tuple(z) for z in x.tolist()}


def test_kernel_finds_noise_and_what_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(150, 2, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * x[:, :2]) + torch.tensor([0.05, 0.3], dtype=torch.float64) * noise
    kernel, metrics = learn_kernel(x, y, steps=150, rate=0.1, noise_floor=0.01, budget=Budget())
    assert kernel.noise.sqrt().tolist() == pytest.approx([0.05, 0.3], rel=0.3)
    scale = kernel.scale
    assert scale[0, 0] < scale[0, 1:].min() / 2 and scale[1, 1] < scale[1, [0, 2]].min() / 2
    assert metrics["steps"] == 150 and metrics["jitter"] == 0


@pytest.fixture(scope="module")
def buffer():
    world = PointMass()
    return record(lambda o, a: world.A @ np.sin(o) + world.B @ a, world.spec, episodes=4, steps=40)


@pytest.fixture(scope="module")
def model(buffer) -> GP:
    process = GP(point_mass_spec(), SMALL)
    metrics = process.fit(buffer, Budget())
    assert metrics["holdout_error"] < 0.05 and metrics["jitter"] == 0
    return process


def test_what_is_not_known_grows_away_from_the_data(model) -> None:
    with torch.no_grad():
        near, far = (
            model.step(GPState(torch.full((1, 2), at)), torch.zeros(1, 1)).disagreement for at in (0.1, 6.0)
        )
    assert far > 10 * near


def test_particles_keep_their_function() -> None:
    """Functions that are constant drifts: what is not known adds up along a trajectory, and does not average
    away. A mutation that fails it: a function drawn anew at each step.
    """
    model = GP(point_mass_spec(), SMALL)
    model.frequency.zero_()
    drift = torch.randn(SMALL.draws, generator=torch.Generator().manual_seed(0)).double()
    model.weight[0, 0, :-1] = drift  # the cosine of zero
    with torch.no_grad():
        rollout = model.imagine(
            GPState(torch.zeros(1, 2)), torch.zeros(1, 1, 16, 1), particles=SMALL.draws, keep=("obs",)
        )
    torch.testing.assert_close(rollout.obs[0, 0, :, -1, 0], 16 * drift.float(), rtol=1e-4, atol=1e-4)
    assert float(rollout.disagreement[0, 0, 0]) == pytest.approx(float(drift.std()) / 2, rel=1e-3)
    assert torch.equal(rollout.last.draw[0, 0], torch.arange(SMALL.draws))


@pytest.mark.parametrize("particles", [None, 1])
def test_a_single_particle_follows_the_mean_and_is_no_surer_of_it(model, particles) -> None:
    state, plans = GPState(torch.tensor([[0.5, -0.2]])), torch.full((1, 3, 4, 1), 0.3)
    with torch.no_grad():
        rollout = model.imagine(state, plans, particles=particles, keep=("obs",))
        for t in range(4):
            prediction = model.step(state, plans[:, 0, t])  # without noise: the posterior mean
            state = prediction.state
            torch.testing.assert_close(rollout.obs[0, :, 0, t + 1], state.obs.expand(3, -1))
            torch.testing.assert_close(rollout.disagreement[0, :, t], prediction.disagreement.expand(3))


def test_with_noise_particles_are_functions_by_default(model) -> None:
    with torch.no_grad():
        rollout = model.imagine(
            GPState(torch.zeros(1, 2)), torch.zeros(1, 2, 3, 1), noise=torch.Generator().manual_seed(0)
        )
    assert torch.equal(rollout.last.draw[0, 1], torch.arange(SMALL.draws))


def test_a_state_without_a_function_draws_one_where_there_is_noise(model) -> None:
    state, action = GPState(torch.full((4000, 2), 3.0)), torch.zeros(4000, 1)
    with torch.no_grad():
        drawn = model.step(state, action, torch.Generator().manual_seed(0)).obs
        count = model.config.draws
        each = model.step(GPState(torch.full((count, 2), 3.0), torch.arange(count)), action[:count]).obs
    noise = model.delta_normalizer.std * model.noise.sqrt().float()
    torch.testing.assert_close(drawn.var(0), each.var(0, correction=0) + noise.square(), rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4])
def test_it_goes_over_the_wire_whatever_it_has_seen(count: int) -> None:
    world = PointMass()
    few = record(lambda o, a: world.A @ o + world.B @ a, world.spec, episodes=count, steps=30)
    process = GP(point_mass_spec(), SMALL, seed=3)
    process.fit(few, Budget(5))
    copy = restore(pack(process, model_id="gp", run_id="r", version=1), point_mass_spec(), GP)
    state = GPState(torch.tensor([[0.3, -0.4]]), torch.tensor([2]))
    with torch.no_grad():
        ours, theirs = (m.step(state, torch.ones(1, 1)).obs for m in (process, copy))
    assert torch.equal(ours, theirs)


def test_a_fit_is_the_same_again(buffer, model) -> None:
    again = GP(point_mass_spec(), SMALL)
    again.fit(
        record(lambda o, a: o, point_mass_spec(), 1, 30), Budget(5)
    )  # what it was before does not matter
    again.fit(buffer, Budget())
    torch.testing.assert_close(again.weight, model.weight)


def test_a_million_transitions_are_refused_before_anything_starts(buffer, monkeypatch) -> None:
    monkeypatch.setattr("mbrl_dynamics.models.gp.learn_kernel", None)
    with pytest.raises(
        UserError, match=r"at most 100 transitions \(parameter 'limit'\), but there are 160: take"
    ):
        GP(point_mass_spec(), GPConfig(limit=100)).fit(buffer, Budget())
    with pytest.raises(UserError, match=r"parameter 'gp\.limit' is 1000000, but it should be less than"):
        build(GPConfig, {"limit": 1_000_000}, "gp")
    with pytest.raises(UserError, match=r"parameter 'gp\.points' is 1000000, but it should be less than"):
        build(GPConfig, {"points": 1_000_000}, "gp")


def test_a_matrix_that_is_nearly_singular_is_regularised_and_counted() -> None:
    lower, raised = cholesky(torch.ones(2, 30, 30, dtype=torch.float64))
    assert raised == 0 and lower.isfinite().all()
    indefinite = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    indefinite[0, 0, 1] = indefinite[0, 1, 0] = 1.0 + 3e-6
    lower, raised = cholesky(indefinite)
    assert raised == 3 and lower.isfinite().all()
    with pytest.raises(ValueError, match="no Cholesky factor"):
        cholesky(-indefinite)


def test_what_was_raised_is_reported(buffer, monkeypatch) -> None:
    once = pathwise.cholesky
    monkeypatch.setattr(pathwise, "cholesky", lambda matrix: (once(matrix)[0], 2))
    assert GP(point_mass_spec(), SMALL).fit(buffer, Budget(2))["jitter"] == 4


def test_a_fit_can_be_broken_off(buffer) -> None:
    def stop(metrics):
        raise RuntimeError(f"after {metrics['steps']}")

    with pytest.raises(RuntimeError, match="after 10"):
        GP(point_mass_spec(), SMALL).fit(buffer, Budget(), stop)


def test_without_gpytorch_it_says_what_to_do(buffer, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    with pytest.raises(UserError, match="GPyTorch, which is missing: pip install gpytorch"):
        GP(point_mass_spec(), SMALL).fit(buffer, Budget())


def test_only_a_fit_loads_its_library() -> None:
    models = "mbrl_dynamics.models.gp, mbrl_dynamics.models.gmm"
    code = f"import sys, {models}; print({{'gpytorch', 'sklearn'}} & {{*sys.modules}})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
