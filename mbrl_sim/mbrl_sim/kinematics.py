"""Where the points of an arm are, from its joint angles: numpy and torch alike, and without MuJoCo.

A planner needs this for each step that it imagines, so it is elementwise arithmetic on whole batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from array_api_compat import array_namespace

from mbrl_dynamics.errors import UserError

Array = Any  # a numpy array or a torch tensor
Vector = tuple[float, float, float]

_AXES: dict[Vector, int] = {(1.0, 0.0, 0.0): 0, (0.0, 1.0, 0.0): 1, (0.0, 0.0, 1.0): 2}


@dataclass(frozen=True)
class Link:
    """A body that turns about its parent.

    Attributes:
        joint: name of its hinge, which is in its origin.
        origin: of the body in its parent's frame [m].
        axis: that it turns about: 0, 1, 2 = x, y, z of its own frame.
    """

    joint: str
    origin: Vector
    axis: int


@dataclass(frozen=True)
class Chain:
    """The links from the world to one body, the first one fixed to the world."""

    links: tuple[Link, ...]

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the hinges, from the world on."""
        return tuple(link.joint for link in self.links)

    def positions(self, angles: Array, points: Mapping[str, Vector]) -> Array:
        """Points that are fixed to links, in the world [..., K, 3], in m.

        Args:
            angles: of the hinges, from the world on [..., J or more], rad.
            points: joint -> a point in the frame of the link that it turns [m]; in the order of the result.

        Raises:
            KeyError: the chain has no such joint.
        """
        xp = array_namespace(angles)
        cos, sin = xp.cos(angles)[..., None], xp.sin(angles)[..., None]  # [..., J, 1]
        zero = 0.0 * angles[..., :1]
        order: list[str] = []
        at: list[Any] = [zero[..., :0]] * 3  # x, y, z of the points so far [..., k]
        for i in reversed(range(len(self.links))):
            link = self.links[i]
            if link.joint in points:
                order.append(link.joint)
                new = points[link.joint]
                at = [xp.concat([x, zero + start], axis=-1) for x, start in zip(at, new, strict=True)]
            a, b = (link.axis + 1) % 3, (link.axis + 2) % 3
            c, s = cos[..., i, :], sin[..., i, :]
            at[a], at[b] = c * at[a] - s * at[b], s * at[a] + c * at[b]
            at = [x + shift if shift else x for x, shift in zip(at, link.origin, strict=True)]
        found = xp.stack(at, axis=-1)
        return xp.stack([found[..., order.index(joint), :] for joint in self._known(points)], axis=-2)

    def _known(self, points: Mapping[str, Vector]) -> Mapping[str, Vector]:
        for joint in points:
            if joint not in self.joints:
                raise KeyError(f"the chain has no joint '{joint}'")
        return points


def read_chain(mjcf: Path, body: str) -> Chain:
    """The chain that leads to a body of an MJCF.

    Raises:
        UserError: there is no such body, or something on the way is not a body turned by one hinge about an
            axis of its own.
    """
    path = _path(ElementTree.parse(mjcf).getroot().find("worldbody"), body)
    if not path:
        raise UserError(f"{mjcf} has no body '{body}'")
    return Chain(tuple(_link(mjcf, element) for element in path))


def _path(parent: Any, body: str) -> list[Any]:
    """The body elements from the world to a body; empty = it is not there."""
    for child in () if parent is None else parent.findall("body"):
        if child.get("name") == body:
            return [child]
        rest = _path(child, body)
        if rest:
            return [child, *rest]
    return []


def _link(mjcf: Path, body: Any) -> Link:
    joints = body.findall("joint")
    turned = {"quat", "euler", "axisangle", "xyaxes", "zaxis"} & set(body.attrib)
    plain = len(joints) == 1 and not turned and {"pos", "type"}.isdisjoint(joints[0].attrib)
    axis = _AXES.get(_vector(joints[0].get("axis", "0 0 1"))) if plain else None
    if axis is None:
        raise UserError(f"body '{body.get('name')}' of {mjcf} is not turned by one hinge about its x, y or z")
    return Link(joints[0].get("name", ""), _vector(body.get("pos", "0 0 0")), axis)


def _vector(text: str) -> Vector:
    x, y, z = (float(word) for word in text.split())
    return x, y, z
