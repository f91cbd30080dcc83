"""The node as a process, over DDS: it records, learns, serves, and survives what is done to it."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear_model import LinearModel
from worlds import OTHER_SPEC, OTHER_WORLD, SPEC, WORLD, episode, same, transition

from mbrl_dynamics.episodes import files, read
from mbrl_dynamics.ros import convert
from mbrl_dynamics.ros.testing import (
    LATCHED_QOS,
    NodeProcess,
    Peer,
    eventually,
    isolated_domain,
    peer,
    start_node,
)
from mbrl_dynamics.snapshot import check, restore
from mbrl_dynamics.spec import Spec as CoreSpec
from mbrl_dynamics.transition import Answer, Transition
from mbrl_msgs.msg import Action, LearnerStatus, ModelUpdate, Spec, State
from mbrl_msgs.srv import GetModel

MODEL = "linear_model:LinearModel"


class World:
    """Publishes what a world would."""

    def __init__(self, me: Peer, spec: CoreSpec = SPEC, world: bytes = WORLD) -> None:
        self.spec, self.me = spec, me
        self._spec = me.node.create_publisher(Spec, "spec", LATCHED_QOS)
        self._spec.publish(convert.spec_to_msg(spec, world))
        self.states = me.publisher(State, "state")

    def play(self, *states: Transition) -> None:
        for state in states:
            self.states.publish(convert.transition_to_msg(state, self.spec))


class Student:
    """What the node says."""

    def __init__(self, me: Peer) -> None:
        self.statuses = me.listen(LearnerStatus, "learner_status", LATCHED_QOS)
        self.updates = me.listen(ModelUpdate, "model_update", LATCHED_QOS)

    @property
    def status(self) -> LearnerStatus:
        return self.statuses[-1]

    def says(self, condition: Any, what: str = "no such status") -> LearnerStatus:
        eventually(lambda: any(condition(s) for s in self.statuses[-1:]), f"{what}: {self.statuses[-1:]}")
        return self.statuses[-1]

    def trained(self, number: int) -> LearnerStatus:
        return self.says(
            lambda s: s.status == LearnerStatus.IDLE and s.trained_episode == number,
            f"not trained on {number}",
        )


@pytest.fixture
def me() -> Iterator[Peer]:
    with isolated_domain(), peer() as one:
        yield one


def dynamics_node(tmp_path: Path, **parameters: Any) -> NodeProcess:
    given = {
        "model": MODEL,
        "threads": 1,
        "dataset": str(tmp_path / "dataset"),
        "checkpoint": str(tmp_path / "checkpoint"),
    }
    return start_node("mbrl_dynamics.ros.dynamics_node", given | parameters)


def recorded(tmp_path: Path) -> list[Transition]:
    return [s for s in read(tmp_path / "dataset", ["state"]) if isinstance(s, Transition)]


def test_records_learns_and_tells(me: Peer, tmp_path: Path) -> None:
    student = Student(me)
    with dynamics_node(tmp_path) as node:
        empty = me.call(GetModel, "get_model", GetModel.Request())
        assert (empty.error_code, empty.error_msg) == (
            GetModel.Response.NO_MODEL,
            "nothing has been trained yet",
        )
        world = World(me)
        actions = me.publisher(Action, "action")
        world.play(*episode(0))
        actions.publish(
            convert.answer_to_msg(Answer(WORLD, 0, 3, "mpc", np.ones((2, 1))), convert.time_msg(1.0))
        )
        status = student.trained(0)
        assert (status.version, status.episodes, status.transitions, status.recording) == (1, 1, 10, True)
        assert status.trained_world_id == WORLD.hex()
        eventually(lambda: len(student.updates) == 1, "no update")
        eventually(
            lambda: len(list(read(tmp_path / "dataset", ["action"]))) == 1, "the answer was not recorded"
        )
        with peer("late_joiner") as late:  # gets it although it was not there, by topic and by service
            heard = late.listen(ModelUpdate, "model_update", LATCHED_QOS)
            eventually(lambda: len(heard) == 1, "the late joiner got no update")
            pulled = late.call(GetModel, "get_model", GetModel.Request())
        assert pulled.error_code == GetModel.Response.OK
        for msg in (student.updates[0], heard[0], pulled.update):
            snapshot = convert.snapshot_from_msg(msg)
            assert check(snapshot, SPEC, model_id=MODEL) == ""
            assert snapshot.metrics["holdout_error"] == status.holdout_error
            restore(snapshot, SPEC, LinearModel)
        assert node.stop(signal.SIGTERM) == 0
    assert all(same(a, b) for a, b in zip(recorded(tmp_path), episode(0), strict=True))


def test_what_comes_before_the_spec_of_its_world_is_kept(me: Peer, tmp_path: Path) -> None:
    student = Student(me)
    with dynamics_node(tmp_path) as node:
        states, actions = me.publisher(State, "state"), me.publisher(Action, "action")
        for state in episode(0):
            states.publish(convert.transition_to_msg(state, SPEC))
        actions.publish(
            convert.answer_to_msg(Answer(WORLD, 0, 3, "mpc", np.ones((2, 1))), convert.time_msg(1.0))
        )
        World(me)
        assert student.trained(0).transitions == 10
        eventually(
            lambda: len(list(read(tmp_path / "dataset", ["action"]))) == 1, "the answer was not recorded"
        )
        assert node.stop() == 0


def test_killed_in_the_middle_it_goes_on(me: Peer, tmp_path: Path) -> None:
    student = Student(me)
    world_states = list(episode(1))
    with dynamics_node(tmp_path) as node:
        world = World(me)
        world.play(*episode(0))
        first = student.trained(0)
        world.play(*world_states[:4])
        student.says(lambda s: s.transitions == 13)
        node.kill(signal.SIGKILL)
        assert node.wait() == -signal.SIGKILL
    student.statuses.clear()
    student.updates.clear()
    with dynamics_node(tmp_path) as node:
        again = student.says(lambda s: s.transitions == 13)
        assert (again.episodes, again.gaps) == (2, 0)
        assert again.run_id != first.run_id
        eventually(lambda: bool(student.updates), "no update after the restart")
        assert (student.updates[0].trained_episode, student.updates[0].run_id) == (0, again.run_id)
        world = World(me)
        world.play(*world_states[6:])
        status = student.trained(1)
        assert (status.transitions, status.gaps, status.episodes) == (13 + 4, 1, 2)
        assert node.stop() == 0
    assert [path.name for path in files(tmp_path / "dataset")] == ["000.mcap", "001.mcap"]
    assert [(s.episode, s.step) for s in recorded(tmp_path)] == [
        *((0, i) for i in range(11)),
        *((1, i) for i in range(11) if i not in (4, 5)),
    ]


def test_bad_states_are_refused_and_counted(me: Peer, tmp_path: Path) -> None:
    student = Student(me)
    with dynamics_node(tmp_path) as node:
        world = World(me)
        world.play(
            transition(0, 0),
            transition(0, 1, observation=np.array([1.0, np.nan])),
            transition(0, 1, observation=np.zeros(7)),
            transition(0, 1),
            transition(0, 1),
            transition(0, 2),
        )
        status = student.says(lambda s: s.transitions == 2)
        assert status.refused == 2
        eventually(lambda: "State refused: " in node.output, "nothing was logged")
        assert node.stop() == 0
        assert node.output.count("State refused: ") == 1  # at most once a second
    assert [s.step for s in recorded(tmp_path)] == [0, 1, 2]


def test_other_dynamics_are_refused_in_mid_run(me: Peer, tmp_path: Path) -> None:
    student = Student(me)
    with dynamics_node(tmp_path) as node:
        World(me).play(*episode(0))
        student.trained(0)
        other = World(me, OTHER_SPEC, OTHER_WORLD)
        status = student.says(lambda s: s.status == LearnerStatus.FAILED)
        assert "start another one" in status.error_msg
        other.play(*episode(0, world=OTHER_WORLD))
        World(me, SPEC, bytes(16)).play(*episode(0, world=bytes(16)))  # a new world with the old dynamics
        status = student.says(lambda s: s.trained_world_id == bytes(16).hex())
        assert (status.transitions, status.error_msg) == (20, "")
        assert node.stop() == 0
    assert {s.world_id for s in recorded(tmp_path)} == {WORLD, bytes(16)}


def test_a_failing_fit_is_told_and_the_recording_goes_on(me: Peer, tmp_path: Path) -> None:
    student = Student(me)
    with dynamics_node(tmp_path, **{"LinearModel.fail": True}) as node:
        world = World(me)
        world.play(*episode(0))
        status = student.says(lambda s: s.status == LearnerStatus.FAILED)
        assert status.error_msg == "training failed: the fit was told to fail"
        world.play(*episode(1))
        student.says(lambda s: s.transitions == 20)
        assert node.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_in_the_middle_of_a_fit(me: Peer, tmp_path: Path, number: int) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    student = Student(me)
    with dynamics_node(tmp_path, **{"LinearModel.hold": str(hold)}) as node:
        World(me).play(*episode(0))
        student.says(lambda s: s.status == LearnerStatus.TRAINING)
        node.kill(number)  # launch signals twice
        assert node.stop(number) == 0
    assert len(recorded(tmp_path)) == 11


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        ({"model": "ensembel"}, "unknown model 'ensembel' (did you mean 'ensemble'?)"),
        ({"threads": 0}, "parameter 'threads' is 0"),
        ({"treads": 1}, "unknown parameter 'treads' (did you mean 'threads'?)"),
        ({"LinearModel.ridge": -1.0}, "parameter 'LinearModel.ridge' is -1.0"),
        ({"fit_steps": "many"}, "parameter 'fit_steps' is 'many'"),
        ({"dataset": "/proc/nothing"}, "the dataset folder '/proc/nothing' cannot be used"),
    ],
)
def test_mistakes_of_the_user(me: Peer, tmp_path: Path, parameters: dict[str, Any], sentence: str) -> None:
    with dynamics_node(tmp_path, **parameters) as node:
        assert node.wait() == 2
        assert sentence in node.output
        assert "Traceback" not in node.output
