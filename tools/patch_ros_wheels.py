"""Makes the CMake files of the ROS wheels name this environment's include folders.

The wheels' exported targets name the Python and NumPy headers of the machine that built them, and CMake
refuses folders that do not exist. Running this twice changes nothing.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BAKED = (
    (re.compile(r"/opt/python/cp\d+-cp\d+/include/python3\.\d+"), sysconfig.get_paths()["include"]),
    (re.compile(r"/[^\s;\"<>]*/site-packages/numpy/_core/include"), numpy.get_include()),
)


def patch(text: str) -> str:
    """Return a CMake file's text with the folders of this environment."""
    for pattern, folder in BAKED:
        text = pattern.sub(folder.replace("\\", r"\\"), text)
    return text


if __name__ == "__main__":
    changed = 0
    for file in Path(sys.prefix, "share").glob("*/cmake/*.cmake"):
        old = file.read_text()
        if (new := patch(old)) != old:
            file.write_text(new)
            changed += 1
    print(f"{changed} CMake files now name {sys.prefix}")
