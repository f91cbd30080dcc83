"""The acting side of a policy's learning process: starts it, tells it what happens, and survives it. No ROS.

Nothing here waits for the learner: what it is told goes through a queue and a thread, and what it says is
picked up with `take`. If it dies it is started again, from its checkpoint, and told what it did not keep.
"""

from __future__ import annotations

import dataclasses
import queue
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from mbrl_dynamics import wire
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.pipe import NOBODY, Message, how, message_of, receive, send, start
from mbrl_planner.policy_learner import BEGIN, MODEL, STATE, STATUS, WEIGHTS, Order
from mbrl_planner.policy_weights import Shapes, Weights, unpack

BACKOFF, MAX_BACKOFF = 1.0, 30.0  # between a death and the next start: at first, and at most [s]
STEADY = 60.0  # a process that lived so long has not died of its start [s]


class LearnerProcess:
    """Runs learner_child.py, and runs it again when it dies.

    The process starts at once, since that takes seconds; it learns from `begin` on.

    Args:
        news: called from a thread whenever `take` has something.
        lost: called from `poll` with a sentence when the process has died.

    Attributes:
        restarts: how often it was started again.
        began: whether it was told what to learn.
    """

    def __init__(self, news: Callable[[], None], lost: Callable[[str], None]) -> None:
        self.restarts = 0
        self._news, self._lost = news, lost
        self._order: Order | None = None
        self._spec: Spec | None = None
        self._model: Snapshot | None = None
        self._states: deque[tuple[int, Transition, bool]] = deque()  # told, but not known to be kept
        self._number = 0  # of the newest State
        self._said: deque[Message | Weights] = deque()
        self._wanted: Shapes = {}
        self._backoff, self._start_at = BACKOFF, 0.0
        self._closed = False
        self._start()

    @property
    def began(self) -> bool:
        """Whether it was told what to learn."""
        return self._order is not None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; 0 = it does not run."""
        return self._process.pid if self._process is not None and self.alive else 0

    @property
    def behind(self) -> int:
        """States that it was told and has not confirmed."""
        newest = self._states[-1][0] if self._states else self._confirmed
        return newest - self._confirmed

    def begin(self, order: Order, spec: Spec, wanted: Shapes) -> None:
        """Say what is to be learned, and what the policy's weights must look like; once."""
        self._order, self._spec, self._wanted = order, spec, wanted
        self._tell_all()

    def hear(self, state: Transition, *, between: bool) -> None:
        """Tell of a State.

        Args:
            between: whether to learn between episodes only.
        """
        self._number += 1
        self._states.append((self._number, state, between))
        if self.began:
            self._out.put(self._states[-1])

    def offer(self, snapshot: Snapshot) -> None:
        """Tell of a dynamics model."""
        self._model = snapshot
        if self.began:
            self._out.put(message_of(MODEL, snapshot))

    def take(self) -> list[Message | Weights]:
        """What it said since the last call, oldest first; only the newest weights."""
        said = []
        while self._said:
            item = self._said.popleft()
            if isinstance(item, Message) and item.kind == STATUS:
                self._confirm(int(item.values["heard"]))
            said.append(item)
        newest = next((item for item in reversed(said) if isinstance(item, Weights)), None)
        return [item for item in said if isinstance(item, Message) or item is newest]

    def poll(self) -> None:
        """Look whether it lives; call about once a second."""
        now = time.monotonic()
        if self._process is not None and not self.alive:
            ended = how(self._process.returncode)
            self._backoff = BACKOFF if now - self._started > STEADY else min(2.0 * self._backoff, MAX_BACKOFF)
            self._start_at = now + self._backoff
            self._drop()
            self._lost(f"the learning process ended ({ended}) and is started again in {self._backoff:.0f} s")
        elif self._process is None and now >= self._start_at and not self._closed:
            self.restarts += 1
            self._start()
            self._tell_all()

    def close(self, timeout: float) -> bool:
        """Let it write its checkpoint and end; returns whether it did within `timeout` [s]."""
        self._closed = True
        if self._process is None:
            return True
        if not self.began:
            self._process.kill()  # it holds nothing, and may still be loading for long
        self._out.put(None)  # after all that it is still to be told
        try:
            self._process.wait(timeout)
            return True
        except subprocess.TimeoutExpired:
            return False  # it notices that nobody listens, and ends by itself
        finally:
            self._link.close()

    # ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._confirmed = self._states[0][0] - 1 if self._states else self._number
        self._started = time.monotonic()
        self._process: subprocess.Popen[bytes] | None
        self._process, self._link = start("mbrl_planner.learner_child")
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for work in (self._write, self._read):
            threading.Thread(target=work, args=(self._link, self._out), daemon=True).start()

    def _drop(self) -> None:
        self._out.put(None)
        self._link.close()
        self._process = None

    def _tell_all(self) -> None:
        """All that a process which has just started must know."""
        if self._order is None or self._spec is None:
            return
        self._out.put(Message(BEGIN, dataclasses.asdict(self._order), wire.encode_spec(self._spec, NOBODY)))
        if self._model is not None:
            self._out.put(message_of(MODEL, self._model))
        for entry in self._states:
            self._out.put(entry)

    def _confirm(self, number: int) -> None:
        """Forget States that are on disk."""
        self._confirmed = max(self._confirmed, number)
        if self._order is not None and self._order.dataset:
            while self._states and self._states[0][0] <= number:
                self._states.popleft()

    def _write(self, link: socket.socket, out: queue.SimpleQueue[Any]) -> None:
        while (item := out.get()) is not None:
            if isinstance(item, tuple):
                assert self._spec is not None
                number, state, between = item
                data = wire.encode_transition(state, self._spec)
                item = Message(STATE, {"number": number, "between": between}, data)
            try:
                send(link, item)
            except OSError:  # it died; `poll` sees to it
                return
        try:
            link.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def _read(self, link: socket.socket, out: queue.SimpleQueue[Any]) -> None:
        torch.set_num_threads(1)  # a second pool of OpenMP threads would slow the acting down
        while (message := receive(link)) is not None:
            weights = message.kind == WEIGHTS
            self._said.append(unpack(message.data, self._wanted) if weights else message)
            self._news()
