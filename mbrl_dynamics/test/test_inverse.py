"""The inverse model against posteriors in closed form, and what its features keep.

Mutations that these tests notice: actions that go with the wrong step of a slice; the later observation taken
as one step later, whatever it is; steps of padding that count; variances not in the units of actions; a
bottleneck that costs nothing, or clears nothing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.between import whole_slices
from mbrl_dynamics.models.inverse import Inverse, InverseConfig
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.spec import Camera, Element, Spec
from mbrl_dynamics.testing import check_inverse_model, point_mass_spec
from mbrl_dynamics.transition import Transition

LINE = Spec("line", (Element("x"), Element("v")), (Element("f", "", -1.0, 1.0),), 0.1)
PUSH = 0.3  # deviation of the actions in the data
A, B = np.array([[0.8, 0.5], [0.0, 0.7]]), np.array([[0.0], [0.5]])
NOISE = np.diag([0.05, 0.1])  # deviation of what moves by itself


def moved(spec: Spec, step, start, act, episodes: int, steps: int, see=lambda state: state) -> ReplayBuffer:
    """A buffer of `step(state, scaled action)`."""
    buffer = ReplayBuffer(spec)
    for episode in range(episodes):
        state = start()
        buffer.add(Transition(bytes(16), episode, 0, see(state), np.zeros(spec.action_dim), first=True))
        for k in range(1, steps + 1):
            inner = act()
            state = step(state, inner)
            action = spec.unscale_action(inner)
            buffer.add(Transition(bytes(16), episode, k, see(state), action, truncated=k == steps))
    return buffer


def linear(episodes: int, seed: int = 0) -> ReplayBuffer:
    """s' = A s + B a + noise, with Gaussian actions."""
    rng = np.random.default_rng(seed)
    return moved(
        LINE,
        lambda s, a: A @ s + B @ a + NOISE @ rng.normal(size=2),
        lambda: rng.normal(size=2) * 0.5,
        lambda: PUSH * rng.normal(size=1),
        episodes,
        25,
    )


def posterior(steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Of the first action, given s and the state n steps later, by conditioning the joint Gaussian:
    mean = gain (s_n - power s), and the variance.
    """
    power = [np.linalg.matrix_power(A, i) for i in range(steps + 1)]
    one = PUSH**2 * B @ B.T + NOISE @ NOISE.T
    spread = sum(power[i] @ one @ power[i].T for i in range(steps))
    together = PUSH**2 * (power[steps - 1] @ B).T
    gain = together @ np.linalg.inv(spread)
    return gain, power[steps], (PUSH**2 - gain @ together.T).item()


def ends(buffer: ReplayBuffer, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All observations that are so many steps apart, and the first actions."""
    data = buffer.slices(whole_slices(buffer, steps), steps)
    return data.obs["vector"][:, 0], data.obs["vector"][:, -1], data.action[:, 0]


@pytest.fixture(scope="module")
def fitted() -> Inverse:
    model = Inverse(LINE, InverseConfig(steps=3))
    metrics = model.fit(linear(240), Budget(2500))
    assert metrics["holdout_error"] < 0.8
    return model


def test_contract() -> None:
    check_inverse_model(lambda spec: Inverse(spec, InverseConfig(steps=2)))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_mean_and_variance_are_those_of_the_exact_posterior(fitted: Inverse, steps: int) -> None:
    obs, later, _ = ends(linear(20, seed=1), steps)
    with torch.no_grad():
        belief = fitted.infer({"vector": obs}, {"vector": later}, steps)
    gain, power, variance = posterior(steps)
    mean = (later.numpy() - obs.numpy() @ power.T) @ gain.T
    off = np.sqrt(np.square(belief.expected().numpy() - mean).mean())
    assert off < 0.15 * mean.std(), f"{off:.4f} of {mean.std():.4f}"
    assert float(belief.mixture.variance().mean()) == pytest.approx(variance, rel=0.1)
    for other in {1, 2, 3} - {steps}:
        gain, power, _ = posterior(other)
        taken = (later.numpy() - obs.numpy() @ power.T) @ gain.T
        assert np.sqrt(np.square(taken - mean).mean()) > 0.2 * mean.std(), "other numbers of steps are others"


def test_without_noise_it_is_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(0)
    wide = Spec("wide", LINE.observation, (*LINE.action, Element("g", "", -1.0, 1.0)), 0.1)
    both = np.array([[0.3, 0.1], [0.0, 0.5]])
    data = moved(
        wide,
        lambda s, a: A @ s + both @ a,
        lambda: rng.normal(size=2) * 0.5,
        lambda: rng.uniform(-1, 1, 2),
        40,
        25,
    )
    model = Inverse(wide)
    metrics = model.fit(data, Budget())
    obs, later, action = ends(data, 1)
    exact = (later.double().numpy() - obs.double().numpy() @ A.T) @ np.linalg.pinv(both).T
    np.testing.assert_allclose(exact, action.numpy(), atol=1e-5)
    with torch.no_grad():
        guess = model.infer({"vector": obs}, {"vector": later}).expected()
    assert float((guess - action).abs().mean()) < 0.02
    assert metrics["holdout_error"] < 0.05


def test_of_two_actions_that_lead_there_both_are_told() -> None:
    """The square of the action moves it: with one Gaussian the mean is 0, with two a draw is one of them."""
    rng = np.random.default_rng(0)
    data = moved(
        LINE,
        lambda s, a: np.array([0.5 * s[0] + a[0] ** 2, 0.0]),
        lambda: rng.normal(size=2),
        lambda: rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 0.9, 1),
        40,
        25,
    )
    obs, later, action = ends(data, 1)
    model = Inverse(LINE, InverseConfig(components=2))
    model.fit(data, Budget())
    with torch.no_grad():
        belief = model.infer({"vector": obs}, {"vector": later})
        drawn = belief.draw(torch.Generator().manual_seed(0))
    assert float((drawn.abs() - action.abs()).abs().mean()) < 0.1, "each draw is one of the two"
    assert 0.4 < float((drawn > 0).float().mean()) < 0.6
    assert float(belief.expected().abs().mean()) < 0.2


