"""The judge of the fault campaign finds what is bad, where something is; `make faults` is the campaign."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from std_msgs.msg import Float64MultiArray

from mbrl_bringup.ros.faults import generated_faults
from mbrl_bringup.ros.faults.generated import Generator
from mbrl_bringup.ros.faults.judge import (
    Heard,
    Limits,
    Record,
    coded,
    decoded,
    histogram,
    joined_across,
    settled,
    stale,
    stale_states,
)
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.recorder import COMMANDS
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.convert import answer_from_msg, doubles
from mbrl_dynamics.ros.testing import NodeProcess, eventually, isolated_domain, peer
from mbrl_dynamics.transition import Transition

LIMITS = Limits(np.array([-10.0]), np.array([10.0]))
JOINTS = [Heard(0.1 * i, [0.3 + 0.01 * i, 0.0]) for i in range(20)]
STATE = Transition(b"w" * 16, 3, 7, np.zeros(5), np.zeros(1))


def commands(*values: float) -> list[Heard]:
    return [Heard(1.0 + 0.05 * i, [value]) for i, value in enumerate(values)]


@pytest.mark.parametrize("robot", [0, 1])
def test_a_coded_effort_says_what_it_is(robot: int) -> None:
    for step in (0, 5, 63, 64, 1000):
        for row in range(8):
            for sign in (-1.0, 1.0):
                assert decoded(coded(step, row, sign, robot)) == (step % 64, row, robot)
    assert all(decoded(value) is None for value in (0.0, 0.28125, 9.0, 1.0001, -2.5))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([math.nan], "finite"),
        ([-math.inf], "finite"),
        ([10.1], "outside"),
        ([1.0, 1.0], "elements"),
        ([], "elem"),
    ],
)
def test_a_bad_command_is_found(values: list[float], word: str) -> None:
    assert word in LIMITS.fault(values)
    assert len(LIMITS.faults([*commands(0.0, 10.0), Heard(2.0, values)])) == 1


def test_commands_are_safe_from_the_first_on_after_which_all_are() -> None:
    damped = -2.0 * JOINTS[10].said[0]
    assert settled(commands(1.5, 0.0, 1.5, 0.0, damped), JOINTS, 2.0) == pytest.approx(1.15)
    assert settled(commands(0.0, 0.0, 1.5), JOINTS, 2.0) == math.inf
    assert settled([Heard(9.0, [damped])], JOINTS, 2.0) == math.inf, "that velocity was long ago"


def test_a_plan_that_is_too_old_is_found() -> None:
    assert not stale(commands(coded(7, 0, 1.0), coded(7, 5, -1.0), 0.0), 5)
    assert len(stale(commands(coded(7, 6, 1.0)), 5)) == 1

    def state(step: int, action: float) -> Heard:
        return Heard(0.0, ["w", 0, step, 0.0, False, False, [action], "me"])

    assert not stale_states([state(9, coded(7, 0, 1.0)), state(10, coded(7, 1, 1.0)), state(11, -0.3)], 1)
    assert len(stale_states([state(9, coded(6, 0, 1.0))], 1)) == 1


def test_a_transition_across_a_jump_of_the_clock_is_found() -> None:
    def state(step: int, stamp: float, first: bool = False) -> Heard:
        return Heard(0.0, ["w", 0, step, stamp, first, False, [0.0]])

    assert not joined_across([state(1, 5.0), state(2, 5.1), state(4, 1.0), state(0, 0.5, True)])
    assert len(joined_across([state(1, 5.0), state(2, 4.0)])) == 1


def test_an_outcome_gives_the_bound_only_where_nothing_failed() -> None:
    outcome = Outcome("f", "all is well")
    outcome.tried(trials=300)
    assert outcome.json()["bound"] == 0.01
    outcome.tried("it is not")
    assert outcome.json()["bound"] is None and outcome.failures == 1 and outcome.examples == ["it is not"]
    assert histogram([0.01, 0.02, 0.07, math.inf]) == {"0.05": 2, "0.10": 1, "never": 1}


def test_what_is_generated_is_bad_in_each_way() -> None:
    spec = make_task("cartpole_swingup").spec
    generator = Generator(spec, "me", 0)
    answers = [answer_from_msg(generator.action(STATE)) for _ in range(3000)]
    assert any(not np.isfinite(a.values).all() for a in answers)
    assert any(a.values.shape[1] != spec.action_dim for a in answers)
    assert any(a.world_id != STATE.world_id for a in answers) and any(a.episode != 3 for a in answers)
    assert any(a.step > 7 for a in answers) and any(a.controller_id == "" for a in answers)
    names = {tuple(generator.reading(1.0).name) for _ in range(100)}
    assert ("slider", "hinge", "elbow") in names and () in names


def test_the_core_survives_what_is_generated_and_narrower_limits_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = Outcome("f", "")
    generated_faults.core(outcome, 3000, 0)
    assert outcome.failures == 0 and outcome.figures["commands"] > 20
    monkeypatch.setattr(generated_faults, "limits_of", lambda _: Limits(np.array([-0.1]), np.array([0.1])))
    generated_faults.core(outcome, 3000, 0)
    assert outcome.failures > 0


def test_the_recorder_writes_down_every_command(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    command = [sys.executable, "-m", "mbrl_bringup.ros.faults.recorder", str(file)]
    with isolated_domain(), NodeProcess(command) as recorder, peer() as me:
        publisher = me.publisher(Float64MultiArray, COMMANDS, 10)
        for values in ([1.0], [math.nan], [2.0, 3.0], [-4.0]):
            publisher.publish(Float64MultiArray(data=doubles(values)))
        record = Record(file)
        eventually(lambda: len(record.update().commands) == 4, "it does not hear all")
        assert recorder.stop() == 0
    assert len(LIMITS.faults(record.commands)) == 2
    times = [heard.time for heard in record.commands]
    assert times == sorted(times)
    assert all(json.loads(line) for line in file.read_text().splitlines())
