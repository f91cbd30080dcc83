"""robot_bridge and driver_node as processes over DDS; the test is the controller, and judges the commands."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool, Trigger

from mbrl_bringup.cli import main
from mbrl_dynamics.ros.convert import answer_to_msg, transition_from_msg
from mbrl_dynamics.ros.testing import (
    LATCHED_QOS,
    NodeProcess,
    Peer,
    eventually,
    isolated_domain,
    peer,
    start_node,
)
from mbrl_dynamics.transition import Answer
from mbrl_msgs.action import Reset
from mbrl_msgs.msg import Action, GuardStatus, LearnerStatus, State, WorldStatus
from mbrl_msgs.srv import Arm
from mbrl_sim.tasks.arm_reach import ArmReach

FILE = Path(__file__).parents[1] / "config" / "robots" / "cartpole.yaml"
BRIDGE, DRIVER = "mbrl_bringup.ros.robot_bridge_node", "mbrl_sim.ros.driver_node"
COMMANDS = "effort_controller/commands"
DAMPING = 2.0  # of the cart-pole's file [N s/m]


class Bench:
    """A controller that answers every State with one row, and hears all that is said."""

    def __init__(self, me, commands: str = COMMANDS, row: tuple[float, ...] = (3.0,)) -> None:
        self.me, self.row, self.answering = me, row, True
        self.commands = me.listen(Float64MultiArray, commands, 10)
        self.guards = me.listen(GuardStatus, "guard_status", LATCHED_QOS)
        self.worlds = me.listen(WorldStatus, "world_status", LATCHED_QOS)
        self.states: list[State] = []
        self._actions = me.publisher(Action, "action")
        me.node.create_subscription(State, "state", self._on_state, 1000)
        self._reset = me.action_client(Reset, "reset")

    def _on_state(self, msg: State) -> None:
        self.states.append(msg)
        if self.answering and not (msg.terminated or msg.truncated):
            self.answer(msg, *self.row)

    def answer(self, msg: State, *row: float) -> None:
        state = transition_from_msg(msg)
        reply = Answer(state.world_id, state.episode, state.step, "test", np.array([row] * 3))
        self._actions.publish(answer_to_msg(reply, msg.header.stamp))

    def phase(self, phase: int) -> GuardStatus:
        eventually(lambda: bool(self.guards) and self.guards[-1].phase == phase, f"no phase {phase}")
        return self.guards[-1]

    def arm(self, **request) -> str:
        return self.me.call(Arm, "arm", Arm.Request(armed=True, **request)).error_msg

    def armed(self) -> None:
        eventually(lambda: bool(self.guards) and not self.guards[-1].refusal, "it cannot be armed")
        assert self.arm() == ""
        moved = (GuardStatus.ARMED, GuardStatus.RUNNING)  # where a reset waits for it, it runs at once
        eventually(lambda: self.guards[-1].phase in moved, "it is not armed")

    def reset(self):
        """Ask for an episode; the future of the result."""
        assert self._reset.wait_for_server(timeout_sec=60.0)
        accepted = self._reset.send_goal_async(Reset.Goal(seed=-1))
        eventually(accepted.done, "no answer to the goal")
        assert accepted.result().accepted
        return accepted.result().get_result_async()

    def running(self) -> None:
        self.armed()
        self.begin()

    def begin(self) -> None:
        begun = self.reset()
        eventually(begun.done, "no episode began")
        result = begun.result().result
        assert result.error_code == Reset.Result.OK, result.error_msg
        seen = len(self.states)
        eventually(lambda: len(self.states) > seen + 5, "no States")


def patient(folder: Path, seconds: float, file: Path = FILE) -> str:
    """A robot's file with a guard that waits so long, since the machine that tests may be busy."""
    content = yaml.safe_load(file.read_text())
    if "description" in content:
        content["description"] = str((file.parent / content["description"]).absolute())  # is not beside it
    for source in content["sources"].values():
        source["max_age"] = seconds / 2
    content["guard"]["max_age"] = seconds / 2
    content["guard"]["trip_after"] = seconds
    path = folder / "patient.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@contextmanager
def robot(folder: Path, namespace: str = "", seconds: float = 30.0) -> Iterator[Bench]:
    with (
        isolated_domain(),
        start_node(DRIVER, {"command_timeout": 0.2}, namespace=namespace),
        start_node(BRIDGE, {"robot": patient(folder, seconds)}, namespace=namespace) as bridge,
        peer(namespace=namespace) as me,
    ):
        bench = Bench(me)
        bench.process = bridge
        yield bench


