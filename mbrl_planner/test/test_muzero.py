"""MuZero: its search against exhaustive search, its targets and losses by hand, bad input, and learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.models.muzero import Categorical, half_gradient, min_max, squash, unsquash
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import point_mass_spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.muzero import MuZero, MuZeroConfig
from mbrl_planner.games import ChoiceTree
from mbrl_planner.planners.gumbel import GumbelSearch, Leaf, Outcome, Tree, halving
from mbrl_planner.small_worlds import mean_return, train, typical_score

torch.set_num_threads(1)

SPEC = Spec("switch", (Element("x"), Element("y")), (Element("side", count=3),), 0.1)
SMALL = MuZeroConfig(
    latent=8,
    hidden=(16,),
    batch_size=8,
    simulations=4,
    unroll=2,
    look_ahead=3,
    discount=0.5,
    bins=11,
    largest=10.0,
)

# Search ---------------------------------------------------------------------------------------------------


def in_tree(pay: Tensor, discount: float = 1.0):
    """The rules of B trees of choices, pay [B, nodes, A] of each; a state is the node's number [B, 1]."""
    batch, nodes, actions = pay.shape
    rows = torch.arange(batch)

    def leaf(state: Tensor) -> Leaf:
        return Leaf(state, torch.zeros(len(state), actions), torch.zeros(len(state)))

    def expand(state: Tensor, action: Tensor) -> Outcome:
        node = state[:, 0]
        over = node >= nodes
        gain = torch.where(over, 0.0, pay[rows[: len(node)], node.clamp(max=nodes - 1), action])
        after = torch.where(over, node, actions * node + 1 + action)
        return Outcome(leaf(after[:, None]), gain, torch.full_like(gain, discount))

    return leaf(torch.zeros(batch, 1, dtype=torch.int64)), expand


def best_of(pay: Tensor) -> Tensor:
    """Best total [A] after each first action of one tree, pay [nodes, A], by trying everything."""

    def best(node: int) -> float:
        return max(way(node, a) for a in range(pay.shape[1])) if node < len(pay) else 0.0

    def way(node: int, action: int) -> float:
        return float(pay[node, action]) + best(pay.shape[1] * node + 1 + action)

    return torch.tensor([way(0, a) for a in range(pay.shape[1])])


@pytest.mark.parametrize("actions", [2, 3])
def test_the_search_finds_what_trying_everything_finds(actions: int) -> None:
    pay = torch.rand(
        20, sum(actions**d for d in range(3)), actions, generator=torch.Generator().manual_seed(1)
    )
    found = GumbelSearch(200, actions, 0.1).run(*in_tree(pay), None)
    worth = torch.stack([best_of(one) for one in pay])
    chosen = worth.gather(1, found.action[:, None])[:, 0]
    assert torch.allclose(chosen, worth.amax(1))
    assert (found.policy.argmax(1) == found.action).all()


def test_trees_of_a_batch_do_not_touch_each_other() -> None:
    pay = torch.rand(6, 7, 2, generator=torch.Generator().manual_seed(0))
    search = GumbelSearch(20, 2, 0.1)
    together = search.run(*in_tree(pay), None)
    for i in range(6):
        for one, many in zip(search.run(*in_tree(pay[i : i + 1]), None), together, strict=True):
            assert torch.allclose(one[0], many[i])


def test_halving_tries_all_equally_then_the_better_half() -> None:
    assert halving(4, 16).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert halving(2, 5).tolist() == [0, 0, 1, 1, 2]
    assert halving(1, 3).tolist() == [0, 1, 2]
    assert len(halving(9, 32)) == 32
    pay = torch.tensor([[[0.0, 1.0, 0.6, 0.3]]])
    visits = GumbelSearch(16, 4, 10.0).run(*in_tree(pay), None).visits
    assert visits[0].tolist() == [2, 6, 6, 2]


