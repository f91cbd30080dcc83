"""The rules of the contract, one by one."""

import math
import uuid

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.transition import Answer
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.pendulum import Pendulum
from mbrl_sim.world import Status, World, WorldConfig


def world(**settings):
    return World(Simulator(Pendulum(), seed=0), WorldConfig(**settings), now=0.0)


def answer(state, *rows, who="planner", **changes):
    values = np.array(rows or [[0.5]], dtype=np.float64).reshape(len(rows) or 1, -1)
    fields = {"world_id": state.world_id, "episode": state.episode, "step": state.step, **changes}
    return Answer(controller_id=who, values=values, **fields)


def test_a_world_without_an_episode_needs_a_reset():
    sim = world()
    assert sim.status == Status.NEEDS_RESET
    state = sim.reset(0.0)
    assert (state.episode, state.step, state.first) == (0, 0, True)
    assert sim.status == Status.RUNNING


def test_each_world_has_an_id_of_its_own():
    ids = {world().world_id for _ in range(3)}
    assert len(ids) == 3
    assert all(uuid.UUID(bytes=name).version == 4 for name in ids)


def test_lockstep_steps_with_each_answer_and_tells_what_was_executed():
    sim = world()
    state = sim.reset(0.0)
    for step in range(1, 4):
        state = sim.offer(answer(state, [1.5]), 0.0)
        assert (state.step, state.controller_id, state.first) == (step, "planner", False)
        assert_array_equal(state.action, [1.5])
        assert math.isfinite(state.reward)


def test_lockstep_repeats_an_unanswered_state_and_only_then():
    sim = world(repeat_period=0.25)
    state = sim.reset(0.0)
    assert sim.repeat(0.2) is None
    assert sim.repeat(0.25) is state
    assert sim.repeat(0.4) is None
    assert sim.repeat(0.5) is state
    assert sim.repeated == 2
    following = sim.offer(answer(state), 0.5)
    assert sim.repeat(0.6) is None
    assert sim.repeat(0.75) is following


def test_a_state_is_repeated_once_its_time_has_come_whatever_the_clock_reads():
    sim = world(repeat_period=0.25)
    state = sim.reset(0.0002)  # 0.0002 + 0.25 - 0.0002 is less than 0.25
    assert sim.repeat(0.0002 + 0.25) is state


def test_the_answer_to_a_repeated_state_changes_nothing():
    sim = world()
    state = sim.reset(0.0)
    newest = sim.offer(answer(state, [1.0]), 0.0)
    assert sim.offer(answer(state, [1.0]), 0.1) is None
    assert sim.state is newest
    assert not sim.desk.refused


def test_the_last_state_needs_no_answer_and_only_a_reset_goes_on():
    sim = world(max_steps=2)
    state = sim.reset(0.0)
    state = sim.offer(answer(state), 0.0)
    last = sim.offer(answer(state), 0.0)
    assert (last.truncated, last.terminated) == (True, False)
    assert sim.status == Status.NEEDS_RESET
    assert sim.repeat(9.0) is None
    assert sim.offer(answer(last), 9.0) is None
    assert "needs no answer" in sim.desk.last_refusal
    state = sim.reset(9.0)
    assert (state.episode, state.step) == (1, 0)


def test_stamps_go_up_even_across_episodes():
    sim = world(max_steps=3)
    stamps = []
    for _ in range(3):
        state = sim.reset(0.0)
        stamps.append(state.stamp)
        while not state.last:
            state = sim.offer(answer(state), 0.0)
            stamps.append(state.stamp)
    assert np.diff(stamps) == pytest.approx(0.05)
    assert stamps[0] > 0


@pytest.mark.parametrize(
    "rows, changes, words",
    [
        ([[math.nan]], {}, "not finite"),
        ([[1.0], [math.inf]], {}, "not finite"),
        ([[1.0, 2.0]], {}, "H x 1"),
        ([[1.0]], {"world_id": bytes(16)}, "earlier"),
        ([[1.0]], {"episode": 7}, "episode 7"),
        ([[1.0]], {"step": 3}, "newest State is 0"),
        ([[1.0]], {"who": ""}, "no controller_id"),
    ],
)
def test_an_answer_that_cannot_be_executed_is_refused_and_named(rows, changes, words):
    sim = world()
    state = sim.reset(0.0)
    assert sim.offer(answer(state, *rows, **changes), 0.0) is None
    assert words in sim.desk.last_refusal
    assert sim.desk.refused.total() == 1
    assert sim.waiting
    assert sim.desk.controller_id == ""


