"""The world's side of the contract: which answer is executed, and which is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import OTHER_WORLD, SPEC, WORLD

from mbrl_dynamics.contract import ActionDesk
from mbrl_dynamics.spec import Element
from mbrl_dynamics.transition import Answer


def answer(step: int = 10, values=((1.0,), (0.5,), (0.25,)), **changes) -> Answer:
    fields = {
        "world_id": WORLD,
        "episode": 2,
        "step": step,
        "controller_id": "mpc",
        "values": np.array(values),
    }
    return Answer(**(fields | changes))


def desk(delay: int = 0, tail: int = 2) -> ActionDesk:
    made = ActionDesk(replace(SPEC, action_delay_steps=delay), tail_steps=tail)
    made.begin(WORLD, 2)
    return made


def test_an_answer_is_executed() -> None:
    one = desk()
    assert one.offer(answer(), 10) == ""
    choice = one.choose(10)
    assert (choice.action, choice.controller_id, choice.tail) == (pytest.approx([1.0]), "mpc", 0)


@pytest.mark.parametrize(
    "offered, kind",
    [
        (answer(world_id=OTHER_WORLD), "world"),
        (answer(episode=1), "episode"),
        (answer(controller_id=""), "controller"),
        (answer(controller_id="second"), "controller"),
        (answer(values=np.zeros((2, 2))), "length"),
        (answer(values=np.zeros((0, 1))), "length"),
        (answer(values=np.zeros(1)), "length"),
        (answer(values=[[np.nan]]), "finite"),
        (answer(values=[[0.0], [np.inf]]), "finite"),
        (answer(step=11), "step"),
        (answer(step=7), "late"),
    ],
)
def test_what_is_refused_is_counted_and_named(offered: Answer, kind: str) -> None:
    one = desk()
    one.offer(answer(step=9), 9)
    reason = one.offer(offered, 10)
    assert reason and one.last_refusal == reason
    assert dict(one.refused) == {kind: 1}
    assert (one.accepted, one.controller_id) == (1, "mpc")


def test_another_controller_may_come_after_release() -> None:
    one = desk()
    one.offer(answer(), 10)
    one.release()
    assert one.offer(answer(11, controller_id="second"), 11) == ""
    assert one.controller_id == "second"


def test_an_answer_from_the_cache_changes_nothing() -> None:
    one = desk()
    one.offer(answer(), 10)
    assert one.offer(answer(values=((-1.0,),)), 10) == ""
    assert (one.accepted, one.choose(10).action[0]) == (1, 1.0)


def test_the_tail_bridges_a_late_plan_and_then_the_world_is_safe() -> None:
    one = desk(tail=2)
    one.offer(answer(10), 10)
    assert [(one.choose(s).action[0], one.choose(s).tail) for s in (10, 11, 12)] == [
        (1.0, 0),
        (0.5, 1),
        (0.25, 2),
    ]
    choice = one.choose(13)
    assert (choice.action[0], choice.tail, choice.controller_id) == (0.0, -1, "")


def test_with_a_delay_an_answer_takes_effect_later() -> None:
    one = desk(delay=2)
    one.offer(answer(10), 10)
    assert one.choose(11).tail == -1
    assert one.choose(12).tail == 0


def test_a_new_episode_forgets_the_plans() -> None:
    one = desk()
    one.offer(answer(0), 0)
    one.begin(WORLD, 3)
    assert one.choose(0).tail == -1
    assert not one.answered(0)


def test_a_choice_is_rounded_to_one_that_exists() -> None:
    one = ActionDesk(replace(SPEC, action=(Element("button", count=3),)))
    one.begin(WORLD, 2)
    one.offer(answer(values=((7.0,), (-1.0,), (1.4,))), 10)
    assert [one.choose(s).action[0] for s in (10, 11, 12)] == [2.0, 0.0, 1.0]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.floats(-10, 10), st.booleans()), max_size=20), st.integers(0, 2)
)
def test_whatever_is_offered_only_what_is_allowed_is_executed(offers, delay: int) -> None:
    one = desk(delay)
    for newest, (step, value, mine) in enumerate(offers):
        one.offer(answer(step, ((value,),), controller_id="mpc" if mine else "other"), newest)
        choice = one.choose(newest)
        assert SPEC.action_low <= choice.action <= SPEC.action_high
        assert choice.controller_id in ("", one.controller_id)
