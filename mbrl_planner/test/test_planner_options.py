"""What all sampling planners share: risk, caution, constraints, knots, policies, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from torch import Tensor

from mbrl_dynamics.config import build
from mbrl_dynamics.draws import normal
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.types import Prediction
from mbrl_planner.planners.cem import CEM, CEMConfig
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.planners.knots import Knots
from mbrl_planner.planners.mppi import MPPI
from mbrl_planner.planners.pddm import PDDM
from mbrl_planner.planners.random_shooting import RandomShooting
from mbrl_planner.planners.scoring import worst_mean
from mbrl_planner.testing import Poisoned, check_planner, stationary_gain

ALL = [CEM, ICEM, MPPI, PDDM, RandomShooting]
START = torch.tensor([[1.0, 0.0]])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def path(model: Any, start: Tensor, actions: Tensor) -> Tensor:
    """Observations [B, H, D] after each action."""
    states = [start]
    for action in actions.unbind(1):
        states.append(model.step(states[-1], action).state)
    return torch.stack(states[1:], dim=1)


# Risk -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8),
    st.floats(0.01, 1.0),
)
def test_the_worst_mean_is_the_conditional_value_at_risk(returns, share):
    """Rockafellar and Uryasev's other form of it: the largest v - E[max(v - R, 0)] / share."""
    share = max(share, 1 / len(returns))  # less than one future is one
    sample = np.array(returns)
    best = max(v - np.maximum(v - sample, 0).mean() / share for v in sample)
    assert float(worst_mean(torch.tensor([returns]), share)) == pytest.approx(best, abs=1e-3)


def test_the_worst_mean_goes_from_the_worst_to_the_mean():
    returns = torch.tensor([[4.0, -1.0, 2.0, 3.0]])
    assert [float(worst_mean(returns, share)) for share in (0.0, 0.25, 0.5, 0.625, 1.0)] == pytest.approx(
        [-1.0, -1.0, 0.5, (-1 + 2 + 0.5 * 3) / 2.5, 2.0]
    )


class Gamble(ObservationModel):
    """A member to whom a positive action is a gain of 4 a step, and one to whom it is a loss of 2."""

    capabilities = Capabilities(rewards=True)

    def __init__(self, disagree: bool = True) -> None:
        super().__init__(point_mass_spec())
        self.disagree = disagree

    def spread(self, state: Tensor, particles: int) -> Tensor:
        members = torch.arange(particles).remainder(2).float()  # in place of the velocity
        return torch.stack([state[:, :1].expand(-1, particles), members.expand(len(state), -1)], dim=-1)

    def step(self, state: Tensor, action: Tensor, noise: Any = None) -> Prediction:
        amount = action[..., 0].clamp(min=0)
        reward = torch.where(state[..., 1] == 0, 4.0, -2.0) * amount
        return Prediction(state, state, reward, disagreement=amount if self.disagree else None)


@pytest.mark.parametrize("planner", ALL)
@pytest.mark.parametrize(
    ("options", "bets"),
    [
        ({}, True),
        ({"worst_share": 0.5}, False),
        ({"worst_share": 0.0}, False),
        ({"caution": 0.5}, True),
        ({"caution": 1.5}, False),
        ({"caution": -1.5, "worst_share": 0.0}, False),
        ({"caution": -2.5, "worst_share": 0.0}, True),
    ],
)
def test_risk_and_caution_decide_whether_to_gamble(planner, options, bets):
    """The mean gains 1 a step, the worse member loses 2, and disagreement is 1."""
    config = planner.Config(horizon=4, particles=2, iterations=6, **options)
    plan = planner(config).plan(Gamble(), START, noise=seeded())
    total = plan.actions.clamp(min=0).sum()
    assert (total > 1.0) == bets and (bets or total < 0.7)


def test_a_worst_share_needs_several_futures():
    with pytest.raises(UserError, match=r"a single imagined future: set particles to 2 or more"):
        ICEM(ICEMConfig(worst_share=0.2)).plan(PointMass(), START, noise=seeded())


