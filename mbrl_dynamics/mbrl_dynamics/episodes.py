"""What was seen, on disk: a folder of MCAP files, one a recording, that survive the death of their writer.

Each record is handed to the kernel whole, as soon as it is made, so that a killed process loses nothing that
it was told; what a file then lacks is its end, and `recover` adds it. The format is https://mcap.dev/spec,
profile "ros2", without chunks; `ros2 bag`, Foxglove and PlotJuggler read it.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Header, Message, Schema
from mcap.writer import MCAP0_MAGIC, CompressionType, Writer

from mbrl_dynamics import wire
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Answer, Transition, WorldId

_log = logging.getLogger(__name__)

Record = Transition | Answer | Spec

TOPICS = {"state": wire.STATE, "action": wire.ACTION, "spec": wire.SPEC}  # topic -> message
_LIBRARY = "mbrl_dynamics"
_HEAD = struct.Struct("<BQ")  # opcode and length of a record
_BEGUN = 1 << 16  # a longer rest is no message that was just begun [bytes]
_FOOTER = _HEAD.pack(Opcode.FOOTER, 20)
_DATA = (Opcode.HEADER, Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE)


class EpisodeStore:
    """Appends what it is told to a new file of a dataset folder, made when there is something to write.

    A disk that is full (or fails otherwise) ends the recording and nothing else: `error` says so, and the
    file keeps every record before it.

    Args:
        folder: made if it does not exist. Files that a killed process left without an end are given one.
        spec: of what will be recorded.

    Attributes:
        error: why nothing is recorded any more; empty = all is well.
        path: the file being written; None = none yet.

    Raises:
        UserError: the folder cannot be used, or another process records into it.
    """

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.folder = folder
        self.error = ""
        self.path: Path | None = None
        self._file: _WholeWrites | None = None
        self._writer: Writer | None = None
        self._channels: dict[str, int] = {}
        self._spec = spec
        self._worlds: set[WorldId] = set()  # announced in this file
        prepare(folder)
        try:
            for path in files(folder):
                recover(path)
        except OSError as error:
            self._fail(error)

    @property
    def recording(self) -> bool:
        """Whether what it is told is written to disk."""
        return not self.error

    def announce(self, spec: Spec, world_id: WorldId) -> None:
        """A world says what its observations and actions mean."""
        if spec != self._spec or world_id not in self._worlds:
            self._spec = spec
            self._worlds.add(world_id)
            self._write("spec", wire.encode_spec(spec, world_id), time.time())

    def add(self, transition: Transition) -> None:
        """Append a valid transition. A world that is new to the file is announced in it first."""
        self.announce(self._spec, transition.world_id)
        self._write("state", wire.encode_transition(transition, self._spec), transition.stamp)

    def add_answer(self, answer: Answer, stamp: float) -> None:
        """Append what a controller asked for, and when [s]."""
        self._write("action", wire.encode_answer(answer, stamp), stamp)

    def close(self) -> None:
        """Finish the file; a later record begins another."""
        writer, file = self._writer, self._file
        self._writer = self._file = None
        self._worlds = set()
        if writer is None or file is None:
            return
        try:
            writer.finish()
        except OSError as error:
            self._fail(error)
        finally:
            file.close()

    def _write(self, topic: str, data: bytes, stamp: float) -> None:
        if self.error:
            return
        try:
            if self._writer is None:
                self._open()
            assert self._writer is not None
            self._writer.add_message(self._channels[topic], time.time_ns(), data, round(stamp * 1e9))
        except OSError as error:
            self._fail(error)

    def _open(self) -> None:
        path = self.folder / f"{_next_number(self.folder):03d}.mcap"
        self._file = _WholeWrites(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        self.path = path
        _lock(self._file.fd, path)
        self._writer = _writer(self._file)
        self._writer.start(profile="ros2", library=_LIBRARY)
        for topic, kind in TOPICS.items():
            schema = self._writer.register_schema(kind, "ros2msg", wire.schema(kind).encode())
            self._channels[topic] = self._writer.register_channel(topic, "cdr", schema)

    def _fail(self, error: OSError) -> None:
        self.error = f"recording stopped: {error.strerror or error}"
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = self._writer = None
            try:
                recover(self.path)
            except OSError:
                return  # no room for an end: it is added at the next start, and `read` needs none


def prepare(folder: Path) -> None:
    """Make a dataset folder, unless it is there.

    Raises:
        UserError: it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the dataset folder '{folder}' cannot be used: {error.strerror}") from None


def files(folder: Path) -> list[Path]:
    """The recordings of a dataset folder, oldest first."""
    return sorted(
        (path for path in folder.glob("*.mcap") if re.fullmatch(r"\d+", path.stem)),
        key=lambda path: int(path.stem),
    )


def read(folder: Path, topics: Collection[str] = ("state", "action", "spec")) -> Iterator[Record]:
    """What a dataset folder holds, in the order in which it came; a file may lack its end.

    Raises:
        UserError: a file is not a recording of this package, or not of this version of it, or is damaged.
    """
    for path in files(folder):
        channels: dict[int, str] = {}
        with path.open("rb") as file:
            for opcode, content, end in _records(file, path):
                with _told(path, end):
                    record = _record(opcode, content, path, channels, topics)
                if record is not None:
                    yield record


def newest_spec(folder: Path) -> Spec | None:
    """The spec that a dataset folder was recorded with; None = it holds nothing yet.

    Raises:
        UserError: as `read`.
    """
    newest = None
    for record in read(folder, ("spec",)):
        assert isinstance(record, Spec)
        newest = record
    return newest


