"""Train first and deploy later, or the other way round: a run's folder serves both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mbrl_bringup.stack import Process, resolve
from mbrl_bringup.train import Training
from mbrl_bringup.train_config import TrainConfig
from mbrl_dynamics import wire
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_planner.pipe import Message
from mbrl_planner.policy_learner import STATE, Order, PolicyLearner
from mbrl_sim.worlds import Worlds

SMALL = {"hidden": [8], "batch_size": 8, "random_steps": 20, "replay_ratio": 0.5}


def train(folder: Path, frames: int, **options: Any) -> Training:
    """`mbrl train` of a small sac."""
    settings = TrainConfig(
        agent="sac", task="pendulum", frames=frames, eval_every=100_000, eval_episodes=1, **options
    )
    training = Training(settings, folder, {f"sac.{name}": str(value) for name, value in SMALL.items()})
    training.run()
    return training


def stack(folder: Path, **options: Any) -> dict[str, Process]:
    """What `mbrl up` would start in a run's folder."""
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump({"/**/policy_node": {"ros__parameters": {"sac": SMALL}}}))
    given = {"agent": "sac", "task": "pendulum", "run_dir": str(folder), "params_file": str(small)}
    return {process.name: process for process in resolve({**given, **options})}


def learner(folder: Path, action_repeat: int = 0) -> PolicyLearner:
    """The learning side of a policy node in that folder."""
    own = stack(folder, action_repeat=action_repeat)["policy_node"].configuration
    order = Order(
        agent="sac",
        config=SMALL,
        task="pendulum",
        action_repeat=action_repeat,
        dataset=own["dataset"],
        checkpoint=own["checkpoint"],
    )
    return PolicyLearner(order, make_task("pendulum", action_repeat).spec, lambda message: None)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_what_mbrl_train_has_learned_goes_on_in_a_policy_node_and_back(tmp_path: Path) -> None:
    train(tmp_path, frames=60)
    node = learner(tmp_path)
    assert (node.trainer.env_steps, node.agent.updates) == (60, 30)
    worlds = Worlds("pendulum", 1, seed=1)
    states = [worlds.reset_all([1])[0]]
    states += [worlds.step(worlds.spec.safe_action()[None])[0] for _ in range(40)]
    for number, state in enumerate(states, 1):
        data = wire.encode_transition(state, worlds.spec)
        node.handle(Message(STATE, {"number": number, "between": False}, data))
    while node.may_learn:
        node.learn()
    node.close()
    worlds.close()
    assert (node.trainer.env_steps, node.agent.updates) == (100, 50)
    again = train(tmp_path, frames=140)
    assert (again.trainer.env_steps, again.agent.updates) == (140, 70)


def test_a_policy_trained_at_another_action_repeat_is_deployed_at_that(tmp_path: Path) -> None:
    train(tmp_path, frames=120, action_repeat=2)
    processes = stack(tmp_path, action_repeat=2)
    assert processes["sim_node"].parameters["action_repeat"] == 2
    with pytest.raises(UserError, match="is of dynamics hash"):
        stack(tmp_path)
