"""The planners that differentiate, against scipy, closed forms and finite differences."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.models.rssm import RSSM
from mbrl_dynamics.models.tabular import Tabular
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.types import Prediction
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.interfaces import Guess
from mbrl_planner.planners.gradient import EDGE, Gradient, GradientConfig
from mbrl_planner.planners.ilqr import ILQR, ILQRConfig, feedback
from mbrl_planner.planners.local import Problem, differentiating
from mbrl_planner.planners.lqr import LQR, LQRConfig
from mbrl_planner.planners.riccati import LEAST, MOST, Damping, box_minimum
from mbrl_planner.testing import lqr_return, stationary_gain

PLANNERS = (LQR, ILQR, Gradient)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def spec_of(states, actions):
    observation = tuple(Element(f"x{i}", "1", -9.0, 9.0) for i in range(states))
    return Spec("test", observation, tuple(Element(f"u{i}", "1", -1.0, 1.0) for i in range(actions)), 0.1)


class Linear(ObservationModel):
    """x' = A x + B u + c, with reward -(x'Qx + u'Ru) / 2 of the state that was left."""

    capabilities = Capabilities(differentiable=True, rewards=True)

    def __init__(self, a, b, q, r, c=0.0):
        super().__init__(spec_of(*b.shape))
        self.matrices = [torch.as_tensor(x) for x in (a, b, q, r, c)]

    def step(self, state, action, noise=None):
        a, b, q, r, c = (matrix.to(state.dtype) for matrix in self.matrices)
        after = state @ a.T + action @ b.T + c
        cost = (state @ q * state).sum(-1) + (action @ r * action).sum(-1)
        return Prediction(after, after, reward=-0.5 * cost)


class Pendulum(ObservationModel):
    """Gymnasium's Pendulum-v1: m = l = 1, g = 10, a torque of at most 2; hanging at angle pi."""

    capabilities = Capabilities(differentiable=True, rewards=True)

    def __init__(self):
        super().__init__(spec_of(3, 1))

    def step(self, state, action, noise=None):
        cos, sin, speed = state.unbind(-1)
        cost = torch.atan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * (2.0 * action[..., 0]) ** 2
        speed = (speed + 0.05 * (15.0 * sin + 3.0 * 2.0 * action[..., 0])).clamp(-8.0, 8.0)
        turn = 0.05 * speed
        turned = (cos * turn.cos() - sin * turn.sin(), sin * turn.cos() + cos * turn.sin())
        after = torch.stack([*turned, speed], dim=-1)
        return Prediction(after, after, reward=-cost)


class Other(PointMass):
    """A point mass with another reward."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward


def angle(at):
    return torch.tensor([[math.cos(at), math.sin(at), 0.0]])


def problem_of(seed, states=4, actions=2):
    """A random stable linear system with a random convex cost."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(states, states))
    a *= 0.95 / np.abs(np.linalg.eigvals(a)).max()
    half = rng.normal(size=(states, states))
    return a, rng.normal(size=(states, actions)), half @ half.T, np.diag(rng.uniform(0.5, 2.0, actions))


def recursion(a, b, q, r, horizon):
    """Riccati's, as in textbooks: gains from the first step to the last, and the first cost-to-go."""
    gains, cost = [], np.zeros_like(q)
    for _ in range(horizon):
        gains.append(np.linalg.solve(r + b.T @ cost @ b, b.T @ cost @ a))
        cost = q + a.T @ cost @ (a - b @ gains[-1])
    return np.stack(gains[::-1]), cost


