"""From a robot's messages to the observation of a task, and to what the guard must know."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl_bringup.guard import Reading
from mbrl_bringup.robot_config import Channel, RobotConfig, is_angle, quantities
from mbrl_bringup.robot_images import Images, Pixels
from mbrl_bringup.robot_readings import Array, Reader, Sample, Stream
from mbrl_dynamics.spec import Spec


@dataclass(frozen=True)
class Look:
    """The robot at one moment."""

    observation: Array  # [D], SI, as the task's Spec says
    reading: Reading  # for the guard
    images: dict[str, Pixels]  # camera -> [height, width, 3]


class Senses:
    """Hears the sources of a robot, and puts them together once a period.

    Args:
        robot: its file, checked.
        spec: of its task.

    Attributes:
        ignored: JointStates of other joints.
    """

    def __init__(self, robot: RobotConfig, spec: Spec) -> None:
        wanted = quantities(robot)
        self._readers = {name: Reader(source.type, wanted[name]) for name, source in robot.sources.items()}
        self._streams = {
            name: Stream(source.max_age, source.behind, np.array([is_angle(v) for v in wanted[name]], bool))
            for name, source in robot.sources.items()
        }
        self._elements = [element.name for element in spec.observation]
        channels = [robot.observation[element.name] for element in spec.observation]
        self._filters = [_Filter(channel, spec.control_period) for channel in channels]
        self._observed = [(c.source, wanted[c.source].index(c.value)) for c in channels]
        joints = [robot.action[element.name].joint for element in spec.action]
        told = wanted.get(robot.feedback, [])
        self._position, self._velocity = (
            [told.index(f"{joint}.{part}") if f"{joint}.{part}" in told else -1 for joint in joints]
            for part in ("position", "velocity")
        )
        self._feedback = robot.feedback
        split = [name.partition("/") for name in robot.bounds]
        self._watched = [(source, wanted[source].index(quantity)) for source, _, quantity in split]
        self.images = Images(robot.cameras, spec.cameras)
        self.ignored = 0

    @property
    def jumps(self) -> int:
        """How often the robot's clock was set."""
        return sum(stream.jumps for stream in self._streams.values())

    @property
    def dropped(self) -> int:
        """Messages that came twice or too late."""
        return sum(stream.dropped for stream in self._streams.values())

    @property
    def stamp(self) -> float:
        """The newest stamp of all sources [s]."""
        return max((s.newest.stamp for s in self._streams.values() if s.newest is not None), default=0.0)

    def take(self, source: str, message: Any, stamp: float, now: float) -> None:
        """A message has come; `stamp` is its own time, `now` the steady clock [s]."""
        values = self._readers[source].read(message)
        if values is None:
            self.ignored += 1
        else:
            self._streams[source].take(Sample(now, stamp, values))

    def silent(self, now: float) -> str:
        """Which source says nothing, in one sentence; empty if all speak."""
        for name, stream in self._streams.items():
            if stream.newest is None:
                return f"source '{name}' has not been heard"
            if now - stream.newest.arrival > stream.max_age:
                return f"source '{name}' has been silent for {now - stream.newest.arrival:.2f} s"
        return self.images.silent(now)

    def begin(self) -> None:
        """Forget what the filters remember, since an episode begins."""
        for filter_ in self._filters:
            filter_.forget()

    def look(self, now: float) -> Look | None:
        """The robot as it is now, or None while a source is silent. Call once a period: filters go on."""
        seen = {name: stream.at(now) for name, stream in self._streams.items()}
        known = {name: values for name, values in seen.items() if values is not None}
        images = self.images.look(now)
        if len(known) < len(seen) or images is None:
            return None
        raw = [known[source][i] for source, i in self._observed]
        observation = np.array([f(x) for f, x in zip(self._filters, raw, strict=True)])
        told = known.get(self._feedback, np.empty(0))
        reading = Reading(
            position=_pick(told, self._position),
            velocity=_pick(told, self._velocity),
            watched=np.array([known[source][i] for source, i in self._watched]),
            unknown=self._unknown(observation),
        )
        return Look(observation, reading, images)

    def _unknown(self, observation: Array) -> str:
        """The first element that is not finite, in one sentence; empty if all are."""
        for name, value in zip(self._elements, observation.tolist(), strict=True):
            if not math.isfinite(value):
                return f"element '{name}' of the observation is not finite"
        return ""


def _pick(values: Array, places: list[int]) -> NDArray[np.float64]:
    return np.array([values[i] if i >= 0 else math.nan for i in places])


class _Filter:
    """One channel: encoding(low-pass(d/dt(scale x + offset)))."""

    def __init__(self, channel: Channel, period: float) -> None:
        self._channel, self._period = channel, period
        self._share = period / (channel.low_pass + period)  # of the new value in the low-pass
        self._angle = is_angle(channel.value)
        self.forget()

    def forget(self) -> None:
        """An episode begins: there is nothing before."""
        self._before: float | None = None
        self._smooth: float | None = None

    def __call__(self, value: float) -> float:
        """The element of the observation."""
        c = self._channel
        x = c.scale * value + c.offset
        if c.difference:
            change = 0.0 if self._before is None else x - self._before
            if self._angle:
                turn = abs(c.scale) * 2.0 * math.pi
                change = (change + turn / 2) % turn - turn / 2
            self._before, x = x, change / self._period
        if c.low_pass:
            if self._smooth is None or not math.isfinite(self._smooth):  # nothing wrong is remembered
                self._smooth = x
            self._smooth += self._share * (x - self._smooth)
            x = self._smooth
        if c.encoding == "identity":
            return x
        if not math.isfinite(x):
            return math.nan  # math.cos would raise; what is not finite is for the guard to judge
        return math.cos(x) if c.encoding == "cos" else math.sin(x)