def test_caution_needs_members_that_can_disagree():
    with pytest.raises(UserError, match="no members that could disagree"):
        ICEM(ICEMConfig(caution=1.0)).plan(Gamble(disagree=False), START)


# Constraints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", ALL)
def test_constraints_are_kept_though_they_cost(planner):
    model = PointMass()
    free = planner(planner.Config(iterations=4)).plan(model, START, noise=seeded())
    assert free.violation is None and path(model, START, free.actions)[..., 1].min() < -0.4
    kept = planner(planner.Config(iterations=4, constraints=("velocity > -0.4", "position<2.5e0")))
    plan = kept.plan(model, START, noise=seeded())
    assert plan.violation.item() == 0.0
    assert path(model, START, plan.actions)[..., 1].min() >= -0.4
    assert plan.value < free.value


@pytest.mark.parametrize("planner", ALL)
def test_where_every_candidate_breaks_them_the_least_wins_and_the_plan_says_so(planner):
    """From -1 m/s at most 0.2 m/s can be won a step, so that -0.3 m/s is out of reach for three steps."""
    model, start = PointMass(), torch.tensor([[0.0, -1.0], [0.0, 0.0]])
    config = planner.Config(horizon=6, iterations=12, candidates=200, constraints=("velocity>-0.3",))
    plan = planner(config).plan(model, start, noise=seeded())
    beyond = (-0.3 - path(model, start, plan.actions)[..., 1]).clamp(min=0).sum(1)
    assert torch.allclose(plan.violation, beyond, atol=1e-5)
    assert plan.violation[0] == pytest.approx(0.5 + 0.3 + 0.1, abs=0.15)
    assert plan.violation[1] == 0.0, "the other state of the batch has candidates that keep them"
    assert plan.value[0] == -plan.violation[0]
    assert plan.valid.all()


def test_a_constraint_holds_in_every_imagined_future():
    """One of the two members is where nobody may be, whatever is done; only the other would be harmless."""
    config = ICEMConfig(horizon=3, particles=2, constraints=("velocity<0.5",))
    plan = ICEM(config).plan(Gamble(), START, noise=seeded())
    assert plan.violation.item() == pytest.approx(3 * 0.5 / 2)


@pytest.mark.parametrize(
    ("constraint", "sentence"),
    [
        ("velocty<1", "unknown observation element 'velocty' (did you mean 'velocity'?); valid: position, "),
        ("velocity<=1", "constraint 'velocity<=1' is not of the form 'element<number' or 'element>number'"),
        ("velocity<fast", "is not of the form"),
        ("0.5", "is not of the form"),
    ],
)
def test_a_constraint_that_cannot_be_is_told(constraint, sentence):
    with pytest.raises(UserError) as error:
        CEM(CEMConfig(constraints=(constraint,))).check(point_mass_spec())
    assert sentence in str(error.value)


# Knots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", ALL)
@pytest.mark.parametrize("interpolation", ["hold", "linear", "cubic"])
def test_as_many_knots_as_steps_change_nothing(planner, interpolation):
    plain = planner(planner.Config(horizon=9)).plan(PointMass(), START, noise=seeded())
    config = planner.Config(horizon=9, knots=9, interpolation=interpolation)
    assert torch.equal(planner(config).plan(PointMass(), START, noise=seeded()).actions, plain.actions)


@pytest.mark.parametrize("planner", ALL)
def test_held_knots_are_chunks(planner):
    config = planner.Config(horizon=10, knots=3)
    model, actions = PointMass(), None
    plan = planner(config).plan(model, START, noise=seeded())
    for _ in range(2):  # afresh, and warm
        actions = plan.actions[0, :, 0]
        assert (actions.diff() != 0).nonzero().flatten().tolist() == [3, 6]
        plan = planner(config).plan(model, START, plan.guess, noise=seeded())


def test_lines_and_splines_go_through_their_knots():
    values = torch.rand(2, 5, 3, generator=seeded()) * 0.6 - 0.3
    times, at = np.linspace(0, 4, 13), np.arange(5)
    line = Knots(13, 5, "linear").plan(values)
    spline = Knots(13, 5, "cubic").plan(values)
    for b in range(2):
        for a in range(3):
            column = values[b, :, a].numpy()
            assert line[b, :, a].numpy() == pytest.approx(np.interp(times, at, column), abs=1e-6)
    expected = CubicSpline(at, values.numpy(), axis=1, bc_type="natural")(times)
    assert spline.numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("interpolation", ["hold", "linear", "cubic"])
