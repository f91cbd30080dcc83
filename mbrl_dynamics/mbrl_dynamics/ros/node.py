"""What every node of the suite shares: QoS, guarded callbacks, signals, a clean end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from mbrl_dynamics.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

STREAM_QOS = QoSProfile(  # `state` and `action`: nothing may be lost, a burst must fit
    history=HistoryPolicy.KEEP_LAST, depth=1000, reliability=ReliabilityPolicy.RELIABLE
)
LATCHED_QOS = QoSProfile(  # spec, status, model updates: late joiners get the newest
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class BaseNode(Node):
    """A node whose callbacks cannot end the executor, and whose watchdogs use the steady clock.

    A subclass overrides `on_fault` (make the node safe after an exception) and `on_stop` (safe action,
    flush, checkpoint; within 5 s), and wraps each callback in `self.guarded`.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        kwargs.setdefault("automatically_declare_parameters_from_overrides", True)
        super().__init__(name, **kwargs)
        self.steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self.faults = 0  # exceptions caught in callbacks since the start
        self._stop = threading.Event()

    # An executor asks each of its entities in turn whenever something arrives. The events of a topic (two of
    # each publisher and subscription, to warn of QoS that do not fit) were half of them: robot_bridge took
    # 28 % of a core with them and 21 % without.

    def create_publisher(self, *args: Any, **kwargs: Any) -> Any:
        """As in Node, without events unless they are asked for."""
        kwargs.setdefault("event_callbacks", PublisherEventCallbacks(use_default_callbacks=False))
        return super().create_publisher(*args, **kwargs)

    def create_subscription(self, *args: Any, **kwargs: Any) -> Any:
        """As in Node, without events unless they are asked for."""
        kwargs.setdefault("event_callbacks", SubscriptionEventCallbacks(use_default_callbacks=False))
        return super().create_subscription(*args, **kwargs)

    def guarded(self, callback: Callable[P, R]) -> Callable[P, R | None]:
        """Wrap a callback: an exception is logged with its traceback, counted, and made safe."""

        @wraps(callback)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return callback(*args, **kwargs)
            except Exception as error:  # in rclpy an escaped exception ends the executor
                self.fault(error)
                return None

        return wrapper

    def fault(self, error: Exception) -> None:
        """Log and count an exception, and call `on_fault`."""
        self.faults += 1
        text = "".join(traceback.format_exception(error))
        self.get_logger().error(f"fault {self.faults}: {error}\n{text}", throttle_duration_sec=1.0)
        try:
            self.on_fault(error)
        except Exception:
            self.get_logger().error(f"while making the node safe:\n{traceback.format_exc()}")

    def steady_timer(self, period: float, callback: Callable[[], Any]) -> Any:
        """A guarded timer [s] on the steady clock: unlike ROS time it neither pauses nor jumps."""
        return self.create_timer(period, self.guarded(callback), clock=self.steady_clock)

    def diagnosis(
        self,
        level: bytes,
        text: str,
        values: Mapping[str, Any],
        *,
        hardware_id: str = "",
        part: str = "",
        stamp: Time | None = None,
    ) -> DiagnosticArray:
        """How the node is doing, for `diagnostics`.

        Args:
            level: of DiagnosticStatus.
            text: one sentence.
            values: name -> what it is now, in order.
            hardware_id: which robot.
            part: of the node, where it has several.
            stamp: the time of it; None = now.
        """
        name = self.get_fully_qualified_name()
        status = DiagnosticStatus(
            level=level,
            name=f"{name}: {part}" if part else name,
            message=text,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg() if stamp is None else stamp
        return array

    def on_fault(self, error: Exception) -> None:
        """Leave the node in a safe state after an exception in a callback."""

    def on_stop(self) -> None:
        """Safe action, flush, checkpoint. Called once, while publishing still works."""

    def spin_once(self, executor: Executor) -> None:
        """Do what comes next, for at most 0.1 s; `run` calls it again and again."""
        executor.spin_once(timeout_sec=0.1)

    def request_stop(self) -> None:
        """End `run` soon."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the node was asked to end."""
        return self._stop.is_set()


def drain(subscription: Any, newest: Any) -> list[Any]:
    """All messages that wait in a subscription, oldest first, beginning with the one just delivered.

    A callback gets one message at a time; a controller wants the newest of a burst.
    """
    return [newest, *(message for message, _ in _waiting(subscription))]


class Polled(CallbackGroup):
    """Subscriptions that wake nobody: what has come waits in them until `arrivals` takes it.

    For streams that are faster than whoever wants them: each wake of an executor costs about a millisecond.
    """

    def can_execute(self, entity: Any) -> bool:
        """Never by an executor."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Never by an executor."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Never begun."""


def arrivals(subscription: Any) -> list[tuple[Any, float]]:
    """What waits in a `Polled` subscription, oldest first, each with its arrival [s, steady clock]."""
    now, wall = time.monotonic(), time.time_ns()  # once: two readings differ by as much as messages may
    return [
        (message, now - 1e-9 * max(wall - (info["received_timestamp"] or wall), 0))
        for message, info in _waiting(subscription)
    ]


def _waiting(subscription: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Take what waits in a subscription, oldest first: messages, and what the middleware knows of each."""
    while True:
        with subscription.handle:
            item = subscription.handle.take_message(subscription.msg_type, False)
        if item is None:
            return
        yield item


class _Ended(BaseException):
    """A signal came before there was a node."""


def run(factory: Callable[[], BaseNode], args: list[str] | None = None) -> int:
    """Run a node until SIGINT or SIGTERM; the whole `main` of a node.

    rclpy's own signal handlers invalidate the context, so that a last safe command could no longer be
    published: these only set a flag. launch signals twice, so the second one changes nothing. A node that is
    still being made is given up at once: nothing moves yet, and making it may take seconds.

    Fast DDS takes its profile from discovery.xml, unless the user names one.

    Returns:
        The exit code: 0 after a clean end, 2 after a mistake of the user.
    """
    stop, making = threading.Event(), True

    def end(*_: Any) -> None:
        first = not stop.is_set()
        stop.set()
        if first and making:
            raise _Ended

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if "FASTRTPS_DEFAULT_PROFILES_FILE" not in os.environ:  # its old name
        os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(Path(__file__).with_name("discovery.xml")))
    node: BaseNode | None = None
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = factory()
        making = False
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set() and not node.stopping:
            node.spin_once(executor)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ExternalShutdownException, _Ended):
        return 0
    finally:
        making = False
        if node is not None:
            node.on_stop()
            node.destroy_node()
        rclpy.try_shutdown()
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # Python's own end would give them back their defaults,
            signal.signal(number, signal.SIG_IGN)  # and a second signal would kill what has ended well


def wait_until(condition: Callable[[], bool], timeout: float, pause: float = 0.01) -> bool:
    """Wait [s] for a condition on the wall; returns whether it came true."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
    return True
