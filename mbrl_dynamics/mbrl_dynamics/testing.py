"""Contract tests: what every model and every task must keep, ours or a user's.

A test of a new model is three lines::

    def test_contract():
        check_model(lambda spec: MyModel(spec))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import (
    ActionFreeModel,
    Budget,
    Capabilities,
    InverseModel,
    Model,
    Noise,
    Task,
)
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import ModelState, Prediction, Rollout

PERIOD = 0.1  # of the point mass [s]


def point_mass_spec() -> Spec:
    """A point mass on a line: position, velocity; an acceleration of at most 2 m/s²."""
    return Spec(
        task="point_mass",
        observation=(Element("position", "m", -5.0, 5.0), Element("velocity", "m/s", -5.0, 5.0)),
        action=(Element("acceleration", "m/s^2", -2.0, 2.0),),
        control_period=PERIOD,
    )


class PointMass(ObservationModel):
    """The point mass as a task, and as its own exact model: every planner's and learner's yardstick.

    next = A obs + B action, reward = -(position² + 0.1 velocity² + 0.01 acceleration²).
    """

    A = np.array([[1.0, PERIOD], [0.0, 1.0]])
    B = np.array([[PERIOD**2 / 2], [PERIOD]]) * 2.0  # actions are scaled: 1 is 2 m/s²
    Q = np.diag([1.0, 0.1])
    R = np.array([[0.01 * 4.0]])
    capabilities = Capabilities(differentiable=True, rewards=True)
    max_steps = 100

    def __init__(self) -> None:
        super().__init__(point_mass_spec())
        self._a, self._b = torch.from_numpy(self.A).float(), torch.from_numpy(self.B).float()

    def reward(self, obs: Any, action: Any, next_obs: Any) -> Any:
        """Quadratic, of the state that was left."""
        return -(obs[..., 0] ** 2 + 0.1 * obs[..., 1] ** 2 + 0.04 * action[..., 0] ** 2)

    def terminated(self, next_obs: Any) -> None:
        """Never."""

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        """The exact next state."""
        after = state @ self._a.T + action @ self._b.T
        return Prediction(after, after, reward=self.reward(state, action, after))


def record(
    step: Callable[[np.ndarray, np.ndarray], np.ndarray],
    spec: Spec,
    episodes: int,
    steps: int,
    seed: int = 0,
    start: float = 1.0,
    reward: Callable[[np.ndarray, np.ndarray, np.ndarray], float] = lambda *_: float("nan"),
) -> ReplayBuffer:
    """A buffer of random behaviour: `step(obs, scaled action)` gives the next observation."""
    rng, buffer = np.random.default_rng(seed), ReplayBuffer(spec)
    for episode in range(episodes):
        obs = rng.uniform(-start, start, spec.observation_dim)
        buffer.add(Transition(bytes(16), episode, 0, obs, np.zeros(spec.action_dim), first=True))
        for k in range(1, steps + 1):
            action = rng.uniform(-1.0, 1.0, spec.inner_action_dim)
            before, obs = obs, step(obs, action)
            si, gain = spec.unscale_action(action), float(reward(before, action, obs))
            buffer.add(Transition(bytes(16), episode, k, obs, si, gain, truncated=k == steps))
    return buffer


def check_model(make: Callable[[Spec], Any], *, budget: Budget | None = None, tolerance: float = 0.1) -> None:
    """Hold a model to its protocol, on the point mass.

    Args:
        make: builds an untrained model for a spec.
        budget: of the fit; None = the default.
        tolerance: allowed held-out error after the fit, in standard deviations of the deltas.

    Raises:
        AssertionError: the model breaks the contract; the message says which rule.
    """
    world, spec = PointMass(), point_mass_spec()
    buffer = record(lambda o, a: world.A @ o + world.B @ a, spec, 8, 50, reward=world.reward)
    model: Model = make(spec)
    metrics = model.fit(buffer, budget or Budget())
    assert {"train_loss", "holdout_error"} <= metrics.keys(), "fit must report train_loss and holdout_error"
    assert metrics["holdout_error"] < tolerance, (
        f"held-out error {metrics['holdout_error']:.3f} after the fit"
    )

    obs = torch.tensor([[0.5, -0.2], [-1.0, 0.3], [0.0, 0.0]])
    action = torch.tensor([[0.5], [-1.0], [0.0]])
    state = model.observe(None, None, {"vector": obs})
    with torch.no_grad():
        _check_step(model, state, obs, action)
        _check_imagine(model, state)
    if model.capabilities.differentiable:
        _check_gradient(model, state, action)
    _check_round_trip(make, spec, model, state, action)


def _seen(model: Model, prediction: Prediction) -> Tensor:
    """What can be compared of a prediction: the observation [..., D], else the feature [..., Z]."""
    if model.capabilities.decodes:
        assert prediction.obs is not None, "a model that decodes must predict observations"
        return prediction.obs
    assert prediction.obs is None, "a model that does not decode cannot predict observations"
    return model.feature(prediction.state)


def _check_step(model: Model, state: ModelState, obs: Tensor, action: Tensor) -> None:
    first, again = model.step(state, action), model.step(state, action)
    assert torch.equal(_seen(model, first), _seen(model, again)), "step without noise must be pure"
    assert first.obs is None or first.obs.shape == obs.shape, "step must predict [B, D]"
    if model.capabilities.rewards:
        assert first.reward is not None and first.reward.shape == (3,), "step must predict rewards [B]"
    decoded = model.decode(state)
    if not model.capabilities.recurrent:  # else what is decoded is a reconstruction
        assert decoded is None or torch.allclose(decoded, obs, atol=1e-5), (
            "observe must not change an observation"
        )
    if model.capabilities.stochastic:
        draws = [_seen(model, model.step(state, action, torch.Generator().manual_seed(s))) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]), "the same noise must give the same outcome"
        assert not torch.equal(draws[0], draws[2]), "other noise must give another outcome"


def _check_imagine(model: Model, state: ModelState) -> None:
    plans = torch.rand(3, 4, 6, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rollout = model.imagine(state, plans, keep=("obs", "action"))
    b, n, p, h = rollout.reward.shape
    assert (b, n, h) == (3, 4, 6) and p >= 1, "imagine must give rewards [B, N, P, H]"
    if model.capabilities.decodes:
        assert rollout.obs is not None and rollout.obs.shape == (3, 4, p, 7, 2), (
            "obs must be [B, N, P, H+1, D]"
        )
    assert rollout.action is not None and rollout.action.shape == (3, 4, p, 6, 1), (
        "action must be [B, N, P, H, A]"
    )
    assert rollout.alive.shape == rollout.reward.shape, "alive must be as reward"
    if rollout.disagreement is not None:
        assert rollout.disagreement.shape == (3, 4, 6), "disagreement must be [B, N, H]"
        assert (rollout.disagreement >= 0).all(), "disagreement cannot be negative"
    plain = imagine_by_steps(model, state, plans, p, None, None, ("obs",))
    bare = model.imagine(state, plans)
    one = pytree.tree_map(lambda x: x if x is None else x[1:2], state)
    lone = model.imagine(one, plans[1:2, 2:3], keep=("obs",))

    def same(a: Rollout, b: Rollout, at: tuple[int, ...] = ()) -> bool:
        """Whether all that the first says is what the second says at some candidates."""
        pairs = [(a.reward, b.reward[at]), (model.feature(a.last), model.feature(b.last)[at])]
        if a.obs is not None and b.obs is not None:
            pairs.append((a.obs, b.obs[at]))
        return all(torch.allclose(x.reshape(y.shape), y, atol=1e-4) for x, y in pairs)

    assert same(rollout, plain), "imagine must agree with step by step"
    assert same(bare, rollout), "what is kept must not change what is imagined"
    assert same(lone, rollout, (1, 2)), "candidates must not touch each other"


def _check_gradient(model: Model, state: ModelState, action: Tensor) -> None:
    def total(action: Tensor) -> Tensor:
        """A number [B] that depends on all of a prediction; features may sum to a constant."""
        prediction = model.step(state, action)
        seen = _seen(model, prediction)
        weight = 1.0 if model.capabilities.decodes else torch.linspace(-1.0, 1.0, seen.shape[-1])
        return (seen * weight).sum(-1)

    action = action.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(total(action).sum(), action)
    with torch.no_grad():
        width = 1e-2
        numeric = ((total(action + width) - total(action - width)) / (2 * width))[:, None]
    assert torch.allclose(gradient, numeric, rtol=0.05, atol=0.01), (
        "the gradient must be that of the prediction"
    )


def _check_round_trip(
    make: Callable[[Spec], Any], spec: Spec, model: Any, state: ModelState, action: Tensor
) -> None:
    copy = make(spec)
    copy.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    with torch.no_grad():
        ours, theirs = (_seen(m, m.step(state, action)) for m in (model, copy))
        assert torch.equal(ours, theirs), "state_dict must say it all"


def check_inverse_model(
    make: Callable[[Spec], Any], *, budget: Budget | None = None, tolerance: float = 0.1
) -> None:
    """Hold an inverse model to its protocol, on the point mass.

    Args:
        make: builds an untrained model for a spec, which learns up to two steps at least.
        budget: of the fit; None = the default.
        tolerance: allowed error of the action one step apart, where it is ±1 at most.

    Raises:
        AssertionError: the model breaks the contract; the message says which rule.
    """
    world, spec = PointMass(), point_mass_spec()
    buffer = record(lambda o, a: world.A @ o + world.B @ a, spec, 8, 50)
    model: InverseModel = make(spec)
    metrics = model.fit(buffer, budget or Budget())
    assert {"train_loss", "holdout_error"} <= metrics.keys(), "fit must report train_loss and holdout_error"

    before = torch.tensor([[0.5, -0.2], [-0.8, 0.3], [0.0, 0.0]])
    action = torch.tensor([[0.5], [-0.8], [0.0]])
    obs, after = {"vector": before}, {"vector": world.step(before, action).obs}
    with torch.no_grad():
        belief = model.infer(obs, after)
        guess = belief.expected()
        assert guess.shape == (3, 1), "infer must tell actions [B, A]"
        off = (guess - action).abs().max()
        assert off < tolerance, f"the action that led from here to there is missed by {off:.3f}"
        assert belief.log_prob(action).shape == (3,), "log_prob must be [B]"
        draws = [belief.draw(torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]), "the same noise must give the same draw"
        assert not torch.equal(draws[0], draws[2]), "other noise must give another draw"
        far = {"vector": before + 10.0}
        for beyond in (guess, *draws, model.infer(obs, far).expected()):
            assert beyond.abs().max() <= 1, "actions must stay within [-1, 1]"
        deep = [{"vector": x["vector"].expand(4, 3, 2)} for x in (obs, after)]
        assert torch.allclose(model.infer(*deep).expected()[2], guess, atol=1e-5), (
            "infer must take any leading dimensions"
        )
        assert model.infer(obs, after, steps=2).expected().shape == (3, 1), "steps must keep the shape"
        feature = model.represent(obs)
        assert feature.ndim == 2 and len(feature) == 3, "represent must give [B, Z]"
        copy = make(spec)
        copy.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        assert torch.equal(copy.infer(obs, after).expected(), guess), "state_dict must say it all"


def check_action_free_model(
    make: Callable[[Spec], Any], *, budget: Budget | None = None, tolerance: float = 0.1
) -> None:
    """Hold an action-free model to its protocol, on the point mass under random actions.

    Args:
        make: builds an untrained model for a spec, which fills paths of four steps at least.
        budget: of the fit; None = the default.
        tolerance: allowed error of a position four steps long, in parts of how far it gets.

    Raises:
        AssertionError: the model breaks the contract; the message says which rule.
    """
    world, spec = PointMass(), point_mass_spec()
    buffer = record(lambda o, a: world.A @ o + world.B @ a, spec, 8, 50)
    model: ActionFreeModel = make(spec)
    metrics = model.fit(buffer, budget or Budget())
    assert {"train_loss", "holdout_error"} <= metrics.keys(), "fit must report train_loss and holdout_error"

    start = torch.tensor([[0.5, -0.6], [-0.8, 0.5], [0.0, 0.8]])
    states = [start]
    for _ in range(4):
        states.append(world.step(states[-1], torch.zeros(3, 1)).obs)
    path = torch.stack(states, dim=1)
    obs, end = {"vector": start}, {"vector": states[-1]}
    with torch.no_grad():
        belief = model.predict(obs)
        assert belief.expected().shape == (3, 2), "predict must tell observations [B, D]"
        assert belief.log_prob(states[1]).shape == (3,), "log_prob must be [B]"
        filled, again = model.fill(obs, end, 4), model.fill(obs, end, 4)
        assert filled.shape == (3, 5, 2), "fill must give [B, n+1, D]"
        assert torch.equal(filled, again), "fill without noise must be pure"
        assert torch.equal(model.fill(obs, end, 1), torch.stack([start, states[-1]], 1)), (
            "between two observations one step apart lies nothing"
        )
        draws = [model.fill(obs, end, 4, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]), "the same noise must give the same path"
        assert not torch.equal(draws[0], draws[2]), "other noise must give another path"
        for one in (filled, *draws):
            assert torch.equal(one[:, 0], start) and torch.equal(one[:, -1], states[-1]), (
                "a path begins and ends where it is told to"
            )
        off = ((filled - path)[..., 0].abs().amax(1) / (path[:, -1] - path[:, 0])[:, 0].abs()).max()
        assert off < tolerance, f"a path is missed by {off:.3f} of its length"
        copy = make(spec)
        copy.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        assert torch.equal(copy.fill(obs, end, 4), filled), "state_dict must say it all"


def check_task(task: Task, observations: np.ndarray) -> None:
    """Hold a task to its protocol.

    Args:
        task: whose reward and termination are tried.
        observations: [M, D] real ones, SI, at least two.

    Raises:
        AssertionError: the task breaks the contract; the message says which rule.
    """
    rng = np.random.default_rng(0)
    assert task.max_steps >= 1, "max_steps must be positive"
    assert observations.shape[1] == task.spec.observation_dim, "the observations are not those of the spec"
    before, after = observations[:-1], observations[1:]
    action = rng.uniform(-1.0, 1.0, (len(before), task.spec.inner_action_dim))
    reward = task.reward(before, action, after)
    assert reward.shape == (len(before),), "reward must keep the leading dimensions"
    assert np.isfinite(reward).all(), "reward must be finite"
    tensors = [torch.from_numpy(x) for x in (before, action, after)]
    assert np.allclose(task.reward(*tensors).numpy(), reward), "reward must be the same for numpy and torch"
    deep = [x.expand(2, 3, *x.shape) for x in tensors]
    assert np.allclose(task.reward(*deep)[1, 2].numpy(), reward), "reward must take any leading dimensions"
    ended = task.terminated(after)
    if ended is not None:
        assert ended.dtype == np.bool_ and ended.shape == reward.shape, "terminated must be bool [...]"
        assert (task.terminated(tensors[2]).numpy() == ended).all(), "terminated must be the same for torch"