@pytest.mark.parametrize(("horizon", "count"), [(1, 1), (7, 1), (7, 2), (7, 3), (12, 5), (25, 24)])
def test_knots_of_their_own_plan_are_themselves(interpolation, horizon, count):
    knots, values = Knots(horizon, count, interpolation), torch.rand(1, count, 2, generator=seeded()) - 0.5
    assert knots.plan(values).shape == (1, horizon, 2)
    assert torch.allclose(knots.of(knots.plan(values)), values, atol=1e-4)
    assert torch.allclose(knots.plan(torch.full((1, count, 1), 0.7)), torch.full((1, horizon, 1), 0.7))
    assert knots.plan((9 * values).clamp(-1.0, 1.0)).abs().max() <= 1.0, (
        "a spline may swing beyond its knots, but not the bounds"
    )


@pytest.mark.parametrize("planner", ALL)
def test_contract_with_few_knots(planner):
    check_planner(lambda: planner(planner.Config(knots=6, interpolation="linear")))


# Policies ---------------------------------------------------------------------------------------------------


class Learned:
    """A policy that is right, and a value that one may count on."""

    def __init__(self, worth: float = 0.0) -> None:
        self.worth, self._gain = worth, torch.from_numpy(stationary_gain()).float()

    def policy(self, state: Tensor, noise: torch.Generator | None = None) -> Tensor:
        return (-state @ self._gain.T).clamp(-1.0, 1.0)

    def value(self, state: Tensor) -> Tensor:
        return torch.full(state.shape[:-1], self.worth)


@pytest.mark.parametrize("planner", [ICEM, RandomShooting])
def test_a_policys_plans_are_tried_too(planner):
    model = PointMass()
    config = planner.Config(std=0.01, candidates=8, elites=2) if planner is ICEM else planner.Config()
    alone = planner(config).plan(model, START, noise=seeded(), heads=Learned())
    config = replace(config, policy_candidates=2)
    helped = planner(config).plan(model, START, noise=seeded(), heads=Learned())
    expected = Learned().policy(torch.cat([START[:, None], path(model, START, helped.actions)[:, :-1]], 1))
    assert helped.value > alone.value
    assert planner is ICEM or torch.allclose(helped.actions, expected, atol=1e-5)


def test_a_policy_that_nobody_has_is_told():
    with pytest.raises(UserError, match="policy_candidates is 3, but no policy was given"):
        ICEM(ICEMConfig(policy_candidates=3)).plan(PointMass(), START)


def test_rewards_and_the_terminal_value_are_discounted():
    planner = RandomShooting(RandomShooting.Config(horizon=5, candidates=2, iterations=1, discount=0.8))
    plan = planner.plan(PointMass(), START, noise=seeded(), heads=Learned(worth=10.0))
    states = torch.cat([START[:, None], path(PointMass(), START, plan.actions)], 1)[0, :-1]
    reward = PointMass().reward(states, plan.actions[0], None)
    expected = float((reward * 0.8 ** torch.arange(5)).sum()) + 0.8**5 * 10.0
    assert plan.value.item() == pytest.approx(expected, rel=1e-5)


# What is refused --------------------------------------------------------------------------------------------


class Diverging(PointMass):
    """Predicts no finite reward, or no finite state, after a positive first action; or never."""

    def __init__(self, reward: float = 0.0, state: float = 0.0, always: bool = False) -> None:
        super().__init__()
        self.extra, self.shift, self.always = reward, state, always

    def imagine(self, state: Tensor, actions: Any, **kwargs: Any) -> Any:
        rollout = super().imagine(state, actions, **kwargs)
        bad = (actions[:, :, 0, 0] > 0)[..., None] | self.always
        reward = rollout.reward + torch.where(bad, self.extra, 0.0)[..., None]
        return replace(
            rollout, reward=reward, last=rollout.last + torch.where(bad, self.shift, 0.0)[..., None]
        )


