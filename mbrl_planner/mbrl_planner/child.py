"""Loads a module that takes seconds to load, and runs its `main`; dies with its parent until it is loaded.

    python -m mbrl_planner.child PARENT_PID MODULE [ARGUMENT ...]

Once it is loaded, it is told of its parent's end by the socket between them, and may finish its work. Linux
only.
"""

from __future__ import annotations

import importlib
import signal
import sys

from mbrl_dynamics.parent import end_with, outlive


def main(arguments: list[str]) -> int:
    """Run the process."""
    parent, module = int(arguments[0]), arguments[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends us
    if not end_with(parent, signal.SIGKILL):
        return 1
    loaded = importlib.import_module(module)
    outlive()
    return int(loaded.main(arguments[2:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
