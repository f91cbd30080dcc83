"""The sampling planners: their contract, their details, and the noise that they draw."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from mbrl_dynamics.plugins import find, names
from mbrl_dynamics.testing import PointMass
from mbrl_planner.interfaces import Guess
from mbrl_planner.planners.cem import CEM, CEMConfig
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.planners.mppi import MPPI, MPPIConfig
from mbrl_planner.planners.noise import colored_noise, filtered_noise, truncated_noise
from mbrl_planner.planners.pddm import PDDM, PDDMConfig
from mbrl_planner.planners.random_shooting import RandomShooting
from mbrl_planner.planners.sampling import Scored, Search
from mbrl_planner.testing import check_planner, lqr_return, stationary_gain


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", names("planners"))
def test_contract(name):
    # a tree for each step takes its time
    few = {"rrt": {"candidates": 50}, "mcts": {"simulations": 40}}.get(name, {})
    planner = find("planners", name)
    check_planner(lambda: planner(planner.Config(**few)))


def search(mean, std=0.5, elites=None):
    mean = torch.as_tensor(mean, dtype=torch.float32)
    return Search(mean, torch.full_like(mean, std), elites, mean, *(torch.zeros(len(mean)) for _ in range(3)))


def test_lqr_reference_is_the_optimum():
    """No linear gain near scipy's does better than the recursion says, and scipy's own reaches it."""
    world, start = PointMass(), np.array([0.8, -0.3])

    def roll(gain):
        x, total = start, 0.0
        for _ in range(400):
            u = -gain @ x
            total -= x @ world.Q @ x + u @ world.R @ u
            x = world.A @ x + world.B @ u
        return total

    best = lqr_return(start, 400)
    assert roll(stationary_gain()) == pytest.approx(best, rel=1e-9)
    for change in ([[0.1, 0.0]], [[0.0, 0.1]], [[-0.1, 0.05]]):
        assert roll(stationary_gain() + np.array(change)) < best


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("length", [1, 2, 7, 24, 25])
def test_coloured_noise_has_unit_variance_at_each_time(exponent, length):
    noise = colored_noise((40_000,), length, exponent, torch.Generator().manual_seed(0))
    assert noise.shape == (40_000, length)
    assert torch.allclose(noise.var(0), torch.ones(length), atol=0.05)
    assert torch.allclose(noise.mean(0), torch.zeros(length), atol=0.03)


def test_coloured_noise_has_the_spectrum_it_was_asked_for():
    noise = colored_noise((20_000,), 64, 1.0, torch.Generator().manual_seed(0)).double().numpy()
    power = (np.abs(np.fft.rfft(noise)) ** 2).mean(0)[1:-1]
    frequency = np.arange(1, 32)
    slope = np.polyfit(np.log(frequency), np.log(power), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.05)


def test_guess_shifts_by_what_was_done_and_repeats_the_end():
    guess = Guess(torch.arange(5.0).reshape(1, 5, 1), torch.arange(10.0).reshape(1, 2, 5, 1))
    assert guess.shifted(2).mean.flatten().tolist() == [2, 3, 4, 4, 4]
    assert guess.shifted(9).mean.flatten().tolist() == [4] * 5
    assert guess.shifted(1).elites[0, 1].flatten().tolist() == [6, 7, 8, 9, 9]


def test_cem_narrows_at_a_bound_instead_of_piling_up_on_it():
    """PETS' cap: near a bound, candidates stay within the distance to it."""
    planner = CEM(CEMConfig(candidates=500))
    drawn = planner.propose(search(torch.full((1, 3, 1), 0.9)), 0, torch.Generator().manual_seed(0))
    assert drawn.max() <= 1.0
    assert (drawn == 1.0).float().mean() < 0.01
    assert drawn.min() >= 0.9 - 0.1 - 1e-6


def test_icem_never_tries_fewer_than_twice_the_elites():
    planner = ICEM(ICEMConfig(candidates=40, elites=10, decay=4.0, iterations=5))
    counts = [planner.propose(search(torch.zeros(1, 6, 1)), k, None).shape[1] for k in range(5)]
    assert counts == [40, 20, 20, 20, 21], "and the mean joins the last iteration"


def test_icem_tries_old_elites_again_and_executes_the_best_candidate():
    world, planner = (
        PointMass(),
        ICEM(ICEMConfig(candidates=20, iterations=1, elites=4, horizon=20, std=0.01)),
    )
    good = planner.plan(world, torch.tensor([[1.0, 0.0]]), None)
    best = ICEM(ICEMConfig(candidates=300, iterations=6, horizon=20)).plan(
        world, torch.tensor([[1.0, 0.0]]), None
    )
    elites = best.actions[:, None].expand(-1, 4, -1, -1)
    kept = planner.plan(world, torch.tensor([[1.0, 0.0]]), Guess(torch.zeros(1, 20, 1), elites), shift=0)
    assert kept.value > good.value
    assert torch.equal(kept.actions, best.actions)


def test_mppi_weighs_by_return_relative_to_the_best():
    planner = MPPI(MPPIConfig(temperature=1.0))
    actions = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    for offset in (0.0, 1e6):  # an offset of all returns must change nothing, and overflow nothing
        returns = torch.tensor([[0.0, 1.0, 2.0]]) + offset
        mean, _, _ = planner.refit(search(torch.zeros(1, 1, 1)), Scored(actions, returns, torch.zeros(1, 3)))
        std = math.sqrt(2 / 3)
        weights = np.exp((np.arange(3) - 2) / std)
        assert mean.item() == pytest.approx(float(weights @ [0.0, 0.5, 1.0] / weights.sum()), rel=1e-3)


