"""Compares a robot's file with what is heard of the robot: `mbrl check-robot`. No ROS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mbrl_bringup.robot_config import CameraTopic, RobotConfig, Source, quantities
from mbrl_bringup.robot_images import pixels
from mbrl_bringup.robot_readings import Array, Reader
from mbrl_dynamics.spec import Camera, Spec

IMAGE = "sensor_msgs/Image"
CLOCK = 1.0  # stamps may differ from the machine's clock by so much [s]


@dataclass
class Heard:
    """What one topic turned out to be within the time of listening."""

    types: tuple[str, ...] = ()  # as in the robot's file: "sensor_msgs/Imu"
    publishers: int = 0
    subscribers: int = 0
    reliable: bool | None = None  # whether all publishers send lost messages again; None = unknown
    arrivals: list[float] = field(default_factory=list)  # of each message, steady clock [s]
    newest: object = None  # message
    skew: float = math.nan  # of the newest stamp against the machine's clock [s]; NaN = it has none


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    wanted: str
    found: str
    ok: bool


def compare(
    robot: RobotConfig, spec: Spec, heard: dict[str, Heard], services: Sequence[str], bridge: bool
) -> list[Row]:
    """The whole table.

    Args:
        robot: its file, checked.
        spec: of its task.
        heard: topic, as in the file -> what was heard.
        services: names of all services, as in the file.
        bridge: whether a bridge runs, whose publisher the command topics may have.
    """
    rows = []
    for name, source in robot.sources.items():
        rows += _source(name, robot, spec, heard.get(source.topic, Heard()))
    for camera in spec.cameras:
        rows += _camera(camera, robot, spec, heard.get(robot.cameras[camera.name].topic, Heard()))
    for command in robot.commands:
        found = heard.get(command.topic, Heard())
        rows.append(_type(f"{command.topic}: type", command.type, found))
        rows.append(
            Row(f"{command.topic}: subscribers", "1 or more", str(found.subscribers), found.subscribers > 0)
        )
        own = int(bridge)
        rows.append(
            Row(
                f"{command.topic}: publishers",
                "the bridge" if bridge else "none",
                str(found.publishers),
                found.publishers <= own,
            )
        )
    if robot.beginning.by == "service":
        there = robot.beginning.service in services
        rows.append(Row(f"{robot.beginning.service}: service", "there", "there" if there else "none", there))
    rows.append(_timeout(robot))
    return rows


def _source(name: str, robot: RobotConfig, spec: Spec, found: Heard) -> list[Row]:
    source = robot.sources[name]
    rows = _stream(source, source.type, spec, found)
    if found.newest is not None:
        reader = Reader(source.type, quantities(robot)[name])
        rows += _values(f"{source.topic}: values", reader, found.newest)
    return rows


def _camera(camera: Camera, robot: RobotConfig, spec: Spec, found: Heard) -> list[Row]:
    topic = robot.cameras[camera.name]
    rows = _stream(topic, IMAGE, spec, found)
    if found.newest is not None:
        fault = ""
        try:
            pixels(found.newest, camera.height, camera.width)
        except ValueError as error:
            fault = str(error)
        size = f"{camera.height} x {camera.width} or more"
        rows.append(Row(f"{topic.topic}: pixels", size, fault or "good", ok=not fault))
    return rows


def _stream(source: Source | CameraTopic, kind: str, spec: Spec, found: Heard) -> list[Row]:
    what = source.topic
    rows = [_type(f"{what}: type", kind, found)]
    rows.append(Row(f"{what}: publishers", "1", str(found.publishers), found.publishers == 1))
    if source.reliable:
        ok = found.reliable is not False
        rows.append(Row(f"{what}: QoS", "reliable", "reliable" if ok else "best effort", ok))
    rate = _rate(found.arrivals)
    least = 1.0 / min(source.max_age, spec.control_period)
    rows.append(Row(f"{what}: rate", f"{least:.0f} Hz or more", f"{rate:.1f} Hz", rate >= 0.9 * least))
    if found.newest is None:
        return rows
    slowest = max((b - a for a, b in zip(found.arrivals, found.arrivals[1:], strict=False)), default=math.inf)
    rows.append(
        Row(
            f"{what}: longest gap",
            f"{1e3 * source.max_age:.0f} ms or less",
            f"{1e3 * slowest:.0f} ms",
            slowest <= source.max_age,
        )
    )
    if math.isfinite(found.skew):
        ok = abs(found.skew) <= CLOCK
        rows.append(Row(f"{what}: clock", f"within {CLOCK:g} s of ours", f"{found.skew:+.2f} s", ok))
    return rows


def _values(what: str, reader: Reader, message: object) -> list[Row]:
    wanted = ", ".join(reader.wanted)
    values: Array | None = reader.read(message)
    if values is None:
        names = ", ".join(getattr(message, "name", ()))
        return [Row(what, wanted, f"joints {names or 'none'}", ok=False)]
    missing = [name for name, value in zip(reader.wanted, values, strict=True) if not math.isfinite(value)]
    found = "not finite: " + ", ".join(missing) if missing else "all finite"
    return [Row(what, wanted, found, ok=not missing)]


def _type(what: str, wanted: str, found: Heard) -> Row:
    return Row(what, wanted, ", ".join(found.types) or "no such topic", found.types == (wanted,))


def _rate(arrivals: Sequence[float]) -> float:
    """Messages a second [Hz]."""
    if len(arrivals) < 2:
        return 0.0
    return (len(arrivals) - 1) / max(arrivals[-1] - arrivals[0], 1e-9)


def _timeout(robot: RobotConfig) -> Row:
    """Whether the robot stops by itself if the bridge dies; only its driver's documentation knows."""
    declared = robot.guard.driver_timeout
    needed = any(actuator.kind != "position" for actuator in robot.action.values())
    return Row(
        "guard.driver_timeout",
        "declared" if needed else "any",
        f"{declared:g} s" if declared else "none",
        ok=bool(declared) or not needed,
    )