CELLS, MOVES = 4, 3
GRID = Spec("ring", tuple(Element(f"at_{i}") for i in range(CELLS)), (Element("move", count=MOVES),), 0.1)


@pytest.mark.parametrize("steps", [1, 2])
def test_choices_have_the_probabilities_of_the_counts(steps: int) -> None:
    """p(a given s, s') of a random table by Bayes: counts of what led there, and of what was done."""
    rng = np.random.default_rng(3)
    table = rng.dirichlet(0.6 * np.ones(CELLS), (CELLS, MOVES))
    prior = np.array([0.5, 0.3, 0.2])
    cells = np.eye(CELLS)
    data = moved(
        GRID,
        lambda s, a: cells[rng.choice(CELLS, p=table[s.argmax(), a.argmax()])],
        lambda: cells[rng.integers(CELLS)],
        lambda: np.eye(MOVES)[rng.choice(MOVES, p=prior)],
        80,
        50,
    )
    model = Inverse(GRID, InverseConfig(steps=2, hidden=(64, 64)))
    model.fit(data, Budget(1000))
    obs, later, action = ends(data, steps)
    counts = np.zeros((CELLS, CELLS, MOVES))
    np.add.at(counts, (obs.argmax(-1), later.argmax(-1), action.argmax(-1)), 1)
    by_bayes = table if steps == 1 else np.einsum("sam,mt->sat", table, np.einsum("a,sat->st", prior, table))
    exact = np.einsum("sat,a->sta", by_bayes, prior)
    exact /= exact.sum(-1, keepdims=True)
    seen = counts.sum(-1) >= 40
    assert seen.sum() >= 8
    np.testing.assert_allclose(
        (counts / counts.sum(-1, keepdims=True).clip(1))[seen], exact[seen], atol=0.15, err_msg="Bayes"
    )
    s, t = np.nonzero(seen)
    with torch.no_grad():
        belief = model.infer(
            {"vector": torch.from_numpy(cells[s])}, {"vector": torch.from_numpy(cells[t])}, steps
        )
    off = np.abs(belief.expected().numpy() - exact[seen])
    assert off.mean() < 0.05 and off.max() < 0.2
    torch.testing.assert_close(belief.expected().sum(-1), torch.ones(len(s)))
    drawn = torch.stack([belief.draw(torch.Generator().manual_seed(i)) for i in range(400)]).mean(0)
    torch.testing.assert_close(drawn, belief.expected(), atol=0.12, rtol=0)
    one = torch.eye(MOVES)[0].expand(len(s), MOVES)
    torch.testing.assert_close(belief.log_prob(one).exp(), belief.expected()[:, 0])


