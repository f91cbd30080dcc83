"""The only translator between ROS messages and the core's records."""

from __future__ import annotations

import array
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Time as TimeMsg
from numpy.typing import NDArray
from sensor_msgs.msg import Image as ImageMsg

from mbrl_dynamics.contract import World
from mbrl_dynamics.spec import Camera, Element, Spec
from mbrl_dynamics.transition import Answer, Transition
from mbrl_msgs.msg import Action as ActionMsg
from mbrl_msgs.msg import Camera as CameraMsg
from mbrl_msgs.msg import Element as ElementMsg
from mbrl_msgs.msg import LearnerStatus as LearnerStatusMsg
from mbrl_msgs.msg import ModelUpdate as ModelUpdateMsg
from mbrl_msgs.msg import Spec as SpecMsg
from mbrl_msgs.msg import State as StateMsg
from mbrl_msgs.msg import WorldStatus as WorldStatusMsg

if TYPE_CHECKING:  # these load torch, which the simulator does without
    from mbrl_dynamics.learner import Status
    from mbrl_dynamics.snapshot import Snapshot


def doubles(values: Any) -> array.array[float]:
    """Any array of numbers as the fast form of a float64[] field (row-major)."""
    result = array.array("d")
    result.frombytes(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return result


def octets(data: bytes) -> array.array[int]:
    """Bytes as the fast form of a uint8[] field."""
    result = array.array("B")
    result.frombytes(data)
    return result


def vector(values: Any) -> NDArray[np.float64]:
    """A float64[] field as a numpy array of its own."""
    return np.array(values, dtype=np.float64)


def time_msg(seconds: float) -> TimeMsg:
    """Seconds as a stamp."""
    nanoseconds = round(seconds * 1e9)
    return TimeMsg(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def seconds(stamp: TimeMsg) -> float:
    """A stamp as seconds."""
    return float(stamp.sec) + 1e-9 * float(stamp.nanosec)


def world_id_field(world_id: bytes) -> NDArray[np.uint8]:
    """A world id as a uint8[16] field."""
    return np.frombuffer(world_id, dtype=np.uint8)


def transition_to_msg(transition: Transition, spec: Spec) -> StateMsg:
    """A transition as a State."""
    msg = StateMsg()
    msg.header.stamp = time_msg(transition.stamp)
    msg.world_id = world_id_field(transition.world_id)
    msg.episode, msg.step = transition.episode, transition.step
    msg.first, msg.terminated, msg.truncated = transition.first, transition.terminated, transition.truncated
    msg.observation = doubles(transition.observation)
    msg.action = doubles(transition.action)
    msg.controller_id = transition.controller_id
    msg.reward = float(transition.reward)
    msg.images = [_image_to_msg(transition.images[camera.name], camera, msg) for camera in spec.cameras]
    return msg


def transition_from_msg(msg: StateMsg) -> Transition:
    """A State as a transition; `Transition.fault` says whether it can be used."""
    return Transition(
        world_id=bytes(msg.world_id),
        episode=msg.episode,
        step=msg.step,
        observation=vector(msg.observation),
        action=vector(msg.action),
        reward=msg.reward,
        first=msg.first,
        terminated=msg.terminated,
        truncated=msg.truncated,
        controller_id=msg.controller_id,
        stamp=seconds(msg.header.stamp),
        images={image.header.frame_id: _image_from_msg(image) for image in msg.images},
    )


def answer_to_msg(answer: Answer, stamp: TimeMsg) -> ActionMsg:
    """An answer as an Action."""
    msg = ActionMsg(stamp=stamp, episode=answer.episode, step=answer.step, controller_id=answer.controller_id)
    msg.world_id = world_id_field(answer.world_id)
    msg.horizon = len(answer.values)
    msg.values = doubles(answer.values)
    msg.disagreement = float(answer.disagreement)
    return msg


def answer_from_msg(msg: ActionMsg) -> Answer:
    """An Action as an answer; values that do not fill `horizon` rows give an array [0, 0]."""
    values = vector(msg.values)
    whole = msg.horizon > 0 and values.size > 0 and values.size % msg.horizon == 0
    return Answer(
        world_id=bytes(msg.world_id),
        episode=msg.episode,
        step=msg.step,
        controller_id=msg.controller_id,
        values=values.reshape(msg.horizon, -1) if whole else np.empty((0, 0)),
        disagreement=msg.disagreement,
    )


def spec_to_msg(spec: Spec, world_id: bytes) -> SpecMsg:
    """A spec as its message."""
    msg = SpecMsg(
        task=spec.task,
        dynamics_hash=spec.dynamics_hash,
        control_period=spec.control_period,
        action_delay_steps=spec.action_delay_steps,
        observation=[_element_to_msg(element) for element in spec.observation],
        action=[_element_to_msg(element) for element in spec.action],
        cameras=[
            CameraMsg(name=c.name, height=c.height, width=c.width, encoding=c.encoding) for c in spec.cameras
        ],
    )
    msg.world_id = world_id_field(world_id)
    return msg


def spec_from_msg(msg: SpecMsg) -> Spec:
    """A Spec message as a spec.

    Raises:
        ValueError: the message contradicts itself, or its hash is not that of its content.
    """
    spec = Spec(
        task=msg.task,
        observation=tuple(_element_from_msg(element) for element in msg.observation),
        action=tuple(_element_from_msg(element) for element in msg.action),
        control_period=msg.control_period,
        action_delay_steps=msg.action_delay_steps,
        cameras=tuple(Camera(c.name, c.height, c.width, c.encoding) for c in msg.cameras),
    )
    if spec.dynamics_hash != msg.dynamics_hash:
        raise ValueError("the dynamics hash of the spec is not that of its content")
    return spec


def snapshot_to_msg(snapshot: Snapshot, stamp: TimeMsg) -> ModelUpdateMsg:
    """A snapshot as a ModelUpdate."""
    return ModelUpdateMsg(
        stamp=stamp,
        model_id=snapshot.model_id,
        run_id=snapshot.run_id,
        version=snapshot.version,
        architecture=snapshot.architecture,
        dynamics_hash=snapshot.dynamics_hash,
        sha256=snapshot.sha256,
        trained_world_id=snapshot.trained_world_id,
        trained_episode=snapshot.trained_episode,
        metric_names=list(snapshot.metrics),
        metric_values=doubles(list(snapshot.metrics.values())),
        weights=octets(snapshot.weights),
    )


def snapshot_from_msg(msg: ModelUpdateMsg) -> Snapshot:
    """A ModelUpdate as a snapshot; `snapshot.check` says whether it can be used."""
    from mbrl_dynamics.snapshot import Snapshot

    return Snapshot(
        model_id=msg.model_id,
        run_id=msg.run_id,
        version=msg.version,
        architecture=msg.architecture,
        dynamics_hash=msg.dynamics_hash,
        sha256=msg.sha256,
        trained_world_id=msg.trained_world_id,
        trained_episode=msg.trained_episode,
        metrics=dict(zip(msg.metric_names, msg.metric_values, strict=False)),
        weights=bytes(msg.weights),
    )


def learner_status_to_msg(status: Status, stamp: TimeMsg) -> LearnerStatusMsg:
    """How the learning goes, as a LearnerStatus."""
    return LearnerStatusMsg(
        stamp=stamp,
        status=status.phase.value,
        run_id=status.run_id,
        version=status.version,
        episodes=status.episodes,
        transitions=status.transitions,
        trained_world_id=status.trained_world_id,
        trained_episode=status.trained_episode,
        train_loss=status.train_loss,
        holdout_error=status.holdout_error,
        fit_seconds=status.fit_seconds,
        refused=status.refused,
        gaps=status.gaps,
        recording=status.recording,
        error_msg=status.error,
    )


def world_status_to_msg(world: World, stamp: TimeMsg) -> WorldStatusMsg:
    """How a world is doing, as a WorldStatus without its mode, listeners and speed."""
    desk = world.desk
    return WorldStatusMsg(
        stamp=stamp,
        world_id=world_id_field(world.world_id),
        status=int(world.status),
        episode=world.episode,
        step=world.step,
        waiting=world.waiting,
        controller_id=desk.controller_id,
        accepted=desk.accepted,
        refused=desk.refused.total(),
        missed_steps=int(world.missed_steps),
        last_refusal=desk.last_refusal,
        last_fault=world.last_fault,
    )


def _element_to_msg(element: Element) -> ElementMsg:
    return ElementMsg(
        name=element.name,
        unit=element.unit,
        encoding=element.encoding,
        kind=ElementMsg.DISCRETE if element.count else ElementMsg.CONTINUOUS,
        low=float(element.low),
        high=float(element.high),
        count=element.count,
    )


def _element_from_msg(msg: ElementMsg) -> Element:
    return Element(msg.name, msg.unit, msg.low, msg.high, msg.encoding, msg.count)


def _image_to_msg(image: NDArray[np.uint8], camera: Camera, state: StateMsg) -> ImageMsg:
    height, width = image.shape[:2]
    msg = ImageMsg(height=height, width=width, encoding=camera.encoding, step=image.nbytes // height)
    msg.header.stamp = state.header.stamp
    msg.header.frame_id = camera.name
    msg.data = octets(image.tobytes())
    return msg


def _image_from_msg(msg: ImageMsg) -> NDArray[np.uint8]:
    """The pixels of an image; an array [0, 0, 3] where the data do not fill it, which no spec accepts."""
    data = np.frombuffer(msg.data, dtype=np.uint8)
    pixels = msg.height * msg.width
    whole = data.size > 0 and pixels > 0 and data.size % pixels == 0
    return data.reshape(msg.height, msg.width, -1).copy() if whole else np.empty((0, 0, 3), np.uint8)


def finite_or_nan(value: float | None) -> float:
    """None and infinities as NaN, for fields that say "NaN = unknown"."""
    return value if value is not None and math.isfinite(value) else math.nan
