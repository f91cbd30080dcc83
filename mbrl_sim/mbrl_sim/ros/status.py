"""Tells how a simulated world is doing: `world_status` and `diagnostics`."""

from __future__ import annotations

import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.publisher import Publisher

from mbrl_dynamics.ros.convert import time_msg, world_id_field, world_status_to_msg
from mbrl_dynamics.ros.node import LATCHED_QOS, BaseNode
from mbrl_msgs.msg import WorldStatus
from mbrl_sim.world import Status, World

_MODES = {"lockstep": WorldStatus.LOCKSTEP, "realtime": WorldStatus.REALTIME, "free": WorldStatus.FREE}
_SHORTEST = 0.1  # between two statuses, so that a burst of changes costs nothing [s]


class StatusReporter:
    """Publishes `world_status` when something changes and once a second, and `diagnostics` once a second.

    That a lock-step world waits, steps and is answered changes hundreds of times a second, and is left to
    the status of each second.
    """

    def __init__(self, node: BaseNode, world: World, states: Publisher) -> None:
        self._node, self._world, self._states = node, world, states
        self.world_id = world_id_field(world.world_id)
        self._publisher = node.create_publisher(WorldStatus, "world_status", LATCHED_QOS)
        self._diagnostics = node.create_publisher(DiagnosticArray, "diagnostics", 10)
        self._told: tuple[object, ...] = ()
        self._told_at = 0.0  # steady clock [s]
        self._measured = (time.monotonic(), world.time)  # when the real-time factor was measured last
        self._factor = 0.0
        node.steady_timer(_SHORTEST, self.changed)
        node.steady_timer(1.0, self._each_second)

    def changed(self) -> None:
        """Publish the status if it is news."""
        world, now = self._world, time.monotonic()
        if now - self._told_at < _SHORTEST:
            return
        news = (
            world.status,
            world.paused,
            world.episode,
            world.desk.controller_id,
            world.desk.refused.total(),
            world.last_fault,
            self._states.get_subscription_count(),
        )
        if news != self._told:
            self._told, self._told_at = news, now
            self._publisher.publish(self._message())

    def _each_second(self) -> None:
        now, simulated = time.monotonic(), self._world.time
        (then, before), self._measured = self._measured, (now, simulated)
        self._factor = (simulated - before) / (now - then)
        self._publisher.publish(self._message())
        self._diagnostics.publish(self._diagnosis())

    def _message(self) -> WorldStatus:
        world = self._world
        msg = world_status_to_msg(world, time_msg(world.time))
        msg.mode, msg.repeated = _MODES[world.settings.mode], world.repeated
        msg.listeners, msg.real_time_factor = self._states.get_subscription_count(), self._factor
        return msg

    def _diagnosis(self) -> DiagnosticArray:
        world, desk = self._world, self._world.desk
        level, text = DiagnosticStatus.OK, world.status.name.lower().replace("_", " ")
        if world.last_fault and world.status == Status.NEEDS_RESET:
            level, text = DiagnosticStatus.ERROR, world.last_fault
        elif self._node.faults:
            level, text = DiagnosticStatus.WARN, f"{self._node.faults} exceptions in callbacks"
        values = {
            "task": world.spec.task,
            "mode": world.settings.mode,
            "episode": world.episode,
            "step": world.step,
            "controller": desk.controller_id,
            "accepted": desk.accepted,
            "repeated": world.repeated,
            "missed_steps": world.missed_steps,
            "real_time_factor": round(self._factor, 3),
            "faults": self._node.faults,
            **{f"refused_{kind}": count for kind, count in sorted(desk.refused.items())},
        }
        stamp = time_msg(world.time)
        return self._node.diagnosis(level, text, values, hardware_id=world.spec.task, stamp=stamp)
