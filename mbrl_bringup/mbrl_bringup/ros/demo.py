"""`mbrl demo`, put together: prepare, run, end everything, report; whatever happens in between."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl_bringup.demo import FAILED, INTERRUPTED, DemoConfig, Run, StopFlag, last_lines, prepare, running
from mbrl_bringup.report import write_report
from mbrl_bringup.result import Result, atomic_write
from mbrl_bringup.ros.client import RunFailed, Stopped
from mbrl_bringup.ros.session import Session
from mbrl_bringup.success import rate


def run_demo(arguments: Mapping[str, Any], options: DemoConfig, began: float) -> int:
    """Demonstrate a task with one seed, or with several one after another.

    Args:
        arguments: of the stack.
        options: of the demonstration.
        began: when the command was given, on the monotonic clock [s].

    Returns:
        The exit code: 0, 1 if the run could not go on, 130 if the user ended it.

    Raises:
        UserError: an argument is wrong; nothing was started.
    """
    stop = StopFlag()
    stop.install()
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else [None]
    results: list[Result] = []
    code = 0
    for seed in seeds:
        given = dict(arguments) if seed is None else {**arguments, "seed": seed}
        run = prepare(given, options, began)
        code, result = _run(run, options, stop)
        results.append(result)
        if options.out:
            _write_out(Path(options.out), results, many=bool(options.seeds))
        if code:
            break
        began = time.monotonic()
    return code


def _run(run: Run, options: DemoConfig, stop: StopFlag) -> tuple[int, Result]:
    code = 0
    try:
        with running(run.processes, run.folder) as exited:
            session = Session(run, stop, exited)
            try:
                session.play()
            except Stopped:
                code = INTERRUPTED
                print("stopping; what was done is kept", flush=True)
            except RunFailed as error:
                code = FAILED
                print(f"error: {error}\n{last_lines(run.folder)}", file=sys.stderr, flush=True)
    finally:
        result = rate(run.folder)
        print(write_report(run.folder, video=options.video), flush=True)
    return code, result


def _write_out(path: Path, results: list[Result], *, many: bool) -> None:
    """The results as committed under docs/results/: one object, or a list."""
    content: Any = [result.as_json() for result in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content if many else content[0], indent=2) + "\n")
