"""An agent's experience: kept, resumed, and guarded against numbers that are none."""

import errno
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mbrl_dynamics import snapshot
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.testing import point_mass_spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agent_trainer import CHECKPOINT, AgentTrainer
from mbrl_planner.agents.sac import SAC, SACConfig

SPEC = point_mass_spec()
CONFIG = SACConfig(hidden=(8,), batch_size=4, random_steps=10)


def states(count: int, episode: int = 0) -> list[Transition]:
    rng = np.random.default_rng(episode)
    return [
        Transition(
            bytes(16), episode, step, rng.standard_normal(2), rng.uniform(-1, 1, 1), 1.0, first=step == 0
        )
        for step in range(count + 1)
    ]


def trainer(folder: Path | None = None, spec: Spec = SPEC, seed: int = 0, name: str = "sac") -> AgentTrainer:
    return AgentTrainer(SAC(spec, CONFIG, seed=seed), name, folder)


def weights(agent: SAC) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in agent.state_dict().items()}


def test_resumed_learning_goes_on_where_the_checkpoint_was_with_all_data(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    for state in states(30):
        first.hear(state)
    first.update()
    first.save(mark="here")
    for state in states(10, 1):
        first.hear(state)  # after the checkpoint
    first.close()
    again = trainer(tmp_path, seed=5)
    assert again.env_steps == 40 and again.agent.updates == 30 and again.mark.extra == {"mark": "here"}
    assert again.agent.owed(40) == 10
    assert all(torch.equal(value, weights(first.agent)[name]) for name, value in weights(again.agent).items())
    assert again.update() == first.update()


@pytest.mark.parametrize("where", ["loss", "weight"])
def test_what_is_not_finite_brings_the_last_good_weights_back(where: str, monkeypatch) -> None:
    one = trainer()
    for state in states(30):
        one.hear(state)
    one.update()
    assert one.keep_good() == ""
    good = weights(one.agent)
    learn = one.agent.learn

    def poisoned(buffer, model, count):
        metrics = learn(buffer, model, count)
        if where == "weight":
            with torch.no_grad():
                one.agent.policy.net.weights[0].fill_(math.nan)
            monkeypatch.setattr("mbrl_planner.agent_trainer.GUARD_PERIOD", 0.0)
            return metrics
        return metrics | {"critic_loss": math.nan}

    monkeypatch.setattr(one.agent, "learn", poisoned)
    for state in states(5, 1):
        one.hear(state)
    assert one.update() == {}
    assert all(torch.equal(value, good[name]) for name, value in weights(one.agent).items())
    assert len(one.events) == 1 and "the last good weights are back" in one.events[0]
    assert one.agent.owed(35) == 0, "steps made in vain are not owed again"
    monkeypatch.setattr(one.agent, "learn", learn)
    for state in states(5, 2):
        one.hear(state)
    assert one.update(), "learning goes on"


def test_a_bad_weight_never_reaches_the_checkpoint(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    for state in states(30):
        one.hear(state)
    one.update()
    one.save()
    with torch.no_grad():
        one.agent.policy.net.weights[0].fill_(math.inf)
    one.save()
    one.close()
    trainer(tmp_path, seed=3)  # refuses what is not finite


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "mbpo"}, "is of agent 'sac', but 'mbpo' is wanted"),
        ({"spec": Spec("other", SPEC.observation, SPEC.action, 0.1)}, "is of task 'point_mass', but 'other'"),
        ({"spec": Spec("point_mass", SPEC.observation, SPEC.action, 0.2)}, "is of dynamics hash"),
    ],
)
def test_another_agent_task_or_dynamics_is_refused_and_nothing_is_overwritten(
    tmp_path: Path, change: dict, words: str
) -> None:
    one = trainer(tmp_path)
    one.save()
    one.close()
    file = tmp_path / CHECKPOINT / "agent.safetensors"
    before = file.read_bytes()
    with pytest.raises(UserError, match=words):
        trainer(tmp_path, **change)
    assert file.read_bytes() == before


def test_a_damaged_checkpoint_gets_one_sentence(tmp_path: Path) -> None:
    trainer(tmp_path).save()
    file = tmp_path / CHECKPOINT / "agent.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a safetensors file"):
        trainer(tmp_path)


def test_a_dataset_of_other_dimensions_gets_one_sentence(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    for state in states(3):
        one.hear(state)
    one.close()
    narrow = Spec("narrow", SPEC.observation[:1], SPEC.action, 0.1)
    with pytest.raises(
        UserError, match=r"is of task 'point_mass' \(2 observations, 1 actions.* 'narrow' \(1 obs"
    ):
        trainer(tmp_path, narrow)


def test_learning_offline_needs_data() -> None:
    with pytest.raises(UserError, match="the dataset is empty"):
        trainer().advance(None, 1)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    one = trainer(tmp_path)
    one.save()
    before = (tmp_path / CHECKPOINT / "agent.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        one.save()
    assert (tmp_path / CHECKPOINT / "agent.safetensors").read_bytes() == before
    assert [path.name for path in (tmp_path / CHECKPOINT).iterdir()] == ["agent.safetensors"]
