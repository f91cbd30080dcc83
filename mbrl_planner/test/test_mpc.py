"""MPC: memory, swaps, delay, noise. The model is a double integrator, so that a right plan is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.types import Prediction
from mbrl_planner.agents.mpc import CONTEXT, MPC
from mbrl_planner.interfaces import Guess, Plan

SPEC = Spec(
    "point", (Element("position", "m"), Element("velocity", "m/s")), (Element("force", "N", -2.0, 2.0),), 0.1
)


class Point:
    """A point mass; a recurrent one also counts how many States it has filtered."""

    def __init__(self, recurrent: bool = False) -> None:
        self.spec = SPEC
        self.capabilities = Capabilities(recurrent=recurrent, rewards=True)

    def observe(self, state, action, obs, first=None):
        count = torch.zeros(len(obs["vector"]), 1) if state is None else state[1] + 1
        return obs["vector"], count

    def step(self, state, action, noise=None):
        (x, count) = state
        velocity = x[..., 1:] + 0.1 * action
        after = torch.cat([x[..., :1] + 0.1 * velocity, velocity], dim=-1)
        return Prediction((after, count), after)

    def imagine(self, state, actions, **_):
        raise NotImplementedError


class Recorder:
    """A planner that answers with a ramp, and remembers what it was asked."""

    class config:
        horizon = 4

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []

    def plan(self, model, state, guess=None, *, shift=1, heads=None, deadline=None, noise=None, display=0):
        self.calls.append(
            {"model": model, "state": state, "guess": guess, "shift": shift, "deadline": deadline}
        )
        ramp = torch.linspace(0.1, 0.4, 4).reshape(1, 4, 1).expand(len(state[0]), -1, -1)
        return Plan(ramp, torch.zeros(len(state[0])), Guess(ramp), disagreement=torch.zeros(len(state[0])))


def obs(position: float = 0.0, velocity: float = 0.0, batch: int = 1) -> dict[str, Tensor]:
    return {"vector": torch.tensor([[position, velocity]]).expand(batch, -1)}


FIRST, LATER = torch.tensor([True]), torch.tensor([False])
ACTION = torch.tensor([[0.5]])


def test_warm_start_is_shifted_by_the_steps_since_the_last_plan():
    planner = Recorder()
    mpc = MPC(planner, Point())
    _, memory = mpc.act(obs(), None, first=FIRST, prev_action=None, explore=False)
    memory = mpc.observe(obs(), memory, first=LATER, prev_action=ACTION)  # a State that nobody answers
    _, memory = mpc.act(obs(), memory, first=LATER, prev_action=ACTION, explore=False)
    memory = mpc.observe(obs(), memory, first=LATER, prev_action=ACTION, steps=3)  # two States were lost
    mpc.choose(memory)
    assert planner.calls[0]["guess"] is None
    assert [call["shift"] for call in planner.calls] == [1, 2, 3]


def test_a_new_episode_forgets():
    planner = Recorder()
    mpc = MPC(planner, Point(recurrent=True))
    _, memory = mpc.act(obs(), None, first=FIRST, prev_action=None, explore=False)
    mpc.act(obs(), memory, first=FIRST, prev_action=None, explore=False)
    assert planner.calls[1]["guess"] is None
    assert planner.calls[1]["state"][1].item() == 0


def test_in_a_batch_only_the_rows_that_begin_forget():
    planner = Recorder()
    mpc = MPC(planner, Point())
    both = torch.tensor([True, True])
    _, memory = mpc.act(obs(batch=2), None, first=both, prev_action=None, explore=False)
    first = torch.tensor([True, False])
    mpc.act(obs(batch=2), memory, first=first, prev_action=ACTION.expand(2, 1), explore=False)
    mean = planner.calls[1]["guess"].mean
    assert mean[0].abs().sum() == 0 and mean[1].abs().sum() > 0


def test_plans_begin_after_the_actions_under_way():
    planner, model = Recorder(), Point()
    mpc = MPC(planner, model)
    pending = torch.tensor([[[1.0], [-0.5], [0.25]]])
    mpc.choose(mpc.observe(obs(1.0, 2.0), None, first=FIRST, prev_action=None), pending=pending)
    state = (obs(1.0, 2.0)["vector"], torch.zeros(1, 1))
    for i in range(3):
        state = model.step(state, pending[:, i]).state
    assert torch.equal(planner.calls[0]["state"][0], state[0])


def test_a_swap_filters_recent_states_again_and_keeps_the_warm_start():
    planner = Recorder()
    mpc = MPC(planner, Point(recurrent=True))
    memory = None
    for step in range(5):
        _, memory = mpc.act(
            obs(float(step)), memory, first=FIRST if step == 0 else LATER, prev_action=ACTION, explore=False
        )
    new = Point(recurrent=True)
    mpc.swap(new)
    mpc.choose(memory)  # between observing and deciding
    assert planner.calls[-1]["model"] is new
    assert planner.calls[-1]["state"][1].item() == 4
    assert planner.calls[-1]["guess"] is not None
    for _ in range(2 * CONTEXT):
        memory = mpc.observe(obs(), memory, first=LATER, prev_action=ACTION)
    assert len(memory.recent) == CONTEXT


def test_states_lost_break_a_recurrent_memory():
    mpc = MPC(Recorder(), Point(recurrent=True))
    memory = mpc.observe(obs(), None, first=FIRST, prev_action=None)
    memory = mpc.observe(obs(), memory, first=LATER, prev_action=ACTION)
    assert memory.state[1].item() == 1
    assert mpc.observe(obs(), memory, first=LATER, prev_action=ACTION, steps=2).state[1].item() == 0


def test_a_model_that_comes_later_sees_what_was_before():
    planner = Recorder()
    mpc = MPC(planner)
    assert not mpc.ready
    memory = mpc.observe(obs(), None, first=FIRST, prev_action=None)
    memory = mpc.observe(obs(3.0), memory, first=LATER, prev_action=ACTION)
    mpc.swap(Point(recurrent=True))
    mpc.choose(memory)
    position, count = planner.calls[0]["state"]
    assert position[0, 0].item() == 3.0 and count.item() == 1


def test_exploration_noise_is_seeded_limited_and_on_the_first_row_only():
    def act(seed: int, explore: bool) -> Tensor:
        mpc = MPC(Recorder(), Point(), exploration_noise=3.0, seed=seed)
        return mpc.act(obs(), None, first=FIRST, prev_action=None, explore=explore)[0]

    plain = act(0, explore=False)
    assert torch.equal(act(0, explore=True), act(0, explore=True))
    noisy = torch.stack([act(seed, explore=True) for seed in range(20)])
    assert torch.equal(noisy[:, :, 1:], plain[:, 1:].expand(20, -1, -1, -1))
    assert len(noisy[:, 0, 0].unique()) > 5
    assert noisy.abs().max() <= 1.0


def test_a_planner_changed_at_run_time_does_not_get_the_old_ones_guess():
    mpc = MPC(Recorder(), Point())
    _, memory = mpc.act(obs(), None, first=FIRST, prev_action=None, explore=False)
    mpc.planner = other = Recorder()
    mpc.act(obs(), memory, first=LATER, prev_action=ACTION, explore=False)
    assert other.calls[0]["guess"] is None


def walk(mpc: MPC, steps: int) -> list[float]:
    """First rows of the answers along an episode."""
    memory, rows = None, []
    for step in range(steps):
        first = FIRST if step == 0 else LATER
        actions, memory = mpc.act(
            obs(float(step)), memory, first=first, prev_action=ACTION if step else None, explore=False
        )
        rows.append(round(actions[0, 0, 0].item(), 3))
    return rows


def test_plans_are_followed_for_as_long_as_it_is_told():
    ramp = [0.1, 0.2, 0.3, 0.4]
    for replan_every, expected, shifts in (
        (1, [0.1] * 9, [1] * 9),
        (3, (ramp[:3] * 3), [1, 3, 3]),
        (0, (ramp * 3)[:9], [1, 4, 4]),
        (7, (ramp * 3)[:9], [1, 4, 4]),  # no plan goes further than its horizon
    ):
        planner = Recorder()
        assert walk(MPC(planner, Point(), replan_every=replan_every), 9) == expected
        assert [call["shift"] for call in planner.calls] == shifts


def test_a_followed_plan_is_answered_with_its_rest_and_counts_lost_states():
    planner = Recorder()
    mpc = MPC(planner, Point(), replan_every=0)
    _, memory = mpc.act(obs(), None, first=FIRST, prev_action=None, explore=False)
    memory = mpc.observe(obs(), memory, first=LATER, prev_action=ACTION, steps=2)
    actions, memory = mpc.choose(memory)
    assert actions.flatten().tolist() == pytest.approx([0.3, 0.4])
    memory = mpc.observe(obs(), memory, first=LATER, prev_action=ACTION, steps=5)
    assert mpc.choose(memory)[0].shape == (1, 4, 1)
    assert len(planner.calls) == 2


def test_a_plan_is_not_followed_into_another_episode_or_by_another_planner():
    planner = Recorder()
    mpc = MPC(planner, Point(), replan_every=0)
    both, second = torch.tensor([True, True]), torch.tensor([False, True])
    _, memory = mpc.act(obs(batch=2), None, first=both, prev_action=None, explore=False)
    _, memory = mpc.act(obs(batch=2), memory, first=second, prev_action=ACTION.expand(2, 1), explore=False)
    assert len(planner.calls) == 2, "one of the two episodes began anew"
    mpc.planner = other = Recorder()
    mpc.act(obs(batch=2), memory, first=~both, prev_action=ACTION.expand(2, 1), explore=False)
    assert len(other.calls) == 1


def test_a_plan_that_is_not_valid_is_not_followed():
    class Lost(Recorder):
        def plan(self, *args, **kwargs):
            plan = super().plan(*args, **kwargs)
            return replace(plan, actions=plan.actions * torch.nan, valid=torch.tensor([False]))

    planner = Lost()
    rows = walk(MPC(planner, Point(), replan_every=0), 3)
    assert len(planner.calls) == 3 and all(math.isnan(row) for row in rows)


def test_compute_fits_a_guess_of_any_length():
    planner = Recorder()
    mpc = MPC(planner, Point())
    for rows in (1, 4, 9):
        mpc.compute(obs(), torch.arange(float(rows)).reshape(1, rows, 1))
        mean = planner.calls[-1]["guess"].mean
        assert mean.shape == (1, 4, 1)
        assert mean[0, -1, 0].item() == min(rows - 1, 3)
    assert planner.calls[-1]["deadline"] is None
    mpc.compute(obs(), time_budget=1.0)
    assert planner.calls[-1]["deadline"] is not None
