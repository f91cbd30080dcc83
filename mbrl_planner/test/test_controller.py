"""The controller's side of the contract: bursts, repeats, gaps, restarts, delay, bad States."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_dynamics.contract import ActionDesk
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.mpc import Memory
from mbrl_planner.controller import EXPLORE, RANDOM, Controller
from mbrl_planner.interfaces import Guess, Plan

SPEC = Spec("t", (Element("x"), Element("y")), (Element("f", "N", -2.0, 4.0),), 0.05)
WORLD, OTHER = b"w" * 16, b"o" * 16


class Counter:
    """A decider whose n-th decision is recognisable, and which remembers what it was told."""

    def __init__(self, ready: bool = True, horizon: int = 4) -> None:
        self.ready, self.horizon = ready, horizon
        self.decisions = 0
        self.observed: list[tuple[float, bool, int]] = []
        self.pending: list[torch.Tensor | None] = []
        self.explored: list[bool] = []

    def seed(self, seed):
        pass

    def observe(self, obs, carry, *, first, prev_action, steps=1):
        self.observed.append((obs["vector"][0, 0].item(), bool(first), steps))
        assert (prev_action is None) == bool(first)
        return (*(carry or ()), obs["vector"][0, 0].item())

    def choose(self, carry, *, pending=None, explore=False):
        self.decisions += 1
        self.pending.append(pending)
        self.explored.append(explore)
        value = math.sin(self.decisions)
        return torch.tensor([[[value * (1 - 0.1 * row)] for row in range(self.horizon)]]), carry


def state(
    step: int, *, episode: int = 0, world: bytes = WORLD, x: float | None = None, **changes
) -> Transition:
    return Transition(
        world,
        episode,
        step,
        np.array([float(step) if x is None else x, 0.0]),
        np.array([1.0]),
        reward=1.0,
        first=step == 0,
        **changes,
    )


def controller(decider: Counter | None = None, spec: Spec = SPEC, **settings) -> Controller:
    return Controller(decider or Counter(), spec, "me", **settings)


def test_answers_the_newest_of_a_burst_and_remembers_the_rest():
    decider = Counter()
    mine = controller(decider)
    for step in range(3):
        mine.hear(state(step))
    answer = mine.answer()
    assert answer is not None
    assert (answer.step, answer.controller_id, answer.values.shape) == (2, "me", (4, 1))
    assert decider.decisions == 1
    assert decider.observed == [(0.0, True, 1), (1.0, False, 1), (2.0, False, 1)]
    assert mine.memory == (0.0, 1.0, 2.0)
    assert mine.statistics.missed == 2


def test_values_are_si_and_within_the_limits():
    mine = controller()
    mine.hear(state(0))
    answer = mine.answer()
    assert answer is not None
    expected = 1.0 + 3.0 * math.sin(1.0)
    assert answer.values[0, 0] == pytest.approx(expected)


def test_a_repeated_state_gets_the_same_answer_without_a_new_decision():
    decider = Counter()
    mine = controller(decider)
    mine.hear(state(0))
    first = mine.answer()
    assert not mine.hear(state(0))
    assert mine.answer() is first
    assert decider.decisions == 1 and len(decider.observed) == 1
    assert mine.statistics.repeated == 1 and mine.statistics.missed == 0


def test_a_repeated_state_that_waited_for_a_model_is_answered_once_there_is_one():
    decider = Counter(ready=False)
    mine = controller(decider, no_model="wait")
    mine.hear(state(0))
    assert mine.answer() is None
    decider.ready = True
    mine.hear(state(0))
    assert mine.answer() is not None
    assert len(decider.observed) == 1


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_a_terminal_state_is_not_answered(how):
    mine = controller()
    mine.hear(state(0))
    mine.answer()
    mine.hear(state(1, **{how: True}))
    assert mine.answer() is None
    mine.hear(state(0, episode=1))
    assert mine.statistics.missed == 0


def test_states_out_of_order_are_left_out():
    decider = Counter()
    mine = controller(decider)
    mine.hear(state(0))
    mine.hear(state(0, world=OTHER))
    for late in (state(1), state(5, episode=3)):  # of the world that is gone
        assert not mine.hear(late)
    assert mine.answer() is not None and mine.answer().world_id == OTHER
    mine.hear(state(0, episode=1, world=OTHER))
    assert not mine.hear(state(7, world=OTHER))
    assert mine.statistics.stale == 3


def test_a_gap_keeps_the_memory_and_counts():
    decider = Counter()
    mine = controller(decider)
    mine.hear(state(0))
    mine.answer()
    mine.hear(state(4))
    assert decider.observed[-1] == (4.0, False, 4)
    assert mine.statistics.missed == 3


@pytest.mark.parametrize(
    "bad, word",
    [
        (state(1, x=math.nan), "'x' is not finite"),
        (dataclasses.replace(state(1), observation=np.zeros(3)), "3 elements"),
        (dataclasses.replace(state(1), action=np.array([math.inf])), "executed action"),
    ],
)
def test_a_bad_state_is_refused_as_if_none_had_come(bad, word):
    decider = Counter()
    mine = controller(decider)
    mine.hear(state(0))
    mine.answer()
    assert not mine.hear(bad)
    assert mine.newest is not None and mine.newest.step == 0
    assert mine.statistics.refused == 1
    assert word in mine.statistics.last_refusal
    assert len(decider.observed) == 1


def test_without_a_model():
    unready = Counter(ready=False)
    for no_model, check in {
        "random": lambda values: -2.0 <= values[0, 0] <= 4.0,
        "safe": lambda values: values[0, 0] == 0.0,
    }.items():
        mine = controller(unready, no_model=no_model)
        mine.hear(state(0))
        answer = mine.answer()
        assert answer is not None and answer.values.shape == (1, 1) and check(answer.values)
        assert math.isnan(mine.planning_ms)


def test_modes():
    decider = Counter()
    mine = controller(decider)
    for step, mode in enumerate(("exploit", EXPLORE, RANDOM)):
        mine.mode = mode
        mine.hear(state(step))
        mine.answer()
    assert decider.explored == [False, True]


def test_a_seed_gives_the_same_random_actions():
    def actions(seed: int) -> list[float]:
        mine = controller(mode=RANDOM, seed=seed)
        result = []
        for step in range(5):
            mine.hear(state(step))
            result.append(float(mine.answer().values[0, 0]))
        return result

    assert actions(3) == actions(3)
    assert actions(3) != actions(4)


def test_a_plan_that_is_not_finite_is_not_sent_and_the_next_state_starts_afresh():
    decider = Counter()
    mine = controller(decider)
    mine.hear(state(0))
    decider.choose = lambda carry, **_: (torch.full((1, 4, 1), torch.nan), carry)
    with pytest.raises(ValueError, match="not finite"):
        mine.answer()
    del decider.choose
    mine.forget()
    assert mine.hear(state(0))
    assert mine.answer() is not None


class Failing(Counter):
    """A decider with plans, whose model predicts nothing finite in the decisions of some numbers."""

    def __init__(self, void: set[int], horizon: int = 4) -> None:
        super().__init__(horizon=horizon)
        self.void = void

    def observe(self, obs, carry, **_):
        return carry or Memory()

    def choose(self, carry, *, pending=None, explore=False):
        actions, _ = super().choose(carry, pending=pending)
        bad = self.decisions in self.void
        actions = actions * math.nan if bad else actions
        plan = Plan(actions, torch.zeros(1), Guess(actions), valid=torch.tensor([not bad]))
        return actions, Memory(plan=plan)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_where_no_prediction_is_finite_the_answer_is_what_the_world_does_without_one(delay):
    """Beside a world that hears nothing for those States: the last plan's tail, then the safe action."""
    spec = dataclasses.replace(SPEC, action_delay_steps=delay)
    failing, void = Failing({2, 3, 4, 5, 6, 8}), {1, 2, 3, 4, 5, 7}
    mine, told, deaf = controller(failing, spec), ActionDesk(spec), ActionDesk(spec)
    for desk in (told, deaf):
        desk.begin(WORLD, 0)
    executed = []
    for step in range(12):
        mine.hear(state(step))
        answer = mine.answer()
        assert answer is not None and np.isfinite(answer.values).all()
        assert told.offer(answer, step) == ""
        if step not in void:
            assert deaf.offer(answer, step) == ""
        executed.append(told.choose(step).action[0])
        assert executed[-1] == deaf.choose(step).action[0]
    assert executed[delay + 4] == executed[delay + 5] == 0.0, "safe, after the tail of four rows"
    assert executed[delay + 1] == pytest.approx(1.0 + 3.0 * 0.9 * math.sin(1.0))
    assert mine.statistics.void_plans == len(void)
    assert mine.statistics.answered == 12


