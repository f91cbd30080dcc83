"""The random tree: what it finds, what it obeys, and what it is good for as a warm start."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.types import Prediction
from mbrl_planner.planners.cem import CEM
from mbrl_planner.planners.gradient import Gradient
from mbrl_planner.planners.icem import ICEM
from mbrl_planner.planners.ilqr import ILQR
from mbrl_planner.planners.mppi import MPPI
from mbrl_planner.planners.pddm import PDDM
from mbrl_planner.planners.random_shooting import RandomShooting
from mbrl_planner.planners.rrt import RRT, RRTConfig, Tree
from mbrl_planner.planners.scoring import bounds_of

# Walls of a U on its side: the coordinate across each, where it is on that, and from where to where it goes.
ACROSS = torch.tensor([[0], [1], [1]])
AT, LOW, HIGH = torch.tensor([[0.3, 0.6, -0.6], [-0.6, -0.5, -0.5], [0.6, 0.3, 0.3]])
SIDES = ((-1.0, 3.0), (-1.2, 1.2))  # of the room
GOAL = torch.tensor([2.0, 0.0])
START = torch.zeros(1, 2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Trap(ObservationModel):
    """A point in the plane that moves by up to 0.25 m a step along each axis, unless a wall is in between.

    The goal is in sight behind the closed end of a U, so that all that helps at once ends at its wall.
    """

    capabilities = Capabilities(differentiable=True, rewards=True)

    def __init__(self) -> None:
        place = Element("x", "m", *SIDES[0]), Element("y", "m", *SIDES[1])
        speed = tuple(Element(f"speed_{axis}", "m/s", -2.0, 2.0) for axis in "xy")
        super().__init__(Spec("trap", place, speed, 0.1))
        self.steps = 0

    def step(self, state: Tensor, action: Tensor, noise: Any = None) -> Prediction:
        self.steps += 1
        after = state + 0.25 * action
        after = torch.stack([after[..., i].clamp(*SIDES[i]) for i in (0, 1)], dim=-1)
        after = torch.where(crosses(state, after)[..., None], state, after)
        return Prediction(after, after, -(after - GOAL).norm(dim=-1))


def crosses(before: Tensor, after: Tensor) -> Tensor:
    """Whether the way from one place [..., 2] to another goes through a wall."""
    before, after = (x[..., None, :].expand(*x.shape[:-1], 3, 2) for x in (before, after))
    across = ACROSS.expand(*before.shape[:-1], 1)
    a, b = (x.gather(-1, across)[..., 0] for x in (before, after))
    c, d = (x.gather(-1, 1 - across)[..., 0] for x in (before, after))
    share = ((AT - a) / torch.where(a == b, torch.inf, b - a)).clamp(0.0, 1.0)
    along = c + share * (d - c)
    return (((a - AT) * (b - AT) <= 0) & (a != b) & (along >= LOW) & (along <= HIGH)).any(-1)


def drive(planner: Any, seed: int, steps: int = 40) -> float:
    """How near to the goal the point is after some steps [m]."""
    model, state, guess, noise = Trap(), START, None, seeded(seed)
    for _ in range(steps):
        plan = planner.plan(model, state, guess, noise=noise)
        guess, state = plan.guess, model.step(state, plan.actions[:, 0]).state
    return float((state - GOAL).norm())


def test_local_search_stays_in_a_trap_from_which_a_tree_leads_it():
    """All with the defaults of iCEM; without the tree it stays where it began, 1.7 m away."""
    alone = [drive(ICEM(), seed) for seed in range(3)]
    helped = [drive(ICEM(ICEM.Config(rrt_expansions=600)), seed) for seed in range(3)]
    print(alone, helped)
    assert min(alone) > 1.5 and max(helped) < 0.2


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI, PDDM, RandomShooting, Gradient, ILQR])
def test_planners_of_all_kinds_set_out_from_the_trees_plan(planner):
    """The first plan leads round the wall, which none of them finds by itself."""
    alone = planner().plan(Trap(), START, noise=seeded())
    helped = planner(planner.Config(rrt_expansions=600)).plan(Trap(), START, noise=seeded())
    assert alone.value < -42.0 < -38.0 < helped.value


def test_the_tree_is_grown_for_the_first_plan_only():
    model, planner = Trap(), ICEM(ICEM.Config(rrt_expansions=50))
    first = planner.plan(model, START, noise=seeded())
    grown, model.steps = model.steps, 0
    planner.plan(model, START, first.guess, noise=seeded())
    assert grown > 75 + 50 and model.steps == 75, "three iterations of 25 steps each"


def nodes(model: Any, start: Tensor, seed: int = 0, **options: Any) -> list[Any]:
    config = RRTConfig(**options)
    tree = Tree(model, config, bounds_of(config.constraints), seeded(seed))
    tree.grow(start, torch.zeros(config.horizon, model.spec.inner_action_dim), config.candidates, None)
    return tree.nodes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("model", [PointMass(), Trap()])
def test_every_node_is_where_its_plan_leads(model, seed):
    start, horizon = torch.tensor([[0.1, -0.2]]), 17
    for node in nodes(model, start, seed, candidates=200, horizon=horizon, hold=5):
        state = start
        for action in node.plan:
            state = model.step(state, action[None]).state
        assert np.abs(state[0].numpy() - node.obs).max() < 1e-6
        assert torch.equal(node.state, state)
        assert len(node.plan) <= horizon and (not len(node.plan) or node.plan.abs().max() <= 1.0)


def test_a_tree_fills_the_plane_where_random_plans_stay_at_home():
    """Of as many places that as many random plans get to, with actions held as long, fewer are apart."""
    size = {"candidates": 300, "horizon": 25, "hold": 4}
    places = np.stack([node.obs for node in nodes(Trap(), START, **size)])
    plans = (2.0 * torch.rand(1, 300, 7, 2, generator=seeded()) - 1.0).repeat_interleave(4, dim=2)[:, :, :25]
    random = Trap().imagine(START, plans, keep=("obs",)).obs.flatten(0, -2).numpy()

    def cells(points: np.ndarray) -> int:
        return len({tuple(cell) for cell in np.floor(points / 0.25).astype(int)})

    assert cells(places) > 1.5 * cells(random[:: len(random) // len(places)])
    outside = (places[:, 0] > 0.4) & (np.abs(places[:, 1]) < 0.5)
    assert outside.any(), "some node is behind the wall"


def test_no_branch_breaks_a_constraint_on_its_way():
    model, start = PointMass(), torch.tensor([[0.0, 0.0]])
    limits = ("velocity<0.5", "position>-0.2")
    free = nodes(model, start, candidates=200)
    assert max(node.obs[1] for node in free) > 1.0 and min(node.obs[0] for node in free) < -0.5
    for node in nodes(model, start, candidates=200, constraints=limits):
        state = start
        for action in node.plan:
            state = model.step(state, action[None]).state
            assert state[0, 1] <= 0.5 and state[0, 0] >= -0.2
    plan = RRT(RRTConfig(constraints=limits)).plan(model, torch.tensor([[1.0, 0.4]]), noise=seeded())
    assert plan.violation.item() == 0.0


def test_expansions_are_counted_whatever_the_clock_says():
    """Each is at most `hold` calls of the model; the rest are the probes' and the candidates' horizon."""
    for expansions in (2, 40, 90):
        model = Trap()
        plan = RRT(RRTConfig(candidates=expansions, hold=3, horizon=20)).plan(model, START, noise=seeded())
        assert 2 * 20 + expansions <= model.steps <= 2 * 20 + 3 * expansions
        assert plan.deadline_met


def test_where_time_is_up_the_plan_so_far_is_kept():
    model, planner = Trap(), RRT(RRTConfig(candidates=10_000))
    good = RRT(RRTConfig(candidates=800)).plan(model, START, noise=seeded(1))
    model.steps = 0
    plan = planner.plan(model, START, good.guess, shift=0, noise=seeded(), deadline=time.perf_counter() - 1.0)
    assert not plan.deadline_met and model.steps < 100
    assert plan.value >= good.value - 1e-4


def test_the_tree_goes_on_from_along_the_last_plan():
    model = Trap()
    good = RRT(RRTConfig(candidates=800)).plan(model, START, noise=seeded(1))
    again = RRT(RRTConfig(candidates=30)).plan(model, START, good.guess, shift=0, noise=seeded())
    alone = RRT(RRTConfig(candidates=30)).plan(model, START, noise=seeded())
    assert again.value >= good.value - 1e-4 and alone.value < -42.0


def test_each_state_of_a_batch_has_its_own_tree():
    starts = torch.tensor([[0.0, 0.0], [1.5, 1.0]])
    plan = RRT().plan(Trap(), starts, noise=seeded())
    assert plan.actions.shape == (2, 25, 2)
    for start, actions, value in zip(starts, plan.actions, plan.value, strict=True):
        reward = Trap().imagine(start[None], actions[None, None]).returns()
        assert float(reward) == pytest.approx(float(value), abs=1e-4)


class Ending(Trap):
    """Ends left of the start, and predicts nothing below it."""

    def step(self, state: Tensor, action: Tensor, noise: Any = None) -> Prediction:
        ahead = super().step(state, action)
        lost = torch.where(ahead.obs[..., 1:] < 0.0, torch.nan, ahead.obs)
        return replace(ahead, state=lost, obs=lost, alive=(ahead.obs[..., 0] > 0.0).float())


def test_nothing_grows_from_where_it_ends_or_where_no_number_is_predicted():
    for node in nodes(Ending(), torch.tensor([[0.1, 0.1]]), candidates=100)[1:]:
        assert np.isfinite(node.obs).all() and node.obs[0] > 0.0


def wide(count: int) -> Spec:
    return replace(
        point_mass_spec(), observation=tuple(Element(f"x{i}", "m", -1.0, 1.0) for i in range(count))
    )


class Blind(PointMass):
    """Predicts rewards, and no observations."""

    capabilities = Capabilities(decodes=False, rewards=True)


@pytest.mark.parametrize(
    ("spec", "model", "sentence"),
    [
        (wide(13), None, "at most 12 observation elements, but task 'point_mass' has 13"),
        (point_mass_spec(), Blind(), "needs a model that predicts observations, which Blind does not"),
        (
            replace(point_mass_spec(), action=(Element("force", count=3),)),
            None,
            "planner 'rrt' needs continuous actions",
        ),
    ],
)
def test_a_tree_that_cannot_grow_says_so_before_it_starts(spec, model, sentence):
    planners = [RRT()]
    if not spec.discrete:
        planners += [ICEM(ICEM.Config(rrt_expansions=9)), ILQR(ILQR.Config(rrt_expansions=9))]
    for planner in planners:
        with pytest.raises(UserError) as error:
            planner.check(spec, model)
        assert sentence in str(error.value) or "needs a model with gradients" in str(error.value)
        planner.check(wide(12), None)


def test_a_tree_is_not_started_by_another():
    with pytest.raises(UserError, match="rrt_expansions is for other planners"):
        build(RRTConfig, {"rrt_expansions": 5})
