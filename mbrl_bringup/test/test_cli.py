"""The `mbrl` command: what it understands, and what bad input gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mbrl_bringup.cli import main
from mbrl_bringup.stack import StackConfig
from mbrl_dynamics.config import describe
from mbrl_dynamics.plugins import names


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("up", "demo", "report", "status", "list"))


def test_help_of_up_describes_every_argument_of_the_stack(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["up", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in describe(StackConfig):
        assert f"--{field.name.replace('_', '-')}" in text
        assert field.description in text


def test_list_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for kind in ("tasks", "planners", "models") for name in names(kind))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["upp"], "unknown command 'upp' (did you mean 'up'?)"),
        (
            ["up", "--task", "nope"],
            "unknown task 'nope'; valid: adroit_pen, arm_reach, arm_reach_obstacle, cartpole_pets",
        ),
        (
            ["up", "task:=nope"],
            "unknown task 'nope'; valid: adroit_pen, arm_reach, arm_reach_obstacle, cartpole_pets",
        ),
        (["up", "--tusk", "pendulum"], "unknown argument 'tusk' (did you mean 'task'?)"),
        (["up", "--seed"], "--seed"),
        (["up", "--seed=-1"], "'seed' is '-1'"),
        (["up", "--real_time_factor", "fast"], "'real_time_factor' is 'fast'"),
        (["up", "--mode", "fast"], "it should be 'lockstep', 'realtime' or 'free'"),
        (["demo", "--episodes", "few"], "'episodes' is 'few'"),
        (["demo", "--seeds", "0,x"], "'seeds' is '0,x'"),
        (["demo", "--planner", "nope"], "unknown planner 'nope'; valid: cem, "),
        (["report", "/"], "it holds no result.json"),
        (["report"], "folder"),
        (["status", "--wait", "long"], "'wait' is 'long'"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert sentence in shown.err
    assert list(tmp_path.iterdir()) == [], "something was made"


def test_the_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mbrl_bringup.cli", "up", "--task", "nope"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "unknown task 'nope'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
