"""Whatever comes, in any order, the world executes only what is valid, loses no step and does not hang."""

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.transition import Answer
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.pendulum import Pendulum
from mbrl_sim.world import Status, World, WorldConfig

SIMULATOR = Simulator(Pendulum(), seed=0)  # a world resets all of it
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.floats(-2, 2)


class Chaos(RuleBasedStateMachine):
    """Messages that are valid, lost (never sent), repeated, late, foreign or broken."""

    @initialize(
        mode=st.sampled_from(["lockstep", "realtime"]),
        delay=st.integers(0, 2),
        tail=st.integers(0, 3),
        max_steps=st.integers(1, 12),
    )
    def begin(self, mode, delay, tail, max_steps):
        SIMULATOR.reset(seed=0)
        chosen = WorldConfig(mode=mode, action_delay_steps=delay, tail_steps=tail, max_steps=max_steps)
        self.world = World(SIMULATOR, chosen, now=0.0)
        self.now = 0.0
        self.states = []
        self.saw(self.world.reset(self.now))

    def saw(self, state):
        """Check each State as it is published."""
        if state is None:
            return
        assert not state.fault(self.world.spec)
        assert (np.abs(state.action) <= 2.0).all()
        before = self.states[-1] if self.states else None
        if state is not before:
            if state.first:
                assert state.step == 0
                assert state.episode == (before.episode + 1 if before else 0)
            else:
                assert state.follows(before)
            assert before is None or state.stamp > before.stamp
            self.states.append(state)

    def offer(self, **changes):
        newest = self.states[-1]
        fields = {
            "world_id": newest.world_id,
            "episode": newest.episode,
            "step": newest.step,
            "controller_id": "planner",
            "values": np.array([[0.5]]),
        }
        before = len(self.states)
        self.saw(self.world.offer(Answer(**{**fields, **changes}), self.now))
        return len(self.states) > before

    @rule(values=st.lists(st.floats(-9, 9), min_size=1, max_size=4))
    def answer(self, values):
        self.offer(values=np.array(values)[:, None])

    @rule(back=st.integers(-2, 8), values=st.lists(NUMBERS, min_size=0, max_size=3))
    def answer_early_late_or_again(self, back, values):
        step = max(0, self.states[-1].step - back)
        self.offer(step=step, values=np.array(values, dtype=np.float64)[:, None])

    @rule(values=st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=1, max_size=3))
    def answer_too_wide(self, values):
        assert not self.offer(values=np.array(values))

    @rule(bad=st.sampled_from([math.nan, math.inf, -math.inf]))
    def answer_not_finite(self, bad):
        assert not self.offer(values=np.array([[0.1], [bad]]))

    @rule(name=st.binary(min_size=16, max_size=16))
    def answer_to_an_earlier_world(self, name):
        assert not self.offer(world_id=name)

    @rule(episode=st.integers(0, 5))
    def answer_to_another_episode(self, episode):
        assert not self.offer(episode=episode) or episode == self.states[-1].episode

    @rule(who=st.sampled_from(["", "other"]))
    def another_controller(self, who):
        bound = self.world.desk.controller_id
        moved = self.offer(controller_id=who)
        assert not moved or bound in ("", who)

    @rule(seconds=st.floats(0.0, 12.0))
    def time_passes(self, seconds):
        self.now += seconds
        if self.world.settings.mode == "lockstep":
            self.saw(self.world.repeat(self.now))
        else:
            self.saw(self.world.tick(self.now))

    @rule(paused=st.booleans())
    def pause(self, paused):
        self.saw(self.world.pause(paused, self.now))

    @precondition(lambda self: self.world.paused)
    @rule(steps=st.integers(1, 3))
    def single_step(self, steps):
        self.saw(self.world.single_step(steps, self.now))

    @rule(state=st.none() | st.lists(NUMBERS, min_size=1, max_size=3))
    def reset(self, state):
        try:
            self.saw(self.world.reset(self.now, None, state))
        except UserError:
            assert len(state) != 2 or not np.isfinite(state).all()

    @invariant()
    def an_episode_ends_only_as_told(self):
        if hasattr(self, "world"):
            assert (self.world.status == Status.NEEDS_RESET) == self.states[-1].last
            assert self.world.state is self.states[-1]

    def teardown(self):
        """Whatever happened before, a well-behaved controller gets the world to go on."""
        if not hasattr(self, "world"):
            return
        world = self.world
        self.saw(world.pause(False, self.now))
        if world.status == Status.NEEDS_RESET:
            self.saw(world.reset(self.now))
        step = world.step
        if world.settings.mode == "lockstep":
            if world.waiting:
                assert world.repeat(self.now + 0.25) is self.states[-1]
            assert self.offer(controller_id=world.desk.controller_id or "planner")
        else:
            self.saw(world.tick(self.now))
        assert world.step == step + 1


Chaos.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestChaos = Chaos.TestCase
