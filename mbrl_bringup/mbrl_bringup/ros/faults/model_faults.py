"""Model updates that are cut, altered, replayed, for another robot, too large, or not what they seem."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mbrl_bringup.ros.faults.learner_child import MODEL, SPEC
from mbrl_bringup.ros.faults.outcome import Outcome
from mbrl_bringup.ros.faults.rig import PLANNER, quiet_domain
from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.models.ensemble import Ensemble
from mbrl_dynamics.ros.convert import snapshot_to_msg, spec_to_msg, time_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, wait_until
from mbrl_dynamics.ros.testing import Peer, peer, start_node
from mbrl_dynamics.snapshot import MAX_BYTES, Snapshot, check, restore
from mbrl_msgs.msg import ModelStatus, ModelUpdate, Spec

RISE = 50e6  # of memory [bytes]
WORLD = bytes(range(16))


def good(version: int, run_id: str = "run", seed: int = 0) -> Snapshot:
    """An update that is as it should be."""
    return snapshots.pack(
        Ensemble(SPEC, MODEL, seed=seed), model_id="ensemble", run_id=run_id, version=version
    )


def signed(update: Snapshot, weights: bytes) -> Snapshot:
    """With other bytes, and the digest that belongs to them."""
    return replace(update, weights=weights, sha256=hashlib.sha256(weights).hexdigest())


def forged(update: Snapshot, **changes: object) -> Snapshot:
    """With other words in the message and in the manifest alike, and the digest that belongs to them."""
    tensors, manifest = snapshots.from_bytes(update.weights)
    weights = snapshots.to_bytes(tensors, manifest | changes)
    return signed(replace(update, **changes), weights)  # type: ignore[arg-type]


def by_offset(update: Snapshot, stride: int, seed: int) -> Iterator[Snapshot]:
    """Cut and altered at offsets, with the digest that was told and, where it is cut, with the true one."""
    random, data = np.random.default_rng(seed), update.weights
    for offset in range(0, len(data), stride):
        altered = bytearray(data)
        altered[offset] ^= 1 << int(random.integers(8))
        yield replace(update, weights=data[:offset])
        yield signed(update, data[:offset])
        yield replace(update, weights=bytes(altered))


def crafted(incumbent: Snapshot, mark: Path) -> Iterator[Snapshot]:
    """Replayed, of another robot, too large, with a pickle inside, with promises that cannot be kept."""
    update = good(incumbent.version + 1)
    yield from (incumbent, good(incumbent.version), good(0))  # replayed
    yield forged(update, dynamics_hash="0" * 64)
    yield forged(update, model_id="os:system")
    yield replace(update, dynamics_hash=SPEC.dynamics_hash[::-1])
    program = f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode()
    yield signed(update, program)  # a pickle that runs a program where it is loaded
    yield signed(update, update.weights + program)
    yield signed(update, len(program).to_bytes(8, "little") + program)
    yield forged(update, architecture=program.decode())
    for size in (1, 10_000, 50_000):  # layers that take up to 20 GB, told by a message of a few kB
        config = json.loads(update.architecture) | {"hidden": [size, size, size]}
        yield forged(update, architecture=json.dumps(config, sort_keys=True, separators=(",", ":")))
    config = json.loads(update.architecture) | {"hidden": [1] * 100_000}
    yield forged(update, architecture=json.dumps(config, sort_keys=True, separators=(",", ":")))
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    yield signed(update, len(header).to_bytes(8, "little") + header)
    yield signed(update, (1 << 62).to_bytes(8, "little") + bytes(64))
    for value in (float("nan"), float("inf"), -float("inf")):
        yield poisoned(update, value)


def poisoned(update: Snapshot, value: float, number: int = 0) -> Snapshot:
    """With one weight that is no number."""
    tensors, manifest = snapshots.from_bytes(update.weights)
    name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[number % 5]
    tensors[name].view(-1)[0] = value
    return signed(update, snapshots.to_bytes(tensors, manifest))


def core(outcome: Outcome, stride: int, seed: int) -> None:
    """Against what every node asks before it takes an update: `check`, then `restore`."""
    torch.set_num_threads(1)
    incumbent = good(3)
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "executed")
        before = _memory(os.getpid())
        for update in by_offset(good(4), stride, seed):
            outcome.tried(*_accepted(update, incumbent))
        for update in crafted(incumbent, mark):
            outcome.tried(*_accepted(update, incumbent), *_risen(before, os.getpid()))
            outcome.figures["memory_rise_MB"] = _rise(before, os.getpid())
        huge = signed(good(4), bytes(MAX_BYTES + 1))
        before = _memory(os.getpid())
        outcome.tried(*_accepted(huge, incumbent), *_risen(before, os.getpid()))
        outcome.tried(*["a program was run"] * mark.exists())
        outcome.tried(*[] if _accepted(good(4), incumbent) else ["even a good update is refused"])


def _accepted(update: Snapshot, incumbent: Snapshot) -> list[str]:
    """A sentence if an update would be taken, or breaks what looks at it."""
    if check(update, SPEC, model_id="ensemble", current=incumbent):
        return []
    try:
        restore(update, SPEC)
    except ValueError:
        return []
    return [f"accepted: {update}"[:200]]


def _memory(pid: int) -> int:
    """The most that a process has had in memory so far [bytes]."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def _rise(before: int, pid: int) -> float:
    return round((_memory(pid) - before) / 1e6, 1)


