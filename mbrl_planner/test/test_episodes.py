"""Running episodes, without ROS: a scripted world that restarts, is busy, goes away or is reset by others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_dynamics.transition import Transition
from mbrl_planner.episodes import EpisodeRunner, Goal, Outcome, Phase, Progress, Result

LENGTH = 5  # steps of an episode, unless cut


@dataclass
class World:
    """A Host with a world whose resets and steps happen when the test says so."""

    here: bool = True
    world_id: bytes = b"a" * 16
    episode: int = -1
    trained: tuple[bytes, int] = (b"", -1)
    asked: list[int] = field(default_factory=list)  # seeds of resets that wait
    canceled: int = 0
    rests: bool = False
    warnings: list[str] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    told: list[Progress] = field(default_factory=list)
    result: Result | None = None
    now: float = 0.0
    runner: EpisodeRunner = field(init=False)

    def run(self, episodes: int | None = 1, **settings) -> EpisodeRunner:
        self.runner = EpisodeRunner(
            Goal(episodes, **settings), self, world_id=self.world_id, clock=lambda: self.now
        )
        self.runner.start()
        return self.runner

    def world_ready(self):
        return self.here

    def reset_world(self, seed):
        self.asked.append(seed)

    def cancel_reset(self):
        self.canceled += 1

    def model_covers(self, world_id, episode):
        return self.trained[0] == world_id and self.trained[1] >= episode

    def learner_rests(self):
        return self.rests

    def warn(self, text):
        self.warnings.append(text)

    def begin_episode(self, index):
        self.begun.append(index)

    def feedback(self, progress):
        self.told.append(replace(progress))

    def finished(self, result):
        assert self.result is None
        self.result = result

    def reset(self) -> int:
        """Answer the reset that waits; returns its seed."""
        seed = self.asked.pop()
        assert not self.asked
        self.episode += 1
        self.runner.reset_done(self.world_id, self.episode)
        return seed

    def state(self, step: int, length: int = LENGTH) -> Transition:
        return Transition(
            self.world_id,
            self.episode,
            step,
            np.zeros(1),
            np.zeros(1),
            reward=float(step),
            first=step == 0,
            truncated=step == length,
        )

    def steps(self, last: int = LENGTH, length: int = LENGTH) -> None:
        """Send States 0 .. last, each answered if that is wanted."""
        for step in range(last + 1):
            state = self.state(step, length)
            self.now += 0.02
            wanted = self.runner.wants(state)
            self.runner.heard(state)
            if wanted and not state.last:
                self.runner.decided(10.0 + step, 0.5)

    def restart(self) -> None:
        self.world_id = bytes([self.world_id[0] + 1]) * 16
        self.episode = -1
        self.asked.clear()
        self.runner.world_heard(self.world_id)

    def tick(self, seconds: float = 0.05) -> None:
        self.now += seconds
        self.runner.tick()


def test_runs_what_was_asked_and_says_how_it_went():
    world = World()
    world.run(2, seed=7)
    seeds = []
    for _ in range(2):
        seeds.append(world.reset())
        world.steps()
    assert seeds == [7, 8]
    assert world.begun == [0, 1]
    result = world.result
    assert result is not None and result.outcome is Outcome.OK
    assert result.returns == [15.0, 15.0] and result.steps == [5, 5]
    median, p99 = result.planning()
    assert median == 12.0 and 13.0 < p99 <= 14.0
    assert [(told.episode, told.return_so_far) for told in world.told if told.done] == [(0, 15.0), (1, 15.0)]


def test_a_negative_seed_leaves_the_sequence_to_the_world():
    world = World()
    world.run(1)
    assert world.asked == [-1]


def test_states_are_wanted_only_while_the_episode_runs():
    world = World()
    runner = world.run(1, max_steps=3)
    world.episode = 0
    assert not runner.wants(world.state(0))  # the reset has not come back
    world.episode = -1
    world.reset()
    assert runner.wants(world.state(2))
    assert not runner.wants(world.state(3))  # cut here
    assert not runner.wants(world.state(LENGTH))
    assert not runner.wants(replace(world.state(0), episode=9))


def test_waits_for_the_model_that_has_seen_the_last_episode():
    world = World()
    runner = world.run(2, wait_for_model=True)
    world.reset()
    world.steps()
    assert runner.phase is Phase.WAITING and not world.asked
    for trained in ((b"x" * 16, 5), (world.world_id, -1)):  # of another world; of nothing
        world.trained = trained
        world.tick()
        assert runner.phase is Phase.WAITING
    for _ in range(100):
        world.tick()
    assert world.told[-1].phase == "waiting for the model"
    world.trained = (world.world_id, 0)
    world.tick()
    world.reset()
    assert runner.phase is Phase.RUNNING


@pytest.mark.parametrize("cut", [False, True])
def test_a_learner_that_missed_an_episode_is_not_waited_for_without_end(cut):
    world = World()
    runner = world.run(2, wait_for_model=True, max_steps=3 if cut else 0)
    world.reset()
    world.steps(3 if cut else LENGTH)
    if cut:
        world.reset()
    for rests, seconds in ((False, 100), (True, 8), (False, 1), (True, 8)):  # it may well train in between
        world.rests = rests
        for _ in range(seconds):
            world.tick(1.0)
        assert runner.phase is Phase.WAITING
    for _ in range(4):
        world.tick(1.0)
    assert len(world.warnings) == 1
    if not cut:
        world.reset()
    assert runner.phase is Phase.RUNNING


def test_an_episode_that_was_cut_is_ended_by_a_reset_before_the_wait():
    world = World()
    runner = world.run(2, wait_for_model=True, max_steps=3)
    world.reset()
    world.steps(3)
    world.reset()
    world.steps(0)
    assert runner.phase is Phase.WAITING
    assert not runner.wants(world.state(0))
    world.trained = (world.world_id, 0)
    world.tick()
    assert runner.wants(world.state(0))


def test_a_world_that_restarts_while_the_model_is_awaited_is_not_waited_for():
    world = World()
    world.run(2, wait_for_model=True)
    world.reset()
    world.steps()
    world.restart()
    assert world.asked == [-1]


@pytest.mark.parametrize("when", ["resetting", "running"])
def test_an_episode_is_run_again_after_the_world_restarted(when):
    world = World()
    runner = world.run(1, seed=3)
    if when == "running":
        world.reset()
        world.steps(2)
    world.restart()
    assert world.reset() == 3
    assert runner.wants(world.state(0))
    world.steps()
    assert world.result is not None and world.result.returns == [15.0]


def test_an_episode_is_run_again_after_somebody_else_reset_the_world():
    world = World()
    world.run(1)
    world.reset()
    world.steps(2)
    world.episode += 1
    world.steps(0)
    assert world.asked == [-1]


def test_a_world_that_is_busy_is_asked_again():
    world = World()
    runner = world.run(1)
    world.asked.clear()
    runner.reset_done(b"", 0, "busy", retry=True)
    world.tick()
    assert world.asked == []
    world.tick(1.0)
    assert world.asked == [-1]


def test_a_reset_that_fails_ends_the_run():
    world = World()
    world.run(1).reset_done(b"", 0, "the door is open")
    assert world.result is not None
    assert (world.result.outcome, world.result.message) == (Outcome.RESET_FAILED, "the door is open")


def test_no_world():
    world = World(here=False)
    world.run(1, world_timeout=30.0)
    for _ in range(29):
        world.tick(1.0)
    assert world.result is None and len(world.told) > 20
    world.tick(2.0)
    assert world.result is not None and world.result.outcome is Outcome.NO_WORLD


def test_a_world_that_comes_later_is_used():
    world = World(here=False)
    world.run(1)
    world.tick()
    assert world.asked == []
    world.here = True
    world.tick()
    assert world.asked == [-1]


@pytest.mark.parametrize("when", ["resetting", "waiting", "running"])
def test_cancel_takes_effect_at_once(when):
    world = World()
    runner = world.run(3, wait_for_model=True)
    if when != "resetting":
        world.reset()
        world.steps(LENGTH if when == "waiting" else 2)
    assert str(runner.phase).startswith(when)
    runner.cancel()
    assert world.result is not None and world.result.outcome is Outcome.CANCELED
    assert not runner.wants(world.state(3))
    assert world.canceled == (when == "resetting")
    for late in (runner.tick, lambda: runner.heard(world.state(3)), lambda: runner.reset_done(b"", 0)):
        late()


def test_feedback_is_throttled_but_never_at_an_end():
    world = World()
    world.run(3)
    for _ in range(3):
        world.reset()
        world.steps(100, length=100)
    running = [told for told in world.told if not told.done]
    assert len(running) <= 10 * world.now + 2
    assert sum(told.done for told in world.told) == 3


def test_a_reward_nobody_measures_makes_the_return_nan():
    world = World()
    runner = world.run(1)
    world.reset()
    runner.heard(world.state(0))
    runner.heard(replace(world.state(1), reward=math.nan, terminated=True))
    assert world.result is not None and math.isnan(world.result.returns[0])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["step", "step", "step", "restart", "steal", "busy", "train", "tick"]), max_size=80
    )
)
def test_whatever_happens_the_run_ends_once_the_world_behaves(events):
    world = World()
    runner = world.run(3, wait_for_model=True)
    step = -1

    def step_on() -> None:
        nonlocal step
        if world.asked:
            world.reset()
            step = -1
        elif world.episode >= 0 and step < LENGTH:
            step += 1
            runner.heard(world.state(step))

    for event in events:
        if event == "step":
            step_on()
        elif event == "restart":
            world.restart()
            step = -1
        elif event == "steal" and world.episode >= 0:
            world.episode += 1
            step = -1
        elif event == "busy" and world.asked:
            world.asked.clear()
            runner.reset_done(b"", 0, "busy", retry=True)
        elif event == "train":
            world.trained = (world.world_id, world.episode)
        world.tick(0.3)
        assert len(world.asked) <= 1
    for _ in range(100):
        world.trained = (world.world_id, world.episode)
        step_on()
        world.tick(0.3)
    assert world.result is not None and world.result.outcome is Outcome.OK
    assert world.result.steps == [LENGTH] * 3
