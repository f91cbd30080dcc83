"""What every node has: an end that a second signal does not spoil, and neighbours that soon know of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import mbrl_dynamics.ros.node

LATE = """
import os, signal, sys
from mbrl_dynamics.ros.node import BaseNode, run

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.{}):
        kill(pid, number)

late, BaseNode.stopping = Late(), True
sys.exit(run(lambda: BaseNode("short_lived"), ["--ros-args", "-r", "__ns:=/end"]))
"""
EARLY = """
import os, signal, sys, time
from mbrl_dynamics.ros.node import BaseNode, run

class Slow(BaseNode):
    def __init__(self):
        super().__init__("slow")
        os.kill(os.getpid(), signal.{0})
        try:
            os.kill(os.getpid(), signal.{0})  # launch signals twice
            time.sleep(1000.0)
        except Exception:
            print("taken for a fault")

sys.exit(run(Slow, ["--ros-args", "-r", "__ns:=/early"]))
"""
PROFILE = """
import os
from mbrl_dynamics.ros.node import BaseNode, run

BaseNode.stopping = True
run(lambda: BaseNode("short_lived"))
print(os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE"))
"""
OWN = Path(mbrl_dynamics.ros.node.__file__).with_name("discovery.xml")


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_while_python_ends_changes_nothing(name: str) -> None:
    done = run(LATE.format(name))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_node_that_is_still_being_made_is_given_up_at_once(name: str) -> None:
    done = run(EARLY.format(name))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("variable", ["", "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"])
def test_fast_dds_announces_a_node_often_unless_the_user_has_a_profile(variable: str, tmp_path: Path) -> None:
    other = tmp_path / "mine.xml"
    other.write_text(OWN.read_text())
    done = run(PROFILE, **({variable: str(other)} if variable else {}))
    expected = {"": str(OWN), "FASTDDS_DEFAULT_PROFILES_FILE": str(other)}.get(variable, "None")
    assert done.stdout.split() == [expected] and "XML" not in done.stderr


def test_the_profile_is_what_it_says() -> None:
    space = "{http://www.eprosima.com}"
    often = next(ElementTree.parse(OWN).getroot().iter(f"{space}leaseAnnouncement"))
    assert [(part.tag.removeprefix(space), part.text) for part in often] == [
        ("sec", "0"),
        ("nanosec", "100000000"),
    ]
