"""What a world's observations and actions mean: names, units, ranges, period, delay.

numpy only, so that the guard of a robot never loads torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTINUOUS = "continuous"
DISCRETE = "discrete"


@dataclass(frozen=True)
class Element:
    """One element of an observation or of an action."""

    name: str  # unique within its vector
    unit: str = "1"  # SI; "1" where there is none
    low: float = -math.inf  # scaling range [unit]
    high: float = math.inf
    encoding: str = "identity"  # or "cos", "sin": what the number is of its quantity
    count: int = 0  # choices of a discrete element; 0 = continuous

    @property
    def kind(self) -> str:
        """Either CONTINUOUS or DISCRETE."""
        return DISCRETE if self.count else CONTINUOUS


@dataclass(frozen=True)
class Camera:
    """One image of an observation, uint8 [height, width, 3]."""

    name: str
    height: int  # [px]
    width: int  # [px]
    encoding: str = "rgb8"


@dataclass(frozen=True)
class Spec:
    """The interface between a world and everything that learns or decides.

    Attributes:
        task: id of the task; not part of the dynamics hash.
        observation: D elements of the vector observation.
        action: A elements of the action, all continuous, or a single discrete one.
        control_period: time between two States [s].
        action_delay_steps: an action takes effect this many States after the one it answers [steps].
        cameras: images beside the vector observation.

    Raises:
        ValueError: names repeat, an action has no finite range, or the period is not positive.
    """

    task: str
    observation: tuple[Element, ...]
    action: tuple[Element, ...]
    control_period: float
    action_delay_steps: int = 0
    cameras: tuple[Camera, ...] = ()

    def __post_init__(self) -> None:
        for vector in (self.observation, self.action):
            twice = repeated(element.name for element in vector)
            if twice:
                raise ValueError(f"element '{twice}' appears twice")
        if not (self.control_period > 0 and math.isfinite(self.control_period)):
            raise ValueError(f"control_period is {self.control_period} s, but must be positive")
        if self.action_delay_steps < 0:
            raise ValueError(f"action_delay_steps is {self.action_delay_steps}, but must be at least 0")
        if not self.action:
            raise ValueError("a Spec needs at least one action element")
        if self.discrete and len(self.action) > 1:
            raise ValueError("a discrete action must be the only element")
        for element in self.action:
            bounded = (
                math.isfinite(element.low) and math.isfinite(element.high) and element.low < element.high
            )
            if not element.count and not bounded:
                raise ValueError(f"action '{element.name}' needs finite limits with low < high")

    @property
    def discrete(self) -> bool:
        """Whether the action is one of several choices."""
        return any(element.count for element in self.action)

    @property
    def observation_dim(self) -> int:
        """D, length of the vector observation."""
        return len(self.observation)

    @property
    def action_dim(self) -> int:
        """A, length of an action in SI units (1 for a discrete one)."""
        return len(self.action)

    @property
    def inner_action_dim(self) -> int:
        """Length of an action inside the algorithms: A scaled values, or a one-hot vector."""
        return self.action[0].count if self.discrete else len(self.action)

    @cached_property
    def action_low(self) -> NDArray[np.float64]:
        """Lower limits of a continuous action [A], SI."""
        return np.array([element.low for element in self.action])

    @cached_property
    def action_high(self) -> NDArray[np.float64]:
        """Upper limits of a continuous action [A], SI."""
        return np.array([element.high for element in self.action])

    @cached_property
    def circles(self) -> tuple[int, ...]:
        """Positions i where observation elements i and i + 1 are the cosine and sine (or sine and cosine)
        of one angle, so that a prediction can be put back on the unit circle.
        """
        pairs = zip(self.observation, self.observation[1:], strict=False)
        return tuple(i for i, (a, b) in enumerate(pairs) if {a.encoding, b.encoding} == {"cos", "sin"})

    def index(self, name: str) -> int:
        """Position of an observation element.

        Raises:
            KeyError: there is none of that name.
        """
        for i, element in enumerate(self.observation):
            if element.name == name:
                return i
        raise KeyError(f"no observation element '{name}'")

    def scale_action(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        """From SI [..., A] to what algorithms see: [-1, 1] [..., A], or one-hot [..., count]."""
        action = np.asarray(action, dtype=np.float64)
        if self.discrete:
            return np.eye(self.action[0].count)[action[..., 0].astype(np.int64)]
        low, high = self.action_low, self.action_high
        return 2.0 * (action - low) / (high - low) - 1.0

    def unscale_action(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """From what algorithms choose to SI [..., A]; the inverse of `scale_action`, with limits applied."""
        if self.discrete:
            return np.argmax(action, axis=-1, keepdims=True).astype(np.float64)
        low, high = self.action_low, self.action_high
        return low + (np.clip(action, -1.0, 1.0).astype(np.float64) + 1.0) * 0.5 * (high - low)

    def safe_action(self) -> NDArray[np.float64]:
        """The action [A], SI, of a world that nobody controls: nearest to zero within the limits."""
        if self.discrete:
            return np.zeros(1)
        return np.clip(np.zeros(self.action_dim), self.action_low, self.action_high)

    @cached_property
    def dynamics_hash(self) -> str:
        """SHA-256 (hex) over what a model depends on, in canonical JSON.

        Covers names, order, units, encodings, scaling ranges, period and delay; not the task.
        """
        content = {
            "action": [_canonical(element) for element in self.action],
            "action_delay_steps": self.action_delay_steps,
            "cameras": [[c.name, c.height, c.width, c.encoding] for c in self.cameras],
            "control_period": _number(self.control_period),
            "observation": [_canonical(element) for element in self.observation],
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def repeated(names: Iterable[str]) -> str | None:
    """The first name that was there before; None = each is there once."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _number(value: float) -> str:
    """The shortest text that reads back as the same double, the same on every platform."""
    return repr(float(value) + 0.0)  # + 0.0 makes -0.0 equal to 0.0


def _canonical(element: Element) -> list[str | int]:
    low, high = _number(element.low), _number(element.high)
    return [element.name, element.unit, element.encoding, element.count, low, high]