def test_mppi_ignores_candidates_without_a_number():
    planner = MPPI(MPPIConfig())
    actions = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    returns = torch.tensor([[-torch.inf, 1.0, 1.0]])
    mean, _, _ = planner.refit(search(torch.zeros(1, 1, 1)), Scored(actions, returns, torch.zeros(1, 3)))
    assert mean.item() == pytest.approx(0.75)


def test_cem_fits_mean_and_variance_of_the_elites_smoothed():
    planner = CEM(CEMConfig(candidates=6, elites=3, momentum=0.2))
    actions = torch.rand(1, 6, 2, 1, generator=torch.Generator().manual_seed(0))
    returns = torch.tensor([[3.0, -1.0, 5.0, 0.0, 4.0, -2.0]])
    old = search(torch.full((1, 2, 1), 0.1), std=0.5)
    mean, std, _ = planner.refit(old, Scored(actions, returns, torch.zeros(1, 6)))
    elites = actions.numpy()[0, [0, 2, 4]]
    assert mean[0].numpy() == pytest.approx(0.2 * 0.1 + 0.8 * elites.mean(0), rel=1e-5)
    assert std[0].numpy() == pytest.approx(np.sqrt(0.2 * 0.25 + 0.8 * elites.var(0)), rel=1e-5)


def test_pddm_filters_its_noise_as_the_paper_does():
    """Equation 5 step by step, and the amplitude that it leaves."""
    beta, white = 0.6, torch.randn(50_000, 12, generator=torch.Generator().manual_seed(3)).numpy()
    expected, before = np.zeros_like(white), np.zeros(len(white))
    for t in range(white.shape[1]):
        before = expected[:, t] = beta * white[:, t] + (1 - beta) * before
    drawn = filtered_noise((50_000,), 12, beta, torch.Generator().manual_seed(3))
    assert drawn.numpy() == pytest.approx(expected, abs=1e-5)
    assert float(drawn[:, 0].std()) == pytest.approx(beta, rel=0.02)
    assert float(drawn[:, -1].std()) == pytest.approx(math.sqrt(beta / (2 - beta)), rel=0.02)
    plain = filtered_noise((3,), 5, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(plain, torch.randn(3, 5, generator=torch.Generator().manual_seed(1)))


def test_truncated_noise_is_a_gaussian_without_its_tails():
    drawn = truncated_noise((50, 400), 2.0, torch.Generator().manual_seed(3)).double().flatten().numpy()
    assert np.abs(drawn).max() <= 2.0
    assert scipy.stats.kstest(drawn, scipy.stats.truncnorm(-2.0, 2.0).cdf).pvalue > 0.01


def test_pddm_perturbs_its_plan_by_that_noise():
    planner = PDDM(PDDMConfig(candidates=7, beta=0.3))
    drawn = planner.propose(search(torch.full((2, 4, 3), 0.1), std=0.05), 0, torch.Generator().manual_seed(0))
    noise = filtered_noise((2, 7, 3), 4, 0.3, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn, 0.1 + 0.05 * noise.movedim(-1, -2))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_pddm_weighs_by_return_whatever_the_rewards_scale(scale):
    planner, actions = PDDM(PDDMConfig(gamma=2.0)), torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    returns = np.array([0.0, 1.0, 2.0])
    scored = Scored(actions, torch.from_numpy(scale * returns)[None].float(), torch.zeros(1, 3))
    weights = np.exp(2.0 * returns / returns.std())
    expected = weights @ [0.0, 0.5, 1.0] / weights.sum()
    assert planner.refit(search(torch.zeros(1, 1, 1)), scored)[0].item() == pytest.approx(expected, rel=1e-3)


def test_random_shooting_draws_uniformly_and_never_gets_worse():
    planner = RandomShooting(RandomShooting.Config(candidates=4001, iterations=4))
    drawn = planner.propose(search(torch.full((1, 5, 2), 0.25)), 0, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], torch.full((1, 5, 2), 0.25)), "the best so far is tried again"
    share = torch.histc(drawn[:, 1:], bins=10, min=-1.0, max=1.0) / drawn[:, 1:].numel()
    assert torch.allclose(share, torch.full((10,), 0.1), atol=0.01)
    assert drawn.abs().max() <= 1.0
    start, values = torch.tensor([[1.0, 0.0]]), []
    for iterations in (1, 2, 4, 8):
        few = RandomShooting(RandomShooting.Config(candidates=16, iterations=iterations))
        values.append(float(few.plan(PointMass(), start, noise=torch.Generator().manual_seed(0)).value))
    assert values == sorted(values)


def test_elites_are_filled_up_with_the_best_where_others_have_no_number():
    actions = torch.arange(4.0).reshape(1, 4, 1, 1)
    returns = torch.tensor([[-torch.inf, 2.0, -torch.inf, 1.0]])
    top = Scored(actions, returns, torch.zeros(1, 4)).top(3)
    assert top.flatten().tolist() == [1.0, 3.0, 1.0]


def test_a_terminal_value_is_counted_only_where_the_future_is_alive():
    class Heads:
        def value(self, state):
            return 1000.0 * (state[..., 0] > 0).float()

        def policy(self, state, noise=None):
            raise NotImplementedError

    planner = ICEM(ICEMConfig(candidates=64, iterations=3, horizon=8))
    start = torch.tensor([[-0.1, 0.0]])
    plain = planner.plan(PointMass(), start, noise=torch.Generator().manual_seed(0))
    drawn = planner.plan(PointMass(), start, noise=torch.Generator().manual_seed(0), heads=Heads())
    assert drawn.value > 900 > plain.value
