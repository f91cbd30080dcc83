"""DreamerV3's world model: what the paper defines exactly, the contract, images, and forgetting."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, kl_divergence

from mbrl_dynamics import snapshot
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.heads import ExponentialTwoHot, symexp
from mbrl_dynamics.models.recurrent import RecurrentCore, RSSMState, balanced_kl, draw, exponential, mixed
from mbrl_dynamics.models.rssm import RSSM, RSSMConfig
from mbrl_dynamics.spec import Camera, Element, Spec
from mbrl_dynamics.testing import PointMass, check_model, point_mass_spec, record
from mbrl_dynamics.transition import Transition

SMALL = RSSMConfig(
    deter=48, hidden=48, groups=8, classes=8, batch_size=16, length=12, learning_rate=3e-3, bins=41
)


def make(spec: Spec, **options: object) -> RSSM:
    return RSSM(spec, replace(SMALL, **options))  # type: ignore[type-var]


def experience(episodes: int = 4, steps: int = 20) -> ReplayBuffer:
    world = PointMass()
    return record(
        lambda o, a: world.A @ o + world.B @ a, point_mass_spec(), episodes, steps, reward=world.reward
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# What the paper defines -------------------------------------------------------------------------------------


def test_two_hot_over_exponential_bins_by_hand():
    """Bins at symexp(-2 .. 2) = -6.389, -1.718, 0, 1.718, 6.389; 3.0 lies between the last two."""
    head = ExponentialTwoHot(-2.0, 2.0, 5)
    share = (3.0 - (math.e - 1)) / (math.e**2 - math.e)
    target = head.encode(torch.tensor([3.0, 0.0, -99.0]))
    assert torch.allclose(target[0], torch.tensor([0.0, 0.0, 0.0, 1 - share, share]), atol=1e-6)
    assert torch.allclose(target[1:], torch.tensor([[0.0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]), atol=1e-6)


def test_two_hot_over_exponential_bins_round_trip_and_loss():
    head, x = ExponentialTwoHot(), torch.tensor([-500.0, -1.0, 0.0, 0.3, 2.0, 200.0])
    target = head.encode(x)
    assert torch.allclose(target.sum(-1), torch.ones(6))
    assert torch.allclose(head.decode(target.clamp(min=1e-30).log()), x, rtol=1e-4, atol=1e-4)
    assert torch.equal(head.decode(torch.zeros(2, head.bins)), torch.zeros(2))  # a head that starts at zero
    logits = torch.randn(6, head.bins)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(head.loss(logits, x), expected, atol=1e-5)


def test_two_hot_over_exponential_bins_is_unbiased():
    """Half zeros and half hundreds: the mean, where a mean in symlog space would say 9."""
    head = ExponentialTwoHot()
    target = head.encode(torch.tensor([0.0, 100.0])).mean(0)
    assert float(head.decode(target.clamp(min=1e-30).log())) == pytest.approx(50.0, rel=1e-3)


def test_classes_keep_a_uniform_share():
    log_prob = mixed(torch.tensor([0.0, 100.0, 0.0, 0.0]), 0.01)
    assert torch.allclose(log_prob.exp(), torch.tensor([0.0025, 0.9925, 0.0025, 0.0025]), atol=1e-6)


def test_kl_balance_with_free_nats_is_that_of_torch_distributions():
    """Free nats hold for the sum over the groups, and each side trains one distribution only."""
    p, q = (torch.randn(5, 4, 6, requires_grad=True) for _ in range(2))
    posterior, prior = mixed(p, 0.01), mixed(q, 0.01)
    expected = kl_divergence(
        Independent(Categorical(logits=posterior), 1), Independent(Categorical(logits=prior), 1)
    )
    free = float(expected.detach().median()) - 1e-3
    dynamics, representation = balanced_kl(posterior, prior, free)
    for loss, trained, other in ((dynamics, q, p), (representation, p, q)):
        assert torch.allclose(loss, expected.clamp(min=free), atol=1e-5)
        gradient, none = torch.autograd.grad(
            loss.sum(), [trained, other], allow_unused=True, retain_graph=True
        )
        assert none is None or not none.any()
        assert torch.equal(gradient.flatten(1).any(1), expected > free)


def test_straight_through_gradient_is_that_of_the_probabilities():
    logits, weight = torch.randn(7, 3, 5, requires_grad=True), torch.randn(7, 3, 5)
    hot = draw(mixed(logits, 0.01), exponential((7, 3, 5), generator(), torch.device("cpu")))
    assert torch.allclose(hot.detach().sum(-1), torch.ones(7, 3)) and torch.equal(
        hot.detach().amax(-1).round(), torch.ones(7, 3)
    )
    (gradient,) = torch.autograd.grad((hot * weight).sum(), logits)
    (expected,) = torch.autograd.grad((mixed(logits, 0.01).exp() * weight).sum(), logits)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_draws_are_as_likely_as_they_should_be():
    log_prob = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    hot = draw(log_prob, exponential((20_000, 3), generator(), torch.device("cpu")))
    assert torch.allclose(hot.mean(0), torch.tensor([0.5, 0.3, 0.2]), atol=0.02)


def test_the_filter_is_step_by_step_with_the_same_gradient():
    """Unrolled, each weight's gradient is made of all time steps at once; and it forgets where it should."""
    core = RecurrentCore(5, 2, deter=12, hidden=8, groups=3, classes=4, unimix=0.01).double()
    embedding, action = torch.randn(6, 4, 5).double(), torch.randn(6, 4, 2).double()
    first = torch.zeros(6, 4, dtype=torch.bool)
    first[0], first[3, 1] = True, True
    noise = exponential((6, 4, 3, 4), generator(), torch.device("cpu")).double()

    def by_steps() -> RSSMState:
        state, path = RSSMState(torch.zeros(4, 12).double(), torch.zeros(4, 12).double()), []
        for t in range(6):
            keep = (~first[t]).double().unsqueeze(-1)
            state = RSSMState(state.deter * keep, state.stoch * keep)
            state = core.see(state, action[t] * keep, embedding[t], noise[t])
            path.append(state)
        return RSSMState(*(torch.stack(x) for x in zip(*path, strict=True)))

    weights = [p for name, p in core.named_parameters() if "prior" not in name]
    results = []
    for state in (by_steps(), core.filter(embedding, action, first, noise)[0]):
        loss = (torch.cat(state, -1) * torch.linspace(-1, 1, 24).double()).square().sum()
        results.append((loss, *torch.autograd.grad(loss, weights)))
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))


