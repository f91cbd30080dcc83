"""What happened and what was answered, as plain records: the core's State and Action messages. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mbrl_dynamics.spec import Spec

WorldId = bytes  # 16 bytes of a UUID


@dataclass(frozen=True)
class Transition:
    """One whole transition, as in mbrl_msgs/State. All values SI."""

    world_id: WorldId
    episode: int
    step: int
    observation: NDArray[np.float64]  # [D]
    action: NDArray[np.float64]  # [A] executed over the period that ends here; without meaning if first
    reward: float = math.nan
    first: bool = False
    terminated: bool = False
    truncated: bool = False
    controller_id: str = ""  # who chose the action; empty = nobody
    stamp: float = 0.0  # when the observation was taken [s]
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # name -> [height, width, 3]

    @property
    def last(self) -> bool:
        """Whether the episode ends here."""
        return self.terminated or self.truncated

    @property
    def key(self) -> tuple[WorldId, int, int]:
        """(world id, episode, step): which State this is."""
        return self.world_id, self.episode, self.step

    def follows(self, previous: Transition | None) -> bool:
        """Whether this transition begins where `previous` ended."""
        return (
            previous is not None
            and not self.first
            and not previous.last
            and (self.world_id, self.episode) == (previous.world_id, previous.episode)
            and self.step == previous.step + 1
        )

    def fault(self, spec: Spec) -> str:
        """Why this cannot be used with `spec`, in one sentence; empty if it can."""
        if self.observation.shape != (spec.observation_dim,):
            return (
                f"observation has {self.observation.size} elements, but the spec has {spec.observation_dim}"
            )
        if self.action.shape != (spec.action_dim,):
            return f"action has {self.action.size} elements, but the spec has {spec.action_dim}"
        if not np.isfinite(self.observation).all():
            bad = spec.observation[int(np.flatnonzero(~np.isfinite(self.observation))[0])]
            return f"observation '{bad.name}' is not finite"
        if not self.first and not np.isfinite(self.action).all():
            return "the executed action is not finite"
        if math.isinf(self.reward):
            return "reward is infinite"
        if len(self.images) != len(spec.cameras):
            return f"there are {len(self.images)} images, but the spec has {len(spec.cameras)} cameras"
        for camera in spec.cameras:
            image = self.images.get(camera.name)
            if image is None:
                return f"there is no image of camera '{camera.name}'"
            if image.shape != (camera.height, camera.width, 3):
                return f"the image of camera '{camera.name}' is not {camera.height} x {camera.width} x 3"
        return ""


@dataclass(frozen=True)
class Answer:
    """A controller's answer to one State, as in mbrl_msgs/Action. All values SI."""

    world_id: WorldId
    episode: int
    step: int
    controller_id: str
    values: NDArray[np.float64]  # [H, A]; row 0 is the answer, the rest the plan's tail
    disagreement: float = math.nan

    @property
    def key(self) -> tuple[WorldId, int, int]:
        """Which State this answers."""
        return self.world_id, self.episode, self.step