def _risen(before: int, pid: int) -> list[str]:
    rise = _memory(pid) - before
    return [f"memory rose by {rise / 1e6:.0f} MB"] if rise > RISE else []


class Planner:
    """planner_node with a good model, and what it says about updates."""

    def __init__(self, me: Peer, *, announce: bool = True) -> None:
        if announce:  # nobody else is the world
            self._spec = me.node.create_publisher(Spec, "spec", LATCHED_QOS)
            self._spec.publish(spec_to_msg(SPEC, WORLD))
        self.statuses = me.listen(ModelStatus, "model_status", LATCHED_QOS)
        self._updates = me.publisher(ModelUpdate, "model_update", LATCHED_QOS)

    def offer(self, update: Snapshot) -> ModelStatus | None:
        """Publish an update; the status with the verdict on it, None if there is none."""
        before = self._verdicts()
        self._updates.publish(snapshot_to_msg(update, time_msg(0.0)))
        return self.statuses[-1] if wait_until(lambda: self._verdicts() > before, 3.0, 0.002) else None

    def _verdicts(self) -> int:
        """Updates that were taken or refused so far."""
        return self.statuses[-1].swaps + self.statuses[-1].refused if self.statuses else 0


def over_dds(outcome: Outcome, poisons: int, seed: int) -> None:
    """The same to planner_node as a process: some of each kind, and weights that are no numbers."""
    parameters = {"task": "cartpole_swingup", "no_model": "safe"}
    with quiet_domain(), start_node(PLANNER, parameters) as node, peer() as me:
        planner, incumbent = Planner(me), good(3)
        planner.offer(incumbent)
        if not wait_until(lambda: planner.statuses[-1].in_use, 60.0):
            outcome.tried("even a good update is refused")
            return
        swaps = planner.statuses[-1].swaps
        mark = Path(tempfile.gettempdir(), f"mbrl_executed_{os.getpid()}")
        before = _memory(node.pid)
        updates = list(crafted(incumbent, mark))
        updates += [poisoned(good(4 + n), (np.nan, np.inf)[n % 2], n) for n in range(poisons)]
        updates += by_offset(good(4), 97, seed)
        for update in updates:
            said = planner.offer(update)
            faults = ["planner_node has ended"] * (not node.alive)
            if said is not None and said.swaps != swaps:
                swaps = said.swaps
                faults.append(f"accepted: {update}"[:200])
            outcome.tried(*faults, *_risen(before, node.pid) if node.alive else [])
            if not node.alive or time.monotonic() > outcome.deadline:
                break
        outcome.tried(*["a program was run"] * mark.exists())
        outcome.figures |= {
            "memory_rise_MB": _rise(before, node.pid) if node.alive else None,
            "refused": said.refused if said else -1,
        }
