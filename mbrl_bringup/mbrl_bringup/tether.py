"""Runs a program that must not outlive its parent.

    python -m mbrl_bringup.tether PARENT_PID PROGRAM [ARGUMENT ...]

If the parent dies in a way that it cannot answer (SIGKILL, a crash), the kernel sends SIGTERM to the program,
which then ends as cleanly as after Ctrl-C. Linux only.
"""

from __future__ import annotations

import os
import signal
import sys

from mbrl_dynamics.parent import end_with


def tethered(command: list[str], parent: int) -> list[str]:
    """A command line that runs `command` tied to the life of the process `parent`, which must start it."""
    return [sys.executable, "-m", "mbrl_bringup.tether", str(parent), *command]


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, and become the program; does not return."""
    parent, command = int(arguments[0]), arguments[1:]
    if not end_with(parent, signal.SIGTERM):
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
