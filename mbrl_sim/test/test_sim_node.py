"""sim_node as a process of its own, over real DDS."""

import math
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from visualization_msgs.msg import MarkerArray

from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.convert import doubles, spec_from_msg, transition_from_msg
from mbrl_dynamics.ros.testing import LATCHED_QOS, eventually, isolated_domain, peer, start_node
from mbrl_msgs.action import Reset
from mbrl_msgs.msg import Action, Spec, State, WorldStatus
from mbrl_msgs.srv import Pause, SingleStep

SIM = "mbrl_sim.ros.sim_node"


class Driver:
    """The test's end of the contract."""

    def __init__(self, me):
        self.me = me
        self.states = me.listen(State, "state")
        self.specs = me.listen(Spec, "spec", LATCHED_QOS)
        self.joints = me.listen(JointState, "joint_states")
        self.statuses = me.listen(WorldStatus, "world_status", LATCHED_QOS)
        self.publisher = me.publisher(Action, "action")
        self.resets = me.action_client(Reset, "reset")

    @property
    def newest(self):
        eventually(lambda: self.states, "no State")
        return self.states[-1]

    def send(self, *values, to=None, who="test", **changes):
        state = to or self.newest
        message = Action(episode=state.episode, step=state.step, controller_id=who, horizon=1)
        message.world_id, message.values = state.world_id, doubles(values or [0.5])
        for name, value in changes.items():
            setattr(message, name, value)
        self.publisher.publish(message)

    def reached(self, step):
        eventually(lambda: self.newest.step == step, f"step {step} does not come")
        return self.newest

    @property
    def spec(self):
        eventually(lambda: self.specs, "no Spec")
        return self.specs[-1]

    def advance(self, *values):
        """Answer the newest State and wait for the next."""
        step = self.newest.step
        self.send(*values)
        return self.reached(step + 1)

    def told(self, condition):
        """The status, once it fulfils a condition."""
        eventually(lambda: any(condition(status) for status in self.statuses), "the status does not say so")
        return next(status for status in reversed(self.statuses) if condition(status))

    def reset(self, **goal):
        assert self.resets.wait_for_server(timeout_sec=30)
        sent = self.resets.send_goal_async(Reset.Goal(**{"seed": -1, **goal}))
        eventually(sent.done, "the goal is not answered")
        result = sent.result().get_result_async()
        eventually(result.done, "the reset does not end")
        return result.result().result


@contextmanager
def simulation(namespace="", **parameters):
    parameters = {"task": "pendulum", **parameters}
    with (
        isolated_domain(),
        start_node(SIM, parameters, namespace=namespace) as process,
        peer(namespace=namespace) as me,
    ):
        driver = Driver(me)
        driver.process = process
        yield driver


def test_a_lost_action_is_asked_for_again():
    with simulation() as world:
        first = world.newest
        eventually(lambda: len(world.states) >= 3, "the State is not repeated")
        assert {repr(state) for state in world.states} == {repr(first)}  # NaN included
        assert world.advance().controller_id == "test"
        assert world.told(lambda status: status.repeated >= 2).refused == 0


def test_answers_to_a_repeated_state_count_once():
    with simulation() as world:
        first = world.newest
        world.send(0.1, to=first)
        world.send(0.1, to=first)
        world.reached(1)
        world.send(0.2)
        assert list(world.reached(2).action) == [0.2]
        status = world.told(lambda status: status.accepted == 2)
        assert (status.refused, status.step) == (0, 2)


def test_a_goal_is_moved_and_is_no_joint_of_the_robot():
    with simulation(task="arm_reach") as world:
        mover, wanted = world.me.publisher(PoseStamped, "move_goal"), PoseStamped()
        wanted.pose.position.x, wanted.pose.position.z = 0.4, 0.25

        def moved():
            mover.publish(wanted)
            seen = world.advance(*[0.1] * 6).observation
            return np.allclose(seen[12:], [0.4, 0.0, 0.25, 0.0, 0.0, 0.0], atol=1e-6)

        eventually(moved, "the goal is not moved")
        assert np.allclose(world.newest.observation[12:15], [0.4, 0.0, 0.25])
        eventually(lambda: world.joints, "no joint_states")
        assert len(world.joints[-1].name) == 6


def test_a_bad_action_is_refused_and_named_in_the_status():
    messages = [
        ({"values": doubles([math.nan])}, "not finite"),
        ({"values": doubles([1.0, 2.0])}, "H x 1"),
        ({"values": doubles([])}, "H x 1"),
        ({"world_id": [7] * 16}, "earlier"),
        ({"who": "other"}, "'other' is refused, since 'test' is in control"),
    ]
    with simulation() as world:
        world.advance()
        for count, (message, reason) in enumerate(messages, start=1):
            world.send(**message)
            status = world.told(lambda status, count=count: status.refused == count)
            assert reason in status.last_refusal
            assert status.controller_id == "test"
        assert world.advance().step == 2


