"""The acting side of the process that judges models: starts it, asks it, and survives it. No ROS.

A process, since judging in a thread would share the interpreter's lock with the decisions (measured: they
take 1.4 to 2 times as long beside it, and as long as ever beside the process); and because a model that
exhausts the memory or crashes then ends that one.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mbrl_dynamics import wire
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.model_gate import Finding
from mbrl_planner.pipe import NOBODY, Message, how, message_of, receive, send, start

BEGIN, STATE, KEEP, JUDGE, WATCH = "begin", "state", "keep", "judge", "watch"  # to the process
FINDING = "finding"  # from it, to each JUDGE and WATCH
PATIENCE = 120.0  # for its answer; its start takes seconds [s]


@dataclass(frozen=True)
class Order:
    """How models are judged; the values of the first message, whose data is the Spec.

    Attributes:
        model: id of the models that are accepted.
        task: lends its reward to models that predict observations only.
        action_repeat: frames of the task in a control period [1]; 0 = as the task says.
        tolerance: see ModelGate [1].
        folder: where the last good model is kept; empty = nowhere.
        planner: what plans once for trial; empty = nothing does.
        settings: its configuration.
        time_budget: of the planner [s]; 0 = none.
        limit: a decision may take so long [s]; 0 = any time.
    """

    model: str
    task: str
    action_repeat: int = 0
    tolerance: float = 1.5
    folder: str = ""
    planner: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    time_budget: float = 0.0
    limit: float = 0.0


class GateLost(Exception):
    """The process ended, or did not answer; the text is a sentence."""


class GateProcess:
    """Runs gate_child.py. Everything waits, and is called from one thread; only `close` from another.

    Args:
        order: how to judge; where it is replaced, it counts from the next `begin` on.

    Raises:
        GateLost: from every method but `close`; the process is started again by the next `begin`.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def pid(self) -> int:
        """Its process id; 0 = it does not run."""
        return self._process.pid if self._process is not None else 0

    def begin(self, spec: Spec, kept: Iterable[Snapshot]) -> None:
        """Judge as ordered from now on.

        Args:
            spec: of the world.
            kept: models that were found good before, the one in use last.
        """
        if self._process is None and not self._closed:
            self._start()
        self._spec = spec
        self._send(Message(BEGIN, dataclasses.asdict(self.order), wire.encode_spec(spec, NOBODY)))
        for snapshot in kept:
            self._send(message_of(KEEP, snapshot))

    def hear(self, state: Transition) -> None:
        """Tell what happened."""
        self._send(Message(STATE, {}, wire.encode_transition(state, self._spec)))

    def judge(self, snapshot: Snapshot) -> Finding:
        """See ModelGate."""
        self._send(message_of(JUDGE, snapshot))
        return self._answer()

    def watch(self) -> Finding:
        """See ModelGate."""
        self._send(Message(WATCH))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()  # it holds nothing that a half-done judgement could spoil
            process.wait()

    # ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._process, self._link = start("mbrl_planner.gate_child")
        self._link.settimeout(PATIENCE)

    def _send(self, message: Message) -> None:
        try:
            send(self._link, message)
        except OSError as error:
            raise self._lost() from error

    def _answer(self) -> Finding:
        message = receive(self._link)
        if message is None:
            raise self._lost()
        return Finding(**message.values)

    def _lost(self) -> GateLost:
        process, self._process = self._process, None
        self._link.close()
        code = None
        if process is not None:
            try:
                code = process.wait(0.5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if code is None:
            return GateLost(f"the process that judges models did not answer within {PATIENCE:.0f} s")
        return GateLost(f"the process that judges models ended ({how(code)})")
