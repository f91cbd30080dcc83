"""Numbers out of a robot's messages, by name. No ROS: a message is anything with the right fields.

| message | quantities |
|---|---|
| JointState | <joint>.position, <joint>.velocity, <joint>.effort |
| Imu | orientation.*, angular_velocity.x y z, linear_acceleration.x y z |
| PoseStamped | position.x y z, orientation.* |
| Odometry | position.x y z, orientation.*, linear.x y z, angular.x y z |
| TwistStamped | linear.x y z, angular.x y z |
| WrenchStamped | force.x y z, torque.x y z |

orientation.* is x, y, z, w of the quaternion; roll, pitch, yaw about fixed axes [rad]; or an element
r11 .. r33 of the rotation matrix.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transforms3d.euler import quat2euler
from transforms3d.quaternions import quat2mat

from mbrl_dynamics.errors import UserError

Array = NDArray[np.float64]
Get = Callable[[Any], float]

_XYZ = ("x", "y", "z")
_JOINT = ("position", "velocity", "effort")
ANGLES = ("roll", "pitch", "yaw")
_MATRIX = tuple(f"r{i}{j}" for i in (1, 2, 3) for j in (1, 2, 3))
_ORIENTATION = ("x", "y", "z", "w", *ANGLES, *_MATRIX)
_PARTS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {  # type -> part -> where, components
    "sensor_msgs/Imu": {
        "orientation": ("orientation", _ORIENTATION),
        "angular_velocity": ("angular_velocity", _XYZ),
        "linear_acceleration": ("linear_acceleration", _XYZ),
    },
    "geometry_msgs/PoseStamped": {
        "position": ("pose.position", _XYZ),
        "orientation": ("pose.orientation", _ORIENTATION),
    },
    "nav_msgs/Odometry": {
        "position": ("pose.pose.position", _XYZ),
        "orientation": ("pose.pose.orientation", _ORIENTATION),
        "linear": ("twist.twist.linear", _XYZ),
        "angular": ("twist.twist.angular", _XYZ),
    },
    "geometry_msgs/TwistStamped": {"linear": ("twist.linear", _XYZ), "angular": ("twist.angular", _XYZ)},
    "geometry_msgs/WrenchStamped": {"force": ("wrench.force", _XYZ), "torque": ("wrench.torque", _XYZ)},
}


class Reader:
    """Takes certain quantities out of messages of one type.

    Args:
        type_name: "sensor_msgs/JointState" or another of the table above.
        wanted: K quantities.
        whose: for the sentence of an error.

    Raises:
        UserError: the type has no such quantity; the sentence lists what it has.
    """

    def __init__(self, type_name: str, wanted: Sequence[str], whose: str = "") -> None:
        self.wanted = tuple(wanted)
        self._joints = type_name == "sensor_msgs/JointState"
        for value in wanted:
            part, _, component = value.rpartition(".")
            known = _JOINT if self._joints else _PARTS[type_name].get(part, ("", ()))[1]
            if not part or component not in known:
                valid = "<joint>.position, .velocity, .effort" if self._joints else _table(type_name)
                raise UserError(f"'{value}' {whose} is not a quantity of {type_name}; valid: {valid}")
        self._getters = [] if self._joints else [_getter(type_name, value) for value in wanted]
        self._names: tuple[str, ...] = ()  # of the last JointState
        self._places: list[tuple[str, int]] = []  # field and index of each quantity in such a message

    def read(self, message: Any) -> Array | None:
        """The quantities [K]; None where a JointState is not of these joints, NaN where a field is empty."""
        if not self._joints:
            return np.array([get(message) for get in self._getters])
        names = tuple(message.name)
        if names != self._names:
            self._names, self._places = names, self._find(names)
        if len(self._places) < len(self.wanted):
            return None
        fields = {field: getattr(message, field) for field in _JOINT}
        return np.array(
            [fields[f][i] if i < len(fields[f]) else math.nan for f, i in self._places], dtype=np.float64
        )

    def _find(self, names: tuple[str, ...]) -> list[tuple[str, int]]:
        """Joints are found by their names: drivers do not promise an order."""
        split = [value.rpartition(".") for value in self.wanted]
        return [(field, names.index(joint)) for joint, _, field in split if joint in names]


def _table(type_name: str) -> str:
    return ", ".join(f"{part}.{'|'.join(names)}" for part, (_, names) in _PARTS[type_name].items())


def _getter(type_name: str, value: str) -> Get:
    part, _, component = value.rpartition(".")
    path = _PARTS[type_name][part][0].split(".")

    def field(message: Any) -> Any:
        for name in path:
            message = getattr(message, name)
        return message

    if part == "orientation" and component not in ("x", "y", "z", "w"):
        turn = _angle(component) if component in ANGLES else _element(component)
        return lambda message: turn(_quaternion(field(message)))
    return lambda message: float(getattr(field(message), component))


def _quaternion(q: Any) -> Array:
    """[w, x, y, z]; NaN where it is no rotation: an IMU without orientation sends zeros."""
    values = np.array([q.w, q.x, q.y, q.z], dtype=np.float64)
    return values if abs(float(values @ values) - 1.0) < 0.1 else np.full(4, math.nan)


def _angle(name: str) -> Callable[[Array], float]:
    index = ANGLES.index(name)
    return lambda q: float(quat2euler(q, "sxyz")[index]) if np.isfinite(q).all() else math.nan


def _element(name: str) -> Callable[[Array], float]:
    row, column = int(name[1]) - 1, int(name[2]) - 1
    return lambda q: float(quat2mat(q)[row, column]) if np.isfinite(q).all() else math.nan


@dataclass(frozen=True)
class Sample:
    """What one message said."""

    arrival: float  # steady clock [s]
    stamp: float  # the robot's own time [s]
    values: Array  # [K]


class Stream:
    """The newest messages of one source.

    A stamp that repeats or goes back by a little belongs to a message that was sent twice or overtaken, and
    is left out. One that jumps against the steady clock by more than `JUMP` says that the robot's clock was
    set: the stream begins anew with it.

    Attributes:
        dropped: messages left out.
        jumps: how often the robot's clock was set.
    """

    JUMP = 1.0  # [s]

    def __init__(self, max_age: float, behind: float = 0.0, angles: NDArray[np.bool_] | None = None) -> None:
        self.max_age, self.behind = max_age, behind
        self._angles = angles  # [K] which values jump by a turn
        self._samples: deque[Sample] = deque(maxlen=64)
        self.dropped = self.jumps = 0

    @property
    def newest(self) -> Sample | None:
        """The last message that was taken."""
        return self._samples[-1] if self._samples else None

    def take(self, sample: Sample) -> None:
        """A message has come."""
        last = self.newest
        if last is not None and (sample.stamp or last.stamp):  # a driver may leave its stamps at zero
            moved = sample.stamp - last.stamp
            if abs(moved - (sample.arrival - last.arrival)) > self.JUMP:
                self.jumps += 1
                self._samples.clear()
            elif moved <= 0.0:
                self.dropped += 1
                return
        self._samples.append(sample)

    def at(self, now: float) -> Array | None:
        """The values [K] as of now; None if they are too old."""
        last = self.newest
        if last is None or now - last.arrival > self.max_age:
            return None
        if not self.behind:
            return last.values
        when, after = now - self.behind, last
        for sample in reversed(self._samples):
            if sample.arrival <= when:
                return self._between(sample, after, when)
            after = sample
        return after.values  # the oldest: nothing is known of what was before

    def _between(self, a: Sample, b: Sample, when: float) -> Array:
        if b.arrival <= a.arrival:
            return b.values
        share = min((when - a.arrival) / (b.arrival - a.arrival), 1.0)
        change = b.values - a.values
        if self._angles is not None:
            turned = np.remainder(change + math.pi, 2 * math.pi) - math.pi
            change = np.where(self._angles, turned, change)
        result: Array = a.values + share * change
        return result