def test_pause_and_single_step():
    with simulation() as world:
        world.advance()
        assert world.me.call(Pause, "pause", Pause.Request(paused=True)).error_code == Pause.Response.OK
        world.told(lambda status: status.status == WorldStatus.PAUSED)
        world.send()
        world.told(lambda status: status.accepted == 2)
        assert world.newest.step == 1
        assert not world.me.call(SingleStep, "single_step", SingleStep.Request(steps=1)).error_msg
        world.reached(2)
        world.send()
        world.told(lambda status: status.accepted == 3)
        assert world.newest.step == 2
        world.me.call(Pause, "pause", Pause.Request(paused=False))
        world.reached(3)
        refusal = world.me.call(SingleStep, "single_step", SingleStep.Request(steps=1))
        assert refusal.error_code == SingleStep.Response.NOT_PAUSED
        refusal = world.me.call(SingleStep, "single_step", SingleStep.Request(steps=0))
        assert refusal.error_code == SingleStep.Response.BAD_REQUEST


def test_only_a_reset_begins_the_next_episode():
    with simulation(max_steps=1) as world:
        last = world.advance()
        assert last.truncated
        world.told(lambda status: status.status == WorldStatus.NEEDS_RESET)
        result = world.reset(initial_state=[0.0, 1.0])
        assert (result.error_code, result.episode) == (Reset.Result.OK, 1)
        state = world.reached(0)
        assert (state.episode, state.first) == (1, True)
        assert list(state.observation) == [1.0, 0.0, 1.0]
        assert list(result.world_id) == list(state.world_id)
        assert state.header.stamp.nanosec != last.header.stamp.nanosec


def test_a_reset_to_a_bad_state_is_refused():
    with simulation() as world:
        world.advance()
        for state, reason in (([1.0], "must have 2"), ([0.0, math.nan], "not finite")):
            result = world.reset(initial_state=state)
            assert result.error_code == Reset.Result.BAD_REQUEST
            assert reason in result.error_msg
        assert world.advance().episode == 0


def test_a_seeded_reset_can_be_repeated():
    with simulation(start=False) as world:
        world.reset(seed=3)
        first = list(world.newest.observation)
        world.reset(seed=3)
        eventually(lambda: world.newest.episode == 1, "no second episode")
        assert list(world.newest.observation) == first


def test_real_time_does_not_wait():
    with simulation(mode="realtime", action_delay_steps=2, max_steps=10**6) as world:
        eventually(lambda: len(world.states) > 5, "time stands still")
        assert {state.controller_id for state in world.states} == {""}
        assert [state.step for state in world.states] == list(
            range(world.states[0].step, world.states[0].step + len(world.states))
        )
        status = world.told(lambda status: status.missed_steps > 0)
        assert status.mode == WorldStatus.REALTIME


def test_a_free_world_shows_some_of_its_states():
    with simulation(mode="free") as world:
        eventually(lambda: len(world.states) > 5, "no States")
        steps = [state.step for state in world.states]
        assert steps[-1] - steps[0] > len(steps)
        refusal = world.me.call(Pause, "pause", Pause.Request(paused=True))
        assert refusal.error_code == Pause.Response.UNSUPPORTED


def test_everything_there_is_to_see():
    with simulation(task="cartpole_swingup", namespace="/robot1") as world:
        me = world.me
        topics = {
            "spec": me.listen(Spec, "spec", LATCHED_QOS),
            "clock": me.listen(Clock, "clock"),
            "joints": me.listen(JointState, "joint_states"),
            "scene": me.listen(MarkerArray, "scene", LATCHED_QOS),
            "diagnostics": me.listen(DiagnosticArray, "diagnostics"),
        }
        eventually(lambda: topics["spec"], "no spec")
        assert spec_from_msg(topics["spec"][0]).task == "cartpole_swingup"
        moved = 0
        while not moved or not all(topics.values()):
            world.advance()
            moved = len({marker.pose.position.x for array in topics["scene"] for marker in array.markers}) > 1
        markers = topics["scene"][-1].markers
        assert {marker.header.frame_id for marker in markers} == {"world"}
        assert len({(marker.ns, marker.id) for marker in markers}) == len(markers) == 8  # capsules are three
        assert topics["joints"][-1].name == ["slider", "hinge"]
        assert topics["diagnostics"][-1].status[0].name == "/robot1/sim_node"


