"""Chooses how MuJoCo draws. Must run before MuJoCo is imported, which looks at MUJOCO_GL only once."""

from __future__ import annotations

import ctypes
import os
import sys

_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
_OFF = ("disable", "disabled", "off", "false", "0")  # as MuJoCo understands it


def choose_backend() -> str:
    """Set MUJOCO_GL to something that this machine has, unless the user chose.

    Returns:
        Why nothing can be drawn, in one sentence; empty if it probably can.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen in _LIBRARIES and not _loads(_LIBRARIES[chosen]):
        os.environ["MUJOCO_GL"] = "disable"  # importing MuJoCo would fail altogether
        return f"MUJOCO_GL is '{chosen}', but {_LIBRARIES[chosen]} is not installed"
    if chosen in _OFF:
        return f"MUJOCO_GL is '{chosen}'"
    if chosen:
        return ""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return ""  # MuJoCo's default: a hidden window
    for backend, library in _LIBRARIES.items():
        if _loads(library):
            if "mujoco" in sys.modules:
                return f"MuJoCo was imported before mbrl_sim, and without MUJOCO_GL={backend}"
            os.environ["MUJOCO_GL"] = backend
            return ""
    os.environ["MUJOCO_GL"] = "disable"
    return f"there is no display, and neither of {' and '.join(_LIBRARIES.values())} is installed"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
