"""DreamerV3: what the paper defines exactly, and that it learns what needs a memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from mbrl_dynamics.models.recurrent import RSSMState
from mbrl_dynamics.spec import Camera, Element, Spec
from mbrl_dynamics.testing import point_mass_spec
from mbrl_planner.agents.actors import BoundedNormal, OneHot, divergence
from mbrl_planner.agents.dreamer import Dreamer, DreamerConfig, lambda_returns
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.small_worlds import (
    HiddenVelocityWorld,
    chooser,
    point_mass_score,
    run_episode,
    train,
    typical_score,
)
from mbrl_planner.testing import check_agent

TINY: dict[str, Any] = {
    "random_steps": 60, "deter": 16, "hidden": 16, "groups": 4, "classes": 4, "batch_size": 4, "length": 8,
    "starts": 8, "horizon": 4, "bins": 11,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "deter": 48, "hidden": 48, "groups": 8, "classes": 8, "batch_size": 16, "length": 16, "bins": 41,
    "starts": 96, "horizon": 10, "discount": 0.95, "replay_ratio": 0.25, "random_steps": 400,
    "learning_rate": 2e-3, "actor_rate": 1e-3, "critic_rate": 1e-3,
}  # fmt: skip
CUE: dict[str, Any] = {
    "length": 11, "horizon": 4, "groups": 4, "classes": 4, "starts": 64, "learning_rate": 4e-3,
}  # fmt: skip


class CueWorld:
    """One of two lights shines at the beginning; ten steps later a third asks which one it was.

    The reward is one for the right choice then, zero for the wrong one; other choices do nothing. With
    the end of the episode the light shines again, so that a model has something to predict.
    """

    spec = Spec(
        "cue", tuple(Element(name) for name in ("left", "right", "ask")), (Element("choice", count=2),), 0.1
    )
    steps = 11

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Which light, and the time."""
        return np.array([rng.integers(2), 0])

    def step(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """The episode ends with the eleventh choice."""
        cue, time = state
        over = time == self.steps - 1
        return np.array([cue, time + 1]), float(over and action.argmax() == cue), bool(over)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """The lights."""
        cue, time = state
        shines = time in (0, self.steps)
        return np.array([shines and cue == 0, shines and cue == 1, time == self.steps - 1], float)


class Forgetful:
    """An agent whose memory is wiped at every State."""

    ready = True

    def __init__(self, agent: Dreamer) -> None:
        self.agent, self.choose = agent, agent.choose

    def observe(self, obs: Any, carry: Any, *, first: torch.Tensor, prev_action: Any) -> RSSMState:
        """Only the newest State counts."""
        return self.agent.observe(obs, None, first=first, prev_action=None)


def recall(agent: Any, episodes: int = 60) -> float:
    """Share of right choices."""
    world, rng = CueWorld(), np.random.default_rng(7)
    choose = chooser(agent, world.spec, rng, explore=False)
    return float(np.mean([run_episode(world, choose, rng, lambda state: None) for _ in range(episodes)]))


def cue_agent(seed: int) -> Dreamer:
    """An agent after 800 updates in the cue's world."""
    agent = Dreamer(CueWorld.spec, DreamerConfig(**SMALL | CUE), seed=seed)
    train(agent, CueWorld(), 3200, seed=seed)
    return agent


# What the paper defines -------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_lambda_returns_are_the_naive_sum():
    """The mean of all n-step returns, each weighted (1 - lambda) lambda^(n-1), the last one with the rest."""
    reward, discount, value = (torch.rand(n, 3, generator=generator(n)) for n in (5, 5, 6))
    discount, trace, naive = torch.rand(5, 3, generator=generator(9)), 0.9, torch.zeros(5, 3)
    for t in range(5):
        so_far, going = torch.zeros(3), torch.ones(3)
        for n in range(1, 5 - t + 1):
            so_far = so_far + going * reward[t + n - 1]
            going = going * discount[t + n - 1]
            share = trace ** (n - 1) * (1.0 if t + n == 5 else 1.0 - trace)
            naive[t] += share * (so_far + going * value[t + n])
    assert torch.allclose(lambda_returns(reward, discount, value, trace), naive, atol=1e-6)


def test_bounded_normal_is_torchs():
    policy = BoundedNormal(torch.rand(4, 2) - 0.5, torch.rand(4, 2) * 0.5 + 0.1)
    other = BoundedNormal(torch.rand(4, 2) - 0.5, torch.rand(4, 2) * 0.5 + 0.1)
    ours, theirs = Normal(policy.mean, policy.std), Normal(other.mean, other.std)
    action = policy.sample(generator())
    assert torch.allclose(policy.log_prob(action), ours.log_prob(action).sum(-1), atol=1e-5)
    assert torch.allclose(policy.entropy(), ours.entropy().sum(-1), atol=1e-5)
    assert torch.allclose(divergence(policy, other), kl_divergence(ours, theirs).sum(-1), atol=1e-5)


def test_categorical_is_torchs():
    logits, action = torch.randn(4, 3), torch.eye(3)[torch.tensor([0, 2, 1, 1])]
    policy, other = OneHot(torch.log_softmax(logits, -1)), OneHot(torch.log_softmax(-logits, -1))
    ours, theirs = Categorical(logits=logits), Categorical(logits=-logits)
    assert torch.allclose(policy.log_prob(action), ours.log_prob(action.argmax(-1)))
    assert torch.allclose(policy.entropy(), ours.entropy())
    assert torch.allclose(divergence(policy, other), kl_divergence(ours, theirs), atol=1e-6)


def test_returns_are_divided_by_their_range_but_never_blown_up():
    agent = Dreamer(point_mass_spec(), DreamerConfig(**TINY))
    returns = torch.linspace(0.0, 100.0, 101)
    assert float(agent.scale(returns)) == pytest.approx(90.0)  # the first time, at once
    agent.updates = 1
    assert float(agent.scale(2.0 * returns)) == pytest.approx(0.99 * 90.0 + 0.01 * 180.0, rel=1e-4)
    agent.range.zero_()
    agent.updates = 0
    assert float(agent.scale(0.001 * returns)) == 1.0


def test_dreams_begin_neither_on_padding_nor_after_the_end():
    world, rng = CueWorld(), np.random.default_rng(0)
    agent = Dreamer(world.spec, DreamerConfig(**TINY | {"starts": 500}))
    buffer = train(agent, world, 50)
    batch = buffer.slices(np.array([2, 10]), 8)  # one begins its episode, one ends it
    size = agent.world.features
    marks = torch.arange(18.0).view(9, 2, 1).expand(9, 2, size)
    state = RSSMState(marks[..., : agent.world.core.deter], marks[..., agent.world.core.deter :])
    found = set(agent.starts(state, batch).deter[:, 0].long().tolist())
    padding, end = {2 * t for t in range(5)}, {17}
    assert found == set(range(18)) - padding - end and rng is not None


@pytest.mark.parametrize("discrete", [False, True])
def test_gradient_through_the_dynamics_is_that_of_the_dream(discrete):
    """With 'dynamics' the returns depend on the actor's parameters; the world model's get no gradient."""
    spec = CueWorld.spec if discrete else point_mass_spec()
    agent = Dreamer(spec, DreamerConfig(**TINY | {"actor_loss": "dynamics"}))
    torch.nn.init.normal_(agent.world.reward_head.layers[-1].weight)  # type: ignore[arg-type]
    dream = agent.dream(agent.world.observe(None, None, {"vector": torch.randn(6, spec.observation_dim)}))
    gradients = torch.autograd.grad(dream.reward.sum(), list(agent.actor.parameters()))
    assert any(g.abs().sum() > 0 for g in gradients)
    assert dream.reward.grad_fn is not None
    assert all(p.grad is None and p.requires_grad for p in agent.world.parameters())
    plain = Dreamer(spec, DreamerConfig(**TINY))
    state = plain.world.observe(None, None, {"vector": torch.randn(6, spec.observation_dim)})
    assert plain.dream(state).reward.grad_fn is None


# The agent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["reinforce", "dynamics", "mixed", "pmpo"])
def test_contract(loss):
    check_agent(lambda spec, seed: Dreamer(spec, DreamerConfig(**TINY, actor_loss=loss), seed=seed))


def test_without_a_decoder():
    check_agent(lambda spec, seed: Dreamer(spec, DreamerConfig(**TINY, objective="inverse"), seed=seed))


def test_acts_and_learns_from_images():
    from mbrl_dynamics.buffer import ReplayBuffer
    from mbrl_dynamics.transition import Transition

    spec = Spec(
        "look",
        (Element("x"),),
        (Element("push", low=-1.0, high=1.0),),
        0.1,
        cameras=(Camera("eye", 16, 16),),
    )
    buffer, rng = ReplayBuffer(spec), np.random.default_rng(0)
    for k in range(40):
        images = {"eye": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)}
        buffer.add(
            Transition(bytes(16), 0, k, np.zeros(1), rng.uniform(-1, 1, 1), 0.0, first=k == 0, images=images)
        )
    agent = Dreamer(spec, DreamerConfig(**TINY, image_depth=2))
    metrics = agent.advance(buffer, None, 2)
    assert np.isfinite(metrics["eye_loss"])
    obs = {"vector": torch.zeros(1, 1), "eye": torch.zeros(1, 16, 16, 3, dtype=torch.uint8)}
    action, _ = agent.act(obs, None, first=torch.tensor([True]), prev_action=None, explore=True)
    assert action.shape == (1, 1, 1)


