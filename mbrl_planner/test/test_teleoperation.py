"""A person acts: what a joystick says becomes actions, over DDS, and is recorded as theirs."""

from __future__ import annotations

import math

import pytest
import torch
from sensor_msgs.msg import Joy

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.testing import eventually, isolated_domain, peer, start_node
from mbrl_dynamics.spec import Element, Spec
from mbrl_msgs.action import RunEpisodes
from mbrl_msgs.msg import Action, State
from mbrl_planner.teleoperation import Teleoperation

SPEC = Spec("t", (Element("x"),), (Element("a", "", -1.0, 1.0), Element("b", "", -1.0, 1.0)), 0.05)


def test_axes_become_actions_while_the_button_is_held():
    person = Teleoperation(SPEC, (2, 0), (1.0, -3.0), 1, 10.0)
    assert not person.ready
    person.hear([0.25, 9.0, 0.5], [0, 1])
    assert person.ready
    action, _ = person.choose(())
    torch.testing.assert_close(action, torch.tensor([[[0.5, -0.75]]]))
    person.hear([1.0, 0.0, 0.0], [0, 1])
    assert person.choose(())[0][0, 0, 1] == -1.0  # never beyond the range
    person.hear([0.25, 9.0, 0.5], [1, 0])
    assert not person.ready and not person.fault


def test_a_joystick_that_falls_silent_is_let_go():
    person = Teleoperation(SPEC, (0, 1), (1.0, 1.0), -1, 1e-9)
    person.hear([0.1, 0.2], [])
    assert not person.ready


def test_what_a_joystick_cannot_say_is_told():
    person = Teleoperation(SPEC, (0, 3), (1.0, 1.0), 4, 10.0)
    person.hear([0.1, 0.2], [1])
    assert not person.ready and "2 axes and 1 buttons, but axis 3 and button 4" in person.fault
    person = Teleoperation(SPEC, (0, 1), (1.0, 1.0), -1, 10.0)
    person.hear([math.nan, 0.2], [])
    assert not person.ready and "not finite" in person.fault
    with pytest.raises(UserError, match="'axes' has 1 values, but the action has 2: a, b"):
        Teleoperation(SPEC, (0,), (1.0, 1.0), -1, 1.0)
    with pytest.raises(UserError, match="discrete"):
        Teleoperation(make_task("maze").spec, (0,), (1.0,), -1, 1.0)


def test_acts_over_dds_as_a_person_and_does_what_is_safe_when_let_go():
    with (
        isolated_domain(),
        start_node("mbrl_sim.ros.sim_node", {"task": "pendulum", "mode": "realtime"}),
        start_node("mbrl_planner.ros.teleop_node", {"task": "pendulum", "button": 0}) as node,
        peer() as me,
    ):
        states, actions = me.listen(State, "state"), me.listen(Action, "action")
        joy = me.publisher(Joy, "joy", 1)
        run = me.action_client(RunEpisodes, "run_episodes")
        assert run.wait_for_server(60.0), node.output
        run.send_goal_async(RunEpisodes.Goal(episodes=100, seed=1))

        def executed(held: int, torque: float) -> bool:
            joy.publish(Joy(axes=[0.5], buttons=[held]))
            return any(
                state.controller_id.endswith("person") and state.action[0] == pytest.approx(torque)
                for state in states[-5:]
            )

        eventually(lambda: executed(1, 1.0), "the joystick moves nothing")
        eventually(lambda: executed(0, 0.0), "the safe action is not taken")
        assert {action.controller_id for action in actions} == {"person"}
        assert node.stop() == 0
