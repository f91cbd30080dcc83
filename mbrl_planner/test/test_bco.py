"""Imitation of observations alone.

Mutations that these tests notice: the action inferred from the next observation to this one; actions of the
observation after; the inverse model fitted once where it should be again; a policy cloned from what the robot
did itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.episodes import EpisodeStore
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agent_trainer import AgentTrainer
from mbrl_planner.agents.bco import BCO, BCOConfig
from mbrl_planner.demonstrations import demonstrated
from mbrl_planner.policy_agents import check_deployment
from mbrl_planner.small_worlds import (
    PointMassWorld,
    lqr_choose,
    point_mass_score,
    run_episode,
    train,
    typical_score,
)
from mbrl_planner.testing import check_agent

torch.set_num_threads(1)
SPEC = PointMassWorld().spec
SMALL = {"hidden": (16,), "batch_size": 16, "fit_steps": 100, "random_steps": 60}


def by_lqr(episodes: int, spec: Spec = SPEC, action: float | None = None) -> list[Transition]:
    """Episodes of the best linear policy, as a world of that spec tells them.

    Args:
        action: what is written down instead of what was done [SI].
    """
    rng, world, told = np.random.default_rng(5), PointMassWorld(), []
    for episode in range(episodes):
        run_episode(world, lqr_choose, rng, told.append, episode)
    if action is None:
        return told
    empty = np.full(spec.action_dim, action)
    return [
        Transition(t.world_id, t.episode, t.step, t.observation, empty, first=t.first, truncated=t.truncated)
        for t in told
    ]


def pairs(states: list[Transition]) -> torch.Tensor:
    buffer = ReplayBuffer(SPEC)
    for state in states:
        buffer.add(state)
    return buffer.all().obs["vector"]


def write(folder: Path, states: list[Transition], spec: Spec = SPEC) -> Path:
    store = EpisodeStore(folder, spec)
    for state in states:
        store.add(state)
    store.close()
    return folder


def agent(seed: int = 0, shown: torch.Tensor | None = None, **options) -> BCO:
    return BCO(SPEC, BCOConfig(**{**SMALL, **options}), seed=seed, shown=shown)


def test_contract() -> None:
    shown = pairs(by_lqr(1))

    def make(spec: Spec, seed: int) -> BCO:
        return BCO(spec, BCOConfig(**SMALL), seed=seed, shown=shown)

    check_agent(make)


def test_actions_of_demonstrations_are_inferred_and_cloned() -> None:
    states = by_lqr(4)
    learner = agent(shown=pairs(states), fit_steps=1000, random_steps=300, hidden=(32, 32))
    train(learner, PointMassWorld(), 300)
    done = torch.tensor([SPEC.scale_action(t.action)[0] for t in states if not t.first]).float()
    assert learner._inferred is not None
    assert float((learner._inferred[:, 0] - done).abs().mean()) < 0.05
    learner.advance(ReplayBuffer(SPEC), None, 1500)
    cloned = learner.choose({"vector": learner._shown[:, 0]})[0][:, 0, 0]
    assert float((cloned - done).abs().mean()) < 0.1


def test_the_inverse_model_is_fitted_again_as_often_as_alpha_says() -> None:
    shown = pairs(by_lqr(1))
    for alpha, expected in ((1.0, [60, 120, 180]), (2.0, [60, 180]), (0.0, [60])):
        learner, fitted = agent(shown=shown, alpha=alpha, fit_steps=5), []
        fit = learner.fit
        learner.fit = lambda buffer, fit=fit, fitted=fitted: (fitted.append(len(buffer)), fit(buffer))[1]
        train(learner, PointMassWorld(), 180)
        assert fitted == expected


def test_what_was_done_and_by_which_motors_does_not_matter(tmp_path: Path) -> None:
    states = by_lqr(2)
    folder = write(tmp_path / "plain", states)
    other = Spec(
        "doll",
        SPEC.observation,
        (Element("left", "N", -9.0, 9.0), Element("right", "N", -1, 1)),
        0.1,
    )
    moved = write(tmp_path / "moved", by_lqr(2, other, 7.0), other)
    torch.testing.assert_close(demonstrated(folder, SPEC), pairs(states))
    torch.testing.assert_close(demonstrated(moved, SPEC), pairs(states))
    assert len(demonstrated(folder, SPEC)) == 120, "none goes from the end of an episode to the next one"


def test_choices_are_imitated_too() -> None:
    """Of two pushes, the demonstrations always take the one towards the middle."""
    spec = Spec("push", (Element("x"),), (Element("side", count=2),), 0.1)
    rng, own = np.random.default_rng(0), ReplayBuffer(spec)
    for k in range(300):
        x = rng.uniform(-1, 1)
        side = rng.integers(2)
        own.add(Transition(bytes(16), k, 0, np.array([x]), np.zeros(1), first=True))
        after = np.array([x + (0.2 if side else -0.2)])
        own.add(Transition(bytes(16), k, 1, after, np.array([float(side)]), truncated=True))
    x = torch.rand(200, 1) * 2 - 1
    shown = torch.stack([x, x - 0.2 * x.sign()], dim=1)
    learner = BCO(spec, BCOConfig(**{**SMALL, "fit_steps": 500}), shown=shown)
    learner.advance(own, None, 400)
    chosen = learner.choose({"vector": x})[0][:, 0]
    right = (chosen.argmax(-1) == (x[:, 0] < 0)).float()
    assert float(right.mean()) > 0.9


def test_learning_goes_on_after_a_restart(tmp_path: Path) -> None:
    folder = write(tmp_path / "shown", by_lqr(1))
    config = BCOConfig(demonstrations=str(folder), **SMALL)
    first = AgentTrainer(BCO(SPEC, config), "bco", tmp_path / "run")
    for state in by_lqr(2):
        first.hear(state)
    first.update()
    first.save()
    first.close()
    again = AgentTrainer(BCO(SPEC, config, seed=5), "bco", tmp_path / "run")
    assert again.agent._fitted == 120 and not again.agent.due(130)
    for one in (first, again):
        one.agent.advance(one.buffer, None, 10)
    for name, value in first.agent.state_dict().items():
        assert torch.equal(again.agent.state_dict()[name], value), name


def test_mistakes_get_one_sentence_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'bco' has nothing to imitate: name the folder of a dataset by"):
        AgentTrainer(agent(), "bco", tmp_path / "run")
    node = {"device": "cpu", "acting_device": "cpu", "checkpoint": "", "dataset": "", "learn": True}
    with pytest.raises(UserError, match="nothing to imitate"):
        check_deployment("mbrl_planner.agents.bco:BCO", SPEC, {}, node)
    check_deployment("mbrl_planner.agents.bco:BCO", SPEC, {}, {**node, "learn": False})
    with pytest.raises(UserError, match="no experience to infer actions from: let the robot move first"):
        agent(shown=pairs(by_lqr(1))).advance(ReplayBuffer(SPEC), None, 1)

    def refused(words: str, name: str, spec: Spec | None, states: list[Transition]) -> None:
        folder = tmp_path / name
        if spec is not None:
            write(folder, states, spec)
        with pytest.raises(UserError, match=words):
            BCO(SPEC, BCOConfig(demonstrations=str(folder)))

    refused("'demonstrations' names '.*nowhere', which holds no episodes", "nowhere", None, [])
    refused("'demonstrations' names '.*single', which holds no episodes", "single", SPEC, by_lqr(1)[:1])
    swapped = Spec("swapped", SPEC.observation[::-1], SPEC.action, 0.1)
    refused(
        r"show \(velocity \[m/s\], position \[m\]\), but task 'point_mass' shows \(position \[m\], veloc",
        "swapped",
        swapped,
        by_lqr(1),
    )
    slow = Spec("slow", SPEC.observation, SPEC.action, 0.2)
    refused("were recorded every 0.2 s, but task 'point_mass' acts every 0.1 s", "slow", slow, by_lqr(1))


@pytest.mark.learning
def test_it_learns_the_point_mass_from_states_alone() -> None:
    shown = pairs(by_lqr(5, action=0.0))

    def one(seed: int) -> float:
        options = {"hidden": (32, 32), "batch_size": 64, "replay_ratio": 2.0, "random_steps": 200}
        learner = agent(seed, shown, fit_steps=600, **options)
        train(learner, PointMassWorld(), 600, seed=seed)
        return point_mass_score(learner, PointMassWorld())

    assert typical_score(one, 0.9) >= 0.9
