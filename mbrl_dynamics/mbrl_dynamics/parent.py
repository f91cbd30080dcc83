"""Ties the life of a process to that of its parent. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def end_with(parent: int, by: signal.Signals) -> bool:
    """Let the kernel send this process a signal when its parent ends, however it ends.

    Args:
        parent: the process that started this one.
        by: the signal.

    Returns:
        Whether the parent lives: it may have ended before the tie was made.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by)
    return os.getppid() == parent


def outlive() -> None:
    """Undo `end_with`."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, 0)