def test_the_policy_that_is_learned_completes_the_values_of_what_was_not_tried() -> None:
    """Three actions, one of them tried twice; equations 8, 10, 11 and 33 by hand."""
    prior = torch.tensor([[0.5, 0.3, 0.2]])
    tree = Tree(Leaf(torch.zeros(1, 1), prior.log(), torch.tensor([1.0])), 4, 0.1)
    tree.count[0, 0], tree.q[0, 0] = [2, 0, 0], [4.0, 0.0, 0.0]
    tree.low[0], tree.high[0] = 1.0, 4.0
    mixed = (1.0 + 2 * 4.0) / 3  # one visit of the node's own value, two of the only action with a value
    q = (np.array([4.0, mixed, mixed]) - 1.0) / 3.0
    logits = np.log([0.5, 0.3, 0.2]) + (50 + 2) * 0.1 * q
    expected = np.exp(logits) / np.exp(logits).sum()
    rows = np.arange(1)
    np.testing.assert_allclose(tree.policy(rows, 0)[0], expected, rtol=1e-6)
    assert tree.value(rows, 0)[0] == pytest.approx(3.0)


def test_what_is_not_allowed_is_never_tried() -> None:
    pay = torch.rand(5, 13, 3, generator=torch.Generator().manual_seed(0))
    root, expand = in_tree(pay)
    barred = root._replace(logits=torch.tensor([0.0, -torch.inf, 0.0]).expand(5, 3))
    found = GumbelSearch(20, 3, 0.1).run(barred, expand, torch.Generator().manual_seed(0))
    assert (found.visits[:, 1] == 0).all() and (found.policy[:, 1] == 0).all() and (found.action != 1).all()


def test_gumbel_noise_draws_from_the_policy_where_values_say_nothing() -> None:
    prior = torch.tensor([0.6, 0.3, 0.1])
    root, expand = in_tree(torch.zeros(4000, 1, 3))
    found = GumbelSearch(3, 3, 0.1).run(
        root._replace(logits=prior.log().expand(4000, 3)), expand, torch.Generator().manual_seed(0)
    )
    share = found.action.bincount(minlength=3) / 4000
    assert torch.allclose(share, prior, atol=0.03)


# Networks -------------------------------------------------------------------------------------------------


def test_numbers_are_squashed_and_come_back() -> None:
    x = torch.tensor([-300.0, -1.0, 0.0, 0.5, 99.0])
    assert torch.allclose(unsquash(squash(x)), x, rtol=1e-4, atol=1e-4)
    assert squash(torch.tensor(99.0)).item() == pytest.approx(9.0 + 0.099)
    bins = Categorical(-20.0, 20.0, 41)
    assert torch.allclose(bins.decode(bins.encode(x).clamp(min=1e-30).log()), x, rtol=1e-3, atol=1e-3)


def test_latents_are_scaled_and_half_of_the_gradient_goes_on() -> None:
    latent = min_max(torch.randn(5, 8) * 100.0)
    assert torch.equal(latent.amin(-1), torch.zeros(5)) and torch.equal(latent.amax(-1), torch.ones(5))
    x = torch.tensor(3.0, requires_grad=True)
    y = half_gradient(x)
    y.backward()
    assert y == 3.0 and x.grad == 0.5


# Targets --------------------------------------------------------------------------------------------------


def buffer_of(*ends: str) -> ReplayBuffer:
    """Episodes of four steps with rewards 1, 2, 3, 4, each terminated, truncated or still going on."""
    buffer = ReplayBuffer(SPEC)
    for episode, end in enumerate(ends):
        for k in range(5):
            over = k == 4
            obs = np.array([float(episode), float(k)])
            last = {"terminated": over and end == "terminated", "truncated": over and end == "truncated"}
            buffer.add(
                Transition(bytes(16), episode, k, obs, np.array([k % 3]), float(k), first=k == 0, **last)
            )
    return buffer