def test_an_episode_on_a_robot_and_a_safe_command_at_its_end(tmp_path: Path) -> None:
    with robot(tmp_path, namespace="/robot1") as bench:
        eventually(lambda: bool(bench.guards), "the guard says nothing")
        assert bench.guards[-1].phase == GuardStatus.DISARMED and not bench.commands
        begun = bench.reset()
        bench.armed()
        eventually(begun.done, "no episode began")
        eventually(lambda: sum(s.controller_id == "test" for s in bench.states) > 10, "nobody leads")
        states = [transition_from_msg(state) for state in list(bench.states)]
        assert states[0].first and states[0].step == 0
        steps = [state.step for state in states]  # a busy machine may not see the robot in a period
        assert steps == sorted(set(steps))
        led = [state for state in states if state.controller_id == "test"]
        assert all(state.action.tolist() == [3.0] for state in led)
        for before, after in pairwise(states):
            assert math.isfinite(after.reward) == after.follows(before)
        assert led[-1].observation[0] > states[0].observation[0] + 0.05, "the cart moved"
        assert bench.process.stop(signal.SIGINT) == 0
        braking = -DAMPING * bench.states[-1].observation[3]  # by the velocity of the cart
        eventually(lambda: abs(bench.commands[-1].data[0] - braking) < 0.5, "the last command is not safe")


def test_what_is_wrong_trips_and_only_a_person_arms_again(tmp_path: Path) -> None:
    with robot(tmp_path) as bench:
        bench.running()
        bench.answering = False
        bench.answer(bench.states[-1], math.nan)
        assert "not finite" in bench.phase(GuardStatus.TRIPPED).reason
        eventually(lambda: bench.states[-1].truncated, "the episode goes on")
        bench.answering = True
        bench.running()
        rogue = bench.me.publisher(Float64MultiArray, COMMANDS, 1)
        assert "1 other publisher" in bench.phase(GuardStatus.TRIPPED).reason
        assert "1 other publisher" in bench.arm()
        bench.me.node.destroy_publisher(rogue)
        bench.running()
        bench.me.call(Trigger, "stop", Trigger.Request())
        assert "a person stopped it" in bench.phase(GuardStatus.TRIPPED).reason
        bench.running()
        button = bench.me.publisher(Bool, "emergency_stop", 10)
        button.publish(Bool(data=True))
        assert "emergency stop" in bench.phase(GuardStatus.TRIPPED).reason
        assert "is pressed" in bench.arm()


def test_a_drive_that_drops_out_ends_the_episode_and_a_new_one_begins_when_it_is_back(tmp_path: Path) -> None:
    with robot(tmp_path, seconds=4.0) as bench:
        bench.running()
        assert bench.me.call(SetBool, "fault", SetBool.Request(data=True)).success
        eventually(lambda: bench.worlds[-1].status == WorldStatus.NEEDS_RESET, "the episode goes on")
        assert bench.phase(GuardStatus.TRIPPED).reason
        assert "silent" in bench.worlds[-1].last_fault or "late" in bench.worlds[-1].last_fault
        assert bench.me.call(SetBool, "fault", SetBool.Request(data=False)).success
        bench.states.clear()
        bench.running()
        assert transition_from_msg(bench.states[0]).episode == 1


def test_a_stopped_bridge_is_noticed_by_the_driver_and_trips_when_it_goes_on(tmp_path: Path) -> None:
    with robot(tmp_path, seconds=4.0) as bench:
        bench.running()
        joints = bench.me.listen(JointState, "joint_states", 10)
        diagnoses = bench.me.listen(DiagnosticArray, "diagnostics", 10)
        eventually(lambda: bool(of_bridge(diagnoses)), "no diagnosis")
        missed = int(of_bridge(diagnoses)[-1]["missed_deadlines"])
        begin = time.monotonic()
        os.kill(bench.process.pid, signal.SIGSTOP)
        eventually(lambda: bool(joints) and joints[-1].effort[0] == 0.0, "the driver goes on pushing")
        eventually(lambda: len(joints) > 500, "no time passes")  # longer than trip_after
        periods = (time.monotonic() - begin) / 0.05
        os.kill(bench.process.pid, signal.SIGCONT)
        assert bench.phase(GuardStatus.TRIPPED).reason
        eventually(
            lambda: int(of_bridge(diagnoses)[-1]["missed_deadlines"]) - missed >= periods - 2,
            "each period that nobody began is a missed deadline",
        )


def of_bridge(diagnoses: list[DiagnosticArray]) -> list[dict[str, str]]:
    """What the bridge has said of itself."""
    said = [message.status[0] for message in list(diagnoses) if "robot_bridge" in message.status[0].name]
    return [{pair.key: pair.value for pair in status.values} for status in said]


