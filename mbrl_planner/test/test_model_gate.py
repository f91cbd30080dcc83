"""What a model must show: compared on what happened, timed, watched, kept; in this process and in its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import numpy as np
import pytest
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import build as build_config
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.snapshot import Snapshot, pack
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Prediction
from mbrl_planner import gate_process
from mbrl_planner.gate_process import GateLost, GateProcess, Order
from mbrl_planner.model_gate import ACCEPTED, ENOUGH, ModelGate, prediction_error, stored

SPEC = Spec("t", (Element("x"), Element("still")), (Element("v", "", -1.0, 1.0),), 0.05)


class Biased:
    """x' = x + v, and an error: what the world of these tests does, but for that."""

    capabilities = Capabilities()

    def __init__(self, bias: float = 0.0) -> None:
        self.spec, self.bias = SPEC, bias

    def observe(self, state, action, obs, first=None):
        return obs["vector"]

    def step(self, state, action, noise=None):
        move = torch.cat([action + self.bias, torch.zeros_like(action)], -1)
        return Prediction(state + move, state + move)

    def state_dict(self):
        return {}


class Inert(Biased):
    """Predicts the difference of the last two observations again; needs a memory for that."""

    capabilities = Capabilities(recurrent=True)

    def observe(self, state, action, obs, first=None):
        old = obs["vector"] if state is None else state[1]
        return torch.where(first[:, None], obs["vector"], old) if first is not None else old, obs["vector"]

    def step(self, state, action, noise=None):
        return Prediction(state, 2 * state[1] - state[0])


def walk(steps: int = 200, seed: int = 0, speed: float | None = None) -> list[Transition]:
    random, x, states = np.random.default_rng(seed), 0.0, []
    for step in range(steps + 1):
        action = random.uniform(-1, 1) if speed is None else speed * (1 + step // 100)
        x += action if step else 0.0
        seen = np.array([x, 5.0])
        states.append(Transition(bytes(16), 0, step, seen, np.array([action]), first=step == 0))
    return states


def update(version: int, run_id: str = "a") -> Snapshot:
    torch.set_num_threads(1)
    model = Ensemble(SPEC, EnsembleConfig(members=2, hidden=(4,)), seed=version)
    return pack(model, model_id="ensemble", run_id=run_id, version=version)


def gate_of(biases: dict[int, float], heard: int = 200, **kwargs) -> ModelGate:
    """A gate whose updates have these errors, by version."""
    gate = ModelGate(SPEC, "ensemble", lambda new, spec: Biased(biases[new.version]), **kwargs)
    for state in walk(heard):
        gate.hear(state)
    return gate


def test_the_error_is_in_standard_deviations_of_a_change_and_what_stands_still_does_not_count():
    buffer = ReplayBuffer(SPEC)
    for state in walk():
        buffer.add(state)
    changes = np.diff([state.observation[0] for state in walk()])
    assert prediction_error(Biased(), buffer) < 1e-5
    assert prediction_error(Biased(0.3), buffer) == pytest.approx(0.3 / changes.std(ddof=1), rel=1e-4)
    assert prediction_error(Biased(float("nan")), buffer) == float("inf")


def test_a_recurrent_model_is_judged_with_its_memory_of_the_steps_before():
    buffer = ReplayBuffer(SPEC)
    for state in walk(300, speed=0.01):  # three speeds: only where they change, and at the start, it is wrong
        buffer.add(state)
    changes = np.diff([state.observation[0] for state in walk(300, speed=0.01)])
    wrong = np.abs(np.diff(changes, prepend=0.0))
    assert prediction_error(Inert(), buffer) == pytest.approx(
        np.sqrt(np.mean((wrong / changes.std(ddof=1)) ** 2)), rel=1e-3
    )


def test_an_update_that_is_much_worse_on_what_happened_is_refused():
    gate = gate_of({1: 0.1, 2: 0.3, 3: 0.14, 4: 0.02})
    assert gate.judge(update(1)).reason == ""
    reason = gate.judge(update(2)).reason
    assert (
        "predicts the newest States with an error of 0.496" in reason
        and "more than 1.5 times the 0.165" in reason
    )
    assert gate.in_use.snapshot.version == 1
    assert gate.judge(update(3)).reason == ""  # within the tolerance
    assert gate.judge(update(4)).reason == ""
    assert gate.judge(update(3)).reason.endswith("is not newer than version 4, which is in use")


def test_models_do_not_get_worse_step_by_step_nor_worse_than_no_change():
    gate = gate_of({1: 0.1, 2: 0.14, 3: 0.18})
    assert gate.judge(update(1)).reason == "" and gate.judge(update(2)).reason == ""
    assert "more than 1.5 times the 0.165" in gate.judge(update(3)).reason  # less than 1.5 times the newest
    gate = gate_of({1: 0.5, 2: 0.59, 3: 0.64})  # an error of 1 is a bias of about 0.6
    assert gate.judge(update(1)).reason == "" and gate.judge(update(2)).reason == ""
    assert "that nothing changes would be a better guess" in gate.judge(update(3)).reason


def test_where_all_is_good_a_little_worse_is_good_as_well_and_without_data_nothing_is_compared():
    assert gate_of({1: 1e-6, 2: 1e-2}).judge(update(2)).reason == ""
    few = gate_of({1: 0.1, 2: 9.0}, heard=ENOUGH - 1)
    assert [few.judge(update(v)).reason for v in (1, 2)] == ["", ""]


def test_a_model_that_does_worse_than_the_one_before_is_given_up_for_good(tmp_path):
    biases = {1: 0.1, 2: 0.1, 3: 0.1}
    gate = gate_of(biases, folder=tmp_path)
    first, second = update(1), update(2)
    gate.judge(first), gate.judge(second)
    gate.in_use.model.bias = 0.5  # it was good on what was known
    assert gate.watch().reason == ""  # nothing happened since
    for state in walk(seed=1):
        gate.hear(state)
    finding = gate.watch()
    assert "update 2 of run a predicted what came after it with an error of 0.8" in finding.reason
    assert "that one is used again" in finding.reason
    assert gate.in_use.snapshot == first and stored(tmp_path).sha256 == first.sha256
    again = ModelGate(SPEC, "ensemble", gate._build, folder=tmp_path)
    for other in (gate, again):  # the next start knows it as well
        assert "did worse than the one before" in other.judge(second).reason
    assert gate.judge(update(3)).reason == ""


def test_a_world_that_changes_makes_all_models_worse_and_gives_up_none():
    gate = gate_of({1: 0.1, 2: 0.1})
    gate.judge(update(1)), gate.judge(update(2))
    for kept in (gate._before, gate._in_use):
        kept.model.bias = 3.0
    for state in walk(seed=1):
        gate.hear(state)
    assert gate.watch().reason == "" and gate.watch().error == pytest.approx(5.2, rel=0.1)


def test_a_model_too_slow_to_plan_with_is_refused():
    def plan(model, obs):
        end = time.thread_time() + model.bias
        while time.thread_time() < end:
            pass
        return torch.full((1, 3, 1), torch.nan if model.bias == 0.03 else 0.0)

    gate = gate_of({1: 0.2, 2: 0.0, 3: 0.03}, heard=0, plan=plan, limit=0.1)
    assert "of computing, but there are 100 ms" in gate.judge(update(1)).reason
    assert gate.judge(update(2)).reason == ""
    assert gate.judge(update(3)).reason == "a plan with update 3 of run a is not finite"


def test_the_last_good_model_is_kept_on_disk(tmp_path):
    assert stored(tmp_path) is None
    gate = gate_of({1: 0.1, 2: 0.1}, folder=tmp_path / "deep")
    assert gate.judge(update(1)).trouble == ""
    assert stored(tmp_path / "deep") == update(1)
    whole = (tmp_path / "deep" / ACCEPTED).read_bytes()
    (tmp_path / "deep" / ACCEPTED).write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="the model cannot be read: not a safetensors file"):
        stored(tmp_path / "deep")


