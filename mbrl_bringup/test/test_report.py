"""A run's folder becomes a report, whatever is missing in it."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mbrl_bringup.evidence import MODEL, forecast, gather, last_episode
from mbrl_bringup.goals import DEMOS, best_mean, best_within
from mbrl_bringup.plots import error_by_horizon
from mbrl_bringup.report import CURVE, FORECAST, VIDEO, goal_rows, write_report
from mbrl_bringup.result import Episode, Result, read, write
from mbrl_bringup.success import rate, success_shares
from mbrl_bringup.table import COLUMNS, RunTable, cells
from mbrl_bringup.video import film
from mbrl_dynamics.episodes import EpisodeStore
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.plugins import names
from mbrl_dynamics.snapshot import pack
from mbrl_dynamics.testing import PointMass
from mbrl_dynamics.transition import Transition
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.pendulum import Pendulum

STEPS = 40


def result_of(episodes: int = 3, **changes: object) -> Result:
    rows = tuple(
        Episode(
            mode="exploit" if i else "random",
            ret=-1000.0 + 200.0 * i,
            steps=STEPS,
            planning_ms_median=10.0 + i if i else math.nan,
            planning_ms_p99=15.0 + i if i else math.nan,
            model_version=i,
            holdout_error=0.1 / (i + 1),
            fit_seconds=3.0,
            transitions=STEPS * (i + 1),
        )
        for i in range(episodes)
    )
    result = Result(
        "pendulum",
        0,
        "ensemble",
        "icem",
        0.05,
        rows,
        wall_s=65.0,
        finished=True,
        commit="abc",
        machine="2 cores",
        command="mbrl demo --task pendulum",
    )
    return dataclasses.replace(result, **changes)


def record(folder: Path, episodes: int = 2) -> Pendulum:
    """Some random episodes, as the learner would have recorded them."""
    task = Pendulum()
    simulator, store, world = (
        Simulator(task, 0),
        EpisodeStore(folder / "dataset", task.spec),
        uuid.uuid4().bytes,
    )
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        store.add(Transition(world, episode, 0, simulator.reset(), np.zeros(1), first=True))
        for step in range(1, STEPS + 1):
            action = rng.uniform(task.spec.action_low, task.spec.action_high)
            done = simulator.step(action)
            store.add(
                Transition(
                    world, episode, step, done.observation, action, done.reward, truncated=step == STEPS
                )
            )
    store.close()
    return task


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    torch.set_num_threads(1)
    task = record(tmp_path)
    write(result_of(), tmp_path)
    model = Ensemble(task.spec, EnsembleConfig(members=2, hidden=(8,)))
    snapshot = pack(model, model_id="ensemble", run_id=str(uuid.uuid4()), version=2)
    (tmp_path / MODEL).write_bytes(snapshot.weights)
    return tmp_path


def test_a_result_survives_the_way_through_its_files(tmp_path: Path) -> None:
    write(result_of(), tmp_path)
    assert repr(read(tmp_path)) == repr(result_of())


def test_result_json_has_the_agreed_form(tmp_path: Path) -> None:
    write(result_of(), tmp_path)
    content = json.loads((tmp_path / "result.json").read_text())
    kinds = {
        "task": str,
        "seed": int,
        "model": str,
        "planner": str,
        "control_period_s": float,
        "episodes": list,
        "wall_s": float,
        "planning_ms": dict,
        "missed_steps": int,
        "commit": str,
        "machine": str,
    }
    assert {key: type(content[key]) for key in kinds} == kinds
    assert content["episodes"] == [{"return": -1000.0 + 200.0 * i, "steps": STEPS} for i in range(3)]
    assert content["planning_ms"] == {"median": 11.5, "p99": 17.0}


def test_what_is_not_known_is_null_and_the_file_stays_json(tmp_path: Path) -> None:
    write(result_of(0, control_period_s=math.nan), tmp_path)
    content = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert content["control_period_s"] is None
    assert content["planning_ms"] == {"median": None, "p99": None}
    assert content["episodes"] == []


def test_a_failed_write_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(result_of(1), tmp_path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(result_of(2), tmp_path)
    assert len(read(tmp_path).episodes) == 1


def test_the_report_holds_figures_pictures_and_the_command(run: Path) -> None:
    essence = write_report(run, video=False)
    text = (run / "report.md").read_text()
    assert "best mean return of three episodes in a row" in text and "-800" in text
    assert "mbrl demo --task pendulum" in text and "abc" in text
    assert "report.md" in essence and "at least -250" in essence
    for picture in (CURVE, FORECAST):
        assert picture in text
        assert cv2.imread(str(run / picture)) is not None


def test_the_video_shows_the_last_episode(run: Path) -> None:
    reason = Simulator(Pendulum()).renderer_error()
    if reason:
        pytest.skip(reason)
    write_report(run)
    video = cv2.VideoCapture(str(run / VIDEO))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == STEPS + 1
    assert VIDEO in (run / "report.md").read_text()


def test_without_a_renderer_the_report_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    essence = write_report(run)
    assert "There is no video: " in essence and "There is no video: " in (run / "report.md").read_text()
    assert not (run / VIDEO).exists()


def test_a_task_that_cannot_tell_how_it_stood_is_not_filmed(tmp_path: Path) -> None:
    np.save(tmp_path / "seen.npy", np.zeros((3, 6)))
    reason = film("dm_control/reacher-easy", tmp_path / "seen.npy", 0.02, tmp_path / "video.webm")
    assert reason == "the observations of 'dm_control/reacher-easy' do not tell how it stood"


def test_a_run_that_was_interrupted_at_once_has_a_report(tmp_path: Path) -> None:
    write(result_of(0, finished=False), tmp_path)
    assert "No episode was recorded." in write_report(tmp_path)
    assert "an interrupted run" in (tmp_path / "report.md").read_text()


def test_a_run_without_a_model_has_a_report_without_a_forecast(tmp_path: Path) -> None:
    record(tmp_path, episodes=1)
    write(result_of(1), tmp_path)
    assert "There is no forecast: " in write_report(tmp_path, video=False)
    assert not (tmp_path / FORECAST).exists()


@pytest.mark.parametrize("damage", [b"", b"not a model"])
def test_a_damaged_model_is_told(run: Path, damage: bytes) -> None:
    (run / MODEL).write_bytes(damage)
    assert any("There is no forecast" in note for note in gather(run, read(run)).notes)


def test_a_recording_that_lost_its_end_is_read(run: Path) -> None:
    path = next((run / "dataset").glob("*.mcap"))
    path.write_bytes(path.read_bytes()[:-2000])
    assert len(gather(run, read(run)).observations) > 1


def test_the_last_episode_is_the_last_unbroken_run_of_states() -> None:
    spec = Pendulum().spec

    def state(episode: int, step: int) -> Transition:
        return Transition(b"w" * 16, episode, step, np.zeros(3), np.zeros(1), first=step == 0)

    told = [spec, state(0, 0), state(0, 1), state(0, 1), state(0, 2), state(0, 4), state(0, 5), state(1, 0)]
    found, episode = last_episode(told)
    assert found is spec
    assert [s.step for s in episode] == [4, 5]


def test_an_exact_model_foretells_what_happened() -> None:
    model = PointMass()
    spec = model.spec
    actions = np.random.default_rng(1).uniform(-2.0, 2.0, (30, 1))
    obs = [np.array([0.5, 0.0])]
    for action in actions:
        state = model.observe(None, None, {"vector": torch.tensor(obs[-1], dtype=torch.float32)[None]})
        scaled = torch.tensor(spec.scale_action(action), dtype=torch.float32)[None]
        obs.append(model.step(state, scaled).obs[0].double().numpy())
    forecasts = forecast(model, spec, np.stack(obs), actions, horizon=10)
    assert [f.start for f in forecasts] == [0, 10, 20]
    assert error_by_horizon(np.stack(obs), forecasts).max() < 1e-4
    assert all(f.spread.max() < 1e-5 for f in forecasts)


def test_every_task_says_what_counts_as_solved() -> None:
    assert set(DEMOS) == set(names("tasks"))
    for demo in DEMOS.values():
        assert not demo.solved([])
        assert demo.solved([1000.0] * 3)


def test_figures_that_cannot_be_told_yet_are_left_open() -> None:
    assert math.isnan(best_mean([1.0, 2.0], 3))
    assert best_mean([0.0, 3.0, 3.0, 3.0], 3) == 3.0
    assert best_within(result_of(3), 2 * STEPS) == -800.0
    rows = {row[0]: row[3] for row in goal_rows(result_of(0))}
    assert rows["planning time, median"] == "-"


def test_the_table_has_one_line_an_episode_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    episodes = result_of(3).episodes
    with RunTable("a run") as table:
        table.show(episodes[:1])
        table.show(episodes[:1])
        table.show([*episodes[:1], dataclasses.replace(episodes[1], holdout_error=math.nan)])
        table.show(episodes)
        table.finish(episodes)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a run" and all(heading in lines[1] for heading, _ in COLUMNS)
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3"]
    assert cells(1, episodes[0])[0] == "1 *"


# How much of an episode succeeded ---------------------------------------------------------------------------


class Above:
    """A task whose aim is an observation above zero."""

    def success(self, obs: np.ndarray) -> np.ndarray:
        return obs[..., 0] > 0.0


def states(episode: int, values: list[float], *, ends: bool = True) -> list[Transition]:
    last = len(values) - 1
    return [
        Transition(
            bytes(16), episode, k, np.array([v]), np.zeros(1), first=k == 0, truncated=ends and k == last
        )
        for k, v in enumerate(values)
    ]


def test_success_is_counted_over_the_steps_of_each_whole_episode() -> None:
    whole = states(0, [1.0, 1.0, -1.0, 1.0, -1.0])
    broken, again = states(1, [1.0, 1.0], ends=False), [*whole[:2], whole[1], *whole[2:], whole[-1]]
    other = states(2, [-1.0, 1.0, 1.0])
    assert success_shares(Above(), [*whole, *broken, *other]) == [0.5, 1.0]
    assert success_shares(Above(), [*again, *other]) == [0.5, 1.0], (
        "a State that was recorded twice counts once"
    )
    assert success_shares(Above(), []) == []


def test_a_run_is_rated_where_its_task_can_tell(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rate(run) == read(run), "this task cannot tell"
    monkeypatch.setattr(Pendulum, "success", Above.success, raising=False)
    assert rate(run) == read(run) == result_of(), "not all episodes were recorded"
    write(result_of(episodes=2), run)
    rated = rate(run)
    assert all(0.0 <= episode.success <= 1.0 for episode in rated.episodes)
    assert read(run) == rated
    told = json.loads((run / "result.json").read_text())["episodes"]
    assert [row["success"] for row in told] == [round(e.success, 6) for e in rated.episodes]


def test_reaching_is_judged_by_the_last_ten_episodes() -> None:
    share = next(goal for goal in DEMOS["arm_reach"].goals if goal.wanted == 0.8)
    rows = [Episode("exploit", 0.0, STEPS, success=s) for s in (0.0, *[0.5] * 5, *[1.0] * 5)]
    result = result_of(episodes=0)
    assert share.measure(dataclasses.replace(result, episodes=tuple(rows))) == pytest.approx(0.75)
    assert math.isnan(share.measure(dataclasses.replace(result, episodes=tuple(rows[:9]))))
    unknown = (*rows[:-1], Episode("exploit", 0.0, STEPS))
    assert share.reached(dataclasses.replace(result, episodes=unknown)) is None
