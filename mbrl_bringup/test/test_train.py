"""`mbrl train`: it learns, goes on after SIGKILL on the same curve, and refuses what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mbrl_bringup.cli import main
from mbrl_bringup.tally import Tally
from mbrl_dynamics.episodes import EpisodeStore, read
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_sim.tasks.pendulum import Pendulum

SMALL = ("hidden:=[8]", "batch_size:=8", "random_steps:=20", "replay_ratio:=0.2")


def small(agent: str = "sac", **options: Any) -> list[str]:
    """Arguments of a training that takes seconds."""
    given = {"task": "pendulum", "frames": 400, "eval_every": 200, "eval_episodes": 2, **options}
    arguments = ["train", "--agent", agent, *(f"--{k.replace('_', '-')}={v}" for k, v in given.items())]
    parameters = [f"{agent}.{text}" for text in SMALL]
    if agent == "mbpo":
        parameters += ["ensemble.members:=2", "ensemble.hidden:=[8]", "mbpo.branches:=20"]
    return [*arguments, "--no-video", *(word for text in parameters for word in ("-p", text))]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "mbrl_bringup.cli", *arguments], start_new_session=True)


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def result_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)
    return content


def marks_of(folder: Path) -> list[dict[str, Any]]:
    marks: list[dict[str, Any]] = result_of(folder)["evaluation"]["marks"]
    return marks


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def until(condition: Callable[[], Any], what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own, on one thread, with its signal handlers put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of sac on the pendulum; not to be changed."""
    base = tmp_path_factory.mktemp("trained")
    assert start([*small(), f"--runs={base / 'runs'}"]).wait(120) == 0
    return only(base / "runs")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


# It trains --------------------------------------------------------------------------------------------------


def test_a_training_leaves_result_checkpoint_dataset_and_report(trained: Path) -> None:
    result = result_of(trained)
    assert result["finished"] and result["frames"] == 400 and result["agent"] == "sac"
    assert [mark["frames"] for mark in marks_of(trained)] == [200, 400]
    assert all(len(mark["returns"]) == 2 for mark in marks_of(trained))
    assert [episode["steps"] for episode in result["episodes"]] == [200, 200]
    assert result["score"] == marks_of(trained)[-1]["score"]
    assert marks_of(trained)[-1]["updates"] == 80  # the replay ratio times the steps
    steps = [r for r in read(trained / "dataset", ("state",)) if isinstance(r, Transition) and not r.first]
    assert len(steps) == 400
    assert (trained / "checkpoint" / "agent.safetensors").is_file()
    assert "learning_curve.png" in (trained / "report.md").read_text()


def test_the_same_seed_gives_the_same_curve(trained: Path, tmp_path: Path) -> None:
    assert main(small(out=tmp_path / "out.json")) == 0
    again = json.loads((tmp_path / "out.json").read_text())
    assert again == result_of(only(tmp_path / "runs"))
    assert [m["returns"] for m in again["evaluation"]["marks"]] == [m["returns"] for m in marks_of(trained)]


def test_demonstrations_are_imitated_and_must_be_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "agent 'bco' has nothing to imitate" in refused(small("bco"), capsys)
    assert not (tmp_path / "runs").exists()
    shown = [
        "-p",
        f"bco.demonstrations:={trained / 'dataset'}",
        "-p",
        "bco.fit_steps:=50",
        "-p",
        "bco.alpha:=5",
    ]
    assert main([*small("bco"), *shown]) == 0
    result = result_of(only(tmp_path / "runs"))
    assert result["finished"] and result["agent"] == "bco"
    assert [mark["frames"] for mark in result["evaluation"]["marks"]] == [200, 400]


def test_worlds_in_processes_of_their_own(tmp_path: Path) -> None:
    children = psutil.Process().children()
    assert main(small(worlds=2, frames=410)) == 0
    assert psutil.Process().children() == children
    result = result_of(only(tmp_path / "runs"))
    assert [episode["steps"] for episode in result["episodes"]] == [200, 200]
    assert result["frames"] == 410
    tally = Tally()
    for state in read(only(tmp_path / "runs") / "dataset", ("state",)):
        assert isinstance(state, Transition)
        tally.hear(state)
    assert [round(total, 3) for total, _ in tally.episodes] == [e["return"] for e in result["episodes"]]


def test_an_agent_with_a_model(tmp_path: Path) -> None:
    assert main([*small("mbpo"), "--fit-steps=40"]) == 0
    folder = only(tmp_path / "runs")
    assert result_of(folder)["model"] == "ensemble" and result_of(folder)["reward"] == "known"
    assert (folder / "model.safetensors").is_file()
    report = (folder / "report.md").read_text()
    assert "predicted_against_happened.png" in report and "without looking again" in report