def agent(value: float = 0.0, **options: float) -> MuZero:
    """One whose values are a constant."""
    it = MuZero(SPEC, replace(SMALL, **options))
    encoded = it.slow.number.encode(torch.tensor(value)).clamp(min=1e-30).log()
    it.slow.prediction.layers[-1].bias.data[3:] = encoded
    return it


def test_the_future_stays_where_an_episode_ends() -> None:
    it, buffer = agent(), buffer_of("terminated", "truncated")
    future = it.future(buffer, np.array([0, 2, 6]), 4)
    when = torch.tensor([[0, 1, 2, 3, 4], [2, 3, 4, 4, 4], [2, 3, 4, 4, 4]])
    assert torch.equal(
        future.obs, it.seen(torch.stack([torch.tensor([[0], [0], [1]]).expand(3, 5), when], -1))
    )
    assert future.valid.tolist() == [[True] * 4, [True, True, False, False], [True, True, False, False]]
    assert future.reward[0].tolist() == [1, 2, 3, 4]
    assert future.action[1, :2].argmax(-1).tolist() == [0, 1]


def test_a_value_is_n_discounted_rewards_and_the_value_then() -> None:
    """Discount 1/2, n = 3, values of 8 everywhere: three positions of each of three futures."""
    it, buffer = agent(8.0), buffer_of("terminated", "truncated")
    returns = it.returns(it.future(buffer, np.array([0, 2, 6]), 5)).T
    whole = [1 + 1 + 0.75 + 1, 2 + 1.5 + 1.0, 3 + 2.0]  # the second and third end with the termination
    ended, cut = [3 + 2.0, 4.0], [3 + 2.0 + 2.0, 4 + 4.0]
    assert returns[0].tolist() == pytest.approx(whole, abs=1e-3)
    assert returns[1, :2].tolist() == pytest.approx(ended, abs=1e-3)
    assert returns[2].tolist() == pytest.approx([*cut, 8.0], abs=1e-3)


def test_after_the_end_is_an_absorbing_state_and_after_a_truncation_nothing() -> None:
    it, buffer = agent(8.0, unroll=3), buffer_of("terminated", "truncated", "going on")
    targets = it.targets(it.future(buffer, np.array([3, 7, 11]), 6))
    assert targets.reward[:, 0].tolist() == [4, 0, 0] and targets.value[1:, 0].tolist() == [0, 0, 0]
    assert targets.reward_weight.T.tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert targets.value_weight.T.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert targets.policy_weight.T.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert torch.allclose(targets.policy.sum(-1), torch.ones(4, 3))
    assert (targets.policy >= 0.05 / 3 - 1e-6).all()


def test_unknown_rewards_and_what_has_no_weight_teach_nothing() -> None:
    it, buffer = agent(unroll=3), buffer_of("truncated")
    future = it.future(buffer, np.array([2]), 6)
    unknown = it.targets(future._replace(reward=torch.full_like(future.reward, torch.nan)))
    assert not unknown.reward_weight.any() and unknown.value_weight[:, 0].tolist() == [0, 0, 1, 0]
    targets = it.targets(future)
    losses, _ = it.losses(future.obs[:, 0], targets)
    other = targets._replace(
        reward=torch.where(targets.reward_weight > 0, targets.reward, 9.0),
        value=torch.where(targets.value_weight > 0, targets.value, 9.0),
    )
    for name, loss in it.losses(future.obs[:, 0], other)[0].items():
        assert torch.equal(loss, losses[name])


# Acting ---------------------------------------------------------------------------------------------------


def test_actions_under_way_are_taken_into_account() -> None:
    it, heard, pending = agent(), list[Tensor](), torch.eye(3)[None, 1:]
    think = it.think
    it.think = lambda latent, noise: (heard.append(latent), think(latent, noise))[1]  # type: ignore[method-assign]
    obs = {"vector": torch.ones(1, 2)}
    it.choose(obs, pending=pending)
    latent = it.slow.represent(it.seen(obs["vector"]))
    for action in pending.unbind(1):
        latent = it.slow.next(latent, action)[0]
    assert torch.equal(heard[0], latent)


