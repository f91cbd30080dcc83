"""Action-free prediction and in-filling against a linear-Gaussian system's own, in closed form.

Mutations that these tests notice: an end that is known where it should not be, or the other way round; the
straight way divided by the wrong number of steps; draws without noise, or with the deviation of another step;
the path's steps in the wrong order.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.action_free import ActionFree, ActionFreeConfig
from mbrl_dynamics.models.inverse import Inverse
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, check_action_free_model, record
from mbrl_dynamics.transition import Transition

FILM = Spec("film", (Element("x"), Element("v")), (Element("f", "", -1.0, 1.0),), 0.1)
A = np.array([[0.9, 0.4], [-0.2, 0.8]])
NOISE = np.array([[0.1, 0.0], [0.05, 0.2]])  # factor of the covariance of what moves it
N = 5


def walk(episodes: int, seed: int = 0) -> ReplayBuffer:
    """s' = A s + noise; the recorded actions have nothing to do with it."""
    rng = np.random.default_rng(seed)
    return record(lambda s, a: A @ s + NOISE @ rng.normal(size=2), FILM, episodes, 25, seed=seed)


def bridge(start: np.ndarray, end: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [2 (n - 1)] and covariance of the states between: the joint Gaussian, conditioned on the end."""
    power = [np.linalg.matrix_power(A, i) for i in range(steps + 1)]
    # Every state is a linear map of the noises: s_i = power_i s_0 + sum_j power_(i-1-j) NOISE e_j.
    maps = np.zeros((steps, 2, steps, 2))
    for i in range(steps):
        for j in range(i + 1):
            maps[i, :, j] = power[i - j] @ NOISE
    maps = maps.reshape(2 * steps, 2 * steps)
    mean = np.concatenate([power[i + 1] @ start for i in range(steps)])
    joint = maps @ maps.T
    inner, last = slice(0, 2 * (steps - 1)), slice(2 * (steps - 1), None)
    gain = joint[inner, last] @ np.linalg.inv(joint[last, last])
    return mean[inner] + gain @ (end - mean[last]), joint[inner, inner] - gain @ joint[last, inner]


@pytest.fixture(scope="module")
def fitted() -> ActionFree:
    model = ActionFree(FILM, ActionFreeConfig(steps=N))
    model.fit(walk(240), Budget(2500))
    return model


def rows(values: list[float], count: int = 1) -> dict[str, torch.Tensor]:
    return {"vector": torch.tensor([values]).expand(count, 2)}


def test_contract() -> None:
    check_action_free_model(lambda spec: ActionFree(spec, ActionFreeConfig(steps=4)))


def test_prediction_has_the_mean_and_the_spread_of_what_follows(fitted: ActionFree) -> None:
    obs = walk(10, seed=1).all().obs["vector"][:, 0]
    with torch.no_grad():
        belief = fitted.predict({"vector": obs})
        drawn = belief.draw(torch.Generator().manual_seed(0))
    spread = NOISE @ NOISE.T
    off = belief.expected().double().numpy() - obs.double().numpy() @ A.T
    assert (np.sqrt(np.square(off).mean(0)) < 0.15 * np.sqrt(spread.diagonal())).all()
    np.testing.assert_allclose(belief.variance().mean(0), spread.diagonal(), rtol=0.15)
    np.testing.assert_allclose((drawn - belief.expected()).var(0), spread.diagonal(), rtol=0.25)


@pytest.mark.parametrize("end", [[0.6, 0.2], [-0.5, -0.4]])
@pytest.mark.parametrize("steps", [2, N])
def test_paths_between_two_states_are_those_of_the_exact_bridge(
    fitted: ActionFree, steps: int, end: list[float]
) -> None:
    start = [0.4, -0.3]
    mean, covariance = bridge(np.array(start), np.array(end), steps)
    deviation = np.sqrt(covariance.diagonal())
    with torch.no_grad():
        path = fitted.fill(rows(start), rows(end), steps)
        drawn = fitted.fill(rows(start, 4000), rows(end, 4000), steps, torch.Generator().manual_seed(0))
    for one in (path, drawn):
        assert torch.equal(one[:, 0], rows(start, len(one))["vector"])
        assert torch.equal(one[:, -1], rows(end, len(one))["vector"])
    between = drawn[:, 1:-1].flatten(1).double().numpy()
    assert (np.abs(path[0, 1:-1].flatten().numpy() - mean) < 0.25 * deviation).all()
    assert (np.abs(between.mean(0) - mean) < 0.25 * deviation).all()
    np.testing.assert_allclose(between.std(0), deviation, rtol=0.15)
    exact = covariance / np.outer(deviation, deviation)
    np.testing.assert_allclose(np.corrcoef(between.T), exact, atol=0.15)


def test_the_end_matters_and_so_does_how_far_it_is(fitted: ActionFree) -> None:
    with torch.no_grad():
        there = fitted.fill(rows([0.0, 0.0]), rows([1.0, 0.5]), 2)[0, 1]
        back = fitted.fill(rows([0.0, 0.0]), rows([-1.0, -0.5]), 2)[0, 1]
        slow = fitted.fill(rows([0.0, 0.0]), rows([1.0, 0.5]), N)[0, 1]
        free = fitted.predict(rows([0.0, 0.0])).expected()[0]
    assert float((there - back).abs().min()) > 0.3 and float((there - slow).abs().max()) > 0.1
    assert float(free.abs().max()) < 0.06


def test_scales_are_those_of_each_number_of_steps_by_itself(fitted: ActionFree) -> None:
    """Two mutations that fail it: scales in the order of the slices, or changes as small as they are."""
    batch = fitted.some(walk(240))
    score = fitted.represent(batch.obs)
    _, target = fitted.judged(batch, score)
    torch.testing.assert_close(target.std(0), torch.ones(N, 2), atol=1e-2, rtol=0)
    assert not torch.allclose(fitted.targets.std.view(N, 2)[0], fitted.targets.std.view(N, 2)[-1], rtol=0.05)
    change = (score[:, -1:] - score[:, :-1]).square().mean(0).sqrt() * fitted.gain.flip(0).unsqueeze(-1)
    torch.testing.assert_close(change.log().mean(-1), torch.zeros(N), atol=1e-3, rtol=0)


def test_with_an_inverse_model_it_tells_all_actions_on_the_way() -> None:
    """Two ends of the point mass three steps apart: the likeliest actions are the least that lead there."""
    world = PointMass()
    data = record(lambda o, a: world.A @ o + world.B @ a, world.spec, 60, 30)
    steps, filler, inverse = 3, ActionFree(world.spec, ActionFreeConfig(steps=3)), Inverse(world.spec)
    filler.fit(data, Budget(2500))
    inverse.fit(data, Budget(1500))
    reach = np.concatenate(
        [np.linalg.matrix_power(world.A, steps - 1 - j) @ world.B for j in range(steps)], 1
    )
    start, wanted = np.array([0.3, -0.2]), np.array([0.5, -0.1, 0.3])
    end = np.linalg.matrix_power(world.A, steps) @ start + reach @ wanted
    with torch.no_grad():
        path = filler.fill(
            {"vector": torch.from_numpy(start)}, {"vector": torch.from_numpy(end)}, steps
        )  # [n+1, D]
        actions = inverse.infer({"vector": path[:-1]}, {"vector": path[1:]}).expected()[:, 0].numpy()
    least = np.linalg.pinv(reach) @ (end - np.linalg.matrix_power(world.A, steps) @ start)
    np.testing.assert_allclose(actions, least, atol=0.15)
    assert np.abs(least - wanted).max() < 0.35 and np.abs(least).max() > 0.2


def test_a_path_of_an_angle_stays_on_the_circle() -> None:
    spec = Spec("turn", (Element("c", encoding="cos"), Element("s", encoding="sin")), FILM.action, 0.1)
    rng, buffer = np.random.default_rng(0), ReplayBuffer(spec)
    for episode in range(20):
        angle = rng.uniform(-np.pi, np.pi)
        for k in range(21):
            angle += 0.5 + 0.1 * rng.normal()
            obs, flags = np.array([np.cos(angle), np.sin(angle)]), {"first": k == 0, "truncated": k == 20}
            buffer.add(Transition(bytes(16), episode, k, obs, np.zeros(1), **flags))
    model = ActionFree(spec, ActionFreeConfig(steps=4, hidden=(64, 64)))
    model.fit(buffer, Budget(800))
    obs, later = ({"vector": torch.tensor([[np.cos(a), np.sin(a)]]).float()} for a in (0.5, 2.5))
    with torch.no_grad():
        for noise in (None, torch.Generator().manual_seed(0)):
            path = model.fill(obs, later, 4, noise)[0]
            torch.testing.assert_close(path.norm(dim=-1), torch.ones(5))
        mean = model.fill(obs, later, 4)[0]
    angle = np.arctan2(*mean.numpy().T[::-1])
    np.testing.assert_allclose(angle, [0.5, 1.0, 1.5, 2.0, 2.5], atol=0.1)


def test_it_goes_over_the_wire(fitted: ActionFree) -> None:
    copy = restore(pack(fitted, model_id="action_free", run_id="r", version=1), FILM, ActionFree)
    with torch.no_grad():
        ours, theirs = (m.fill(rows([0.1, 0.2]), rows([0.3, 0.1]), 4) for m in (fitted, copy))
    assert torch.equal(ours, theirs)


def test_mistakes_get_one_sentence(fitted: ActionFree) -> None:
    for steps in (0, N + 1):
        with pytest.raises(
            UserError, match=f"are {steps} steps apart, but this model learns 1 to {N}: set its"
        ):
            fitted.fill(rows([0.0, 0.0]), rows([0.0, 0.0]), steps)
    with pytest.raises(
        UserError, match="'steps' is 26, but the longest episode in the data has 25 steps: lower"
    ):
        ActionFree(FILM, ActionFreeConfig(steps=26)).fit(walk(2), Budget(10))
