"""Tells how a simulated world is doing: `world_status` and `diagnostics`."""

from __future__ import annotations

import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.publisher import Publisher

from mbrl_dynamics.ros.convert import time_msg, world_id_field
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
        world, desk = self._world, self._world.desk
        return WorldStatus(
            stamp=time_msg(world.time),
            world_id=self.world_id,
            status=int(world.status),
            mode=_MODES[world.settings.mode],
            episode=world.episode,
            step=world.step,
            waiting=world.waiting,
            controller_id=desk.controller_id,
            accepted=desk.accepted,
            refused=desk.refused.total(),
            repeated=world.repeated,
            missed_steps=int(world.missed_steps),
            listeners=self._states.get_subscription_count(),
            last_refusal=desk.last_refusal,
            last_fault=world.last_fault,
            real_time_factor=self._factor,
        )

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
        status = DiagnosticStatus(
            level=level,
            name=self._node.get_fully_qualified_name(),
            message=text,
            hardware_id=world.spec.task,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = time_msg(world.time)
        return array