def test_worlds_of_other_libraries_keep_the_contract():
    with simulation(task="dm_control/reacher-easy", action_repeat=2) as world:
        spec = spec_from_msg(world.spec)
        assert spec == make_task("dm_control/reacher-easy", 2).spec
        world.advance(0.5, -0.5)
        state = world.advance(0.5, -0.5)
        assert (state.step, list(state.action), len(state.observation)) == (2, [0.5, -0.5], 7)
        assert math.isfinite(state.reward)
        assert world.reset(seed=3).error_code == Reset.Result.OK
        eventually(lambda: world.newest.episode == 1, "no second episode")
        expected = make_task("dm_control/reacher-easy").make_simulator(0).reset(3)
        assert list(world.newest.observation) == list(expected)
        scene, joints = world.me.listen(MarkerArray, "scene", LATCHED_QOS), world.joints
        eventually(lambda: world.advance(0.5, -0.5) and scene and joints, "nothing to see")
        assert len(scene[-1].markers) > 5 and joints[-1].name == ["shoulder", "wrist"]


def test_a_discrete_world_terminates_without_a_scene():
    with simulation(task="gymnasium/CartPole-v1") as world:
        assert spec_from_msg(world.spec).action[0].count == 2
        while not world.newest.terminated:
            world.advance(1.0)
        assert (world.newest.reward, world.newest.truncated) == (1.0, False)
        assert world.newest.step < 20
        world.told(lambda status: status.status == WorldStatus.NEEDS_RESET)


def test_images_are_part_of_the_state():
    reason = make_task("pendulum").make_simulator().renderer_error()
    if reason:
        pytest.skip(reason)
    with simulation(image_size=32) as world:
        (camera,) = spec_from_msg(world.spec).cameras
        assert (camera.name, camera.height, camera.width) == ("side", 32, 32)
        images = [transition_from_msg(world.advance(2.0)).images["side"] for _ in range(8)]
        assert {(image.shape, image.dtype.name) for image in images} == {((32, 32, 3), "uint8")}
        assert (images[0] != images[-1]).any()


def test_a_fault_in_the_task_ends_the_episode_but_not_the_node(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fakes"), prepend=":")
    with simulation(task="fragile:Fragile") as world:
        world.advance()
        world.send(2.0)
        assert world.reached(2).truncated
        status = world.told(lambda status: status.status == WorldStatus.NEEDS_RESET)
        assert "divides by zero" in status.last_fault
        assert world.reset().error_code == Reset.Result.OK
        eventually(lambda: world.newest.episode == 1, "no second episode")
        assert world.advance().step == 1
        world.me.call(Pause, "pause", Pause.Request(paused=True))
        world.send(2.0)
        world.told(lambda status: status.accepted == 4)
        response = world.me.call(SingleStep, "single_step", SingleStep.Request(steps=1))
        assert "divides by zero" in response.error_msg
        assert world.reset().error_code == Reset.Result.OK


@pytest.mark.parametrize(
    "mode, number", [("lockstep", signal.SIGINT), ("realtime", signal.SIGTERM), ("free", signal.SIGINT)]
)
def test_a_signal_ends_it_cleanly(mode, number):
    with simulation(mode=mode) as world:
        assert world.newest
        assert world.process.stop(number, timeout=20) == 0
        assert "Traceback" not in world.process.output


@pytest.mark.parametrize(
    "parameter, sentence",
    [
        (
            {"task": "moonwalk"},
            "unknown task 'moonwalk'; valid: adroit_pen, arm_reach, arm_reach_obstacle, cartpole_pets, ",
        ),
        (
            {"task": "dm_control/cheetah-jump"},
            "unknown task 'dm_control/cheetah-jump' (did you mean 'dm_control/ch",
        ),
        (
            {"task": "gymnasium/CartPole-v1", "image_size": 64},
            "cannot render: this world is not made of MuJoCo",
        ),
        ({"sed": 1}, "unknown parameter 'sed' (did you mean 'seed'?); valid: "),
        ({"display_rate": "often"}, "parameter 'display_rate' is 'often', but it should be a valid number"),
    ],
)
def test_a_mistake_of_the_user_gets_one_sentence(parameter, sentence):
    with isolated_domain(), start_node(SIM, parameter) as process:
        assert process.wait() == 2
        assert sentence in process.output
        assert len(process.output.strip().splitlines()) == 1


def test_the_simulator_never_loads_torch():
    code = (
        "import sys, rclpy; rclpy.init(); from mbrl_sim.ros.sim_node import SimNode; SimNode();"
        "from mbrl_dynamics.plugins import find, names; [find('tasks', name)() for name in names('tasks')];"
        "print('torch' in sys.modules)"
    )
    with isolated_domain():
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
    assert run.stdout.split()[-1] == "False"