def test_a_followed_plan_is_not_timed_again():
    late = Plan(torch.zeros(1, 4, 1), torch.zeros(1), Guess(torch.zeros(1, 4, 1)), deadline_met=False)

    class Follower(Counter):
        def observe(self, obs, carry, **_):
            return carry or Memory()

        def choose(self, carry, *, pending=None, explore=False):
            return late.actions, Memory(plan=late)

    mine = controller(Follower())
    for step in range(3):
        mine.hear(state(step))
        mine.answer()
        assert math.isnan(mine.planning_ms) == (step > 0)
    assert mine.statistics.late_plans == len(mine.statistics.planning_ms) == 1


@pytest.mark.parametrize("delay", [1, 2, 4])
def test_pending_actions_are_what_the_world_will_execute(delay):
    """Answers are lost on the way to the decision, not to the world: some States are never answered."""
    spec = dataclasses.replace(SPEC, action_delay_steps=delay)
    decider, desk = Counter(horizon=3), ActionDesk(spec)
    mine = controller(decider, spec)
    desk.begin(WORLD, 0)
    predicted: dict[int, float] = {}
    executed = np.zeros(1)
    for step in range(40):
        mine.hear(dataclasses.replace(state(step), action=executed, controller_id="me"))
        if step % 7 not in (2, 3, 4, 5):
            assert desk.offer(mine.answer(), step) == ""
            pending = decider.pending[-1]
            assert pending.shape == (1, delay, 1)
            for i in range(delay):
                scaled = pending[0, i].numpy().astype(np.float64)
                predicted[step + i] = float(spec.unscale_action(scaled)[0])
        executed = desk.choose(step).action
        if step in predicted:
            assert executed[0] == pytest.approx(predicted[step], abs=1e-6)