def best_actions(model, start, first):
    """scipy's best return and actions within [-1, 1], in float64, from a first guess [H, A]."""

    def cost(flat):
        actions = torch.from_numpy(flat.reshape(first.shape)).requires_grad_()
        state, total = start.double(), torch.zeros(()).double()
        for action in actions:
            prediction = model.step(state, action[None])
            state, total = prediction.state, total - prediction.reward[0]
        (slope,) = torch.autograd.grad(total, actions)
        return float(total.detach()), slope.numpy().ravel()

    bounds, options = [(-1.0, 1.0)] * first.size, {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    found = scipy.optimize.minimize(cost, first.ravel(), jac=True, bounds=bounds, options=options)
    return -found.fun, found.x.reshape(first.shape)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Linear systems ---------------------------------------------------------------------------------------------


def test_lqr_has_scipys_stationary_gain_on_the_point_mass():
    plan = LQR(LQRConfig(horizon=200)).plan(PointMass(), torch.tensor([[0.1, 0.0]]))
    assert plan.gains[0, 0].numpy() == pytest.approx(-stationary_gain(), rel=1e-5)
    assert plan.actions[0, 0].numpy() == pytest.approx(-stationary_gain() @ [0.1, 0.0], rel=1e-5)
    assert float(plan.value) == pytest.approx(lqr_return(np.array([0.1, 0.0]), 200), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("planner", [LQR, ILQR])
def test_stationary_gain_of_random_systems_is_scipys(planner, seed):
    a, b, q, r = problem_of(seed)
    cost = scipy.linalg.solve_discrete_are(a, b, q, r)
    gain = np.linalg.solve(r + b.T @ cost @ b, b.T @ cost @ a)
    plan = planner(planner.Config(horizon=60)).plan(Linear(a, b, q, r), torch.full((1, 4), 1e-3))
    assert plan.gains[0, 0].numpy() == pytest.approx(-gain, abs=2e-4)


@pytest.mark.parametrize("planner", [LQR, ILQR])
def test_finite_horizon_is_the_riccati_recursion(planner):
    a, b, q, r = problem_of(11)
    gains, cost = recursion(a, b, q, r, 7)
    start = np.array([0.01, -0.02, 0.03, 0.01])
    made = planner(planner.Config(horizon=7))
    plan = made.plan(Linear(a, b, q, r), torch.from_numpy(start[None]).float())
    assert plan.gains[0].numpy() == pytest.approx(-gains, abs=1e-4)
    assert float(plan.value) == pytest.approx(-0.5 * start @ cost @ start, rel=1e-4)


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("planner", [LQR, ILQR])
def test_a_drift_is_answered_by_the_exact_optimum(planner, discount):
    """Where the system is pushed away all the time: the cost of all actions as one quadratic form, minimised.

    Mutations that fail here: no drift in the linear path; no value of the next state in that of this one.
    """
    (a, b, q, r), horizon, c = problem_of(3), 6, np.array([0.01, -0.02, 0.0, 0.01])
    start, weight = torch.full((1, 4), 0.02), discount ** np.arange(horizon)

    def cost(flat):
        x, total = start[0].double().numpy(), 0.0
        for t, u in enumerate(flat.reshape(horizon, 2)):
            total += 0.5 * weight[t] * (x @ q @ x + u @ r @ u)
            x = a @ x + b @ u + c
        return total

    zero, each = np.zeros(2 * horizon), np.eye(2 * horizon)
    curvature = np.array([[cost(i + j) - cost(i) - cost(j) + cost(zero) for j in each] for i in each])
    slope = np.array([cost(i) - cost(zero) - 0.5 * curvature[k, k] for k, i in enumerate(each)])
    best = -np.linalg.solve(curvature, slope).reshape(horizon, 2)
    plan = planner(planner.Config(horizon=horizon, discount=discount)).plan(Linear(a, b, q, r, c), start)
    assert plan.actions[0].numpy() == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("planner", [LQR, ILQR])
@pytest.mark.parametrize("horizon", [1, 4])
def test_the_cost_to_go_as_terminal_value_makes_any_horizon_infinite(planner, horizon):
    """Mutations that fail here: no slope of the terminal value; no curvature of it."""
    world, start = PointMass(), np.array([0.1, 0.05])
    cost = torch.from_numpy(scipy.linalg.solve_discrete_are(world.A, world.B, world.Q, world.R)).float()

    class Heads:
        def value(self, state):
            return -(state @ cost * state).sum(-1)

        def policy(self, state, noise=None):
            raise NotImplementedError

    made = planner(planner.Config(horizon=horizon))
    plan = made.plan(world, torch.from_numpy(start[None]).float(), heads=Heads())
    assert plan.gains[0].numpy() == pytest.approx(-np.stack([stationary_gain()] * horizon), rel=1e-4)
    assert float(plan.value) == pytest.approx(-start @ cost.numpy() @ start, rel=1e-4)


# Limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_minimum_in_a_box_is_scipys(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 7))
    half = rng.normal(size=(size + 2, size))
    curvature, slope = half.T @ half, 3.0 * rng.normal(size=size)
    low, high = -rng.uniform(0.0, 1.0, size), rng.uniform(0.0, 1.0, size)
    root = np.linalg.cholesky(curvature).T
    best = scipy.optimize.lsq_linear(root, -np.linalg.solve(root.T, slope), (low, high), tol=1e-14).x
    x, free, factor = box_minimum(*(torch.from_numpy(v) for v in (curvature, slope, low, high)))
    assert x.numpy() == pytest.approx(best, abs=1e-5)
    inside = free.numpy()
    assert (curvature @ x.numpy() + slope)[inside] == pytest.approx(0.0, abs=1e-9)
    assert (factor @ factor.T).numpy() == pytest.approx(curvature[inside][:, inside])


def test_a_box_without_curvature_has_no_minimum_to_tell():
    flat, slope = torch.zeros(2, 2).double(), torch.ones(2).double()
    assert box_minimum(flat, slope, -slope, slope) is None


@pytest.mark.parametrize("seed", range(4))
def test_ilqr_within_limits_is_scipys_optimum(seed):
    """Mutations that fail here: limits that leave out the path's own actions; clipping instead of the box."""
    model = Linear(*problem_of(seed))
    start = torch.from_numpy(5.0 * np.random.default_rng(seed).normal(size=(1, 4)))
    plan = ILQR(ILQRConfig(horizon=12, iterations=50)).plan(model, start.float())
    value, actions = best_actions(model, start, np.zeros((12, 2)))
    at_limit = np.abs(actions) > 1.0 - 1e-6
    assert 3 <= at_limit.sum() <= 20, "the test is one of limits"
    assert float(plan.value) == pytest.approx(value, rel=1e-5)
    assert plan.actions[0].numpy() == pytest.approx(actions, abs=2e-3)
    assert (plan.gains[0].numpy()[at_limit] == 0.0).all(), "a control at its limit does not answer"


# Nonlinear systems ------------------------------------------------------------------------------------------


def test_expansion_is_that_of_finite_differences():
    model = Pendulum()
    with differentiating(model):
        problem = Problem(model, angle(2.0), 3)
        path = problem.roll(lambda t, x: torch.tensor([[0.3 - 0.2 * t]]), 1)
        expansion = problem.expand(path)

    def outcome(row):
        ahead = model.step(torch.from_numpy(row[None, :3]), torch.from_numpy(row[None, 3:]))
        return torch.cat([ahead.state[0], -ahead.reward]).numpy()

    def slope(row):
        return scipy.optimize.approx_fprime(row, lambda x: outcome(x)[-1], 1e-5)

    for t in range(3):
        at = torch.cat([path.states[0, t], path.actions[0, t]]).double().numpy()
        first = scipy.optimize.approx_fprime(at, outcome, 1e-7)
        second = scipy.optimize.approx_fprime(at, slope, 1e-5)
        values, vectors = np.linalg.eigh(0.5 * (second + second.T))
        assert torch.cat([expansion.a[t], expansion.b[t]], 1).numpy() == pytest.approx(first[:3], abs=1e-5)
        assert expansion.slope[t].numpy() == pytest.approx(first[3], abs=1e-4)
        convex = (vectors * values.clip(min=0.0)) @ vectors.T
        assert expansion.curvature[t].numpy() == pytest.approx(convex, abs=1e-2)


@pytest.mark.parametrize("at", [0.5, 1.5, 3.0])
def test_ilqr_finds_scipys_optimum_on_the_pendulum(at):
    plan = ILQR(ILQRConfig(horizon=20, iterations=100)).plan(Pendulum(), angle(at))
    from_zero, _ = best_actions(Pendulum(), angle(at), np.zeros((20, 1)))
    from_plan, _ = best_actions(Pendulum(), angle(at), plan.actions[0].double().numpy())
    assert float(plan.value) == pytest.approx(from_plan, rel=1e-4), "a local optimum"
    assert float(plan.value) >= from_zero - 0.03 * abs(from_zero), "nor much worse than scipy's own"


def test_a_step_that_goes_too_far_is_shortened():
    """Newton's step on sqrt(1 + y²) leads further away where |y| > 1.

    Mutation that fails here: full steps only.
    """

    def valley(obs, action, next_obs):
        return -torch.sqrt(1.0 + (6.0 * (action[..., 0] - 0.45)) ** 2)

    start = torch.zeros(1, 2)
    values = [
        float(ILQR(ILQRConfig(horizon=1, iterations=n)).plan(Other(valley), start).value) for n in (1, 2, 4)
    ]
    assert values[0] > -1.5 > float(valley(start, torch.zeros(1, 1), start))
    assert values == sorted(values) and values[-1] == pytest.approx(-1.0, abs=1e-4)


def test_ilqr_goes_on_where_the_last_plan_ended():
    """Mutation that fails here: no warm start."""
    planner, guess, values = ILQR(ILQRConfig(horizon=40, iterations=1)), None, []
    for _ in range(8):
        plan = planner.plan(Pendulum(), angle(1.0), guess, shift=0)
        guess = plan.guess
        values.append(float(plan.value))
    assert values == sorted(values)
    assert values[0] < -200.0 and values[-1] > -130.0


def test_gains_make_a_perturbed_path_better_than_open_loop():
    """Mutations that fail here: gains of another sign; deviations from another step's state."""
    model, start, planner = Pendulum(), angle(0.6), ILQR(ILQRConfig(horizon=40, iterations=30))
    plan = planner.plan(model, start)

    def roll(act, state):
        total = 0.0
        for t in range(40):
            prediction = model.step(state, act(t, state))
            state, total = prediction.state, total + float(prediction.reward)
        return total

    def closed(t, state):
        return feedback(plan, t, state)

    assert roll(closed, start) == pytest.approx(float(plan.value), rel=1e-4)
    for pushed in (angle(0.63), angle(0.57), angle(0.6) + torch.tensor([[0.0, 0.0, 0.15]])):
        best = float(planner.plan(model, pushed, plan.guess, shift=0).value)
        opened, answered = roll(lambda t, state: plan.actions[:, t], pushed), roll(closed, pushed)
        assert answered > opened
        assert best - answered < 0.2 * (best - opened), "most of what planning anew would bring"
    assert torch.equal(feedback(replace(plan, gains=None), 3, start), plan.actions[:, 3])


def swing_up(planner, steps):
    """Return, and the least height of the last 20 steps, from hanging."""
    model, state, guess, generator = Pendulum(), angle(math.pi), None, seeded()
    total, heights = 0.0, []
    for _ in range(steps):
        plan = planner.plan(model, state, guess, noise=generator)
        prediction = model.step(state, plan.actions[:, 0])
        guess, state, total = plan.guess, prediction.state, total + float(prediction.reward)
        heights.append(float(state[0, 0]))
    return total, min(heights[-20:])


@pytest.mark.learning
def test_ilqr_swings_the_pendulum_up():
    """Mutations that fail here: no expansion of the dynamics by the action; no value of the next state."""
    total, height = swing_up(ILQR(), 90)
    assert height > 0.98
    assert total > -380.0


@pytest.mark.learning
def test_gradient_swings_the_pendulum_up():
    """Mutations that fail here: descent in place of ascent; no warm start."""
    total, height = swing_up(Gradient(GradientConfig(iterations=8)), 100)
    assert height > 0.95
    assert total > -420.0


# What goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", [LQR(), ILQR()])
def test_a_flat_reward_is_regularised_and_counted(planner):
    """As dm_control's tolerance far away: neither slope nor curvature, so that a factorisation fails."""
    model = Other(lambda obs, action, next_obs: (obs[..., 0].abs() > 100.0).float())
    plan = planner.plan(model, torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    assert plan.valid.all() and (plan.value == 0.0).all()
    assert plan.actions.abs().max() < 1e-5
    assert (plan.failures > 0).all()
    assert (planner.plan(PointMass(), torch.tensor([[1.0, 0.0]])).failures == 0).all()


def test_a_bump_is_climbed_from_where_it_is_nearly_flat():
    """Its curvature is negative where a plan begins, and zero far away."""

    def bump(obs, action, next_obs):
        return torch.exp(-2.0 * next_obs[..., 0] ** 2) - 0.01 * action[..., 0] ** 2

    start = torch.tensor([[1.5, 0.0]])
    plan = ILQR(ILQRConfig(horizon=25, iterations=40)).plan(Other(bump), start)
    still = float(Problem(Other(bump), start, 25).roll(lambda t, x: torch.zeros(1, 1), 1).value)
    assert float(plan.value) > still + 5.0


def test_controls_without_effect_leave_the_plan_as_it_was():
    model = Linear(np.eye(2), np.zeros((2, 1)), np.eye(2), np.zeros((1, 1)))
    plan = ILQR().plan(model, torch.ones(1, 2))
    assert plan.valid.all() and torch.equal(plan.actions, torch.zeros(1, 25, 1))
    assert plan.failures.item() > 5


def test_damping_grows_and_shrinks_ever_faster():
    damping, seen = Damping(), []
    damping.up()
    assert damping.value == LEAST
    for change in (damping.up, damping.up, damping.up, damping.down, damping.down):
        change()
        seen.append(damping.value / LEAST)
    assert seen == pytest.approx([4, 4 * 8, 4 * 8 * 16, 4 * 8 * 16 / 2, 4 * 8 * 16 / 8])
    damping.down()
    damping.down()
    assert damping.value == 0.0
    while not damping.over:
        damping.up()
    assert damping.value > MOST


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_prediction_that_is_not_finite_gives_no_plan(planner):
    def reward(obs, action, next_obs):
        return action[..., 0] * torch.where(obs[..., 0] > 0.5, torch.nan, 0.0)

    plan = planner().plan(Other(reward), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), noise=seeded())
    assert plan.valid.tolist() == [False, True]
    assert plan.actions[0].isnan().all() and plan.actions[1].isfinite().all()
    assert plan.value[0] == -torch.inf and plan.refused[0] > 0


@pytest.mark.parametrize("planner", [ILQR(), Gradient()])
def test_candidates_that_leave_where_the_model_is_finite_never_win(planner):
    """The best would be beyond 0.4, where nothing is predicted."""

    def reward(obs, action, next_obs):
        return 10.0 * next_obs[..., 0] + torch.where(next_obs[..., 0] > 0.4, torch.nan, 0.0)

    plan = planner.plan(Other(reward), torch.tensor([[0.0, 0.0]]), noise=seeded())
    assert plan.valid.all() and plan.actions.isfinite().all() and plan.value.isfinite().all()


@pytest.mark.parametrize("planner", [ILQR(), Gradient()])
def test_nothing_counts_after_the_end(planner):
    class Ends(PointMass):
        def step(self, state, action, noise=None):
            prediction = super().step(state, action, noise)
            return replace(prediction, alive=(prediction.obs[..., 0] < 0.5).float())

    plan = planner.plan(Ends(), torch.tensor([[1.0, 0.0]]), noise=seeded())
    assert float(plan.value) == pytest.approx(-1.0 - 0.04 * float(plan.actions[0, 0, 0]) ** 2)


def test_what_cannot_be_differentiated_is_told_in_one_sentence():
    class Table(PointMass):
        capabilities = Capabilities(rewards=True)

    class Remembering(PointMass):
        capabilities = Capabilities(differentiable=True, recurrent=True, rewards=True)

    start = torch.zeros(1, 2)
    for planner in PLANNERS:
        with pytest.raises(UserError, match=r"a model with gradients, which Table has not; .*icem, cem"):
            planner().plan(Table(), start)
        with pytest.raises(UserError, match="which Tabular has not"):
            planner().check(point_mass_spec(), Tabular)
        with pytest.raises(UserError, match="are discrete; 'random_shooting' and 'mcts' take"):
            planner().check(replace(point_mass_spec(), action=(Element("force", count=2),)))
        planner().check(point_mass_spec(), Ensemble)
    for planner in (LQR, ILQR):
        with pytest.raises(UserError, match=r"but Remembering has a memory; .*icem, cem"):
            planner().plan(Remembering(), start)
    Gradient().check(point_mass_spec(), RSSM)
    for planner in (ILQR(ILQRConfig(caution=1.0)), Gradient(GradientConfig(caution=1.0))):
        with pytest.raises(UserError, match="no members that could disagree"):
            planner.plan(PointMass(), start)


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_reward_that_only_jumps_is_told_in_one_sentence(planner):
    class Target:
        spec = point_mass_spec()

        def reward(self, obs, action, next_obs):
            return 1.0 * (abs(next_obs[..., 0]) < 0.1)

    with pytest.raises(UserError, match="a reward with gradients, but that of task 'point_mass' only jumps"):
        planner().plan(WithTask(PointMass(), Target()), torch.zeros(1, 2))


def test_a_state_of_whole_numbers_cannot_be_linearised():
    class Counted(NamedTuple):
        obs: torch.Tensor
        count: torch.Tensor

    with pytest.raises(UserError, match=r"a state of floating-point numbers; .*icem, cem"):
        ILQR().plan(PointMass(), Counted(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))


# Learned models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_ensemble_is_planned_with_and_left_as_it_was(planner, around):
    """Whatever its callers do about gradients, and though sampling planners have used it before."""
    ensemble = Ensemble(point_mass_spec(), EnsembleConfig(hidden=(16, 16)))
    model, horizon = WithTask(ensemble, PointMass()), planner().config.horizon
    with around():
        state = model.observe(None, None, {"vector": torch.tensor([[0.5, 0.0], [-0.3, 0.2]])})
        with torch.inference_mode():
            model.imagine(state, torch.zeros(2, 1, 3, 1))
        plan = planner().plan(model, state, noise=seeded(), display=3)
    assert plan.valid.all() and plan.disagreement.isfinite().all()
    assert plan.obs.shape == plan.spread.shape == (2, horizon + 1, 2)
    assert all(p.requires_grad and p.grad is None for p in ensemble.parameters())
    if planner is not Gradient:  # that one is worth the mean over the members' own futures
        value = 0.0
        for t in range(horizon):
            prediction = model.step(state, plan.actions[:, t])
            state, value = prediction.state, value + prediction.reward
        assert plan.value.tolist() == pytest.approx(value.tolist(), rel=1e-4)


@pytest.mark.parametrize("planner", [ILQR, Gradient])
def test_caution_keeps_plans_to_where_members_agree(planner):
    class Members(PointMass):
        """They disagree where one accelerates to the right."""

        def step(self, state, action, noise=None):
            return replace(super().step(state, action), disagreement=action[..., 0].relu())

    start = torch.tensor([[-1.0, 0.0]])
    bold = planner().plan(Members(), start, noise=seeded())
    careful = planner(planner.Config(caution=20.0)).plan(Members(), start, noise=seeded())
    assert bold.disagreement > 0.15
    assert careful.disagreement < 0.05


# Gradient ascent --------------------------------------------------------------------------------------------


def test_a_plan_at_its_limits_comes_back():
    """Mutation that fails here: tanh without room (EDGE = 1 - 1e-7)."""
    planner, start = Gradient(GradientConfig(horizon=10, starts=1)), torch.tensor([[1.0, 1.0]])
    guess = Guess(torch.ones(1, 10, 1))
    for _ in range(4):
        guess = planner.plan(PointMass(), start, guess, shift=0).guess
    assert guess.mean[0, :3].max() < -0.5
    assert guess.mean.abs().max() <= EDGE


def test_the_best_of_several_ways_up_is_followed():
    """Two hills: the last plan stands at the foot of the lower one."""

    def hills(obs, action, next_obs):
        push = action[..., 0]
        return torch.exp(-20.0 * (push + 0.4) ** 2) + 2.0 * torch.exp(-20.0 * (push - 0.5) ** 2)

    start, guess = torch.zeros(1, 2), Guess(torch.full((1, 1, 1), -0.3))
    alone = Gradient(GradientConfig(horizon=1, starts=1, std=1.0, iterations=30))
    several = Gradient(GradientConfig(horizon=1, starts=16, std=1.0, iterations=30))
    assert float(alone.plan(Other(hills), start, guess, shift=0).value) == pytest.approx(1.0, abs=0.02)
    assert float(several.plan(Other(hills), start, guess, shift=0, noise=seeded()).value) > 1.98


def test_gradient_ascent_reaches_the_optimum_with_warm_starts():
    """Mutations that fail here: descent in place of ascent; no warm start."""
    planner, start, guess = Gradient(GradientConfig(learning_rate=0.02)), torch.tensor([[0.3, -0.2]]), None
    values = []
    for _ in range(25):
        plan = planner.plan(PointMass(), start, guess, shift=0, noise=seeded())
        guess = plan.guess
        values.append(float(plan.value))
    assert values == sorted(values), "the last plan is one of those tried"
    assert values[-1] == pytest.approx(lqr_return(start[0].double().numpy(), 25), rel=0.01)


# Between plans ----------------------------------------------------------------------------------------------


def test_a_followed_plan_answers_to_where_the_state_turned_out_to_be():
    """Mutations that fail here: rows are followed as they are; what is under way is forgotten."""
    model, first = PointMass(), torch.tensor([True])
    mpc = MPC(ILQR(), model, replan_every=4)
    under_way = torch.tensor([[[0.2]]])
    for pending in (None, under_way):
        memory = mpc.observe({"vector": torch.tensor([[0.1, 0.0]])}, None, first=first, prev_action=None)
        rows, memory = mpc.choose(memory, pending=pending)
        plan, seen = memory.plan, {"vector": torch.tensor([[0.15, -0.02]])}
        memory = mpc.observe(seen, memory, first=~first, prev_action=rows[:, 0])
        answer, after = mpc.choose(memory, pending=pending)
        state = seen["vector"] if pending is None else model.step(seen["vector"], under_way[:, 0]).state
        assert after.plan is plan, "it is followed"
        assert torch.equal(answer[:, 0], feedback(plan, 1, state))
        assert torch.equal(answer[:, 1:], plan.actions[:, 2:])
        assert (answer[:, 0] - plan.actions[:, 1]).abs() > 0.05
