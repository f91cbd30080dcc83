"""Loads a module that takes seconds to load, and runs its `main`; dies with its parent until it is loaded.

    python -m mbrl_planner.child PARENT_PID MODULE [ARGUMENT ...]

Once it is loaded, it is told of its parent's end by the socket between them, and may finish its work. Linux
only.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def main(arguments: list[str]) -> int:
    """Run the process."""
    parent, module = int(arguments[0]), arguments[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends us
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the tie was made
        return 1
    loaded = importlib.import_module(module)
    libc.prctl(_PR_SET_PDEATHSIG, 0)
    return int(loaded.main(arguments[2:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
