"""The textbook failures happen, and their cures cure.

Mutations that these tests notice: the table left out, so that all is open floor for ever (nothing is cured);
`fit_on` ignored by the grids (nothing oscillates) or by the rod (half is as bad as all).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mbrl_bringup.rod import Rod, balance, expert_gain, fitted_gain, step, upright_share
from mbrl_bringup.textbook import LOOPS, Grid, draw, learn, measure, open_floor
from mbrl_dynamics.plugins import make_task

ONCE, LATEST, AGAIN, REPLAN = LOOPS
BEST = {"cliff": -13.0, "maze": 1.0}
torch.set_num_threads(1)


@pytest.mark.parametrize("task", ["cliff", "maze"])
def test_a_plan_made_once_fails_as_often_as_it_is_tried(task: str) -> None:
    found = learn(task, ONCE, 3)
    assert len(set(found["returns"])) == 1 and not any(found["reached"])


@pytest.mark.parametrize("task", ["cliff", "maze"])
def test_all_data_cure_it_after_some_episodes_and_replanning_in_the_first(task: str) -> None:
    again, replan = learn(task, AGAIN, 6), learn(task, REPLAN, 2)
    assert not again["reached"][0] and again["returns"][-1] == BEST[task]
    assert all(replan["reached"]) and replan["returns"][0] > again["returns"][0]
    assert replan["returns"][1] == BEST[task]


def test_data_that_only_ever_went_right_lead_over_the_cliff() -> None:
    first = learn("cliff", ONCE, 1)["returns"][0]
    assert first == -100.0 * 11, "one fall for each step along the edge of the map"


def test_the_latest_data_alone_make_it_forget_the_cliff_each_time() -> None:
    returns = learn("cliff", LATEST, 8)["returns"]
    assert returns[::2] == [returns[0]] * 4 and returns[1::2] == [-13.0] * 4


def test_the_latest_data_alone_never_find_through_the_maze() -> None:
    assert not any(learn("maze", LATEST, 8)["reached"])


def test_open_floor_knows_the_way_over_the_cliff() -> None:
    task = make_task("cliff")
    going, reward = open_floor(task)
    assert going.sum(-1).min() == 0.0 and set(np.unique(going)) == {0.0, 1.0}
    assert going[task.start, 1, task.start + 1] == 1.0
    assert going[task.goal - 1, 1].sum() == 0.0, "the goal is the end"
    assert (reward == -1.0).all()
    assert len(Grid("maze").task.letters.ravel()) == 54


def test_the_rod_stands_with_half_the_weight_on_the_expert() -> None:
    every, half = (balance(choice, 0, 6) for choice in ("all", "half"))
    assert half.upright == [1.0] * 6 and half.failed == 0
    assert max(every.upright) < 0.2


def test_the_rod_is_as_it_says() -> None:
    assert upright_share(expert_gain()) == 1.0 and upright_share(np.zeros((1, 2))) < 0.5
    assert step(np.array([0.0, 0.0]), 5.0)[1] == pytest.approx(0.4), "limited"
    assert step(np.array([np.pi, 0.0]), 1.0)[1] == pytest.approx(-0.4), "hanging, it turns the other way"
    rod = Rod("all", 0)
    for _ in range(5):
        rod.act(expert_gain(), 0.1, "expert")
    np.testing.assert_allclose(fitted_gain(rod.buffer), expert_gain(), rtol=0.05)


def test_it_is_drawn(tmp_path: Path) -> None:
    result = measure(2, 2, 2)
    draw(result, tmp_path / "textbook.png")
    assert (tmp_path / "textbook.png").stat().st_size > 10_000
    assert len(result["grids"]) == 8 and len(result["rod"]) == 3
