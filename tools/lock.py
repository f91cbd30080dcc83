"""Writes requirements/lock.txt: the exact version of everything that is installed, as pip constraints.

Run it with `make lock` after changing requirements/*.txt and running the tests.
"""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements" / "lock.txt"
HEADER = "# Every package of the environment at the version that was tested; made by `make lock`.\n"


def installed() -> dict[str, str]:
    """Names and versions of what pip installed (the workspace and the parts of ROS wheels are not its)."""
    found = {}
    for distribution in distributions():
        if distribution.read_text("INSTALLER") and distribution.name != "pip":
            # A local label such as "+cpu" names a build of the same version.
            found[distribution.name] = distribution.version.partition("+")[0]
    return found


if __name__ == "__main__":
    packages = installed()
    lines = [f"{name}=={packages[name]}\n" for name in sorted(packages, key=str.lower)]
    LOCK.write_text(HEADER + "".join(lines))
    print(f"{LOCK}: {len(lines)} packages")
