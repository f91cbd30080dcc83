"""Worlds without ROS: in this process and in others they are the same, and none outlives its parent."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_sim.worlds import Worlds


def same(ours, theirs):
    assert_array_equal(ours.observation, theirs.observation)
    assert_array_equal(ours.action, theirs.action)
    assert ours.reward == theirs.reward or np.isnan([ours.reward, theirs.reward]).all()
    for name in ("episode", "step", "first", "terminated", "truncated", "controller_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.stamp == pytest.approx(theirs.stamp, abs=1e-6)


def workers(worlds):
    return [psutil.Process(seat.pid) for seat in worlds._seats]


def test_worlds_follow_the_contract_and_begin_differently():
    with Worlds("cartpole_swingup", 3, seed=1) as worlds:
        before = worlds.reset_all()
        assert len({state.world_id for state in before}) == 3
        assert len({tuple(state.observation) for state in before}) == 3
        for _ in range(3):
            after = worlds.step(np.full((3, 1), 20.0))
            assert all(b.follows(a) for a, b in zip(before, after, strict=True))
            assert all(state.action == [10.0] and not state.fault(worlds.spec) for state in after)
            before = after


def test_an_episode_that_is_over_must_be_reset():
    with Worlds("pendulum", 2) as worlds:
        with pytest.raises(ValueError, match="world 0: reset it"):
            worlds.step(np.zeros((2, 1)))
        worlds.reset_all()
        for _ in range(worlds.max_steps):
            last = worlds.step(np.zeros((2, 1)))
        assert all(state.truncated and state.step == 200 for state in last)
        assert worlds.reset(0).episode == 1
        with pytest.raises(ValueError, match="world 1: reset it"):
            worlds.step(np.zeros((2, 1)))
        worlds.reset(1)
        assert worlds.step(np.zeros((2, 1)))[1].step == 1


@pytest.mark.parametrize("actions", [np.zeros((1, 1)), np.zeros((2, 2)), np.array([[0.0], [np.nan]])])
def test_bad_actions_change_nothing(actions):
    with Worlds("pendulum", 2) as worlds:
        worlds.reset_all()
        with pytest.raises(ValueError, match=r"action"):
            worlds.step(actions)
        assert worlds.step(np.zeros((2, 1)))[0].step == 1


@pytest.mark.parametrize(
    "task, repeat, period, steps",
    [("cartpole_swingup", 2, 0.02, 500), ("pendulum_swingup", 1, 0.02, 1000), ("pendulum", 3, 0.15, 67)],
)
def test_action_repeat_keeps_the_length_of_an_episode(task, repeat, period, steps):
    with Worlds(task, action_repeat=repeat) as worlds:
        assert (worlds.spec.control_period, worlds.max_steps) == (pytest.approx(period), steps)
        assert worlds.task.action_repeat == repeat
        stamps = [worlds.reset(0).stamp, worlds.step(np.zeros((1, 1)))[0].stamp]
    assert np.diff(stamps) == pytest.approx(period)


def test_action_repeat_adds_up_the_rewards_of_the_frames():
    with Worlds("cartpole_swingup", action_repeat=1) as fine, Worlds("cartpole_swingup") as coarse:
        fine.reset(0, seed=3), coarse.reset(0, seed=3)
        frames = [fine.step(np.full((1, 1), 7.0))[0] for _ in range(5)]
        (whole,) = coarse.step(np.full((1, 1), 7.0))
    assert_allclose(whole.observation, frames[-1].observation, atol=1e-12)
    assert whole.reward == pytest.approx(sum(frame.reward for frame in frames))


def test_worlds_in_processes_are_the_same():
    rng = np.random.default_rng(0)
    with (
        Worlds("cartpole_swingup", 2, seed=4) as here,
        Worlds("cartpole_swingup", 2, seed=4, processes=True) as there,
    ):
        assert there.spec == here.spec
        for reset in (lambda w: w.reset_all(), lambda w: w.reset_all([7, 8]), lambda w: [w.reset(1, 9)]):
            for ours, theirs in zip(reset(here), reset(there), strict=True):
                same(ours, theirs)
            for _ in range(5):
                actions = rng.uniform(-12, 12, (2, 1))
                for ours, theirs in zip(here.step(actions), there.step(actions), strict=True):
                    same(ours, theirs)


def test_a_killed_world_is_one_clear_error_and_leaves_no_process():
    with Worlds("pendulum", 3, processes=True) as worlds:
        worlds.reset_all()
        processes = workers(worlds)
        processes[1].kill()
        with pytest.raises(RuntimeError, match=r"world 1 is lost: its process \d+ was killed by SIGKILL"):
            worlds.step(np.zeros((3, 1)))
        assert not any(process.is_running() for process in processes)
        with pytest.raises(RuntimeError, match="closed"):
            worlds.reset_all()


def test_a_fault_in_the_task_is_told(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fakes"))
    with Worlds("fragile:Fragile", 2, processes=True) as worlds:
        worlds.reset_all()
        with pytest.raises(
            RuntimeError, match="world 1 failed: ZeroDivisionError: the reward divides by zero"
        ):
            worlds.step(np.array([[0.0], [2.0]]))


@pytest.mark.parametrize("processes", [False, True])
def test_an_unknown_task_is_the_users_mistake(processes):
    with pytest.raises(UserError, match="unknown task 'moonwalk'; valid: adroit_pen, arm_reach, "):
        Worlds("moonwalk", processes=processes)
    with pytest.raises(UserError, match="at least 1"):
        make_task("pendulum", -1)


PARENT = """
import sys, time
from mbrl_sim.worlds import Worlds
worlds = Worlds("pendulum", 2, processes=True)
worlds.reset_all()
print(*(seat.pid for seat in worlds._seats), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worlds_end_with_their_parent(number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    parent.send_signal(number)
    parent.wait(30)
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
        assert time.monotonic() < deadline, "a world outlives its parent"
        time.sleep(0.05)


def test_worlds_never_load_torch():
    with Worlds("pendulum", processes=True) as worlds:
        (process,) = workers(worlds)
        assert not any("libtorch" in mapped.path for mapped in process.memory_maps())
    code = "import sys, mbrl_sim.worlds; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
