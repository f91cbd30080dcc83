"""Messages between two processes of one machine, over a socket: a few named values, and bytes. No pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mbrl_dynamics.snapshot import Snapshot

NOBODY = bytes(16)  # world id of a Spec that no world announces
_HEAD = struct.Struct("<IQ")  # bytes of the values (JSON), bytes of the data


@dataclass(frozen=True)
class Message:
    """What one process tells the other.

    Attributes:
        kind: what it is about.
        values: what JSON can hold.
        data: weights as safetensors, a State as CDR; empty = none.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    data: bytes = b""


def start(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run a module's `main` in a process (child.py), with one end of a socket; and the other end, ours."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "mbrl_planner.child", str(os.getpid()), module, str(theirs.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    return process, ours


def how(code: int) -> str:
    """How a process ended, in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def message_of(kind: str, snapshot: Snapshot) -> Message:
    """A dynamics model as a message."""
    values = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot) if f.name != "weights"}
    return Message(kind, values, snapshot.weights)


def snapshot_of(message: Message) -> Snapshot:
    """The inverse of `message_of`."""
    return Snapshot(**message.values, weights=message.data)


def send(link: socket.socket, message: Message) -> None:
    """Hand a message to the kernel; waits while the other side does not read.

    Raises:
        OSError: the other side is gone.
    """
    values = json.dumps({"kind": message.kind, **message.values}).encode()
    link.sendall(_HEAD.pack(len(values), len(message.data)) + values)
    if message.data:
        link.sendall(message.data)


def receive(link: socket.socket) -> Message | None:
    """Wait for a message; None = the other side is gone, whether in order or not."""
    head = _read(link, _HEAD.size)
    if head is None:
        return None
    of_values, of_data = _HEAD.unpack(head)
    text, data = _read(link, of_values), _read(link, of_data)
    if text is None or data is None:
        return None
    values = json.loads(bytes(text))
    return Message(values.pop("kind"), values, bytes(data))


def _read(link: socket.socket, count: int) -> bytearray | None:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        try:
            some = link.recv_into(view[got:])
        except OSError:  # reset by the other side's death
            return None
        if not some:
            return None
        got += some
    return data
