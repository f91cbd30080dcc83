"""State, Action and Spec as bytes (CDR), with no ROS: what a dataset on disk is made of."""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from mbrl_dynamics.spec import Camera, Element, Spec
from mbrl_dynamics.transition import Answer, Transition, WorldId

STATE, ACTION, SPEC = "mbrl_msgs/msg/State", "mbrl_msgs/msg/Action", "mbrl_msgs/msg/Spec"

DEFINITIONS = {  # the .msg files without their comments; a test holds the two equal
    "mbrl_msgs/msg/State": """
std_msgs/Header header
uint8[16] world_id
uint64 episode
uint64 step
bool first
bool terminated
bool truncated
float64[] observation
float64[] action
string controller_id
float64 reward
sensor_msgs/Image[] images
""",
    "mbrl_msgs/msg/Action": """
builtin_interfaces/Time stamp
uint8[16] world_id
uint64 episode
uint64 step
string controller_id
uint32 horizon
float64[] values
float64 disagreement
""",
    "mbrl_msgs/msg/Spec": """
uint8[16] world_id
string task
string dynamics_hash
float64 control_period
uint32 action_delay_steps
Element[] observation
Element[] action
Camera[] cameras
""",
    "mbrl_msgs/msg/Element": """
uint8 CONTINUOUS=0
uint8 DISCRETE=1
string name
string unit
string encoding
uint8 kind
float64 low
float64 high
uint32 count
""",
    "mbrl_msgs/msg/Camera": """
string name
uint32 height
uint32 width
string encoding
""",
    "sensor_msgs/msg/Image": """
std_msgs/Header header
uint32 height
uint32 width
string encoding
uint8 is_bigendian
uint32 step
uint8[] data
""",
    "std_msgs/msg/Header": """
builtin_interfaces/Time stamp
string frame_id
""",
    "builtin_interfaces/msg/Time": """
int32 sec
uint32 nanosec
""",
}


def schema(name: str) -> str:
    """A message's definition and those of all messages that it holds, as the encoding "ros2msg" wants it."""
    parts, found = [DEFINITIONS[name].strip()], [name]
    for outer in found:  # grows while it is read
        for inner in _holds(outer):
            if inner not in found:
                found.append(inner)
                parts.append(f"{'=' * 80}\nMSG: {inner.replace('/msg/', '/')}\n{DEFINITIONS[inner].strip()}")
    return "\n".join(parts) + "\n"


def encode_transition(transition: Transition, spec: Spec) -> bytes:
    """A transition as the bytes of a State."""
    stamp = _time(transition.stamp)
    images = [_image(transition.images[camera.name], camera, stamp) for camera in spec.cameras]
    return _encode(
        STATE,
        header=_make("std_msgs/msg/Header", stamp=stamp, frame_id=""),
        world_id=_octets(transition.world_id),
        episode=transition.episode,
        step=transition.step,
        first=transition.first,
        terminated=transition.terminated,
        truncated=transition.truncated,
        observation=_doubles(transition.observation),
        action=_doubles(transition.action),
        controller_id=transition.controller_id,
        reward=float(transition.reward),
        images=images,
    )


def decode_transition(data: bytes) -> Transition:
    """The inverse of `encode_transition`.

    Raises:
        ValueError: the bytes are not those of a State.
    """
    msg = _decode(data, STATE)
    return Transition(
        world_id=msg.world_id.tobytes(),
        episode=msg.episode,
        step=msg.step,
        observation=msg.observation.astype(np.float64),
        action=msg.action.astype(np.float64),
        reward=msg.reward,
        first=msg.first,
        terminated=msg.terminated,
        truncated=msg.truncated,
        controller_id=msg.controller_id,
        stamp=msg.header.stamp.sec + 1e-9 * msg.header.stamp.nanosec,
        images={i.header.frame_id: i.data.reshape(i.height, i.width, -1).copy() for i in msg.images},
    )


def encode_answer(answer: Answer, stamp: float) -> bytes:
    """An answer, sent at `stamp` [s], as the bytes of an Action."""
    return _encode(
        ACTION,
        stamp=_time(stamp),
        world_id=_octets(answer.world_id),
        episode=answer.episode,
        step=answer.step,
        controller_id=answer.controller_id,
        horizon=len(answer.values),
        values=_doubles(answer.values),
        disagreement=float(answer.disagreement),
    )


