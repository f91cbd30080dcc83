"""Which models are in use: judged and built beside the act path, the last two good ones kept. No ROS."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.gate_process import GateLost
from mbrl_planner.model_gate import RECENT, Build, Finding, Kept, try_out

WATCH_PERIOD = 1.0  # between two looks at the model in use [s]


class Gate(Protocol):
    """What judges. See GateProcess."""

    def begin(self, spec: Spec, kept: list[Snapshot]) -> None:
        """Judge for this world, knowing these good models, the one in use last."""
        ...

    def hear(self, state: Transition) -> None:
        """What happened."""
        ...

    def judge(self, snapshot: Snapshot) -> Finding:
        """Whether an update is good."""
        ...

    def watch(self) -> Finding:
        """Whether the model in use still is."""
        ...

    def close(self) -> None:
        """End."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What became of an update, or of the model in use.

    Attributes:
        snapshot: of the model.
        model: to be used from now on; None = it was refused.
        reason: why it was refused; or, with a model, why the one after it is given up.
    """

    snapshot: Snapshot
    model: Model | None
    reason: str = ""


class ModelShelf:
    """Has updates judged in the order in which they come, and builds the good ones, in a worker thread.

    Args:
        spec: what a model must have been trained on.
        build: makes the model of an update.
        gate: judges; everything but `close` is called from the worker.
        ready: called from the worker whenever `take` has something.

    Attributes:
        error: of the model in use on the newest States [standard deviations of a change]; None = unknown.
        trouble: what went wrong beside the models, in one sentence; empty = nothing.
    """

    def __init__(self, spec: Spec, build: Build, gate: Gate, ready: Callable[[], None]) -> None:
        self.error: float | None = None
        self.trouble = ""
        self._spec, self._build, self._gate, self._ready = spec, build, gate, ready
        self._told: Spec | None = None  # what the gate was told to judge for
        self._kept: list[Kept] = []  # the last two good models, the one in use last
        self._last: Snapshot | None = None  # newest one that came
        self._offered: deque[Snapshot] = deque()
        self._heard: deque[Transition] = deque(maxlen=RECENT)
        self._verdicts: deque[Verdict] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="model-shelf", daemon=True)
        self._worker.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Hand in an update; returns at once."""
        with self._wake:
            self._offered.append(snapshot)
            self._wake.notify()

    def hear(self, state: Transition) -> None:
        """What happened; returns at once."""
        self._heard.append(state)

    def take(self) -> list[Verdict]:
        """What was decided since the last call, oldest first."""
        verdicts = []
        while self._verdicts:
            verdicts.append(self._verdicts.popleft())
        return verdicts

    def use_spec(self, spec: Spec) -> None:
        """Another world: accept models of its dynamics only, and look at the newest update again."""
        with self._wake:
            self._spec, self._kept = spec, []
            self._heard.clear()
            if self._last is not None and not self._offered:
                self._offered.append(self._last)
            self._wake.notify()

    def begin_again(self) -> None:
        """The gate is to judge otherwise than before."""
        self._told = None

    def close(self) -> None:
        """End worker and gate."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._gate.close()
        self._worker.join(timeout=5.0)

    def _work(self) -> None:
        # One thread: a second pool of OpenMP threads in a process makes both pools sleep between operations,
        # and planning twice as slow (measured: 34 instead of 19 ms).
        torch.set_num_threads(1)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._offered or self._closed, timeout=WATCH_PERIOD)
                if self._closed:
                    return
                spec, new = self._spec, self._offered.popleft() if self._offered else None
                self._last = new or self._last
            try:
                verdict = self._look(spec, new)
            except GateLost as lost:
                if self._closed:
                    return
                self._told = None
                self.trouble = str(lost)
                verdict = None if new is None else Verdict(new, None, f"{new.name} cannot be used: {lost}")
            with self._wake:
                if verdict is None or spec is not self._spec:
                    continue  # where the world changed meanwhile, the newest update was offered again
                if verdict.model is not None:
                    kept = [] if verdict.reason else self._kept[-1:]
                    self._kept = [*kept, Kept(verdict.snapshot, verdict.model)]
                self._verdicts.append(verdict)
            self._ready()

    def _look(self, spec: Spec, new: Snapshot | None) -> Verdict | None:
        """What to make of an update, or of the model in use where none came; None = nothing."""
        kept = self._kept
        if new is None and not (kept and self._heard):
            return None
        if spec is not self._told:
            self._gate.begin(spec, [k.snapshot for k in kept])
            self._told = spec
        while self._heard:
            self._gate.hear(self._heard.popleft())
        if new is None:
            return self._watch(kept)
        used = kept[-1].snapshot if kept else None
        if used is not None and (used.run_id, used.version, used.sha256) == (
            new.run_id,
            new.version,
            new.sha256,
        ):
            return None
        finding = self._heed(self._gate.judge(new))
        if finding.reason:
            return Verdict(new, None, finding.reason)
        try:
            model = self._build(new, spec)
            try_out(model, new.name)
        except Exception as error:  # whatever is wrong with a received model must not end the worker
            self._told = None  # the gate thinks that it is in use
            return Verdict(new, None, f"{new.name} cannot be used: {error}")
        return Verdict(new, model)

    def _watch(self, kept: list[Kept]) -> Verdict | None:
        finding = self._heed(self._gate.watch())
        if not finding.reason:
            return None
        return Verdict(kept[0].snapshot, kept[0].model, finding.reason)

    def _heed(self, finding: Finding) -> Finding:
        self.trouble = finding.trouble
        if not finding.reason or finding.error is not None:
            self.error = finding.error
        return finding
