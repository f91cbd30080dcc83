"""Processes live and die together: nothing is left behind, whoever ends, and however."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mbrl_bringup.stack import Process
from mbrl_bringup.tether import tethered
from mbrl_dynamics.ros.testing import NodeProcess, eventually

PROGRAM = """
import signal, sys, time
stop = []
if "--deaf" not in sys.argv:
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
else:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("started", flush=True)
if "--exit" in sys.argv:
    sys.exit(int(sys.argv[sys.argv.index("--exit") + 1]))
while not stop:
    time.sleep(0.02)
print("ended well", flush=True)
"""


@pytest.fixture
def supervise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Starts a supervisor of stand-ins for nodes; each stand-in's name and arguments are given."""
    (tmp_path / "stand_in.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    started: list[NodeProcess] = []

    def start(**arguments: list[str]) -> NodeProcess:
        processes = [
            Process(name=name, package="p", executable="e", module="stand_in", arguments=tuple(given))
            for name, given in arguments.items()
        ]
        listing = tmp_path / "listing.json"
        listing.write_text(json.dumps([dataclasses.asdict(process) for process in processes]))
        started.append(NodeProcess([sys.executable, "-m", "mbrl_bringup.supervisor", str(listing)]))
        return started[-1]

    yield start
    for process in started:
        with process:
            pass


def children(process: NodeProcess) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def all_started(process: NodeProcess, count: int) -> list[psutil.Process]:
    eventually(lambda: process.output.count("started") >= count, "the stand-ins did not start")
    return children(process)


def gone(family: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_in_order(supervise, number: int) -> None:
    supervisor = supervise(a=[], b=[])
    family = all_started(supervisor, 2)
    assert supervisor.stop(number) == 0
    assert gone(family)
    assert supervisor.output.count("ended well") == 2


def test_a_second_signal_changes_nothing(supervise) -> None:
    supervisor = supervise(a=[], b=[])
    all_started(supervisor, 2)
    supervisor.kill(signal.SIGINT)
    assert supervisor.stop(signal.SIGINT) == 0
    assert "Traceback" not in supervisor.output


def test_the_output_of_each_process_bears_its_name(supervise) -> None:
    supervisor = supervise(sim=[], planner=[])
    all_started(supervisor, 2)
    supervisor.stop()
    assert "    sim | started" in supervisor.output
    assert "planner | started" in supervisor.output


def test_a_killed_process_is_started_again(supervise) -> None:
    supervisor = supervise(a=[], b=[])
    family = all_started(supervisor, 2)
    family[0].kill()
    eventually(lambda: supervisor.output.count("started again") == 1, "nobody noticed")
    eventually(lambda: len(children(supervisor)) == 2, "it was not started again")
    assert family[1] in children(supervisor)
    assert supervisor.stop() == 0


def test_a_process_that_ignores_the_signal_is_killed(supervise) -> None:
    supervisor = supervise(a=["--deaf"], b=[])
    family = all_started(supervisor, 2)
    assert supervisor.stop() == 0
    assert gone(family)


def test_a_mistake_of_the_user_is_not_repeated(supervise) -> None:
    supervisor = supervise(a=["--exit", "2"], b=[])
    assert supervisor.wait() == 2
    assert "a ended with exit code 2" in supervisor.output


def test_a_process_that_keeps_dying_takes_the_stack_down(supervise) -> None:
    supervisor = supervise(a=["--exit", "1"], b=[])
    assert supervisor.wait() == 1
    assert "a died 5 times" in supervisor.output


def test_a_killed_supervisor_leaves_nothing_behind(supervise) -> None:
    supervisor = supervise(a=[], b=[])
    family = all_started(supervisor, 2)
    assert supervisor.stop(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: gone(family), "orphans are left")


def test_two_stacks_do_not_meet(supervise) -> None:
    first, second = supervise(a=[]), supervise(a=[])
    all_started(first, 1)
    all_started(second, 1)
    assert first.stop() == 0
    assert second.alive
    assert second.stop() == 0


def test_what_is_tied_to_a_parent_that_is_gone_does_not_start() -> None:
    with NodeProcess(tethered(["echo", "hello"], 1 << 22)) as process:
        assert process.wait() == 1
        assert "hello" not in process.output
