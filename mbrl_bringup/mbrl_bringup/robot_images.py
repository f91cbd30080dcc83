"""Images out of a robot's messages, as a task's Spec wants them. No ROS, numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl_bringup.robot_config import CameraTopic
from mbrl_dynamics.spec import Camera

Pixels = NDArray[np.uint8]  # [height, width, 3], red green blue

_ORDERS = {  # encoding of sensor_msgs/Image -> which of its channels are red, green and blue
    "rgb8": (0, 1, 2),
    "rgba8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "bgra8": (2, 1, 0),
    "mono8": (0, 0, 0),
}
_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


def pixels(message: Any, height: int, width: int) -> Pixels:
    """The middle of an image, made smaller by the largest whole factor that leaves it [height, width, 3].

    Each pixel is the mean of the square that it stands for.

    Raises:
        ValueError: the encoding is unknown, the data are too short, or the image is smaller than that.
    """
    order = _ORDERS.get(message.encoding)
    if order is None:
        raise ValueError(f"encoding '{message.encoding}' is unknown; valid: {', '.join(_ORDERS)}")
    if message.height < height or message.width < width:
        raise ValueError(
            f"{message.height} x {message.width} pixels are fewer than the {height} x {width} of the task"
        )
    channels = _CHANNELS[message.encoding]
    data = np.frombuffer(message.data, dtype=np.uint8)
    if message.step < message.width * channels or data.size < message.height * message.step:
        raise ValueError(f"{data.size} bytes are no image of {message.height} x {message.width} pixels")
    rows = data[: message.height * message.step].reshape(message.height, message.step)
    image = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    factor = min(message.height // height, message.width // width)
    top, left = (message.height - factor * height) // 2, (message.width - factor * width) // 2
    middle = image[top : top + factor * height, left : left + factor * width]
    squares = middle.reshape(height, factor, width, factor, channels)
    mean = squares.mean((1, 3)).round() if factor > 1 else squares[:, 0, :, 0]
    result: Pixels = mean.astype(np.uint8)[..., order]
    return result


@dataclass(frozen=True)
class _Seen:
    arrival: float  # steady clock [s]
    message: Any


class Images:
    """Hears the cameras of a robot; an image is only made of a message when somebody looks.

    Args:
        topics: camera -> where its images come from.
        cameras: of the task's Spec.
    """

    def __init__(self, topics: dict[str, CameraTopic], cameras: Sequence[Camera]) -> None:
        self._topics, self._cameras = topics, cameras
        self._seen: dict[str, _Seen] = {}
        self.fault = ""  # why the last images could not be used

    def take(self, camera: str, message: Any, now: float) -> None:
        """A message has come; `now` is the steady clock [s]."""
        self._seen[camera] = _Seen(now, message)

    def silent(self, now: float) -> str:
        """Which camera says nothing, in one sentence; empty if all do."""
        for name, topic in self._topics.items():
            seen = self._seen.get(name)
            if seen is None:
                return f"camera '{name}' has not been heard"
            if now - seen.arrival > topic.max_age:
                return f"camera '{name}' has been silent for {now - seen.arrival:.2f} s"
        return self.fault

    def look(self, now: float) -> dict[str, Pixels] | None:
        """The newest images; None while one is too old, or cannot be used."""
        self.fault = ""
        if self.silent(now):
            return None
        images = {}
        for camera in self._cameras:
            try:
                images[camera.name] = pixels(self._seen[camera.name].message, camera.height, camera.width)
            except ValueError as error:
                self.fault = f"camera '{camera.name}': {error}"
                return None
        return images
