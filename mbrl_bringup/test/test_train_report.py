"""What a training shows: scalars for TensorBoard, the terminal, the report, and what a model imagines."""

from __future__ import annotations

import io
import json
import math
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboardX.proto import event_pb2

from mbrl_bringup import imagination, playback, plots, train_report, training_result
from mbrl_bringup.evaluation import Evaluation
from mbrl_bringup.plots import error_by_horizon
from mbrl_bringup.report import CURVE, FORECAST
from mbrl_bringup.result import command_line
from mbrl_bringup.scalars import Scalars
from mbrl_bringup.tally import Tally
from mbrl_bringup.train import Training
from mbrl_bringup.train_config import TrainConfig
from mbrl_bringup.train_report import STRIP, VIDEO, write_report
from mbrl_bringup.train_show import Board, Narrator
from mbrl_bringup.training_result import TrainingResult
from mbrl_dynamics.models.rssm import RSSM, RSSMConfig
from mbrl_dynamics.spec import Camera, Spec
from mbrl_dynamics.testing import PointMass
from mbrl_dynamics.transition import Transition

TINY = {"deter": 8, "hidden": 8, "groups": 2, "classes": 2, "layers": 1, "head_layers": 1, "bins": 11}


def events(path: Path) -> Iterator[event_pb2.Event]:
    """The records of an event file: length, its checksum, an Event, its checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack_from("<Q", data)
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [
        (event.step, value.simple_value)
        for path in sorted(folder.glob("events.out.tfevents.*"))
        for event in events(path)
        for value in event.summary.value
        if value.tag == tag
    ]


def told(frames: int, **more: float) -> dict[str, float]:
    return {"env_steps": frames / 5, "frames": frames, "updates": 2 * frames, **more}


def result_of(marks: int = 2, **changes: object) -> TrainingResult:
    result = TrainingResult("pendulum", "sac", 0, 0.05, 1, commit="abc", command="mbrl train --agent sac")
    result.evaluations = [
        Evaluation(500 * i, 500 * i, 60.0 * i, [-900.0 + i, -700.0 + i], 100 * i) for i in range(1, marks + 1)
    ]
    result.episodes = [(-1000.0 + i, 200) for i in range(3 * marks)]
    result.env_steps = 500 * marks
    for name, value in changes.items():
        setattr(result, name, value)
    return result


# Scalars ----------------------------------------------------------------------------------------------------


def test_scalars_are_event_files_over_frames(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path, period=0.0)
    scalars("episode", told(1000, **{"return": 5.0, "steps": 200, "episode": 1}))
    scalars("update", told(1000, critic_loss=0.5))
    scalars("update", told(1005, critic_loss=math.nan))
    scalars("fit", told(1005, holdout_error=0.25))
    scalars("evaluation", told(2000, score=7.0, spread=1.0))
    scalars.close()
    assert curve(tmp_path, "episode/return") == [(1000, 5.0)]
    assert curve(tmp_path, "agent/critic_loss") == [(1000, 0.5)]
    assert curve(tmp_path, "model/holdout_error") == [(1005, 0.25)]
    assert curve(tmp_path, "evaluation/score") == [(2000, 7.0)]


def test_metrics_of_updates_are_thinned_and_nothing_else_is(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path, period=1000.0)
    for frame in range(20):
        scalars("update", told(frame, value=1.0))
        scalars("episode", told(frame, **{"return": 1.0}))
    scalars.close()
    assert [step for step, _ in curve(tmp_path, "agent/value")] == [0]
    assert len(curve(tmp_path, "episode/return")) == 20


def test_a_training_that_goes_on_takes_back_what_is_learned_again(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path, axis="updates")
    scalars("evaluation", told(300, score=1.0))
    scalars.close()
    (path,) = tmp_path.iterdir()
    starts = [e for e in events(path) if e.session_log.status == event_pb2.SessionLog.START]
    assert [event.step for event in starts] == [600], "TensorBoard drops what it has from there on"
    assert curve(tmp_path, "evaluation/score") == [(600, 1.0)]


def test_nothing_heard_nothing_written(tmp_path: Path) -> None:
    Scalars(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


# The terminal -----------------------------------------------------------------------------------------------

STORY = (
    ("episode", told(200, **{"return": -5.0, "steps": 200, "episode": 1})),
    ("fit", told(200, holdout_error=0.1234, train_loss=-1.0, fit_seconds=2.0)),
    ("update", told(200, critic_loss=0.5, updates_per_s=123.4)),
    ("evaluation", told(200, score=7.25, spread=0.5)),
)


def test_plain_lines_where_nobody_watches() -> None:
    out = io.StringIO()
    narrator = Narrator(out)
    for kind, values in STORY:
        narrator(kind, values)
    narrator.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "\x1b" not in out.getvalue()
    assert "return      -5.0" in lines[0] and "held-out error 0.1234" in lines[1]
    assert all(text in lines[2] for text in ("EVALUATION     7.2 ± 0.5", "critic_loss 0.5", "123 updates/s"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    board = Board("pendulum: sac", out)
    for kind, values in STORY:
        board(kind, values)
    board.close()
    shown = out.getvalue()
    assert all(text in shown for text in ("pendulum: sac", "7.2 ± 0.5", "critic_loss 0.5", "held-out error"))


# Results and the report -------------------------------------------------------------------------------------


def test_a_result_survives_the_way_through_its_file(tmp_path: Path) -> None:
    result = result_of(settings={"frames": 9}, events=["a loss was not finite"], finished=True)
    result.write(tmp_path)
    again = training_result.read(tmp_path)
    assert again.as_json() == {**result.as_json(), "planning_ms": again.as_json()["planning_ms"]}
    assert [mark.updates for mark in again.evaluations] == [100, 200]


def test_the_tally_of_worlds_side_by_side() -> None:
    def state(world: bytes, step: int, reward: float = 1.0, *, last: bool = False) -> Transition:
        key = (world * 16, 0, step)
        return Transition(*key, np.zeros(1), np.zeros(1), reward, first=not step, truncated=last)

    tally = Tally()
    story = [state(b"a", 0), state(b"b", 0), state(b"a", 1), state(b"b", 1, 5.0), state(b"c", 1, last=True)]
    assert not any(tally.hear(s) for s in story)
    assert tally.hear(state(b"b", 2, 5.0, last=True)) and tally.hear(state(b"a", 2, last=True))
    assert tally.episodes == [(10.0, 2), (2.0, 2)]


def test_the_report_has_curve_marks_settings_and_command(tmp_path: Path) -> None:
    result_of(settings={"sac.hidden": "[8]"}, events=["something odd"]).write(tmp_path)
    assert train_report.is_training(tmp_path)
    essence = write_report(tmp_path, play=False)
    text = (tmp_path / "report.md").read_text()
    assert "| 1000 | 1000 | 200 | 2.0 | -798.0 | 100.0 | -898.0 | -698.0 |" in text
    assert all(part in text for part in ("mbrl train --agent sac", "sac.hidden: '[8]'", "- something odd"))
    assert "an interrupted training" in text and "report.md" in essence
    assert cv2.imread(str(tmp_path / CURVE)) is not None


def test_a_training_that_was_interrupted_at_once_has_a_report(tmp_path: Path) -> None:
    result_of(0).write(tmp_path)
    assert "No episode could be played: " in write_report(tmp_path)
    assert not (tmp_path / CURVE).exists()


@pytest.mark.parametrize("image_size", [0, 16])
def test_a_world_model_is_shown_by_what_it_imagines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_size: int
) -> None:
    from mbrl_sim.simulator import Simulator
    from mbrl_sim.tasks.pendulum import Pendulum

    reason = Simulator(Pendulum()).renderer_error()
    if image_size and reason:
        pytest.skip(reason)
    given = {f"dreamer.{name}": str(value) for name, value in TINY.items()}
    given |= {"dreamer.random_steps": "60", "dreamer.replay_ratio": "0.02", "dreamer.length": "8"}
    given |= {"dreamer.batch_size": "2", "dreamer.image_depth": "2"}
    settings = TrainConfig(
        agent="dreamer", task="pendulum", frames=100, eval_every=100, eval_episodes=1, image_size=image_size
    )
    monkeypatch.setattr("sys.argv", ["mbrl", "train"])
    result = Training(settings, tmp_path, given).run()
    arguments = {"agent": "dreamer", "task": "pendulum", "image_size": image_size}
    (tmp_path / "train.yaml").write_text(json.dumps({"arguments": arguments, "parameters": given}))
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"Its return is {result.evaluations[-1].returns[0]:.1f}." in text, "another episode was played"
    assert FORECAST in text and "of the observation" in text
    assert (STRIP in text) == bool(image_size)
    if not reason:
        assert VIDEO in text
        film = cv2.VideoCapture(str(tmp_path / VIDEO))
        assert film.read()[0] and film.get(cv2.CAP_PROP_FRAME_WIDTH) == playback.FILM_SIZE


# What a model imagines --------------------------------------------------------------------------------------


def episode_of(model: PointMass, steps: int = 30) -> list[Transition]:
    """An episode that goes exactly as the model says."""
    world, rng = uuid.uuid4().bytes, np.random.default_rng(1)
    states = [Transition(world, 0, 0, np.array([0.5, 0.0]), np.zeros(1), first=True)]
    for step in range(1, steps + 1):
        action = rng.uniform(-2.0, 2.0, 1)
        seen = {"vector": torch.tensor(states[-1].observation).float()[None]}
        scaled = torch.from_numpy(model.spec.scale_action(action)).float()[None]
        after = model.step(model.observe(None, None, seen), scaled).obs[0]
        states.append(Transition(world, 0, step, after.double().numpy(), action, 0.0))
    return states


def test_an_exact_model_imagines_what_happened() -> None:
    model = PointMass()
    states = episode_of(model)
    found = imagination.forecasts(model, model.spec, states, horizon=10)
    assert [forecast.start for forecast in found] == [0, 10, 20]
    assert error_by_horizon(np.stack([s.observation for s in states]), found).max() < 1e-4
    assert imagination.strip(model, model.spec, states) == []


def test_a_strip_begins_where_it_should_and_knows_what_came_before(tmp_path: Path) -> None:
    spec = PointMass().spec
    seeing = Spec(
        spec.task, spec.observation, spec.action, spec.control_period, cameras=(Camera("eye", 16, 16),)
    )
    torch.manual_seed(0)
    model = RSSM(seeing, RSSMConfig(image_depth=2, **TINY))
    states = [
        Transition(
            s.world_id, 0, s.step, s.observation, s.action, 0.0, first=s.first,
            images={"eye": np.full((16, 16, 3), 8 * s.step, np.uint8)},
        )
        for s in episode_of(PointMass())
    ]  # fmt: skip
    (strip,) = imagination.strip(model, seeing, states, start=5, every=3, count=4)
    assert (strip.camera, strip.start, list(strip.times)) == ("eye", 5, [0, 3, 6, 9])
    assert [int(frame[0, 0, 0]) for frame in strip.happened] == [40, 64, 88, 112]
    assert all(frame.shape == (16, 16, 3) and frame.dtype == np.uint8 for frame in strip.imagined)
    (late,) = imagination.strip(model, seeing, states[-15:], start=5, every=3, count=4)
    assert not np.array_equal(late.imagined[0], strip.imagined[0])
    plots.imagined_strip([strip], 0.05, tmp_path / STRIP)
    assert cv2.imread(str(tmp_path / STRIP)) is not None
    (whole,) = imagination.strip(model, seeing, states[:20])  # too short for the usual place
    assert whole.start == 0


def test_the_recorded_command_does_not_say_where_its_results_went() -> None:
    given = ["train", "--agent=svg", "--runs", "/home/me/runs", "--out=all.json", "-p", "svg.hidden:=[8, 8]"]
    assert command_line(given) == "mbrl train --agent=svg -p 'svg.hidden:=[8, 8]'"