def test_a_lifecycle_manager_says_when_there_are_episodes_and_the_guard_owns_motion_throughout(
    tmp_path: Path,
) -> None:
    with (
        isolated_domain(),
        start_node(DRIVER, {"command_timeout": 0.2}),
        start_node(BRIDGE, {"robot": patient(tmp_path, 30.0), "autostart": False}) as bridge,
        peer() as me,
    ):
        bench = Bench(me)
        assert bench.phase(GuardStatus.DISARMED).refusal, "it does not hear the robot"
        assert bench.arm() != ""
        change(me, "configure")
        bench.armed()
        eventually(lambda: len(bench.commands) > 5, "an armed guard holds the robot in each state")
        refused = bench.reset()
        eventually(refused.done, "no answer")
        assert "not active" in refused.result().result.error_msg
        change(me, "activate")
        bench.begin()
        change(me, "deactivate")
        eventually(lambda: bench.states[-1].truncated, "the episode goes on")
        assert "deactivated" in bench.worlds[-1].last_fault
        bench.phase(GuardStatus.ARMED)
        held = len(bench.commands)
        eventually(lambda: len(bench.commands) > held + 5, "nobody holds the robot")
        change(me, "activate")
        bench.begin()
        change(me, "deactivate")
        change(me, "cleanup")
        bench.phase(GuardStatus.DISARMED)
        braking = -DAMPING * bench.states[-1].observation[3]
        assert abs(bench.commands[-1].data[0] - braking) < 1.0, "the last command is not safe"
        assert bench.arm() != ""
        change(me, "shutdown")
        assert bridge.stop(signal.SIGINT) == 0


def change(me: Peer, label: str) -> None:
    request = ChangeState.Request(transition=Transition(label=label))
    assert me.call(ChangeState, "robot_bridge/change_state", request).success, label


def test_an_arm_moves_and_its_goal_is_whatever_is_seen(tmp_path: Path) -> None:
    which = {"robot": patient(tmp_path, 30.0, FILE.with_name("arm.yaml"))}
    drives = {"task": "arm_reach", "command_topic": "velocity_controller/commands", "command_timeout": 0.2}
    with isolated_domain(), start_node(DRIVER, drives), start_node(BRIDGE, which), peer() as me:
        bench = Bench(me, "velocity_controller/commands", (0.4, 0.0, 0.0, 0.0, 0.0, -0.6))
        bench.running()
        task, begin = ArmReach(), bench.states[0].observation
        eventually(lambda: bench.states[-1].observation[0] > begin[0] + 0.1, "the arm does not turn")
        state = transition_from_msg(bench.states[-1])
        assert math.isfinite(state.reward) and state.observation[5] < begin[5] - 0.1
        assert 0.0 < task.distance(state.observation) < 1.0
        mover, wanted = me.publisher(PoseStamped, "move_goal", 10), PoseStamped()
        wanted.pose.position.x, wanted.pose.position.y, wanted.pose.position.z = 0.4, 0.1, 0.25

        def seen() -> bool:
            mover.publish(wanted)
            return np.allclose(bench.states[-1].observation[12:], [0.4, 0.1, 0.25, 0, 0, 0], atol=1e-6)

        eventually(seen, "the new goal is not seen")


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"robot": "cartpol"}, "unknown robot 'cartpol' (did you mean 'cartpole'?)"),
        ({"robot": "./none.yaml"}, "the robot's file none.yaml cannot be read"),
        ({"limits": 0.0}, "parameter 'limits' is 0.0"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(parameters, sentence) -> None:
    with isolated_domain(), start_node(BRIDGE, parameters) as bridge:
        assert bridge.wait() == 2
        assert f"error: {sentence}" in bridge.output and "Traceback" not in bridge.output


def test_a_dry_run_publishes_no_command(tmp_path: Path) -> None:
    dry = {"passive": True, "robot": patient(tmp_path, 30.0)}
    with isolated_domain(), start_node(DRIVER), start_node(BRIDGE, dry), peer() as me:
        bench = Bench(me)
        assert "dry run" in bench.arm()
        eventually(bench.reset().done, "no episode began")
        eventually(lambda: len(bench.states) > 10, "no States")
        assert not bench.commands and me.node.count_publishers(COMMANDS) == 0


def test_the_whole_stack_on_a_robot_waits_for_a_person_learns_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    which = f"robot:={patient(tmp_path, 30.0)}"
    up = [sys.executable, "-m", "mbrl_bringup.cli", "up", which, "no_model:=random"]
    with isolated_domain(), NodeProcess(up) as stack, peer() as me:
        guards = me.listen(GuardStatus, "guard_status", LATCHED_QOS)
        states = me.listen(State, "state")
        learners = me.listen(LearnerStatus, "learner_status", LATCHED_QOS)
        eventually(lambda: bool(guards) and not guards[-1].refusal, "it cannot be armed")
        eventually(lambda: bool(learners), "there is no learner")
        assert not states
        assert main(["arm"]) == 0
        eventually(lambda: len(states) > 20, "nothing moves")
        eventually(lambda: learners[-1].transitions > 0, "nothing is recorded")
        assert any(state.controller_id == "/planner_node" for state in states)
        assert main(["stop"]) == 0
        eventually(lambda: guards[-1].phase == GuardStatus.TRIPPED, "it goes on")
        assert main(["status"]) == 0
        assert "tripped: a person stopped it" in capsys.readouterr().out
        assert stack.stop(signal.SIGINT) == 0


def test_arming_where_there_is_no_robot_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with isolated_domain():
        assert main(["arm", "namespace:=nowhere"]) == 1
    assert "no robot_bridge answers (namespace 'nowhere'" in capsys.readouterr().err
