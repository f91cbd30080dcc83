"""Runs the fault campaign and writes build/faults.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mbrl_bringup.result import atomic_write, commit_id
from mbrl_bringup.ros.faults.campaign import FAULTS, inflict


def main() -> int:
    """Returns 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m mbrl_bringup.ros.faults", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer trials, in under 15 minutes (the default)")
    size.add_argument("--full", action="store_true", help="all of them")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/faults.json"))
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was started is ended
        signal.signal(number, lambda *_: sys.exit(1))
    begin, tried, load = time.monotonic(), commit_id(), os.getloadavg()[1]
    wanted = [fault for fault in FAULTS if arguments.only in fault.name]
    faults: list[dict[str, Any]] = []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for fault in wanted:
        faults.append(inflict(fault, arguments.full, arguments.seed))
        result = {
            "faults": faults,
            "full": arguments.full,
            "seed": arguments.seed,
            "duration_s": round(time.monotonic() - begin, 1),
            "machine": machine() | {"load_before": round(load, 2)},
            "commit": tried,
        }
        atomic_write(arguments.out, json.dumps(result, indent=2) + "\n")  # each time: all of them take long
    print(f"written to {arguments.out}")
    return int(any(fault["failures"] for fault in faults))


def machine() -> dict[str, Any]:
    """What this runs on, and how busy it is with other things."""
    cores, load = len(os.sched_getaffinity(0)), round(os.getloadavg()[1], 2)
    return {"cores": cores, "load": load, "system": platform.platform(), "python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main())
