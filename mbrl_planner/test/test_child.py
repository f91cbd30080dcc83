"""Processes that take long to load: nothing is left of them, and Ctrl-C is not theirs to answer.

Mutations that these tests notice: no tie to the parent; a tie that stays; SIGINT not ignored.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mbrl_dynamics.ros.testing import eventually

PARENT = """
import sys
from mbrl_planner.pipe import start
process, link = start("slow")
print(process.pid, flush=True)
sys.stdin.read()
"""
LOADING = "import time\nprint('loading', flush=True)\ntime.sleep(1000)\n"
LOADED = """
import socket, sys, time
def main(arguments):
    link = socket.socket(fileno=int(arguments[0]))
    print('loaded', flush=True)
    link.recv(1)
    time.sleep(0.5)  # its work
    print('done', flush=True)
    return 0
"""


def begin(folder: Path, module: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A parent whose child runs the module, once that has said a word."""
    (folder / "slow.py").write_text(module)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline() in ("loading\n", "loaded\n")
    return parent, child


def over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_is_still_loading_dies_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    parent, child = begin(tmp_path, LOADING)
    with parent:
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert not over(child)
        parent.send_signal(number)
        parent.wait()
        eventually(lambda: over(child), "the child is left")


def test_one_that_is_loaded_ends_its_work(tmp_path: Path) -> None:
    parent, child = begin(tmp_path, LOADED)
    with parent:
        child.send_signal(signal.SIGINT)
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        assert parent.stdout.readline() == "done\n"
        eventually(lambda: over(child), "the child is left")