def test_an_empty_answer_is_refused():
    sim = world()
    state = sim.reset(0.0)
    assert sim.offer(Answer(*state.key, "planner", np.empty((0, 0))), 0.0) is None
    assert sim.desk.refused["length"] == 1


def test_an_action_beyond_the_limits_is_executed_at_the_limit():
    sim = world()
    state = sim.offer(answer(sim.reset(0.0), [50.0]), 0.0)
    assert_array_equal(state.action, [2.0])


def test_a_second_controller_is_refused_while_the_first_is_alive():
    sim = world(release_after=10.0)
    state = sim.reset(0.0)
    state = sim.offer(answer(state), 0.0)
    assert sim.offer(answer(state, who="other"), 1.0) is None
    assert "'other' is refused, since 'planner'" in sim.desk.last_refusal
    assert sim.offer(answer(state), 1.0).controller_id == "planner"


def test_a_controller_that_stays_silent_loses_control():
    sim = world(release_after=10.0)
    state = sim.offer(answer(sim.reset(0.0)), 0.0)
    sim.repeat(10.0)
    assert sim.desk.controller_id == "planner"
    sim.repeat(10.1)
    assert sim.desk.controller_id == ""
    assert sim.offer(answer(state, who="other"), 10.2).controller_id == "other"


def test_what_is_under_way_stays_its_controllers():
    sim = world(release_after=10.0, action_delay_steps=1)
    state = sim.offer(answer(sim.reset(0.0), [0.3]), 0.0)
    sim.repeat(10.1)
    state = sim.offer(answer(state, [0.7], who="other"), 10.2)
    assert (state.controller_id, float(state.action[0])) == ("planner", 0.3)
    state = sim.offer(answer(state, [0.8], who="other"), 10.2)
    assert (state.controller_id, float(state.action[0])) == ("other", 0.7)


def test_nobody_is_silent_in_a_pause_or_between_episodes():
    sim = world(release_after=10.0, max_steps=2)
    state = sim.offer(answer(sim.reset(0.0)), 0.0)
    sim.pause(True, 0.0)
    sim.repeat(100.0)
    sim.pause(False, 100.0)
    sim.repeat(105.0)
    assert sim.desk.controller_id == "planner"
    assert sim.offer(answer(state), 105.0).last
    sim.repeat(500.0)
    sim.reset(500.0)
    sim.repeat(505.0)
    assert sim.desk.controller_id == "planner"


def test_a_pause_withholds_the_next_state():
    sim = world()
    state = sim.reset(0.0)
    sim.pause(True, 0.0)
    assert sim.status == Status.PAUSED
    assert sim.offer(answer(state), 0.0) is None
    assert sim.state is state
    assert sim.pause(False, 0.0).step == 1


def test_single_steps_of_a_paused_world_still_wait_for_answers():
    sim = world()
    state = sim.reset(0.0)
    sim.pause(True, 0.0)
    assert sim.single_step(2, 0.0) is None
    state = sim.offer(answer(state), 0.0)
    state = sim.offer(answer(state), 0.0)
    assert state.step == 2
    assert sim.offer(answer(state), 0.0) is None
    assert sim.single_step(1, 0.0).step == 3


def test_only_a_paused_world_can_be_stepped():
    sim = world()
    sim.reset(0.0)
    with pytest.raises(UserError, match="paused"):
        sim.single_step(1, 0.0)


def test_a_delayed_answer_is_waited_for_and_takes_effect_later():
    sim = world(action_delay_steps=2)
    assert sim.spec.action_delay_steps == 2
    state = sim.reset(0.0)
    executed = []
    for choice in (0.1, 0.2, 0.3, 0.4):
        state = sim.offer(answer(state, [choice]), 0.0)
        executed.append((state.controller_id, float(state.action[0])))
    assert executed == [("", 0.0), ("", 0.0), ("planner", 0.1), ("planner", 0.2)]
    assert sim.missed_steps == 0


