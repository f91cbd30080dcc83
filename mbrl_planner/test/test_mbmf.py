"""A planner is cloned into a policy, which is refined.

Mutations that these tests notice: clones what was executed, noise included, or what was decided a step later
(the clone's error); the policy follows critics that know nothing (`critic_steps` ignored), or is not tied to
the clone; the random actions before the first model cloned, too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.testing import PointMass
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.mbmf import MBMF, MBMFConfig
from mbrl_planner.small_worlds import PointMassWorld, point_mass_score, train, typical_score

torch.set_num_threads(1)


class Known(PointMass):
    """The point mass as a model that need not be fitted."""

    def fit(self, *_: Any, **__: Any) -> Metrics:
        return {}


def agent(seed: int = 0, **options: Any) -> MBMF:
    planner = {"plan_candidates": 24, "plan_horizon": 15}
    critic = {"batch_size": 64, "discount": 0.95, "target_rate": 0.02, "critic_steps": 600}
    steps = {"random_steps": 60, "clone_after": 180, "labels": 300, "replay_ratio": 2.0}
    return MBMF(
        PointMassWorld().spec,
        MBMFConfig(**{"hidden": (32, 32), **planner, **critic, **steps, **options}),
        seed=seed,
    )


@pytest.fixture(scope="module")
def planned() -> tuple[MBMF, ReplayBuffer]:
    """An agent about to be cloned: 60 random steps, then 119 planned ones."""
    learner = agent(clone_after=100_000)
    return learner, train(learner, PointMassWorld(), 179, model=Known())


def copy_of(learner: MBMF, **options: Any) -> MBMF:
    twin = agent(1, **options)
    twin.load_state_dict(learner.state_dict())
    twin.load_training_state(learner.training_state())
    return twin


def test_decisions_are_kept_without_noise_and_survive_a_restart(planned: Any) -> None:
    learner, buffer = planned
    twin = copy_of(learner, labels=1)
    obs, action = twin.decisions(buffer, Known())
    assert len(obs) == 120, "the planner decides from the end of the first episode on, not before"
    data = buffer.all()
    assert torch.equal(obs, data.obs["vector"][60:180, 0]), "each decision stands by the State it answers"
    off = (action - data.action[60:180, 0]).abs()
    assert 0.02 < off.mean() < 0.2, "what was executed has noise of 0.1 on it"


def test_missing_decisions_are_asked_for(planned: Any) -> None:
    learner, buffer = planned
    obs, action = copy_of(learner, labels=150).decisions(buffer, Known())
    assert obs.shape == (150, 2) and action.shape == (150, 1)
    fresh = agent(labels=20)
    obs, action = fresh.decisions(buffer, Known())
    assert obs.shape == (20, 2) and action.abs().max() <= 1


def test_a_clone_does_as_it_was_shown(planned: Any) -> None:
    learner, buffer = planned
    twin = copy_of(learner, labels=200, clone_steps=600)
    twin.begin(buffer)
    obs, action = twin.decisions(buffer, Known())
    assert twin.clone(obs, action) < 0.02
    assert twin.ready
    mean, log_std = twin.policy(twin.normalizer(obs))
    assert (torch.tanh(mean) - action).abs().mean() < 0.1
    assert (log_std.exp() - 0.2).abs().mean() < 0.05
    score = point_mass_score(twin, PointMassWorld())
    assert score > 0.85


def test_the_policy_waits_until_the_critics_know_it(planned: Any) -> None:
    learner, buffer = planned
    twin = copy_of(learner, critic_steps=30, clone_after=100, clone_steps=5, labels=10)
    assert twin.owed(99) == 0
    metrics = twin.update(buffer, Known(), env_steps=179, limit=20)
    assert "clone_loss" in metrics and "policy_loss" not in metrics
    before = {name: value.clone() for name, value in twin.policy.state_dict().items()}
    twin.update(buffer, Known(), env_steps=179, limit=10)
    assert all(torch.equal(before[name], value) for name, value in twin.policy.state_dict().items())
    assert "policy_loss" in twin.update(buffer, Known(), env_steps=179, limit=10)
    assert twin.updates == 40


def test_the_tie_to_the_clone_fades(planned: Any) -> None:
    learner, buffer = planned
    tied, free = (
        copy_of(
            learner, critic_steps=0, clone_after=100, clone_steps=300, anchor_steps=steps, learning_rate=3e-3
        )
        for steps in (1000, 0)
    )
    off = []
    for one in (tied, free):
        one.critic.net.weights[0].data.mul_(20.0)  # critics that are sure of nonsense
        one.update(buffer, Known(), env_steps=179, limit=100)
        obs, action = tied._decided[0]
        off.append(float((one.policy.mode(one.normalizer(obs)) - action).abs().mean().detach()))
    assert off[0] < 0.5 * off[1], off
    tied.updates = 999
    assert tied._decided and not free._decided
    tied.advance(buffer, None, 1)
    tied.advance(buffer, None, 1)
    assert not tied._decided


@pytest.mark.learning
def test_it_learns_the_point_mass() -> None:
    world = PointMassWorld()

    def one(seed: int) -> float:
        learner = agent(seed, anchor_steps=100)
        train(learner, world, 480, seed=seed, model=Known())
        assert learner.updates == 960
        return point_mass_score(learner, world)

    assert typical_score(one, 0.9) >= 0.9
