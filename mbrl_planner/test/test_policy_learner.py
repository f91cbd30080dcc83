"""The learning side of a policy node, without ROS: what it learns, says and keeps, and how it survives."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbrl_dynamics import wire
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.ros.node import wait_until
from mbrl_dynamics.transition import Transition
from mbrl_planner import policy_weights
from mbrl_planner.agents.sac import SAC, SACConfig
from mbrl_planner.learner_process import LearnerProcess
from mbrl_planner.pipe import Message
from mbrl_planner.policy_learner import STATE, STATUS, WEIGHTS, Order, PolicyLearner
from mbrl_planner.policy_weights import Weights
from mbrl_planner.small_worlds import PointMassWorld, random_action, run_episode

TASK = "mbrl_dynamics.testing:PointMass"
SMALL = {"hidden": [8], "batch_size": 8, "random_steps": 60, "replay_ratio": 0.5}
WORLD = PointMassWorld()


def order(**changes: Any) -> Order:
    return Order(agent="sac", config={**SMALL, **changes.pop("config", {})}, task=TASK, **changes)


def episode(number: int) -> list[Transition]:
    """A random episode of 60 steps."""
    states: list[Transition] = []
    rng = np.random.default_rng(number)
    run_episode(WORLD, lambda obs, first: random_action(WORLD.spec, rng), rng, states.append, number)
    return states


def tell(learner: PolicyLearner, states: list[Transition], *, between: bool = False) -> None:
    for state in states:
        values = {"number": learner.heard + 1, "between": between}
        learner.handle(Message(STATE, values, wire.encode_transition(state, WORLD.spec)))


def learn_all(learner: PolicyLearner) -> None:
    while learner.may_learn:
        learner.learn()
    learner.tell()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_it_learns_what_it_owes_hands_it_over_and_says_up_to_where() -> None:
    said: list[Message] = []
    learner = PolicyLearner(order(), WORLD.spec, said.append)
    tell(learner, episode(0))
    assert (learner.owed, learner.covered) == (30, None)
    learn_all(learner)
    assert learner.agent.updates == 30
    kinds = [message.kind for message in said]
    assert kinds.index(WEIGHTS) < kinds.index(STATUS)
    newest = said[-1].values
    assert newest["covered"] == (WORLD_ID, 0) and newest["owed"] == 0 and newest["metrics"]["critic_loss"] > 0
    weights = policy_weights.unpack(
        next(m.data for m in said if m.kind == WEIGHTS), policy_weights.shapes(learner.agent)
    )
    assert weights.updates == 30 and not weights.fault


def test_between_episodes_only_where_that_is_wanted() -> None:
    learner = PolicyLearner(order(), WORLD.spec, lambda message: None)
    tell(learner, episode(0), between=True)
    learn_all(learner)
    states = episode(1)
    tell(learner, states[:-1], between=True)
    assert learner.owed > 0 and not learner.may_learn
    tell(learner, states[-1:], between=True)
    assert learner.may_learn
    tell(learner, episode(2)[:30], between=False)
    assert learner.may_learn


def test_rewards_that_no_world_measures_are_the_tasks_own() -> None:
    measured, told = (PolicyLearner(order(), WORLD.spec, lambda message: None) for _ in range(2))
    states = episode(0)
    tell(measured, states)
    tell(told, [dataclasses.replace(state, reward=math.nan) for state in states])
    rewards = [learner.trainer.buffer.all().reward for learner in (measured, told)]
    torch.testing.assert_close(*rewards)


def test_a_reward_that_nobody_knows_is_told_and_not_learned_from() -> None:
    learner = PolicyLearner(order(), WORLD.spec, lambda message: None)

    def unknown(*_: Any) -> Any:
        raise NotImplementedError

    learner.task.reward = unknown
    tell(learner, [dataclasses.replace(state, reward=math.nan) for state in episode(0)[:5]])
    assert learner.trainer.env_steps == 0 and learner.status()["refused"] > 0
    assert "neither its world nor the task" in learner.status()["error"]


def test_a_dataset_and_what_is_told_again_are_the_same_experience(tmp_path: Path) -> None:
    folders = {"dataset": str(tmp_path / "d"), "checkpoint": str(tmp_path / "c")}
    first = PolicyLearner(order(**folders), WORLD.spec, lambda message: None)
    tell(first, episode(0))
    learn_all(first)
    first.close()
    first._lock.close()
    again = PolicyLearner(order(**folders), WORLD.spec, lambda message: None)
    assert (again.agent.updates, again.trainer.env_steps) == (30, 60)
    tell(again, [*episode(0)[30:], *episode(1)])
    assert again.trainer.env_steps == 120 and again.trainer.buffer.gaps == 0
    again.trainer.close()


def test_an_episode_that_others_recorded_before_it_was_told_is_learned_from_when_over(tmp_path: Path) -> None:
    writer = PolicyLearner(order(dataset=str(tmp_path)), WORLD.spec, lambda message: None)
    tell(writer, episode(0))
    writer.trainer.close()
    late = PolicyLearner(order(dataset=str(tmp_path), record=False), WORLD.spec, lambda message: None)
    tell(late, episode(0), between=True)
    assert late.may_learn
    learn_all(late)
    assert late.covered == (WORLD_ID, 0)


def test_nobody_else_learns_in_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl_planner.policy_learner.LOCK_PATIENCE", 0.2)
    first = PolicyLearner(order(checkpoint=str(tmp_path)), WORLD.spec, lambda message: None)
    with pytest.raises(UserError, match="another process learns in"):
        PolicyLearner(order(checkpoint=str(tmp_path)), WORLD.spec, lambda message: None)
    first.close()


def test_weights_that_are_not_finite_are_put_right_before_anybody_acts_with_them() -> None:
    said: list[Message] = []
    learner = PolicyLearner(order(), WORLD.spec, said.append)
    tell(learner, episode(0))
    learn_all(learner)
    with torch.no_grad():
        next(learner.agent.policy.parameters()).fill_(math.nan)
    learner.agent.updates += 1
    learner.tell()
    wanted = policy_weights.shapes(learner.agent)
    handed_over = [policy_weights.unpack(m.data, wanted) for m in said if m.kind == WEIGHTS]
    assert len(handed_over) == 2 and not any(weights.fault for weights in handed_over)
    assert "last good weights are back" in said[-1].values["events"][-1]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda s: s.pop(next(iter(s))), "lacks the tensor"),
        (lambda s: s.update(more=torch.zeros(1)), "has the tensor 'more'"),
        (lambda s: s.update({next(iter(s)): torch.zeros(1)}), "another shape"),
        (lambda s: s.update({k: v * math.nan for k, v in s.items() if v.is_floating_point()}), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_told_why(change: Any, reason: str) -> None:
    agent = SAC(WORLD.spec, SACConfig(hidden=(8,)))
    state = dict(agent.acting_state())
    change(state)
    data = policy_weights.snapshots.to_bytes(state, {"updates": 3})
    weights = policy_weights.unpack(data, policy_weights.shapes(agent))
    assert reason in weights.fault and weights.updates == 3
    assert "not a safetensors file" in policy_weights.unpack(b"nonsense", policy_weights.shapes(agent)).fault


@pytest.mark.slow
def test_the_process_survives_its_death_and_ends_with_a_checkpoint(tmp_path: Path) -> None:
    """Killed, it is started again and knows all that it was told; stopped, nobody waits for it."""
    lost: list[str] = []
    process = LearnerProcess(lambda: None, lost.append)
    agent = SAC(WORLD.spec, SACConfig(**{**SMALL, "hidden": (8,)}))
    seen: list[Any] = []

    def heard(condition: Any) -> bool:
        process.poll()
        seen.extend(process.take())
        return condition([m.values for m in seen if isinstance(m, Message) and m.kind == STATUS])

    folders = {"dataset": str(tmp_path / "d"), "checkpoint": str(tmp_path / "c")}
    process.begin(order(**folders), WORLD.spec, policy_weights.shapes(agent))
    for state in episode(0):
        process.hear(state, between=True)
    assert wait_until(lambda: heard(lambda s: s and s[-1]["updates"] == 30 and s[-1]["covered"]), 60.0)
    assert [w.updates for w in seen if isinstance(w, Weights)][-1] == 30
    assert process.behind == 0

    os.kill(process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    for state in episode(1):
        process.hear(state, between=True)
    assert time.monotonic() - begin < 5.0 and process.behind == 61
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: heard(lambda s: bool(lost)), 60.0) and "signal 9" in lost[0]
    assert wait_until(lambda: heard(lambda s: s[-1]["env_steps"] == 120 and s[-1]["owed"] == 0), 60.0)
    assert process.restarts == 1
    assert process.close(60.0)
    assert (tmp_path / "c" / "agent.safetensors").exists()
    resumed = PolicyLearner(order(**folders), WORLD.spec, lambda message: None)
    assert (resumed.agent.updates, resumed.trainer.env_steps) == (60, 120)
    resumed.close()


WORLD_ID = episode(0)[0].world_id.hex()