@pytest.mark.slow
def test_seeds_in_two_processes_make_one_file(tmp_path: Path) -> None:
    assert main([*small(frames=200), "--seeds=3,1", "--jobs=2", f"--out={tmp_path / 'all.json'}"]) == 0
    results = json.loads((tmp_path / "all.json").read_text())
    assert [result["seed"] for result in results] == [1, 3]
    assert results[0]["score"] != results[1]["score"]
    assert all(result["finished"] for result in results)


# It goes on -------------------------------------------------------------------------------------------------


def test_a_killed_training_goes_on_the_same_curve(tmp_path: Path) -> None:
    process = start(small(frames=100_000))
    until(lambda: list(tmp_path.glob("runs/*/result.json")), "no evaluation came")
    folder = only(tmp_path / "runs")
    until(lambda: len(marks_of(folder)) >= 2, "no second evaluation came")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = result_of(folder)
    states = [r for r in read(folder / "dataset", ("state",)) if isinstance(r, Transition)]
    seen = sum(not state.first for state in states)
    ended = sum(state.last for state in states)
    more = (seen // 200 + 2) * 200
    assert main(["train", "--resume", str(folder), f"--frames={more}"]) == 0

    after, marks = result_of(folder), marks_of(folder)
    assert (
        marks[: len(marks_of(folder)) and len(before["evaluation"]["marks"])] == before["evaluation"]["marks"]
    )
    frames = [mark["frames"] for mark in marks]
    assert frames == sorted(set(frames)), "a mark came twice"
    assert {frame // 200 for frame in frames} == set(range(1, more // 200 + 1)), "a mark is missing"
    assert after["frames"] == more and after["finished"]
    now = [r for r in read(folder / "dataset", ("state",)) if isinstance(r, Transition)]
    assert [s.key for s in now[: len(states)]] == [s.key for s in states], "what was seen has changed"
    assert len({state.key for state in now}) == len(now), "a State was recorded twice"
    assert sum(not state.first for state in now) == more
    assert len(after["episodes"]) == sum(state.last for state in now) > ended
    assert marks[-1]["updates"] == int(0.2 * more), "gradient steps were lost or made twice"
    assert marks[-1]["wall_s"] > before["wall_s"]
    assert after["command"] == before["command"]


def test_nothing_more_is_done_to_a_training_that_is_complete(run: Path) -> None:
    before = result_of(run)
    weights = (run / "checkpoint" / "agent.safetensors").read_bytes()
    assert main(["train", "--resume", str(run)]) == 0
    after = result_of(run)
    assert after["evaluation"] == before["evaluation"] and after["episodes"] == before["episodes"]
    assert (run / "checkpoint" / "agent.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_an_interrupted_training_leaves_everything_sound(tmp_path: Path) -> None:
    process = start([*small(frames=100_000, worlds=2), f"--out={tmp_path / 'out.json'}"])
    until(lambda: list(tmp_path.glob("runs/*/result.json")), "no evaluation came")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal: the worlds' processes hear it as well
    assert process.wait(60) == 130
    folder = only(tmp_path / "runs")
    result = result_of(folder)
    assert not result["finished"] and result["frames"] > 0
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert "an interrupted training" in (folder / "report.md").read_text()
    until(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), "a world was left")
    more = (result["frames"] // 200 + 1) * 200
    assert main(["train", "--resume", str(folder), f"--frames={more}", "--worlds=1"]) == 0
    assert result_of(folder)["frames"] >= more and result_of(folder)["finished"]


@pytest.mark.slow
def test_seeds_end_with_the_command(tmp_path: Path) -> None:
    process = start([*small(frames=100_000), "--seeds=0,1,2", "--jobs=2", f"--out={tmp_path / 'all.json'}"])
    until(lambda: len(list(tmp_path.glob("runs/*-seeds/*/result.json"))) == 2, "no evaluation came")
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(60) == 130
    assert not any(p.is_running() and p.status() != "zombie" for p in family)
    assert len(list(tmp_path.glob("runs/*-seeds/*pendulum*"))) == 2, "the third seed was begun"


# Offline ----------------------------------------------------------------------------------------------------


def test_learning_offline_from_what_was_recorded(trained: Path, tmp_path: Path) -> None:
    before = content_of(trained)
    assert main([*small(), f"--offline={trained / 'dataset'}", "--updates=40"]) == 0
    folder = only(tmp_path / "runs")
    result = result_of(folder)
    assert [mark["updates"] for mark in marks_of(folder)] == list(range(4, 41, 4))
    assert {mark["frames"] for mark in marks_of(folder)} == {400}
    assert result["episodes"] == [] and result["finished"]
    assert not list(folder.glob("dataset/*.mcap"))
    assert content_of(trained) == before
    assert main(["train", "--resume", str(folder), "--updates=60"]) == 0
    updates = [mark["updates"] for mark in marks_of(folder)]
    assert updates == sorted(set(updates)) and updates[-1] == 60


def other_world(folder: Path) -> Path:
    """A dataset of a world with two observations more."""
    spec = Pendulum().spec
    more = (Element("left", "m", -1.0, 1.0), Element("right", "m", -1.0, 1.0))
    wide = Spec("other", (*spec.observation, *more), spec.action, spec.control_period)
    store = EpisodeStore(folder, wide)
    for step in range(3):
        store.add(Transition(b"w" * 16, 0, step, np.zeros(5), np.zeros(1), 0.0, first=step == 0))
    store.close()
    return folder


# What does not fit ------------------------------------------------------------------------------------------


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a command that fails with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    return shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--agent=sacc"], "unknown agent 'sacc' (did you mean 'sac'?)"),
        (["--agent=sac", "--task=pendulun"], "unknown task 'pendulun' (did you mean 'pendulum'?)"),
        (["--agent=sac", "--frames=0"], "'frames' is '0'"),
        (["--agent=sac", "--frame=9"], "unknown argument 'frame' (did you mean 'frames'?)"),
        (["--agent=sac", "-p", "sac.hiden:=[8]"], "unknown parameter 'sac.hiden' (did you mean 'hidden'?)"),
        (["--agent=sac", "-p", "sac.critics:=0"], "'sac.critics' is 0"),
        (["--agent=sac", "-p", "mbpo.critics:=2"], "unknown parameter 'mbpo.critics'; valid: sac.*"),
        (["--agent=sac", "-p", "sac.critics=2"], "must be name:=value"),
        (["--agent=sac", "--seeds=1,b"], "'seeds' is '1,b'"),
        (["--agent=sac", "--resume=nowhere"], "'nowhere' is not the folder of a training"),
        (["--agent=sac", "--resume=nowhere", "--seeds=1,2"], "not both"),
        (["--agent=sac", "--offline=nowhere"], "the dataset 'nowhere' holds no steps to learn from"),
        (["--agent=sac", "--device=cuda:77"], "cuda"),
        (["--agent=sac", "--params-file=no.yaml"], "no.yaml"),
        (["--agent=dyna_q", "--task=pendulum"], "discrete"),
    ],
)
def test_a_mistake_gets_one_sentence_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert sentence in refused(["train", "--task=pendulum", *arguments], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_kind_is_refused_and_stays_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content_of(run)
    resume = ["train", "--resume", str(run)]
    assert "is of agent 'sac', not 'svg'" in refused([*resume, "--agent=svg"], capsys)
    assert "is of task 'pendulum', not 'cartpole_swingup'" in refused(
        [*resume, "--task=cartpole_swingup"], capsys
    )
    assert "where its architecture wants" in refused([*resume, "-p", "sac.hidden:=[16]"], capsys)
    assert content_of(run) == before


def test_a_checkpoint_of_another_kind_is_refused_and_stays_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").unlink()  # only the checkpoint tells
    memory = run / "train.yaml"
    for agent, task, sentence in (
        ("sac", "cartpole_swingup", "of task 'pendulum', but 'cartpole_swingup' is wanted"),
        ("mve", "pendulum", "is of agent 'sac', but 'mve' is wanted"),
    ):
        text = memory.read_text()
        changed = text.replace("sac", agent).replace("pendulum", task)
        memory.write_text(changed)
        before = content_of(run)
        assert sentence in refused(["train", "--resume", str(run)], capsys)
        assert content_of(run) == before
        memory.write_text(text)


@pytest.mark.parametrize(
    ("damage", "sentence"), [(b"", "not a safetensors file"), (b"not a checkpoint", "not a safetensors file")]
)
def test_a_damaged_checkpoint_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], damage: bytes, sentence: str
) -> None:
    (run / "checkpoint" / "agent.safetensors").write_bytes(damage)
    before = content_of(run)
    assert sentence in refused(["train", "--resume", str(run)], capsys)
    assert content_of(run) == before


def test_a_dataset_that_teaches_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no steps to learn from" in refused([*small(), "--offline=empty"], capsys)
    other_world(tmp_path / "other")
    shown = refused([*small(), "--offline=other"], capsys)
    assert "task 'other' (5 observations, 1 actions" in shown
    assert "task 'pendulum' (3 observations, 1 actions" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "other"]
