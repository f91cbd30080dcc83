"""Tells how a robot's bridge is doing: `world_status`, `guard_status` and `diagnostics`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.publisher import Publisher

from mbrl_bringup.guard import Phase
from mbrl_bringup.robot_world import RobotWorld
from mbrl_dynamics.ros.convert import world_status_to_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, BaseNode
from mbrl_msgs.msg import GuardStatus, WorldStatus

REMEMBERED = 1000  # periods
_LEVELS = {Phase.TRIPPED: DiagnosticStatus.ERROR, Phase.DISARMED: DiagnosticStatus.WARN}


class StatusReporter:
    """Publishes both statuses when something changes and once a second, `diagnostics` once a second.

    Attributes:
        missed_deadlines: periods that the bridge itself began too late.
        lateness: how late each of the last thousand periods began [s].
        sent: how long after its period was due each of the last thousand commands went out [s].
    """

    def __init__(self, node: BaseNode, world: RobotWorld, states: Publisher) -> None:
        self._node, self._world, self._states = node, world, states
        self._statuses = node.create_publisher(WorldStatus, "world_status", LATCHED_QOS)
        self._guards = node.create_publisher(GuardStatus, "guard_status", LATCHED_QOS)
        self._diagnostics = node.create_publisher(DiagnosticArray, "diagnostics", 10)
        self._told: tuple[Any, ...] = ()
        self.missed_deadlines = 0
        self.lateness: deque[float] = deque(maxlen=REMEMBERED)
        self.sent: deque[float] = deque(maxlen=REMEMBERED)
        node.steady_timer(1.0, self._each_second)

    def changed(self) -> None:
        """Publish what is news."""
        world, guard = self._world, self._world.guard
        news = (
            *(world.status, world.episode, world.desk.controller_id, world.desk.refused.total()),
            *(world.last_fault, self._states.get_subscription_count(), guard.phase, guard.reason),
        )
        if news != self._told:
            self._told = news
            self._publish()

    def _each_second(self) -> None:
        self._publish()
        self._diagnostics.publish(self._diagnosis())

    def _publish(self) -> None:
        self._statuses.publish(self._world_status())
        self._guards.publish(self._guard_status())

    def _now(self) -> Any:
        return self._node.get_clock().now().to_msg()

    def _guard_status(self) -> GuardStatus:
        guard = self._world.guard
        return GuardStatus(
            stamp=self._now(),
            phase=int(guard.phase),
            reason=guard.reason,
            refusal=self.refusal(),
            speed=guard.speed,
            late_periods=guard.late_periods,
            passive=self._world.passive,
        )

    def refusal(self) -> str:
        """Why the guard would not be armed now; empty if it would, or is."""
        guard, now = self._world.guard, time.monotonic()
        if guard.phase in (Phase.ARMED, Phase.RUNNING):
            return ""
        return self._world.senses.silent(now) or guard.unfit(now)

    def _world_status(self) -> WorldStatus:
        msg = world_status_to_msg(self._world, self._now())
        msg.mode, msg.real_time_factor = WorldStatus.REALTIME, 1.0
        msg.listeners = self._states.get_subscription_count()
        return msg

    def _diagnosis(self) -> DiagnosticArray:
        world, guard, senses = self._world, self._world.guard, self._world.senses
        text = guard.phase.name.lower()
        text += f": {guard.reason}" if guard.reason else ""
        values = {
            "task": world.spec.task,
            "status": world.status.name.lower(),
            "episode": world.episode,
            "step": world.step,
            "controller": world.desk.controller_id,
            "late_periods": guard.late_periods,
            "missed_steps": world.missed_steps,
            "missed_deadlines": self.missed_deadlines,
            "period_late_ms_p99": _p99_ms(self.lateness),
            "command_ms_p99": _p99_ms(self.sent),
            "speed": round(guard.speed, 3),
            "held_back": guard.held_back,
            "messages_dropped": senses.dropped,
            "messages_ignored": senses.ignored,
            "clock_jumps": senses.jumps,
            "silent": senses.silent(time.monotonic()),
            "refusal": self.refusal(),
            "faults": self._node.faults,
        }
        level = _LEVELS.get(guard.phase, DiagnosticStatus.OK)
        return self._node.diagnosis(level, text, values, hardware_id=world.spec.task)


def _p99_ms(seconds: Collection[float]) -> float:
    return round(1e3 * float(np.percentile(list(seconds), 99)), 2) if seconds else 0.0
