"""What the command of the hand says of its episodes, and that its parts work.

Mutations that these tests notice: a difference over seeds that only one planner has played, or the other way
round; an interval of another width; planners that ask for different numbers of predictions; an episode that
is played again though it is there; the plan itself left out of what PDDM tries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from mbrl_bringup import hand
from mbrl_bringup.lockstep import Growing
from mbrl_planner.planners.sampling import Search

torch.set_num_threads(1)


def row(planner: str, seed: int, ret: float, solved: bool = False) -> dict[str, Any]:
    return {"planner": planner, "seed": seed, "return": ret, "success_steps": 30 * solved, "solved": solved}


def test_only_pairs_are_compared() -> None:
    rows = [row("pddm", 0, 5.0, True), row("pddm", 1, 9.0), row("pddm", 2, 1e6, True)]
    rows += [row("random_shooting", 1, 2.0), row("random_shooting", 0, 1.0), row("random_shooting", 3, -1e6)]
    told = hand.compared(rows)
    assert told["pairs"] == 2
    assert told["pddm"] == {"return": 7.0, "success_steps": 15.0, "solved": 0.5}
    assert told["random_shooting"] == {"return": 1.5, "success_steps": 0.0, "solved": 0.0}
    assert told["difference"]["mean"] == 5.5
    low, high = told["difference"]["t"]
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 1, 5.5, stats.sem([4.0, 7.0])))


def test_before_there_is_a_pair_nothing_is_told() -> None:
    assert hand.compared([row("pddm", 0, 1.0)]) == {"pairs": 0}
    assert "difference" not in hand.compared([row("pddm", 0, 1.0), row("random_shooting", 0, 1.0)])


def test_the_bootstrap_agrees_with_student_where_values_are_normal() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    np.testing.assert_allclose(hand.bootstrap(values), hand.t_interval(values), atol=0.03)


def test_both_planners_ask_for_as_many_predictions() -> None:
    configs = [hand.planner_of(name).config for name in hand.OWN]
    pddm, shooting = ((c.horizon * c.candidates * c.iterations, c.particles) for c in configs)
    assert pddm == shooting


def test_pddm_tries_its_plan_as_it_is_too() -> None:
    planner, mean = hand.planner_of("pddm", horizon=5, candidates=4, knots=0), torch.full((2, 5, 3), 0.25)
    none = torch.zeros(2)
    search = Search(mean, torch.ones_like(mean), None, mean, none, none, none)
    tried = planner.propose(search, 0, torch.Generator().manual_seed(0))
    assert tried.shape == (2, 4, 5, 3)
    assert torch.equal(tried[:, 0], mean) and not torch.isclose(tried[:, 1:], mean[:, None]).all(-1).any()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that take no time."""
    pytest.importorskip("gymnasium_robotics")
    small = {"horizon": 4, "candidates": 3, "iterations": 1, "knots": 2}
    monkeypatch.setattr(hand, "OWN", dict.fromkeys(hand.OWN, small))


@pytest.mark.usefixtures("short")
def test_pairs_go_on_where_they_were_broken_off(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    hand.pairs(Growing(path, {"about": 1}, "episodes"), range(1), steps=6)
    first = json.loads(path.read_text())["episodes"]
    assert [(r["planner"], r["seed"]) for r in first] == [("random_shooting", 0), ("pddm", 0)]
    assert first[0]["return"] != first[1]["return"]
    hand.pairs(Growing(path, {"about": 1}, "episodes"), range(2), steps=6)
    content = json.loads(path.read_text())
    assert content["episodes"][:2] == first and len(content["episodes"]) == 4
    assert content["compared"]["pairs"] == 2
    hand.draw_pairs(content["episodes"], tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").stat().st_size > 10_000


@pytest.mark.usefixtures("short")
def test_it_learns_from_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "LEARNED", {})
    path = tmp_path / "learned.json"
    options = {"seed": 0, "episodes": 2, "fit_steps": 20}
    hand.learn(Growing(path, {}, "episodes"), 12, 1.0, options)
    rows = json.loads(path.read_text())["episodes"]
    assert [r["steps"] for r in rows] == [12, 24]
    assert rows[0]["holdout_error"] > 0.0
    assert path.with_suffix(".png").stat().st_size > 10_000