def test_real_time_never_waits():
    sim = world(mode="realtime", tail_steps=2)
    state = sim.reset(0.0)
    sim.offer(answer(state, [0.1], [0.2], [0.3], [0.4]), 0.01)
    executed = [sim.tick(0.05 * tick) for tick in range(1, 6)]
    assert [float(state.action[0]) for state in executed] == [0.1, 0.2, 0.3, 0.0, 0.0]
    assert [state.controller_id for state in executed] == ["planner"] * 3 + [""] * 2
    assert [state.step for state in executed] == [1, 2, 3, 4, 5]
    assert sim.missed_steps == 4


def test_real_time_executes_the_answer_after_the_delay():
    sim = world(mode="realtime", action_delay_steps=1)
    state = sim.reset(0.0)
    executed = []
    for choice in (0.1, 0.2, 0.3):
        sim.offer(answer(state, [choice]), 0.0)
        state = sim.tick(0.0)
        executed.append(float(state.action[0]))
    assert executed == [0.0, 0.1, 0.2]
    assert sim.missed_steps == 0


def test_a_late_answer_lends_its_tail():
    sim = world(mode="realtime")
    first = sim.reset(0.0)
    assert sim.tick(0.05).controller_id == ""
    sim.offer(answer(first, [0.1], [0.2]), 0.06)
    assert_array_equal(sim.tick(0.1).action, [0.2])
    assert sim.missed_steps == 2


def test_a_paused_real_time_world_stands_still():
    sim = world(mode="realtime")
    sim.reset(0.0)
    sim.pause(True, 0.0)
    assert sim.tick(0.05) is None
    sim.single_step(1, 0.05)
    assert sim.tick(0.1).step == 1
    assert sim.tick(0.15) is None


def test_a_free_world_is_controlled_by_nobody_and_shows_some_states():
    sim = world(mode="free", max_steps=5)
    clock = iter(range(1000))
    state = sim.reset(0.0)
    steps = []
    for _ in range(3):
        state = sim.coast(4.0, lambda: next(clock))
        steps.append(state.step)
        assert not state.last
        assert math.isfinite(state.reward)
    assert steps[0] > 1
    assert steps == sorted(set(steps))
    sim.offer(answer(state), 0.0)
    assert "nobody controls" in sim.desk.last_refusal
    with pytest.raises(UserError, match="free-running"):
        sim.pause(True, 0.0)


@pytest.mark.parametrize("mode", ["lockstep", "realtime", "free"])
def test_a_fault_of_the_physics_ends_the_episode(mode):
    sim = world(mode=mode)
    state = sim.reset(0.0)
    sim.simulator.data.qvel[0] = math.nan
    if mode == "lockstep":
        last = sim.offer(answer(state), 0.0)
    elif mode == "realtime":
        last = sim.tick(0.0)
    else:
        clock = iter(range(1000))
        last = sim.coast(4.0, lambda: next(clock))
    assert last.truncated
    assert np.isfinite(last.observation).all()
    assert "not finite" in sim.last_fault
    assert sim.status == Status.NEEDS_RESET
    assert sim.reset(0.0).first


def test_an_aborted_episode_says_so_in_a_last_state():
    sim = world()
    state = sim.reset(0.0)
    last = sim.abort("the task failed", 0.0)
    assert last.truncated
    assert last.follows(state)
    assert "the task failed" in sim.last_fault
    assert sim.abort("again", 0.0) is None


def test_a_bad_initial_state_leaves_the_episode_alone():
    sim = world()
    state = sim.reset(0.0)
    with pytest.raises(UserError, match="initial_state"):
        sim.reset(0.0, initial_state=[1.0])
    assert sim.offer(answer(state), 0.0).step == 1


def test_a_task_may_end_an_episode():
    class Falling(Pendulum):
        def terminated(self, next_obs):
            return next_obs[..., 0] < 2.0

    sim = World(Simulator(Falling(), seed=0), WorldConfig(max_steps=1), 0.0)
    last = sim.offer(answer(sim.reset(0.0)), 0.0)
    assert (last.terminated, last.truncated) == (True, False)
