"""Keeps the processes of a stack alive where ROS's own `launch` is not installed; the manager is circus.

A process that dies is started again. One that ends with exit code 2 (a mistake of the user, which starting
again would only repeat) or that keeps dying takes the whole stack down.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from circus.arbiter import Arbiter
from circus.exc import ConflictError
from circus.process import DEAD_OR_ZOMBIE, RUNNING
from circus.process import Process as CircusProcess
from circus.watcher import Watcher

from mbrl_bringup.stack import Process
from mbrl_bringup.tether import tethered

GRACE = 5.0  # from SIGTERM to SIGKILL [s]
MAX_DEATHS = 5  # within DEATHS_WINDOW, after which a process is given up
DEATHS_WINDOW = 60.0  # [s]
_COLOURS = (36, 33, 35, 32, 34, 31)  # ANSI


class PrefixedStream:
    """Writes the output of one process line by line, each with the process's name in front."""

    def __init__(self, name: str, width: int, colour: int, out: TextIO) -> None:
        label = f"{name:>{width}} |"
        self._label = f"\033[{colour}m{label}\033[0m" if out.isatty() else label
        self._out, self._rest = out, b""

    def __call__(self, data: dict[str, Any]) -> None:
        """Write the whole lines; called by circus with what was read."""
        *lines, self._rest = (self._rest + data["data"]).split(b"\n")
        for line in lines:
            print(self._label, line.decode(errors="replace"), file=self._out, flush=True)

    def close(self) -> None:
        """Write what is left of an unfinished line."""
        if self._rest:
            self({"data": b"\n"})


class _Arbiter(Arbiter):
    """circus's, which complains when its periodic look at the processes falls into a start or a stop."""

    async def manage_watchers(self) -> None:
        """Start again what has died."""
        if not self._stopping and self._exclusive_running_command is None:
            await super().manage_watchers()


class _Child(CircusProcess):
    """A process whose death is told only when it can be reaped, so that its exit code is never lost.

    A killed process with many threads is a zombie for a while before all of it is gone; circus would forget
    it then without a word.
    """

    @property
    def status(self) -> Any:
        """As circus's, but a zombie still runs: `waitpid` says when it does not."""
        status = super().status
        return RUNNING if status == DEAD_OR_ZOMBIE else status


class _Watcher(Watcher):
    _process_class = _Child


class Supervisor:
    """Runs processes until SIGINT, SIGTERM or a failure that starting again cannot cure.

    Needs the main thread: circus installs its signal handlers and reaps all children of this process.
    """

    def __init__(self, processes: Sequence[Process], out: TextIO | None = None) -> None:
        self._processes, self._out = processes, out or sys.stdout
        self._deaths: dict[str, deque[float]] = {process.name: deque() for process in processes}
        self._exit_code = 0
        self._arbiter: Any = None
        self._stopping = False

    def run(self) -> int:
        """Start everything, and return when everything has ended.

        Returns:
            0 after a signal, 2 after a mistake of the user that a node found, 1 if a process kept dying.
        """
        logging.getLogger("circus").setLevel(logging.ERROR)
        private = Path(tempfile.mkdtemp(prefix="mbrl-"))  # two stacks on one machine never share a socket
        try:
            self._arbiter = _Arbiter(
                [self._watcher(i, process, private) for i, process in enumerate(self._processes)],
                endpoint=f"ipc://{private}/control",
                pubsub_endpoint=f"ipc://{private}/events",
                check_delay=0.5,
                proc_name="mbrl up",
            )
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # circus's own may lose a signal
                signal.signal(number, lambda *_: self._arbiter.loop.add_callback_from_signal(self._stop))
            self._arbiter.start()
        finally:
            shutil.rmtree(private, ignore_errors=True)
        return self._exit_code

    def _watcher(self, index: int, process: Process, private: Path) -> Watcher:
        command = tethered(process.command(_parameters_file(process, private)), os.getpid())
        width = max(len(p.name) for p in self._processes)
        stream = {"stream": PrefixedStream(process.name, width, _COLOURS[index % len(_COLOURS)], self._out)}
        return _Watcher(
            process.name,
            command[0],
            args=command[1:],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stop_signal=signal.SIGTERM,  # unlike SIGINT it ends a process quietly that is still starting
            graceful_timeout=GRACE,
            stdout_stream=stream,
            stderr_stream=stream,
            hooks={"after_reap": (self._after_reap, True)},
        )

    def _after_reap(self, watcher: Watcher, arbiter: Arbiter, exit_code: int | None, **_: Any) -> None:
        if watcher.is_stopping() or arbiter._stopping:
            return
        deaths, now = self._deaths[watcher.name], time.monotonic()
        deaths.append(now)
        while deaths[0] < now - DEATHS_WINDOW:
            deaths.popleft()
        if exit_code == 2:
            self._give_up(2, f"{watcher.name} ended with exit code 2: see its message above")
        elif len(deaths) >= MAX_DEATHS:
            self._give_up(1, f"{watcher.name} died {len(deaths)} times within {DEATHS_WINDOW:.0f} s")
        else:
            how = f"signal {-exit_code}" if exit_code and exit_code < 0 else f"exit code {exit_code}"
            self._say(f"{watcher.name} ended ({how}) and is started again")

    def _stop(self) -> None:
        if self._stopping:
            return
        try:
            self._arbiter.stop()
            self._stopping = True
        except ConflictError:  # circus does one thing at a time
            self._arbiter.loop.call_later(0.05, self._stop)

    def _give_up(self, exit_code: int, why: str) -> None:
        self._exit_code = exit_code
        self._say(f"error: {why}; stopping everything")
        self._arbiter.loop.add_callback(self._stop)

    def _say(self, text: str) -> None:
        print(f"mbrl: {text}", file=self._out, flush=True)


def main(arguments: list[str]) -> int:
    """Run the processes that are listed in a JSON file."""
    listed = json.loads(Path(arguments[0]).read_text())
    return Supervisor([Process(**{**entry, "remappings": _pairs(entry)}) for entry in listed]).run()


def _pairs(entry: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((source, target) for source, target in entry["remappings"])


def _parameters_file(process: Process, folder: Path) -> Path:
    """The parameters of one process as a ROS parameters file."""
    path = folder / f"{process.name}.yaml"
    path.write_text(process.parameters_yaml())
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
