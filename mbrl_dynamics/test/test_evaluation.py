"""Measures of a model against closed forms: a model whose error and spread are known exactly.

Mutations that these tests notice: the root mean square as temperature; one-sided intervals;
forecasts that begin a step late; starts that reach over the end of an episode; the distance of an episode
from itself; a return without its discount.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mbrl_dynamics.bounds import return_gap
from mbrl_dynamics.evaluation import (
    balanced_horizon,
    coverage,
    distances,
    errors_by_element,
    errors_by_horizon,
    rank_correlation,
    return_errors,
    scale_of,
    standard_scores,
    temperature,
    value_spread,
)
from mbrl_dynamics.forecasts import Forecasts, Recorded, forecast, steps_left
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Capabilities, Noise
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.rssm import RSSM
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.trainer import is_held_out
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Prediction

torch.set_num_threads(1)
NOISE = 0.1  # of the point mass's observations, and what the models below say of it
WORLDS = (bytes(16), bytes(15) + b"1")


def recorded(episodes: int = 6, steps: int = 40, noise: float = 0.0, seed: int = 0) -> Recorded:
    """Random motion of the point mass, seen with noise; half of the episodes in a second world."""
    mass, rng, found = PointMass(), np.random.default_rng(seed), Recorded(point_mass_spec())
    for episode in range(episodes):
        world, state = WORLDS[episode >= episodes // 2], rng.uniform(-1.0, 1.0, 2)
        found.add(Transition(world, episode, 0, state, np.zeros(1), first=True))
        for k in range(1, steps + 1):
            action = rng.uniform(-1.0, 1.0, 1)
            reward = float(mass.reward(state, action, state))
            state = mass.A @ state + mass.B @ action
            seen = state + noise * rng.standard_normal(2)
            found.add(Transition(world, episode, k, seen, 2.0 * action, reward, truncated=k == steps,
                                 controller_id="expert" if episode == 1 else "other"))  # fmt: skip
    return found


class Sure(PointMass):
    """The point mass, as a model that says how wrong it is, `said` where it is wrong by `NOISE`."""

    capabilities = Capabilities(differentiable=True, stochastic=True, rewards=True)

    def __init__(self, said: float) -> None:
        super().__init__()
        self.said = said

    def step(self, state: torch.Tensor, action: torch.Tensor, noise: Noise = None) -> Prediction:
        after = super().step(state, action).obs
        assert after is not None
        if noise is not None:
            after = after + self.said * torch.randn(after.shape, generator=noise)
        return Prediction(after, after, reward=self.reward(state, action, after))

    def imagine(self, state, actions, *, particles=None, horizon=None, noise=None, keep=()):  # type: ignore[no-untyped-def]
        return imagine_by_steps(self, state, actions, particles or 1, horizon, noise, keep)


class Drifting(PointMass):
    """The point mass with its position 0.01 m too far each step."""

    def step(self, state: torch.Tensor, action: torch.Tensor, noise: Noise = None) -> Prediction:
        exact = super().step(state, action)
        assert exact.obs is not None
        after = exact.obs + torch.tensor([0.01, 0.0])
        return Prediction(after, after, reward=exact.reward)


def every(data: Recorded) -> np.ndarray:
    return np.arange(len(data))


def test_an_exact_model_foretells_what_happened() -> None:
    data = recorded()
    told = forecast(PointMass(), data.buffer, every(data), 10)
    assert len(told.starts) == 6 * 31, "of 40 steps, 31 have 10 left"
    assert_allclose(told.mean, told.happened, atol=1e-5)
    assert told.disagreement is None and not told.std.any() and told.lost == 0
    assert told.promised is not None
    assert_allclose(told.promised, told.reward, atol=1e-5)


def test_starts_are_the_first_steps_and_stay_in_their_episode() -> None:
    data = recorded(episodes=2, steps=5)
    assert steps_left(data.buffer, every(data), 5).nonzero()[0].tolist() == [0, 5]
    assert steps_left(data.buffer, every(data), 1).all()
    told = forecast(PointMass(), data.buffer, every(data), 3)
    assert told.starts.tolist() == [0, 1, 2, 5, 6, 7]
    whole = data.buffer.all().obs["vector"]
    assert_allclose(told.happened[:, 0], whole[told.starts, 0])
    assert_allclose(told.happened[:, 3], whole[told.starts + 2, 1])
    with pytest.raises(ValueError, match="no episode has 6 steps left"):
        forecast(PointMass(), data.buffer, every(data), 6)


def test_a_model_with_a_memory_sees_what_came_before() -> None:
    data = recorded(episodes=2)
    model = RSSM(data.buffer.spec)
    told = forecast(model, data.buffer, every(data)[::7], 4, particles=3)
    assert told.mean.shape == (len(told.starts), 5, 2) and np.isfinite(told.mean).all()
    early, late = (forecast(model, data.buffer, np.array([at]), 4, particles=3) for at in (0, 20))
    assert not np.allclose(early.mean[0, 0], late.mean[0, 0])


def test_steps_are_known_by_episode_chooser_and_age() -> None:
    data = recorded(episodes=4, steps=3)
    assert data.episodes.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert data.chosen_by(("expert",)).nonzero()[0].tolist() == [3, 4, 5]
    assert data.after(WORLDS[0], 0).nonzero()[0].tolist() == list(range(3, 12))
    assert data.after(WORLDS[1], 2).nonzero()[0].tolist() == [9, 10, 11]
    assert data.after(b"another world...", 7).all()
    assert (data.held_out() == is_held_out(np.arange(12))).all()


def test_errors_by_element_are_those_of_the_noise() -> None:
    data = recorded(episodes=40, noise=0.0)
    told = forecast(Sure(NOISE), data.buffer, every(data), particles=500)
    noise = np.random.default_rng(1).normal(0.0, NOISE, told.happened.shape)
    noise[:, 0] = 0.0
    seen = Forecasts(**{**vars(told), "happened": told.happened + noise})
    found = errors_by_element(seen, point_mass_spec())
    assert [found[name]["unit"] for name in ("position", "velocity")] == ["m", "m/s"]
    expected = -0.5 * math.log(2 * math.pi * NOISE**2) - 0.5
    for element in found.values():
        assert element["rmse"] == pytest.approx(NOISE, rel=0.05)
        assert element["log_likelihood"] == pytest.approx(expected, abs=0.05)
        assert 0.0 < element["relative"] < 1.0


def test_a_model_without_uncertainty_has_no_likelihood_and_no_scores() -> None:
    data = recorded()
    told = forecast(Drifting(), data.buffer, every(data))
    assert all(math.isnan(e["log_likelihood"]) for e in errors_by_element(told, point_mass_spec()).values())
    assert np.isnan(standard_scores(told)).all()


def test_error_by_horizon_is_a_known_drift() -> None:
    data = recorded()
    told = forecast(Drifting(), data.buffer, every(data), 8)
    error, spread, still = errors_by_horizon(told, np.array([0.5, 1.0]))
    assert_allclose(error, 0.01 * np.arange(9) / 0.5 / math.sqrt(2.0), atol=1e-6)
    assert not spread.any() and still[0] == 0.0 and still[-1] > error[-1]


def test_spread_grows_with_the_root_of_the_horizon_where_noise_adds_up() -> None:
    class Walk(Sure):
        def step(self, state: torch.Tensor, action: torch.Tensor, noise: Noise = None) -> Prediction:
            after = state if noise is None else state + NOISE * torch.randn(state.shape, generator=noise)
            return Prediction(after, after, reward=after[..., 0])

    data = recorded(episodes=2)
    told = forecast(Walk(0.0), data.buffer, every(data), 9, particles=400)
    assert_allclose(
        errors_by_horizon(told, np.ones(2))[1], NOISE * np.sqrt(np.arange(10)), rtol=0.02, atol=1e-6
    )


@pytest.mark.parametrize("said", [0.5, 1.0, 3.0])
def test_a_temperature_makes_intervals_cover_what_they_say(said: float) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((20_000, 2)) / said for _ in range(2))
    factor = temperature(first)
    assert_allclose(factor, 1.0 / said, rtol=0.02)
    levels = (0.5, 0.9, 0.95)
    assert_allclose(coverage(second / factor, levels).T, [levels] * 2, atol=0.01)
    raw = coverage(second, levels)
    if said == 0.5:
        assert_allclose(raw.T, [[0.264, 0.589, 0.673]] * 2, atol=0.01)  # erf(z / (2 sqrt 2))


def test_an_impact_does_not_widen_all_intervals() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4000, 1)) * 2.0
    struck = np.where(rng.random(scores.shape) < 0.01, 200.0, scores)
    assert_allclose(temperature(struck), 2.0, rtol=0.07)
    assert temperature(np.full((5, 1), np.nan)).shape == (1,)


def test_an_element_without_a_spread_covers_nothing_that_can_be_said() -> None:
    scores = np.stack([np.random.default_rng(0).standard_normal(1000), np.full(1000, np.nan)], -1)
    found = coverage(scores, (0.9,))
    assert found[0, 0] == pytest.approx(0.9, abs=0.03) and np.isnan(found[0, 1])


def test_rank_correlation_is_one_where_disagreement_orders_errors() -> None:
    size = np.random.default_rng(0).permutation(50).astype(float) + 1.0
    happened = np.zeros((50, 2, 1))
    off = happened + size[:, None, None]
    told = Forecasts(
        np.arange(50), happened, off, happened, np.zeros((50, 1)), disagreement=size[:, None] ** 3
    )
    assert rank_correlation(told, np.ones(1), 1) == pytest.approx(1.0)
    inverse = Forecasts(**{**vars(told), "disagreement": 1.0 / size[:, None]})
    assert rank_correlation(inverse, np.ones(1), 1) == pytest.approx(-1.0)
    assert math.isnan(rank_correlation(Forecasts(**{**vars(told), "disagreement": None}), np.ones(1), 1))


def test_distances_are_one_where_the_newest_is_as_all_else_and_grow_away_from_it() -> None:
    rng = np.random.default_rng(0)
    inputs, episodes = rng.standard_normal((2000, 2)), np.repeat(np.arange(10), 200)
    newest = episodes == 9
    found = distances(inputs, episodes, ~newest, newest)
    assert found["ratio"] == pytest.approx(1.0, abs=0.15) and found["beyond"] == pytest.approx(0.05, abs=0.04)
    away = inputs + 8.0 * newest[:, None]
    assert distances(away, episodes, ~newest, newest)["ratio"] > 20
    assert distances(away, episodes, ~newest, newest)["beyond"] > 0.95
    lone = distances(inputs[:400], episodes[:400], episodes[:400] == 0, episodes[:400] == 1)
    assert math.isnan(lone["ratio"]) and lone["newest"] > 0.0


def test_an_episode_is_not_near_itself() -> None:
    """Neighbours in time are near whatever the episode; only other episodes count."""
    line = np.linspace(0.0, 1e-3, 100)[:, None]
    inputs, episodes = np.concatenate([line, line + 1.0, line + 2.0]), np.repeat(np.arange(3), 100)
    found = distances(inputs, episodes, episodes < 2, episodes == 2)
    assert found["ratio"] == pytest.approx(1.0, abs=0.01)


def test_the_return_error_and_the_horizon_that_balances_it() -> None:
    promised = np.ones((5, 4)) + np.array([0.1, 0.1, 0.1, 0.1])
    told = Forecasts(np.arange(5), *[np.zeros((5, 5, 1))] * 3, np.ones((5, 4)), promised=promised)
    found = return_errors(told, 0.5)
    assert_allclose(found, 0.1 * np.array([0.0, 1.0, 1.5, 1.75, 1.875]))
    assert balanced_horizon(found, 0.0, 0.5) == 0, "a perfect value function needs no model"
    assert balanced_horizon(found, 100.0, 0.5) == 4, "one that knows nothing needs it as far as it goes"
    # One step more costs 0.1 d^H and saves v d^H (1 - d): worth it for ever if v > 0.2, never if v < 0.2.
    assert balanced_horizon(found, 0.21, 0.5) == 4 and balanced_horizon(found, 0.19, 0.5) == 0
    growing = np.array([0.0, 0.1, 0.3, 0.6, 1.0])
    assert balanced_horizon(growing, 1.0, 0.8) == np.argmin(growing + 0.8 ** np.arange(5))
    unknown = Forecasts(**{**vars(told), "promised": None})
    assert np.isnan(return_errors(unknown, 0.5)).all()


def test_the_spread_of_what_is_still_to_come() -> None:
    reward, episodes = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), np.repeat([0, 1], 4)
    found = value_spread(reward, episodes, 0.5)
    assert found == pytest.approx(np.std([1.875, 1.75, 0.0, 0.0]))
    assert math.isnan(value_spread(np.full(4, np.nan), np.zeros(4, np.int64), 0.5))


def test_the_three_terms_are_exact_on_the_point_mass() -> None:
    """An expert and a worse policy from the same start, in the world and in a model that drifts."""
    world, model = PointMass(), Drifting()
    start = torch.tensor([[1.0, 0.0]])
    plans = {"expert": torch.linspace(-0.6, 0.6, 20), "policy": torch.linspace(0.2, -0.3, 20)}

    def worth(of: PointMass, name: str) -> float:
        rollout = of.imagine(start, plans[name].reshape(1, 1, -1, 1))
        return float(rollout.reward.double().sum())

    gap = return_gap(*(worth(of, name) for of, name in (
        (world, "expert"), (model, "expert"), (model, "policy"), (world, "policy"))))  # fmt: skip
    assert gap.total == pytest.approx(worth(world, "expert") - worth(world, "policy"), abs=1e-12)
    assert gap.planning_error > 0.0 and gap.expert_error != 0.0 and gap.policy_error != 0.0


def test_predictions_that_are_not_finite_are_counted() -> None:
    class Broken(PointMass):
        def step(self, state: torch.Tensor, action: torch.Tensor, noise: Noise = None) -> Prediction:
            after = torch.where(state[..., :1] > 0.0, torch.nan, state)
            return Prediction(after, after, reward=after[..., 0])

    data = recorded()
    told = forecast(Broken(), data.buffer, every(data))
    assert told.lost == int((data.buffer.all().obs["vector"][:, 0, 0] > 0).sum()) > 0
    assert len(told.starts) == len(data) - told.lost and np.isfinite(told.mean).all()


def test_an_ensemble_says_where_it_disagrees() -> None:
    data = recorded()
    model = Ensemble(data.buffer.spec, EnsembleConfig(members=3, elites=3, hidden=(8,)))
    told = forecast(model, data.buffer, every(data)[::10], 3)
    assert told.disagreement is not None and told.disagreement.shape == (len(told.starts), 3)
    assert (told.disagreement > 0).all() and (told.std[:, 1:] > 0).all()
    again = forecast(model, data.buffer, every(data)[::10], 3)
    assert (again.std == told.std).all(), "the same seed, the same draws"
    assert scale_of(np.zeros((3, 2))).tolist() == [1.0, 1.0]