def test_a_folder_that_cannot_be_written_keeps_no_model_from_use(tmp_path):
    (tmp_path / "file").write_text("")
    gate = gate_of({1: 0.1}, folder=tmp_path / "file" / "folder")
    finding = gate.judge(update(1))
    assert finding.reason == "" and "could not be kept in" in finding.trouble


@pytest.fixture(scope="module")
def pendulum() -> tuple[Order, Spec]:
    settings = {"horizon": 5, "candidates": 8, "elites": 2, "iterations": 1}
    return Order("ensemble", "pendulum", planner="cem", settings=settings), make_task("pendulum").spec


def pendulum_update(spec: Spec, version: int, **changes) -> Snapshot:
    config = build_config(EnsembleConfig, {"members": 2, "hidden": [4]})
    snapshot = pack(Ensemble(spec, config, seed=version), model_id="ensemble", run_id="a", version=version)
    return dataclasses.replace(snapshot, **changes)


def test_judges_in_a_process_of_its_own_that_may_die(pendulum):
    order, spec = pendulum
    gate = GateProcess(order)
    try:
        gate.begin(spec, [])
        first = pendulum_update(spec, 1)
        assert gate.judge(first).reason == ""
        bomb = b"cos\nabort\n(tR."  # a pickle that would end the process
        assert "truncated or altered" in gate.judge(pendulum_update(spec, 2, weights=bomb)).reason
        for state in range(3):
            seen = Transition(bytes(16), 0, state, np.ones(3), np.zeros(1), first=state == 0)
            gate.hear(seen)
        assert gate.watch().reason == ""
        os.kill(gate.pid, signal.SIGKILL)
        with pytest.raises(GateLost, match=r"ended \(signal 9\)"):
            gate.judge(pendulum_update(spec, 3))
        gate.begin(spec, [first])  # another process, which knows what is in use
        assert "is not newer than version 1" in gate.judge(pendulum_update(spec, 1)).reason
        assert gate.judge(pendulum_update(spec, 2)).reason == ""
    finally:
        gate.close()
    assert gate.pid == 0 or not os.path.exists(f"/proc/{gate.pid}")


def test_a_process_that_does_not_answer_is_ended(pendulum, monkeypatch):
    order, spec = pendulum
    monkeypatch.setattr(gate_process, "PATIENCE", 1.0)
    gate = GateProcess(order)
    pid = gate.pid
    os.kill(pid, signal.SIGSTOP)
    gate.begin(spec, [])
    with pytest.raises(GateLost, match="did not answer within 1 s"):
        gate.judge(pendulum_update(spec, 1))
    assert not os.path.exists(f"/proc/{pid}")
    gate.close()
