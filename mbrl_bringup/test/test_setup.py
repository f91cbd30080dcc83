"""What the set-up says where it cannot go on: one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The workspace as a fresh clone would have it."""
    made = shutil.ignore_patterns(".*", "__pycache__", "build", "install", "log", "runs", "results")
    return Path(shutil.copytree(ROOT, tmp_path / "clone", ignore=made))


def make(clone: Path, target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make as in a shell that has sourced nothing."""
    ours = ("AMENT_PREFIX_PATH", "MAKEFLAGS", "MAKELEVEL", "PYTHONPATH", "PIP_FIND_LINKS", "CXX", "PYTHON")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {"PIP_CONFIG_FILE": os.devnull, **environment}
    return subprocess.run(
        ["make", target],
        cwd=clone,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )


def sentence(process: subprocess.CompletedProcess[str]) -> str:
    """The one sentence on the standard error, beside make's own line."""
    assert process.returncode != 0
    (line,) = [line for line in process.stderr.splitlines() if not line.startswith("make")]
    assert line.startswith("mbrl: ")
    assert line.endswith(".")
    return line


def program(path: Path, says: str) -> str:
    """An executable that prints a text, whatever it is asked."""
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


def test_missing_compiler(clone: Path) -> None:
    told = sentence(make(clone, "demo", CXX="/nonexistent/c++"))
    assert "compiler" in told
    assert not (clone / ".venv").exists(), "nothing was begun"


def test_python_that_is_too_old(clone: Path, tmp_path: Path) -> None:
    old = program(tmp_path / "python3.8", "is Python 3.8, but 3.11 or newer is needed")
    assert "Python 3.8" in sentence(make(clone, "test", PYTHON=old))


def test_no_python_at_all(clone: Path) -> None:
    assert "3.11 or newer" in sentence(make(clone, "test", PYTHON="/nonexistent/python3"))


def test_no_network_and_then_the_same_command_again(clone: Path) -> None:
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_NO_CACHE_DIR": "1"}
    first = make(clone, "demo", **offline)
    assert "network" in sentence(first)
    assert "[1/3]" in first.stdout
    second = make(clone, "demo", **offline)
    assert "network" in sentence(second)
    assert "[1/3]" not in second.stdout, "the environment of the first attempt is used again"