# What the features keep -------------------------------------------------------------------------------------

DISTRACTORS = 6
TV = Spec(
    "tv",
    tuple(Element(f"o{i}") for i in range(2 + DISTRACTORS)),
    (Element("x", "", -1.0, 1.0), Element("y", "", -1.0, 1.0)),
    0.1,
)


def television(seed: int) -> tuple[ReplayBuffer, np.ndarray]:
    """Two numbers that actions move, and six, three times as large, that move by themselves, all mixed by a
    rotation; and the state [M, 8] of each step's observation.
    """
    mixed = np.linalg.qr(np.random.default_rng(9).normal(size=(8, 8)))[0] * np.r_[1.0, 1.0, 3.0 * np.ones(6)]
    rng = np.random.default_rng(seed)

    def step(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        own = 0.8 * state[:2] + 0.4 * action
        return np.r_[own, 0.8 * state[2:] + 0.6 * rng.normal(size=DISTRACTORS)]

    data = moved(
        TV,
        step,
        lambda: np.r_[rng.uniform(-1, 1, 2), rng.normal(size=DISTRACTORS)],
        lambda: rng.uniform(-1, 1, 2),
        40,
        50,
        lambda state: mixed @ state,
    )
    return data, data.all().obs["vector"][:, 0].double().numpy() @ np.linalg.inv(mixed).T


def explained(feature: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """R² of each column of `truth`, predicted linearly from features: fitted to one half, of the other."""
    half, inputs = len(feature) // 2, np.c_[feature, np.ones(len(feature))]
    weight = np.linalg.lstsq(inputs[:half], truth[:half], rcond=None)[0]
    left = truth[half:] - inputs[half:] @ weight
    return 1.0 - np.square(left).sum(0) / np.square(truth[half:] - truth[half:].mean(0)).sum(0)


def features(model: Inverse, data: ReplayBuffer) -> np.ndarray:
    with torch.no_grad():
        return model.represent({"vector": data.all().obs["vector"][:, 0]}).numpy()


@pytest.mark.parametrize("room", [2, 16])
def test_features_keep_what_is_controlled_and_nothing_of_the_rest(room: int) -> None:
    """In two features there is no room for more; where there is, the bottleneck must drive it out."""
    (data, _), (fresh, truth) = television(0), television(1)
    model = Inverse(TV, InverseConfig(features=room, bottleneck=0.01 if room > 2 else 0.0))
    metrics = model.fit(data, Budget(1200))
    assert metrics["features"] == 2
    kept = explained(features(model, fresh), truth)
    assert kept[:2].min() > 0.95 and kept[2:].max() < 0.05
    obs = fresh.all().obs["vector"][:, 0].double().numpy()
    _, _, axes = np.linalg.svd(obs - obs.mean(0), full_matrices=False)
    largest = explained(obs @ axes[:2].T, truth)  # the best that two features can do to rebuild what is seen
    assert largest[:2].max() < 0.1 and largest[2:].max() > 0.4, "an autoencoder keeps the opposite"


def test_without_a_bottleneck_what_has_room_stays() -> None:
    (data, _), (fresh, truth) = television(0), television(1)
    model = Inverse(TV, InverseConfig(features=32))
    model.fit(data, Budget(300))
    assert explained(features(model, fresh), truth)[2:].min() > 0.5


def test_what_is_controlled_through_something_else_takes_several_steps() -> None:
    """A force moves v, and v moves x: from one step to the next, v alone tells of the force."""
    rng = np.random.default_rng(0)
    a = np.array([[0.5, 1.0], [0.0, 0.5]])
    data = moved(
        LINE,
        lambda s, u: a @ s + np.array([0.0, 0.5]) * u + [0.1, 0.02] * rng.normal(size=2),
        lambda: rng.normal(size=2) * 0.5,
        lambda: rng.uniform(-1, 1, 1),
        80,
        25,
    )
    truth, kept = data.all().obs["vector"][:, 0].double().numpy(), {}
    for steps in (1, 2):
        model = Inverse(LINE, InverseConfig(features=8, bottleneck=0.01, steps=steps))
        metrics = model.fit(data, Budget(1500))
        kept[steps] = explained(features(model, data), truth)
        assert metrics["features"] == steps
    own = explained(truth[:, 1:], truth)[0]  # what v tells of x by itself
    assert kept[1][1] > 0.9 and kept[1][0] < own + 0.1
    assert kept[2].min() > 0.9 > own + 0.3


# Keeping, and mistakes --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), length=st.integers(1, 7))
def test_whole_slices_have_no_padding_and_none_is_left_out(lengths: list[int], length: int) -> None:
    buffer = ReplayBuffer(LINE)
    for episode, steps in enumerate(lengths):
        for k in range(steps + 1):
            flags = {"first": k == 0, "truncated": k == steps}
            buffer.add(Transition(bytes(16), episode, k, np.zeros(2), np.zeros(1), **flags))
    if max(lengths) < length:
        with pytest.raises(
            UserError, match=f"'steps' is {length}, but the longest .* has {max(lengths)} step"
        ):
            whole_slices(buffer, length)
        return
    found = whole_slices(buffer, length)
    assert buffer.slices(found, length).valid.all()
    assert len(found) == sum(max(0, steps - length + 1) for steps in lengths)


def test_what_is_padding_does_not_count() -> None:
    short = moved(
        LINE,
        lambda s, a: A @ s + B @ a,
        lambda: np.ones(2),
        lambda: np.random.default_rng(0).normal(size=1),
        1,
        4,
    )
    model = Inverse(LINE, InverseConfig(steps=4, hidden=(8,)))
    model.measure(short)
    batch = short.slices(np.arange(4), 4)
    with torch.no_grad():
        loss = float(model.loss(batch)[0])
        batch.action[~batch.valid] = 1e3
        assert float(model.loss(batch)[0]) == pytest.approx(loss)
    assert model.holdout(batch).shape == (1,) and float(model.holdout(batch)) < 100


def test_it_goes_over_the_wire_and_on_after_a_restart(fitted: Inverse) -> None:
    copy = restore(pack(fitted, model_id="inverse", run_id="r", version=1), LINE, Inverse)
    obs, later = {"vector": torch.randn(3, 2)}, {"vector": torch.randn(3, 2)}
    with torch.no_grad():
        assert torch.equal(copy.infer(obs, later, 2).expected(), fitted.infer(obs, later, 2).expected())
    copy.load_training_state(fitted.training_state())
    for name, value in fitted.training_state().items():
        assert torch.equal(copy.training_state()[name], value), name


def test_images_are_seen_too() -> None:
    """A white block in the image is pushed; the vector says nothing."""
    spec = Spec("film", (Element("still"),), LINE.action, 0.1, cameras=(Camera("eye", 16, 16),))
    rng, buffer = np.random.default_rng(0), ReplayBuffer(spec)

    def image(at: int) -> np.ndarray:
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[6:10, at : at + 4] = 255
        return picture

    for episode in range(10):
        at = 6
        for k in range(21):
            action = rng.uniform(-1, 1, 1)
            at = int(np.clip(at + (0 if k == 0 else round(float(2 * action[0]))), 0, 12))
            flags = {"first": k == 0, "truncated": k == 20}
            seen = {"eye": image(at)}
            buffer.add(Transition(bytes(16), episode, k, np.zeros(1), action, images=seen, **flags))
    model = Inverse(spec, InverseConfig(image_depth=4, hidden=(32,), encoder=(32,), batch_size=32))
    assert model.fit(buffer, Budget(300))["holdout_error"] < 0.5


def test_mistakes_get_one_sentence(fitted: Inverse) -> None:
    obs = {"vector": torch.zeros(1, 2)}
    for steps in (0, 4):
        with pytest.raises(
            UserError, match=f"are {steps} steps apart, but this model learns 1 to 3: set its"
        ):
            fitted.infer(obs, obs, steps)
    with pytest.raises(
        UserError, match="'steps' is 30, but the longest episode in the data has 25 steps: lower"
    ):
        Inverse(LINE, InverseConfig(steps=30)).fit(linear(2), Budget(10))
    with pytest.raises(ValueError, match="nothing to train on: the replay buffer is empty"):
        Inverse(LINE).fit(ReplayBuffer(LINE), Budget(10))
    with pytest.raises(UserError, match="a world model wants square images"):
        Inverse(Spec("s", LINE.observation, LINE.action, 0.1, cameras=(Camera("eye", 20, 16),)))


def test_it_is_made_for_the_point_mass_as_it_is_by_default() -> None:
    model = Inverse(point_mass_spec())
    assert model.represent({"vector": torch.zeros(2, 3, 2)}).shape == (2, 3, model.config.features)
