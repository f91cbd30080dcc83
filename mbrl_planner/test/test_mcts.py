"""Monte Carlo tree search against exhaustive search and dynamic programming, its widening, and bad input.

Its contract is in test_planners.py. Mutations that these tests notice: one outcome for all times (no widening
of states); no exploration bonus; the discount applied to the reward too; the least visited action answered.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.models.tabular import Tabular, value_iteration
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.types import Prediction
from mbrl_planner.planners.mcts import MCTS, MCTSConfig, Tree

torch.set_num_threads(1)

DEPTH = 4


def table(states: int, actions: int) -> Tabular:
    observation = (Element("state", low=0.0, high=states - 1.0, count=states),)
    return Tabular(Spec("table", observation, (Element("choice", count=actions),), 0.1))


def random_tree(seed: int, actions: int = 2, outcomes: int = 1) -> Tabular:
    """A tree of choices, each followed by chance where there are several outcomes, three to one."""
    rng, ways = np.random.default_rng(seed), actions * outcomes
    inner = sum(ways**d for d in range(DEPTH))
    model = table(inner + ways**DEPTH, actions)
    for node in range(inner):
        for way in range(ways):
            after, pay = ways * node + 1 + way, rng.uniform()
            for _ in range(3 if way % outcomes == 0 and outcomes > 1 else 1):
                model.add(node, way // outcomes, pay, after, after >= inner)
    return model


def search(model: Tabular, seed: int = 0, **options: float) -> tuple[Tree, torch.Tensor]:
    """A tree grown from state 0, and the plan that it holds."""
    config = replace(MCTSConfig(horizon=DEPTH, rollouts=1), **options)
    tree = Tree(config, model, torch.zeros(1, 1), None, None, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for _ in range(config.simulations):
            tree.simulate()
    return tree, tree.path(tree.ranking(tree.root)[0])


@pytest.mark.parametrize("seed", range(6))
def test_finds_the_best_way_through_a_tree_and_goes_there_ever_more(seed: int) -> None:
    model = random_tree(seed)
    going, reward = model.tables()
    value, policy = value_iteration(going, reward, 1.0)
    tree, plan = search(model, seed, simulations=400)
    node, best = 0, []
    for _ in range(DEPTH):
        best.append(int(policy[node]))
        node = 2 * node + 1 + best[-1]
    assert plan.argmax(-1).tolist() == best
    shares = [
        max(e.visits for e in t.root.edges) / t.root.visits
        for t in (search(model, seed, simulations=40)[0], tree)
    ]
    assert shares[1] > max(shares[0], 0.7)
    assert tree.ranking(tree.root)[0].value == pytest.approx(value[0], abs=0.25)


@pytest.mark.parametrize("seed", range(4))
def test_expects_of_chance_what_dynamic_programming_expects(seed: int) -> None:
    model = random_tree(seed, outcomes=2)
    value, _ = value_iteration(*model.tables(), 1.0)
    going, reward = model.tables()
    worth = reward[0] + going[0] @ value
    tree, plan = search(model, seed, simulations=1500)
    by_action = {int(e.action.argmax()): e for e in tree.root.edges}
    best = int(worth.argmax())
    assert by_action[best].value == pytest.approx(worth[best], abs=0.12)
    if worth[best] - worth.min() > 0.1:
        assert int(plan[0].argmax()) == best
    outcomes = by_action[best].outcomes
    assert len(outcomes) == 2  # what comes again is not another outcome
    assert max(o.visits for o in outcomes) / by_action[best].visits == pytest.approx(0.75, abs=0.06)


def test_is_not_taken_in_by_the_most_frequent_outcome() -> None:
    """A gamble that mostly pays a little and sometimes costs a lot, beside something safe."""
    model = table(4, 2)
    for after, pay, times in ((1, 1.0, 3), (2, -5.0, 1)):
        for _ in range(times):
            model.add(0, 0, pay, after, True)
    model.add(0, 1, 0.0, 3, True)
    for seed in range(5):
        tree, plan = search(model, seed, simulations=200)
        assert int(plan[0].argmax()) == 1
        assert {int(e.action.argmax()): e for e in tree.root.edges}[1].value == 0.0


def test_nothing_comes_after_the_end() -> None:
    model = table(2, 2)
    model.add(0, 0, 1.0, 1, True)
    model.add(0, 1, 0.4, 0, False)
    model.add(1, 0, 5.0, 1, False)
    model.add(1, 1, 5.0, 1, False)
    tree, plan = search(model, simulations=200)
    assert plan.argmax(-1).tolist() == [1, 1, 1, 0]
    by_action = {int(e.action.argmax()): e for e in tree.root.edges}
    assert by_action[0].value == 1.0


def test_what_comes_after_a_likely_end_counts_by_how_likely_it_goes_on() -> None:
    model = table(2, 2)
    for ended in (True, False):
        model.add(0, 0, 1.0, 1, ended)
    model.add(0, 1, 0.0, 0, False)
    for action in (0, 1):
        model.add(1, action, 5.0, 1, False)
    tree, _ = search(model, simulations=50, horizon=2)
    values = [e.value for e in tree.root.edges if int(e.action.argmax()) == 0]
    assert values == [pytest.approx(1.0 + 0.5 * 5.0)]


@pytest.mark.parametrize(("discount", "first"), [(1.0, 1), (0.5, 0)])
def test_later_rewards_count_less(discount: float, first: int) -> None:
    model = table(4, 2)
    model.add(0, 0, 1.0, 1, True)
    model.add(0, 1, 0.0, 2, False)
    for action in range(2):
        model.add(2, action, 1.5, 3, True)
    tree, plan = search(model, simulations=100, discount=discount)
    assert int(plan[0].argmax()) == first
    worth = {int(e.action.argmax()): e.value for e in tree.root.edges}
    assert worth[0] == pytest.approx(1.0) and worth[1] == pytest.approx(1.5 * discount)


class Windy(PointMass):
    """The point mass with noise on its velocity."""

    capabilities = Capabilities(stochastic=True, rewards=True)

    def step(self, state, action, noise=None):
        after = super().step(state, action).state
        if noise is not None:
            wind = 0.1 * torch.randn(after.shape[:-1], generator=noise)
            after = after + torch.stack([torch.zeros_like(wind), wind], -1)
        return Prediction(after, after, reward=self.reward(state, action, after))


def grown(model: PointMass, simulations: int, **options: float) -> Tree:
    config = replace(MCTSConfig(simulations=simulations, horizon=6, rollouts=2), **options)
    tree = Tree(config, model, torch.tensor([[1.0, 0.0]]), None, None, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(simulations):
            tree.simulate()
    return tree


def test_actions_and_outcomes_widen_as_the_root_of_the_visits() -> None:
    for simulations in (16, 100, 400):
        tree = grown(Windy(), simulations, widening=1.0)
        assert len(tree.root.edges) == np.sqrt(simulations)
        most = max(tree.root.edges, key=lambda edge: edge.visits)
        assert len(most.outcomes) == pytest.approx(np.ceil(np.sqrt(most.visits)), abs=1)
    assert all(len(edge.outcomes) == 1 for edge in grown(PointMass(), 100).root.edges)


def test_the_last_plan_is_tried_first_all_the_way() -> None:
    actions = torch.linspace(-0.9, 0.9, 6)[:, None]
    config = MCTSConfig(simulations=200, horizon=6, rollouts=1, widening=0.2, widening_power=0.1)
    tree = Tree(config, PointMass(), torch.zeros(1, 2), actions, None, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(200):
            tree.simulate()
    assert torch.equal(tree.path(tree.root.edges[0]), actions)


class Heads:
    """Value where the position is above 0; a policy that pushes on."""

    def value(self, state: torch.Tensor) -> torch.Tensor:
        return 1000.0 * (state[..., 0] > 0).float()

    def policy(self, state: torch.Tensor, noise: torch.Generator | None = None) -> torch.Tensor:
        return torch.full((*state.shape[:-1], 1), 0.75)


def test_a_learned_value_tells_what_a_leaf_is_worth_and_a_policy_what_to_try_first() -> None:
    planner, start = MCTS(MCTSConfig(horizon=8, simulations=100)), torch.tensor([[-0.02, 0.0]])
    drawn = planner.plan(PointMass(), start, heads=Heads(), noise=torch.Generator().manual_seed(0))
    plain = planner.plan(PointMass(), start, noise=torch.Generator().manual_seed(0))
    assert drawn.value > 100 > plain.value
    config = MCTSConfig(simulations=1)
    tree = Tree(config, PointMass(), start, None, Heads(), torch.Generator())
    assert tree.propose(tree.root).action.item() == 0.75


class Broken(PointMass):
    """Has no number for a push to the right, or for any."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def step(self, state, action, noise=None):
        ahead = super().step(state, action)
        assert ahead.reward is not None
        return replace(ahead, reward=ahead.reward.where(action[..., 0] < self.above, torch.nan))


def test_what_leads_to_no_number_is_refused_counted_and_never_answered() -> None:
    starts = torch.tensor([[-1.0, 0.0], [-0.5, 0.1]])
    planner = MCTS(MCTSConfig(horizon=3))
    plan = planner.plan(Broken(0.2), starts, noise=torch.Generator().manual_seed(0))
    assert plan.valid.all() and (plan.actions < 0.2).all()
    assert (plan.refused > 0).all() and plan.value.isfinite().all()
    none = planner.plan(Broken(-2.0), starts, noise=torch.Generator().manual_seed(0))
    assert not none.valid.any() and none.actions.isnan().all() and (none.value == -torch.inf).all()


def test_many_continuous_actions_get_one_sentence() -> None:
    spec = point_mass_spec()
    wide = replace(spec, action=tuple(replace(spec.action[0], name=f"joint_{i}") for i in range(5)))
    with pytest.raises(
        UserError,
        match="'mcts' takes at most 4 continuous action elements, but task 'point_mass' has 5; take",
    ):
        MCTS().check(wide)
    MCTS().check(replace(spec, action=(Element("choice", count=50),)))
