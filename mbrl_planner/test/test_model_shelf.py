"""Which updates are taken: order, kind, dynamics; built in a worker; the last good one kept."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch

from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.ros.node import wait_until
from mbrl_dynamics.snapshot import Snapshot, pack, restore
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.gate_process import GateLost
from mbrl_planner.model_gate import Finding, ModelGate
from mbrl_planner.model_shelf import ModelShelf, Verdict

SPEC = Spec("t", (Element("x"),), (Element("f", "N", -1.0, 1.0),), 0.05)
DELAYED = dataclasses.replace(SPEC, action_delay_steps=1)


def update(version: int = 1, run_id: str = "a", spec: Spec = SPEC, **changes) -> Snapshot:
    torch.set_num_threads(1)
    model = Ensemble(spec, EnsembleConfig(members=2, hidden=(4,)), seed=version)
    snapshot = pack(model, model_id="ensemble", run_id=run_id, version=version)
    return dataclasses.replace(snapshot, **changes)


class Direct:
    """A ModelGate in the shelf's own thread."""

    def __init__(self, build=restore) -> None:
        self.build, self.kept, self.lost = build, [], 0

    def begin(self, spec, kept) -> None:
        self.kept = kept
        self.gate = ModelGate(spec, "ensemble", self.build)
        for snapshot in kept:
            self.gate.keep(snapshot)

    def hear(self, state) -> None:
        self.gate.hear(state)

    def judge(self, snapshot) -> Finding:
        if self.lost:
            self.lost -= 1
            raise GateLost("the gate is gone")
        return self.gate.judge(snapshot)

    def watch(self) -> Finding:
        return self.gate.watch()

    def close(self) -> None:
        pass


class Shelf:
    def __init__(self, build=restore) -> None:
        self.gate = Direct(build)
        self.shelf = ModelShelf(SPEC, build, self.gate, lambda: None)

    def judge(self, *updates: Snapshot, verdicts: int | None = None) -> list[Verdict]:
        """Offer updates and wait for what becomes of them."""
        for snapshot in updates:
            self.shelf.offer(snapshot)
        return self.wait(len(updates) if verdicts is None else verdicts)

    def wait(self, count: int) -> list[Verdict]:
        result: list[Verdict] = []
        assert wait_until(lambda: result.extend(self.shelf.take()) or len(result) >= count, 30.0)
        assert len(result) == count
        return result


@pytest.fixture
def shelf():
    shelf = Shelf()
    yield shelf
    shelf.shelf.close()


def test_versions_of_a_run_go_up_and_a_new_run_starts_over(shelf):
    verdicts = shelf.judge(update(2), update(1), update(3), update(1, "b"), update(2, "b"))
    assert [verdict.model is not None for verdict in verdicts] == [True, False, True, True, True]
    assert verdicts[1].reason == "update 1 of run a is not newer than version 2, which is in use"


def test_the_one_in_use_again_is_no_news(shelf):
    verdicts = shelf.judge(update(1), update(1), update(2), verdicts=2)
    assert [verdict.snapshot.version for verdict in verdicts] == [1, 2]


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"model_id": "gp"}, "is a model 'gp', but 'ensemble' is wanted"),
        ({"dynamics_hash": "f" * 64}, "is for dynamics hash ffffffffffff"),
        ({"weights": update().weights[:-7]}, "truncated or altered"),
        ({"version": 9}, "contradicts itself"),
    ],
)
def test_refused_with_a_reason_and_the_next_good_one_is_taken(shelf, changes, reason):
    bad, good = shelf.judge(dataclasses.replace(update(), **changes), update(7, "b"))
    assert bad.model is None and reason in bad.reason
    assert good.model is not None


def test_a_model_that_cannot_be_built_or_predicts_no_numbers_is_refused():
    def build(snapshot: Snapshot, spec: Spec) -> Ensemble:
        if snapshot.version == 1:
            raise RuntimeError("out of memory")
        model = restore(snapshot, spec)
        if snapshot.version == 2:
            torch.nn.init.constant_(model.biases[-1], torch.nan)
        return model

    shelf = Shelf(build)
    first, second, third = shelf.judge(update(1), update(2), update(3))
    assert "cannot be used: out of memory" in first.reason
    assert "predicts what is not finite" in second.reason
    assert third.model is not None
    shelf.shelf.close()


def test_another_world_lets_the_newest_update_be_judged_again(shelf):
    assert shelf.judge(update(spec=DELAYED))[0].model is None
    shelf.shelf.use_spec(DELAYED)
    (verdict,) = shelf.wait(1)
    assert verdict.model is not None and verdict.model.spec == DELAYED


def test_a_model_built_for_a_world_that_is_gone_is_not_handed_out():
    building, go_on = threading.Event(), threading.Event()

    def slowly(snapshot, spec):
        building.set()
        assert go_on.wait(30.0)
        return restore(snapshot, spec)

    shelf = Shelf(slowly)
    shelf.shelf.offer(update())
    assert building.wait(30.0)
    shelf.shelf.use_spec(DELAYED)
    go_on.set()
    (verdict,) = shelf.wait(1)
    assert verdict.model is None and "dynamics hash" in verdict.reason
    shelf.shelf.close()


def test_a_gate_that_is_lost_refuses_and_the_next_knows_the_last_two_good_models(shelf):
    shelf.judge(update(1), update(2), update(3))
    shelf.gate.lost = 1
    (refused,) = shelf.judge(update(4))
    assert refused.model is None and "update 4 of run a cannot be used: the gate is gone" in refused.reason
    assert shelf.shelf.trouble == "the gate is gone"
    (accepted,) = shelf.judge(update(5))
    assert accepted.model is not None and shelf.shelf.trouble == ""
    assert [snapshot.version for snapshot in shelf.gate.kept] == [2, 3]


def test_a_model_that_is_given_up_hands_out_the_one_before(shelf):
    first, _ = shelf.judge(update(1), update(2))
    shelf.gate.gate.watch = lambda: Finding("update 2 did worse", 0.1)
    shelf.shelf.hear(Transition(bytes(16), 0, 0, np.zeros(1), np.zeros(1), first=True))
    (verdict,) = shelf.wait(1)
    assert verdict.model is first.model and verdict.snapshot.version == 1
    assert verdict.reason == "update 2 did worse" and shelf.shelf.error == 0.1