@pytest.mark.parametrize("planner", ALL)
@pytest.mark.parametrize(
    "fault", [{"reward": np.nan}, {"reward": np.inf}, {"reward": -np.inf}, {"state": np.inf}]
)
def test_a_candidate_without_a_finite_prediction_is_counted_and_never_wins(planner, fault):
    """To the left of the goal the right first action is positive."""
    start = torch.tensor([[-1.0, 0.0]])
    plan = planner(planner.Config(candidates=100, horizon=8)).plan(Diverging(**fault), start, noise=seeded())
    assert plan.actions[0, 0, 0] <= 0 and plan.actions.isfinite().all()
    assert plan.valid.all() and plan.value.isfinite().all()
    assert 0 < plan.refused.item() < 101


@pytest.mark.parametrize("planner", ALL)
def test_where_no_prediction_is_finite_there_is_no_plan(planner):
    mine = planner(planner.Config(candidates=40, horizon=8))
    good = mine.plan(PointMass(), START, noise=seeded())
    plan = mine.plan(
        Diverging(reward=np.nan, always=True), START, good.guess, shift=0, noise=seeded(), display=3
    )
    assert not plan.valid.any() and plan.value.item() == -torch.inf
    assert plan.refused.item() >= 40 / 1.25**2  # all that iCEM tries in its third iteration
    assert plan.actions.isnan().all(), "nobody may act on it unawares"
    assert torch.equal(plan.guess.mean, good.guess.mean), "what was known before is still a good guess"
    after = mine.plan(PointMass(), START, plan.guess, shift=0, noise=seeded())
    assert after.valid.all() and after.value >= good.value - 0.2 * good.value.abs()


def test_the_refused_are_those_of_the_last_iteration():
    planner = RandomShooting(RandomShooting.Config(candidates=30))
    plan = planner.plan(Poisoned(), START.expand(2, -1), noise=seeded())
    assert plan.refused.tolist() == [20, 20]


def test_constraints_and_what_is_not_finite_go_together():
    """What keeps the constraints has no finite prediction: the least violation among the rest wins."""
    model, start = Diverging(state=np.nan), torch.tensor([[0.0, 0.0]])
    config = RandomShooting.Config(horizon=1, candidates=400, constraints=("velocity>0.1",))
    plan = RandomShooting(config).plan(model, start, noise=seeded())
    assert plan.valid.all() and plan.actions.item() <= 0.0
    assert plan.violation.item() == pytest.approx(0.1 - 0.2 * plan.actions.item(), abs=1e-4)


# Settings and actions that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planner", "values", "sentence"),
    [
        (CEM, {"candidates": 4, "elites": 5}, "elites is 5, but must be at most candidates, which is 4"),
        (ICEM, {"candidates": 4}, "elites is 8, but must be at most candidates, which is 4"),
        (MPPI, {"horizon": 5, "knots": 6}, "knots is 6, but must be at most horizon, which is 5"),
        (PDDM, {"horizon": 0}, "parameter 'horizon' is 0, but it should be greater than or equal to 1"),
        (PDDM, {"beta": 0.0}, "parameter 'beta' is 0.0, but it should be greater than 0"),
        (
            RandomShooting,
            {"worst_share": 1.5},
            "'worst_share' is 1.5, but it should be less than or equal to 1",
        ),
        (RandomShooting, {"interpolation": "step"}, "but it should be 'hold', 'linear' or 'cubic'"),
    ],
)
def test_settings_that_cannot_be_are_told_in_one_sentence(planner, values, sentence):
    with pytest.raises(UserError) as error:
        build(planner.Config, values)
    assert sentence in str(error.value)


def choices(count: int) -> Spec:
    return replace(point_mass_spec(), action=(Element("force", count=count),))


