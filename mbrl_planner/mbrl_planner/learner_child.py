"""The process in which a policy learns.

It is started by learner_process.py. When the socket closes, however the other side ended, it writes a
checkpoint and ends.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from typing import Any

import torch

from mbrl_dynamics import wire
from mbrl_dynamics.errors import UserError
from mbrl_planner.pipe import Message, receive, send
from mbrl_planner.policy_learner import REFUSED, Order, PolicyLearner

END_PATIENCE = 10.0  # for a gradient step that does not end, once it is to end [s]


class Inbox:
    """What comes over a socket, read by a thread so that the end of the other side is never overlooked."""

    def __init__(self, link: socket.socket) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()
        self.ended = threading.Event()  # nothing more will come, or this process is to end
        self._link = link
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def end(self, *_: Any) -> None:
        """This process is to end; it is made to if it does not."""
        self.ended.set()

    def _read(self) -> None:
        while (message := receive(self._link)) is not None:
            self.messages.put(message)
        self.ended.set()
        time.sleep(END_PATIENCE)
        os._exit(1)

    def take(self, wait: float) -> Message | None:
        """The oldest message; None = none came within so long [s]."""
        try:
            return self.messages.get(timeout=wait) if wait else self.messages.get_nowait()
        except queue.Empty:
            return None


def serve(learner: PolicyLearner, inbox: Inbox) -> None:
    """Hear and learn until the other side is gone."""
    learner.tell()
    while not inbox.ended.is_set():
        message = inbox.take(0.0 if learner.may_learn else 0.1)
        while message is not None:
            learner.handle(message)
            message = inbox.take(0.0)
        if learner.may_learn:
            learner.learn()
        learner.tell()
    while (message := inbox.take(0.0)) is not None:  # what was seen is kept, though not learned from
        learner.handle(message)


def main(arguments: list[str]) -> int:
    """Run the process."""
    link = socket.socket(fileno=int(arguments[0]))
    inbox = Inbox(link)
    signal.signal(signal.SIGTERM, inbox.end)
    begin = None
    while begin is None and not inbox.ended.is_set():
        begin = inbox.take(0.1)
    if begin is None:
        return 0
    order, (spec, _) = Order(**begin.values), wire.decode_spec(begin.data)
    os.nice(order.nice)
    torch.set_num_threads(order.threads)
    try:
        learner = PolicyLearner(order, spec, lambda message: send(link, message))
    except UserError as error:
        send(link, Message(REFUSED, {"reason": str(error)}))
        return 2
    try:
        serve(learner, inbox)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the other side is gone
    finally:
        learner.close()
    return 0