# The model --------------------------------------------------------------------------------------------------


@pytest.mark.learning
def test_contract():
    """It decodes where it is, not how far it went, so errors are large in deviations of the deltas:
    an untrained one is off by 17.
    """
    check_model(make, budget=Budget(250), tolerance=4.0)


def test_without_a_decoder_it_says_so_and_learns_from_actions():
    model = make(point_mass_spec(), objective="inverse")
    assert not model.capabilities.decodes
    before = float(model.holdout(experience().all()))
    metrics = model.fit(experience(8, 40), Budget(200))
    state = model.observe(None, None, {"vector": torch.zeros(2, 2)})
    assert model.decode(state) is None and model.images(state) == {}
    assert metrics["holdout_error"] < 0.8 * before


def test_padding_changes_nothing():
    """A slice that reaches back beyond its episode counts as the episode's beginning alone."""
    model, buffer = make(point_mass_spec()), experience()
    model.begin(buffer)
    short, padded = buffer.slices(np.array([4]), 5), buffer.slices(np.array([4]), 12)
    (state, *_), (other, *_) = model.filter(short, None), model.filter(padded, None)
    assert torch.allclose(state.deter, other.deter[-6:], atol=1e-6)
    with torch.no_grad():
        one, two = (
            {k: v for k, v in model.losses(b, None)[0].items() if k != "kl_loss"} for b in (short, padded)
        )
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_an_episode_that_begins_is_a_blank_memory():
    model = make(point_mass_spec())
    obs, action = {"vector": torch.randn(2, 2)}, torch.rand(2, 1)
    old = model.observe(model.observe(None, None, obs), action, obs)
    fresh = model.observe(None, None, obs)
    mixed_state = model.observe(old, action, obs, torch.tensor([True, False]))
    assert torch.allclose(mixed_state.deter[0], fresh.deter[0], atol=1e-6)
    assert not torch.allclose(mixed_state.deter[1], fresh.deter[1])


def test_checkpoint_goes_on_where_it_was():
    buffer, one = experience(), make(point_mass_spec())
    one.fit(buffer, Budget(20))
    other = RSSM(one.spec, one.config, seed=5)
    other.load_state_dict(one.state_dict())
    other.load_training_state(one.training_state())
    one.fit(buffer, Budget(10)), other.fit(buffer, Budget(10))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not snapshot.not_finite(one.state_dict())


def image_buffer() -> ReplayBuffer:
    spec = Spec("look", (), (Element("push", low=-1.0, high=1.0),), 0.1, cameras=(Camera("eye", 16, 16),))
    buffer, rng = ReplayBuffer(spec), np.random.default_rng(0)
    for k in range(25):
        image = np.zeros((16, 16, 3), np.uint8)
        image[:, (k // 2) % 16] = 255
        seen, action = {"eye": image}, rng.uniform(-1, 1, 1)
        buffer.add(Transition(bytes(16), 0, k, np.zeros(0), action, k % 2, first=k == 0, images=seen))
    return buffer


def test_images_are_seen_and_imagined():
    buffer = image_buffer()
    model = make(buffer.spec, image_depth=4, length=8)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = torch.stack(
            list(model.losses(buffer.sample(8, 8, generator=generator()), generator())[0].values())
        )
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(float(loss.sum()))
    assert losses[-1] < 0.7 * losses[0]
    state = model.observe(None, None, {"eye": torch.zeros(2, 16, 16, 3, dtype=torch.uint8)})
    image = model.images(model.step(state, torch.zeros(2, 1)).state)["eye"]
    assert image.shape == (2, 16, 16, 3) and image.dtype == torch.uint8


def test_an_image_that_does_not_fit_gets_one_sentence():
    spec = Spec("look", (), (Element("push", low=-1.0, high=1.0),), 0.1, cameras=(Camera("eye", 60, 80),))
    with pytest.raises(UserError, match="camera 'eye' has 60 x 80 pixels, but a world model wants"):
        RSSM(spec)


def test_symexp_of_the_ends_is_wide_enough_for_any_task():
    assert symexp(torch.tensor(10.0)) > 20_000