class Pushed(PointMass):
    """The point mass with three choices: back, nothing, forth."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = choices(3)

    def step(self, state: Tensor, action: Tensor, noise: Any = None) -> Prediction:
        assert torch.equal(action.sum(-1), torch.ones(action.shape[:-1])) and (action.amax(-1) == 1).all()
        return super().step(state, action @ torch.tensor([[-1.0], [0.0], [1.0]]))


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI, PDDM])
def test_planners_of_continuous_actions_say_so(planner):
    with pytest.raises(UserError) as error:
        planner().plan(Pushed(), START)
    name = planner.__name__.lower()
    assert str(error.value) == (
        f"planner '{name}' needs continuous actions, but those of task 'point_mass' are discrete; "
        "'random_shooting' and 'mcts' take them"
    )


@pytest.mark.parametrize("knots", [0, 4])
def test_random_shooting_chooses_among_discrete_actions(knots):
    """It brings the mass home, in closed loop and warm-started."""
    config = RandomShooting.Config(horizon=12, knots=knots, candidates=128)
    planner, model, state, guess, noise = RandomShooting(config), Pushed(), START, None, seeded()
    for _ in range(40):
        plan = planner.plan(model, state, guess, noise=noise)
        assert plan.actions.shape == (1, 12, 3)
        guess, state = plan.guess, model.step(state, plan.actions[:, 0]).state
    assert state.abs().max() < 0.2


def test_discrete_actions_have_nothing_between_them():
    with pytest.raises(UserError, match="interpolation is 'linear', but discrete actions can only be held"):
        RandomShooting(RandomShooting.Config(knots=4, interpolation="linear")).check(choices(3))


def test_outcome_noise_is_drawn_where_it_is_asked_for_even_without_a_generator():
    class Noisy(PointMass):
        def step(self, state: Tensor, action: Tensor, noise: Any = None) -> Prediction:
            drawn = 0.0 if noise is None else torch.randn(state.shape, generator=noise)
            return super().step(state + drawn, action)

    values = []
    for aleatoric in (False, True):
        planner = RandomShooting(RandomShooting.Config(candidates=2, iterations=1, aleatoric=aleatoric))
        values.append([float(planner.plan(Noisy(), torch.zeros(1, 2)).value) for _ in range(2)])
    assert max(values[0]) == 0.0 and max(values[1]) < 0.0 and values[1][0] != values[1][1]


class Windy(PointMass):
    """The point mass in gusts of wind."""

    capabilities = Capabilities(stochastic=True, rewards=True)

    def step(self, state: Tensor, action: Tensor, noise: Any = None) -> Prediction:
        after = super().step(state, action)
        gust = torch.zeros_like(state) if noise is None else 0.3 * normal(state.shape, noise)
        return replace(after, state=after.state + gust, obs=after.state + gust)


@pytest.mark.parametrize("common", [True, False])
def test_candidates_meet_the_same_luck_in_an_iteration_and_other_luck_in_the_next(common):
    heard = []

    class Same(RandomShooting):
        def propose(self, search, iteration, noise):
            return super().propose(search, iteration, noise)[:, :1].expand(-1, 5, -1, -1)

        def refit(self, search, scored):
            heard.append(scored.returns)
            return super().refit(search, scored)

    config = Same.Config(horizon=5, aleatoric=True, common_noise=common, particles=3, iterations=2)
    Same(config).plan(Windy(), START.expand(2, -1), noise=seeded())
    first, second = heard
    assert (first[:, :1] == first).all() == common
    assert first[0, 0] != first[1, 0] and (first[:, 0] != second[:, 0]).all()


def test_common_luck_finds_the_better_plan_where_there_is_much_of_it():
    """In gusts, the first action of CEM is nearer to that of no wind (which is the best on average)."""
    start = torch.tensor([[0.6, 0.0]]).expand(20, -1)
    gain = torch.from_numpy(stationary_gain()).float()
    best = (-start @ gain.T).clamp(-1.0, 1.0)
    missed = []
    for common in (True, False):
        config = CEMConfig(horizon=12, aleatoric=True, common_noise=common, particles=4, iterations=5)
        plan = CEM(config).plan(Windy(), start, noise=seeded())
        missed.append(float((plan.actions[:, 0] - best).abs().mean()))
    print(missed)
    assert missed[0] < 0.7 * missed[1]