def decode_answer(data: bytes) -> Answer:
    """The inverse of `encode_answer`.

    Raises:
        ValueError: the bytes are not those of an Action.
    """
    msg = _decode(data, ACTION)
    values = msg.values.astype(np.float64).reshape(msg.horizon, -1) if msg.horizon else np.empty((0, 0))
    return Answer(msg.world_id.tobytes(), msg.episode, msg.step, msg.controller_id, values, msg.disagreement)


def encode_spec(spec: Spec, world_id: WorldId) -> bytes:
    """A spec, announced by a world, as the bytes of a Spec."""
    return _encode(
        SPEC,
        world_id=_octets(world_id),
        task=spec.task,
        dynamics_hash=spec.dynamics_hash,
        control_period=spec.control_period,
        action_delay_steps=spec.action_delay_steps,
        observation=[_element(element) for element in spec.observation],
        action=[_element(element) for element in spec.action],
        cameras=[
            _make("mbrl_msgs/msg/Camera", name=c.name, height=c.height, width=c.width, encoding=c.encoding)
            for c in spec.cameras
        ],
    )


def decode_spec(data: bytes) -> tuple[Spec, WorldId]:
    """The inverse of `encode_spec`.

    Raises:
        ValueError: the bytes are not those of a Spec.
    """
    msg = _decode(data, SPEC)
    spec = Spec(
        task=msg.task,
        observation=tuple(_from_element(element) for element in msg.observation),
        action=tuple(_from_element(element) for element in msg.action),
        control_period=msg.control_period,
        action_delay_steps=msg.action_delay_steps,
        cameras=tuple(Camera(c.name, c.height, c.width, c.encoding) for c in msg.cameras),
    )
    return spec, msg.world_id.tobytes()


@cache
def _store() -> Typestore:
    store = get_typestore(Stores.EMPTY)
    types: dict[str, Any] = {}
    for name, text in DEFINITIONS.items():
        types |= get_types_from_msg(text, name)
    store.register(types)
    return store


def _make(kind: str, /, **fields: Any) -> Any:
    return _store().types[kind](**fields)


def _encode(kind: str, /, **fields: Any) -> bytes:
    return bytes(_store().serialize_cdr(_make(kind, **fields), kind, little_endian=True))


def _decode(data: bytes, name: str) -> Any:
    try:
        return _store().deserialize_cdr(data, name)
    except (SerdeError, IndexError, struct.error) as error:
        raise ValueError(f"not the bytes of a {name.rpartition('/')[2]}: {error}") from None


def _holds(name: str) -> list[str]:
    """The messages that a message holds, in order."""
    package, result = name.split("/")[0], []
    for line in DEFINITIONS[name].strip().splitlines():
        kind = re.sub(r"\[.*?\]$", "", line.split()[0])
        full = kind.replace("/", "/msg/") if "/" in kind else f"{package}/msg/{kind}"
        if full in DEFINITIONS:
            result.append(full)
    return result


def _time(seconds: float) -> Any:
    nanoseconds = round(seconds * 1e9)
    return _make("builtin_interfaces/msg/Time", sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def _image(image: NDArray[np.uint8], camera: Camera, stamp: Any) -> Any:
    height, width = image.shape[:2]
    return _make(
        "sensor_msgs/msg/Image",
        header=_make("std_msgs/msg/Header", stamp=stamp, frame_id=camera.name),
        height=height,
        width=width,
        encoding=camera.encoding,
        is_bigendian=0,
        step=image.nbytes // height,
        data=np.ascontiguousarray(image).reshape(-1),
    )


def _octets(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def _doubles(values: Any) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, dtype=np.float64).reshape(-1)


def _element(element: Element) -> Any:
    return _make(
        "mbrl_msgs/msg/Element",
        name=element.name,
        unit=element.unit,
        encoding=element.encoding,
        kind=1 if element.count else 0,
        low=float(element.low),
        high=float(element.high),
        count=element.count,
    )


def _from_element(msg: Any) -> Element:
    return Element(msg.name, msg.unit, msg.low, msg.high, msg.encoding, msg.count)