def test_an_element_far_from_the_first_data_drowns_no_other() -> None:
    change = []
    for seed in range(10):
        it = MuZero(SPEC, MuZeroConfig(), seed=seed)
        it.normalizer.std[0] = 0.1
        for far in (0.0, 2.4):  # a cart's place: 24 standard deviations
            latent = it.slow.represent(it.seen(torch.tensor([[far, -1.0], [far, 1.0]])))
            change.append((latent[1] - latent[0]).square().mean().sqrt().item())
    near, away = np.array(change).reshape(-1, 2).mean(0)
    assert away > 0.2 * near  # without squashing 0.06


def test_scores_are_measured_anew_when_the_data_have_doubled() -> None:
    it, buffer = agent(), buffer_of("terminated", "truncated")  # 8 steps of a y from 0 to 3
    it.learn(buffer, None, 1)
    assert int(it.measured) == 8 and it.normalizer.mean[1] == pytest.approx(1.5)
    for k, y in enumerate(range(100, 109)):
        obs = np.array([0.0, float(y)])
        buffer.add(Transition(bytes(16), 2, k, obs, np.array([0]), 0.0, first=k == 0))
        before = it.normalizer.mean.clone()
        it.learn(buffer, None, 1)
        assert torch.equal(it.normalizer.mean, before) == (k < 8)
    again = MuZero(SPEC, SMALL)
    again.load_state_dict(it.state_dict())
    assert int(again.measured) == 16


def test_it_explores_as_often_as_it_is_told() -> None:
    it = agent(exploration=0.5)
    it.slow.prediction.layers[-1].bias.data[:3] = torch.tensor([0.0, 50.0, 0.0])  # sure of itself
    obs = {"vector": torch.zeros(2000, 2)}
    assert (it.choose(obs)[0][:, 0].argmax(-1) == 1).all()
    wild = 1.0 - it.choose(obs, explore=True)[0][:, 0, 1].mean().item()
    assert wild == pytest.approx(0.5 * 2 / 3, abs=0.05)


def test_continuous_actions_get_one_sentence() -> None:
    with pytest.raises(
        UserError, match="agent 'muzero' needs discrete actions, but those of task 'point_mass'"
    ):
        MuZero(point_mass_spec())


# Learning -------------------------------------------------------------------------------------------------


class Reflex(MuZero):
    """Acts by the policy that it learned from its searches, without one."""

    def choose(self, carry, *, pending=None, explore=False):
        latent = self.slow.represent(self.seen(carry["vector"]))
        return self.one_hot[self.slow.predict(latent)[0].argmax(-1)].unsqueeze(1), carry


def score(seed: int) -> float:
    """After 300 episodes in a tree five choices deep, of the search and of the policy alone the lesser:
    random choices are 0, the best total is 1.
    """
    world = ChoiceTree(seed)
    config = MuZeroConfig(
        latent=32, hidden=(64,), bins=31, largest=10.0, simulations=8, unroll=3, look_ahead=2, discount=1.0,
        batch_size=32, learning_rate=3e-3, random_steps=300, replay_ratio=0.5,
    )  # fmt: skip
    learner, reflex = MuZero(world.spec, config, seed=seed), Reflex(world.spec, config)
    train(learner, world, 300 * world.depth, seed=seed)
    reflex.load_state_dict(learner.state_dict())
    total = min(mean_return(one, world, 1) for one in (learner, reflex))
    return (total - world.mean()) / (1.0 - world.mean())


@pytest.mark.slow
@pytest.mark.learning
def test_finds_the_best_way_through_a_tree_of_choices() -> None:
    """Seeds 0 to 5 reach 1, 1, 1, 1, 0.958 and 0.986, in 9 s each.

    Seen to fail (seeds 0 and 1): a policy that learns from itself rather than from the search (0.17, 0.47), a
    model that is unrolled without the actions (-0.66, -0.06).
    """
    assert typical_score(score, 0.9) >= 0.9
