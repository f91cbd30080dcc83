"""What planners reach on models is counted, scored and resumed as docs/results/planners_models.json says.

Mutations that these tests notice: predictions counted once a call; the score's scale turned round or without
random actions; a finished cell measured again; a seed without a return left out of a mean.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbrl_bringup import planners_models
from mbrl_bringup.lockstep import Counted, Growing, OverBudget, Stopwatch, episode, learn, rows
from mbrl_bringup.pendulum_best import Best, Grid
from mbrl_bringup.planners_models import (
    CASES,
    MODELS,
    PLANNERS,
    Case,
    cells,
    fitted,
    gathered,
    mean_score,
    planner_of,
    play,
    score,
    start_of,
    table,
    verdicts,
)
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.network import Network
from mbrl_dynamics.plugins import make_task, names
from mbrl_planner.planners.icem import ICEM, ICEMConfig
from mbrl_planner.planners.ilqr import ILQR, ILQRConfig
from mbrl_planner.small_worlds import random_action
from mbrl_sim.models.simulator import SimulatorModel
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.pendulum import Pendulum

ROOT = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)


class Short(Pendulum):
    """An episode of a few steps."""

    name = "short"
    max_steps = 8


def cell(task: str, seed: int, model: str, planner: str, **told: Any) -> dict[str, Any]:
    return {"task": task, "seed": seed, "model": model, "planner": planner, **told}


# Counting ---------------------------------------------------------------------------------------------------


def test_predictions_are_steps_of_imagined_futures() -> None:
    task = Pendulum()
    model = Counted(Ensemble(task.spec, EnsembleConfig(members=3, elites=2, hidden=(8,))), task)
    state = model.observe(None, None, {"vector": torch.tensor([[1.0, 0.0, 0.0]])})
    model.imagine(state, torch.zeros(1, 5, 7, 1), particles=4)
    assert model.predictions == 5 * 7 * 4
    model.step(state, torch.zeros(1, 1))
    assert model.predictions == 5 * 7 * 4 + 1


def test_rows_that_vmap_hides_are_counted() -> None:
    seen: list[int] = []

    def look(row: torch.Tensor) -> torch.Tensor:
        seen.append(rows(row[None]))
        return row.square().sum()

    torch.func.vmap(torch.func.jacrev(torch.func.jacrev(look)))(torch.zeros(6, 2))
    assert seen and set(seen) == {6}


def test_a_planner_that_differentiates_is_counted_too() -> None:
    task = Pendulum()
    model = Counted(Network(task.spec), task)
    state = model.observe(None, None, {"vector": torch.tensor([[0.0, 1.0, 0.0]])})
    ILQR(ILQRConfig(horizon=4, iterations=1)).plan(model, state)
    # The first path, the expansion's first and second derivatives, and ten step sizes.
    assert model.predictions == 4 + 4 + 4 + 10 * 4


def test_a_plan_that_takes_too_long_is_given_up_early() -> None:
    task = Pendulum()
    known = Counted(SimulatorModel(task.spec), task)
    state = known.observe(None, None, {"vector": torch.tensor([[1.0, 0.0, 0.0]])})
    watch = Stopwatch(ICEM(ICEMConfig(horizon=5)), plans=200, budget=0.0)
    for _ in range(Stopwatch.LOOK - 1):
        watch.plan(known, state)
    with pytest.raises(OverBudget):
        watch.plan(known, state)
    assert len(watch.seconds) == Stopwatch.LOOK and watch.config.horizon == 5


# Playing ----------------------------------------------------------------------------------------------------


def test_an_episode_is_the_simulators() -> None:
    heard: list[Any] = []
    rng = np.random.default_rng(0)
    total = episode(
        Simulator(Short()), lambda obs, first: random_action(Short().spec, rng), seed=5, hear=heard.append
    )
    assert [state.step for state in heard] == list(range(9)) and heard[0].first and heard[-1].truncated
    np.testing.assert_allclose(heard[0].observation, Simulator(Short()).reset(seed=5))
    assert total == pytest.approx(sum(state.reward for state in heard[1:]))


def test_learning_begins_at_random_and_fits_between_episodes() -> None:
    fits: list[int] = []

    class Watched(Network):
        def fit(self, buffer, budget, progress=None):  # type: ignore[no-untyped-def]
            fits.append(len(buffer))
            return super().fit(buffer, budget, progress)

    world, planner = Simulator(Short()), ICEM(ICEMConfig(horizon=3, candidates=8, elites=2, iterations=1))
    told: list[float] = []
    model = Watched(Short().spec)
    buffer, returns = learn(world, model, planner, episodes=3, fit_steps=1, seed=0, heard=told.append)
    assert fits == [8, 16] and len(buffer) == 24 and returns == told and buffer.episodes == 3


def test_one_cell_from_end_to_end() -> None:
    told = play(
        Short(), planner_of("icem", Case(4, 2, 1)), SimulatorModel(Pendulum().spec, task=Short()), 0, 1, 60.0
    )
    assert told["status"] == "done" and told["return"] < 0 and told["ms"] > 0
    config = planner_of("icem", Case(4, 2, 1)).config
    fewest = 4 * config.candidates
    assert fewest < told["predictions"] < 4 * (config.iterations + 1) * (config.candidates + config.elites)


def test_a_refusal_says_why() -> None:
    told = play(Short(), planner_of("ilqr", CASES["pendulum"]), SimulatorModel(Pendulum().spec), 0, 1, 60.0)
    assert told["status"] == "refused" and "gradients" in told["why"]


def test_over_budget_is_written_down_with_what_it_costs() -> None:
    told = play(Short(), planner_of("icem", CASES["pendulum"]), SimulatorModel(Pendulum().spec), 0, 1, 1e-9)
    assert told["status"] == "over budget" and "return" not in told and told["predictions"] > 1000


def test_data_and_models_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, 2, 5)
    first = gathered("pendulum", case, 0, tmp_path)
    monkeypatch.setattr(planners_models, "learn", None)  # it would be called again
    again = gathered("pendulum", case, 0, tmp_path)
    assert len(first) == len(again) == 400
    for one, other in zip(first.all().obs.values(), again.all().obs.values(), strict=True):
        assert torch.equal(one, other)
    model = fitted("physics", "pendulum", case, 0, tmp_path)
    monkeypatch.setattr(type(model), "fit", None)
    kept = fitted("physics", "pendulum", case, 0, tmp_path)
    assert torch.equal(model.draws, kept.draws)
    mass = next(i for i, p in enumerate(model.fitted) if p.name == "mass:rod")
    assert float(model.draws[0, mass]) == pytest.approx(0.0, abs=0.02), "it began wrong, and was found"


def test_each_planner_meets_each_model_once_a_task_and_seed() -> None:
    assert set(PLANNERS) <= set(names("planners"))
    assert set(MODELS) <= set(names("models"))
    every = list(cells(3))
    assert len(every) == len(set(every)) == 3 * 3 * len(MODELS) * len(PLANNERS)
    assert len({start_of(seed) for seed in range(3)}) == 3


# Telling ----------------------------------------------------------------------------------------------------


def test_random_actions_are_0_and_the_best_is_1() -> None:
    assert score(-1200.0, -1200.0, -200.0) == 0.0 and score(-200.0, -1200.0, -200.0) == 1.0
    assert score(-250.0, -1200.0, -200.0) == pytest.approx(0.95)
    assert score(440.0, 0.0, 880.0) == 0.5


def result() -> dict[str, Any]:
    """Two seeds of a pendulum with two models and planners."""
    starts = [
        {"task": "pendulum", "seed": s, "random": -1100.0, "best": -100.0, "source": "x"} for s in (0, 1)
    ]
    cost = {"ms": 12.0, "predictions": 4200, "status": "done"}
    made = [
        cell("pendulum", s, model, planner, **cost, **{"return": value + 10 * s})
        for model, planner, value in [
            ("simulator", "icem", -105.0),
            ("simulator", "cem", -205.0),
            ("network", "icem", -305.0),
            ("network", "cem", -205.0),
        ]
        for s in (0, 1)
    ]
    made += [cell("pendulum", s, "simulator", "ilqr", status="refused", why="no gradients") for s in (0, 1)]
    made += [cell("pendulum", s, "network", "ilqr", **{**cost, "status": "over budget"}) for s in (0, 1)]
    return {"starts": starts, "cells": made}


def test_the_best_of_each_is_found() -> None:
    (told,) = verdicts(result())
    assert told["planner"] == "icem" and told["score"] == pytest.approx(1.0)
    (own,) = told["models"].items()
    assert own[0] == "network" and own[1]["planner"] == "cem"
    assert own[1]["share"] == pytest.approx(0.9 / 0.9), "beside the same planner with the simulator"


def test_a_seed_without_a_return_leaves_no_score() -> None:
    found = result()
    assert mean_score(found, "pendulum", "network", "icem") == pytest.approx(0.8)
    del found["cells"][4]["return"]
    assert found["cells"][4]["model"] == "network" and math.isnan(
        mean_score(found, "pendulum", "network", "icem")
    )


def test_the_table_tells_all() -> None:
    text = table(result())
    assert "random actions -1100, known best -100 (x)" in text and "reacher" not in text
    icem = next(line for line in text.splitlines() if line.startswith("| `icem`"))
    assert icem.startswith("| `icem` | -100 (1.00), 12 ms, 4.2k | not measured |") and "-300 (0.80)" in icem
    ilqr = next(line for line in text.splitlines() if line.startswith("| `ilqr`"))
    assert "refused" in ilqr and "over budget, 12 ms, 4.2k" in ilqr
    assert "`mppi`, `pddm`" in text and "| `mppi`" not in text, "what nobody measured is named below"
    half = result()
    half["cells"] = [c for c in half["cells"] if c["seed"] == 0]
    assert "(1 of 2 seeds)" in table(half)


def test_results_grow_and_go_on(tmp_path: Path) -> None:
    path, about = tmp_path / "a" / "some.json", {"cases": (1, 2), "best": math.nan}
    results = Growing(path, about, "cells", commit="1")
    results.add({"task": "pendulum", "return": np.float64(1.0)})
    again = Growing(path, about, "cells", commit="2")
    assert again.find(task="pendulum") == {"task": "pendulum", "return": 1.0}
    assert again.find(task="cliff") is None and again.content["commit"] == "2"
    with pytest.raises(UserError, match="other settings"):
        Growing(path, {"cases": (1, 3), "best": math.nan}, "cells")


def test_results_of_a_run_beside_are_taken_in_once(tmp_path: Path) -> None:
    one, other = (Growing(tmp_path / name, {"a": 1}, "cells") for name in ("one.json", "other.json"))
    one.add({"seed": 0, "return": 1.0})
    other.add({"seed": 0, "return": 2.0})
    other.add({"seed": 1, "return": 3.0})
    for _ in range(2):
        one.take(other.path, ("seed",), ("cells",))
    assert one.rows == [{"seed": 0, "return": 1.0}, {"seed": 1, "return": 3.0}]
    Growing(tmp_path / "third.json", {"a": 2}, "cells").write()
    with pytest.raises(UserError, match="other settings"):
        one.take(tmp_path / "third.json", ("seed",), ("cells",))


def test_the_readme_beside_the_file_gets_the_table(tmp_path: Path) -> None:
    results, readme = Growing(tmp_path / "some.json", {}, "cells"), tmp_path / "README.md"
    results.publish("new")
    assert not readme.exists()
    readme.write_text("a\n<!-- some.json -->\nold\n<!-- some.json -->\nb\n")
    results.publish("new\nlines")
    results.publish("new\nlines")
    assert readme.read_text() == "a\n<!-- some.json -->\nnew\nlines\n<!-- some.json -->\nb\n"


def test_the_command_goes_on_where_it_was_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planners_models, "CASES", {"pendulum": Case(3, 2, 2, best=-100.0, source="x")})
    monkeypatch.setattr(planners_models, "MODELS", {"simulator": {}})
    monkeypatch.setattr(planners_models, "PLANNERS", ("icem", "ilqr"))
    out = tmp_path / "table.json"
    arguments = ["planners_models", "--out", str(out), "--work", str(tmp_path), "--seeds", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    planners_models.main()
    made = json.loads(out.read_text())
    assert [(c["planner"], c["status"]) for c in made["cells"]] == [("icem", "done"), ("ilqr", "refused")]
    assert len(made["starts"]) == 1 and made["verdicts"][0]["planner"] == "icem"
    assert "| `icem` |" in capsys.readouterr().out
    del made["cells"][1]
    out.write_text(json.dumps(made))
    played = []
    monkeypatch.setattr(
        planners_models, "play", lambda *a: played.append(a) or {"status": "refused", "why": ""}
    )
    planners_models.main()
    assert len(played) == 1 and len(json.loads(out.read_text())["cells"]) == 2


def test_the_readme_has_the_table_of_the_file() -> None:
    folder = ROOT / "docs" / "results"
    measured = json.loads((folder / "planners_models.json").read_text())
    assert table(measured) in (folder / "README.md").read_text()


# The known best ---------------------------------------------------------------------------------------------


def test_a_grid_is_linear_in_between() -> None:
    grid, rng = Grid(40, 31, 3), np.random.default_rng(0)
    states = grid.states()
    index, weight = grid.weights(states)
    np.testing.assert_allclose((weight * (index == np.arange(len(states))[:, None])).sum(1), 1.0, atol=1e-9)
    some = np.stack([rng.uniform(-3.0, 3.0, 50), rng.uniform(-8.0, 8.0, 50)], axis=-1)
    index, weight = grid.weights(some)
    np.testing.assert_allclose(weight.sum(1), 1.0)
    np.testing.assert_allclose((weight * states[index, 1]).sum(1), some[:, 1], atol=1e-9)
    index, weight = grid.weights(np.array([[np.pi - 1e-9, 0.0], [-np.pi, 0.0], [3 * np.pi, 0.0]]))
    values = np.cos(states[:, 0])
    np.testing.assert_allclose((values[index] * weight).sum(1), -1.0, atol=1e-6)


def test_the_known_best_of_the_pendulum_is_hard_to_beat() -> None:
    best, task = Best(Grid(81, 61, 7)), Pendulum()
    found = best.play(start_of(0))
    assert found > -450.0
    planner, known = ICEM(ICEMConfig(horizon=20)), SimulatorModel(task.spec)
    told = play(task, planner, known, 0, 1, 60.0)
    assert found > told["return"] - 15.0
    upright = best.grid.states()[:, 0] ** 2 + best.grid.states()[:, 1] ** 2
    assert best.values[-1][upright.argmin()] > -1.0 and best.values[-1].min() < -250.0
    assert make_task("pendulum").max_steps + 1 == len(best.values)
