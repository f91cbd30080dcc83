"""Where the links of a robot are, from its URDF, and whether that is where they may be. numpy only.

The guard asks once a period, for a handful of commands at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from transforms3d.euler import euler2mat

from mbrl_dynamics.config import Field, config, one_of
from mbrl_dynamics.errors import UserError

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
FAR = 1000.0  # [m]


@config
class PointOf:
    """A point that is fixed to a link."""

    link: Annotated[str, Field(description="a link of the URDF")]
    at: Annotated[Vector, Field(description="where, in the link's own frame [m]")] = (0.0, 0.0, 0.0)


@config
class WorkspaceConfig:
    """A box that points of the robot must not leave: the table below it, a wall, a person's side."""

    points: Annotated[
        tuple[PointOf, ...], Field(description="what must stay in it; empty = no workspace")
    ] = ()
    low: Annotated[Vector, Field(description="least x, y, z, in the frame of the URDF's root [m]")] = (
        -FAR,
        -FAR,
        -FAR,
    )
    high: Annotated[Vector, Field(description="greatest x, y, z [m]")] = (FAR, FAR, FAR)
    margin: Annotated[float, Field(ge=0, description="distance to its sides that commands keep [m]")] = 0.02
    look_ahead: Annotated[
        float, Field(gt=0, description="a velocity is seen as going on for so long [s]: latency and braking")
    ] = 0.3


@dataclass(frozen=True)
class _Joint:
    """From one link to the next: a fixed transform, then a motion along or about an axis."""

    name: str
    turns: bool  # otherwise it slides
    moves: int  # index in the joint positions; -1 = it is fixed
    rotation: Array  # [3, 3] of its origin
    origin: Array  # [3] [m]
    axis: Array  # [3], in the frame that the rotation leads to


class Workspace:
    """Keeps points of a robot in a box.

    Args:
        settings: see WorkspaceConfig; with at least one point.
        urdf: describes the links.
        joints: names of the joints, in the order of the positions that are given later [A].

    Raises:
        UserError: the URDF cannot be read, or has no such link; a link depends on a joint that is not among
            `joints`, or the box is empty.
    """

    def __init__(self, settings: WorkspaceConfig, urdf: Path, joints: Sequence[str]) -> None:
        self.settings = settings
        self._low, self._high = np.array(settings.low), np.array(settings.high)
        if not (self._low + 2.0 * settings.margin < self._high).all():
            raise UserError(
                f"workspace.low is {list(settings.low)}, which must be below workspace.high, "
                f"{list(settings.high)}, by more than twice the margin"
            )
        known = _parents(urdf)
        self._range = _ranges(known, joints)
        chains = [
            _chain(known, one_of("link of workspace.points", p.link, known), joints, urdf)
            for p in settings.points
        ]
        self._at = np.array([[*p.at, 1.0] for p in settings.points])  # [K, 4]
        moves = _together(chains)
        self._spans = [_span(moved) for _, moved in moves]
        self._places = np.array([max(joint.moves, 0) for joint, _ in moves], int)
        self._motions = np.array([_motion(joint) for joint, _ in moves]).reshape(-1, 4, 4, 4)
        self._reach = _reach(chains, self._at[:, :3], len(joints))

    def reachable(self, here: Array, wanted: Array) -> Array:
        """How far joints that stand at `here` [A] come on their way to `wanted` [S, A].

        A joint at the end of its range stays there, and does not make up for what another one does.
        """
        return np.clip(wanted, np.minimum(self._range[0], here), np.maximum(self._range[1], here))

    def positions(self, joints: Array) -> Array:
        """Where the points are in the root's frame [S, K, 3], in m, for joint positions [S, A]."""
        q = joints[:, self._places]  # [S, J], a column for each joint of the tree
        terms = np.stack([np.ones_like(q), np.cos(q), np.sin(q), q])
        motions = np.einsum("tsj,jtab->jsab", terms, self._motions)
        found = np.repeat(self._at[None], len(joints), axis=0)  # rows x, y, z, 1
        for span, motion in zip(self._spans, motions, strict=True):  # from the outermost to the root
            found[:, span] = found[:, span] @ motion
        return found[..., :3]

    def clearance(self, joints: Array) -> Array:
        """Distance of the points to the nearest side [S], in m; negative outside, NaN where it is unknown."""
        at = self.positions(joints)
        clearance: Array = np.minimum(at - self._low, self._high - at).min((1, 2))
        return clearance

    def travel(self, change: Array) -> float:
        """No point moves further [m] if the joint positions change by so much [A]; quick, and not tight."""
        return float(self._reach @ np.abs(change))

    def outside(self, joints: Array) -> str:
        """Which point is outside, in one sentence, for joint positions [A]; empty if none is."""
        at = self.positions(joints[None])[0]
        beyond = np.maximum(self._low - at, at - self._high)
        if beyond.max() <= 0.0:
            return ""
        point, axis = np.unravel_index(np.nanargmax(beyond), beyond.shape)
        link, value = self.settings.points[point].link, at[point, axis]
        low, high = self.settings.low[axis], self.settings.high[axis]
        return f"link '{link}' is at {'xyz'[axis]} = {value:.3f} m, not within {low:.4g} and {high:.4g}"


