"""The learner is killed while it writes; its disk is full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from mbrl_bringup.ros.faults.judge import Heard, decoded, histogram
from mbrl_bringup.ros.faults.learner_child import LENGTH, MODEL, SPEC
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import LEARNER, Rig, rig
from mbrl_bringup.ros.faults.stand_in import Order
from mbrl_dynamics import checkpoint
from mbrl_dynamics.episodes import EpisodeStore, files, read
from mbrl_dynamics.models.ensemble import Ensemble
from mbrl_dynamics.ros.node import wait_until
from mbrl_dynamics.ros.testing import NodeProcess
from mbrl_dynamics.transition import Transition

LOST = 1.0  # data of so long may be lost [s]
CHAIN = 10  # learners that go on in the same folder, one after another
REAL = {"threads": 1, "fit_steps": 50, "train_every_steps": 20}


def killed(outcome: Outcome, trials: int, seed: int) -> None:
    """SIGKILL to a learner that records and writes checkpoints all the time."""
    random = np.random.default_rng(seed)
    lost: list[float] = []
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "mbrl_bringup.ros.faults.learner_child"]
        parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            for first in range(0, trials, CHAIN):
                with tempfile.TemporaryDirectory() as name:
                    for number in outcome.rounds(min(CHAIN, trials - first)):
                        wait = random.uniform(0.0, 0.4)
                        outcome.tried(*_killed(parent, Path(name), first + number, wait, lost))
        finally:
            parent.kill()
            parent.wait()
    outcome.figures |= {"lost_s": histogram(lost), "acknowledged_states_lost": sum(x > 0 for x in lost)}


def _killed(parent: subprocess.Popen, folder: Path, number: int, wait: float, lost: list[float]) -> list[str]:
    """What is wrong with what one learner leaves, in a sentence."""
    assert parent.stdin and parent.stdout
    world, told = number.to_bytes(16, "big"), folder / "told"
    told.unlink(missing_ok=True)
    parent.stdin.write(json.dumps({"folder": str(folder), "world": world.hex()}) + "\n")
    parent.stdin.flush()
    pid = int(parent.stdout.readline())
    if not wait_until(lambda: told.exists() and told.stat().st_size > 0, 60.0, 0.002):
        os.kill(pid, signal.SIGKILL)
        return ["the learner does not begin"]
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10.0, 0.001)
    try:
        found = [
            r
            for r in read(folder / "dataset", ["state"])
            if isinstance(r, Transition) and r.world_id == world
        ]
        checkpoint.load(folder / "checkpoint", Ensemble(SPEC, MODEL), "ensemble")
        EpisodeStore(folder / "dataset", SPEC).close()  # gives the file its end
    except Exception as error:
        return [f"unreadable: {error}"]
    if [state.episode * LENGTH + state.step for state in found] != list(range(len(found))):
        return ["the States that are found do not follow one another"]
    missing = told.read_text().splitlines()[len(found) :]
    lost.append(end - float(missing[0].split()[1]) if missing else 0.0)
    return [f"data of {lost[-1]:.2f} s are lost"] if lost[-1] > LOST else []


def killed_real(outcome: Outcome, trials: int, seed: int) -> None:
    """The same with dynamics_node beside a robot that moves; the recorder says what it should have."""
    random = np.random.default_rng(seed)
    lost: list[float] = []
    with rig(trip_after=2.0) as (robot, processes):
        processes.start(Order())
        folder = robot.folder / "run"
        where = {"dataset": str(folder / "dataset"), "checkpoint": str(folder / "checkpoint")}
        for _ in outcome.rounds(trials):
            learner = robot.start(LEARNER, REAL | where)
            robot.learners.clear()
            robot.need(partial(_records, robot), "nothing is recorded")
            time.sleep(random.uniform(0.0, 3.0))
            hit = time.monotonic()
            learner.kill()
            learner.wait()
            outcome.tried(*_complete(robot, folder, hit, lost))
    outcome.figures["lost_s"] = histogram(lost)


def _records(robot: Rig) -> bool:
    """Whether the learner has taken more than what it found."""
    said = robot.learners
    return robot.keep_moving() and bool(said) and said[-1].transitions > said[0].transitions + 10


def _complete(robot: Rig, folder: Path, hit: float, lost: list[float]) -> list[str]:
    try:
        states = [r for r in read(folder / "dataset", ["state"]) if isinstance(r, Transition)]
        EpisodeStore(folder / "dataset", SPEC).close()
    except Exception as error:
        return [f"unreadable: {error}"]
    newest = (states[-1].episode, states[-1].step)
    missing = [one for one in robot.record.update().states if one.time < hit and _place(one) > newest]
    lost.append(hit - missing[0].time if missing else 0.0)
    return [f"data of {lost[-1]:.2f} s are lost"] if lost[-1] > LOST else []


def _place(state: Heard) -> tuple[int, int]:
    return state.said[1], state.said[2]


def disk(outcome: Outcome, trials: int, seed: int) -> None:
    """dynamics_node on a full disk, and with folders that cannot be written, beside a robot that moves."""
    ways = (_file_too_large, _disk_full, _checkpoint_in_a_file)
    with rig(trip_after=2.0) as (robot, processes):
        processes.start(Order(seed=seed))
        for number in outcome.rounds(trials):
            robot.moving()
            robot.learners.clear()
            with ways[number % len(ways)](robot, robot.folder / f"run{number}") as learner:
                robot.need(partial(_complains, robot), "no error is told")
                robot.moving()
                begin = time.monotonic()
                robot.need(partial(_goes_on, robot, begin), "no commands")
                faults = robot.limits.faults(robot.commands(begin))
                if not learner.alive:
                    faults.append("the learner has ended")
                outcome.tried(*faults[:1])
                told = next(said.error_msg for said in reversed(robot.learners) if said.error_msg)
                outcome.figures.setdefault("told", {})[ways[number % len(ways)].__name__.strip("_")] = told
                learner.stop(signal.SIGTERM)
        outcome.figures["readable"] = all(_readable(path) for path in robot.folder.glob("run*/dataset"))


def _complains(robot: Rig) -> bool:
    return robot.keep_moving() and any(said.error_msg for said in robot.learners)


def _goes_on(robot: Rig, begin: float) -> bool:
    return robot.keep_moving() and sum(decoded(c.said[0]) is not None for c in robot.commands(begin)) > 20


def _readable(folder: Path) -> bool:
    return all(isinstance(record, object) for record in read(folder)) and bool(files(folder))


def _file_too_large(robot: Rig, folder: Path) -> NodeProcess:
    """The system refuses to let any file grow beyond 60 kB."""
    return _wrapped(robot, folder, ["prlimit", "--fsize=60000"])


def _disk_full(robot: Rig, folder: Path) -> NodeProcess:
    """A disk of 64 kB of its own; where that cannot be mounted, as above."""
    folder.mkdir()
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=64k none {folder} && exec "$@"', "-"]
    if subprocess.run([*mount, "true"], check=False, capture_output=True).returncode or not shutil.which(
        "unshare"
    ):
        return _file_too_large(robot, folder)
    return _wrapped(robot, folder, mount)


def _checkpoint_in_a_file(robot: Rig, folder: Path) -> NodeProcess:
    """The checkpoint's folder cannot be made, since a device is in its place."""
    return _wrapped(robot, folder, [], checkpoint="/dev/full/checkpoint")


def _wrapped(robot: Rig, folder: Path, prefix: list[str], **changes: str) -> NodeProcess:
    where = {"dataset": str(folder / "dataset"), "checkpoint": str(folder / "checkpoint")}
    command = [*prefix, sys.executable, "-m", LEARNER, "--ros-args"]
    return NodeProcess(command, REAL | where | changes)