def recover(path: Path) -> bool:
    """Give a file whose writer was killed its end; the records that are whole stay where they are.

    May itself be interrupted anywhere, and is then done again. A file without any message is removed; one
    that is damaged before its first message is only put aside, as `.damaged`.

    Returns:
        Whether the file was without an end.

    Raises:
        UserError: the file is not a recording of this package, or another process is writing it.
        OSError: there is no room for the end; the file is as before.
    """
    with path.open("r+b") as file:
        _lock(file.fileno(), path)
        if _ended(file):
            return False
        sink = _WholeWrites(file.fileno())
        writer, end, messages = _writer(sink), 0, 0
        sink.muted = True
        for opcode, content, end in _records(file, path):
            messages += opcode == Opcode.MESSAGE
            with _told(path, end):
                _replay(writer, opcode, content)
        sink.muted = False
        if not messages:
            if os.fstat(file.fileno()).st_size - end > _BEGUN:
                path.rename(path.with_suffix(".damaged"))
                _log.warning("%s cannot be read from byte %d on: put aside as .damaged", path, end)
            else:
                path.unlink()
            return True
        sink.rewind(end)
        writer.finish()
        return True


class _WholeWrites:
    """The file of an MCAP writer, unbuffered: a record is there whole or not at all."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._size = 0
        self.muted = False  # whether writes are dropped

    def write(self, data: bytes) -> int:
        """Write all, or leave the file as it was and raise the OSError."""
        if self.muted:
            return len(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        except OSError:
            self.rewind(self._size)
            raise
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        """Where the next write goes [bytes]."""
        return self._size

    def rewind(self, size: int) -> None:
        """Forget what comes after so many bytes, and go on there."""
        os.ftruncate(self.fd, size)
        os.lseek(self.fd, size, os.SEEK_SET)
        self._size = size

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def _writer(file: _WholeWrites) -> Writer:
    return Writer(file, compression=CompressionType.NONE, use_chunking=False)  # type: ignore[arg-type]


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes, int]]:
    """The whole records before the end of the data: opcode, content, and where it ends in the file."""
    size = os.fstat(file.fileno()).st_size
    end = file.seek(len(MCAP0_MAGIC))
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        opcode, length = _HEAD.unpack(head)
        end += _HEAD.size + length
        if opcode not in _DATA or end > size:
            return
        content = file.read(length)
        if opcode == Opcode.HEADER:
            with _told(path, end):
                library = Header.read(ReadDataStream(io.BytesIO(content))).library
            if library != _LIBRARY:
                raise UserError(
                    f"{path} was not recorded by {_LIBRARY}: keep other files out of a dataset folder"
                )
        yield opcode, content, end


def _ended(file: BinaryIO) -> bool:
    """Whether a file has its footer."""
    length = _HEAD.size + 20 + len(MCAP0_MAGIC)
    if file.seek(0, os.SEEK_END) < length:
        return False
    file.seek(-length, os.SEEK_END)
    tail = file.read(length)
    return tail.startswith(_FOOTER) and tail.endswith(MCAP0_MAGIC)


def _replay(writer: Writer, opcode: int, content: bytes) -> None:
    """Let a writer that starts in the middle of a file know what came before."""
    stream = ReadDataStream(io.BytesIO(content))
    if opcode == Opcode.SCHEMA:
        schema = Schema.read(stream)
        writer.register_schema(schema.name, schema.encoding, schema.data)
    elif opcode == Opcode.CHANNEL:
        channel = Channel.read(stream)
        writer.register_channel(channel.topic, channel.message_encoding, channel.schema_id, channel.metadata)
    elif opcode == Opcode.MESSAGE:
        message = Message.read(stream, len(content))
        writer.add_message(message.channel_id, message.log_time, message.data, message.publish_time)


@contextmanager
def _told(path: Path, end: int) -> Iterator[None]:
    """A record that cannot be read is told in one sentence."""
    try:
        yield
    except (McapError, ValueError, KeyError, struct.error) as error:
        raise UserError(
            f"{path} is damaged before byte {end} ({' '.join(str(error).split()) or type(error).__name__}): "
            "move it elsewhere to go on without it"
        ) from None


def _record(
    opcode: int, content: bytes, path: Path, channels: dict[int, str], topics: Collection[str]
) -> Record | None:
    """What a record of a file says, if it is a message of these topics; `channels` are those seen so far."""
    stream = ReadDataStream(io.BytesIO(content))
    if opcode == Opcode.SCHEMA:
        _check_schema(Schema.read(stream), path)
    elif opcode == Opcode.CHANNEL:
        channel = Channel.read(stream)
        channels[channel.id] = channel.topic
    elif opcode == Opcode.MESSAGE:
        message = Message.read(stream, len(content))
        topic = channels[message.channel_id]
        return _decode(topic, message.data) if topic in topics else None
    return None


def _check_schema(schema: Schema, path: Path) -> None:
    if schema.name not in wire.DEFINITIONS or schema.data.decode() != wire.schema(schema.name):
        raise UserError(f"{path} was recorded with another definition of {schema.name}, and cannot be read")


def _decode(topic: str, data: bytes) -> Record:
    if topic == "state":
        return wire.decode_transition(data)
    if topic == "action":
        return wire.decode_answer(data)
    return wire.decode_spec(data)[0]


def _next_number(folder: Path) -> int:
    return max((int(path.stem) for path in files(folder)), default=-1) + 1


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another process records into {path.parent}: choose another dataset folder"
        ) from None