def _span(numbers: list[int]) -> slice | list[int]:
    """The numbers as an index; where they follow each other as a slice, which is several times as fast."""
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return slice(numbers[0], numbers[-1] + 1) if whole else numbers


def _motion(joint: _Joint) -> Array:
    """What 1, cos q, sin q and q are multiplied with for the transform [4, 4, 4] of rows x, y, z, 1."""
    parts = np.zeros((4, 4, 4))
    turn = joint.rotation.T
    if joint.moves >= 0 and joint.turns:  # Rodrigues' formula
        along = np.outer(joint.axis, joint.axis)
        parts[0, :3, :3] = along @ turn
        parts[1, :3, :3] = (np.eye(3) - along) @ turn
        parts[2, :3, :3] = np.cross(joint.axis, np.eye(3)) @ turn
    else:
        parts[0, :3, :3] = turn
        parts[3, 3, :3] = (joint.moves >= 0) * joint.axis @ turn
    parts[0, 3] = *joint.origin, 1.0
    return parts


def _reach(chains: Sequence[Sequence[_Joint]], at: Array, width: int) -> Array:
    """How far a point moves at most if a joint turns by 1 rad or slides by 1 m [width].

    A point is never further from a joint's axis than the links between them are long, added up; one that
    slides may be as long as FAR.
    """
    reach = np.zeros(width)
    for chain, start in zip(chains, at, strict=True):
        length = float(np.linalg.norm(start))
        for joint in chain:
            if joint.moves >= 0:
                reach[joint.moves] = max(reach[joint.moves], length if joint.turns else 1.0)
            slides = joint.moves >= 0 and not joint.turns
            length += float(np.linalg.norm(joint.origin)) + FAR * slides
    return reach


def _parents(urdf: Path) -> dict[str, ElementTree.Element | None]:
    """Link -> the joint element that leads to it from its parent; None for the root."""
    try:
        root = ElementTree.parse(urdf).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"the URDF {urdf} cannot be read: {error}") from None
    parents: dict[str, ElementTree.Element | None] = {
        link.get("name", ""): None for link in root.findall("link")
    }
    for joint in root.findall("joint"):
        child = joint.find("child")
        if child is not None:
            parents[child.get("link", "")] = joint
    return parents


def _ranges(parents: dict[str, ElementTree.Element | None], joints: Sequence[str]) -> Array:
    """Lowest and highest position of joints [2, A]; infinite where the URDF does not say."""
    limits = {joint.get("name"): joint.find("limit") for joint in parents.values() if joint is not None}
    known = [limits.get(joint) for joint in joints]
    return np.array(
        [
            [float(x.get(side, end)) if x is not None else float(end) for x in known]
            for side, end in (("lower", "-inf"), ("upper", "inf"))
        ]
    )


def _chain(
    parents: dict[str, ElementTree.Element | None], link: str, joints: Sequence[str], urdf: Path
) -> list[_Joint]:
    """The joints from a link to the root."""
    chain: list[_Joint] = []
    while (element := parents.get(link)) is not None:
        if len(chain) > len(parents):
            raise UserError(f"the links of {urdf} form a circle at '{link}'")
        chain.append(_joint(element, joints, urdf))
        parent = element.find("parent")
        link = "" if parent is None else parent.get("link", "")
    return chain


def _together(chains: Sequence[Sequence[_Joint]]) -> list[tuple[_Joint, list[int]]]:
    """Each joint once, with the numbers of all points that it moves, before the joints that carry it."""
    depth = {joint.name: len(chain) - i for chain in chains for i, joint in enumerate(chain)}
    joints = {joint.name: joint for chain in chains for joint in chain}
    moved = {name: [k for k, c in enumerate(chains) if any(j.name == name for j in c)] for name in joints}
    return [(joints[name], moved[name]) for name in sorted(joints, key=depth.__getitem__, reverse=True)]


def _joint(element: ElementTree.Element, joints: Sequence[str], urdf: Path) -> _Joint:
    name, kind = element.get("name", ""), element.get("type", "")
    if kind not in ("fixed", "revolute", "continuous", "prismatic"):
        raise UserError(f"joint '{name}' of {urdf} is '{kind}', which a workspace does not know")
    if kind != "fixed" and name not in joints:
        raise UserError(
            f"a point of the workspace moves with joint '{name}', which the robot's action has not"
        )
    turn = _vector(element, "origin", "rpy", "0 0 0")  # about the fixed axes x, y, z, in this order
    axis = _vector(element, "axis", "xyz", "1 0 0")
    axis = axis / np.linalg.norm(axis)
    return _Joint(
        name=name,
        turns=kind != "prismatic",
        moves=-1 if kind == "fixed" else list(joints).index(name),
        rotation=euler2mat(*turn, axes="sxyz"),
        origin=_vector(element, "origin", "xyz", "0 0 0"),
        axis=axis,
    )


def _vector(element: ElementTree.Element, child: str, name: str, default: str) -> Array:
    found = element.find(child)
    return np.array(
        [float(word) for word in (default if found is None else found.get(name, default)).split()]
    )
