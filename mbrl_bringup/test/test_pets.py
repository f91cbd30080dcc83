"""PETS' figure: the variants are what they are called, and are told in the right order.

Mutations that these tests notice: a deterministic ensemble that learns variances; outcomes drawn for E;
members that do not differ; the random episode counted as planned.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mbrl_bringup.pets import (
    MEMBERS,
    PARTICLES,
    TASK,
    VARIANTS,
    draw,
    main,
    model_of,
    planner_of,
    run,
    summary,
    table,
)
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.testing import check_model

ROOT = Path(__file__).resolve().parents[2]
SPEC = make_task(TASK).spec
EVERY = [(kind, method) for kind, methods in VARIANTS.items() for method in methods]
torch.set_num_threads(1)


@pytest.mark.parametrize("kind, method", EVERY)
def test_a_variant_imagines_as_its_name_says(kind: str, method: str) -> None:
    model, config = model_of(kind, method, SPEC, 0), planner_of(kind, method).config
    state = model.observe(None, None, {"vector": torch.tensor([[0.0, -1.0, 0.0, 0.0, 0.0]])})
    plans, draws = torch.ones(1, 2, 6, 1), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        rollout = model.imagine(
            state,
            plans,
            particles=config.particles or None,
            noise=draws if config.aleatoric else None,
            keep=("obs",),
        )
    assert rollout.obs is not None
    assert rollout.obs.shape[2] == (1 if method == "E" else PARTICLES)
    one, other = rollout.obs[0, :, :, -1].std(1, correction=0).max(-1).values
    if method != "TS1" and not config.aleatoric:
        torch.testing.assert_close(rollout.obs[0, 0], rollout.obs[0, 1])
    else:
        assert float(one) != float(other), "twins by name, not by what is drawn"
    assert config.aleatoric == (kind in ("P", "PE") and method != "E")
    assert (float(one) > 1e-6) == (method != "E" and kind != "D"), "particles part where there is a reason"


def test_a_deterministic_ensemble_learns_by_squared_error() -> None:
    model = model_of("DE", "TS1", SPEC, 0)
    assert model.members == model.elites == MEMBERS and not model.capabilities.stochastic
    said = model(torch.zeros(4, SPEC.observation_dim), torch.zeros(4, 1))
    assert said.log_var.abs().max() == 0.0
    target = torch.ones(4, SPEC.observation_dim)
    torch.testing.assert_close(said.nll(target), (said.mean[:, :, 0] - target).square().mean(-1))
    assert model_of("PE", "TS1", SPEC, 0)(torch.zeros(4, 5), torch.zeros(4, 1)).log_var.abs().min() > 0.0


def test_a_deterministic_ensemble_keeps_a_models_contract() -> None:
    check_model(lambda spec: model_of("DE", "TSinf", spec, 0))


def test_one_run_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl_bringup.pets.HIDDEN", (8,))
    monkeypatch.setattr("mbrl_bringup.pets.SEARCH", {"horizon": 3, "candidates": 8, "iterations": 1})
    one, other = (run(kind, method, 0, 2, 2) for kind, method in (("P", "TS"), ("DE", "TS1")))
    assert one["returns"][0] == other["returns"][0], "the first episode is the same for all"
    assert len(one["returns"]) == 2 and one["returns"][1] != other["returns"][1]
    assert run("DE", "TS1", 0, 2, 2)["returns"] == other["returns"], "seeded"


def rows() -> list[dict[str, object]]:
    return [
        {"model": kind, "propagation": method, "seed": seed, "returns": [0.0, value, value + seed, value]}
        for kind, method, value in [("D", "E", 50.0), ("PE", "TS1", 150.0), ("PE", "E", 100.0)]
        for seed in (0, 3)
    ]


def test_the_best_comes_first() -> None:
    told = summary(rows())
    assert [one["variant"] for one in told] == ["PE-TS1", "PE-E", "D-E"]
    assert told[0]["mean"] == pytest.approx(150.5) and told[0]["seeds"] == [150.0, 151.0]
    more = [*rows(), {"model": "D", "propagation": "E", "seed": 9, "returns": [0.0, 999.0, 999.0, 999.0]}]
    assert summary(more) == told, "a seed that not all have does not count"
    assert table(rows()).splitlines()[2] == "| PE-TS1 | 150.5 | 150, 151 | 150.5 |"


def test_it_is_drawn(tmp_path: Path) -> None:
    draw(rows(), tmp_path / "pets.png")
    assert (tmp_path / "pets.png").stat().st_size > 10_000


def test_the_command_goes_on_where_it_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []

    def some(kind: str, method: str, seed: int, episodes: int, fit_steps: int) -> dict[str, object]:
        made.append((kind, method, seed))
        return {"model": kind, "propagation": method, "seed": seed, "returns": [0.0, 1.0 * len(made)]}

    monkeypatch.setattr("mbrl_bringup.pets.run", some)
    monkeypatch.setattr("sys.argv", ["pets", "--out", str(tmp_path / "pets.json"), "--seeds", "1"])
    main()
    assert [one[:2] for one in made] == EVERY and (tmp_path / "pets.png").exists()
    monkeypatch.setattr("sys.argv", ["pets", "--out", str(tmp_path / "pets.json"), "--seeds", "2"])
    main()
    assert len(made) == len(set(made)) == 2 * len(EVERY)


def test_the_readme_has_the_table_of_the_file() -> None:
    folder = ROOT / "docs" / "results"
    measured = json.loads((folder / "pets.json").read_text())
    assert table(measured["runs"]) in (folder / "README.md").read_text()
    assert all(torch.tensor(run["returns"]).isfinite().all() for run in measured["runs"])
