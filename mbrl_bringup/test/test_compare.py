"""`mbrl compare`: statistics as their papers define them, results of all kinds, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mbrl_bringup.cli import main
from mbrl_bringup.curves import Curve, group, read_curves
from mbrl_bringup.iqm import interval, iqm
from mbrl_dynamics.errors import UserError


def training(seed: int, scores: list[float], *, every: int = 1000, **more: Any) -> dict[str, Any]:
    marks = [
        {
            "frames": every * i,
            "env_steps": every * i // 5,
            "wall_s": 7.0 * i,
            "updates": 2 * every * i,
            "score": score,
            "returns": [score],
        }
        for i, score in enumerate(scores, 1)
    ]
    known = {"task": "cartpole_swingup", "seed": seed, "agent": "sac", "model": "", "reward": ""}
    return {**known, "action_repeat": 5, "evaluation": {"marks": marks}, "episodes": [], **more}


def demo(seed: int, returns: list[float]) -> dict[str, Any]:
    episodes = [{"return": value, "steps": 200} for value in returns]
    return {
        "task": "cartpole_swingup",
        "seed": seed,
        "model": "ensemble",
        "planner": "icem",
        "episodes": episodes,
    }


def write(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def test_the_interquartile_mean_by_hand() -> None:
    assert iqm(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])) == pytest.approx(3.5)  # 2, 3, 4, 5 stay
    assert iqm(np.array([100.0, 1.0, 2.0, 0.0])) == pytest.approx(1.5)
    assert iqm(np.array([0.0, 1.0, 5.0])) == pytest.approx(2.0)  # a quarter of three is rounded down to none
    assert iqm(np.array([0.0, 1.0, 2.0, 3.0, 4.0])) == pytest.approx(2.0)
    curves = np.array([[0.0, 9.0], [1.0, 1.0], [2.0, 2.0], [50.0, 3.0]])
    assert iqm(curves) == pytest.approx([1.5, 2.5])


def test_the_interval_by_hand() -> None:
    """Two seeds have three equally spaced means, 1/4, 1/2 and 1/4 of the draws: the ends are the seeds."""
    low, high = interval([np.array([0.0, 10.0])])
    assert (low, high) == (0.0, 10.0)
    low, high = interval([np.array([0.0, 10.0])], level=0.4)  # inside the middle half
    assert (low, high) == (5.0, 5.0)
    assert interval([np.full(5, 3.0)]) == (3.0, 3.0)
    assert np.isnan(interval([np.array([1.0])])).all()


def test_the_interval_covers_the_mean_of_normal_scores() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        low, high = interval([rng.normal(0.0, 1.0, 20)], draws=500, seed=i)
        hits += low <= 0.0 <= high
    assert 0.88 <= hits / 200 <= 0.98  # a percentile interval of few seeds is a little too narrow


def test_strata_are_never_mixed() -> None:
    """Each task keeps its share of the draws: with scores that are constant in a task, nothing varies."""
    low, high = interval([np.zeros(4), np.full(4, 8.0)])
    assert low == high == 4.0


def test_trainings_and_demos_are_read_from_files_lists_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "run" / "result.json", training(0, [1.0, 2.0]))
    write(tmp_path / "list.json", [demo(0, [10.0, 20.0, 30.0]), demo(1, [11.0, 21.0, 31.0])])
    (run,) = read_curves(tmp_path / "run", "frames")
    assert run.agent == "sac" and run.x.tolist() == [1000, 2000] and run.score.tolist() == [1.0, 2.0]
    first, second = read_curves(tmp_path / "list.json", "frames")
    assert first.agent == "icem" and first.x.tolist() == [1000, 2000, 3000]  # 200 steps of 5 frames
    assert second.score.tolist() == [11.0, 21.0, 31.0]
    assert read_curves(tmp_path / "run", "steps")[0].x.tolist() == [200, 400]
    assert read_curves(tmp_path / "run", "wall")[0].x.tolist() == [7.0, 14.0]


def test_seeds_form_a_group_and_settings_tell_groups_apart(tmp_path: Path) -> None:
    many = [
        *(training(s, [float(s), 10.0 + s], settings={"sac.replay_ratio": "1"}) for s in range(3)),
        *(
            training(s, [float(s), 20.0 + s], settings={"sac.replay_ratio": "8", "frames": 9})
            for s in range(2)
        ),
    ]
    path = Path(write(tmp_path / "a.json", many))
    (groups,) = group(read_curves(path, "frames")).values()
    assert [found.label for found in groups] == ["sac (sac.replay_ratio 1)", "sac (sac.replay_ratio 8)"]
    assert [len(found.curves) for found in groups] == [3, 2]
    assert iqm(groups[0].scores).tolist() == [1.0, 11.0]


def test_a_group_stands_on_ground_that_all_its_runs_have_reached() -> None:
    short = Curve("a", "t", "sac", 0, {}, np.array([1.0, 3.0]), np.array([0.0, 2.0]))
    long = Curve("b", "t", "sac", 1, {}, np.array([2.0, 3.0, 9.0]), np.array([5.0, 5.0, 5.0]))
    ((found,),) = group([short, long]).values()
    assert found.x.tolist() == [2.0, 3.0]
    assert found.scores.tolist() == [[1.0, 2.0], [5.0, 5.0]]


def test_the_command_prints_the_last_common_mark_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    a = write(tmp_path / "a.json", [training(s, [100.0 * s, 200.0, 300.0 + s]) for s in range(4)])
    b = write(tmp_path / "b.json", [demo(s, [1.0, 2.0 + s]) for s in range(2)])
    assert main(["compare", a, b, "--out", "two.png"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[1] == [
        "cartpole_swingup", "sac", "2000", "0,1,2,3", "200.0", "200.0", "200.0 to 200.0",
    ]  # fmt: skip
    assert cells[2] == ["cartpole_swingup", "icem", "2000", "0,1", "2.5", "2.5", "2.0 to 3.0"]
    assert cv2.imread("two.png") is not None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file"),
        ("{", "cannot be read as JSON"),
        ('{"rows": []}', "does not hold the result of a demo or a training"),
        ("[1, 2]", "does not hold the result of a demo or a training"),
        (json.dumps(training(0, [])), "there is nothing to compare"),
        (json.dumps([training(0, [1.0]), training(1, [1.0], every=5000)]), "no part of the axis in common"),
        (
            json.dumps([training(0, [1.0]), training(0, [1.0], every=5000, agent="mbpo")]),
            "some end at 1000, before those of mbpo begin at 5000",
        ),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    assert main(["compare", "a.json"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and sentence in shown
    assert not (tmp_path / "compare.png").exists()


def test_mistakes_in_the_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "b.json", demo(0, [1.0]))
    assert main(["compare", path, "--x", "days"]) == 2
    assert "'x' is 'days'" in capsys.readouterr().err
    assert main(["compare", path, "--x", "wall"]) == 2
    assert "does not tell wall for each episode" in capsys.readouterr().err
    assert main(["compare", path, "--out", str(tmp_path / "none" / "a.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["compare", str(tmp_path)]) == 2
    assert "there is no result in" in capsys.readouterr().err
    with pytest.raises(UserError):
        group([])