def test_an_answer_that_came_too_late_counts_as_missed():
    mine = controller()
    mine.hear(state(0))
    plan = mine.answer().values
    mine.hear(dataclasses.replace(state(1), action=plan[0], controller_id="me"))
    mine.answer()
    mine.hear(dataclasses.replace(state(2), action=plan[1], controller_id="me"))  # the tail bridged
    assert mine.statistics.missed == 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_state_of_a_lockstep_world_is_answered_once_whatever_happens_on_the_way(data):
    """Repeats, late duplicates, bad States, resets and restarts of the world in any order."""
    decider = Counter()
    mine = controller(decider)
    desk = ActionDesk(SPEC)
    world, episode, step = WORLD, 0, 0
    past: list[Transition] = []
    desk.begin(world, episode)
    decisions = 0
    for _ in range(data.draw(st.integers(1, 25))):
        now = state(step, episode=episode, world=world)
        noise = data.draw(st.lists(st.sampled_from(["repeat", "late", "bad"]), max_size=3))
        burst = [now]
        for kind in noise:
            if kind == "repeat":
                burst.append(now)
            elif kind == "late" and past:
                burst.insert(0, data.draw(st.sampled_from(past)))
            elif kind == "bad":
                burst.append(dataclasses.replace(now, observation=np.array([math.nan, 0.0])))
        for heard in burst:
            mine.hear(heard)
        answer = mine.answer()
        decisions += 1
        assert answer is not None and answer.key == now.key
        assert desk.offer(answer, step) == ""
        assert decider.decisions == decisions
        past.append(now)
        event = data.draw(st.sampled_from(["step", "step", "step", "reset", "restart"]))
        if event == "step":
            step += 1
        else:
            episode, step = (episode + 1, 0) if event == "reset" else (0, 0)
            world = bytes(data.draw(st.binary(min_size=16, max_size=16))) if event == "restart" else world
            if any(old.world_id == world for old in past) and event == "restart":
                world = len(past).to_bytes(16, "big")
            desk.begin(world, episode)
            desk.release() if event == "restart" else None
    assert mine.statistics.missed == 0
    assert mine.statistics.answered == decisions
