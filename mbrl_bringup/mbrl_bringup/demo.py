"""`mbrl demo`: a run folder, the whole stack, episodes until the task is learned, and a report.

This module starts and stops the processes; ros/session.py talks to them, report.py draws what came of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import yaml

from mbrl_bringup.goals import Demo, demo_of
from mbrl_bringup.nodes import MPC, TELEOP, model_kind
from mbrl_bringup.result import Result, command_line, commit_id, machine_name, write
from mbrl_bringup.stack import Process, StackConfig, configured, default_run_dir, resolve
from mbrl_bringup.supervisor import GRACE
from mbrl_bringup.tether import tethered
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError

FAILED, INTERRUPTED = 1, 130  # exit codes


@config
class DemoConfig:
    """The arguments of `mbrl demo` beside those of the stack."""

    episodes: Annotated[
        int, Field(ge=0, description="how many, the first one random; 0 = as the task says")
    ] = 0
    early_stop: Annotated[
        bool | None, Field(description="stop as soon as the task is solved; unset = as the task says")
    ] = None
    seeds: Annotated[
        str,
        Field(
            pattern=r"^(\d+(,\d+)*)?$", description="run several seeds one after another, for example 0,1,2"
        ),
    ] = ""
    runs: Annotated[str, Field(description="folder in which each run makes a folder of its own")] = "runs"
    video: Annotated[bool, Field(description="whether to film the last episode")] = True
    out: Annotated[str, Field(description="also write the result to this file (JSON); empty = no")] = ""


@dataclass
class StopFlag:
    """Set by SIGINT, SIGTERM and SIGHUP; however often they come."""

    raised: bool = False
    _before: dict[int, Any] = field(default_factory=dict)

    def install(self) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._raise)

    def __call__(self) -> bool:
        """Whether the user wants to end."""
        return self.raised

    def _raise(self, *_: Any) -> None:
        self.raised = True


@dataclass(frozen=True)
class Run:
    """One run: its folder, what it runs, and how it is demonstrated."""

    folder: Path
    stack: StackConfig
    processes: list[Process]
    demo: Demo
    began: float  # time.monotonic() [s]
    result: Result


def prepare(arguments: Mapping[str, Any], options: DemoConfig, began: float) -> Run:
    """Check everything, and make the folder of the run.

    Raises:
        UserError: see `resolve`; nothing has been made.
    """
    stack = configured(arguments)
    if stack.agent == TELEOP:
        raise UserError("a demonstration shows what learns; a person acts in `mbrl up --agent teleop`")
    resolve(arguments)
    demo = demo_of(stack.task, stack.agent)
    if options.episodes:
        demo = dataclasses.replace(demo, episodes=options.episodes)
    if options.early_stop is not None:
        demo = dataclasses.replace(demo, early_stop=options.early_stop)
    folder = new_folder(Path(options.runs), stack.task)
    arguments = {**arguments, "run_dir": str(folder), "episodes": 0}
    if stack.robot:  # who lets it learn from nothing, and arms it, wants it to move
        arguments["no_model"] = "random"
    processes, stack = resolve(arguments), configured(arguments)
    (folder / "config.yaml").write_text(resolved_yaml(stack, processes))
    result = Result(
        task=stack.task,
        seed=stack.seed,
        agent=stack.agent,
        model=model_kind(stack),
        planner=stack.planner if stack.agent == MPC else "",
        control_period_s=float("nan"),
        commit=commit_id(),
        machine=machine_name(),
        command=command_line(sys.argv[1:]),
    )
    write(result, folder)
    return Run(folder, stack, processes, demo, began, result)


def new_folder(runs: Path, task: str) -> Path:
    """Make runs/<time>-<task>/; two runs that begin within one second get two folders."""
    first = runs.absolute() / Path(default_run_dir(task, time.localtime())).name
    for folder in (first, *(first.with_name(f"{first.name}-{i}") for i in range(2, 100))):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(first)


def resolved_yaml(stack: StackConfig, processes: list[Process]) -> str:
    """The arguments and every process with its whole configuration, defaults included."""
    content = {
        "arguments": {entry.name: getattr(stack, entry.name) for entry in dataclasses.fields(stack)},
        "processes": [
            {
                "name": process.full_name,
                "package": process.package,
                "executable": process.executable,
                "remappings": [f"{source}:={target}" for source, target in process.remappings],
                "parameters": dict(process.configuration or process.parameters),
            }
            for process in processes
        ],
    }
    return yaml.safe_dump(content, sort_keys=False)


@contextmanager
def running(processes: list[Process], folder: Path) -> Iterator[Callable[[], int | None]]:
    """The processes, supervised by a process of its own, from here to the end of the block.

    Yields:
        A function that returns the supervisor's exit code, None while it runs.
    """
    listing = folder / ".processes.json"
    listing.write_text(json.dumps([dataclasses.asdict(process) for process in processes]))
    command = [sys.executable, "-m", "mbrl_bringup.supervisor", str(listing)]
    with (folder / "log.txt").open("ab") as log:
        supervisor = subprocess.Popen(
            tethered(command, os.getpid()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C on the terminal is for us alone; we end the others in order
        )
        try:
            yield supervisor.poll
        finally:
            _end(supervisor)
            listing.unlink(missing_ok=True)


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """End a supervisor with all that it started."""
    if supervisor.poll() is None:
        family = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.terminate()
        try:
            supervisor.wait(GRACE + 3.0)
        except subprocess.TimeoutExpired:
            for process in [*family, psutil.Process(supervisor.pid)]:
                if process.is_running():
                    process.kill()
            supervisor.wait()


def last_lines(folder: Path, count: int = 15) -> str:
    """The end of a run's log."""
    try:
        return "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""