def test_memory_follows_the_executed_action_and_begins_anew_where_it_must():
    agent = Dreamer(point_mass_spec(), DreamerConfig(**TINY))
    obs, going = {"vector": torch.randn(1, 2)}, torch.tensor([False])
    begun = agent.observe(obs, None, first=~going, prev_action=None)
    one, other = (
        agent.observe(obs, begun, first=going, prev_action=torch.tensor([[a]])) for a in (-1.0, 1.0)
    )
    assert not torch.equal(one.deter, other.deter)
    fresh = agent.observe(obs, begun, first=~going, prev_action=torch.tensor([[1.0]]))
    gap = agent.observe(obs, begun, first=going, prev_action=torch.tensor([[1.0]]), steps=3)
    assert torch.allclose(fresh.deter, begun.deter) and torch.allclose(gap.deter, begun.deter)


def test_actions_under_way_are_imagined_before_the_choice():
    agent = Dreamer(point_mass_spec(), DreamerConfig(**TINY))
    state = agent.observe({"vector": torch.randn(2, 2)}, None, first=torch.ones(2).bool(), prev_action=None)
    pending = torch.rand(2, 3, 1)
    ahead = state
    for t in range(3):
        ahead = agent.world.step(ahead, pending[:, t]).state
    assert torch.equal(agent.choose(state, pending=pending)[0], agent.choose(ahead)[0])
    assert not torch.equal(agent.choose(state, pending=pending)[0], agent.choose(state)[0])


# It learns --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.learning
def test_recalls_a_cue_after_ten_steps():
    """800 updates: 17 of 20 seeds recall it; without their memory they are right as often as chance."""

    def one(seed: int) -> float:
        agent = cue_agent(seed)
        assert agent.updates == 800
        assert recall(Forgetful(agent)) <= 0.65
        return recall(agent)

    assert typical_score(one, 0.95) >= 0.95


@pytest.mark.slow
@pytest.mark.learning
def test_finds_a_hidden_velocity_and_a_planner_can_plan_in_its_world():
    """2,000 steps and 500 updates; LQR, which sees the velocity, scores 1, and random actions 0.

    Scores with seeds 0 to 3: 0.986, 0.991, 0.796, 0.988.
    """
    world = HiddenVelocityWorld()
    agents = []

    def one(seed: int) -> float:
        agents.append(Dreamer(world.spec, DreamerConfig(**SMALL), seed=seed))
        train(agents[-1], world, 2000, seed=seed)
        return point_mass_score(agents[-1], world)

    assert typical_score(one, 0.7) >= 0.7
    planner = ICEM(ICEMConfig(horizon=10, candidates=32, iterations=2))
    assert point_mass_score(MPC(planner, agents[-1].world), world, episodes=3) >= 0.7
