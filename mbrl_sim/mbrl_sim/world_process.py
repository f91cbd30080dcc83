"""One of `Worlds`: in this process, or in one of its own at the other end of a pair of sockets.

    python -m mbrl_sim.world_process FD PARENT_PID TASK SEED ACTION_REPEAT IMAGE_SIZE CAMERA

Requests are one letter and an array; results are one letter and a State as CDR, or a sentence. Nothing is
ever unpickled. (multiprocessing's own processes would unpickle, and import the parent's main program and with
it a learning library.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Answer, Transition
from mbrl_dynamics.wire import decode_spec, decode_transition, encode_spec, encode_transition
from mbrl_sim.physics import make_simulator
from mbrl_sim.world import World, WorldConfig

CONTROLLER = "worlds"  # who chose the actions, as the transitions tell
_SPEC, _STATE, _MISTAKE, _FAILURE = b"s", b"t", b"m", b"f"  # results
_RESET, _STEP = b"r", b"a"  # requests
_PATIENCE = 5.0  # that a process has to end by itself [s]


class Order(NamedTuple):
    """Which world; see Worlds."""

    task: str
    seed: int
    action_repeat: int
    image_size: int
    camera: str


class LocalWorld:
    """A lock-step world in this process, behind requests and results; what a worker process serves, too."""

    def __init__(self, order: Order) -> None:
        task = make_task(order.task, order.action_repeat)
        simulator = make_simulator(task, order.seed, order.image_size, order.camera)
        self._world = World(simulator, WorldConfig())
        self._result: Transition | None = None

    def ready(self) -> Spec:
        """The world's interface."""
        return self._world.spec

    def ask_reset(self, seed: int | None) -> None:
        """Begin an episode."""
        self._result = self._world.reset(0.0, seed)

    def ask_step(self, action: NDArray[np.float64]) -> None:
        """Simulate one control period with an action [A], SI."""
        assert self._world.state is not None
        answer = Answer(*self._world.state.key, CONTROLLER, action[None])
        self._result = self._world.offer(answer, 0.0)

    def result(self) -> Transition:
        """What the last request brought about."""
        if self._result is None:
            raise RuntimeError(self._world.desk.last_refusal)
        return self._result

    def close(self) -> None:
        """Free what drawing needed."""
        self._world.simulator.close()


class WorldProcess:
    """A LocalWorld in a process of its own: the parent's end.

    Args:
        order: which world.
        name: of the world in messages.
    """

    def __init__(self, order: Order, name: str) -> None:
        self.name = name
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", "mbrl_sim.world_process", str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(
            [*command, *map(str, order)],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ready(self) -> Spec:
        """The world's interface; waits until the world is made.

        Raises:
            UserError: it cannot be made.
            RuntimeError: the process died.
        """
        return decode_spec(self._receive(_SPEC))[0]

    def ask_reset(self, seed: int | None) -> None:
        """Have an episode begun."""
        self._send(_RESET + np.int64(-1 if seed is None else seed).tobytes())

    def ask_step(self, action: NDArray[np.float64]) -> None:
        """Have one control period simulated with an action [A], SI."""
        self._send(_STEP + action.tobytes())

    def result(self) -> Transition:
        """What the last request brought about; waits for it.

        Raises:
            UserError: a mistake of the user.
            RuntimeError: the process died, or the world failed.
        """
        return decode_transition(self._receive(_STATE))

    def close(self) -> None:
        """End the process and wait for it."""
        self._connection.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, request: bytes) -> None:
        try:
            self._connection.send_bytes(request)
        except OSError as error:
            raise self._obituary() from error

    def _receive(self, kind: bytes) -> bytes:
        try:
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._obituary() from error
        if data[:1] == kind:
            return data[1:]
        text = data[1:].decode(errors="replace")
        raise UserError(text) if data[:1] == _MISTAKE else RuntimeError(f"{self.name} failed: {text}")

    def _obituary(self) -> RuntimeError:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return RuntimeError(f"{self.name} (process {self.pid}) does not answer any more")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return RuntimeError(f"{self.name} is lost: its process {self.pid} {how}")


def main(arguments: list[str]) -> None:
    """Serve a world until the parent closes its end or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # what a whole group of processes gets
        signal.signal(number, signal.SIG_IGN)  # is for the parent, which ends this process
    fd, parent, task, seed, action_repeat, image_size, camera = arguments
    connection = Connection(int(fd))
    try:
        try:
            world = LocalWorld(Order(task, int(seed), int(action_repeat), int(image_size), camera))
            spec = world.ready()
            connection.send_bytes(_SPEC + encode_spec(spec, bytes(16)))
            while _requested(connection, int(parent)):
                _serve(world, spec, connection)
        except UserError as error:
            connection.send_bytes(_MISTAKE + str(error).encode())
        except (EOFError, OSError):
            raise
        except Exception as error:
            traceback.print_exc()
            connection.send_bytes(_FAILURE + f"{type(error).__name__}: {error}".encode())
    except (EOFError, OSError):
        pass  # the parent is gone


def _requested(connection: Connection, parent: int) -> bool:
    """Wait for a request; False if the parent is gone, though a child of its may still hold its end open."""
    while not connection.poll(1.0):
        if os.getppid() != parent:
            return False
    return True


def _serve(world: LocalWorld, spec: Spec, connection: Connection) -> None:
    request = connection.recv_bytes()
    if request[:1] == _RESET:
        seed = int(np.frombuffer(request[1:], np.int64)[0])
        world.ask_reset(None if seed < 0 else seed)
    else:
        world.ask_step(np.frombuffer(request[1:], np.float64))
    connection.send_bytes(_STATE + encode_transition(world.result(), spec))


if __name__ == "__main__":
    main(sys.argv[1:])
